"""A symmetric operator on pytrees: what the estimators of curvature take."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_float_leaves
from entropix.flatness._programs import hoist
from entropix.flatness._space import Parts, Space, space_of

# Units of rounding above this are those of half precision, or of finite differences.
_HALF_PRECISION = 1e-6


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("matvec",),
    meta_fields=("space", "rounding"),
)
@dataclass(frozen=True, repr=False)
class Operator:
    r"""A symmetric linear operator on pytrees, :math:`v \mapsto A v`.

    `hessian`, `gauss_newton` and `gradient_covariance` make one of a loss, `Operator.from_matvec`
    of any function. It is a pytree: its arrays go into jitted functions as arguments. Call it, or
    write ``A @ v``, with a pytree like the parameters; parameters that a mask leaves out are None
    in v and in the answer.

    Attributes:
      matvec: v -> A v, a pytree of the arrays it needs.
      space: structure, shapes, dtypes and sharding of v.
      rounding: the coarsest unit of rounding that a product passes through, relative to its size:
        2^-23 in float32, 2^-7 where any of it is computed in bfloat16. Every bar that an
        estimator answers with includes it, and every bound `error`.

    Examples:
      >>> import jax.numpy as jnp
      >>> scale = jnp.arange(1.0, 4.0)
      >>> A = Operator.from_matvec(lambda v: scale * v, jnp.ones(3))
      >>> print(A.size, A @ jnp.ones(3))
      3 [1. 2. 3.]
    """

    matvec: Callable[[Any], Any]
    space: Space
    rounding: float

    @classmethod
    def from_matvec(cls, matvec: Callable[[Any], Any], like: Any) -> "Operator":
        """An operator from any linear, symmetric function.

        Arrays that the function reaches, in a closure for one, become arguments of the compiled
        programs: the same code with other arrays of these shapes compiles nothing.

        Args:
          matvec: v -> A v, on pytrees like ``like``.
          like: an example of v, a pytree of float arrays or of their shapes and dtypes.

        Returns:
          The operator.

        Raises:
          TypeError: ``matvec`` is not callable, or ``like`` holds anything but float arrays.
          ValueError: ``like`` is empty, or ``matvec`` answers in another structure or shapes.
        """
        warn_if_backend_is_faulty()
        if not callable(matvec):
            raise TypeError(f"matvec must be a function of a pytree, got {matvec!r}")
        check_float_leaves("like", like)
        space = space_of(like)
        if not space.leaves:
            raise ValueError(f"like must hold at least one array, got {like!r}")
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), space.like)
        program = hoist(matvec, shapes)
        expected, got = (
            jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (shapes, program.program.answer)
        )
        if expected != got:
            raise ValueError(
                f"matvec must answer in the shapes of its argument, {expected}, got {got}"
            )
        return cls(program, space, max(program.program.rounding, space.rounding))

    @property
    def error(self) -> float:
        """What a product may be off by, relative to the operator's size: a few roundings.

        Sums over examples and units add up eight of them (of networks of dense, convolutional,
        recurrent and attention layers 0.5 to 6 were measured); where numbers are held in half
        precision their sums are not, and it is two (0.2 to 1.3).
        """
        return (8 if self.rounding < _HALF_PRECISION else 2) * self.rounding

    @property
    def size(self) -> int:
        """The dimension N."""
        return self.space.size

    def __call__(self, v: Any) -> Any:
        """A v, of a pytree like the parameters.

        Raises:
          ValueError: v has another structure, or other shapes, than the operator's vectors.
        """
        expected, got = (
            jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree) for tree in (self.space.like, v)
        )
        if expected != got:
            raise ValueError(f"v must have the shapes of the parameters, {expected}, got {got}")
        cast = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), v, self.space.like)
        return self.matvec(cast)

    def __repr__(self) -> str:
        return f"Operator(size={self.size}, rounding={self.rounding:.2g})"

    def __matmul__(self, v: Any) -> Any:
        """A v."""
        return self(v)

    def product(self, parts: Parts) -> Parts:
        """A v in the form that the Krylov methods work on."""
        return self.space.parts(self.matvec(self.space.tree(parts)))


def check_operator(operator: Any) -> None:
    """Raises unless the estimator was handed an operator.

    Raises:
      TypeError: it was handed something else, such as the loss.
    """
    if not isinstance(operator, Operator):
        raise TypeError(
            "operator must be an Operator, as hessian(loss, params, data), gauss_newton, "
            f"gradient_covariance or Operator.from_matvec give, got {operator!r}"
        )
    warn_if_backend_is_faulty()
