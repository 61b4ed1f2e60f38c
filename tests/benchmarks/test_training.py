"""Training of all seeds at once equals training each alone, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix
from benchmarks.common import data
from benchmarks.common.baselines import BASELINES, averaged
from benchmarks.common.batches import BatchOrder
from benchmarks.common.checkpoints import Checkpoints
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.family import ALL_METHODS, FAMILY
from benchmarks.common.methods import METHODS, Course
from benchmarks.common.models import Dense, LeNet
from benchmarks.common.network import Network
from benchmarks.common.scene import Scene, TrainingOptions
from benchmarks.common.training import STEPS_PER_CALL, Trainer

SEEDS = (0, 7)
STEPS = 40
WHOLE = 120


# Of the methods those that the others are variations of.
QUICK = {"replicated_sgd"}


def some_slow(*groups):
    """All names, those that are not quick marked as slow."""
    names = [name for group in groups for name in group]
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@functools.cache
def images():
    digits = data.load("digits")
    return jax.device_put((digits.x_train, digits.y_train))


def make_network(dropout=0.0):
    return Network(Dense((32,), 10, dropout), (8, 8, 1))


def make_trainer(
    name, *, network=None, seeds=SEEDS, steps=STEPS, replicas=3, devices=1, **chosen
):  # fmt: skip
    method = ALL_METHODS[name]
    values = method.hyperparameters("mlp", chosen)
    return Trainer(
        network or make_network(),
        lambda key, axis_name: method.build(
            values, Course(steps, 1e-3, axis_name if method.replicated else ()), key
        ),
        images(),
        seeds,
        batch_size=32,
        replicas=replicas if method.replicated else 1,
        weights=method.weights,
        smooth=method.smooth and method.smooth(values),
        devices=devices,
        alike=method.alike,
    )


@functools.cache
def trainer_of(name):
    """Of a network with dropout, compiled once for all tests of this file."""
    return make_trainer(name, network=make_network(dropout=0.2), steps=WHOLE)


@functools.cache
def end_of(name):
    """Where the training of a method ends."""
    trainer = trainer_of(name)
    return trainer.advance(trainer.init(), WHOLE)[0]


@functools.cache
def evaluator():
    return Evaluator(make_network(), images(), images())


def same_bits(first, second):
    """Asserts that two trees hold the same numbers; keys are compared by their data."""

    def raw(leaf):
        typed = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if typed else leaf

    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(raw(a), raw(b), strict=True), first, second
    )


@pytest.mark.slow
def test_seeds_together_equal_one_alone():
    """Of replicas of Entropy-SGD, which have all that could go wrong."""
    alone = make_trainer("parle", network=make_network(dropout=0.2), steps=WHOLE, seeds=SEEDS[1:])
    one, _ = alone.advance(alone.init(), WHOLE)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:, 1], b[:, 0], atol=2e-4),
        end_of("parle").params, one.params,
    )  # fmt: skip


@pytest.mark.slow
def test_workers_of_diloco_start_alike_and_replicas_do_not():
    for name, alike in (("diloco", True), ("replicated_sgd", False)):
        kernel = make_trainer(name).init().params["Dense_0"]["kernel"]
        assert bool((kernel[0] == kernel[1]).all()) == alike, name
        # Another seed is another network.
        assert not (kernel[0, 0] == kernel[0, 1]).all()


@pytest.mark.slow
def test_the_networks_of_all_methods_are_drawn_by_one_program(monkeypatch):
    drawn, init = [], Network.init
    monkeypatch.setattr(Network, "init", lambda self, key: drawn.append(key) or init(self, key))
    network = Network(Dense((31,), 10, 0.0), (8, 8, 1))
    names = ("sgd", "adam", "entropy_sgd")
    trainers = [make_trainer(name, network=network, steps=WHOLE) for name in names]
    drawn.clear()
    for trainer in trainers:
        trainer.init()
    assert len(drawn) == 1


@pytest.mark.slow
def test_replicated_methods_share_the_search_for_their_coupling(monkeypatch):
    names = ("replicated_sgd", "replicated_sgd_y")
    scene = Scene(TrainingOptions(seeds=2), names, points=1)
    glances, glance = [], Evaluator.glance
    monkeypatch.setattr(
        Evaluator, "glance", lambda self, *weights: glances.append(1) or glance(self, *weights)
    )
    for name in names:
        scene.trainer(name)
    assert len(glances) == 2


@pytest.mark.slow
def test_sgd_equals_a_plain_optax_loop():
    trainer = make_trainer("sgd")
    state = trainer.init()
    params = jax.tree.map(lambda leaf: jnp.copy(leaf[0, 1]), state.params)
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9, nesterov=True)
    opt_state = tx.init(params)
    network = make_network()

    @jax.jit
    def step(params, opt_state, places):
        def loss(params):
            logits = network.logits(params, {}, images()[0][places])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, images()[1][places]
            ).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for places in BatchOrder(len(images()[0]), 32, SEEDS).indices(0, STEPS)[:, 1, 0]:
        params, opt_state = step(params, opt_state, places)
    state, _ = trainer.advance(state, STEPS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0, 1], b, atol=2e-5), state.params, params
    )


@pytest.mark.parametrize("name", some_slow(METHODS, BASELINES, FAMILY))
@pytest.mark.slow
def test_every_method_learns(name):
    scores = evaluator().scores(*trainer_of(name).evaluation_weights(end_of(name)), whole=True)
    # Chance is 0.9.
    assert max(scores.train_error) < 0.5
    assert np.isfinite(scores.train_loss).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_changes_no_bit(name, tmp_path):
    trainer = trainer_of(name)
    state, _ = trainer.advance(trainer.init(), 53)
    checkpoints = Checkpoints(tmp_path, print)
    checkpoints.save(53, state, {"seconds": 0.1})
    checkpoints.close()
    reopened = Checkpoints(tmp_path, print)
    state, restored = reopened.latest(lambda _: trainer.shapes())
    reopened.close()
    assert restored == {"seconds": 0.1}
    state, _ = trainer.advance(state, WHOLE)
    same_bits(end_of(name), state)


@pytest.mark.parametrize("name", some_slow(["replicated_sgd", "elastic_sgd", "replicated_adam"]))
@pytest.mark.slow
def test_replicas_on_several_devices_end_as_on_one(name):
    on_one = trainer_of(name)
    on_three = make_trainer(name, network=make_network(dropout=0.2), steps=WHOLE, devices=3)
    one, _ = on_one.advance(on_one.init(), 22)
    three, _ = on_three.advance(on_three.init(), 22)
    assert len(jax.tree.leaves(three.params)[0].sharding.device_set) == 3
    expected, _ = on_one.evaluation_weights(one)
    actual, _ = on_three.evaluation_weights(three)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), actual, expected)


@pytest.mark.slow
def test_more_steps_than_one_call_holds():
    trainer = trainer_of("sgd")
    assert WHOLE > STEPS_PER_CALL
    state = trainer.init()
    for stop in (3, WHOLE - 1, WHOLE):
        state, _ = trainer.advance(state, stop)
    same_bits(end_of("sgd"), state)


@pytest.mark.parametrize("name", sorted(QUICK))
def test_counters_are_shared_so_that_branches_stay_branches(name):
    state = jax.eval_shape(trainer_of(name).init)
    shapes = [
        leaf.shape for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.integer)
    ]
    assert set(shapes) == {()}


@pytest.mark.slow
def test_seeds_differ_and_first_replica_starts_as_a_plain_network():
    plain, replicated = (trainer_of(name).init() for name in ("sgd", "replicated_sgd"))
    same_bits(plain.params, jax.tree.map(lambda leaf: leaf[:1], replicated.params))
    kernel = replicated.params["Dense_0"]["kernel"]
    assert kernel.shape == (3, 2, 64, 32)
    assert len({float(one) for one in kernel[:, :, 0, 0].ravel()}) == 6


@pytest.mark.slow
def test_noise_differs_between_seeds_and_replicas():
    for name, count in (("entropy_sgd", 2), ("parle", 6)):
        state = trainer_of(name).init()
        (_, found), *_ = optax.tree.get_all_with_path(state.opt_state, "EntropyDescentState")
        keys = jax.random.key_data(found.key).reshape(-1, 2).tolist()
        assert len({tuple(key) for key in keys}) == count


@pytest.mark.slow
def test_evaluation_weights_are_anchor_and_center():
    entropic = trainer_of("entropy_sgd")
    state, _ = entropic.advance(entropic.init(), 30)
    weights, _ = entropic.evaluation_weights(state)
    anchor = entropix.eval_params(state.opt_state, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), weights, anchor)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b[0]).max()), weights, state.params)
    assert min(jax.tree.leaves(moved)) > 0

    state = end_of("replicated_sgd")
    weights, _ = trainer_of("replicated_sgd").evaluation_weights(state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.mean(0), atol=1e-6), weights, state.params
    )


def test_averages_are_those_of_the_formula():
    tx = averaged(optax.sgd(0.5), lambda step: jnp.maximum(0.25, 1 / (step + 1.0)))
    x, seen = jnp.array([8.0, -4.0]), []
    state = tx.init(x)
    for _ in range(6):
        updates, state = tx.update(x, state, x)
        x = optax.apply_updates(x, updates)
        seen.append(x)
    mean = np.mean(seen[:4], axis=0)
    for one in seen[4:]:
        mean = 0.75 * mean + 0.25 * np.asarray(one)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-6)


def test_the_ascent_of_asam_is_that_of_the_paper():
    """rho T^2 g / |T g| with T = |w| + eta."""
    values = ALL_METHODS["asam"].hyperparameters("mlp", {})
    tx = ALL_METHODS["asam"].build(values, Course(steps=4), jax.random.key(0))
    w, g = jnp.array([1.0, -2.0, 0.0]), jnp.array([0.3, 0.1, -5.0])
    updates, _ = tx.update(g, tx.init(w), w)
    size = np.abs(w) + values["eta"]
    expected = values["rho"] * size**2 * g / np.linalg.norm(size * g)
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_sam_at_zero_gradient_stays_finite():
    tx = METHODS["sam"].build(
        METHODS["sam"].hyperparameters("mlp", {}), Course(steps=4, gamma=0.0), jax.random.key(0)
    )
    params = jnp.ones(3)
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(jnp.zeros(3), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params, 1)


@pytest.mark.slow
def test_scores_equal_numpy_and_statistics_are_recomputed():
    network = Network(LeNet(10, 0.0, filters=(4, 6), units=16), (8, 8, 1))
    some = images()[0][:400], images()[1][:400]
    draws = [jax.jit(network.init)(jax.random.key(seed)) for seed in SEEDS]
    params, stats = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    test = some[0][:300], some[1][:300]
    evaluator = Evaluator(network, some, test)
    settled = evaluator.statistics(params, stats)
    scores = evaluator.scores(params, settled, whole=True)
    assert len(scores.train_error) == len(SEEDS)
    for seed in range(len(SEEDS)):
        one, its_stats = jax.tree.map(lambda leaf, at=seed: leaf[at], (params, settled))
        logits = np.asarray(jax.jit(network.logits)(one, its_stats, some[0]), np.float64)
        labels = np.asarray(some[1])
        wrong = np.argmax(logits, -1) != labels
        loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]
        np.testing.assert_allclose(scores.train_error[seed], wrong.mean(), atol=1e-6)
        np.testing.assert_allclose(scores.train_loss[seed], loss.mean(), rtol=1e-4)
        np.testing.assert_allclose(scores.test_error[seed], wrong[:300].mean(), atol=1e-6)
    first = draws[0][0]["Conv_0"]["kernel"]
    answers = jax.lax.conv_general_dilated(
        some[0], first, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean = settled["BatchNorm_0"]["mean"][0]
    np.testing.assert_allclose(mean, answers.mean((0, 1, 2)), atol=1e-3)
