"""Two patterns that no weights solve both, which messages do not notice."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from entropix.committee._messages import Problem
from entropix.committee._model import Committee


def unless_opposed(found: Any, model: Committee, problem: Problem) -> Any:
    """An answer as it is, or, where two patterns contradict each other, one that counts nothing."""
    opposed = has_opposed(model, problem)
    entropies = {"free_entropy", "entropy", "relative_entropy"} & set(found._fields)
    changes = {name: jnp.where(opposed, jnp.nan, getattr(found, name)) for name in entropies}
    if "contradicted" in found._fields:
        changes["contradicted"] = found.contradicted | opposed
    return found._replace(converged=found.converged & ~opposed, **changes)


@functools.partial(jax.jit, static_argnums=0)
def has_opposed(model: Committee, problem: Problem) -> Bool[Array, ""]:
    """Whether two patterns ask for opposite outputs of the same inputs, up to signs that are known.

    Messages see an average over the other patterns and settle all the same. Inputs of the other
    sign turn a unit's output around, and with it a parity; a majority where those of all units do.
    """
    tree_of_parity = model.architecture == "tree" and model.output == "parity"
    units = model.num_hidden if tree_of_parity else 1
    blocks = problem.patterns.reshape(problem.patterns.shape[0], units, -1)
    direction = jax.random.normal(jax.random.key(0), blocks.shape[1:])
    # One pattern after the other: a copy of all would be as large as the messages.
    along = jax.lax.map(lambda x: jnp.sum(x.astype(direction.dtype) * direction, axis=1), blocks)
    signs = jnp.where(along < 0, -1, 1)
    labels = problem.labels * jnp.prod(signs, axis=1) ** (1 if tree_of_parity else model.num_hidden)
    # Equal patterns are neighbors, and all but surely no others are between them.
    order = jnp.argsort(jnp.sum(jnp.abs(along), axis=1))

    def opposed(pair: jax.Array) -> jax.Array:
        first, second = blocks[pair] * signs[pair][..., None]
        return jnp.all(first == second) & (labels[pair[0]] != labels[pair[1]])

    return jnp.any(jax.lax.map(opposed, jnp.stack([order[:-1], order[1:]], axis=1)))
