"""Networks: sizes, any image, training and evaluation mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common.models import MODELS, Dense, LeNet
from benchmarks.common.network import Network


def make(name, shape, classes=10, dropout=None):
    model = MODELS[name]
    return Network(model.build(classes, model.dropout if dropout is None else dropout), shape)


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].block is None])
def test_every_model_takes_every_image(name, shape):
    network = make(name, shape, classes=7)
    params, stats = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    logits = jax.eval_shape(network.logits, params, stats, images)
    assert logits.shape == (5, 7)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        # 784-1024-1024-10 with biases.
        ("mnistfc", (28, 28, 1), 784 * 1024 + 1024 * 1024 + 1024 * 10 + 1024 + 1024 + 10),
        # 5x5 filters 1-20-50, 4x4x50-500-10; scale and shift of each normalization.
        ("lenet", (28, 28, 1), 500 + 40 + 25_000 + 100 + 400_000 + 1000 + 5010),
        # The small networks of the Entropy-SGD paper, and that of SGD as variational inference.
        ("small_mnistfc", (28, 28, 1), 50_890),
        ("small_lenet", (28, 28, 1), 47_658),
        ("tiny_lenet", (28, 28, 1), 13_338),
        # All-CNN-C without biases, scale and shift of each normalization.
        (
            "allcnn",
            (32, 32, 3),
            9 * (3 * 96 + 2 * 96 * 96 + 96 * 192 + 3 * 192 * 192)
            + 192 * 192
            + 192 * 10
            + 2 * (3 * 96 + 5 * 192 + 10),
        ),
    ],
)
def test_sizes_of_the_papers(name, shape, count):
    params, _ = jax.eval_shape(make(name, shape).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    network = Network(Dense((32,), 10, 0.5), (4, 4, 1))
    params, stats = jax.jit(network.init)(jax.random.key(0))
    images, labels = jax.random.normal(jax.random.key(1), (6, 4, 4, 1)), jnp.zeros(6, jnp.int32)
    losses = [
        jax.jit(network.training_loss)(params, stats, images, labels, jax.random.key(seed))[0]
        for seed in (2, 3, 2)
    ]
    assert losses[0] == losses[2] != losses[1]
    np.testing.assert_array_equal(
        network.logits(params, stats, images), network.logits(params, stats, images)
    )


@pytest.mark.slow
def test_batch_statistics_move_in_training_and_only_there():
    network = Network(LeNet(10, 0.25, filters=(4, 6), units=16), (8, 8, 1))
    params, stats = jax.jit(network.init)(jax.random.key(0))
    images, labels = 3 + jax.random.normal(jax.random.key(1), (6, 8, 8, 1)), jnp.zeros(6, jnp.int32)
    _, moved = jax.jit(network.training_loss)(params, stats, images, labels, jax.random.key(2))
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), stats, moved)
    assert all(difference > 0 for difference in jax.tree.leaves(differences))
    # Without dropout the pass that settles the statistics needs no key and repeats exactly.
    settled = jax.jit(network.training_stats)(params, stats, images)
    assert jax.tree.structure(settled) == jax.tree.structure(stats)
