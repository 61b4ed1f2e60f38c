"""What a measurement shows: a table on the terminal, report.md and report.html."""

from pathlib import Path

import pandas as pd

from benchmarks.common.report import PAGE, write_report
from benchmarks.common.run_folder import Results
from benchmarks.common.terminal import say, show_table
from benchmarks.flatness import plots


def write(folder: Path, found: Results) -> None:
    """Writes the plots, report.md and report.html."""
    plots.draw(folder, found)
    write_report(
        folder,
        "flatness/report.md.j2",
        title(found),
        found=found,
        numbers=number_table(found),
        ends=end_table(found),
        seconds=second_table(found),
    )


def show(found: Results, folder: Path) -> None:
    """The main table and where the rest is."""
    show_table(number_table(found), title(found))
    say(f"Report: {folder / PAGE}")


def title(found: Results) -> str:
    """What was measured, in a line."""
    training = found["training"]
    return f"Flatness: {found['data']['name']}, {training['configuration']['model']}"


def number_table(found: Results) -> pd.DataFrame:
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
        ("trace of the Hessian", with_error(trace), f"XTrace, {trace['products']} products")
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
    return pd.DataFrame(lines, columns=["quantity", "value", "how"])


def with_error(estimate: dict[str, float]) -> str:
    """An estimate with its standard error; without where there is nothing random in it."""
    if estimate["std_error"] == 0:
        return f"{estimate['mean']:.4g}"
    return f"{estimate['mean']:.4g} ± {estimate['std_error']:.2g}"


def end_table(found: Results) -> pd.DataFrame:
    """The eigenvalues at both ends of the spectrum."""
    ends = found["measured"]["eigenvalues"]
    return pd.DataFrame(
        [
            (end, f"{value:.6g}", f"{residual:.1e}")
            for end in ("largest", "smallest")
            for value, residual in zip(ends[end]["values"], ends[end]["residuals"], strict=True)
        ],
        columns=["end", "eigenvalue", "residual"],
    )


def second_table(found: Results) -> pd.DataFrame:
    """The time that each estimator took."""
    return pd.DataFrame(
        [(name, f"{part['seconds']:.1f}") for name, part in found["measured"].items()],
        columns=["estimator", "seconds, compilation included"],
    )
