"""Training of all seeds at once equals training each alone, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import entropix
from benchmarks.common import data
from benchmarks.common.batches import BatchOrder
from benchmarks.common.checkpoints import Checkpoints, Progress
from benchmarks.common.evaluation import Evaluator, unstacked
from benchmarks.common.family import ALL_METHODS, FAMILY
from benchmarks.common.methods import METHODS, Course
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.common.training import STEPS_PER_CALL, Trainer

SEEDS = (0, 7)
STEPS = 40


@pytest.fixture(scope="module")
def images():
    digits = data.load("digits")
    return jax.device_put((digits.x_train, digits.y_train))


def make_network(model="mlp", dropout=0.0):
    return Network(MODELS[model].build(10, dropout), (8, 8, 1))


def make_trainer(
    name, images, *, network=None, seeds=SEEDS, steps=STEPS, batch_size=32, replicas=3, devices=1,
    **chosen,
):  # fmt: skip
    method = ALL_METHODS[name]
    values = method.hyperparameters("mlp", chosen)
    course = Course(steps=steps, gamma=1e-3)
    return Trainer(
        network or make_network(),
        method,
        lambda key: method.build(values, course, key),
        images,
        seeds,
        batch_size=batch_size,
        replicas=replicas if method.replicated else 1,
        smooth=method.smooth and method.smooth(values),
        devices=devices,
    )


def same_bits(first, second):
    """Asserts that two trees hold the same numbers; keys are compared by their data."""

    def raw(leaf):
        typed = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if typed else leaf

    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(raw(a), raw(b), strict=True), first, second
    )


@pytest.mark.parametrize("name", ["sam", "entropy_sgd", "replicated_sgd"])
def test_seeds_together_equal_one_alone(name, images):
    together = make_trainer(name, images)
    alone = make_trainer(name, images, seeds=SEEDS[1:])
    both, _ = together.advance(together.init(), 0, STEPS)
    one, _ = alone.advance(alone.init(), 0, STEPS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b[0], atol=2e-4), both.params, one.params
    )


def test_sgd_equals_a_plain_optax_loop(images):
    trainer = make_trainer("sgd", images)
    state = trainer.init()
    params = unstacked(state.params, len(SEEDS))[1]
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, STEPS), momentum=0.9, nesterov=True)
    opt_state = tx.init(params)
    network = make_network()

    @jax.jit
    def step(params, opt_state, places):
        def loss(params):
            logits = network.logits(params, {}, images[0][places])
            return optax.softmax_cross_entropy_with_integer_labels(logits, images[1][places]).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for places in BatchOrder(len(images[0]), 32, SEEDS).indices(0, STEPS)[:, 1, 0]:
        params, opt_state = step(params, opt_state, places)
    state, _ = trainer.advance(state, 0, STEPS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=2e-5), state.params, params)


@pytest.mark.parametrize("name", FAMILY)
def test_the_rest_of_the_family_learns(name, images):
    trainer = make_trainer(name, images, steps=120)
    state, _ = trainer.advance(trainer.init(), 0, 120)
    evaluator = Evaluator(make_network(), images, images)
    scores = evaluator.scores(*trainer.evaluation_weights(state), whole=False)
    # Chance is 0.9; replicas of SAM, with 60 steps each, have only begun to agree.
    assert max(scores.train_error) < (0.5 if name == "replicated_sam" else 0.3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_a_checkpoint_changes_no_bit(name, images, tmp_path):
    trainer = make_trainer(name, images, network=make_network("mlp", dropout=0.2), steps=120)
    whole, _ = trainer.advance(trainer.init(), 0, 120)
    evaluator = Evaluator(make_network(), images, images)
    scores = evaluator.scores(*trainer.evaluation_weights(whole), whole=True)
    # Chance is 0.9.
    assert max(scores.train_error) < 0.3
    assert np.isfinite(scores.train_loss).all()

    state, _ = trainer.advance(trainer.init(), 0, 53)
    progress = Progress(step=53, seconds=0.1, curve=[{"gradients": 53, "test_error": [0.1, 1 / 3]}])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, progress)
    checkpoints.close()
    reopened = Checkpoints(tmp_path)
    state, restored = reopened.latest(trainer.init())
    reopened.close()
    assert restored == progress
    state, _ = trainer.advance(state, 53, 120)
    same_bits(whole, state)


@pytest.mark.parametrize("name", ["replicated_sgd", "elastic_sgd", "parle"])
def test_replicas_on_several_devices_end_as_on_one(name, images):
    on_one, on_four = (
        make_trainer(name, images, replicas=4, devices=devices) for devices in (1, 4)
    )
    one, _ = on_one.advance(on_one.init(), 0, 22)
    four, _ = on_four.advance(on_four.init(), 0, 22)
    assert len(jax.tree.leaves(four.params)[0].sharding.device_set) == 4
    expected, _ = on_one.evaluation_weights(one)
    actual, _ = on_four.evaluation_weights(four)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), actual, expected)


def test_no_checkpoint_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.latest(None) is None
    checkpoints.close()


def test_more_steps_than_one_call_holds(images):
    steps = STEPS_PER_CALL + 5
    trainer = make_trainer("sgd", images, steps=steps)
    whole, _ = trainer.advance(trainer.init(), 0, steps)
    state = trainer.init()
    for start, stop in [(0, 3), (3, steps - 1), (steps - 1, steps)]:
        state, _ = trainer.advance(state, start, stop)
    same_bits(whole, state)


@pytest.mark.parametrize("name", METHODS)
def test_counters_are_shared_so_that_branches_stay_branches(name, images):
    trainer = make_trainer(name, images)
    state = jax.eval_shape(trainer.init)
    shapes = [
        leaf.shape for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.integer)
    ]
    assert set(shapes) == {()}


def test_seeds_differ_and_first_replica_starts_as_a_plain_network(images):
    plain, replicated = (make_trainer(name, images).init() for name in ("sgd", "replicated_sgd"))
    same_bits(plain.params, jax.tree.map(lambda leaf: leaf[:, 0], replicated.params))
    kernel = replicated.params["Dense_0"]["kernel"]
    assert kernel.shape == (2, 3, 64, 64)
    firsts = {float(kernel[seed, replica, 0, 0]) for seed in range(2) for replica in range(3)}
    assert len(firsts) == 6


def test_noise_differs_between_seeds(images):
    trainer = make_trainer("entropy_sgd", images, noise=0.1)
    keys = entropix_keys(trainer.init())
    assert len({tuple(key) for key in keys}) == len(SEEDS)


def entropix_keys(state):
    found = optax.tree.get(state.opt_state, "EntropyDescentState")
    return np.asarray(jax.random.key_data(found.key)).tolist()


def test_evaluation_weights_are_anchor_and_center(images):
    entropic = make_trainer("entropy_sgd", images)
    state, _ = entropic.advance(entropic.init(), 0, 30)
    weights, _ = entropic.evaluation_weights(state)
    anchor = entropix.eval_params(
        optax.tree.get(state.opt_state, "EntropyDescentState"), state.params
    )
    same_bits(weights, anchor)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), weights, state.params)
    assert min(jax.tree.leaves(moved)) > 0

    replicated = make_trainer("replicated_sgd", images)
    state, _ = replicated.advance(replicated.init(), 0, 10)
    weights, _ = replicated.evaluation_weights(state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.mean(1), atol=1e-6), weights, state.params
    )


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


def test_scores_equal_numpy_and_statistics_are_recomputed(images):
    network = make_network("lenet")
    images = images[0][:400], images[1][:400]
    draws = [jax.jit(network.init)(jax.random.key(seed)) for seed in SEEDS]
    params, stats = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    test = images[0][:300], images[1][:300]
    evaluator = Evaluator(network, images, test)
    settled = evaluator.statistics(params, stats)
    scores = evaluator.scores(params, settled, whole=True)
    assert len(scores.train_error) == len(SEEDS)
    for seed in range(len(SEEDS)):
        one, its_stats = jax.tree.map(lambda leaf, at=seed: leaf[at], (params, settled))
        logits = np.asarray(jax.jit(network.logits)(one, its_stats, images[0]), np.float64)
        labels = np.asarray(images[1])
        wrong = np.argmax(logits, -1) != labels
        loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]
        np.testing.assert_allclose(scores.train_error[seed], wrong.mean(), atol=1e-6)
        np.testing.assert_allclose(scores.train_loss[seed], loss.mean(), rtol=1e-4)
        np.testing.assert_allclose(scores.test_error[seed], wrong[:300].mean(), atol=1e-6)
    first = draws[0][0]["Conv_0"]["kernel"]
    answers = jax.lax.conv_general_dilated(
        images[0], first, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean = settled["BatchNorm_0"]["mean"][0]
    np.testing.assert_allclose(mean, answers.mean((0, 1, 2)), atol=1e-3)
