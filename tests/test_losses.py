"""Smoothed losses against direct formulas, distributions in closed form, and the plain loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import entropix
from entropix.losses import gaussian_smoothed_loss, local_average_loss, local_entropy_loss
from tests.flatness import problems

PARAMS, DATA = problems.mlp_problem()
KEY = jax.random.key(3)
CUBES = [local_average_loss, local_entropy_loss]
FACTORIES = [
    lambda loss, **kwargs: local_average_loss(loss, radius=0.3, samples=6, **kwargs),
    lambda loss, **kwargs: local_average_loss(loss, radius=0.3, samples=6, sharpness=9.0, **kwargs),
    lambda loss, **kwargs: local_entropy_loss(loss, radius=0.3, samples=6, **kwargs),
    lambda loss, **kwargs: gaussian_smoothed_loss(loss, std=0.2, samples=6, **kwargs),
]
NAMES = ["PLA", "soft PLA", "PLEA", "Gaussian"]
# Every law holds for all; the quick tests hold two to them that go through all of the code.
EACH = pytest.mark.parametrize(
    "smooth",
    [
        pytest.param(
            smooth, id=name, marks=() if name in ("soft PLA", "Gaussian") else pytest.mark.slow
        )
        for name, smooth in zip(NAMES, FACTORIES, strict=True)
    ],
)
ALL = pytest.mark.parametrize("smooth", FACTORIES, ids=NAMES)
WEIGHTS_OF_FIRST_LAYER = {"w": True, "b": False, "v": False}


def visited(smooth, params, key=KEY):
    """The parameters at which a smoothed loss evaluates its loss, in order, as NumPy arrays."""
    seen = []

    def spy(params, batch):
        jax.debug.callback(lambda p: seen.append(jax.tree.map(np.array, p)), params, ordered=True)
        return jnp.float32(0)

    jax.block_until_ready(jax.jit(smooth(spy, chunk=1))(params, None, key))
    jax.effects_barrier()
    return seen


def np_mlp(params, batch):
    """The cross entropy of `problems.mlp`, in float64 NumPy."""
    w, b, v = (np.asarray(params[k], np.float64) for k in "wbv")
    logits = np.tanh(np.asarray(batch[0], np.float64) @ w + b) @ v
    chosen = logits[np.arange(len(logits)), np.asarray(batch[1])]
    return np.mean(np.log(np.exp(logits).sum(1)) - chosen)


def plain_mean(values):
    return np.mean(values)


def log_mean_boltzmann(values):
    return -np.log(sum(np.exp(-value) for value in values) / len(values))


@pytest.mark.parametrize(
    ("smooth", "formula", "evaluations"),
    [
        (FACTORIES[0], plain_mean, 7),
        (FACTORIES[1], plain_mean, 7),
        (FACTORIES[2], log_mean_boltzmann, 7),
        (FACTORIES[3], plain_mean, 6),
    ],
    ids=["PLA", "soft PLA", "PLEA", "Gaussian"],
)
@pytest.mark.slow
def test_direct_formula_on_one_layer(smooth, formula, evaluations):
    def masked(loss, **kwargs):
        return smooth(loss, mask=WEIGHTS_OF_FIRST_LAYER, **kwargs)

    places = visited(masked, PARAMS)
    assert len(places) == evaluations
    for place in places:
        np.testing.assert_array_equal(place["b"], PARAMS["b"])
        np.testing.assert_array_equal(place["v"], PARAMS["v"])
    moved = [np.abs(place["w"] - PARAMS["w"]).max() > 0.01 for place in places]
    assert moved == [True] * 6 if evaluations == 6 else [False] + [True] * 6
    value = jax.jit(masked(problems.mlp))(PARAMS, DATA, KEY)
    values = [np_mlp(place, DATA) for place in places]
    assert max(values) - min(values) > 0.01
    np.testing.assert_allclose(value, formula(values), rtol=1e-6)


def displacements(smooth, size=200_000):
    """What one sample adds to each of many coordinates that are 0."""
    start = {"w": jnp.zeros(size)}
    return visited(smooth, start)[-1]["w"]


def test_the_hard_cube_is_uniform():
    drawn = displacements(
        lambda loss, **kwargs: local_average_loss(loss, radius=0.5, samples=1, **kwargs)
    )
    assert np.abs(drawn).max() < 0.5
    assert scipy.stats.kstest(drawn, scipy.stats.uniform(-0.5, 1).cdf).pvalue > 1e-3


@pytest.mark.parametrize("sharpness", [4.0, 40.0])
def test_the_soft_cube_is_its_kernel(sharpness):
    """sigma(k (R - x)) sigma(k (R + x)), whose integral is known: the mean of two softpluses."""
    radius = 0.5
    drawn = displacements(
        lambda loss, **kwargs: local_entropy_loss(
            loss, radius=radius, samples=1, sharpness=sharpness, **kwargs
        )
    )
    grid = np.linspace(-8, 8, 400_001)
    sigma = lambda x: 1 / (1 + np.exp(-x))
    density = sigma(sharpness * (radius - grid)) * sigma(sharpness * (radius + grid))
    cumulative = np.cumsum(density) / density.sum()
    cdf = lambda x: np.interp(x, grid, cumulative)
    assert scipy.stats.kstest(drawn, cdf).pvalue > 1e-3
    assert scipy.stats.kstest(drawn, scipy.stats.uniform(-0.5, 1).cdf).pvalue < 1e-6


@pytest.mark.parametrize("smooth", CUBES)
@pytest.mark.slow
def test_the_soft_cube_tends_to_the_hard_one(smooth):
    """At the same key the difference falls like 1 / k."""
    smoothed = lambda **kwargs: smooth(problems.mlp, radius=0.5, samples=4, **kwargs)
    value = jax.jit(lambda sharpness: smoothed(sharpness=sharpness)(PARAMS, DATA, KEY))
    hard = jax.jit(smoothed())(PARAMS, DATA, KEY)
    errors = [abs(float(value(k) - hard)) for k in (10.0, 1e2, 1e3)]
    assert errors[0] > 1e-3
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.3 * errors[1]
    np.testing.assert_allclose(value(1e9), hard, rtol=1e-6)


def test_gaussian_smoothing_of_a_quadratic():
    """E f(w + s z) = f(w) + s^2 tr(H) / 2, inside five standard errors over keys."""
    x, w, std = DATA[0], jnp.arange(5.0), 0.7
    smooth = gaussian_smoothed_loss(problems.quadratic, std=std, samples=40)
    keys = jax.random.split(KEY, 200)
    values = np.asarray(jax.jit(jax.vmap(smooth, (None, None, 0)))(w, x, keys), np.float64)
    trace = np.sum(np.asarray(x, np.float64) ** 2) / len(x)
    expected = float(problems.quadratic(w, x)) + std**2 * trace / 2
    assert abs(values.mean() - expected) < 5 * values.std() / 200**0.5
    assert std**2 * trace / 2 > 50 * values.std() / 200**0.5


def test_antithetic_pairs_cancel_odd_orders():
    linear = lambda w, batch: jnp.sum(w)
    w = jnp.arange(4.0)
    paired, single = (
        jax.jit(gaussian_smoothed_loss(linear, std=1.0, samples=2, antithetic=pairs))(w, None, KEY)
        for pairs in (True, False)
    )
    np.testing.assert_allclose(paired, 6.0, rtol=1e-6)
    assert abs(single - 6.0) > 1e-2


@ALL
@pytest.mark.parametrize("mask", [{"w": False, "b": False, "v": False}, lambda path: False])
def test_an_empty_mask_is_the_plain_loss(smooth, mask):
    plain = jax.value_and_grad(problems.mlp)(PARAMS, DATA)
    partial = jax.value_and_grad(smooth(problems.mlp, mask=mask))(PARAMS, DATA, KEY)
    jax.tree.map(np.testing.assert_array_equal, partial, plain)


@EACH
def test_a_mask_by_path_is_the_mask_of_booleans(smooth):
    by_path, by_leaf = (
        jax.jit(smooth(problems.mlp, mask=mask))(PARAMS, DATA, KEY)
        for mask in (lambda path: path[-1].key == "w", WEIGHTS_OF_FIRST_LAYER)
    )
    assert by_path == by_leaf
    assert abs(by_path - problems.mlp(PARAMS, DATA)) > 1e-4


@EACH
@pytest.mark.slow
def test_the_gradient_is_that_of_the_formula_with_draws_held_fixed(smooth, x64):
    """Central differences at one key, in a random direction."""
    params, data = problems.mlp_problem()
    smoothed = smooth(problems.mlp)
    direction = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size) * 1.0).reshape(p.shape), params)
    at = jax.jit(
        lambda t: smoothed(jax.tree.map(lambda p, d: p + t * d, params, direction), data, KEY)
    )
    grads = jax.jit(jax.grad(smoothed))(params, data, KEY)
    slope = sum(
        jnp.vdot(g, d)
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    assert slope.dtype == jnp.float64
    np.testing.assert_allclose(slope, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6)


@EACH
@pytest.mark.parametrize("chunk", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 100))])
@pytest.mark.slow
def test_chunks_are_the_whole(smooth, chunk):
    """One copy at a time, a chunk with a remainder, and more than there are."""
    whole, parts = (
        jax.jit(jax.value_and_grad(smooth(problems.mlp, chunk=chunk)))(PARAMS, DATA, KEY)
        for chunk in (None, chunk)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), parts, whole)


@EACH
@pytest.mark.slow
def test_jit_vmap_and_keys(smooth):
    smoothed = smooth(problems.mlp)
    jitted = jax.jit(smoothed)
    np.testing.assert_allclose(jitted(PARAMS, DATA, KEY), smoothed(PARAMS, DATA, KEY), rtol=1e-6)
    keys = jax.random.split(KEY, 3)
    mapped = jax.jit(jax.vmap(smoothed, (None, None, 0)))(PARAMS, DATA, keys)
    np.testing.assert_allclose(mapped, [jitted(PARAMS, DATA, key) for key in keys], rtol=1e-6)
    assert len(set(np.asarray(mapped).tolist())) == 3


@EACH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_dtypes_are_kept(smooth, dtype, x64):
    params = {"w": jnp.zeros(4000, dtype)}
    loss = lambda params, batch: jnp.sum(params["w"] ** 2)
    with jax.numpy_dtype_promotion("strict"):
        value, grads = jax.jit(jax.value_and_grad(smooth(loss)))(params, None, KEY)
    assert value.dtype == grads["w"].dtype == dtype
    assert bool(jnp.all(jnp.isfinite(grads["w"])))
    assert float(value) > 0.1


def test_the_loss_is_never_compiled_more_than_once_per_shape():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return problems.mlp(params, batch)

    smoothed = jax.jit(local_average_loss(counted, radius=0.1, samples=5))
    for key in range(3):
        smoothed(PARAMS, DATA, key)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"radius": -0.1}, ValueError, "radius .*got -0.1"),
        ({"radius": "big"}, TypeError, "radius .*got 'big'"),
        ({"samples": 0}, ValueError, "samples .*got 0"),
        ({"samples": 2.5}, TypeError, "samples .*got 2.5"),
        ({"sharpness": 0}, ValueError, "sharpness .*got 0"),
        ({"sharpness": math.nan}, ValueError, "sharpness .*got nan"),
        ({"chunk": 0}, ValueError, "chunk .*got 0"),
        ({"loss": 3}, TypeError, r"loss .*got 3"),
    ],
)
@pytest.mark.parametrize("smooth", CUBES)
def test_bad_arguments_of_the_cubes(smooth, arguments, error, message):
    with pytest.raises(error, match=message):
        smooth(**{"loss": problems.mlp, "radius": 0.1, "samples": 4} | arguments)


def test_bad_arguments_of_the_gaussian():
    with pytest.raises(ValueError, match=r"std .*got -1"):
        gaussian_smoothed_loss(problems.mlp, std=-1, samples=2)
    with pytest.raises(ValueError, match=r"samples .*got 3"):
        gaussian_smoothed_loss(problems.mlp, std=1.0, samples=3)


@ALL
def test_bad_arguments_of_the_smoothed_loss(smooth):
    with pytest.raises(TypeError, match=r"floating-point arrays, got int32 at params\['w'\]"):
        smooth(problems.mlp)({"w": jnp.ones(3, jnp.int32)}, DATA, KEY)
    with pytest.raises(TypeError, match="key must be an integer seed"):
        smooth(problems.mlp)(PARAMS, DATA, "key")
    with pytest.raises(ValueError, match="mask must be a prefix of params"):
        smooth(problems.mlp, mask={"nowhere": True})(PARAMS, DATA, KEY)


def test_training_on_a_smoothed_loss_finds_the_wide_minimum():
    """Two minima of one depth: the plain loss keeps to the narrow one near by, PLA leaves it."""

    def loss(w, batch):
        narrow, wide = 1 - jnp.exp(-50 * w**2), 1 - jnp.exp(-0.5 * (w - 2.0) ** 2)
        return jnp.sum(narrow * wide)

    smooth = local_average_loss(loss, radius=1.0, samples=64)

    def descend(objective):
        def step(w, key):
            return w - 0.05 * jax.grad(objective)(w, None, key), None

        return jax.lax.scan(step, jnp.full((1,), 0.05), jax.random.split(KEY, 800))[0]

    assert abs(float(descend(lambda w, batch, key: loss(w, batch))[0])) < 0.1
    assert abs(float(descend(smooth)[0]) - 2.0) < 0.5
    assert entropix.losses.local_average_loss is local_average_loss
