"""The command line: `python -m entropix.flatness module:function` surveys anybody's model."""

import hashlib
import importlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

# jax 0.10.2 compiles some small matrix products followed by a reduction to wrong numbers on CPU; an
# empty fusion type turns that compilation off. It must be there before jax starts its backend.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_experimental_ynn_fusion_type=".strip()
)

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from entropix.flatness._survey import (
    ESTIMATORS,
    PER_LAYER,
    Answer,
    Problem,
    Row,
    restricted,
)


class UsageError(Exception):
    """Something on the command line does not fit; shown without a traceback."""


@dataclass(frozen=True)
class Options:
    """Every estimator of flatness on a model: a table, JSON, and pictures.

    Attributes:
      target: ``module:function``. The function takes no argument and answers with the loss
        f(params, batch), the parameters, and the data. With ``--data`` it is the loss itself.
      checkpoint: folder of an Orbax checkpoint, whose parameters take the place of the function's.
      item: where in the checkpoint the parameters are: keys joined by "/", such as ``params``.
      data: a ``.npz`` file, whose arrays make a batch, a dictionary; or ``module:name``, a pytree
        of arrays or a function without arguments that answers with one. With ``--checkpoint``.
      estimators: which ones; default all.
      per_layer: whether to add trace and largest eigenvalue of each layer's block of the Hessian,
        each of which is compiled for itself.
      mask: a regular expression; only parameters whose path ("layer/kernel") holds it are looked
        at, the others stay where they are.
      batch_size: examples at once; default all.
      seed: of the random numbers.
      num_eigenvalues: at each end of the spectrum.
      sigmas: noise levels of the local energy, relative to each weight.
      gammas: couplings of the local entropy, per squared unit of a parameter.
      beta: inverse temperature of the local entropy; the number of training examples makes a mean
        log-likelihood a posterior.
      output: folder of the results; an estimator that is finished there is not run again.
      pictures: whether to draw the curves (needs matplotlib).
    """

    target: Annotated[str, tyro.conf.Positional]
    checkpoint: Path | None = None
    item: str = ""
    data: str | None = None
    estimators: tuple[str, ...] = field(default_factory=lambda: tuple(ESTIMATORS))
    per_layer: bool = False
    mask: str | None = None
    batch_size: int | None = None
    seed: int = 0
    num_eigenvalues: int = 5
    sigmas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    gammas: tuple[float, ...] = (1.0, 10.0, 100.0)
    beta: float = 1.0
    output: Path = Path("flatness")
    pictures: bool = True


def found(name: str) -> Any:
    """What ``module:name`` names; modules of the present folder come first."""
    module, _, attribute = name.partition(":")
    if not attribute:
        raise UsageError(f"expected module:name, got {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UsageError(f"no module {error.name!r}, of {name!r}") from None
    except AttributeError:
        raise UsageError(f"module {module!r} has no {attribute!r}") from None
    finally:
        sys.path.pop(0)


def restored(folder: Path, item: str, like: Any) -> Any:
    """The parameters of an Orbax checkpoint, in the structure of ``like`` if that is given."""
    import orbax.checkpoint

    if not folder.is_dir():
        raise UsageError(f"--checkpoint must be a folder, got {folder}")
    tree = orbax.checkpoint.StandardCheckpointer().restore(folder.absolute())
    for key in filter(None, item.split("/")):
        if not isinstance(tree, dict) or key not in tree:
            have = ", ".join(map(str, tree)) if isinstance(tree, dict) else "no keys"
            raise UsageError(f"--item {item!r}: {key!r} is not in the checkpoint, which has {have}")
        tree = tree[key]
    if like is None:
        return jax.tree.map(jnp.asarray, tree)
    leaves = jax.tree.leaves(tree)
    stored = [np.shape(leaf) for leaf in leaves]
    expected = [np.shape(leaf) for leaf in jax.tree.leaves(like)]
    if stored != expected:
        raise UsageError(
            f"the checkpoint's parameters have shapes {stored}, the function's {expected}: "
            "point --item at the parameters"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaf) for leaf in leaves])


def problem_of(options: Options) -> Problem:
    """The problem that the command line describes."""
    unknown = set(options.estimators) - set(ESTIMATORS)
    if unknown:
        raise UsageError(f"--estimators are {', '.join(ESTIMATORS)}; got {', '.join(unknown)}")
    target = found(options.target)
    if options.data is None:
        answer = target()
        if not isinstance(answer, tuple) or len(answer) != 3:
            raise UsageError(
                f"{options.target} must answer with (loss, params, data), got {type(answer)}; "
                "with --checkpoint and --data it may be the loss itself"
            )
        loss, params, data = answer
    else:
        if options.checkpoint is None:
            raise UsageError("--data needs --checkpoint: where else are the parameters?")
        loss, params = target, None
        if options.data.endswith(".npz"):
            with np.load(options.data) as arrays:
                data = {name: jnp.asarray(arrays[name]) for name in arrays.files}
        else:
            data = found(options.data)
            data = data() if callable(data) else data
    if options.checkpoint is not None:
        params = restored(options.checkpoint, options.item, params)
    problem = Problem(
        loss, params, data, options.seed, options.batch_size, options.num_eigenvalues,
        options.sigmas, options.gammas, options.beta,
    )  # fmt: skip
    if options.mask is not None:
        try:
            problem = restricted(problem, options.mask)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
    return problem


def fingerprint(options: Options, problem: Problem) -> str:
    """Of all that an answer depends on: results of other inputs are not taken for it."""
    digest = hashlib.sha256()
    asked = (options.target, options.mask, *problem[3:])
    digest.update(repr(asked).encode())
    for path, leaf in jax.tree.leaves_with_path((problem.params, problem.data)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def kept(path: Path, mark: str) -> Answer | None:
    """The answer in a file, if it is one to the same question."""
    try:
        content = json.loads(path.read_text())
        if content["fingerprint"] != mark:
            return None
        rows = [Row(**row) for row in content["rows"]]
        return Answer(rows, content["curves"], content["remarks"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def survey(options: Options, problem: Problem, console: Console) -> dict[str, Answer]:
    """All answers, each written as soon as it is there."""
    mark, answers = fingerprint(options, problem), {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        asked = {name: run for name, run in ESTIMATORS.items() if name in options.estimators}
        for name, run in (asked | (PER_LAYER if options.per_layer else {})).items():
            path = options.output / f"{name}.json"
            answer = kept(path, mark)
            if answer is None:
                task = progress.add_task(name)
                answer = run(problem)
                content = {
                    "fingerprint": mark,
                    "rows": [row._asdict() for row in answer.rows],
                    "curves": answer.curves,
                    "remarks": answer.remarks,
                }
                write_whole(path, json.dumps(content, indent=1))
                progress.remove_task(task)
            answers[name] = answer
    return answers


def show(answers: dict[str, Answer], console: Console) -> None:
    """The table."""
    table = Table(title="Flatness", title_justify="left", box=None, pad_edge=False)
    for name, side in (("quantity", "left"), ("value", "right"), ("±", "right"), ("", "left")):
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    for answer in answers.values():
        for row in answer.rows:
            error = "" if row.error is None else f"{row.error:.2g}"
            table.add_row(row.quantity, f"{row.value:.6g}", error, row.kind)
    console.print(table, markup=False)
    for name, answer in answers.items():
        for remark in answer.remarks:
            console.print(f"{name}: {remark}", markup=False)


def draw(answers: dict[str, Answer], folder: Path, console: Console) -> None:
    """A picture of each curve."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        console.print("no pictures: matplotlib is not installed")
        return
    mpl.use("agg")
    from matplotlib import pyplot as plt

    for answer in answers.values():
        for name, (x, y, error) in answer.curves.items():
            figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
            axes.plot(x, y)
            if error is not None:
                low, high = (np.add(y, sign * 2 * np.asarray(error)) for sign in (-1, 1))
                axes.fill_between(x, low, high, alpha=0.3)
            if name.startswith("local"):
                axes.set_xscale("log")
            if name.startswith("density"):
                axes.set_yscale("log")
                axes.set_ylim(max(max(y), 1e-30) * 1e-6, max(y) * 2)
            axes.set_title(name)
            figure.savefig(folder / f"{name.replace(' ', '_')}.png", dpi=150)
            plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 if all went well, 2 for a mistake on the command line."""
    options = tyro.cli(Options, prog="python -m entropix.flatness", args=arguments)
    console = Console()
    try:
        problem = problem_of(options)
        answers = survey(options, problem, console)
    except UsageError as error:
        console.print(f"error: {error}", markup=False)
        return 2
    show(answers, console)
    rows = {name: [row._asdict() for row in answer.rows] for name, answer in answers.items()}
    remarks = {name: answer.remarks for name, answer in answers.items() if answer.remarks}
    write_whole(
        options.output / "results.json", json.dumps({"rows": rows, "remarks": remarks}, indent=1)
    )
    if options.pictures:
        draw(answers, options.output, console)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
