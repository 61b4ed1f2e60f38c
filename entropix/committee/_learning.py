"""What rules that learn in passes over the patterns share: batches, end, and answer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer
from entropix._keys import check_key
from entropix.committee._arguments import dtype_of
from entropix.committee._messages import Problem
from entropix.committee._model import Committee, check_examples

# Folded into a student's key: a seed that also drew the patterns or the teacher would start the
# student at them, for equal keys give equal numbers. No small number, as these are what split uses.
_STUDENT = 0x57DE27


class Learned(NamedTuple):
    """What a learning rule ended with.

    Attributes:
      weights: binary, or with norm sqrt(n) for each unit. # shape=(K, n)
      errors: patterns they misclassify. # shape=(), dtype=int32
      solved: whether there are none. # shape=(), dtype=bool
      epochs: passes over the patterns. # shape=(), dtype=int32
      history: errors after each pass, -1 for those not needed. # shape=(E,), dtype=int32
    """

    weights: Float[Array, "*batch K n"]
    errors: Int[Array, "*batch"]
    solved: Bool[Array, "*batch"]
    epochs: Int[Array, "*batch"]
    history: Int[Array, "*batch E"]


def learning(
    model: Committee, patterns: Any, labels: Any, key: Any, max_epochs: Any
) -> tuple[Problem, Any]:
    """The examples and the type of the weights of a rule that learns in passes over them.

    Raises:
      TypeError: ``key`` is not a key or ``max_epochs`` not an integer.
      ValueError: an argument does not fit the model.
    """
    warn_if_backend_is_faulty()
    check_examples(model, patterns, labels)
    check_key(key)
    check_integer("max_epochs", max_epochs, at_least=1)
    return Problem(jnp.asarray(patterns), jnp.asarray(labels)), dtype_of(patterns)


def start_and_order(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of a rule's first weights, and of the orders of its passes."""
    start_key, order_key = jax.random.split(jax.random.fold_in(key, _STUDENT))
    return start_key, order_key


def until_solved(
    model: Committee, problem: Problem, epoch: Any, network: Any, state: Any, max_epochs: int
) -> Learned:
    """Passes until the network makes no error or the passes are spent.

    Args:
      model: the network's kind.
      problem: the examples.
      epoch: (state, index of the pass) -> state.
      network: state -> weights to be judged.
      state: where to start.
      max_epochs: passes at most.
    """

    def goes_on(carry: tuple[Any, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, index, errors, _ = carry
        return (index < max_epochs) & (errors != 0)

    def run(
        carry: tuple[Any, jax.Array, jax.Array, jax.Array],
    ) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        state, index, _, history = carry
        state = epoch(state, index)
        errors = model.errors(network(state), problem.patterns, problem.labels)
        return state, index + 1, errors, history.at[index].set(errors)

    zero = jnp.zeros([], jnp.int32)
    history = jnp.full(max_epochs, -1, jnp.int32)
    state, epochs, errors, history = jax.lax.while_loop(
        goes_on, run, (state, zero, zero - 1, history)
    )
    return Learned(network(state), errors, errors == 0, epochs, history)


def random_order(key: jax.Array, count: int) -> jax.Array:
    """All indices below ``count`` in random order."""
    return jax.random.permutation(key, count)


def random_batches(key: jax.Array, count: int, batch_size: int) -> jax.Array:
    """The same batch by batch; -1 fills up the last one. # shape=(ceil(count / size), size)."""
    rows = -(-count // batch_size)
    order = random_order(key, count)
    filled = jnp.pad(order, (0, rows * batch_size - count), constant_values=-1)
    return filled.reshape(rows, batch_size)
