"""Loss and error of a network at given weights, as functions for the estimators of flatness."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.common.network import BatchStats, Network, Params

Examples = tuple[jax.Array, jax.Array]


class Objectives:
    """A network's loss and error in evaluation mode, on examples with statistics beside them.

    The estimators compile once per loss function; a loss that closed over the batch statistics
    would be another function for each seed and method.
    """

    def __init__(self, network: Network) -> None:
        """Of one network."""
        self._network = network

    def data(self, examples: Examples, stats: BatchStats) -> Any:
        """The examples, each with the batch statistics beside it."""
        count = len(examples[0])
        repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), stats)
        return *examples, repeated

    def loss(self, params: Params, data: Any) -> jax.Array:
        """Mean cross entropy."""
        logits = self._logits(params, data)
        return optax.softmax_cross_entropy_with_integer_labels(logits, data[1]).mean()

    def error(self, params: Params, data: Any) -> jax.Array:
        """Share of the examples got wrong."""
        wrong = jnp.argmax(self._logits(params, data), axis=-1) != data[1]
        return wrong.astype(jnp.float32).mean()

    def _logits(self, params: Params, data: Any) -> jax.Array:
        inputs, _, repeated = data
        stats = jax.tree.map(lambda leaf: leaf[0], repeated)
        return self._network.logits(params, stats, inputs)
