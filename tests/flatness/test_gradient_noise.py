"""Covariance of the gradient against NumPy in double precision, and against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.flatness import gradient_noise, layer_temperature

# The package's attribute of this name is the function.
from entropix.flatness._gradient_noise import _gradient_noise

HIDDEN = 4


def network(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["first"]["kernel"] + params["first"]["bias"][None])
    predicted = hidden @ params["last"]["kernel"]
    return jnp.mean((predicted - batch["y"]) ** 2)


def problem(n, inputs=3):
    rng = np.random.default_rng(0)
    params = {
        "first": {"kernel": rng.normal(size=(inputs, HIDDEN)), "bias": rng.normal(size=HIDDEN)},
        "last": {"kernel": rng.normal(size=HIDDEN)},
    }
    data = {"x": rng.normal(size=(n, inputs)), "y": rng.normal(size=n)}
    return jax.tree.map(jnp.asarray, params), data


def by_hand(params, data):
    """Per-example gradients of the network by back-propagation in NumPy, (n, d)."""
    kernel, bias, last = (
        np.asarray(leaf)
        for leaf in (params["first"]["kernel"], params["first"]["bias"], params["last"]["kernel"])
    )
    rows = []
    for x, y in zip(data["x"], data["y"], strict=True):
        hidden = np.tanh(x @ kernel + bias)
        error = 2 * (hidden @ last - y)
        back = error * last * (1 - hidden**2)
        rows.append(np.concatenate([back, np.outer(x, back).ravel(), error * hidden]))
    return np.array(rows)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [1, 2, 12, 20, 50])
def test_spectrum_against_numpy(n):
    params, data = problem(n)
    rows = by_hand(params, data)
    covariance = np.cov(rows.T, bias=True)
    exact = np.linalg.eigvalsh(covariance)[::-1]
    found = gradient_noise(network, params, data)
    size = rows.shape[1]
    assert found.eigenvalues.shape == (min(n, size),)
    np.testing.assert_allclose(
        found.eigenvalues, exact[: min(n, size)], atol=1e-12 * exact[0] + 1e-24
    )
    # The mean of one example is the example, up to the rounding of the reduction.
    np.testing.assert_allclose(found.trace, np.trace(covariance), rtol=1e-12, atol=1e-24)
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found.gradient)])
    np.testing.assert_allclose(leaves, rows.mean(0), rtol=1e-10)
    assert (found.num_examples, found.num_parameters) == (n, size)
    if n > 1:
        np.testing.assert_allclose(
            found.participation_ratio, np.trace(covariance) ** 2 / np.sum(covariance**2)
        )
        np.testing.assert_allclose(found.threshold, exact[0] * size * np.finfo(np.float32).eps)
        assert int(found.rank) == np.sum(exact > float(found.threshold))


@pytest.mark.usefixtures("x64")
def test_rank_is_that_of_the_data_and_follows_its_threshold():
    rng = np.random.default_rng(1)
    scales = np.array([1.0, 1e-1, 1e-3])
    data = rng.normal(size=(40, 3)) * scales @ np.linalg.qr(rng.normal(size=(9, 3)))[0].T

    def linear(w, x):
        return jnp.mean(x @ w)

    w = jnp.zeros(9)
    assert int(gradient_noise(linear, w, data).rank) == 2
    assert int(gradient_noise(linear, w, data, rank_threshold=1e-9).rank) == 3
    assert int(gradient_noise(linear, w, data, rank_threshold=0.5).rank) == 1
    lanczos = gradient_noise(linear, w, data, num_steps=9, rank_threshold=1e-9)
    assert int(lanczos.rank) == 3
    exact = np.linalg.eigvalsh(np.cov(data.T, bias=True))[::-1][:3]
    np.testing.assert_allclose(lanczos.eigenvalues[:3], exact, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.slow
def test_lanczos_residuals_bound_its_errors(batch_size):
    params, data = problem(60, inputs=8)
    exact = gradient_noise(network, params, data)
    for num_steps in (1, 8, 1000):
        found = gradient_noise(network, params, data, num_steps=num_steps, batch_size=batch_size)
        assert found.eigenvalues.shape == (min(num_steps, 40),)
        gaps = jnp.min(jnp.abs(found.eigenvalues[:, None] - exact.eigenvalues[None, :]), 1)
        assert bool(jnp.all(gaps <= found.residual_norms + 1e-12 * exact.trace))
        np.testing.assert_allclose(found.trace, exact.trace, rtol=1e-10)
    np.testing.assert_allclose(found.eigenvalues, exact.eigenvalues, atol=1e-11 * exact.trace)
    np.testing.assert_allclose(found.participation_ratio, exact.participation_ratio)


def krylov(matrix, start, num_steps):
    """Ritz values and residuals of a Krylov space by NumPy, descending."""
    basis = [start / np.linalg.norm(start)]
    for _ in range(num_steps - 1):
        rest = matrix @ basis[-1]
        for _ in range(2):
            rest = rest - np.array(basis).T @ (np.array(basis) @ rest)
        basis.append(rest / np.linalg.norm(rest))
    basis = np.array(basis)
    values, coordinates = np.linalg.eigh(basis @ matrix @ basis.T)
    vectors = coordinates.T @ basis
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    return values[::-1], residuals[::-1]


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_lanczos_residuals_are_those_of_the_krylov_space_of_its_start():
    params, data = problem(60, inputs=8)
    found = gradient_noise(network, params, data, num_steps=8)
    leaves = jax.tree.leaves(params)
    start = [
        np.ravel(jax.random.normal(jax.random.fold_in(jax.random.key(0), i), leaf.shape))
        for i, leaf in enumerate(leaves)
    ]
    covariance = np.cov(by_hand(params, data).T, bias=True)
    values, residuals = krylov(covariance, np.concatenate(start), 8)
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-9)
    np.testing.assert_allclose(found.residual_norms, residuals, atol=1e-9 * values[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("n", "inputs", "num_steps"), [(1000, 3, None), (1000, 3, 5), (100, 40, None)]
)
@pytest.mark.slow
def test_chunks_do_not_matter(n, inputs, num_steps):
    params, data = problem(n, inputs)
    whole, *parts = [
        gradient_noise(network, params, data, num_steps=num_steps, batch_size=batch_size)
        for batch_size in (None, 1, 7, n // 3, n)
    ]
    for part in parts:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), part, whole
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("b", [1, 2, 3, 5])
def test_variance_of_a_batch_by_enumeration(b):
    params, data = problem(5)
    rows = by_hand(params, data)
    found = gradient_noise(network, params, data)
    draws = {
        True: itertools.product(range(5), repeat=b),
        False: itertools.combinations(range(5), b),
    }
    for replacement, batches in draws.items():
        means = np.array([rows[list(batch)].mean(0) for batch in batches])
        exact = np.mean(np.sum((means - rows.mean(0)) ** 2, 1))
        claimed = found.batch_variance(b, replacement=replacement)
        np.testing.assert_allclose(claimed, exact, atol=1e-12)
    assert found.batch_variance(np.array([1, 2]), replacement=True).shape == (2,)


@pytest.mark.slow
def test_single_precision_at_the_size_of_a_small_network():
    rng = np.random.default_rng(0)
    sizes = 2.0 ** -np.arange(30)
    data = rng.normal(size=(200, 30)).astype(np.float32) * sizes.astype(np.float32)
    directions = np.linalg.qr(rng.normal(size=(13_338, 30)))[0].astype(np.float32)

    def linear(w, x):
        return jnp.mean(x @ (jnp.asarray(directions.T) @ w))

    with jax.numpy_dtype_promotion("strict"):
        found = gradient_noise(linear, jnp.zeros(13_338), data, batch_size=64)
        lanczos = gradient_noise(linear, jnp.zeros(13_338), data, num_steps=12, batch_size=64)
    exact = np.linalg.eigvalsh(np.cov(data.T.astype(np.float64), bias=True))[::-1]
    np.testing.assert_allclose(found.eigenvalues[:6], exact[:6], rtol=1e-3)
    np.testing.assert_allclose(lanczos.eigenvalues[:6], exact[:6], rtol=1e-3)
    assert int(found.rank) == int(lanczos.rank) == np.sum(exact > 13_338 * 2**-23 * exact[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_jit_vmap_and_eager_agree_and_compile_once():
    params, data = problem(10)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    for num_steps in (None, 4):

        def spectrum(params, num_steps=num_steps):
            return gradient_noise(network, params, data, num_steps=num_steps).eigenvalues

        together = jax.jit(jax.vmap(spectrum))(several)
        np.testing.assert_allclose(together[0], spectrum(params), atol=1e-10)
        with jax.disable_jit():
            eager = spectrum(jax.tree.map(lambda leaf: 2 * leaf, params))
        np.testing.assert_allclose(together[1], eager, atol=1e-10)
    before = _gradient_noise._cache_size()
    gradient_noise(network, several := jax.tree.map(jnp.ones_like, params), data, num_steps=4)
    assert _gradient_noise._cache_size() == before
    assert several


@pytest.mark.usefixtures("x64")
def test_layer_temperature_against_numpy():
    params, data = problem(23)
    rows = by_hand(params, data)
    means = rows[:20].reshape(4, 5, -1).mean(1)
    first, last = HIDDEN * 4, HIDDEN
    signals = {
        "['first']": np.abs(means[:, :first]).mean(1),
        "['last']": np.abs(means[:, -last:]).mean(1),
    }
    for at_once in (1, 3, 4):
        found = layer_temperature(
            network, params, data, minibatch_size=5, minibatches_at_once=at_once
        )
        assert list(found.signal) == list(signals)
        for name, signal in signals.items():
            np.testing.assert_allclose(found.signal[name], signal.mean())
            np.testing.assert_allclose(found.temperature[name], signal.std(ddof=1))
            np.testing.assert_allclose(found.signal_std_error[name], signal.std(ddof=1) / 2)

    def kernels(path):
        return None if path[-1].key == "bias" else path[0].key

    found = layer_temperature(network, params, data, minibatch_size=5, group=kernels)
    assert list(found.signal) == ["first", "last"]
    kernel = np.abs(means[:, HIDDEN:first]).mean(1)
    np.testing.assert_allclose(found.temperature["first"], kernel.std(ddof=1))


def test_layer_temperature_error_bars_cover():
    def total(w, x):
        return jnp.mean(x @ w)

    data = jax.random.normal(jax.random.key(0), (300, 400, 4))
    found = jax.vmap(lambda x: layer_temperature(total, jnp.zeros(4), x, minibatch_size=4))(data)
    # Each |mean of 4 normals| is half-normal of scale 1/2, and s averages 4 of them.
    expected = {
        "signal": 0.5 * np.sqrt(2 / np.pi),
        "temperature": 0.5 * np.sqrt((1 - 2 / np.pi) / 4),
    }
    for field, value in expected.items():
        (estimates,) = getattr(found, field).values()
        (errors,) = getattr(found, field + "_std_error").values()
        z = (estimates - value) / errors
        assert 0.9 < float(jnp.mean(jnp.abs(z) < 1.96)) < 0.98
        assert abs(float(jnp.mean(z))) < 0.35


BAD = {
    "params": (
        ({"w": np.array([1, 2])}, TypeError, "params must hold floating-point"),
        ({"w": np.array([np.inf, 0.0])}, ValueError, "params must be finite"),
    ),
    "data": (
        ({"x": np.zeros((0, 2))}, ValueError, "at least one example"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, ValueError, "equal leading axes"),
    ),
    "loss": ((lambda p, _: p["w"], ValueError, "floating-point scalar"),),
}


@pytest.mark.parametrize("estimator", [gradient_noise, layer_temperature])
@pytest.mark.parametrize("name", list(BAD))
def test_bad_problem(estimator, name):
    options = {"minibatch_size": 2} if estimator is layer_temperature else {}
    for value, error, message in BAD[name]:
        arguments = {
            "loss": lambda p, d: jnp.mean(d["x"] @ p["w"]),
            "params": {"w": np.ones(2)},
            "data": {"x": np.zeros((4, 2))},
        } | {name: value}
        with pytest.raises(error, match=message):
            estimator(**arguments, **options)


@pytest.mark.usefixtures("x64")
def test_bad_options():
    params, data = problem(6)

    def noise(**options):
        return gradient_noise(network, params, data, **options)

    def layers(**options):
        return layer_temperature(network, params, data, **options)

    found = noise()
    for call, error, message in (
        (lambda: noise(num_steps=0), ValueError, "num_steps .*got 0"),
        (lambda: noise(rank_threshold=1.0), ValueError, "rank_threshold .*got 1.0"),
        (lambda: noise(rank_threshold=-1), ValueError, "rank_threshold .*got -1"),
        (lambda: noise(batch_size=0), ValueError, "batch_size .*got 0"),
        (lambda: noise(key="a"), TypeError, "key .*got 'a'"),
        (lambda: found.batch_variance(0, replacement=True), ValueError, "batch_size must be"),
        (lambda: found.batch_variance(7, replacement=False), ValueError, "< 7, got 7"),
        (lambda: layers(minibatch_size=4), ValueError, "at most half of the 6 examples, got 4"),
        (lambda: layers(minibatch_size=0), ValueError, "minibatch_size .*got 0"),
        (lambda: layers(minibatch_size=2, minibatches_at_once=0), ValueError, "minibatches_at"),
        (lambda: layers(minibatch_size=2, group=lambda _: None), ValueError, "group must put"),
    ):
        with pytest.raises(error, match=message):
            call()
