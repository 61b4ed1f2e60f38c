"""Fragments of a network, by depth, that may meet at different steps."""

import re
from typing import Any, Literal

import jax
import numpy as np

from entropix._checks import check_integer


def fragments(
    params: Any, number: int, *, pattern: Literal["strided", "sequential"] = "strided"
) -> Any:
    """Labels the leaves of a network by fragment, for ``optax.partition``.

    The depth of a leaf is the first number in its path (``layers_3``, ``Dense_3``, ``layers[3]``).
    The layers so found are dealt out to the fragments in order of depth, like cards (strided:
    layers 0, P, 2P, ... go together) or in packs (sequential). Leaves without a number, such as
    embeddings and heads, go one by one, the largest first, to the fragment that is then the
    smallest, so that all fragments are of about one size.

    With ``phase=k * H // P`` for fragment k of P they meet evenly over the H steps, and at each
    meeting about 1/P of the bytes travel.

    Args:
      params: a pytree of arrays, or of their shapes and dtypes.
      number: P, fragments to make. At least 1, at most the number of layers and unnumbered leaves.
      pattern: ``"strided"`` (default), which the streaming paper found somewhat better, or
        ``"sequential"``.

    Returns:
      A tree like ``params`` of integers from 0 to P - 1.

    Raises:
      TypeError: ``number`` is not an integer.
      ValueError: ``number`` is out of its range; the pattern is unknown.

    Examples:
      Two fragments of four layers, which meet five steps apart:

      >>> import jax.numpy as jnp, optax, entropix
      >>> params = {f"layers_{i}": jnp.zeros((3, 3)) for i in range(4)}
      >>> labels = entropix.fragments(params, 2)
      >>> labels
      {'layers_0': 0, 'layers_1': 1, 'layers_2': 0, 'layers_3': 1}
      >>> part = lambda k: entropix.diloco(optax.adamw(1e-3), inner_steps=10, phase=5 * k)
      >>> tx = optax.partition({k: part(k) for k in range(2)}, labels)

    Reference:
      Douillard et al., `Streaming DiLoCo <https://arxiv.org/abs/2501.18512>`_, 2025, sections 2.1
      and 2.2.
    """
    check_integer("number", number, at_least=1)
    if pattern not in ("strided", "sequential"):
        raise ValueError(f"pattern must be 'strided' or 'sequential', got {pattern!r}")
    found, structure = jax.tree.flatten_with_path(params)
    depths = [_depth(jax.tree_util.keystr(path)) for path, _ in found]
    layers = sorted({depth for depth in depths if depth is not None})
    loose = sum(depth is None for depth in depths)
    if number > len(layers) + loose:
        raise ValueError(
            f"number must be at most {len(layers) + loose}, the {len(layers)} layers and "
            f"{loose} leaves without a number of params, got {number}"
        )
    if pattern == "strided":
        of_layer = {depth: at % number for at, depth in enumerate(layers)}
    else:
        of_layer = {depth: at * number // len(layers) for at, depth in enumerate(layers)}
    labels: list[int | None] = [None if depth is None else of_layer[depth] for depth in depths]
    sizes = [int(np.prod(leaf.shape)) for _, leaf in found]
    # Leaves count too: a fragment that holds empty leaves only is fuller than one without any.
    filled = np.zeros((number, 2), np.int64)
    for label, size in zip(labels, sizes, strict=True):
        if label is not None:
            filled[label] += size, 1
    for at in sorted(range(len(labels)), key=lambda at: -sizes[at]):
        if labels[at] is None:
            smallest = min(range(number), key=lambda label: tuple(filled[label]))
            labels[at] = smallest
            filled[smallest] += sizes[at], 1
    return jax.tree.unflatten(structure, labels)


def _depth(path: str) -> int | None:
    """The first number in a path."""
    number = re.search(r"\d+", path)
    return int(number[0]) if number else None
