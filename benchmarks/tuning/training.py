"""Training many trials of one method by one compiled program, their hyper-parameters traced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

import entropix
from benchmarks.common.batches import BatchOrder
from benchmarks.common.evaluation import Evaluator, unstacked
from benchmarks.common.network import BatchStats, Network, Params
from benchmarks.common.training import (
    Start,
    TrainState,
    make_step,
    replica_axes,
    replica_keys,
    start_of,
    state_from,
)
from benchmarks.tuning.contenders import Contender, Run, Values
from benchmarks.tuning.rows import Fold

AXIS = "replicas"
# Trials that one call of the compiled program trains. Every call is of this many, so that a method
# is compiled once for all that is asked of it.
CHUNK = 5
Images = tuple[jax.Array, jax.Array]


class Trial(NamedTuple):
    """One training.

    Attributes:
      values: its hyper-parameters.
      fold: place of its fold.
    """

    values: Mapping[str, float]
    fold: int


class Trained(NamedTuple):
    """Where trials were at some moment, in chunks as they were trained.

    Attributes:
      trials: which.
      params: the weights to evaluate, stacked.
      batch_stats: their batch statistics, recomputed.
    """

    trials: Sequence[Trial]
    params: Params
    batch_stats: BatchStats


class Trainings:
    """Trains trials of one contender; compiles once.

    All hyper-parameters are traced, whole numbers too, and so is the length of the run: one program
    serves every trial.
    """

    def __init__(
        self,
        network: Network,
        contender: Contender,
        images: Images,
        folds: Sequence[Fold],
        *,
        batch_size: int,
        gradients: int,
        together: bool = False,
    ) -> None:
        """Draws the mini-batches; compiles nothing yet.

        Args:
          network: the model.
          contender: the method.
          images: training images and classes, on the device.
          folds: that a trial may see.
          batch_size: images per gradient.
          gradients: budget of the longest run.
          together: whether the trials of a call are trained side by side by ``vmap``, for an
            accelerator; else one after the other inside the program, which a CPU does faster.
        """
        self._network, self._contender = network, contender
        self._images, self._folds = images, folds
        updates = contender.updates(gradients)
        places = [places_of(fold, contender.copies, batch_size, updates) for fold in folds]
        self._places = jnp.asarray(np.stack(places))
        # Apart from the training, which would compile it again for each method.
        seeds = jnp.asarray([fold.seed for fold in folds], jnp.uint32)
        self._starts = starts_of(network, contender.copies, seeds)
        self._program = program_of(network, contender, together)

    def train(self, trials: Sequence[Trial], gradients: int) -> Iterator[Trained]:
        """Trains the trials at a budget, a chunk at a time; the last one may be short."""
        ends = [self._contender.updates(gradients)]
        for [trained] in self.follow(trials, gradients, ends):
            yield trained

    def follow(
        self, trials: Sequence[Trial], gradients: int, marks: Sequence[int]
    ) -> Iterator[list[Trained]]:
        """The same, with where the trials were after some numbers of updates.

        Args:
          trials: what to train.
          gradients: the budget, which the schedules go by.
          marks: rising numbers of updates; nothing is trained beyond the last.

        Yields:
          Of a chunk, what there was at each mark.
        """
        updates = jnp.int32(self._contender.updates(gradients))
        for start in range(0, len(trials), CHUNK):
            chunk = trials[start : start + CHUNK]
            full = [*chunk, *[chunk[-1]] * (CHUNK - len(chunk))]
            params, stats = self._program(
                stacked([trial.values for trial in full]),
                jnp.asarray([trial.fold for trial in full], jnp.int32),
                updates, jnp.asarray(marks, jnp.int32),
                self._images, self._starts, self._places,
            )  # fmt: skip
            found = []
            for at in range(len(marks)):
                kept = (slice(len(chunk)), at)
                here = jax.tree.map(lambda x, kept=kept: x[kept], (params, stats))
                found.append(Trained(chunk, here[0], self._settled(chunk, *here)))
            yield found

    def _settled(self, trials: Sequence[Trial], params: Params, stats: BatchStats) -> BatchStats:
        """Batch statistics recomputed for the weights, from images that the trial has seen."""
        if not jax.tree.leaves(stats):
            return stats
        found = []
        for trial, one, old in zip(
            trials, unstacked(params, len(trials)), unstacked(stats, len(trials)), strict=True
        ):
            seen = jax.tree.map(lambda x, at=self._folds[trial.fold].seen: x[at], self._images)
            single = jax.tree.map(lambda leaf: leaf[None], (one, old))
            found.append(Evaluator(self._network, seen, seen).statistics(*single))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)


@lru_cache
def program_of(
    network: Network, contender: Contender, together: bool
) -> Callable[..., tuple[Params, BatchStats]]:
    """The compiled training of a chunk."""
    return jax.jit(partial(train_chunk, network, contender, together))


def stacked(values: Sequence[Mapping[str, float]]) -> dict[str, jax.Array]:
    """Hyper-parameters of all trials by name; whole numbers stay whole."""
    return {
        name: jnp.asarray(
            [one[name] for one in values],
            jnp.int32 if isinstance(values[0][name], int) else jnp.float32,
        )
        for name in values[0]
    }


def places_of(fold: Fold, copies: int, batch_size: int, updates: int) -> NDArray[np.int32]:
    """Places in the training set for all steps of a fold, (updates, copies, batch)."""
    order = BatchOrder(len(fold.seen), batch_size, (fold.seed,), copies)
    return fold.seen[order.indices(0, updates)[:, 0]]


@partial(jax.jit, static_argnums=(0, 1))
def starts_of(network: Network, copies: int, seeds: jax.Array) -> Start:
    """The starts of all copies of each seed, leaves (seeds, copies, ...)."""
    start = jax.vmap(jax.vmap(partial(start_of, network)))
    return start(jax.vmap(lambda seed: replica_keys(seed, copies))(seeds))


def train_chunk(
    network: Network,
    contender: Contender,
    together: bool,
    values: Values,
    fold: jax.Array,
    updates: jax.Array,
    marks: jax.Array,
    images: Images,
    starts: Start,
    places: jax.Array,
) -> tuple[Params, BatchStats]:
    """`train_one` for each trial, side by side or one after the other."""

    def one(trial: tuple[Values, jax.Array]) -> tuple[Params, BatchStats]:
        values, at = trial
        start = jax.tree.map(lambda leaf: leaf[at], starts)
        return train_one(
            network, contender, values, start, updates, marks,
            lambda step: places[at, step], images,
        )  # fmt: skip

    mapped = jax.vmap(one) if together else partial(jax.lax.map, one)
    answer: tuple[Params, BatchStats] = mapped((values, fold))
    return answer


def train_one(
    network: Network,
    contender: Contender,
    values: Values,
    start: Start,
    updates: jax.Array,
    marks: jax.Array,
    places: Callable[[jax.Array], jax.Array],
    images: Images,
) -> tuple[Params, BatchStats]:
    """One trial.

    Args:
      network: the model.
      contender: the method.
      values: its hyper-parameters.
      start: of its copies, leaves (copies, ...).
      updates: steps of the whole run, which the schedules go by.
      marks: rising numbers of steps; the last is where training stops.
      places: from the step to places in the training set, (copies, batch).
      images: training images and classes.

    Returns:
      The weights to evaluate and some batch statistics of theirs at each mark, stacked.
    """
    replicated = contender.copies > 1

    def build(key: jax.Array) -> optax.GradientTransformation:
        return contender.build(values, Run(updates, key, (AXIS,) if replicated else ()))

    smooth = contender.smooth and contender.smooth(values)
    step = make_step(network, build(jax.random.key(0)), smooth)
    if replicated:
        # Copies that start alike have the weights of the first.
        alike = jnp.asarray(values.get("alike", contender.alike), bool)
        start = start._replace(
            params=jax.tree.map(lambda x: jnp.where(alike, x[:1], x), start.params)
        )
        init = partial(state_from, build)
        axes = replica_axes(jax.eval_shape(init, first(start)))
        state = jax.vmap(init, out_axes=axes)(start)
        step = jax.vmap(step, in_axes=(axes, 0), out_axes=(axes, 0), axis_name=AXIS)
    else:
        state = state_from(build, first(start))

    def body(at: jax.Array, state: TrainState) -> TrainState:
        here = places(at) if replicated else places(at)[0]
        return step(state, (images[0][here], images[1][here]))[0]

    def evaluated(state: TrainState) -> tuple[Params, BatchStats]:
        if replicated:
            center = entropix.eval_params(state.opt_state, state.params, axis=0)
            return center, first(state.batch_stats)
        weights = contender.weights or entropix.eval_params
        return weights(state.opt_state, state.params), state.batch_stats

    def stretch(
        state: TrainState, ends: tuple[jax.Array, jax.Array]
    ) -> tuple[TrainState, tuple[Params, BatchStats]]:
        state = jax.lax.fori_loop(*ends, body, state)
        return state, evaluated(state)

    begins = jnp.concatenate([jnp.zeros(1, jnp.int32), marks[:-1]])
    found: tuple[Params, BatchStats] = jax.lax.scan(stretch, state, (begins, marks))[1]
    return found


def first(tree: Any) -> Any:
    """That of the first copy."""
    return jax.tree.map(lambda leaf: leaf[0], tree)
