"""Means over data too large to hold the work on it at once."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from entropix._checks import check_integer

Tree = TypeVar("Tree")


def num_examples(data: Any) -> int:
    """The length of the leading axis that all leaves of ``data`` share.

    Args:
      data: a pytree of arrays with one leading example axis.

    Returns:
      The number of examples n, at least 1.

    Raises:
      ValueError: there is no leaf, a leaf has no axis, n is 0, or the leading axes differ; the
        message names the leaf's path.
    """
    leaves = jax.tree.leaves_with_path(data)
    if not leaves:
        raise ValueError(f"data must hold at least one array, got {data!r}")
    first_path, first = leaves[0]
    first_name = f"data{jax.tree_util.keystr(first_path)}"
    for path, leaf in leaves:
        name = f"data{jax.tree_util.keystr(path)}"
        if jnp.ndim(leaf) == 0:
            raise ValueError(f"data must have a leading example axis, got a scalar at {name}")
        if jnp.shape(leaf)[0] == 0:
            raise ValueError(f"data must hold at least one example, got none at {name}")
        if jnp.shape(leaf)[0] != jnp.shape(first)[0]:
            raise ValueError(
                f"data must have equal leading axes, got {jnp.shape(first)[0]} examples at "
                f"{first_name} and {jnp.shape(leaf)[0]} at {name}"
            )
    return int(jnp.shape(first)[0])


def mean_over_chunks(fn: Callable[[Any], Tree], data: Any, batch_size: int | None) -> Tree:
    r"""The mean over all examples of a function that is a mean over the examples it is given.

    .. math:: \frac1n \sum_c n_c \, f(\mathrm{chunk}_c)

    Full chunks are scanned, one program for all of them; what is left over makes one short chunk.
    Sums are compensated (Kahan), so their rounding error does not grow with the number of chunks.
    Chunk c of C holds the examples c, c + C, c + 2C...: where the example axis is sharded over
    devices, each of them has its share of every chunk.

    Args:
      fn: function of a chunk of ``data`` to a pytree of float arrays.
      data: a pytree of arrays with one leading axis of n examples.
      batch_size: examples in a chunk; None, or more than n, takes all at once.

    Returns:
      The mean, a pytree as ``fn`` gives.

    Raises:
      TypeError: ``batch_size`` is not an integer.
      ValueError: ``batch_size`` is below 1, or ``data`` is refused by `num_examples`.

    Examples:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(10.0)
      >>> print(mean_over_chunks(jnp.mean, x, batch_size=3))
      4.5
    """
    n = num_examples(data)
    if batch_size is None:
        return fn(data)
    check_integer("batch_size", batch_size, at_least=1)
    num_chunks, remainder = divmod(n, batch_size)
    if num_chunks == 0 or batch_size == n:
        return fn(data)
    whole = num_chunks * batch_size
    folded = jax.tree.map(
        lambda x: x[:whole].reshape(batch_size, num_chunks, *x.shape[1:]),
        jax.tree.map(jnp.asarray, data),
    )

    def chunk(index: jax.typing.ArrayLike) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 1, False), folded)

    def add_chunk(index: jax.typing.ArrayLike, carry: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        return _compensated_add(*carry, fn(chunk(index)))

    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fn, chunk(np.int32(0)))
    )
    total, _ = jax.lax.fori_loop(0, num_chunks, add_chunk, (zeros, zeros))
    if remainder == 0:
        return jax.tree.map(lambda t: t / num_chunks, total)
    last = fn(jax.tree.map(lambda x: x[whole:], data))
    return jax.tree.map(lambda t, r: t * (batch_size / n) + r * (remainder / n), total, last)


def _compensated_add(total: Tree, lost: Tree, term: Tree) -> tuple[Tree, Tree]:
    """One step of Kahan's summation: the new sum, and what rounding took from it."""
    corrected = jax.tree.map(jnp.subtract, term, lost)
    new_total = jax.tree.map(jnp.add, total, corrected)
    new_lost = jax.tree.map(
        lambda new, old, added: (new - old) - added, new_total, total, corrected
    )
    return new_total, new_lost
