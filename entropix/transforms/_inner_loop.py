"""The inner loop of the local entropy's algorithms: L steps around an anchor, and their average."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_below, check_float_leaves, check_integer, check_number
from entropix._keys import check_key, replica_key
from entropix.transforms._langevin import add_noise, at
from entropix.transforms._replica_axes import ReplicaAxes


class EntropyDescentState(NamedTuple):
    """State of `entropy_descent` and of `entropy_descent_with_grad_fn`.

    Attributes:
      inner_step: position l in the inner loop, 0 <= l < L.
      outer_step: number t of outer steps made.
      key: the key that the noise of every inner step is derived from.
      anchor: the weights x that the inner loop started from; meaningful while inner_step > 0. None
        where one update is a whole loop.
      lag: x' - mu, how far the running average mu trails the inner iterate. None where one update
        is a whole loop, and where mu is the last iterate (``ema_decay=0``).
      inner_state: state of the inner optimizer. Empty where one update is a whole loop and it is
        reset at every outer step.
      outer_state: state of the outer optimizer.
    """

    inner_step: Int[Array, ""]
    outer_step: Int[Array, ""]
    key: Key[Array, ""]
    anchor: PyTree | None
    lag: PyTree | None
    inner_state: PyTree
    outer_state: PyTree


class Course(NamedTuple):
    """What one inner loop carries besides x'."""

    anchor: PyTree
    lag: PyTree
    inner_state: PyTree


@dataclass(frozen=True)
class InnerLoop:
    """The inner loop, as the arguments of `entropy_descent` say; they are checked here.

    Attributes:
      optimizer: of x'. It gets ``outer_step`` as an extra argument.
      inner_steps: L.
      gamma: coupling of x' to the anchor, or a schedule of the outer step.
      noise_std: of one inner step, or a schedule of the outer step.
      ema_decay: weight of the old average, or a schedule of the inner step.
      debias: whether the weight that the start has in the average is divided out.
      scale_by_gamma: whether the direction of the outer step is multiplied by gamma.
      reset_inner: whether the inner optimizer starts afresh at every outer step.
      key: of the noise.
      accumulator_dtype: of the running average.
      replicas: where they are, if that is known: each mapped one gets noise of its own.
      phase: steps by which the first loop is shorter.
    """

    optimizer: optax.GradientTransformation
    inner_steps: int | jax.Array
    gamma: optax.ScalarOrSchedule
    noise_std: optax.ScalarOrSchedule = 0.0
    ema_decay: optax.ScalarOrSchedule = 0.75
    debias: bool = False
    scale_by_gamma: bool = False
    reset_inner: bool = True
    key: jax.Array | int = 0
    accumulator_dtype: Any = None
    replicas: ReplicaAxes | None = None
    phase: int | jax.Array = 0

    def __post_init__(self) -> None:
        check_integer("inner_steps", self.inner_steps, at_least=1)
        check_number("gamma", self.gamma, at_least=0)
        check_number("noise_std", self.noise_std, at_least=0)
        check_number("ema_decay", self.ema_decay, at_least=0, below=1)
        check_key(self.key)
        check_below("phase", self.phase, "inner_steps", self.inner_steps)

    def init(
        self, outer: optax.GradientTransformation, params: PyTree, *, whole_loop: bool
    ) -> EntropyDescentState:
        """The state at the start; without what lives inside one loop where an update is a whole."""
        warn_if_backend_is_faulty()
        check_float_leaves("params", params)
        forgets = whole_loop and self.reset_inner
        return EntropyDescentState(
            inner_step=jnp.zeros([], jnp.int32),
            outer_step=jnp.zeros([], jnp.int32),
            key=replica_key(self.key, params),
            anchor=None if whole_loop else optax.tree.zeros_like(params),
            lag=None if whole_loop else self._no_lag(params),
            inner_state=optax.EmptyState() if forgets else self.optimizer.init(params),
            outer_state=outer.init(params),
        )

    def start(self, params: PyTree, inner_state: PyTree) -> Course:
        """The loop at its start: x' = mu = x."""
        return Course(
            anchor=jax.tree.map(jnp.copy, params),
            lag=self._no_lag(params),
            inner_state=self.optimizer.init(params) if self.reset_inner else inner_state,
        )

    def iterate(
        self,
        grads: PyTree,
        params: PyTree,
        course: Course,
        inner_step: Int[Array, ""],
        state: EntropyDescentState,
        extra_args: dict[str, Any],
    ) -> tuple[PyTree, Course]:
        """One pass at x' = params: the step of x', and what is carried on."""
        coupling = at(self.gamma, state.outer_step)
        drift = grads
        if not is_known_zero(coupling):
            drift = jax.tree.map(
                lambda g, x, a: g + jnp.asarray(coupling, g.dtype) * (x - a).astype(g.dtype),
                grads, params, course.anchor,
            )  # fmt: skip
        updates, inner_state = optax.with_extra_args_support(self.optimizer).update(
            drift, course.inner_state, params, **extra_args | {"outer_step": state.outer_step}
        )
        noise_step = state.outer_step * self.inner_steps + inner_step
        noise_key = jax.random.fold_in(state.key, noise_step)
        if self.replicas is not None:
            noise_key = self.replicas.own_key(noise_key)
        updates = add_noise(updates, noise_key, at(self.noise_std, state.outer_step), params)
        # mu <- alpha mu + (1 - alpha) x' in terms of x' - mu: neither mu nor the anchor is needed.
        lag = course.lag
        if lag is not None:
            decay = at(self.ema_decay, inner_step)
            lag = jax.tree.map(
                lambda e, u: jnp.asarray(decay, e.dtype) * (e + u.astype(e.dtype)), lag, updates
            )
        return updates, Course(course.anchor, lag, inner_state)

    def closes(self, inner_step: Int[Array, ""], outer_step: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether a step is the last one of its loop."""
        return inner_step == self._last_step(outer_step)

    def direction(self, params: PyTree, course: Course, outer_step: Int[Array, ""]) -> PyTree:
        """What the outer optimizer is fed with: x - mu, where mu = x' - lag at x' = params."""
        factor = 1 / (1 - self._weight_of_start(outer_step)) if self.debias else 1
        if self.scale_by_gamma:
            factor = factor * at(self.gamma, outer_step)

        if course.lag is None:
            return jax.tree.map(
                lambda a, x: jnp.asarray(factor, a.dtype) * (a - x), course.anchor, params
            )

        def of_leaf(a: jax.Array, x: jax.Array, e: jax.Array) -> jax.Array:
            return (jnp.asarray(factor, e.dtype) * ((a - x).astype(e.dtype) + e)).astype(a.dtype)

        return jax.tree.map(of_leaf, course.anchor, params, course.lag)

    def _no_lag(self, params: PyTree) -> PyTree | None:
        if is_known_zero(self.ema_decay):
            return None
        return optax.tree.zeros_like(params, dtype=self.accumulator_dtype)

    def _last_step(self, outer_step: Int[Array, ""]) -> Int[Array, ""]:
        return self.inner_steps - 1 - jnp.where(outer_step == 0, self.phase, 0)

    def _weight_of_start(self, outer_step: Int[Array, ""]) -> Float[Array, ""] | float:
        """What x, where mu started, weighs in mu at the end of a loop."""
        if callable(self.ema_decay):
            steps = jnp.arange(self.inner_steps)
            decays = jax.vmap(self.ema_decay)(steps)
            inside = steps <= self._last_step(outer_step)
            return jnp.prod(jnp.where(inside, decays, jnp.ones_like(decays)))
        if isinstance(self.phase, int) and self.phase == 0:
            return self.ema_decay**self.inner_steps
        return self.ema_decay ** (self._last_step(outer_step) + 1)


def is_known_zero(number: Any) -> bool:
    """Whether a hyper-parameter is 0 for good: a Python number, no array that may change."""
    return isinstance(number, (int, float)) and number == 0
