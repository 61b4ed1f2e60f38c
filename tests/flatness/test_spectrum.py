"""Lanczos quadrature: exact on small problems, honest error bars, right densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from entropix.flatness import Operator, dense, hessian, spectrum
from tests.flatness import problems

RNG = np.random.default_rng(0)


def operator_spectrum(matvec, like, key, **options):
    return spectrum(Operator.from_matvec(matvec, like), key, **options)


@pytest.mark.slow
def test_whole_space_gives_exact_gauss_quadrature(x64):
    """With all steps taken, nodes are the eigenvalues and weights the start's squared parts."""
    params, data = jnp.ones(18), jnp.asarray(RNG.normal(size=(40, 18)))
    h = hessian(problems.quadratic, params, data)
    eigenvalues, vectors = np.linalg.eigh(dense(h))
    found = spectrum(h, 0, num_steps=1000, num_probes=3)
    size = len(eigenvalues)
    assert found.nodes.shape == (3, size)
    assert found.num_steps.tolist() == [size] * 3
    np.testing.assert_allclose(found.nodes, np.tile(eigenvalues, (3, 1)), atol=1e-10)
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-12)
    signs = np.sqrt(found.weights[0] * size)
    start = jax.random.rademacher(
        jax.random.fold_in(jax.random.split(jax.random.key(0), 3)[0], 0), (size,), float
    )
    np.testing.assert_allclose(signs, np.abs(vectors.T @ start), atol=1e-7)
    assert float(found.top.value) == pytest.approx(eigenvalues[-1])
    assert float(found.bottom.value) == pytest.approx(eigenvalues[0])
    assert float(found.top.bound) == pytest.approx(0, abs=1e-10)


@pytest.mark.slow
def test_moments_lie_in_their_bars_at_the_stated_rate(x64):
    """Over 200 keys, mean +- t_9(0.975) standard errors holds the truth 95 % of the time."""
    eigenvalues = np.concatenate([RNG.normal(size=50), [3.0, -2.0]])
    basis, _ = np.linalg.qr(RNG.normal(size=(52, 52)))
    a = jnp.asarray(basis * eigenvalues @ basis.T)
    keys = jax.random.split(jax.random.key(1), 200)

    def estimates(key):
        found = operator_spectrum(
            lambda v: a @ v, jnp.zeros(52), key, num_steps=8, num_probes=10, probe_batch_size=10
        )
        return {"trace": found.trace, "trace of square": found.moment(2)}

    answers = jax.vmap(estimates)(keys)
    quantile = scipy.stats.t(9).ppf(0.975)
    for name, order in (("trace", 1), ("trace of square", 2)):
        mean, std_error = answers[name]
        truth = np.sum(eigenvalues**order)
        inside = np.abs(mean - truth) < quantile * std_error
        # 3 standard deviations of 200 draws below 94 %: sums of few squares are skewed.
        assert 0.88 <= inside.mean() <= 0.99, name
        assert abs(np.mean(mean) - truth) < 4 * np.std(mean) / 200**0.5, name


def test_density_is_the_broadened_spectrum(x64):
    """A diagonal operator has the same quadrature for every start of signs: no spread."""
    values = jnp.asarray([-1.0, 0.5, 0.5, 2.0])
    found = operator_spectrum(lambda v: values * v, values, 0, num_steps=4, num_probes=3)
    grid = jnp.linspace(-3, 4, 701)
    density = found.density(grid, 0.2)
    expected = np.mean([scipy.stats.norm(v, 0.2).pdf(grid) for v in values], axis=0)
    np.testing.assert_allclose(density.mean, expected, atol=1e-12)
    np.testing.assert_allclose(density.std_error, 0, atol=1e-12)
    assert found.num_steps.tolist() == [3] * 3


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.slow
def test_low_rank_keeps_its_zero_eigenvalues(rank, x64):
    values = jnp.asarray([4.0, -2.0, 1.0][:rank] + [0.0] * (40 - rank))
    found = operator_spectrum(lambda v: values * v, values, 0, num_steps=20, num_probes=2)
    assert float(found.fraction_below(0.5).mean) == pytest.approx(1 - rank / 40)
    assert float(found.trace.mean) == pytest.approx(float(values.sum()), abs=1e-12)
    assert float(found.top.value) == pytest.approx(4.0 if rank else 0.0, abs=1e-12)
    assert float(found.bottom.value) == pytest.approx(-2.0 if rank else 0.0, abs=1e-12)
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-12)


def test_residual_bounds_hold(x64):
    eigenvalues = RNG.normal(size=100) ** 3
    basis, _ = np.linalg.qr(RNG.normal(size=(100, 100)))
    a = jnp.asarray(basis * eigenvalues @ basis.T)
    found = operator_spectrum(lambda v: a @ v, jnp.zeros(100), 0, num_steps=15, num_probes=2)
    nearest = np.abs(np.asarray(found.nodes)[..., None] - eigenvalues).min(-1)
    assert np.all(nearest <= np.asarray(found.residuals) + 1e-12)
    assert float(found.residuals.min()) < 1e-3


@pytest.mark.parametrize("probe_batch_size", [2, 5])
@pytest.mark.slow
def test_probes_together_or_one_by_one(probe_batch_size, x64):
    params, data = problems.mlp_problem()
    run = lambda size: spectrum(
        hessian(problems.mlp, params, data), 3, num_steps=6, num_probes=5, probe_batch_size=size
    )
    for ours, expected in zip(run(probe_batch_size), run(1), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-9)


@pytest.mark.slow
def test_vmap_over_solutions_equals_the_loop(x64):
    params, data = problems.mlp_problem()
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    keys = jax.random.split(jax.random.key(0), 2)

    def run(params, key):
        found = spectrum(hessian(problems.mlp, params, data), key, num_steps=5, num_probes=2)
        return found.nodes, *found.trace

    mapped = jax.vmap(run)(stacked, keys)
    for index in range(2):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
        alone = run(one, keys[index])
        for ours, expected in zip(mapped, alone, strict=True):
            np.testing.assert_allclose(ours[index], expected, atol=1e-9)


def test_one_probe_has_no_error_bar():
    found = operator_spectrum(lambda v: 2 * v, jnp.ones(4), 0, num_steps=2, num_probes=1)
    assert float(found.trace.mean) == pytest.approx(8)
    assert np.isnan(found.trace.std_error)
    assert found.density(jnp.zeros(3), 1.0).std_error.shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps .*got 0"),
        ({"num_probes": 0}, "num_probes .*got 0"),
        ({"probe_batch_size": 0}, "probe_batch_size .*got 0"),
        (
            {"key": jax.random.split(jax.random.key(0), 3)},
            "key .*got 3",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        operator_spectrum(lambda v: v, jnp.ones(4), **{"key": 0} | arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "width", "message"), [([0.0, 1.0], 0.0, "width .*got 0.0"), (0.5, 0.1, r"grid .*\(\)")]
)
def test_a_density_of_no_width_is_refused(grid, width, message):
    found = spectrum(Operator.from_matvec(lambda v: 2 * v, jnp.ones(3)), 0)
    with pytest.raises(ValueError, match=message):
        found.density(jnp.array(grid), width)
