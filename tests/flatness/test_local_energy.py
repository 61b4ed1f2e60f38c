"""Local energy against the closed form of a quadratic, its invariances, and bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.flatness import local_energy
from entropix.flatness._local_energy import normal_like
from tests.flatness import problems

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 8))
W = RNG.normal(size=8)
SIGMAS = np.array([0.05, 0.1, 0.4])


def shifted_quadratic(params, batch):
    """A quadratic whose minimum is at W."""
    return problems.quadratic(params - jnp.asarray(W, params.dtype), batch)


@pytest.mark.parametrize("kind", ["multiplicative", "additive"])
def test_quadratic_at_its_minimum(kind, x64):
    """sigma^2/2 sum_i H_ii w_i^2, or sigma^2/2 tr H; inside the bar at the rate of the normal."""
    h = X.T @ X / len(X)
    scale = W**2 if kind == "multiplicative" else np.ones(8)
    truth = SIGMAS**2 / 2 * np.sum(np.diag(h) * scale)
    run = lambda key: local_energy(
        shifted_quadratic, jnp.asarray(W), jnp.asarray(X), key, sigma=jnp.asarray(SIGMAS),
        kind=kind, num_samples=200, sample_batch_size=200,
    )  # fmt: skip
    found = jax.vmap(run)(jax.random.split(jax.random.key(0), 200))
    score = (np.asarray(found.mean) - truth) / np.asarray(found.std_error)
    assert 0.89 <= np.mean(np.abs(score[:, 0]) < 1.96) <= 0.99
    np.testing.assert_allclose(found.mean.mean(0), truth, rtol=0.02)
    np.testing.assert_allclose(found.base, 0, atol=1e-15)
    # Common random numbers: on a quadratic the levels differ by the factor sigma^2 exactly.
    np.testing.assert_allclose(
        found.mean / found.mean[:, :1], np.tile(SIGMAS**2 / 0.05**2, (200, 1))
    )


def test_shape_of_sigma_and_zero_noise():
    answer = local_energy(shifted_quadratic, jnp.ones(8), jnp.asarray(X, jnp.float32), 0, sigma=0.0)
    assert answer.mean.shape == answer.sigma.shape == answer.base.shape == ()
    assert float(answer.mean) == pytest.approx(0, abs=1e-5)
    assert float(answer.std_error) <= 2e-7 * float(answer.base)


def relu_error_rate(params, batch):
    x, y = batch
    hidden = jax.nn.relu(jnp.matmul(x, params["in"]["w"]))
    wrong = jnp.argmax(jnp.matmul(hidden, params["out"]["w"]), 1) != y
    return jnp.mean(wrong.astype(jnp.float32))


def relu_network(scale):
    rng = np.random.default_rng(2)
    return {
        "in": {"w": jnp.asarray(scale * rng.normal(size=(8, 16)), jnp.float32)},
        "out": {"w": jnp.asarray(rng.normal(size=(16, 3)) / scale, jnp.float32)},
    }


LABELED = jnp.asarray(X, jnp.float32), jnp.asarray(RNG.integers(0, 3, 50), jnp.int32)


def test_multiplicative_noise_does_not_see_the_scale_of_relu_layers():
    run = lambda scale, kind: (
        local_energy(
            relu_error_rate, relu_network(scale), LABELED, 0, sigma=0.3, kind=kind, num_samples=20
        ).mean
    )
    assert run(1.0, "multiplicative") == run(4.0, "multiplicative")
    assert run(1.0, "additive") != run(4.0, "additive")


MASKS = {
    "prefix": {"in": True, "out": False},
    "path": lambda path: path[0].key == "in",
}


@pytest.mark.parametrize("name", MASKS)
def test_only_masked_leaves_are_perturbed(name):
    """With the other layer frozen, its gradient of the local energy is that at the point itself."""
    params, masked = relu_network(1.0), MASKS[name]
    seen = lambda params, batch: jnp.sum(params["out"]["w"]) + 0 * jnp.mean(batch[0])
    assert float(local_energy(seen, params, LABELED, 0, sigma=1.0, mask=masked).mean) == 0
    moved = lambda params, batch: jnp.sum(params["in"]["w"] ** 2) + 0 * jnp.mean(batch[0])
    expected = float(jnp.sum(params["in"]["w"] ** 2))
    answer = local_energy(moved, params, LABELED, 0, sigma=1.0, mask=masked, num_samples=400)
    assert abs(float(answer.mean) - expected) < 4 * float(answer.std_error)


@pytest.mark.slow
def test_samples_in_any_chunks_and_jit_give_the_same():
    run = lambda size: local_energy(
        relu_error_rate, relu_network(1.0), LABELED, 0, sigma=0.3, num_samples=10,
        sample_batch_size=size,
    )  # fmt: skip
    expected = run(1)
    for answer in (run(3), run(10), jax.jit(run, static_argnums=0)(1)):
        np.testing.assert_allclose(answer.mean, expected.mean, atol=1e-6)
        np.testing.assert_allclose(answer.std_error, expected.std_error, atol=1e-6)


def test_memory_does_not_grow_with_draws():
    def peak(num_samples):
        run = jax.jit(lambda w, x: local_energy(
            shifted_quadratic, w, x, 0, sigma=0.1, num_samples=num_samples))  # fmt: skip
        compiled = run.lower(jnp.ones(8), jnp.ones((50, 8))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(2000) - peak(20) < 2000 * 100


def test_bfloat16_parameters_are_perturbed_in_float32():
    """In bfloat16 a relative step of 0.001 is rounded to nothing, or to four times its size."""
    half = jnp.asarray(W, jnp.bfloat16)
    x = jnp.asarray(X, jnp.float32)
    found, expected = (
        local_energy(shifted_quadratic, w, x, 0, sigma=1e-3, num_samples=50)
        for w in (half, half.astype(jnp.float32))
    )
    assert found.mean.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_rounding_of_an_objective_in_bfloat16_is_in_the_bar():
    """Its values are multiples of 1/32 or so: the mean of many is no more certain than that."""
    params = {"w": jnp.asarray(W, jnp.bfloat16)}

    def coarse(params, batch):
        return 5 + jnp.mean((batch @ params["w"].astype(jnp.bfloat16)) ** 2)

    found = local_energy(coarse, params, jnp.asarray(X, jnp.bfloat16), 0, sigma=1e-4)
    assert float(found.std_error) > 5 * 2.0**-8


def test_draws_cost_a_twentieth_of_the_forward_passes_at_most():
    """At five noise levels, for a dense network on a batch of 256."""
    params = {"a": jnp.zeros((64, 256)), "b": jnp.zeros((256, 64))}
    operations = lambda f, *a: jax.jit(f).lower(*a).compile().cost_analysis()["flops"]
    passes = operations(lambda p, x: jnp.sum(x @ p["a"] @ p["b"]), params, jnp.zeros((256, 64)))
    draw = operations(
        lambda key, p, levels: jax.tree.map(
            lambda z, w: w[None] + levels[:, None, None] * (z * w)[None], normal_like(key, p), p
        ),
        jax.random.key(0), params, jnp.zeros(5),
    )  # fmt: skip
    # The draws are a loop over two blocks, of which one is counted.
    assert 0 < 2 * draw < 0.05 * 5 * passes


def test_draws_are_normal_and_of_their_own_for_each_leaf():
    """Two leaves of more than a block each, and two that share two blocks."""
    sizes = (150_001, 150_001, 100_000, 100_000)
    z = normal_like(jax.random.key(0), [jnp.zeros(size) for size in sizes])
    for leaf in z:
        for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
            sample = np.asarray(leaf, float) ** power
            assert abs(sample.mean() - moment) < 4 * sample.std() / len(sample) ** 0.5
    for one, other in itertools.combinations(z, 2):
        both = np.asarray(one)[:100_000] * np.asarray(other)[:100_000]
        assert abs(np.mean(both)) < 4 / 100_000**0.5
    assert abs(np.mean(np.asarray(z[0])[: 150_001 - 131_072] * np.asarray(z[0])[131_072:])) < 0.04


def test_the_program_of_the_draws_does_not_grow_with_the_leaves(monkeypatch):
    """Of any shapes: compiling the generator for each of a transformer's took minutes."""

    def counted(jaxpr):
        inner = [
            counted(getattr(value, "jaxpr", value))
            for equation in jaxpr.eqns
            for value in equation.params.values()
            if hasattr(value, "eqns") or hasattr(value, "jaxpr")
        ]
        mine = [equation.primitive.name for equation in jaxpr.eqns]
        return mine.count("erf_inv") + sum(inner)

    def generators(sizes):
        tree = [jnp.zeros((size, 3)) for size in sizes]
        return counted(jax.make_jaxpr(normal_like)(jax.random.key(0), tree).jaxpr)

    monkeypatch.setattr("entropix.flatness._local_energy._BLOCK", 300)
    assert generators(range(1, 41)) == generators([1]) == 1
    # One generator more for those of more than a block.
    assert generators(range(81, 141)) == generators([1, 101]) == 2


def test_leaves_of_any_size_and_dtype_are_drawn(x64):
    tree = {
        "scalar": jnp.zeros((), jnp.float32), "none": jnp.zeros((0, 3), jnp.float32),
        "half": jnp.zeros((5, 2), jnp.bfloat16), "double": jnp.zeros(7, jnp.float64),
        "large": jnp.zeros((400, 400), jnp.float32),
    }  # fmt: skip
    drawn = normal_like(jax.random.key(0), tree)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in drawn.items()} == {
        name: (leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
        for name, leaf in tree.items()
    }
    values = np.concatenate([np.ravel(leaf) for leaf in drawn.values()])
    assert len(np.unique(values)) > 0.98 * len(values)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sigma": -0.1}, ValueError, "sigma .*got -0.1"),
        ({"sigma": jnp.array([0.1, -1.0])}, ValueError, "sigma must be finite and >= 0"),
        ({"num_samples": 1}, ValueError, "num_samples .*got 1"),
        ({"kind": "relative"}, ValueError, "kind .*got 'relative'"),
        ({"mask": {"in": 1.0, "out": True}}, TypeError, "mask .*got 1.0"),
        ({"mask": {"in": False, "out": False}}, ValueError, "mask must choose at least one leaf"),
        ({"batch_size": 0}, ValueError, "batch_size .*got 0"),
        ({"sample_batch_size": 0}, ValueError, "sample_batch_size .*got 0"),
        ({"objective": lambda p, b: b[0]}, ValueError, "must be a floating-point scalar"),
    ],
)
def test_bad_input(arguments, error, message):
    arguments = {
        "objective": relu_error_rate, "params": relu_network(1.0), "data": LABELED, "key": 0,
        "sigma": 0.1,
    } | arguments  # fmt: skip
    with pytest.raises(error, match=message):
        local_energy(**arguments)
