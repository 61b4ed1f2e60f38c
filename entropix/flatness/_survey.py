"""Every estimator on one problem, each answer as rows of a table and curves of a picture."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from entropix.flatness._chunks import mean_over_chunks, num_examples
from entropix.flatness._critical_sharpness import critical_sharpness, directional_curvature
from entropix.flatness._eigenvalues import eigenvalues
from entropix.flatness._gradient_noise import gradient_noise
from entropix.flatness._hessian import hessian
from entropix.flatness._layer_curvature import layer_curvature
from entropix.flatness._local_energy import local_energy
from entropix.flatness._local_entropy import local_entropy
from entropix.flatness._sharpness import sam_sharpness
from entropix.flatness._slices import filter_normalized_direction, loss_slice
from entropix.flatness._spectrum import spectrum
from entropix.flatness._traces import trace

# More examples than this have too large a Gram matrix of gradients: Lanczos takes its place.
_EXAMPLES_AT_ONCE = 2048
_LANCZOS_STEPS = 40


class Problem(NamedTuple):
    """What is surveyed.

    Attributes:
      loss: f(params, batch), the mean over a batch.
      params: where the loss is looked at.
      data: a pytree of arrays with one leading example axis.
      seed: of every estimator's key.
      batch_size: examples at once, or None for all.
      num_eigenvalues: at each end.
      sigmas: noise levels of the local energy, relative to each weight.
      gammas: couplings of the local entropy.
      beta: inverse temperature of the local entropy.
    """

    loss: Callable[[Any, Any], jax.Array]
    params: PyTree
    data: PyTree
    seed: int
    batch_size: int | None
    num_eigenvalues: int
    sigmas: tuple[float, ...]
    gammas: tuple[float, ...]
    beta: float


class Row(NamedTuple):
    """One number.

    Attributes:
      quantity: what it is.
      value: how large.
      error: its error, or None where it has none.
      kind: what ``error`` is: "standard error", "standard + quadrature error", "bound" or "".
    """

    quantity: str
    value: float
    error: float | None = None
    kind: str = ""


class Answer(NamedTuple):
    """What one estimator found.

    Attributes:
      rows: numbers for the table.
      curves: name -> (x, y, error of y or None), for a picture.
      remarks: what the reader must know, such as chains that disagree.
    """

    rows: list[Row]
    curves: dict[str, tuple[list[float], list[float], list[float] | None]]
    remarks: list[str]


def restricted(problem: Problem, pattern: str) -> Problem:
    """The same loss as a function of the parameters alone whose paths hold the pattern.

    Raises:
      ValueError: no path does; the message lists them.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(problem.params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    chosen = {name for name in names if re.search(pattern, name)}
    if not chosen:
        raise ValueError(f"mask must fit at least one of {', '.join(names)}, got {pattern!r}")
    leaves, structure = jax.tree.flatten(problem.params)
    kept = {name: leaf for name, leaf in zip(names, leaves, strict=True) if name in chosen}

    def loss(kept: dict[str, jax.Array], batch: Any) -> jax.Array:
        whole = [kept.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
        return problem.loss(jax.tree.unflatten(structure, whole), batch)

    return problem._replace(loss=loss, params=kept)


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in np.ravel(np.asarray(values, float))]


def _about(problem: Problem) -> Answer:
    values, slopes = mean_over_chunks(
        lambda batch: jax.value_and_grad(problem.loss)(problem.params, batch),
        problem.data,
        problem.batch_size,
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(slopes)]
    rows = [
        Row("loss", float(values)),
        Row("length of the gradient", float(jnp.sqrt(sum(squares, jnp.zeros(()))))),
        Row("parameters", size),
        Row("examples", num_examples(problem.data)),
    ]
    return Answer(rows, {}, [])


def _eigenvalues(problem: Problem) -> Answer:
    operator = hessian(problem.loss, problem.params, problem.data, batch_size=problem.batch_size)
    k = min(problem.num_eigenvalues, operator.size)
    rows, remarks = [], []
    for end in ("largest", "smallest"):
        found = eigenvalues(operator, problem.seed, k=k, which=end)
        for i in range(k):
            name = f"{end} eigenvalue {i + 1}"
            error = float(found.residuals[i])
            rows.append(Row(name, float(found.eigenvalues[i]), error, "bound"))
        if not bool(found.converged):
            remarks.append(f"the {end} eigenvalues have not converged: see their bounds")
    return Answer(rows, {}, remarks)


def _spectrum(problem: Problem) -> Answer:
    operator = hessian(problem.loss, problem.params, problem.data, batch_size=problem.batch_size)
    found = spectrum(operator, problem.seed)
    top, bottom = found.top, found.bottom
    low, high = float(bottom.value), float(top.value)
    width = max(high - low, 1e-12) / 100
    grid = jnp.linspace(low - 5 * width, high + 5 * width, 500)
    density = found.density(grid, width)
    below = found.fraction_below(0.01 * max(abs(low), abs(high)))
    rows = [
        Row("top of the spectrum", high, float(top.bound), "bound"),
        Row("bottom of the spectrum", low, float(bottom.bound), "bound"),
        Row(
            "share of eigenvalues below 1 % of the largest",
            float(below.mean),
            float(below.std_error),
            "standard error",
        ),
    ]
    curve = (_numbers(grid), _numbers(density.mean), _numbers(density.std_error))
    return Answer(rows, {"density of eigenvalues": curve}, [])


def _trace(problem: Problem) -> Answer:
    operator = hessian(problem.loss, problem.params, problem.data, batch_size=problem.batch_size)
    found = trace(operator, problem.seed)
    row = Row("trace of the Hessian", float(found.mean), float(found.std_error), "standard error")
    return Answer([row], {}, [])


def _local_energy(problem: Problem) -> Answer:
    found = local_energy(
        problem.loss, problem.params, problem.data, problem.seed,
        sigma=jnp.asarray(problem.sigmas), batch_size=problem.batch_size,
    )  # fmt: skip
    rows = [
        Row(f"local energy at sigma = {sigma:g}", rise, error, "standard error")
        for sigma, rise, error in zip(
            problem.sigmas, _numbers(found.mean), _numbers(found.std_error), strict=True
        )
    ]
    curve = (list(problem.sigmas), _numbers(found.mean), _numbers(found.std_error))
    return Answer(rows, {"local energy": curve}, [])


def _local_entropy(problem: Problem) -> Answer:
    found = local_entropy(
        problem.loss, problem.params, problem.data, problem.seed,
        gamma=jnp.asarray(problem.gammas), beta=problem.beta, num_nodes=8, num_steps=128,
        num_burn_in=64, batch_size=problem.batch_size,
    )  # fmt: skip
    errors = _numbers(jnp.hypot(found.std_error, found.quadrature_error))
    rows = [
        Row(f"local entropy at gamma = {gamma:g}", value, error, "standard + quadrature error")
        for gamma, value, error in zip(problem.gammas, _numbers(found.value), errors, strict=True)
    ]
    curve = (list(problem.gammas), _numbers(found.value), errors)
    return Answer(rows, {"local entropy": curve}, found.diagnosis().splitlines())


def _gradient_noise(problem: Problem) -> Answer:
    n = num_examples(problem.data)
    found = gradient_noise(
        problem.loss, problem.params, problem.data, key=problem.seed,
        num_steps=_LANCZOS_STEPS if n > _EXAMPLES_AT_ONCE else None,
        batch_size=problem.batch_size,
    )  # fmt: skip
    rows = [
        Row("trace of the gradient noise", float(found.trace)),
        Row("directions that share the gradient noise", float(found.participation_ratio)),
        Row(f"rank of the gradient noise above {float(found.threshold):.2g}", float(found.rank)),
    ]
    return Answer(rows, {}, [])


def _sharpness(problem: Problem) -> Answer:
    slopes = mean_over_chunks(
        lambda batch: jax.grad(problem.loss)(problem.params, batch),
        problem.data,
        problem.batch_size,
    )
    arguments = (problem.loss, problem.params, jax.tree.map(jnp.negative, slopes), problem.data)
    critical = critical_sharpness(*arguments, batch_size=problem.batch_size)
    along = directional_curvature(*arguments, batch_size=problem.batch_size)
    rows = [Row("curvature along the gradient", float(along))]
    distance = max(
        float(critical.upper) - float(critical.sharpness),
        float(critical.sharpness) - float(critical.lower),
    )
    rows.append(
        Row("critical sharpness of gradient descent", float(critical.sharpness), distance, "bound")
    )
    for radius in (0.05, 0.5):
        rise = sam_sharpness(
            problem.loss, problem.params, problem.data, radius=radius, num_steps=5,
            batch_size=problem.batch_size,
        )  # fmt: skip
        rows.append(Row(f"rise of the loss within radius {radius:g}", float(rise.mean)))
    return Answer(rows, {}, [])


def _slice(problem: Problem) -> Answer:
    direction = filter_normalized_direction(problem.params, problem.seed)
    steps = jnp.linspace(-1, 1, 41)
    values = loss_slice(
        problem.loss, problem.params, problem.data, [direction], steps,
        batch_size=problem.batch_size,
    )  # fmt: skip
    curve = (_numbers(steps), _numbers(values), None)
    return Answer([], {"loss along a filter-normalized direction": curve}, [])


def _layers(problem: Problem) -> Answer:
    """Curvature layer by layer; a mask has made names of the paths."""

    def layer(path: tuple[Any, ...]) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[0]

    found = layer_curvature(
        problem.loss, problem.params, problem.data, problem.seed, group=layer,
        batch_size=problem.batch_size,
    )  # fmt: skip
    rows = []
    for name, size in found.size.items():
        of = f"of layer {name or '/'} ({size:,})"
        trace_error = float(found.trace_std_error[name])
        rows.append(Row(f"trace {of}", float(found.trace[name]), trace_error, "standard error"))
        bound = float(found.top_bound[name])
        rows.append(Row(f"largest eigenvalue {of}", float(found.top[name]), bound, "bound"))
    return Answer(rows, {}, [])


# Compiled for each layer anew, and so only run where it is asked for.
PER_LAYER: dict[str, Callable[[Problem], Answer]] = {"layers": _layers}

ESTIMATORS: dict[str, Callable[[Problem], Answer]] = {
    "about": _about,
    "eigenvalues": _eigenvalues,
    "spectrum": _spectrum,
    "trace": _trace,
    "sharpness": _sharpness,
    "local_energy": _local_energy,
    "slice": _slice,
    "gradient_noise": _gradient_noise,
    "local_entropy": _local_entropy,
}
