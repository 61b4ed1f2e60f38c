"""A Flax model as the pure functions that training and evaluation need."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

Params = Any
BatchStats = Any


class Module(Protocol):
    """What a model must have: a linen module does, and so does a `LanguageModel`."""

    @property
    def init(self) -> Callable[..., Any]:
        """Fresh variables from a key and examples."""

    @property
    def apply(self) -> Callable[..., Any]:
        """Logits of examples, and what changed where ``mutable`` says so."""

    @property
    def clone(self) -> Callable[..., Any]:
        """The same module with another dropout."""


@dataclass(frozen=True)
class Network:
    """Functions of (parameters, batch statistics, examples); hashable, so jit compiles each once.

    Attributes:
      module: the model, called as ``apply(variables, examples, train=...)``.
      example_shape: height, width, channels; or the characters of a window.
    """

    module: Module
    example_shape: tuple[int, ...]

    def init(self, key: jax.Array) -> tuple[Params, BatchStats]:
        """Fresh parameters and batch statistics (an empty tree for a model without any)."""
        images = jnp.zeros((1, *self.example_shape), jnp.float32)
        variables = dict(self.module.init(key, images, train=False))
        return variables["params"], variables.get("batch_stats", {})

    def num_parameters(self) -> int:
        """How many numbers are trained."""
        params, _ = jax.eval_shape(self.init, jax.random.key(0))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

    def logits(self, params: Params, stats: BatchStats, images: jax.Array) -> jax.Array:
        """Answers of the network in evaluation mode, shape (batch, ..., classes)."""
        variables = {"params": params, "batch_stats": stats}
        answer = self.module.apply(variables, images, train=False)
        assert isinstance(answer, jax.Array)
        return answer

    def training_loss(
        self,
        params: Params,
        stats: BatchStats,
        images: jax.Array,
        labels: jax.Array,
        dropout_key: jax.Array,
    ) -> tuple[jax.Array, BatchStats]:
        """Mean cross entropy in training mode, and the new batch statistics."""
        answer, updated = self.module.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(answer, labels).mean()
        return loss, updated.get("batch_stats", {})

    def training_stats(self, params: Params, stats: BatchStats, images: jax.Array) -> BatchStats:
        """Batch statistics after one pass in training mode, with every unit kept."""
        module = self.module.clone(dropout=0.0)
        variables = {"params": params, "batch_stats": stats}
        _, updated = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return updated.get("batch_stats", {})
