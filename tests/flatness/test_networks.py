"""Every estimator of every operator against dense matrices, on layers of every kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from entropix.flatness import (
    Operator,
    dense,
    diagonal,
    eigenvalues,
    gauss_newton,
    gradient_covariance,
    gradient_noise,
    hessian,
    layer_curvature,
    spectrum,
    trace,
)
from entropix.flatness._layer_temperature import layer_of
from tests.flatness import networks

DTYPES = ("float32", "float64", "bfloat16")
HESSIANS = [("hessian", kind, dtype) for kind in networks.KINDS for dtype in DTYPES]
OTHERS = [
    ("gauss-newton", "convolution", "bfloat16"),
    ("gauss-newton", "lstm", "float32"),
    ("gauss-newton", "attention", "float64"),
    ("covariance", "convolution", "float32"),
    ("covariance", "lstm", "float64"),
    ("covariance", "attention", "bfloat16"),
]
# The largest network's: all matrices have room in it, and share the estimators' programs.
SIZE = 49
# Programs that run once need not be optimized.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def strict_ranks():
    """Flax promotes ranks."""


def operator(name, kind, dtype):
    problem = networks.problem(kind, jnp.dtype(dtype))
    arguments = problem.params, problem.data
    if name == "gauss-newton":
        return gauss_newton(problem.outputs, networks.cross_entropy, *arguments)
    make = hessian if name == "hessian" else gradient_covariance
    return make(problem.loss, *arguments)


compiled_dense = quickly(dense)


@functools.cache
def measured(name, kind, dtype):
    """The matrix as the operator's products are, and its unit of rounding."""
    with jax.enable_x64(dtype == "float64"):
        h = operator(name, kind, dtype)
        return np.asarray(compiled_dense(h), np.float64), h.rounding


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "dtype"), HESSIANS + OTHERS)
def test_products_with_all_unit_vectors(name, kind, dtype):
    matrix, rounding = measured(name, kind, dtype)
    exact = networks.matrices(kind)[name]
    assert rounding == float(jnp.finfo(dtype).eps)
    off = np.linalg.norm(matrix - exact, 2) / np.linalg.norm(exact, 2)
    # Each product passes through some tens of roundings, of either sign.
    assert off < (2 if dtype == "bfloat16" else 8) * rounding


WHICH = ("largest", "smallest", "both")


@quickly
def everything(h):
    """What all estimators say of an operator, in one program."""
    density = spectrum(h, 1, num_steps=10, num_probes=8)
    return {which: eigenvalues(h, 0, k=2, which=which, tol=1e-7) for which in WHICH} | {
        "ends": (density.top, density.bottom),
        "moments": [density.moment(order) for order in (1, 2)],
        "traces": [trace(h, 2, num_probes=12, method=name) for name in ("xtrace", "hutchinson")],
        "diagonal": diagonal(h, 3, num_probes=40),
    }


def assert_right(found, matrix, rounding):
    """Every number within its bound, or within five of its standard errors."""
    exact = np.linalg.eigvalsh(matrix)
    size = np.abs(exact).max()
    for which in WHICH:
        by = {"largest": -exact, "smallest": exact, "both": -np.abs(exact)}[which]
        answer = found[which]
        off = np.abs(answer.eigenvalues[0] - exact[np.argmin(by)])
        assert off <= answer.residuals[0], which
        # Where an eigenvalue is multiple, the second may be of another.
        off = np.abs(answer.eigenvalues[:, None] - exact[None, :]).min(1)
        assert np.all(off <= answer.residuals), which
        assert np.all(answer.residuals >= rounding * size * 0.9)
        # What rounding hides is not taken for converged.
        assert not (bool(answer.converged) and rounding > 1e-3)
    for value, bound in found["ends"]:
        assert np.abs(exact - float(value)).min() <= bound
    diagonal_of = [ravel_pytree(part)[0] for part in found["diagonal"]]
    for (mean, error), truth in [
        *zip(found["moments"], (exact.sum(), (exact**2).sum()), strict=True),
        *zip(found["traces"], (exact.sum(),) * 2, strict=True),
        (diagonal_of, np.diag(matrix)),
    ]:
        off = np.abs(np.asarray(mean, float) - truth)
        assert np.all(off <= 5 * np.asarray(error) + 1e-12 * size), (mean, error, truth)


@pytest.mark.parametrize(("name", "kind", "dtype"), HESSIANS + OTHERS)
@pytest.mark.slow
def test_estimators_on_these_products(name, kind, dtype):
    """The answers about the network, from the products in its own precision."""
    matrix, rounding = measured(name, kind, dtype)
    widen = lambda m: np.pad(m, (0, SIZE - len(m)))
    exact = widen(networks.matrices(kind)[name])
    with jax.enable_x64(dtype == "float64"):
        a = jnp.asarray(widen(matrix), jnp.promote_types(dtype, jnp.float32))
        h = Operator.from_matvec(lambda v: jnp.matmul(a, v), a[0])
        found = everything(Operator(h.matvec, h.space, rounding))
        found = jax.tree.map(np.asarray, found)
    assert_right(found, exact, rounding)


@pytest.mark.slow
def test_eigenvalues_with_a_network_inside_the_program():
    found = quickly(lambda h: eigenvalues(h, 0, k=2))(operator("hessian", "lstm", "bfloat16"))
    values = np.linalg.eigvalsh(networks.matrices("lstm")["hessian"])[::-1][:2]
    assert np.all(np.abs(found.eigenvalues - values) <= found.residuals)
    assert not bool(found.converged)


@pytest.mark.slow
def test_a_diagonal_with_a_network_inside_the_program():
    found = quickly(lambda h: diagonal(h, 3))(operator("gauss-newton", "attention", "float32"))
    mean, error = (ravel_pytree(part)[0] for part in found)
    truth = np.diag(networks.matrices("attention")["gauss-newton"])
    assert np.all(np.abs(mean - truth) <= 5 * error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["convolution", "lstm", "attention"])
def test_noise_of_the_gradients(kind):
    problem = networks.problem(kind, jnp.float32)
    exact = np.linalg.eigvalsh(networks.matrices(kind)["covariance"])[::-1]
    noise = gradient_noise(problem.loss, problem.params, problem.data)
    kept = len(noise.eigenvalues)
    np.testing.assert_allclose(noise.eigenvalues, exact[:kept], atol=1e-5 * exact[0])
    np.testing.assert_allclose(noise.trace, exact.sum(), rtol=1e-5)
    few = gradient_noise(problem.loss, problem.params, problem.data, num_steps=4)
    nearest = np.abs(few.eigenvalues[:, None] - exact[None, :]).min(1)
    assert np.all(nearest <= few.residual_norms + 1e-5 * exact[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["convolution", "attention"])
def test_curvature_of_each_layer(kind):
    problem = networks.problem(kind, jnp.float32)
    matrix = networks.matrices(kind)["hessian"]
    found = layer_curvature(problem.loss, problem.params, problem.data, 0)
    # Which of the matrix's rows each layer has, in the order of the leaves.
    owners = [
        layer_of(path)
        for path, leaf in jax.tree.leaves_with_path(problem.params)
        for _ in range(leaf.size)
    ]
    assert set(found.size) == set(owners)
    for layer, size in found.size.items():
        rows = [i for i, owner in enumerate(owners) if owner == layer]
        assert size == len(rows)
        block = matrix[np.ix_(rows, rows)]
        top = np.linalg.eigvalsh(block)[-1]
        assert abs(found.top[layer] - top) <= found.top_bound[layer]
        assert abs(found.trace[layer] - np.trace(block)) <= 5 * found.trace_std_error[layer]
