"""report.md and report.html of a comparison."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import plots
from benchmarks.common.document import (
    Block,
    Code,
    Heading,
    Paragraph,
    Picture,
    TableBlock,
    to_html,
    to_markdown,
)
from benchmarks.common.files import write_text
from benchmarks.common.methods import TUNING
from benchmarks.common.results import BASELINE, Results, summarize


def write(folder: Path, found: Results) -> None:
    """Writes the plots, report.md and report.html."""
    blocks = compose(found, plots.draw(folder, found))
    title = f"{found['data']['name']}, {found['configuration']['model']}"
    write_text(folder / "report.md", to_markdown(blocks))
    write_text(folder / "report.html", to_html(blocks, title))


def compose(found: Results, pictures: dict[str, Path]) -> Sequence[Block]:
    """The report, block by block."""
    configuration, data, budget = found["configuration"], found["data"], found["budget"]
    widths = found["widths"]
    rows = table_rows(found)
    return [
        Heading(f"Comparison on {data['name']} with {configuration['model']}", level=1),
        Paragraph(
            f"{configuration['seeds']} seeds, {budget['gradients']:,} gradients of batch "
            f"{configuration['batch_size']} per run; replicated_sgd_y takes them for each of its "
            f"{budget['replicas']} replicas. Network: {found['model']['summary']}, "
            f"{found['model']['parameters']:,} parameters, dropout {found['model']['dropout']:g}. "
            f"{data['train']:,} training images, judged on {data['test']:,} {data['judged_on']}."
        ),
        Code(found["command"]),
        Heading("Results"),
        Paragraph(
            "Mean ± standard error over the seeds, at the evaluation weights: the anchor of "
            "Entropy-SGD, the center of the replicas, the point between two steps of SAM, else "
            "the weights themselves; batch statistics recomputed there. 'error' and 'cross "
            f"entropy' (nats) are on the {data['judged_on']}. 'minus SGD' is the mean difference "
            "of the error to SGD, seed by seed, in percentage points. 'seconds' is the training "
            "time of all seeds together, without compilation and evaluation."
        ),
        TableBlock(tuple(rows[0]), [tuple(row.values()) for row in rows]),
        Heading("Learning curves"),
        Picture(
            pictures["learning_curves"],
            "Against gradient evaluations of one run, mean of the seeds, bands of one standard "
            "error. On the way the training loss is that of the first "
            f"{min(widths['curve_images'], data['train']):,} training images.",
        ),
        Heading("Local energy"),
        Picture(
            pictures["local_energy"],
            f"Rise of the error on {widths['images']:,} training images when every weight is "
            f"multiplied by 1 + σz, z normal; {widths['energy_samples']} draws per seed, batch "
            "statistics as they were; bands of one standard error over the seeds. "
            f"The table shows σ = {widths['sigma'][-1]:g}.",
        ),
        Heading("Hessian"),
        Picture(
            pictures["spectrum"],
            f"Of the cross entropy on {widths['images']:,} training images, by Lanczos quadrature "
            f"({widths['lanczos_steps']} steps, {widths['probes']} probe vectors per seed). "
            "A curve ends at its largest eigenvalue. In the table, the top eigenvalue by restarted "
            f"Lanczos to a relative residual of {widths['top_tolerance']:g}, the trace by Hutch++ "
            f"with {widths['trace_products']} products.",
        ),
        Heading("Differences to SGD, seed by seed"),
        TableBlock(*difference_table(found)),
        Heading("Hyper-parameters"),
        TableBlock(
            ("method", "what it is", "values"),
            [
                (name, record["summary"], written_values(record["hyperparameters"]))
                for name, record in found["methods"].items()
            ],
        ),
        Paragraph(TUNING),
        Heading("Where it ran"),
        Code(json.dumps(found["environment"], indent=1)),
    ]


def table_rows(found: Results) -> list[dict[str, str]]:
    """The results, one row per method, as text by column."""
    statistics = summarize(found)
    rows = []
    for name, record in found["methods"].items():
        summary = statistics[name]
        rows.append(
            {
                "method": name,
                "gradients": f"{record['gradients']:,}",
                "error %": average(summary["test_error"], 100, 2),
                "minus SGD": "" if name == BASELINE else difference(summary["test_error"], 100, 2),
                "cross entropy": average(summary["test_loss"], 1, 3),
                "train error %": average(summary["train_error"], 100, 2),
                "train loss": average(summary["train_loss"], 1, 4),
                "local energy": average(summary["local_energy"], 100, 2),
                "top eigenvalue": average(summary["top_eigenvalue"], 1, 2),
                "trace": average(summary["trace"], 1, 1),
                "seconds": f"{record['train_seconds']:.1f}",
            }
        )
    return rows


def difference_table(found: Results) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the paired differences to SGD of every quantity."""
    scales = {
        "test_error": ("error (points)", 100, 2),
        "test_loss": ("cross entropy", 1, 4),
        "train_error": ("train error (points)", 100, 2),
        "train_loss": ("train loss", 1, 4),
        "local_energy": ("local energy (points)", 100, 2),
        "top_eigenvalue": ("top eigenvalue", 1, 2),
        "trace": ("trace", 1, 1),
    }
    rows = [
        [
            name,
            *(
                difference(summary[key], scale, digits)
                for key, (_, scale, digits) in scales.items()
            ),
        ]
        for name, summary in summarize(found).items()
        if name != BASELINE
    ]
    return ["method", *(title for title, _, _ in scales.values())], rows


def average(summary: dict[str, float | None], scale: float, digits: int) -> str:
    """The mean over seeds with its standard error."""
    return spread(summary["mean"], summary["std_error"], scale, f"z,.{digits}f")


def difference(summary: dict[str, float | None], scale: float, digits: int) -> str:
    """The paired difference to SGD with its standard error; empty where SGD did not run."""
    if "minus_sgd" not in summary:
        return ""
    return spread(summary["minus_sgd"], summary["minus_sgd_std_error"], scale, f"+z,.{digits}f")


def spread(mean: float | None, std_error: float | None, scale: float, form: str) -> str:
    """A mean with its standard error, as text; the error is left out with one seed."""
    assert mean is not None
    text = f"{scale * mean:{form}}"
    return text if std_error is None else f"{text} ± {scale * std_error:{form.lstrip('+')}}"


def written_values(values: dict[str, float]) -> str:
    """Hyper-parameters as text."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
