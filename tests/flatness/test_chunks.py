"""Means over chunks: any chunk size gives the whole mean, and float32 sums stay exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.flatness._chunks import mean_over_chunks, num_examples

DATA = {
    "x": jnp.asarray(np.random.default_rng(0).normal(size=(1000, 3)), jnp.float32),
    "y": jnp.arange(1000, dtype=jnp.int32),
}


def statistics(batch):
    return {"mean": batch["x"].mean(0), "square": jnp.mean(batch["y"].astype(jnp.float32) ** 2)}


@pytest.mark.parametrize("batch_size", [1, 7, 333, 500, 999, 1000, 5000])
def test_every_chunk_size_gives_the_whole_mean(batch_size):
    whole = mean_over_chunks(statistics, DATA, None)
    chunked = jax.jit(lambda data: mean_over_chunks(statistics, data, batch_size))(DATA)
    for name in whole:
        np.testing.assert_allclose(chunked[name], whole[name], rtol=3e-6, atol=1e-7)


def test_a_short_last_chunk_is_weighted_by_its_examples():
    """Means of squares of chunk means tell the chunks apart: 3, 3 and 1 of the examples."""
    x = jnp.arange(7.0)
    seen = mean_over_chunks(lambda batch: jnp.mean(batch) ** 2, x, 3)
    assert seen == pytest.approx((3 * 2.0**2 + 3 * 3.0**2 + 1 * 6.0**2) / 7)


def test_sums_of_many_chunks_keep_single_precision():
    """A plain float32 sum of these terms is off by 1e-4 or more, the compensated one by an ulp."""
    x = np.random.default_rng(1).uniform(size=200_000).astype(np.float32)
    mean = jax.jit(lambda x: mean_over_chunks(jnp.mean, x, 1))(x)
    assert float(mean) == pytest.approx(x.astype(np.float64).mean(), rel=1.5e-7)


def test_gradients_flow_through_the_chunks():
    grad = jax.grad(lambda w: mean_over_chunks(lambda x: jnp.mean(x * w) ** 2, DATA["x"], 333))(2.0)
    assert jnp.isfinite(grad)
    assert grad > 0


def test_num_examples():
    assert num_examples(DATA) == 1000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data .*got {}"),
        ({"x": jnp.zeros((0, 3))}, r"at least one example, got none at data\['x'\]"),
        ({"x": jnp.zeros(())}, r"leading example axis, got a scalar at data\['x'\]"),
        (
            {"x": jnp.zeros((5, 3)), "y": jnp.zeros(4)},
            r"got 5 examples at data\['x'\] and 4 at data\['y'\]",
        ),
    ],
)
def test_bad_data_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        num_examples(data)


def test_bad_batch_sizes():
    with pytest.raises(ValueError, match=r"batch_size .*got 0"):
        mean_over_chunks(statistics, DATA, 0)
    with pytest.raises(TypeError, match=r"batch_size .*got 2.5"):
        mean_over_chunks(statistics, DATA, 2.5)
