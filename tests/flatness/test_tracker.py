"""The tracker against dense Hessians along a training run, its cost, its state, the edge."""

import functools

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from jax.flatten_util import ravel_pytree

from entropix.flatness import tracker
from tests.flatness import problems

PARAMS, DATA = problems.mlp_problem(examples=40, inputs=4, hidden=4)


def train(follow, params, data, *, loss=problems.mlp, learning_rate=0.1, num_steps, momentum=0.0):
    """Gradient descent with the tracker inside the compiled step; parameters and records."""

    def step(carry, _):
        params, velocity, state = carry
        velocity = jax.tree.map(
            lambda v, g: momentum * v - learning_rate * g, velocity, jax.grad(loss)(params, data)
        )
        state, record = follow.update(state, params, velocity, data)
        moved = jax.tree.map(jnp.add, params, velocity)
        return (moved, velocity, state), (params, velocity, record)

    start = (params, jax.tree.map(jnp.zeros_like, params), follow.init(params))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, None, num_steps)[1])(start)


def loss_along(params, updates, data, step):
    return problems.mlp(jax.tree.map(lambda w, u: w + step * u, params, updates), data)


def dense(params, data, loss=problems.mlp):
    flat, restore = ravel_pytree(params)
    function = lambda v: loss(restore(v), data)
    return jax.grad(function)(flat), jax.hessian(function)(flat)


@pytest.mark.slow
def test_records_are_those_of_the_dense_hessian(x64):
    params, data = problems.mlp_problem(examples=40, inputs=4, hidden=4)
    follow = tracker(problems.mlp, every=7, learning_rate=0.1, tolerance=1e-3, max_products=30)
    path, updates, records = train(follow, params, data, num_steps=30, momentum=0.5)
    for i in range(0, 30, 7):
        record, params, moved = jax.tree.map(lambda leaf, i=i: leaf[i], (records, path, updates))
        u = ravel_pytree(moved)[0]
        gradient, hessian = dense(params, data)
        values, vectors = np.linalg.eigh(hessian)
        assert bool(record.is_new)
        assert int(record.step) == i
        np.testing.assert_allclose(record.sharpness, values[-1], rtol=1e-5)
        assert values[-1] - record.sharpness <= record.residual <= 1e-3 * values[-1]
        cosine = vectors[:, -1] @ gradient / np.linalg.norm(gradient)
        np.testing.assert_allclose(record.alignment, cosine**2, atol=1e-3)
        np.testing.assert_allclose(record.gradient_norm, np.linalg.norm(gradient), rtol=1e-9)
        for curvature, d in ((record.gradient_curvature, gradient), (record.update_curvature, u)):
            np.testing.assert_allclose(curvature, d @ hessian @ d / (d @ d), rtol=1e-6)
        loss_at = functools.partial(loss_along, params, moved, data)
        assert loss_at(0.93 * record.critical_step) < record.loss
        assert loss_at(1.07 * record.critical_step) > record.loss
        np.testing.assert_allclose(record.loss, loss_at(0.0))
        np.testing.assert_allclose(
            record.critical_sharpness, 2 / (0.1 * record.critical_step), rtol=1e-9
        )
        np.testing.assert_allclose(record.stability_limit, 20)
    # In between the last record stands.
    old = jax.tree.map(lambda leaf: leaf[13], records)
    assert int(old.step) == 7
    assert not bool(old.is_new)
    assert float(old.sharpness) == float(records.sharpness[7])


FOLLOW = tracker(problems.mlp, every=2, learning_rate=lambda step: 0.5 / (1 + step))


def gradient_step(params, learning_rate):
    return jax.tree.map(lambda g: -learning_rate * g, jax.grad(problems.mlp)(params, DATA))


@pytest.mark.slow
@pytest.mark.parametrize(("along", "products"), [("gradient", 2), ("other", 3)])
def test_warm_start_needs_few_products_where_the_loss_stands_still(along, products):
    """Updates along the gradient need none of their own, and have its curvature."""
    state, records = FOLLOW.init(PARAMS), []
    updates = gradient_step(PARAMS, 1e-4)
    if along == "other":
        updates = jax.tree.map(lambda u, w: u + 1e-4 * jnp.abs(u) * w, updates, PARAMS)
    for _ in range(7):
        state, record = FOLLOW.update(state, PARAMS, updates, DATA)
        records.append(record)
    assert int(records[0].num_products) > 3
    flat, curved = ravel_pytree(updates)[0], dense(PARAMS, DATA)[1]
    expected = flat @ curved @ flat / (flat @ flat)
    for record in records[2::2]:
        np.testing.assert_allclose(record.update_curvature, expected, rtol=1e-4)
        assert int(record.num_products) == products
        assert int(record.num_passes) <= 3
    for i, record in enumerate(records):
        assert int(record.step) == i - i % 2
        assert float(record.stability_limit) == 4 * (1 + record.step)


def subjaxprs(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else [parameter]:
                if hasattr(inner, "jaxpr"):
                    yield from subjaxprs(inner.jaxpr)


def test_between_measurements_nothing_is_computed():
    traced = jax.make_jaxpr(FOLLOW.update)(FOLLOW.init(PARAMS), PARAMS, PARAMS, DATA)
    (inside,) = traced.jaxpr.eqns
    equations = inside.params["jaxpr"].jaxpr.eqns
    (branch,) = [e for e in equations if e.primitive.name == "cond"]
    idle, busy = branch.params["branches"]
    names = [{e.primitive.name for e in subjaxprs(b.jaxpr)} for b in (idle, busy)]
    assert "dot_general" not in names[0]
    assert "dot_general" in names[1]
    outside = [e.primitive.name for e in equations if e is not branch]
    assert "dot_general" not in outside


@pytest.mark.slow
def test_outside_the_compiled_step_it_is_the_same():
    path, updates, records = train(FOLLOW, PARAMS, DATA, num_steps=3)
    update = jax.jit(FOLLOW.update, donate_argnums=0)
    state = FOLLOW.init(PARAMS)
    types = lambda state: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)
    for i in range(3):
        params, moved = (jax.tree.map(lambda leaf, i=i: leaf[i], t) for t in (path, updates))
        before = types(state)
        state, record = update(state, params, moved, DATA)
        assert types(state) == before
        for name, ours, expected in zip(record._fields, record, records, strict=True):
            assert jnp.shape(ours) == ()
            if name != "residual":
                np.testing.assert_allclose(ours, expected[i], rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_bfloat16_parameters_are_measured_in_float32():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    follow = tracker(problems.mlp, tolerance=1e-3)
    state = follow.init(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.eigenvector)} == {np.dtype(np.float32)}
    updates = jax.tree.map(lambda leaf: -0.1 * leaf, half)
    state, record = follow.update(state, half, updates, DATA)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.eigenvector)} == {np.dtype(np.float32)}
    values = np.linalg.eigvalsh(dense(wide, DATA)[1])
    np.testing.assert_allclose(record.sharpness, values[-1], rtol=1e-3)
    assert values[-1] - record.sharpness < record.residual + 1e-4 * values[-1]


def test_the_largest_eigenvalue_may_be_negative():
    hill = lambda w, x: -jnp.sum(jnp.array([1.0, 2.0, 7.0]) * w**2) / 2 + 0 * jnp.mean(x)
    follow = tracker(hill, tolerance=1e-3)
    gradient = jax.grad(hill)(jnp.ones(3), DATA[0])
    _, record = follow.update(follow.init(jnp.ones(3)), jnp.ones(3), -0.1 * gradient, DATA[0])
    assert float(record.sharpness) == pytest.approx(-1, rel=1e-4)
    _, still = follow.update(follow.init(jnp.ones(3)), jnp.zeros(3), jnp.zeros(3), DATA[0])
    assert float(still.sharpness) == pytest.approx(-1, rel=1e-4)


@pytest.mark.slow
def test_recovers_from_a_loss_that_overflows():
    state = FOLLOW.init(PARAMS)
    spoiled = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    for params in (PARAMS, PARAMS, spoiled, PARAMS, PARAMS):
        state, record = FOLLOW.update(state, params, gradient_step(PARAMS, 0.1), DATA)
        if params is spoiled:
            assert np.isnan(record.sharpness)
    top = np.linalg.eigvalsh(dense(PARAMS, DATA)[1])[-1]
    assert float(record.sharpness) == pytest.approx(top, rel=0.01)


class LinenNetwork(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.Conv(3, (3, 3))(x)
        x = flax.linen.BatchNorm(use_running_average=True)(jax.nn.gelu(x))
        return flax.linen.Dense(2)(x.reshape(len(x), -1))


class NnxNetwork(flax.nnx.Module):
    def __init__(self, rngs):
        self.attention = flax.nnx.MultiHeadAttention(2, 4, 4, decode=False, rngs=rngs)
        self.out = flax.nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.attention(x).mean(1))


@pytest.fixture
def promoted_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("promoted_ranks")
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_flax_states(kind):
    """Convolution and BatchNorm of linen, attention of nnx, against the dense Hessian."""
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    if kind == "linen":
        x = jnp.asarray(rng.normal(size=(6, 4, 4, 1)), jnp.float32)
        variables = LinenNetwork().init(jax.random.key(0), x)
        params = variables["params"]
        apply = lambda p, x: LinenNetwork().apply(variables | {"params": p}, x)
    else:
        x = jnp.asarray(rng.normal(size=(6, 3, 4)), jnp.float32)
        graph, params, rest = flax.nnx.split(NnxNetwork(flax.nnx.Rngs(0)), flax.nnx.Param, ...)
        apply = lambda p, x: flax.nnx.merge(graph, p, rest)(x)
    loss = lambda p, batch: jnp.mean((apply(p, batch[0]) - batch[1]) ** 2)
    follow = tracker(loss, tolerance=1e-3, batch_size=4)
    updates = jax.tree.map(lambda g: -0.1 * g, jax.grad(loss)(params, (x, y)))
    state, record = jax.jit(follow.update)(follow.init(params), params, updates, (x, y))
    top = np.linalg.eigvalsh(dense(params, (x, y), loss)[1])[-1]
    np.testing.assert_allclose(record.sharpness, top, rtol=1e-3)
    assert jax.tree.structure(state.eigenvector) == jax.tree.structure(params)


@pytest.mark.slow
def test_gradient_descent_sharpens_to_the_edge_of_stability_and_stays():
    """Full batches of digits, a tanh network: the sharpness rises to 2 / learning rate."""
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    x = images[:200] / 16
    x = jnp.asarray((x - x.mean()) / x.std() / 8, jnp.float32)
    data = x, jax.nn.one_hot(labels[:200], 10)
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = ((64, 32), (32, 32), (32, 10))
    params = [
        jax.random.normal(k, shape) / shape[0] ** 0.5 for k, shape in zip(keys, sizes, strict=True)
    ]

    def loss(params, batch):
        hidden = jnp.tanh(jnp.tanh(batch[0] @ params[0]) @ params[1])
        return jnp.mean(jnp.sum((hidden @ params[2] - batch[1]) ** 2, 1)) / 2

    follow = tracker(loss, every=50, learning_rate=0.2)
    *_, records = train(follow, params, data, loss=loss, learning_rate=0.2, num_steps=4000)
    at = np.asarray(records.is_new)
    sharpness, limit = np.asarray(records.sharpness)[at], 10.0
    np.testing.assert_allclose(records.stability_limit[at], limit)
    rise, stay = sharpness[:40], sharpness[-25:]
    assert sharpness[0] < 0.4 * limit
    assert np.all(np.diff(rise[::8]) > 0)
    assert 0.95 * limit < np.mean(stay) < 1.1 * limit
    assert np.all((stay > 0.85 * limit) & (stay < 1.2 * limit))
    # At the edge the gradient turns to the top eigenvector, and the update overshoots.
    assert np.mean(np.asarray(records.alignment)[at][:20]) < 0.1
    assert np.mean(np.asarray(records.alignment)[at][-25:]) > 0.4
    assert 0.8 < np.median(np.asarray(records.critical_step)[at][-25:]) < 1.3
    assert np.asarray(records.loss)[at][-1] < 0.5 * np.asarray(records.loss)[at][10]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"loss": 3}, TypeError, "loss .*got 3"),
        ({"every": 0}, ValueError, "every .*>= 1, got 0"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate .*> 0, got -1.0"),
        ({"tolerance": 0}, ValueError, "tolerance .*> 0, got 0"),
        ({"max_products": 2}, ValueError, "max_products .*>= 3, got 2"),
        ({"batch_size": 0}, ValueError, "batch_size .*>= 1, got 0"),
        ({"key": 0.5}, TypeError, "key .*got 0.5"),
    ],
)
def test_bad_input(changed, error, message):
    with pytest.raises(error, match=message):
        tracker(**({"loss": problems.mlp} | changed))


def test_bad_parameters():
    with pytest.raises(TypeError, match=r"params .*int"):
        tracker(problems.mlp).init({"w": jnp.ones(2, int)})
    with pytest.raises(ValueError, match=r"params .*\{\}"):
        tracker(problems.mlp).init({})
