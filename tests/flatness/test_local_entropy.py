"""Local entropy inside its error bars: closed forms, quadrature, invariances, diagnosis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.flatness import _chains, local_entropy
from entropix.flatness._ladder import ladder

# The package's attribute of this name is the function.
from entropix.flatness._local_entropy import _local_entropy

NO_DATA = jnp.zeros(1)
GAMMAS = np.array([2.0, 0.2])
CURVATURES = np.array([0.0, 0.0, 0.0, 0.1, 1.0, 5.0])
QUICK = {"num_nodes": 4, "num_steps": 16, "num_burn_in": 4, "num_chains": 2}


def quadratic(w, _):
    return jnp.sum(jnp.asarray(CURVATURES, w.dtype) * w**2) / 2


def double_well(w, _):
    return jnp.sum((w**2 - 1) ** 2)


def many(loss, params, num_keys=100, **options):
    """The estimate for each of many keys, in one program."""
    keys = jax.random.split(jax.random.key(3), num_keys)
    return jax.vmap(lambda key: local_entropy(loss, params, NO_DATA, key, **options))(keys)


def assert_covered(estimates, errors, exact):
    """Centered on the exact values, with a spread that the error bars tell."""
    z = (np.asarray(estimates) - exact) / np.asarray(errors)
    assert np.all(np.abs(np.mean(z, 0)) < 4 / len(z) ** 0.5), np.mean(z, 0)
    assert np.all((np.std(z, 0) > 0.7) & (np.std(z, 0) < 1.3)), np.std(z, 0)
    share = np.mean(np.abs(z) < 1.96, 0)
    # 95 % of the keys, within three standard errors of such a share.
    assert np.all(share > 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(z))), share


def quadratic_entropy(center):
    """F by the closed form, (S,), with its drift term."""
    h, slope = CURVATURES, CURVATURES * center
    base = np.sum(CURVATURES * center**2) / 2
    return np.array(
        [-base - np.sum(np.log1p(h / g)) / 2 + np.sum(slope**2 / (g + h)) / 2 for g in GAMMAS]
    )


def integral(loss, center, gamma, power=0):
    """log of the normalized integral over one weight, or the mean of x'^power, on a grid."""
    x = np.linspace(-12, 12, 60_001)
    weight = np.exp(-loss(x) - gamma / 2 * (x - center) ** 2)
    if power:
        return np.sum(weight * x**power) / np.sum(weight)
    return np.log(np.sum(weight) * (x[1] - x[0]) * np.sqrt(gamma / (2 * np.pi)))


@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.slow
def test_quadratic(shift):
    center = shift * np.arange(6)
    found = many(quadratic, jnp.asarray(center, jnp.float32), gamma=GAMMAS)
    assert_covered(found.value, found.std_error, quadratic_entropy(center))
    squared = [
        np.sum(1 / (g + CURVATURES) + (CURVATURES * center / (g + CURVATURES)) ** 2)
        for g in np.asarray(found.node_gamma[0])
    ]
    assert_covered(found.mean_squared_displacement, found.displacement_std_error, squared)
    gradient = CURVATURES * center / (1 + CURVATURES / GAMMAS[1])
    moves = CURVATURES > 0
    assert_covered(found.gradient[:, moves], found.gradient_std_error[:, moves], gradient[moves])
    np.testing.assert_allclose(found.gradient[:, ~moves], 0, atol=1e-6)


@pytest.mark.parametrize("center", [0.0, 0.3, 1.0])
@pytest.mark.slow
def test_double_well_against_quadrature(center):
    def well(x):
        return (x**2 - 1) ** 2

    found = many(double_well, jnp.full(1, center), 200, gamma=GAMMAS)
    exact = np.array([integral(well, center, g) for g in GAMMAS])
    assert_covered(found.value, found.std_error, exact)
    gradient = GAMMAS[1] * (center - integral(well, center, GAMMAS[1], power=1))
    assert_covered(found.gradient[:, 0], found.gradient_std_error[:, 0], gradient)


@pytest.mark.slow
def test_quartic_which_has_no_curvature_at_its_minimum():
    found = many(lambda w, _: jnp.sum(w**4), jnp.zeros(1), gamma=GAMMAS)
    exact = np.array([integral(lambda x: x**4, 0.0, g) for g in GAMMAS])
    assert_covered(found.value, found.std_error, exact)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_flat_loss_is_exact():
    found = local_entropy(
        lambda w, _: 3 + 0 * jnp.sum(w), jnp.zeros(50), NO_DATA, 0, gamma=GAMMAS, **QUICK
    )
    np.testing.assert_allclose(found.value, -3, atol=1e-9)
    np.testing.assert_allclose(found.std_error, 0, atol=1e-9)
    np.testing.assert_allclose(found.acceptance, 1)
    np.testing.assert_allclose(found.log_volume, -3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ratio", [1e-2, 1.0, 1e3, 1e6])
def test_ladder_integrates_the_excess_of_any_mode(ratio):
    gamma = jnp.asarray([1.0, 3.0, 50.0])
    for share in (1.0, 0.5, 1e-2, 1e-4):
        h = share * ratio
        rungs, weights, coarse = ladder(gamma, jnp.asarray(ratio), 16)
        assert bool(jnp.all(jnp.diff(rungs) < 0))
        np.testing.assert_allclose(rungs[-1], 1.0)
        excess = h / (rungs + h)
        exact = np.log1p(h / np.asarray(gamma))
        error = np.abs(weights @ excess - exact)
        assert np.all(error < (1e-6 if ratio < 1e4 else 1e-3))
        assert np.all(error <= 1e-9 + np.abs((coarse - weights) @ excess))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("stiffness", [None, 0.5, 6.0])
@pytest.mark.parametrize("step_size", [pytest.param(0.3, marks=pytest.mark.slow), 2.0])
def test_a_step_leaves_the_target_as_it_is(step_size, stiffness):
    grid = np.linspace(-4, 4, 40_001)
    gamma = 1.5
    weight = np.exp(-(((grid + 0.4) ** 2 - 1) ** 2) - gamma / 2 * grid**2)
    levels = (np.arange(200_000) + 0.5) / 200_000
    start = jnp.asarray(np.interp(levels, np.cumsum(weight) / weight.sum(), grid))[:, None]

    def potential(d):
        return jax.value_and_grad(lambda d: double_well(d + 0.4, None))(d)

    modes = jnp.ones((stiffness is not None, 1))
    gaussian = _chains.Gaussian(jnp.asarray(gamma), jnp.full(len(modes), stiffness or 0.0), modes)
    chains = _chains.Chain(start, *jax.vmap(potential)(start))
    keys = jax.random.split(jax.random.key(0), len(start))
    after, acceptance = jax.jit(
        jax.vmap(lambda c, k: _chains.step(c, k, potential, gaussian, jnp.asarray(step_size), True))
    )(chains, keys)
    assert 0.1 < float(jnp.mean(acceptance)) < 0.99
    for power in (1, 2, 3, 4):
        exact = np.sum(weight * grid**power) / np.sum(weight)
        values = np.asarray(after.displacement[:, 0]) ** power
        assert abs(values.mean() - exact) < 4 * values.std() / len(values) ** 0.5


@pytest.mark.slow
def test_langevin_is_biased_by_less_than_a_tenth():
    exact = quadratic_entropy(np.zeros(6))
    found = many(quadratic, jnp.zeros(6), num_keys=40, gamma=GAMMAS, method="langevin", num_modes=0)
    bias = np.mean(found.value, 0) - exact
    assert np.all(np.abs(bias) < 0.1 * np.abs(exact))
    assert np.all(np.abs(bias) > 5 * np.std(found.value, 0) / 40**0.5)
    assert 0.96 < np.mean(found.acceptance[:, -1]) < 0.995


@pytest.mark.slow
def test_modes_let_a_stiff_loss_be_sampled():
    h = np.array([1e-3, 1e-1, 10.0, 1000.0])

    def stiff(w, _):
        return jnp.sum(jnp.asarray(h, w.dtype) * w**2) / 2

    exact = -np.sum(np.log1p(h / 0.01)) / 2
    modes = (jnp.asarray(h[2:], jnp.float32), jnp.eye(4)[2:])
    found = many(stiff, jnp.zeros(4), num_keys=60, gamma=0.01, modes=modes)
    assert_covered(found.value, found.std_error, exact)
    one = jax.tree.map(lambda leaf: leaf[0], found)
    assert one.diagnosis() == ""
    bare = local_entropy(stiff, jnp.zeros(4), NO_DATA, 0, gamma=0.01, num_modes=0)
    assert "fewer than 50 effective samples" in bare.diagnosis()
    assert f"gamma = {0.01:.3g}" in bare.diagnosis()


def tilted(w, _):
    """A shallow well at 1, 20 above the deep one at -1, behind a barrier of 30."""
    return jnp.sum(40 * (w**2 - 1) ** 2 + 10 * (w + 1))


@pytest.mark.slow
def test_from_the_shallow_side_of_a_barrier_the_bar_and_the_diagnosis_tell():
    """Chains that all start at the center never leave it, and agree on a value that is 19 off."""
    exact = integral(lambda x: 40 * (x**2 - 1) ** 2 + 10 * (x + 1), 1.0, 0.2)
    found = many(tilted, jnp.ones(1), num_keys=40, gamma=0.2, num_burn_in=128, num_steps=128)
    off = np.abs(found.value - exact)
    assert np.all(off < 1.5 * found.std_error + found.quadrature_error)
    for i in range(40):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        assert "r_hat above 1.1" in one.diagnosis()


@pytest.mark.parametrize("gamma", [0.1, 1.0])
@pytest.mark.slow
def test_at_the_defaults_a_stiff_quadratic_in_twelve_dimensions_is_well(gamma):
    """Curvatures over four decades; without preconditioning the diagnosis names every node."""
    h = np.logspace(-2, 2, 12)

    def stiff(w, _):
        return jnp.sum(jnp.asarray(h, w.dtype) * w**2) / 2

    found = local_entropy(stiff, jnp.zeros(12), NO_DATA, 0, gamma=gamma)
    exact = -np.sum(np.log1p(h / gamma)) / 2
    assert found.diagnosis() == ""
    assert abs(found.value - exact) < 4 * found.std_error + found.quadrature_error
    assert found.std_error < 0.1


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_beta_multiplies_the_loss():
    options = {"gamma": GAMMAS, **QUICK}
    x = jnp.arange(6.0)
    hot = local_entropy(quadratic, x, NO_DATA, 0, beta=3.0, **options)
    scaled = local_entropy(lambda w, d: 3.0 * quadratic(w, d), x, NO_DATA, 0, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), hot, scaled)


def regression(params, batch):
    predicted = batch["x"] @ params["kernel"] + params["bias"]
    return jnp.mean((predicted - batch["y"]) ** 2) / 2


def regression_data(n, dtype=np.float64):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(n, 3)).astype(dtype),
        "y": rng.normal(size=n).astype(dtype),
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_chunks_do_not_matter():
    params = {"kernel": jnp.ones(3), "bias": jnp.zeros(())}
    data = regression_data(200)
    with jax.numpy_dtype_promotion("strict"):
        whole, *parts = [
            local_entropy(regression, params, data, 0, gamma=0.1, batch_size=batch_size, **QUICK)
            for batch_size in (200, 1, 7, 66)
        ]
    for part in parts:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), part, whole)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
def test_jit_equals_eager_and_vmap_equals_loop():
    options = {**QUICK, "gamma": 0.5, "num_steps": 8, "num_burn_in": 2, "num_modes": 1}

    def run(key):
        return local_entropy(double_well, jnp.full(2, 0.5), NO_DATA, key, **options)

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(run)(keys)
    for i, key in enumerate(keys):
        alone = run(key)
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), one, alone)
    compiled = run(keys[0])
    with jax.disable_jit():
        eager = run(keys[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), eager, compiled)


@pytest.mark.slow
def test_compiles_once_for_new_values():
    local_entropy(quadratic, jnp.zeros(6), NO_DATA, 0, gamma=0.5, **QUICK)
    before = _local_entropy._cache_size()
    local_entropy(quadratic, jnp.ones(6), NO_DATA + 1, 7, gamma=0.25, beta=2.0, **QUICK)
    assert _local_entropy._cache_size() == before


@pytest.mark.slow
def test_mixed_precision_under_strict_promotion():
    params = {"kernel": jnp.ones(3, jnp.bfloat16), "bias": jnp.zeros((), jnp.float32)}

    def loss(params, batch):
        predicted = batch["x"] @ params["kernel"].astype(jnp.float32) + params["bias"]
        return jnp.mean((predicted - batch["y"]) ** 2)

    data = regression_data(20, np.float32)
    with jax.numpy_dtype_promotion("strict"):
        found = local_entropy(loss, params, data, 0, gamma=np.array([0.5, 5.0]), **QUICK)
    assert found.value.dtype == jnp.float32
    assert found.value.shape == (2,)
    assert found.gradient["kernel"].dtype == jnp.bfloat16
    assert bool(jnp.all(jnp.isfinite(found.value)))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"gamma": -1.0}, ValueError, "gamma .*got -1.0"),
        ({"gamma": 0}, ValueError, "gamma .*got 0"),
        ({"gamma": np.ones((2, 2))}, ValueError, r"gamma .*got shape"),
        ({"gamma": np.array([])}, ValueError, r"got shape \(0,\)"),
        ({"beta": 0.0}, ValueError, "beta .*got 0.0"),
        ({"method": "hmc"}, ValueError, "method .*got 'hmc'"),
        ({"num_nodes": 5}, ValueError, "num_nodes .*got 5"),
        ({"num_nodes": 2}, ValueError, "num_nodes .*got 2"),
        ({"num_steps": 7}, ValueError, "num_steps .*got 7"),
        ({"num_burn_in": 1}, ValueError, "num_burn_in .*got 1"),
        ({"num_chains": 1}, ValueError, "num_chains .*got 1"),
        ({"num_modes": -1}, ValueError, "num_modes .*>= 0, got -1"),
        ({"key": 0.5}, TypeError, "key must be .* got 0.5"),
        ({"batch_size": 0}, ValueError, "batch_size .*got 0"),
        ({"params": {"w": np.array([1, 2])}}, TypeError, r"got int\d+ at params\['w'\]"),
        ({"params": {"w": np.array([1.0, np.nan])}}, ValueError, r"finite.*params\['w'\]"),
        ({"params": {}}, ValueError, "params must hold at least one array"),
        ({"data": jnp.zeros((0, 2))}, ValueError, "at least one example"),
        ({"data": {"x": jnp.zeros(2), "y": jnp.zeros(3)}}, ValueError, "equal leading axes"),
        ({"loss": lambda p, _: p["w"]}, ValueError, "must be a floating-point scalar"),
        ({"loss": lambda _, d: jnp.argmax(d)}, ValueError, "must be a floating-point scalar"),
        ({"modes": (jnp.ones(1), {"w": jnp.ones((2, 2))})}, ValueError, "modes must hold"),
    ],
)
def test_bad_input(changed, error, message):
    arguments = {
        "loss": lambda p, _: jnp.sum(p["w"]),
        "params": {"w": np.ones(2)},
        "data": NO_DATA,
        "key": 0,
        "gamma": 1.0,
    } | changed
    with pytest.raises(error, match=message):
        local_entropy(**arguments)
