"""A step written for one replica, mapped over those of one group of devices, and over groups."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from entropix.replicas._layout import GROUPS, STACKED, Layout

Step = Callable[[Any, Any], tuple[Any, Any]]


def sharded_step(step: Step, layout: Layout, *, donate: bool) -> Step:
    """A compiled step over sharded arrays.

    The groups are mapped by hand, so that no replica ever meets the partitioner of XLA: a mapped
    convolution becomes a grouped one, which it would compute whole on every device. Inside a
    group the compiler divides batches and parameters as they are annotated.

    Args:
      step: of one replica.
      layout: where the replicas are.
      donate: whether the state's buffers are given to the new state.

    Returns:
      The step of all replicas.
    """
    mesh = layout.mesh
    # XLA on CPU ends the process at an all-reduce in bfloat16 beside axes left to the compiler.
    is_shared = layout.groups < len(layout.devices)
    manual = {GROUPS} if is_shared else set(mesh.axis_names)

    def run(state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        specs = jax.tree.map(lambda x: P(GROUPS) if x.ndim else P(), state)
        state, answer = jax.shard_map(
            lambda state, batch: group_step(step, state, batch, layout.per_group),
            mesh=mesh,
            in_specs=(specs, P(GROUPS)),
            out_specs=(specs, P(GROUPS)),
            axis_names=manual,
            # The check asks of every scan in a model that its carry start as varying as it ends.
            check_vma=False,
        )(state, batch)
        return jax.lax.with_sharding_constraint(state, layout.state_shardings(state)), answer

    return jax.jit(run, donate_argnums=(0,) if donate else ())


def group_step(step: Step, state: PyTree, batch: PyTree, replicas: int) -> tuple[PyTree, PyTree]:
    """The step of the replicas of one group; without a ``vmap`` where it holds one alone.

    Raises:
      ValueError: the step makes a leaf differ that the replicas share.
    """
    if replicas > 1:
        return _vmapped(step, state, batch, STACKED)
    first = jax.tree.map(lambda x: x[0] if x.ndim else x, state)
    inputs = (first, jax.tree.map(lambda x: x[0], batch))
    program, shapes = jax.make_jaxpr(step, return_shape=True)(*inputs)

    def traced(*inputs: PyTree) -> tuple[PyTree, PyTree]:
        leaves = jaxpr_as_fun(program)(*jax.tree.leaves(inputs))
        result: tuple[PyTree, PyTree] = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        return result

    def of_all(x: jax.Array) -> jax.ShapeDtypeStruct:
        # An exchange remembers how many take part in it.
        groups = jax.lax.axis_size(GROUPS)
        return jax.ShapeDtypeStruct((groups, *x.shape[1:]) if x.ndim else (), x.dtype)

    # Each device would go on with its own of what all should share, and wait for the others in vain
    # at a coupling that they pass over. What cannot be mapped cannot be checked.
    with contextlib.suppress(NotImplementedError):
        jax.eval_shape(
            lambda state, batch: _vmapped(traced, state, batch, GROUPS),
            *jax.tree.map(of_all, (state, batch)),
        )
    new, answer = traced(*inputs)
    new_state = jax.tree.map(lambda new, x: new[None] if x.ndim else new, new, state)
    return new_state, jax.tree.map(lambda x: jnp.expand_dims(x, 0), answer)


def _vmapped(step: Step, state: PyTree, batch: PyTree, name: str) -> tuple[PyTree, PyTree]:
    axes = jax.tree.map(lambda x: 0 if x.ndim else None, state)
    try:
        mapped = jax.vmap(step, in_axes=(axes, 0), out_axes=(axes, 0), axis_name=name)
        result: tuple[PyTree, PyTree] = mapped(state, batch)
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        shared = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree.leaves_with_path(state)
            if not leaf.ndim
        ]
        raise ValueError(
            "state leaves without axes must stay the same for all replicas, as step counters do, "
            f"and the step makes one differ from replica to replica among state{shared}; "
            "optax.apply_if_finite counts for each replica: put it around what comes after the "
            "coupling, optax.chain(couple_replicas(...), optax.apply_if_finite(...)), and make the "
            "state by stack_states, which keeps its counters apart"
        ) from error
    return result


class PmappedStep:
    """A step mapped by ``pmap``, which must be told which leaves are shared, in a hashable way."""

    def __init__(self, step: Step, layout: Layout, *, donate: bool) -> None:
        self._step, self._layout = step, layout
        self._donated = (0,) if donate else ()
        self._compiled: dict[Any, Any] = {}

    def __call__(self, state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(state)
        leaves, answer = self._mapped(leaves, structure)(tuple(leaves), batch)
        return jax.tree.unflatten(structure, leaves), answer

    def lower(self, state: PyTree, batch: PyTree) -> Any:
        """The lowered program, as of a jitted function."""
        leaves, structure = jax.tree.flatten(state)
        return self._mapped(leaves, structure).lower(tuple(leaves), batch)

    def _mapped(self, leaves: Sequence[jax.Array], structure: Any) -> Any:
        """The pmapped function of the leaves of states of one structure."""
        axes = tuple(0 if leaf.ndim else None for leaf in leaves)

        def on_leaves(leaves: tuple[jax.Array, ...], batch: Any) -> tuple[tuple[Any, ...], Any]:
            state = jax.tree.unflatten(structure, leaves)
            state, answer = group_step(self._step, state, batch, self._layout.per_group)
            return tuple(jax.tree.leaves(state)), answer

        if (structure, axes) not in self._compiled:
            self._compiled[structure, axes] = jax.pmap(
                on_leaves,
                axis_name=GROUPS,
                in_axes=(axes, 0),
                out_axes=(axes, 0),
                devices=self._layout.devices,
                donate_argnums=self._donated,
            )
        return self._compiled[structure, axes]
