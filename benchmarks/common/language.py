"""Models of language in Flax nnx, and how the rest of the benchmarks calls them.

A model is called with characters (batch, block) and answers with logits (batch, block, characters),
where those at a place depend on the characters up to there.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Of nanoGPT: small enough that the residual stream starts near the embeddings.
INIT_STD = 0.02


class Block(nnx.Module):
    """Causal self-attention and a two-layer network, each behind a normalization, both residual."""

    def __init__(self, width: int, heads: int, layers: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        # What each of 2 `layers` branches adds to the stream is scaled down, so that its variance
        # does not grow with depth.
        last = INIT_STD / math.sqrt(2 * layers)
        self.norm_1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention_in = linear(width, 3 * width, INIT_STD, rngs)
        self.attention_out = linear(width, width, last, rngs)
        self.norm_2 = nnx.LayerNorm(width, rngs=rngs)
        self.hidden = linear(width, 4 * width, INIT_STD, rngs)
        self.out = linear(4 * width, width, last, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention_out(self.attend(self.attention_in(self.norm_1(x))))
        return x + self.out(nnx.gelu(self.hidden(self.norm_2(x))))

    def attend(self, x: jax.Array) -> jax.Array:
        """What each place takes from those up to it, all heads side by side."""
        batch, block, _ = x.shape
        query, key, value = jnp.moveaxis(x.reshape(batch, block, 3, self.heads, -1), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        seen = jnp.tril(jnp.ones((block, block), bool))
        shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        return jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(batch, block, -1)


class GPT(nnx.Module):
    """A decoder-only transformer with learned positions, as GPT-2, without dropout."""

    def __init__(
        self, characters: int, *, layers: int, heads: int, width: int, block: int, rngs: nnx.Rngs
    ) -> None:
        embedding = nnx.initializers.normal(INIT_STD)
        self.characters = nnx.Embed(characters, width, embedding_init=embedding, rngs=rngs)
        self.positions = nnx.Embed(block, width, embedding_init=embedding, rngs=rngs)
        self.names = tuple(f"block_{at}" for at in range(layers))
        for name in self.names:
            setattr(self, name, Block(width, heads, layers, rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = linear(width, characters, INIT_STD, rngs, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        stream = self.characters(x) + self.positions(jnp.arange(x.shape[-1]))[None]
        for name in self.names:
            stream = getattr(self, name)(stream)
        return self.head(self.norm(stream))


class CharLSTM(nnx.Module):
    """Layers of LSTM, each over the whole window."""

    def __init__(self, characters: int, *, layers: int, width: int, rngs: nnx.Rngs) -> None:
        self.characters = nnx.Embed(characters, width, rngs=rngs)
        self.names = tuple(f"layer_{at}" for at in range(layers))
        for name in self.names:
            setattr(self, name, nnx.OptimizedLSTMCell(width, width, rngs=rngs))
        self.head = nnx.Linear(width, characters, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        stream = jnp.moveaxis(self.characters(x), 1, 0)
        for name in self.names:
            cell = getattr(self, name)
            start = (jnp.zeros(stream.shape[1:]), jnp.zeros(stream.shape[1:]))
            _, stream = jax.lax.scan(cell, start, stream)
        return self.head(jnp.moveaxis(stream, 0, 1))


def linear(
    width: int, out: int, std: float, rngs: nnx.Rngs, *, use_bias: bool = True
) -> nnx.Linear:
    """A layer whose kernel starts normal with this standard deviation."""
    start = nnx.initializers.normal(std)
    return nnx.Linear(width, out, use_bias=use_bias, kernel_init=start, rngs=rngs)


@dataclass(frozen=True)
class LanguageModel:
    """An nnx model behind the calls of a linen one, `init`, `apply` and `clone`; hashable.

    Attributes:
      kind: ``"gpt"`` or ``"lstm"``.
      characters: how many there are.
      layers: blocks of a transformer, or layers of LSTM.
      width: numbers at each place.
      heads: of the attention.
      block: characters in a window.
    """

    kind: str
    characters: int
    layers: int
    width: int
    heads: int
    block: int

    def make(self, key: jax.Array) -> nnx.Module:
        """A fresh model."""
        rngs = nnx.Rngs(params=key)
        if self.kind == "lstm":
            return CharLSTM(self.characters, layers=self.layers, width=self.width, rngs=rngs)
        return GPT(
            self.characters,
            layers=self.layers,
            heads=self.heads,
            width=self.width,
            block=self.block,
            rngs=rngs,
        )

    def init(self, key: jax.Array, x: jax.Array, *, train: bool) -> dict[str, Any]:
        """Fresh parameters, as a tree of dictionaries; the same whatever the window."""
        del x, train
        _, params, _ = nnx.split(self.make(key), nnx.Param, ...)  # type: ignore[misc]
        return {"params": nnx.to_pure_dict(params)}

    def apply(
        self,
        variables: dict[str, Any],
        x: jax.Array,
        *,
        train: bool,
        mutable: Any = False,
        rngs: Any = None,
    ) -> Any:
        """Logits; with ``mutable`` also what else the model changed, which is nothing."""
        del train, rngs
        graph, shapes, rest = _parts(self)
        params = jax.tree.unflatten(
            jax.tree.structure(shapes), jax.tree.leaves(variables["params"])
        )
        model = nnx.merge(graph, params, rest)
        logits = model(x)
        return (logits, {}) if mutable else logits

    def clone(self, **changes: Any) -> "LanguageModel":
        """Itself: it drops nothing, so there is no dropout to change."""
        del changes
        return self


@cache
def _parts(model: LanguageModel) -> tuple[Any, Any, Any]:
    """The structure of a model, the shapes of its parameters, and the rest."""
    shapes = nnx.eval_shape(lambda: model.make(jax.random.key(0)))
    graph, params, rest = nnx.split(shapes, nnx.Param, ...)  # type: ignore[misc]
    return graph, params, rest
