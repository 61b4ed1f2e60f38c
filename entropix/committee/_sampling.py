"""Local entropy by sampling: where message passing does not converge, or to check it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from entropix._canary import warn_if_backend_is_faulty
from entropix._checks import check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix.committee._arguments import dtype_of
from entropix.committee._entropy_curve import check_reference
from entropix.committee._messages import Problem
from entropix.committee._model import Committee, check_examples, check_weights

# Share of the samples that is kept from one level to the next, and the share of moves that are
# taken which the length of a move is steered to.
_KEPT, _TAKEN = 0.5, 0.3
_LONGEST = 0.5


class SampledLocalEntropy(NamedTuple):
    r"""Answer of `sampled_local_entropy`, a point for each distance.

    Attributes:
      distance: (1 - S) / 2 for binary weights, to a whole number of flips; 1 - S^2 for spherical
        ones.
      relative_entropy: log of the share of all weights at that distance that are solutions, per
        weight; the mean over the runs.
      std_error: of that mean, from the spread of the runs.
      levels: nested sets gone through, the most of any run.
      converged: whether all runs came to the solutions; where not, the share is smaller than what
        is told.
    """

    distance: Float[Array, " distances"]
    relative_entropy: Float[Array, " distances"]
    std_error: Float[Array, " distances"]
    levels: Int[Array, " distances"]
    converged: Bool[Array, " distances"]


def sampled_local_entropy(
    model: Committee,
    weights: Real[ArrayLike, "units n"],
    patterns: Real[ArrayLike, "patterns inputs"],
    labels: Real[ArrayLike, " patterns"],
    distances: Real[ArrayLike, " distances"],
    key: jax.Array | int,
    *,
    num_samples: int = 200,
    num_moves: int = 20,
    num_runs: int = 4,
    max_levels: int = 1000,
) -> SampledLocalEntropy:
    r"""Share of the weights at a distance from a reference that are solutions, by Monte Carlo.

    .. math:: \mathcal G(S) = \frac1N \log \frac{|\{W : W \cdot \tilde W = N S, E(W) = 0\}|}
       {|\{W : W \cdot \tilde W = N S\}|} = \frac1N \sum_l \log P(E \le E_{l + 1} | E \le E_l),
       \qquad E(W) = \sum_\mu \max(0, -\Delta^\mu(W))

    with the stabilities Delta of `Committee.stabilities`. Each factor is near 1/2: a population of
    weights at that distance is halved at its median energy, grown again from the better half, and
    moved at random inside the new set, rotating about the reference (spherical weights) or
    swapping a flipped weight for another (binary ones), until the energy is 0 (multilevel
    splitting). It needs no assumption on the patterns, unlike `local_entropy_curve`, costs some
    thousand times as much, and has a bar; where solutions lie in parts that the moves do not
    connect, that is too small.

    Args:
      model: the network.
      weights: the reference to look around: +-1 for binary weights, else of any norm but 0.
      patterns: x; +-1 for binary weights. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
      distances: share of flipped weights (binary) or 1 - S^2 (spherical), inside (0, 1).
        # shape=(D,)
      key: an integer seed or a key of ``jax.random.key``.
      num_samples: weights in a population, at least 10. Default 200.
      num_moves: moves of each after a halving. Default 20.
      num_runs: independent populations, at least 2. Default 4.
      max_levels: halvings at most. Default 1000, a share of e^-693.

    Returns:
      `SampledLocalEntropy`.

    Raises:
      TypeError: a number is of the wrong type or ``key`` is not a key.
      ValueError: a number is out of its range; a shape does not fit; a label, or a weight or
        pattern where these must be, is not of +-1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from entropix.committee import Committee, teacher_student
      >>> model = Committee(25, weights="spherical")
      >>> examples, teacher = teacher_student(model, 0.4, 0)
      >>> found = sampled_local_entropy(model, teacher, *examples, jnp.array([0.01, 0.5]), 1)
      >>> [f"{share:.1f}" for share in found.relative_entropy]
      ['-0.0', '-0.1']

    Reference:
      Au and Beck, Estimation of small failure probabilities in high dimensions by subset
      simulation, Probabilistic Engineering Mechanics 16 (2001).
    """
    warn_if_backend_is_faulty()
    check_examples(model, patterns, labels, signs_only=model.weights == "binary")
    check_weights("weights", model, weights)
    check_reference(model, weights)
    check_key(key)
    distances = distances if isinstance(distances, jax.Array) else np.asarray(distances, float)
    check_number("distances", distances, above=0, below=1)
    if np.ndim(distances) != 1:
        raise ValueError(f"distances must have shape (D,), got {np.shape(distances)}")
    for name, number, least in (
        ("num_samples", num_samples, 10),
        ("num_moves", num_moves, 1),
        ("num_runs", num_runs, 2),
        ("max_levels", max_levels, 1),
    ):
        check_integer(name, number, at_least=least)
    dtype = dtype_of(patterns)
    return _sampled_local_entropy(
        Problem(jnp.asarray(patterns, dtype), jnp.asarray(labels)),
        jnp.asarray(weights, dtype), jnp.asarray(distances, dtype), fresh_key(key),
        model=model, num_samples=num_samples, num_moves=num_moves, num_runs=num_runs,
        max_levels=max_levels,
    )  # fmt: skip


class _Population(NamedTuple):
    """Weights as their part across the reference, or their flips, and what is known so far.

    Attributes:
      across: for spherical weights, of norm sqrt(K n); for binary ones 1 where flipped, else 0.
        # shape=(P, K n)
      energy: # shape=(P,)
      log_share: # shape=()
      length: of a move, an angle; binary moves have no length. # shape=()
      levels: # shape=(), dtype=int32
      done: whether the last level was the solutions. # shape=(), dtype=bool
    """

    across: Float[Array, "*batch P Kn"]
    energy: Float[Array, "*batch P"]
    log_share: Float[Array, "*batch"]
    length: Float[Array, "*batch"]
    levels: Int[Array, "*batch"]
    done: Bool[Array, "*batch"]


@functools.partial(
    jax.jit, static_argnames=("model", "num_samples", "num_moves", "num_runs", "max_levels")
)
def _sampled_local_entropy(
    problem: Problem,
    reference: jax.Array,
    distances: jax.Array,
    key: jax.Array,
    *,
    model: Committee,
    num_samples: int,
    num_moves: int,
    num_runs: int,
    max_levels: int,
) -> SampledLocalEntropy:
    """The compiled part of `sampled_local_entropy`."""
    size, binary = model.num_weights, model.weights == "binary"
    along = reference.ravel() * (size**0.5 / jnp.linalg.norm(reference))

    def at(distance: jax.Array, across: jax.Array) -> jax.Array:
        """Weights of which that is the part across. # shape=(P, K n)."""
        if binary:
            return along[None] * (1 - 2 * across)
        return jnp.sqrt(1 - distance) * along[None] + jnp.sqrt(distance) * across

    def energies(distance: jax.Array, across: jax.Array) -> jax.Array:
        networks = at(distance, across).reshape(-1, *model.shape)
        margins = jax.vmap(lambda w: model.stabilities(w, *problem))(networks)
        # An undecided output is wrong, by however little.
        wrong = jnp.where(margins > 0, 0, jnp.finfo(margins.dtype).eps - margins)
        return jnp.sum(wrong, axis=1)

    def direction(key: jax.Array, across: jax.Array | None) -> jax.Array:
        """Random directions across the reference, and across what is already across it."""
        drawn = jax.random.normal(key, (num_samples, size), along.dtype)
        drawn = drawn - jnp.sum(drawn * along[None], axis=1, keepdims=True) / size * along[None]
        if across is not None:
            drawn = drawn - jnp.sum(drawn * across, axis=1, keepdims=True) / size * across
        return drawn * (size**0.5 / jnp.linalg.norm(drawn, axis=1, keepdims=True))

    def first(key: jax.Array, flips: jax.Array) -> jax.Array:
        if not binary:
            return direction(key, None)
        order = jnp.argsort(jax.random.uniform(key, (num_samples, size)), axis=1)
        return (order < flips).astype(along.dtype)

    def moved(key: jax.Array, across: jax.Array, length: jax.Array) -> jax.Array:
        if not binary:
            return jnp.cos(length) * across + jnp.sin(length) * direction(key, across)
        lottery = jax.random.uniform(key, across.shape, across.dtype)
        back = jnp.argmax(jnp.where(across > 0, lottery, -1), axis=1)
        forth = jnp.argmax(jnp.where(across > 0, -1, lottery), axis=1)
        places = jnp.arange(size)[None]
        across = jnp.where(places == back[:, None], 0, across)
        return jnp.where(places == forth[:, None], 1, across)

    def halve(distance: jax.Array, key: jax.Array, now: _Population) -> _Population:
        order = jnp.sort(now.energy)
        middle = order[max(int(_KEPT * num_samples) - 1, 0)]
        # Where more than half are equal and the worst, those below them.
        below = jnp.max(jnp.where(order < order[-1], order, -jnp.inf))
        level = jnp.where((middle == order[-1]) & jnp.isfinite(below), below, middle)
        kept = now.energy <= level
        copy_key, move_key = jax.random.split(jax.random.fold_in(key, now.levels))
        chances = jnp.where(kept, 0.0, -jnp.inf)
        drawn = jax.random.categorical(copy_key, chances, shape=(num_samples,))
        parents = jnp.where(kept, jnp.arange(num_samples), drawn)

        def move(
            at: tuple[jax.Array, jax.Array], key: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            across, energy = at
            propose_key, length_key = jax.random.split(key)
            # Of random length: where the set is narrow some are short enough.
            scale = jax.random.uniform(length_key, (num_samples, 1), across.dtype)
            trial = moved(propose_key, across, now.length * scale)
            there = energies(distance, trial)
            inside = there <= level
            across = jnp.where(inside[:, None], trial, across)
            return (across, jnp.where(inside, there, energy)), jnp.mean(inside)

        start = now.across[parents], now.energy[parents]
        (across, energy), taken = jax.lax.scan(move, start, jax.random.split(move_key, num_moves))
        taken = jnp.mean(taken).astype(along.dtype)
        length = jnp.minimum(now.length * jnp.exp(taken - _TAKEN), _LONGEST * jnp.pi)
        share = jnp.log(jnp.mean(kept.astype(along.dtype)))
        return _Population(
            across, energy, now.log_share + share, length, now.levels + 1, level <= 0
        )

    def run(distance: jax.Array, key: jax.Array) -> _Population:
        start_key, level_key = jax.random.split(key)
        across = first(start_key, jnp.round(distance * size))
        zero = jnp.zeros([], along.dtype)
        begin = _Population(
            across, energies(distance, across), zero, zero + _LONGEST * jnp.pi,
            jnp.zeros([], jnp.int32), jnp.zeros([], bool),
        )  # fmt: skip
        end = jax.lax.while_loop(
            lambda now: ~now.done & (now.levels < max_levels),
            functools.partial(halve, distance, level_key),
            begin,
        )
        return end._replace(across=zero, energy=zero)

    def point(arguments: tuple[jax.Array, jax.Array]) -> SampledLocalEntropy:
        distance, key = arguments
        if binary:
            flips = jnp.clip(jnp.round(distance * size), 1, size - 1)
            distance = flips / size
        ends = jax.vmap(run, in_axes=(None, 0))(distance, jax.random.split(key, num_runs))
        shares = ends.log_share / size
        return SampledLocalEntropy(
            distance, jnp.mean(shares), jnp.std(shares, ddof=1) / num_runs**0.5,
            jnp.max(ends.levels), jnp.all(ends.done),
        )  # fmt: skip

    return jax.lax.map(point, (distances, jax.random.split(key, distances.shape[0])))
