"""Minima of the cross-entropy of binary perceptrons, found by annealing and by gradient descent.

Annealing flips single weights under exp(-beta loss), beta raised past the point at which the theory
has no references left; at a smaller beta it samples the references of the theory there. Gradient
descent is on real variables whose hyperbolic tangents are the weights, and turn into signs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.common.intervals import with_error
from entropix.committee import (
    Committee,
    cross_entropy,
    focusing_bp,
    local_entropy_curve,
    random_patterns,
    rising_coupling,
)

FIRST_BETA, BEYOND = 1.0, 2.0
# Of the sweeps, those that only go down.
QUENCH = 0.05
NUM_SWEEPS, NUM_STEPS = 1000, 1000
# Of the beta of the minima: where the references are sampled.
WARM = 0.25
# Of the gradient descent: the first step of a variable, the first size, the last steepness.
RATE, SMALL, STEEP = 0.1, 0.1, 5.0
# Folded into an instance's key: no number that the patterns are made of.
FIRST_RUN = 100
COUPLINGS = np.arange(0.1, 3.0, 0.1)
# From the reference outwards: distances of 0.03 to 0.25 at a load of 0.4.
STRENGTHS = (1.9, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2)


def found_at(
    size: int, load: float, gammas: Any, betas: Any, distances: Any, seeds: int
) -> dict[str, Any]:
    """Local entropies around what is found, at each gamma, on the same instances.

    Args:
      size: weights.
      load: patterns per weight.
      gammas: steepnesses. # shape=(G,)
      betas: at which the theory has its minima. # shape=(G,)
      distances: # shape=(D,)
      seeds: instances.

    Returns:
      Of each search 'entropy' (G, S, D), 'loss', 'error_rate' and 'overlap' of two runs on one
      instance (G, S); of focusing belief propagation, which looks for the widest regions, 'entropy'
      (S, D).
    """
    model = Committee(size)
    keys = jax.random.split(jax.random.key(0), seeds)
    x, y = jax.vmap(lambda key: random_patterns(model, load, key))(keys)
    at = jnp.asarray(distances, x.dtype)

    def volume(weights: jax.Array) -> list[Any]:
        around = jax.vmap(lambda w, x, y: entropies_at(model, w, x, y, at))(weights, x, y)
        return [[known(number) for number in row] for row in np.asarray(around)]

    couplings = rising_coupling(jnp.asarray(COUPLINGS))
    focused = jax.vmap(
        lambda x, y, key: focusing_bp(model, x, y, couplings, key, stop_when_solved=False)
    )(x, y, keys)
    answer: dict[str, Any] = {
        "weights": size,
        "focusing BP": {"entropy": volume(focused.weights), "errors": focused.errors.tolist()},
    }
    for gamma, beta in zip(gammas, betas, strict=True):
        searches: dict[str, Search] = {
            "annealing": functools.partial(anneal, gamma=gamma, beta=beta, num_sweeps=NUM_SWEEPS),
            "sampling": functools.partial(
                anneal, gamma=gamma, beta=WARM * beta, num_sweeps=NUM_SWEEPS, cools=False
            ),
            "gradient descent": functools.partial(descend, gamma=gamma, num_steps=NUM_STEPS),
        }
        for place, (name, search) in enumerate(searches.items()):
            runs = [
                jax.vmap(lambda x, y, key, search=search: search(model, x, y, key=key))(
                    x, y, jax.vmap(jax.random.fold_in, (0, None))(keys, FIRST_RUN + 2 * place + run)
                )
                for run in range(2)
            ]
            records = answer.setdefault(
                name, {"entropy": [], "loss": [], "error_rate": [], "overlap": []}
            )
            records["entropy"].append(volume(runs[0].weights))
            records["loss"].append(runs[0].loss.tolist())
            records["error_rate"].append(runs[0].error_rate.tolist())
            overlap = jnp.mean(runs[0].weights * runs[1].weights, axis=(1, 2))
            records["overlap"].append(overlap.tolist())
    return answer


def local_entropies(found: dict[str, Any], name: str, at: int) -> NDArray[Any]:
    """Around what a search found, at one distance. # shape=(G, S)."""
    return np.array(found["points"][name]["entropy"], float)[:, :, at]


def shortfalls(found: dict[str, Any], name: str, at: int) -> NDArray[Any]:
    """The same below the center of focusing belief propagation. # shape=(G, S).

    Instances differ by more than the minima of one do, and by about as much around every center.
    """
    wide = np.array(found["points"]["focusing BP"]["entropy"], float)[:, at]
    return np.asarray(wide[None] - local_entropies(found, name, at))


def table(found: dict[str, Any]) -> pd.DataFrame:
    """A row for each gamma and search: what the theory has at its beta, and what was found."""
    rows = []
    for g, gamma in enumerate(found["gammas"]):
        for name in ("annealing", "gradient descent", "sampling"):
            points = found["points"][name]
            theory = found["warm" if name == "sampling" else "minima"]
            cells = []
            for at in range(len(found["distances"])):
                one = local_entropies(found, name, at)[g]
                cells.append(f"{theory['entropy'][at][g]:.4f}")
                cells.append(with_error(one[np.isfinite(one)], 4))
            rows.append(
                (
                    f"{gamma:g}",
                    name,
                    f"{theory['beta'][0][g]:.0f}",
                    *cells,
                    f"{theory['reference_overlap'][0][g]:.3f}",
                    with_error(np.array(points["overlap"][g]), 3),
                    f"{100 * theory['error_rate'][0][g]:.2f}",
                    with_error(100 * np.array(points["error_rate"][g]), 2),
                )
            )
    head = ["gamma", "search", "beta"]
    for distance in found["distances"]:
        head += [f"entropy at {distance:g}: theory", f"found at {distance:g}"]
    head += ["overlap: theory", "overlap", "errors %: theory", "errors %"]
    return pd.DataFrame(rows, columns=head)


def known(number: float) -> float | None:
    """For JSON, which knows no nan."""
    return float(number) if np.isfinite(number) else None


class Minimum(NamedTuple):
    """Where a search ended.

    Attributes:
      weights: # shape=(1, n)
      loss: mean over the patterns. # shape=()
      error_rate: share of the patterns got wrong. # shape=()
    """

    weights: jax.Array
    loss: jax.Array
    error_rate: jax.Array


Search = Callable[..., Minimum]


def minimum(
    model: Committee, patterns: jax.Array, labels: jax.Array, gamma: jax.Array, weights: jax.Array
) -> Minimum:
    """These weights with what they cost."""
    stabilities = model.stabilities(weights, patterns, labels)
    return Minimum(
        weights,
        jnp.mean(cross_entropy(stabilities, gamma)),
        jnp.mean((stabilities <= 0).astype(weights.dtype)),
    )


@functools.partial(jax.jit, static_argnames=("model", "num_sweeps", "cools"))
def anneal(
    model: Committee,
    patterns: jax.Array,
    labels: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    key: jax.Array,
    *,
    num_sweeps: int,
    cools: bool = True,
) -> Minimum:
    """Metropolis with flips of one weight after another, beta rising by a constant factor.

    Args:
      model: a binary perceptron.
      patterns: x. # shape=(M, n)
      labels: sigma. # shape=(M,)
      gamma: steepness of the loss.
      beta: inverse temperature, of the sum over the patterns, at which the theory has its minima.
      key: random numbers.
      num_sweeps: flips proposed for each weight.
      cools: whether beta goes on to ``BEYOND`` times that and to infinity; else it stays at
        ``beta`` for the second half, which samples.
    """
    size = model.num_inputs
    gauged = (patterns * labels[:, None]).T.astype(jnp.int32)
    # A stability is one of n + 1 numbers, by how many inputs are on the right side.
    losses = cross_entropy((2 * jnp.arange(size + 1) - size) / size**0.5, gamma)
    warming = num_sweeps // 2 if not cools else num_sweeps - round(QUENCH * num_sweeps)
    progress = jnp.minimum(jnp.arange(num_sweeps) / warming, 1)
    last = BEYOND * beta if cools else beta
    betas = FIRST_BETA * (last / FIRST_BETA) ** progress
    if cools:
        betas = betas.at[warming:].set(jnp.inf)

    def flip(
        state: tuple[jax.Array, jax.Array], step: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        weights, right = state
        site, chance, beta = step
        trial = right - weights[site] * gauged[site]
        rise = jnp.sum(losses[trial] - losses[right])
        # Infinite beta times a rise of 0 is no number, and no flip.
        taken = chance < jnp.exp(-beta * rise)
        turned = weights.at[site].multiply(-1)
        return (jnp.where(taken, turned, weights), jnp.where(taken, trial, right)), None

    def sweep(
        state: tuple[jax.Array, jax.Array], step: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        beta, key = step
        chances = jax.random.uniform(key, (size,))
        sites = jnp.arange(size)
        return jax.lax.scan(flip, state, (sites, chances, jnp.full(size, beta)))[0], None

    start_key, sweep_key = jax.random.split(key)
    weights = jax.random.rademacher(start_key, (size,), jnp.int32)
    right = (jnp.sum(gauged * weights[:, None], axis=0) + size) // 2
    keys = jax.random.split(sweep_key, num_sweeps)
    (weights, _), _ = jax.lax.scan(sweep, (weights, right), (betas, keys))
    found = weights[None].astype(patterns.dtype)
    return minimum(model, patterns, labels, gamma, found)


@functools.partial(jax.jit, static_argnames=("model", "num_steps"))
def descend(
    model: Committee,
    patterns: jax.Array,
    labels: jax.Array,
    gamma: jax.Array,
    key: jax.Array,
    *,
    num_steps: int,
) -> Minimum:
    """Gradient descent on all patterns; the best signs on its way.

    Steps are normalized, so that losses of all steepnesses move alike, and shrink to nothing.
    """

    def loss(weights: jax.Array) -> jax.Array:
        fields = model.fields(weights, patterns)[:, 0]
        return jnp.mean(cross_entropy(labels * fields, gamma))

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array], progress: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        real, best, least = state
        steepness = 1 + (STEEP - 1) * progress
        gradient = jax.grad(lambda real: loss(jnp.tanh(steepness * real)))(real)
        size = jnp.linalg.norm(gradient) / model.num_inputs**0.5
        real = real - RATE * (1 - progress) * gradient / jnp.maximum(size, 1e-30)
        signs = model.normalize(real)
        now = loss(signs)
        best = jnp.where(now < least, signs, best)
        return (real, best, jnp.minimum(now, least)), None

    real = SMALL * jax.random.uniform(key, model.shape, patterns.dtype, -1, 1)
    state = real, model.normalize(real), jnp.asarray(jnp.inf, patterns.dtype)
    progress = jnp.arange(num_steps, dtype=patterns.dtype) / num_steps
    (_, best, _), _ = jax.lax.scan(step, state, progress)
    return minimum(model, patterns, labels, gamma, best)


def entropies_at(
    model: Committee,
    weights: jax.Array,
    patterns: jax.Array,
    labels: jax.Array,
    distances: jax.Array,
) -> jax.Array:
    """Local entropies at the distances, between those that belief propagation converged at; or nan.

    Returns:
      # shape=(D,).
    """
    curve = local_entropy_curve(
        model, weights, patterns, labels, jnp.array(STRENGTHS), max_steps=300
    )
    found = jnp.interp(distances, curve.distance, curve.entropy, left=jnp.nan, right=jnp.nan)
    return jnp.where(jnp.all(curve.converged), found, jnp.nan)
