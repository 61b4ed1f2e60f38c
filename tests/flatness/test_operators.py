"""Operators of any loss: what they keep, trace and compile; blocks; ways to a product; bars."""

import dataclasses
import functools
import gc
import subprocess
import sys
import types
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from entropix.flatness import (
    Operator,
    dense,
    diagonal,
    directional_curvature,
    eigenvalues,
    gauss_newton,
    gradient_covariance,
    gradient_noise,
    hessian,
    lanczos,
    spectrum,
    trace,
)
from tests.flatness import problems
from tests.flatness.test_hessian import no_compilation

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(12, 5)), jnp.float32)
W = jnp.asarray(RNG.normal(size=5), jnp.float32)


def closure(shift, traces):
    def loss(w, x):
        traces.append(1)
        return jnp.mean((jnp.matmul(x, w) - shift) ** 4)

    return loss


def partial(shift, traces):
    return jax.tree_util.Partial(lambda shift, w, x: closure(shift, traces)(w, x), shift)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("shift",), meta_fields=("traces",)
)
@dataclasses.dataclass(frozen=True)
class Module:
    shift: jax.Array
    traces: object

    def __call__(self, w, x):
        return closure(self.shift, self.traces)(w, x)


class Traces(list):
    """A list that can be part of a static description."""

    __hash__ = object.__hash__

    __eq__ = object.__eq__


LOSSES = {
    "closure": closure,
    "jitted closure": lambda *arguments: jax.jit(closure(*arguments)),
    "partial": partial,
    "module": Module,
    "bound method": lambda *arguments: Module(*arguments).__call__,
}


@pytest.mark.parametrize("batch_size", [None, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", LOSSES)
def test_arrays_of_a_loss_are_arguments_traced_once_and_freed(kind, batch_size):
    traces = Traces()
    apply = jax.jit(lambda operator, v: operator(v))

    def make(number):
        return jnp.full(12 if batch_size is None else 1, number, jnp.float32)

    def product(number):
        shift = make(number)
        h = hessian(LOSSES[kind](shift, traces), W, X, batch_size=batch_size)
        expected = jax.hessian(lambda w: jnp.mean((X @ w - number) ** 4))(W) @ W
        np.testing.assert_allclose(apply(h, W), expected, rtol=1e-4)
        return weakref.ref(shift)

    first, other = product(0.0), make(3.0)
    # In chunks the loss is also looked at once to see whether it is a mean: on half a chunk.
    assert len(traces) <= (1 if batch_size is None else 2)
    traces.clear()
    with no_compilation():
        apply(hessian(LOSSES[kind](other, traces), W, X, batch_size=batch_size), W)
    assert not traces
    second = product(1.0)
    gc.collect()
    assert first() is None
    assert second() is None


def test_a_changed_global_is_seen():
    """A notebook's loss reads globals; jit alone would keep the first value."""
    names = {"jnp": jnp, "scale": 1.0}
    exec("loss = lambda w, x: scale * jnp.mean(jnp.matmul(x, w) ** 2)", names)
    before = hessian(names["loss"], W, X) @ W
    names["scale"] = 2.0
    np.testing.assert_allclose(hessian(names["loss"], W, X) @ W, 2 * before, rtol=1e-6)


class Settings:
    """What a loss reads its scale from; callable for a loss that is an object."""

    scale = 1.0

    def __call__(self, w, x):
        return self.scale * jnp.mean(jnp.matmul(x, w) ** 2)


def in_a_helper(settings):
    names = {"jnp": jnp, "scale": 1.0}
    exec("helper = lambda w, x: scale * jnp.mean(jnp.matmul(x, w) ** 2)", names)
    exec("loss = lambda w, x: helper(w, x)", names)
    return names["loss"], lambda scale: names.update(scale=scale)


def in_a_dictionary(settings):
    names = {"jnp": jnp, "settings": {"model": {"scale": 1.0}}}
    exec("loss = lambda w, x: settings['model']['scale'] * jnp.mean(jnp.matmul(x, w) ** 2)", names)
    return names["loss"], lambda scale: names["settings"]["model"].update(scale=scale)


def in_an_attribute(settings):
    return lambda w, x: settings(w, x), lambda scale: setattr(settings, "scale", scale)


def in_the_loss_itself(settings):
    return settings, lambda scale: setattr(settings, "scale", scale)


class Trainer:
    """A loss that is a method, beside much that no loss reads."""

    def __init__(self, settings, traces):
        self.settings, self.traces, self.steps, self.chain = settings, traces, 0, None
        for _ in range(2000):
            self.chain = types.SimpleNamespace(next=self.chain)

    @property
    def factor(self):
        return self.settings.scale

    def loss(self, w, x):
        self.traces.append(w)
        return self.factor * jnp.mean(jnp.matmul(x, w) ** 2)


def in_what_a_method_reads(settings):
    return Trainer(settings, Traces()).loss, lambda scale: setattr(settings, "scale", scale)


@pytest.mark.parametrize(
    "make",
    [in_a_helper, in_a_dictionary, in_an_attribute, in_the_loss_itself, in_what_a_method_reads],
)
def test_what_a_loss_reads_is_seen_to_change_wherever_it_is(make):
    loss, change = make(Settings())
    before = hessian(loss, W, X) @ W
    change(2.0)
    np.testing.assert_allclose(hessian(loss, W, X) @ W, 2 * before, rtol=1e-6)


def helper_of_a_name_that_is_not_set_yet():
    def helper(w):
        return later(w) if w is None else w

    if helper is None:
        later = helper
    return helper


helper_with_an_empty_cell = helper_of_a_name_that_is_not_set_yet()


def test_a_helper_may_close_over_a_name_that_is_not_set_yet():
    h = hessian(lambda w, x: problems.quadratic(helper_with_an_empty_cell(w), x), W, X)
    np.testing.assert_allclose(h @ W, hessian(problems.quadratic, W, X) @ W, rtol=1e-6)


def test_what_a_loss_does_not_read_may_change():
    traces = Traces()
    trainer = Trainer(Settings(), traces)
    hessian(trainer.loss, W, X)
    trainer.steps += 1
    hessian(trainer.loss, W, X)
    assert len(traces) == 1


SCALES = np.arange(1.0, 6.0, dtype=np.float32)


def scaled(w, x):
    return jnp.mean(jnp.matmul(x, w * jnp.asarray(SCALES)) ** 4)


def test_constants_that_a_trace_makes_are_no_reason_to_compile_again():
    first = hessian(scaled, W, X) @ W
    gc.collect()
    with no_compilation():
        second = hessian(scaled, W, X) @ W
    np.testing.assert_array_equal(first, second)


def test_a_loss_that_looks_at_its_arrays_values_works():
    chosen = np.array([0, 2])

    def loss(w, x):
        return jnp.mean(x[:, tuple(chosen.tolist())] @ w[chosen]) ** 2

    expected = jax.hessian(lambda w: loss(w, X))(W)
    np.testing.assert_allclose(dense(hessian(loss, W, X)), expected, atol=1e-6)


PARAMS, DATA = problems.mlp_problem(hidden=3)


def operators(params, data, **options):
    return {
        "hessian": hessian(problems.mlp, params, data, **options),
        "gauss-newton": gauss_newton(
            problems.mlp_outputs, problems.cross_entropy, params, data, **options
        ),
        "covariance": gradient_covariance(problems.mlp, params, data, **options),
    }


@pytest.mark.parametrize(
    "mask", [{"w": True, "b": False, "v": True}, lambda path: path[-1].key != "b"]
)
@pytest.mark.slow
def test_masks_give_diagonal_blocks(mask, x64):
    params, data = problems.mlp_problem(hidden=3)
    # Leaves in the order of ravel_pytree: b (3), v (9), w (15).
    keep = np.r_[3:27]
    whole, blocks = operators(params, data), operators(params, data, mask=mask, batch_size=23)
    for name, block in blocks.items():
        assert block.size == 24
        expected = np.asarray(dense(whole[name]))[np.ix_(keep, keep)]
        np.testing.assert_allclose(dense(block), expected, atol=1e-12)
    found = eigenvalues(blocks["hessian"], 0, k=1, tol=1e-9)
    assert found.eigenvectors["b"] is None
    assert found.eigenvectors["w"].shape == (1, 5, 3)
    noise = gradient_noise(problems.mlp, params, data, mask=mask)
    np.testing.assert_allclose(noise.trace, jnp.trace(dense(blocks["covariance"])), rtol=1e-9)


@pytest.mark.slow
def test_covariance_of_gradients(x64):
    params, data = problems.mlp_problem(hidden=3)
    one = lambda x, y: ravel_pytree(jax.grad(problems.mlp)(params, (x[None], y[None])))[0]
    gradients = np.stack([one(x, y) for x, y in zip(*data, strict=True)])
    found = dense(gradient_covariance(problems.mlp, params, data, batch_size=25))
    np.testing.assert_allclose(found, np.cov(gradients.T, bias=True), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 25])
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    ("product", "accuracy"),
    [("forward_over_reverse", 1e-13), ("reverse_over_reverse", 1e-13), ("finite_difference", 1e-9)],
)
def test_every_way_to_a_product(product, accuracy, remat, batch_size, x64):
    params, data = problems.mlp_problem(hidden=3)
    flat, unflatten = ravel_pytree(params)
    expected = jax.hessian(lambda w: problems.mlp(unflatten(w), data))(flat)
    h = hessian(problems.mlp, params, data, product=product, remat=remat, batch_size=batch_size)
    np.testing.assert_allclose(dense(h), expected, atol=accuracy)


@pytest.mark.slow
def test_a_scan_over_layers_computed_again_in_chunks(x64):
    params, data = problems.mlp_problem(hidden=3)
    layers = jnp.stack([jnp.eye(data[0].shape[1]) * scale for scale in (0.5, 0.7)])

    def loss(layers, batch):
        hidden, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), batch[0], layers)
        return problems.mlp(params, (hidden, batch[1]))

    h = hessian(loss, layers, data, remat=True, batch_size=25)
    expected = jax.jvp(lambda w: jax.grad(loss)(w, data), (layers,), (jnp.ones_like(layers),))[1]
    np.testing.assert_allclose(h @ jnp.ones_like(layers), expected, atol=1e-13)


@pytest.mark.slow
def test_finite_differences_in_float32_are_as_good_as_documented():
    h, exact = (
        dense(hessian(problems.mlp, PARAMS, DATA, product=product))
        for product in ("finite_difference", "forward_over_reverse")
    )
    assert np.linalg.norm(h - exact, 2) < 1e-3 * np.linalg.norm(exact, 2)


@jax.custom_vjp
def kernel(x):
    return jnp.sin(x)


kernel.defvjp(lambda x: (kernel(x), x), lambda x, g: (g * kernel(x + np.pi / 2),))


def kernel_loss(w, x):
    return jnp.mean(kernel(jnp.matmul(x, w)))


def test_without_a_jvp_rule_the_error_names_the_cure_and_the_cure_works():
    with pytest.raises(TypeError, match="product='reverse_over_reverse'"):
        hessian(kernel_loss, W, X)
    expected = jax.hessian(lambda w: jnp.mean(jnp.sin(X @ w)))(W) @ W
    for product in ("reverse_over_reverse", "finite_difference"):
        found = hessian(kernel_loss, W, X, product=product) @ W
        np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda: directional_curvature(kernel_loss, W, W, X), "reverse_over_reverse"),
        (lambda: gradient_covariance(kernel_loss, W, X), "custom_jvp"),
        (lambda: gradient_noise(kernel_loss, W, X, num_steps=2), "custom_jvp"),
        (
            lambda: gauss_newton(lambda w, x: kernel(x @ w), lambda z, x: jnp.mean(z**2), W, X),
            "custom_jvp",
        ),
    ],
)
def test_what_needs_forward_derivatives_says_so(make, cure):
    with pytest.raises(TypeError, match=f"custom gradient has no rule.*{cure}"):
        make()


def sum_loss(w, x):
    return jnp.sum(jnp.matmul(x, w) ** 2)


def normalizing_loss(w, x):
    h = jnp.matmul(x, w)
    return jnp.mean(((h - jnp.mean(h)) / jnp.std(h) - 1) ** 4)


@pytest.mark.parametrize("loss", [sum_loss, normalizing_loss])
def test_a_loss_that_is_no_mean_is_told_once(loss):
    hessian(loss, W, X)
    with pytest.warns(UserWarning, match="batch_size = 4"):
        hessian(loss, W, X, batch_size=4)
    hessian(loss, W, X, batch_size=4)


@pytest.mark.slow
def test_nan_stops_at_the_first_product():
    h = hessian(problems.quadratic, W, X.at[3, 2].set(jnp.nan))
    found = eigenvalues(h, 0, k=2)
    assert int(found.num_products) == 1
    assert np.all(np.isnan(found.eigenvalues))
    assert not bool(found.converged)
    process = lanczos(h, W, 4)
    assert int(process.num_steps) == 1
    assert np.isnan(process.diagonal[0])


@pytest.mark.parametrize("max_products", [2, 3, 7, 30])
def test_no_more_products_than_allowed(max_products):
    values = jnp.linspace(0, 1, 300)
    a = Operator.from_matvec(lambda v: values * v, values)
    found = eigenvalues(a, 0, k=1, tol=1e-6, max_products=max_products)
    assert int(found.num_products) <= max_products
    assert not bool(found.converged)


def test_an_easy_eigenvalue_takes_few_products():
    """Convergence is looked at after every product, not once in a full space."""
    values = jnp.concatenate([jnp.linspace(0, 1, 299), jnp.array([50.0])])
    a = Operator.from_matvec(lambda v: values * v, values)
    found = eigenvalues(a, 0, k=1, tol=1e-3)
    assert int(found.num_products) <= 7
    assert float(found.eigenvalues[0]) == pytest.approx(50.0, rel=1e-5)
    assert bool(found.converged)


@pytest.mark.slow
def test_a_basis_of_the_users_size(x64):
    values = jnp.linspace(0, 1, 100) ** 3
    a = Operator.from_matvec(lambda v: values * v, values)
    for size in (4, 9):
        found = eigenvalues(a, 0, k=3, basis_size=size, tol=1e-7, max_products=3000)
        np.testing.assert_allclose(found.eigenvalues, values[:-4:-1], atol=1e-9)
    with pytest.raises(ValueError, match=r"basis_size .*got 3"):
        eigenvalues(a, 0, k=3, basis_size=3)


MEMORY_OF_EIGENVALUES = """
import jax, jax.numpy as jnp
from entropix.flatness import Operator, eigenvalues
a = Operator.from_matvec(lambda v: 2 * v + jnp.roll(v, 1) + jnp.roll(v, -1), jnp.zeros(1_000_000))
run = jax.jit(lambda a: eigenvalues(a, 0, k=4, basis_size=40))
memory = run.lower(a).compile().memory_analysis()
print(memory.temp_size_in_bytes + memory.output_size_in_bytes)
"""


@pytest.mark.slow
def test_eigenvalues_hold_one_basis():
    """In a process of its own, where no other program shares the compiler."""
    finished = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_EIGENVALUES],
        cwd=Path(__file__).parents[2], text=True, capture_output=True, check=True,
    )  # fmt: skip
    size, k, vectors = 1_000_000, 4, 40
    assert int(finished.stdout) < (1.1 * vectors + 2 * k) * size * 4


@pytest.mark.slow
def test_a_spectrum_of_many_steps_holds_no_basis_and_is_right(x64):
    """Ghosts share the weight of the eigenvalue they copy: means over the spectrum stay right."""
    values = jnp.asarray(np.concatenate([1e-2 * RNG.normal(size=400), [30.0, 20.0, -10.0]]))
    a = Operator.from_matvec(lambda v: values * v, values)
    kept, free = (
        spectrum(a, 0, num_steps=150, num_probes=1, reorthogonalize=choice)
        for choice in (True, False)
    )
    assert np.sum(np.abs(free.nodes) > 1) > np.sum(np.abs(kept.nodes) > 1) == 3
    grid = jnp.linspace(-12, 32, 45)
    np.testing.assert_allclose(
        free.density(grid, 0.5).mean, kept.density(grid, 0.5).mean, atol=1e-6
    )
    for order in (1, 2, 3):
        np.testing.assert_allclose(free.moment(order).mean, kept.moment(order).mean, rtol=1e-9)
    large = Operator.from_matvec(lambda v: 2 * v, jnp.zeros(1_000_000))
    memory = (
        jax.jit(lambda a: spectrum(a, 0, num_steps=80, num_probes=1)).lower(large).compile()
    ).memory_analysis()
    assert memory.temp_size_in_bytes < 10 * large.size * 4


def low_precision_problem():
    """A quadratic with the eigenvalues 6, 3, 1.5, 0.75..., its data and weights in bfloat16."""
    basis, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(16, 16)))
    rows = basis * np.sqrt(16 * 6.0 * 0.5 ** np.arange(16)) @ basis.T
    x = jnp.asarray(rows, jnp.bfloat16)
    exact = np.linalg.eigvalsh(np.asarray(x, np.float64).T @ np.asarray(x, np.float64) / 16)
    return jnp.ones(16, jnp.bfloat16), x, exact[::-1]


@pytest.mark.slow
def test_bars_of_low_precision_hold():
    w, x, exact = low_precision_problem()
    h = hessian(problems.quadratic, w, x)
    assert h.rounding == 2.0**-7
    found = eigenvalues(h, 0, k=3, tol=1e-4)
    assert np.all(np.abs(found.eigenvalues - exact[:3]) <= found.residuals)
    assert not bool(found.converged)
    # The vectors in float32 are as good as the products allow.
    recomputed = [
        np.linalg.norm(np.asarray(h(v), np.float32) - value * np.asarray(v, np.float32))
        for value, v in zip(found.eigenvalues, found.eigenvectors, strict=True)
    ]
    assert np.all(np.array(recomputed) <= found.residuals)
    nodes = spectrum(h, 0, num_steps=12, num_probes=2)
    assert abs(nodes.top.value - exact[0]) <= nodes.top.bound
    estimate = trace(h, 0, num_probes=40)
    assert float(estimate.std_error) > 0
    assert abs(float(estimate.mean) - exact.sum()) < 3 * float(estimate.std_error)


def test_low_precision_cast_up_is_exact():
    w, x, exact = low_precision_problem()
    h = hessian(problems.quadratic, w, x, dtype=jnp.float32)
    found = eigenvalues(h, 0, k=3, tol=1e-5)
    assert bool(found.converged)
    np.testing.assert_allclose(found.eigenvalues, exact[:3], rtol=1e-5)


def test_mixed_precision_inside_a_float32_loss_is_seen():
    def loss(w, x):
        h = jnp.matmul(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
        return jnp.mean(h.astype(jnp.float32) ** 2)

    assert hessian(loss, W, X).rounding == 2.0**-7
    assert hessian(problems.quadratic, W, X).rounding == 2.0**-23


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_finite_differences_refuse_low_precision(dtype):
    with pytest.raises(ValueError, match=f"got .*{jnp.dtype(dtype).name}"):
        hessian(problems.quadratic, W.astype(dtype), X.astype(dtype), product="finite_difference")


def test_gradients_that_agree_have_no_noise():
    x = jnp.broadcast_to(X[:1], X.shape)
    for num_steps in (None, 3):
        assert int(gradient_noise(problems.quadratic, W, x, num_steps=num_steps).rank) == 0


def test_diagonal(x64):
    params, data = problems.mlp_problem(hidden=3)
    h = hessian(problems.mlp, params, data)
    found = diagonal(h, 0, num_probes=400)
    truth = np.diag(dense(h))
    mean, error = (ravel_pytree(tree)[0] for tree in found)
    assert jax.tree.map(jnp.shape, found.mean) == jax.tree.map(jnp.shape, params)
    assert np.mean(np.abs(mean - truth) < 2 * error + 1e-12) > 0.8


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: eigenvalues(lambda v: v, 0), TypeError, "operator must be an Operator"),
        (lambda: trace(problems.quadratic, 0), TypeError, "operator must be an Operator"),
        (lambda: hessian(problems.quadratic, W, X, product="x"), ValueError, "product .*'x'"),
        (lambda: hessian(problems.quadratic, W, X, mask=False), ValueError, "mask .*False"),
        (lambda: hessian(problems.quadratic, W, X)(W[:2]), ValueError, r"v must .*\(2,\)"),
        (
            lambda: lanczos(hessian(problems.quadratic, W, X), 0 * W, 2),
            ValueError,
            "v0 .*got one of norm 0.0",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
