"""Flax: batch statistics of averaged weights; training loops with BatchNorm and Dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training import train_state

import entropix
from entropix.nn import eval_model, recompute_batch_stats


@pytest.fixture(autouse=True)
def strict_ranks():
    """Flax promotes ranks."""


def make_data(seed=0, n=96):
    """Two noisy rings: not linearly separable."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    angle = rng.uniform(0, 2 * np.pi, n)
    radius = 1 + y + 0.15 * rng.normal(size=n)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y)


class LinenNet(linen.Module):
    momentum: float = 0.9

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(32)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)
        x = linen.relu(x)
        x = linen.Dropout(0.1, deterministic=not train)(x)
        x = linen.Dense(32)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return linen.Dense(2)(linen.relu(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


def batches_of(x, size):
    return [x[i : i + size] for i in range(0, len(x), size)]


def linen_apply(model, params):
    @jax.jit
    def apply(batch_stats, batch):
        variables = {"params": params, "batch_stats": batch_stats}
        _, new = model.apply(
            variables,
            batch,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return new["batch_stats"]

    return apply


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("size", [96, 32, 40])
@pytest.mark.slow
def test_batch_stats_are_the_weighted_average_over_batches(momentum, size):
    x, _ = make_data()
    model = LinenNet(momentum)
    variables = model.init(jax.random.key(1), x, train=False)
    trained = jax.tree.map(lambda s: s + 3.0, variables["batch_stats"])
    stats = recompute_batch_stats(
        linen_apply(model, variables["params"]), trained, iter(batches_of(x, size))
    )
    first = variables["params"]["Dense_0"]
    hidden = [np.asarray(b @ first["kernel"] + first["bias"], float) for b in batches_of(x, size)]
    weights = [len(h) for h in hidden]
    mean = np.average([h.mean(0) for h in hidden], axis=0, weights=weights)
    variance = np.average([h.var(0) for h in hidden], axis=0, weights=weights)
    np.testing.assert_allclose(stats["BatchNorm_0"]["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["BatchNorm_0"]["var"], variance, rtol=1e-4)
    assert jax.tree.structure(stats) == jax.tree.structure(trained)


def test_batch_stats_errors():
    with pytest.raises(ValueError, match=r"batches must yield at least one batch, .*got none"):
        recompute_batch_stats(lambda s, b: s, {"mean": jnp.zeros(2)}, [])
    with pytest.raises(ValueError, match=r"apply must return .* got m = 1.0 at \['count'\]"):
        recompute_batch_stats(
            lambda s, b: {"count": s["count"] + 1}, {"count": jnp.zeros(())}, [jnp.ones(3)]
        )
    diverged = lambda stats, batch: {"mean": 0.9 * stats["mean"] + 0.1 * batch.mean() * np.nan}
    with pytest.raises(ValueError, match=r"finite, got nan at \['mean'\]"):
        recompute_batch_stats(diverged, {"mean": jnp.zeros(())}, [jnp.ones((2, 1))])


OPTIMIZERS = {
    "entropy_sgd": entropix.entropy_sgd(
        0.5, inner_learning_rate=0.05, inner_steps=5, momentum=None, gamma=0.01
    ),
    "entropy_adam": entropix.entropy_adam(0.05, inner_learning_rate=0.05, inner_steps=5),
    "chained": optax.chain(
        optax.clip_by_global_norm(5.0), entropix.entropy_sgd(0.5, inner_steps=5, momentum=None)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_linen_train_state_loop(name):
    x, y = make_data()
    test_x, test_y = make_data(1)
    model = LinenNet()
    variables = model.init(jax.random.key(0), x, train=False)

    class TrainState(train_state.TrainState):
        batch_stats: dict

    state = TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=OPTIMIZERS[name],
        batch_stats=variables["batch_stats"],
    )

    @jax.jit
    def step(state, x, y):
        def loss_fn(params):
            logits, new = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                x, train=True, mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(jax.random.key(2), state.step)},
            )  # fmt: skip
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return loss, new["batch_stats"]

        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=batch_stats)

    for epoch in range(100):
        order = np.random.default_rng(epoch).permutation(len(x))
        for batch in batches_of(order, 32):
            state = step(state, x[batch], y[batch])
    anchor = entropix.eval_params(state.opt_state, state.params)
    stats = recompute_batch_stats(linen_apply(model, anchor), state.batch_stats, batches_of(x, 32))
    logits = model.apply({"params": anchor, "batch_stats": stats}, test_x, train=False)
    assert jnp.mean(logits.argmax(1) == test_y) > 0.9


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.slow
def test_nnx_optimizer_loop(name):
    x, y = make_data()
    test_x, test_y = make_data(1)
    model = NnxNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, OPTIMIZERS[name], wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss_fn)(model))

    for epoch in range(100):
        order = np.random.default_rng(epoch).permutation(len(x))
        for batch in batches_of(order, 32):
            step(model, optimizer, x[batch], y[batch])
    arrays = (nnx.Param, nnx.BatchStat)
    held = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(model, arrays)))
    evaluated = eval_model(model, optimizer, batches_of(x, 32))
    assert jnp.mean(evaluated(test_x).argmax(1) == test_y) > 0.9
    # The model in training is left as it was, in training mode.
    jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(nnx.state(model, arrays)), held)
    assert not model.norm.use_running_average
    assert evaluated.norm.use_running_average


@pytest.mark.slow
def test_opaque_use_leaves_batch_statistics_to_the_caller():
    """One update is one outer step on L batches, and the running statistics are touched once."""
    x, y = make_data()
    model = LinenNet()
    variables = model.init(jax.random.key(0), x, train=False)
    tx = entropix.entropy_sgd(
        0.5, inner_learning_rate=0.05, inner_steps=3, momentum=None, opaque=True
    )
    params, batch_stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)
    xs, ys = x.reshape(3, 32, 2), y.reshape(3, 32)

    def loss(params, batch_stats, x, y):
        logits, new = model.apply(
            {"params": params, "batch_stats": batch_stats}, x, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

    @jax.jit
    def outer_step(params, batch_stats, state):
        def grad_fn(params, step):
            return jax.grad(lambda p: loss(p, batch_stats, xs[step], ys[step])[0])(params)

        updates, state = tx.update(params, state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        return params, loss(params, batch_stats, xs[0], ys[0])[1], state

    before = loss(params, batch_stats, x, y)[0]
    for _ in range(60):
        params, batch_stats, state = outer_step(params, batch_stats, state)
    assert loss(params, batch_stats, x, y)[0] < 0.3 * before


@pytest.mark.slow
def test_center_of_replicas_needs_its_own_batch_stats():
    """Averaged statistics do not fit averaged weights; recomputed ones do."""
    x, _ = make_data()
    model = LinenNet()
    variables = jax.vmap(lambda key: model.init(key, x, train=False))(
        jax.random.split(jax.random.key(0), 3)
    )
    center = jax.tree.map(lambda p: p.mean(0), variables["params"])
    averaged = jax.tree.map(lambda s: s.mean(0), variables["batch_stats"])
    recomputed = recompute_batch_stats(linen_apply(model, center), averaged, [x])
    hidden = x @ center["Dense_0"]["kernel"] + center["Dense_0"]["bias"]
    np.testing.assert_allclose(
        recomputed["BatchNorm_0"]["mean"], hidden.mean(0), rtol=1e-4, atol=1e-5
    )
    assert jnp.abs(recomputed["BatchNorm_0"]["var"] - averaged["BatchNorm_0"]["var"]).max() > 0.1


def test_a_model_evaluated_again_is_not_compiled_again():
    """Nor one of the same structure with other weights; and plain optimizers keep the weights."""
    traces = []

    class Counting(NnxNet):
        def __call__(self, x):
            traces.append(1)
            return super().__call__(x)

    x, _ = make_data()
    for seed in range(2):
        model = Counting(nnx.Rngs(seed))
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        for _ in range(2):
            evaluated = eval_model(model, optimizer, batches_of(x, 48))
    assert len(traces) == 1
    np.testing.assert_array_equal(evaluated.first.kernel[...], model.first.kernel[...])
    hidden = np.asarray(model.first(x), np.float64)
    np.testing.assert_allclose(evaluated.norm.mean[...], hidden.mean(0), rtol=1e-4, atol=1e-5)
