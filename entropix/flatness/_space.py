"""The vectors that an operator acts on: pytrees, held in few arrays and where the parameters are.

Krylov methods add and multiply whole vectors. One array is the cheapest form for that, so all
leaves on one device are joined; a leaf that is spread over devices stays by itself, in its own
shape and sharding, so that no vector is ever gathered.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

Parts: TypeAlias = tuple[jax.Array, ...]

# Accelerators multiply in fewer bits unless told otherwise, and orthogonality would be lost.
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class Space:
    """The vector space of pytrees of given structure, shapes, dtypes and sharding.

    Attributes:
      structure: of the pytrees.
      leaves: their shapes and dtypes, with a sharding for those that are spread over devices.
    """

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def size(self) -> int:
        """The dimension N."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the vectors: the widest of the leaves', at least float32."""
        widest = max((leaf.dtype for leaf in self.leaves), key=lambda dtype: dtype.itemsize)
        return widest if widest.itemsize > 4 else np.dtype(np.float32)

    @property
    def rounding(self) -> float:
        """The coarsest unit of rounding of the leaves' dtypes."""
        return max(float(jnp.finfo(leaf.dtype).eps) for leaf in self.leaves)

    @property
    def like(self) -> Any:
        """A pytree of the shapes and dtypes."""
        return jax.tree.unflatten(self.structure, self.leaves)

    def parts(self, tree: Any) -> Parts:
        """The vector that a pytree is."""
        leaves = [leaf.astype(self.dtype) for leaf in self.structure.flatten_up_to(tree)]
        return self._join(leaves)

    def tree(self, parts: Parts, *, keep_dtype: bool = True) -> Any:
        """The pytree that a vector is, each leaf in its own dtype, or all in the vectors'."""
        return jax.tree.unflatten(
            self.structure,
            [
                leaf.astype(like.dtype if keep_dtype else self.dtype)
                for leaf, like in zip(self._split(parts), self.leaves, strict=True)
            ],
        )

    def draw(self, sample: Callable[..., jax.Array], key: jax.Array) -> Parts:
        """A random vector: ``sample(key, shape, dtype)`` for each leaf, however it is spread."""
        return self._join(
            [
                _placed(sample(jax.random.fold_in(key, i), like.shape, self.dtype), like.sharding)
                for i, like in enumerate(self.leaves)
            ]
        )

    def zeros(self, *rows: int) -> Parts:
        """The vector 0, or so many rows of it."""
        joined = sum(leaf.size for leaf in self.leaves if leaf.sharding is None)
        first = [jnp.zeros((*rows, joined), self.dtype)] if joined else []
        spread = [
            _placed(jnp.zeros((*rows, 1, *leaf.shape), self.dtype), leaf.sharding, len(rows) + 1)
            for leaf in self.leaves
            if leaf.sharding is not None
        ]
        return (*first, *spread)

    def _join(self, leaves: list[jax.Array]) -> Parts:
        pairs = list(zip(leaves, self.leaves, strict=True))
        joined = [leaf.ravel() for leaf, like in pairs if like.sharding is None]
        # The axis of length 1 tells a spread vector of one axis from the joined one.
        spread = [leaf[None] for leaf, like in pairs if like.sharding is not None]
        return (*([jnp.concatenate(joined)] if joined else []), *spread)

    def _split(self, parts: Parts) -> list[jax.Array]:
        joined = [like for like in self.leaves if like.sharding is None]
        ends = np.cumsum([like.size for like in joined])
        pieces = iter(jnp.split(parts[0], ends[:-1]) if joined else [])
        spread = iter(parts[1:] if joined else parts)
        return [
            next(pieces).reshape(like.shape)
            if like.sharding is None
            else _placed(next(spread)[0], like.sharding)
            for like in self.leaves
        ]


def space_of(tree: Any) -> Space:
    """The space that a pytree of arrays, or of their shapes, belongs to."""
    leaves, structure = jax.tree.flatten(tree)
    return Space(structure, tuple(_shape_of(leaf) for leaf in leaves))


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, and its sharding if it is spread over devices."""
    sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
    is_spread = isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated
    return jax.ShapeDtypeStruct(
        jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding if is_spread else None
    )


def _placed(array: jax.Array, sharding: NamedSharding | None, rows: int = 0) -> jax.Array:
    """The array, spread as told, with so many leading axes that are not."""
    if sharding is None:
        return array
    spec = PartitionSpec(*(None,) * rows, *sharding.spec)
    return jax.lax.with_sharding_constraint(array, NamedSharding(sharding.mesh, spec))


def dot(a: Parts, b: Parts) -> Float[Array, ""]:
    """The scalar product of two vectors."""
    # Spread parts keep their shape: flattened, they would be gathered.
    products = (matmul(x, y) if x.ndim == 1 else jnp.sum(x * y) for x, y in zip(a, b, strict=True))
    return functools.reduce(jnp.add, products)


def norm(a: Parts) -> Float[Array, ""]:
    """The Euclidean norm of a vector."""
    return jnp.sqrt(dot(a, a))


def scale(factor: Any, a: Parts) -> Parts:
    """A multiple of a vector."""
    return tuple(factor * x for x in a)


def subtract(a: Parts, *terms: tuple[jax.Array, Parts]) -> Parts:
    """A vector less multiples of others, in one pass over all of them."""
    return tuple(
        functools.reduce(lambda rest, term: rest - term[0] * term[1][i], terms, x)
        for i, x in enumerate(a)
    )


def unit(a: Parts) -> Parts:
    """The vector scaled to norm 1; 0 where it is 0."""
    length = norm(a)
    return scale(jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0), a)
