"""Restarted Lanczos against dense solvers: both ends, hard spectra, tolerance, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.flatness import Operator, dense, eigenvalues, hessian

RNG = np.random.default_rng(0)
SPECTRA = {
    "generic": RNG.normal(size=300),
    "low rank": np.concatenate([np.zeros(280), RNG.uniform(1, 9, 20)]),
    "identity": np.ones(50),
    "small": np.array([0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0]),
    "outliers": np.concatenate([1e-3 * RNG.normal(size=400), [50.0, 20.0, 5.0, -4.0, -2.0]]),
}
QUICK = {("generic", "both"), ("low rank", "largest")}


def matrix(spectrum):
    basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(len(spectrum), len(spectrum))))
    return jnp.asarray(basis * spectrum @ basis.T)


def operator(a):
    return Operator.from_matvec(lambda v: a @ v, jnp.zeros(len(a), a.dtype))


def wanted(spectrum, which, k):
    return {
        "largest": np.sort(spectrum)[::-1][:k],
        "smallest": np.sort(spectrum)[:k],
        "both": spectrum[np.argsort(-np.abs(spectrum), kind="stable")][:k],
    }[which]


@pytest.mark.parametrize(
    ("name", "which"),
    [
        pytest.param(name, which, marks=() if (name, which) in QUICK else pytest.mark.slow)
        for name in SPECTRA
        for which in ("largest", "smallest", "both")
    ],
)
def test_eigenpairs_of_known_spectra(name, which, x64):
    a = matrix(SPECTRA[name])
    found = eigenvalues(operator(a), 0, k=4, tol=1e-9, which=which)
    np.testing.assert_allclose(found.eigenvalues, wanted(SPECTRA[name], which, 4), atol=1e-8)
    v = found.eigenvectors
    np.testing.assert_allclose(v @ v.T, np.eye(4), atol=1e-9)
    residuals = np.linalg.norm(v @ a - found.eigenvalues[:, None] * v, axis=1)
    scale = np.abs(SPECTRA[name]).max()
    np.testing.assert_allclose(residuals, found.residuals, atol=1e-8 * scale)
    assert bool(found.converged)


def network_loss(params, batch):
    x, y = batch
    h = jnp.tanh(jnp.matmul(x, params["w"]) + params["b"][None])
    logits = jnp.matmul(h, params["v"])
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits), 1))


def network(hidden):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w": jax.random.normal(keys[0], (20, hidden)) / 4,
        "b": jnp.zeros(hidden),
        "v": jax.random.normal(keys[1], (hidden, 5)),
    }
    x = jax.random.normal(keys[2], (200, 20))
    return params, (x, jax.nn.one_hot(jax.random.randint(keys[3], (200,), 0, 5), 5))


@pytest.mark.slow
def test_network_of_two_thousand_parameters_to_1e_8_of_dense_eigh(x64):
    params, data = network(77)
    h = hessian(network_loss, params, data)
    expected = np.linalg.eigvalsh(dense(h))
    assert len(expected) == 2002
    arguments = dict(k=5, tol=1e-7)
    top = eigenvalues(h, 0, **arguments)
    np.testing.assert_allclose(top.eigenvalues, expected[::-1][:5], rtol=1e-8)
    bottom = eigenvalues(h, 0, which="smallest", **arguments)
    np.testing.assert_allclose(bottom.eigenvalues, expected[:5], rtol=1e-8)
    assert jax.tree.map(jnp.shape, top.eigenvectors) == {
        "b": (5, 77),
        "v": (5, 77, 5),
        "w": (5, 20, 77),
    }


@pytest.mark.parametrize("batch_size", [1, 33, 200])
@pytest.mark.slow
def test_chunks_do_not_matter(batch_size, x64):
    params, data = network(4)
    whole = eigenvalues(hessian(network_loss, params, data), 0, k=2, tol=1e-9)
    parts = eigenvalues(
        hessian(network_loss, params, data, batch_size=batch_size), 0, k=2, tol=1e-9
    )
    np.testing.assert_allclose(parts.eigenvalues, whole.eigenvalues, rtol=1e-9)


@pytest.mark.slow
def test_a_limit_on_products_is_kept_and_said(x64):
    a = matrix(np.linspace(0, 1, 400))
    found = eigenvalues(operator(a), 0, tol=1e-12, max_products=40)
    assert int(found.num_products) <= 40
    assert not bool(found.converged)
    assert float(found.residuals[0]) > 1e-12


@pytest.mark.slow
def test_stops_as_soon_as_the_tolerance_is_reached(x64):
    a = matrix(RNG.normal(size=300))
    products = [
        int(eigenvalues(operator(a), 0, tol=tol).num_products) for tol in (1e-2, 1e-6, 1e-10)
    ]
    assert products[0] < products[1] < products[2]


@pytest.mark.slow
@pytest.mark.parametrize(("which", "sign"), [("largest", 1), ("smallest", -1)])
def test_a_larger_end_of_the_other_sign_is_not_in_the_way(which, sign):
    """Residuals are small beside 85 before anything is known of the end at 10."""
    spectrum = np.random.default_rng(0).normal(size=20_000) * 1e-3
    spectrum[:21] = *np.linspace(1, 10, 20), -85
    diagonal = jnp.asarray(sign * spectrum, jnp.float32)
    a = Operator.from_matvec(lambda v: diagonal * v, jnp.zeros(len(diagonal)))
    found = jnp.stack(
        [eigenvalues(a, seed, k=1, tol=1e-2, which=which).eigenvalues[0] for seed in range(6)]
    )
    np.testing.assert_allclose(found, sign * 10, rtol=0.1)


@pytest.mark.slow
def test_float32_reaches_what_rounding_allows():
    a = matrix(SPECTRA["outliers"]).astype(jnp.float32)
    found = eigenvalues(operator(a), 0, k=2, tol=0.0)
    np.testing.assert_allclose(found.eigenvalues, [50.0, 20.0], rtol=1e-5)
    assert bool(found.converged)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k .*got 0"),
        ({"k": 9}, ValueError, "k .*got 9"),
        ({"tol": -1.0}, ValueError, "tol .*got -1.0"),
        ({"which": "middle"}, ValueError, "which .*got 'middle'"),
        ({"max_products": 0}, ValueError, "max_products .*got 0"),
        ({"key": "a"}, TypeError, "key .*got 'a'"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        eigenvalues(operator(jnp.eye(8)), **{"key": 0} | arguments)
