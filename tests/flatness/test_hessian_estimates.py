"""Lanczos, spectra, traces and local energy on problems whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entropix.flatness import (
    exact_hessian,
    gauss_newton_operator,
    hessian_operator,
    hessian_spectrum,
    lanczos,
    local_energy,
    operator_spectrum,
    operator_trace,
    trace,
)

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
N = 1000


def logistic_loss(params, batch):
    x, y = batch
    margin = y * (jnp.matmul(x, params["w"]) + params["b"])
    return jnp.mean(jnp.logaddexp(0, -margin))


def logistic_problem():
    x = jnp.asarray(RNG.normal(size=(N, 6)))
    y = jnp.asarray(RNG.choice([-1.0, 1.0], N))
    params = {"b": jnp.asarray(0.3), "w": jnp.asarray(RNG.normal(size=6))}
    design = np.concatenate([np.ones((N, 1)), x], 1)
    p = 1 / (1 + np.exp(-np.asarray(design @ np.concatenate([[0.3], params["w"]]))))
    return params, (x, y), design.T * (p * (1 - p)) @ design / N


def quadratic(curvatures):
    scale = jnp.asarray(curvatures)
    return lambda w, batch: jnp.sum(scale * w**2) / 2 + 0 * jnp.sum(batch)


def numpy_lanczos(a, v, steps):
    """Textbook Lanczos with full orthogonalisation by QR at each step."""
    basis, alpha, beta = [v / np.linalg.norm(v)], [], []
    for _ in range(steps):
        w = a @ basis[-1]
        alpha.append(basis[-1] @ w)
        q = np.stack(basis)
        w = w - q.T @ (q @ w)
        w = w - q.T @ (q @ w)
        beta.append(np.linalg.norm(w))
        basis.append(w / beta[-1])
    return np.array(alpha), np.array(beta[:-1]), np.stack(basis[:-1])


def symmetric(size, rank=None):
    a = RNG.normal(size=(size, rank or size))
    return a @ a.T / size


def test_logistic_regression_hessian_is_x_d_x():
    params, data, expected = logistic_problem()
    np.testing.assert_allclose(exact_hessian(logistic_loss, params, data), expected, atol=1e-14)
    v = jax.tree.map(jnp.ones_like, params)
    product = hessian_operator(logistic_loss, params, data)(v)
    assert product["b"] == pytest.approx(expected[0].sum())
    # The outputs are linear in the parameters: the Gauss-Newton matrix is the Hessian.
    outputs = lambda params, batch: jnp.matmul(batch[0], params["w"]) + params["b"]
    on_outputs = lambda z, batch: jnp.mean(jnp.logaddexp(0, -batch[1] * z))
    same = gauss_newton_operator(outputs, on_outputs, params, data)(v)
    np.testing.assert_allclose(same["w"], product["w"], rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 333, 1000])
def test_chunks_give_the_same_answer(batch_size):
    params, data, expected = logistic_problem()
    matrix = exact_hessian(logistic_loss, params, data, batch_size=batch_size)
    np.testing.assert_allclose(matrix, expected, atol=1e-13)
    whole, chunked = (
        (
            hessian_spectrum(logistic_loss, params, data, 0, num_probes=3, batch_size=size).nodes,
            local_energy(
                logistic_loss, params, data, 0, sigma=0.1, num_samples=4, batch_size=size
            ).mean,
        )
        for size in (None, batch_size)
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), whole, chunked)


def test_lanczos_equals_numpy():
    a, v = symmetric(40), RNG.normal(size=40)
    alpha, beta, basis = numpy_lanczos(a, v, 25)
    found = lanczos(lambda v: jnp.asarray(a) @ v, jnp.asarray(v), 25, with_basis=True)
    np.testing.assert_allclose(found.diagonal, alpha, rtol=1e-9)
    np.testing.assert_allclose(found.off_diagonal, beta, rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.basis), np.abs(basis), atol=1e-8)


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_lanczos_stops_where_the_krylov_space_ends(rank):
    """The start has one part outside of the range; rounding may grow into one step more."""
    a = jnp.asarray(symmetric(50, rank))
    found = lanczos(lambda v: a @ v, jnp.asarray(RNG.normal(size=50)), 30, with_basis=True)
    steps = int(found.num_steps)
    assert rank + 1 <= steps <= rank + 2
    np.testing.assert_array_equal(found.diagonal[steps:], 0)
    np.testing.assert_array_equal(found.off_diagonal[steps - 1 :], 0)
    np.testing.assert_allclose(
        found.basis[:steps] @ found.basis[:steps].T, np.eye(steps), atol=1e-12
    )
    top = np.sort(np.linalg.eigvalsh(a))[::-1][:rank]
    t = np.diag(found.diagonal[:steps]) + np.diag(found.off_diagonal[: steps - 1], 1)
    np.testing.assert_allclose(np.linalg.eigvalsh(t, "U")[::-1][:rank], top, rtol=1e-9)


def test_lanczos_finds_no_ghosts():
    """One dominant eigenvalue and many steps: without re-orthogonalisation it comes back again."""
    curvatures = jnp.asarray(np.concatenate([np.linspace(0, 1, 300), [1e4]]))
    found = operator_spectrum(lambda v: curvatures * v, curvatures, 0, num_steps=150, num_probes=1)
    assert int(jnp.sum(found.nodes > 10)) == 1


def test_spectrum_moments_lie_inside_their_bars_at_the_stated_rate():
    """Over 200 keys the trace and the trace of the square are within one bar in 68 % of runs."""
    a = jnp.asarray(symmetric(60))

    def inside(key):
        found = operator_spectrum(lambda v: a @ v, jnp.zeros(60), key, num_steps=12, num_probes=30)
        moments = [found.moment(1), found.moment(2)]
        exact = [jnp.trace(a), jnp.sum(a**2)]
        return jnp.stack(
            [jnp.abs(m.mean - e) < m.std_error for m, e in zip(moments, exact, strict=True)]
        )

    rate = jax.jit(jax.vmap(inside))(jax.random.split(jax.random.key(0), 200)).mean(0)
    np.testing.assert_allclose(rate, 0.67, atol=0.1)


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
def test_trace_lies_inside_its_bar_at_the_stated_rate(method):
    a = jnp.asarray(symmetric(60) + np.diag(np.r_[np.zeros(57), 5, 10, 20]))

    def inside(key):
        found = operator_trace(lambda v: a @ v, jnp.zeros(60), key, num_probes=90, method=method)
        return jnp.abs(found.mean - jnp.trace(a)) < found.std_error, found.std_error

    hits, bars = jax.jit(jax.vmap(inside))(jax.random.split(jax.random.key(0), 200))
    assert float(hits.mean()) == pytest.approx(0.67, abs=0.1)
    if method == "hutchinson":
        better = operator_trace(lambda v: a @ v, jnp.zeros(60), 0, num_probes=90).std_error
        assert better < 0.8 * bars.mean()


def test_spectrum_of_a_known_density():
    curvatures = jnp.concatenate([jnp.zeros(150), jnp.linspace(1, 2, 50)])
    found = hessian_spectrum(quadratic(curvatures), jnp.ones(200), jnp.zeros(1), 0, num_probes=40)
    below = found.fraction_below(0.5)
    assert abs(below.mean - 0.75) < 4 * below.std_error + 1e-9
    assert found.top.mean == pytest.approx(2.0, abs=1e-6)
    assert found.bottom.mean == pytest.approx(0.0, abs=1e-9)
    grid = jnp.linspace(-1, 3, 801)
    density = found.density(grid, 0.05).mean
    assert float(jnp.sum(density) * (grid[1] - grid[0])) == pytest.approx(1.0, abs=1e-3)
    assert density[200] > 10 * density[500]


def test_more_steps_than_the_dimension_are_clipped_and_said():
    found = hessian_spectrum(
        quadratic(jnp.arange(1.0, 6.0)), jnp.ones(5), jnp.zeros(1), 0, num_steps=99
    )
    assert found.nodes.shape[1] == 5
    np.testing.assert_array_equal(found.num_steps, 5)
    np.testing.assert_allclose(found.nodes[0], [1, 2, 3, 4, 5], rtol=1e-10)


@pytest.mark.parametrize("kind", ["multiplicative", "additive"])
def test_local_energy_of_a_quadratic(kind):
    """sigma^2 / 2 sum_i H_ii w_i^2 (additive: sigma^2 / 2 tr H), at the stated rate of 68 %."""
    curvatures, w = jnp.asarray(RNG.uniform(0, 3, 30)), jnp.asarray(RNG.normal(size=30))
    gradient = -curvatures * w  # the minimum is at w
    f = lambda v, batch: jnp.sum(curvatures * v**2) / 2 + jnp.vdot(gradient, v) + 0 * batch.sum()
    sigma = jnp.array([0.0, 0.1, 0.3])
    size = w**2 if kind == "multiplicative" else jnp.ones(30)
    expected = sigma**2 / 2 * jnp.sum(curvatures * size)
    hits = []
    for seed in range(60):
        found = local_energy(f, w, jnp.zeros(1), seed, sigma=sigma, kind=kind, num_samples=50)
        assert found.mean[0] == 0
        hits.append(np.abs(found.mean - expected)[1:] < found.std_error[1:])
        # Common random numbers: on a quadratic the curve is one parabola, draw by draw.
        np.testing.assert_allclose(found.mean[2] / found.mean[1], 9.0, rtol=0.3)
    assert np.mean(hits) == pytest.approx(0.68, abs=0.17)


def test_local_energy_masks():
    params = {"a": jnp.ones(3), "b": {"c": jnp.ones(2), "d": jnp.ones(2)}}
    f = lambda p, batch: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)) + 0 * batch.sum()
    g = lambda p, batch: jnp.sum(p["b"]["c"] ** 2) + 0 * batch.sum()
    only_c = lambda path: path[-1].key == "c"
    masked = local_energy(f, params, jnp.zeros(1), 0, sigma=0.1, mask=only_c)
    alone = local_energy(g, params, jnp.zeros(1), 0, sigma=0.1, mask=only_c)
    np.testing.assert_allclose(masked.mean, alone.mean, rtol=1e-9)
    prefix = local_energy(f, params, jnp.zeros(1), 0, sigma=0.1, mask={"a": False, "b": True})
    assert prefix.mean > masked.mean


def test_eight_devices_give_what_one_gives():
    params, data, _ = logistic_problem()
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    placed = jax.device_put(data, NamedSharding(mesh, P("data")))
    params_there = jax.device_put(params, NamedSharding(mesh, P()))
    here, there = (
        (
            hessian_spectrum(logistic_loss, p, d, 0, num_probes=2).nodes,
            local_energy(logistic_loss, p, d, 0, sigma=0.1, num_samples=4).mean,
            trace(logistic_loss, p, d, 0, num_probes=9).mean,
        )
        for p, d in ((params, data), (params_there, placed))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), here, jax.device_get(there)
    )


def test_jit_equals_eager():
    params, data, _ = logistic_problem()
    energy = lambda p: local_energy(logistic_loss, p, data, 0, sigma=0.1, num_samples=4).mean
    np.testing.assert_allclose(jax.jit(energy)(params), energy(params), rtol=1e-12)
    nodes = lambda p: hessian_spectrum(logistic_loss, p, data, 0, num_probes=2).nodes
    np.testing.assert_allclose(jax.jit(nodes)(params), nodes(params), rtol=1e-9)


def test_bad_input_is_refused_before_the_work():
    params, data, _ = logistic_problem()
    estimators = [
        lambda loss, p, d: hessian_spectrum(loss, p, d, 0),
        lambda loss, p, d: trace(loss, p, d, 0),
        lambda loss, p, d: local_energy(loss, p, d, 0, sigma=0.1),
        lambda loss, p, d: exact_hessian(loss, p, d),
    ]
    for estimate in estimators:
        with pytest.raises(ValueError, match="must be a floating-point scalar"):
            estimate(lambda p, batch: batch[1], params, data)
        with pytest.raises(TypeError, match="floating-point arrays, got int"):
            estimate(logistic_loss, params | {"b": jnp.asarray(1)}, data)
        with pytest.raises(ValueError, match="at least one example"):
            estimate(logistic_loss, params, jax.tree.map(lambda leaf: leaf[:0], data))
        with pytest.raises(ValueError, match="equal leading axes"):
            estimate(logistic_loss, params, (data[0], data[1][:9]))
        with pytest.raises(ValueError, match="finite"):
            estimate(logistic_loss, params | {"b": jnp.asarray(jnp.nan)}, data)
    with pytest.raises(ValueError, match=r"sigma must be finite and >= 0, got -0\.1"):
        local_energy(logistic_loss, params, data, 0, sigma=-0.1)
    with pytest.raises(TypeError, match="key must be an integer seed or a key"):
        trace(logistic_loss, params, data, "seed")
