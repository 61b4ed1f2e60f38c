"""The committee machine: a layer of sign units whose signs are counted or multiplied."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Real

from entropix._checks import check_integer, holds
from entropix._keys import check_key, fresh_key

Architecture = Literal["tree", "full"]
Output = Literal["majority", "parity"]
Weights = Literal["binary", "spherical"]


@dataclass(frozen=True)
class Committee:
    r"""A two-layer network of K sign units; with K = 1 the perceptron.

    .. math:: h_k = \frac{1}{\sqrt n} \sum_i w_{ki} x_{ki}, \quad \tau_k = \mathrm{sgn}\, h_k,
       \quad \hat\sigma = \mathrm{sgn} \sum_k \tau_k \ \text{(majority)} \ \text{or}
       \ \prod_k \tau_k \ \text{(parity)}

    Its weights are arrays of shape (K, n), n the inputs of one unit: N / K in a tree, where unit k
    sees the k-th block of the N inputs, and N where every unit sees all of them. A field of 0
    classifies nothing: it counts as an error.

    Attributes:
      num_inputs: N, inputs of the network.
      num_hidden: K, hidden units; odd for a majority. Default 1, the perceptron.
      architecture: ``"tree"`` (disjoint inputs, K divides N) or ``"full"`` (shared inputs).
      output: ``"majority"`` (sign of the sum) or ``"parity"`` (product).
      weights: ``"binary"`` (each +1 or -1; n must be odd, so that no field is 0 on patterns of
        +-1) or ``"spherical"`` (real, with K n as the sum of their squares).

    Raises:
      TypeError: N or K is not an integer.
      ValueError: an argument is out of its range; K is even for a majority; K does not divide N for
        a tree; n is even for binary weights.

    Examples:
      >>> import jax.numpy as jnp
      >>> model = Committee(num_inputs=9, num_hidden=3)
      >>> model.shape
      (3, 3)
      >>> w, x = jnp.ones((3, 3)), jnp.array([[1, 1, -1, 1, 1, 1, -1, -1, -1]])
      >>> int(model.errors(w, x, jnp.array([1]))), int(model.errors(w, x, jnp.array([-1])))
      (0, 1)

    Reference:
      Engel and Van den Broeck, Statistical Mechanics of Learning, 2001, chapter 12.
    """

    num_inputs: int
    num_hidden: int = 1
    architecture: Architecture = "tree"
    output: Output = "majority"
    weights: Weights = "binary"

    def __post_init__(self) -> None:
        check_integer("num_inputs", self.num_inputs, at_least=1)
        check_integer("num_hidden", self.num_hidden, at_least=1)
        for name, accepted in (
            ("architecture", get_args(Architecture)),
            ("output", get_args(Output)),
            ("weights", get_args(Weights)),
        ):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be of {accepted}, got {getattr(self, name)!r}")
        if self.output == "majority" and self.num_hidden % 2 == 0:
            raise ValueError(
                f"num_hidden must be odd for a majority, which is undecided in a tie, "
                f"got {self.num_hidden}"
            )
        if self.architecture == "tree" and self.num_inputs % self.num_hidden:
            raise ValueError(
                f"num_hidden must divide num_inputs in a tree, "
                f"got {self.num_hidden} and {self.num_inputs}"
            )
        if self.weights == "binary" and self.shape[1] % 2 == 0:
            raise ValueError(
                f"the inputs of a unit must be odd in number for binary weights, whose fields "
                f"would else be 0 on some patterns, got {self.shape[1]} "
                f"(num_inputs {self.num_inputs}, {self.architecture})"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(K, n), the shape of the weights."""
        blocks = self.num_hidden if self.architecture == "tree" else 1
        return self.num_hidden, self.num_inputs // blocks

    @property
    def num_weights(self) -> int:
        """K n, the number of weights."""
        return self.shape[0] * self.shape[1]

    def unit_inputs(
        self, patterns: Real[ArrayLike, "patterns inputs"]
    ) -> Real[Array, "patterns units_or_1 n"]:
        """The inputs unit by unit: (M, N) -> (M, K, n) in a tree, (M, 1, n) where they are shared.

        Args:
          patterns: x.

        Returns:
          The same numbers, of a shape that broadcasts against (M, K, n).
        """
        blocks = self.num_hidden if self.architecture == "tree" else 1
        patterns = jnp.asarray(patterns)
        return patterns.reshape(patterns.shape[0], blocks, self.shape[1])

    def fields(
        self, weights: Float[Array, "units n"], patterns: Real[ArrayLike, "patterns inputs"]
    ) -> Float[Array, "patterns units"]:
        """Local fields h of the hidden units.

        Args:
          weights: w.
          patterns: x, of any real type.

        Returns:
          h, w x over the square root of n.
        """
        inputs = self.unit_inputs(jnp.asarray(patterns, weights.dtype))
        if self.architecture == "tree":
            sums = jnp.einsum("mkn,kn->mk", inputs, weights)
        else:
            sums = inputs[:, 0] @ weights.T
        return sums / self.shape[1] ** 0.5

    def stabilities(
        self,
        weights: Float[Array, "units n"],
        patterns: Real[ArrayLike, "patterns inputs"],
        labels: Real[ArrayLike, " patterns"],
    ) -> Float[Array, " patterns"]:
        r"""How far each pattern is from being misclassified, in units of the local fields.

        The signed largest-norm distance of the fields from the decision boundary: positive where
        the output is right. For a majority it is the median of :math:`\sigma h_k`, for a parity
        :math:`\sigma \prod_k \mathrm{sgn}\, h_k \min_k |h_k|`; for the perceptron both are
        :math:`\sigma\, w \cdot x / \sqrt n`.

        Args:
          weights: w.
          patterns: x.
          labels: sigma, each +1 or -1.

        Returns:
          The stabilities.
        """
        fields = self.fields(weights, patterns)
        sigma = jnp.asarray(labels, weights.dtype)
        if self.output == "majority":
            return jnp.median(sigma[:, None] * fields, axis=1)
        return sigma * jnp.prod(jnp.sign(fields), axis=1) * jnp.min(jnp.abs(fields), axis=1)

    def errors(
        self,
        weights: Float[Array, "units n"],
        patterns: Real[ArrayLike, "patterns inputs"],
        labels: Real[ArrayLike, " patterns"],
    ) -> Int[Array, ""]:
        """Number of patterns that are not classified as labeled.

        Args:
          weights: w.
          patterns: x.
          labels: sigma, each +1 or -1.

        Returns:
          The number.
        """
        right = self.stabilities(weights, patterns, labels) > 0
        return jnp.sum(~right, dtype=jnp.int32)

    def random_weights(self, key: jax.Array | int, dtype: Any = None) -> Float[Array, "units n"]:
        """Weights drawn uniformly: signs, or from the sphere with each unit's sum of squares n.

        Args:
          key: an integer seed or a key of ``jax.random.key``.
          dtype: of the weights. Default jax's floating-point type.

        Returns:
          w.
        """
        check_key(key)
        dtype = dtype or jnp.result_type(float)
        draw = jax.random.rademacher if self.weights == "binary" else jax.random.normal
        return self.normalize(draw(fresh_key(key), self.shape, dtype))

    def normalize(
        self, weights: Float[Array, "*networks units n"]
    ) -> Float[Array, "*networks units n"]:
        """The network of the model's kind with the same outputs, or the nearest to it.

        Args:
          weights: any real numbers.

        Returns:
          Their signs (+1 for 0) for binary weights; else each unit's scaled to norm sqrt(n), which
          changes no output.
        """
        if self.weights == "binary":
            return jnp.where(weights < 0, -1, 1).astype(weights.dtype)
        norms = jnp.linalg.norm(weights, axis=-1, keepdims=True)
        return weights * (self.shape[1] ** 0.5 / norms)


def check_examples(
    model: Committee, patterns: Any, labels: Any, *, signs_only: bool = False
) -> None:
    """Raises unless the patterns fit the model and the labels are signs; tracers' values pass.

    Args:
      model: the network.
      patterns: what should be of shape (M, N).
      labels: what should be +-1 of shape (M,).
      signs_only: whether the patterns must be +-1 as well.

    Raises:
      ValueError: a shape does not fit, there is no pattern, or a value is not accepted.
    """
    if np.ndim(patterns) != 2 or np.shape(patterns)[1] != model.num_inputs:
        raise ValueError(
            f"patterns must have shape (M, {model.num_inputs}), got {np.shape(patterns)}"
        )
    if np.shape(patterns)[0] == 0:
        raise ValueError(f"patterns must hold 1 pattern or more, got shape {np.shape(patterns)}")
    if np.shape(labels) != np.shape(patterns)[:1]:
        raise ValueError(
            f"labels must have shape {np.shape(patterns)[:1]}, one for each pattern, "
            f"got {np.shape(labels)}"
        )
    check_signs("labels", labels)
    if signs_only:
        check_signs("patterns", patterns)
    else:
        check_finite("patterns", patterns)


def check_weights(name: str, model: Committee, weights: Any) -> None:
    """Raises unless the array has the shape of the model's weights and is finite.

    Raises:
      ValueError: it has another shape, or a value is nan or infinite.
    """
    if np.shape(weights) != model.shape:
        raise ValueError(f"{name} must have shape {model.shape}, got {np.shape(weights)}")
    check_finite(name, weights)


def check_finite(name: str, values: Any) -> None:
    """Raises unless every value is finite; tracers pass.

    Raises:
      ValueError: one is nan or infinite; the message names it.
    """
    _check_each(name, values, "be finite", jnp.isfinite)


def check_signs(name: str, values: Any) -> None:
    """Raises unless every value is +1 or -1; tracers pass.

    Raises:
      ValueError: one is not; the message names it.
    """
    _check_each(name, values, "each be +1 or -1", lambda x: jnp.abs(x) == 1)


def _check_each(
    name: str, values: Any, accepted: str, test: Callable[[jax.Array], jax.Array]
) -> None:
    """Raises unless the test is true of each value; the message names one of which it is not."""
    if holds(lambda x: jnp.all(test(x)), values):
        return
    with jax.ensure_compile_time_eval():
        found = np.ravel(values)[int(jnp.argmin(jnp.ravel(test(jnp.asarray(values)))))]
    raise ValueError(f"{name} must {accepted}, got {found}")
