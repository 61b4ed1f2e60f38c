"""What a measurement shows: rows for the terminal, report.md and report.html."""

import json
from collections.abc import Sequence
from pathlib import Path

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
from benchmarks.common.results import Results
from benchmarks.compare.report import written_values
from benchmarks.flatness import plots

HEAD = ("quantity", "value", "how")


def write(folder: Path, found: Results) -> None:
    """Writes the plots, report.md and report.html."""
    blocks = compose(found, plots.draw(folder, found))
    write_text(folder / "report.md", to_markdown(blocks))
    write_text(folder / "report.html", to_html(blocks, title(found)))


def title(found: Results) -> str:
    """What was measured, in a line."""
    training = found["training"]
    return f"Flatness: {found['data']['name']}, {training['configuration']['model']}"


def rows(found: Results) -> list[tuple[str, str, str]]:
    """The main quantities as text: name, value with its error, and how it was estimated."""
    measured, scores, images = found["measured"], found["scores"], found["effort"]["images"]
    spectrum, ends = measured["spectrum"], measured["eigenvalues"]
    noise, energy = measured["gradient_noise"], measured["local_energy"]
    lines = [
        ("error, training", f"{100 * scores['train_error']:.2f} %", "all training images"),
        ("error, test", f"{100 * scores['test_error']:.2f} %", found["data"]["judged_on"]),
        ("cross entropy, training", f"{scores['train_loss']:.4g}", "nats, all training images"),
    ]
    for at, sigma in enumerate(energy["sigma"]):
        mean, error = energy["error"]["mean"][at], energy["error"]["std_error"][at]
        lines.append(
            (
                f"local energy, σ = {sigma:g}",
                f"{100 * mean:.2f} ± {100 * error:.2f} points",
                f"error, {energy['draws']} draws, {images:,} images",
            )
        )
    for end in ("largest", "smallest"):
        found_end = ends[end]
        converged = "" if found_end["converged"] else ", NOT converged"
        how = f"residual {found_end['residuals'][0]:.1e}, {found_end['products']} products"
        lines.append((f"{end} eigenvalue", f"{found_end['values'][0]:.4g}", how + converged))
    how = f"{spectrum['probes']} probes of {spectrum['steps']} Lanczos steps"
    for threshold, share in spectrum["fraction_below"].items():
        lines.append(
            (
                f"eigenvalues with |λ| < {threshold}",
                f"{100 * share['mean']:.1f} ± {100 * share['std_error']:.1f} %",
                how,
            )
        )
    trace = measured["trace"]
    lines.append(
        ("trace of the Hessian", with_error(trace), f"Hutch++, {trace['products']} products")
    )
    bound = "" if noise["exact"] or noise["rank"] < len(noise["eigenvalues"]) else "at least "
    method = "exact" if noise["exact"] else f"{len(noise['eigenvalues'])} Lanczos steps"
    lines += [
        (
            "rank of the gradient noise",
            f"{bound}{noise['rank']} ({100 * noise['rank'] / noise['parameters']:.2f} % of all)",
            f"above {noise['relative_threshold']:.1e} of the largest, "
            f"{noise['examples']:,} examples, {method}",
        ),
        (
            "participation ratio of it",
            f"{noise['participation_ratio']:.3g}",
            "(tr D)² / tr D²",
        ),
    ]
    sharpness = measured["sharpness"]
    lines += [
        (f"SAM sharpness, {name}", with_error(answer), f"radius {sharpness['radius']:g}")
        for name, answer in sharpness.items()
        if isinstance(answer, dict)
    ]
    return lines


def with_error(estimate: dict[str, float]) -> str:
    """An estimate with its standard error; without where there is nothing random in it."""
    if estimate["std_error"] == 0:
        return f"{estimate['mean']:.4g}"
    return f"{estimate['mean']:.4g} ± {estimate['std_error']:.2g}"


def compose(found: Results, pictures: dict[str, Path]) -> Sequence[Block]:
    """The report, block by block."""
    training, effort, measured = found["training"], found["effort"], found["measured"]
    configuration, spectrum = training["configuration"], measured["spectrum"]
    ends = measured["eigenvalues"]
    return [
        Heading(title(found), level=1),
        Paragraph(
            f"{found['model']['summary']}, {found['model']['parameters']:,} parameters, trained "
            f"by {training['method']} ({written_values(training['hyperparameters'])}) with "
            f"{training['gradients']:,} gradients of {configuration['batch_size']} images, seed "
            f"{training['seed']}. All estimates are of the cross entropy or the error, in "
            f"evaluation mode, on the first {effort['images']:,} training images; ± is one "
            "standard error of the estimate."
        ),
        Code(found["command"]),
        Heading("Numbers"),
        TableBlock(HEAD, rows(found)),
        Heading("Local energy"),
        Picture(
            pictures["local_energy"],
            "Rise of the training error and loss when every weight is multiplied by 1 + σz, z "
            f"normal, mean of {effort['draws']} draws; bars of one standard error.",
        ),
        Heading("Hessian"),
        Picture(
            pictures["spectrum"],
            f"Density of the Hessian's eigenvalues by Lanczos quadrature, {spectrum['probes']} "
            f"probes of {spectrum['steps']} steps, broadened to a hundredth of the range shown; "
            "ripples are the quadrature's nodes, where these lie further apart than the width; "
            f"band of one standard error. Ticks: the {effort['eigenvalues']} eigenvalues at each "
            "end, by restarted Lanczos.",
        ),
        TableBlock(
            ("end", "eigenvalue", "residual"),
            [
                (end, f"{value:.6g}", f"{residual:.1e}")
                for end in ("largest", "smallest")
                for value, residual in zip(ends[end]["values"], ends[end]["residuals"], strict=True)
            ],
        ),
        Heading("Gradient noise"),
        Picture(
            pictures["gradient_noise"],
            "Eigenvalues of the covariance D of per-example gradients. Its rank counts those "
            "above the threshold.",
        ),
        Heading("Slices of the loss"),
        Picture(
            pictures["slices"],
            "Left: along a random filter-normalized direction, and along the outermost "
            "eigenvectors of the Hessian at the same length. Right: over the plane of two random "
            "filter-normalized directions.",
        ),
        Heading("Seconds"),
        TableBlock(
            ("estimator", "seconds, compilation included"),
            [(name, f"{part['seconds']:.1f}") for name, part in measured.items()],
        ),
        Heading("Where it ran"),
        Code(json.dumps(found["environment"], indent=1)),
    ]
