"""What a table shows: errors with intervals, other measures, correlations, settings."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.common.intervals import Interval
from benchmarks.common.report import MARKDOWN, templates, written_values
from benchmarks.common.run_folder import Results, write_text
from benchmarks.tuning.entropic import CONTENDERS
from benchmarks.tuning.measures import (
    ENERGY_SAMPLES,
    ENERGY_SIGMA,
    IMAGES,
    QUANTITIES,
    SAM_RADIUS,
    WIDTHS,
)
from benchmarks.tuning.scores import CALIBRATION_BINS, INPUT_NOISE
from benchmarks.tuning.statistics import (
    AFTERTHOUGHTS,
    SEEN_BEFORE,
    best_baseline,
    correlations,
    differences,
    table_of,
    verdict,
    word,
)


def write(folder: Path, found: Results) -> None:
    """Writes report.md."""
    text = (
        templates()
        .get_template("tuning/report.md.j2")
        .render(
            found=found,
            row=found["row"],
            later=[f"`{name}`" for name in AFTERTHOUGHTS if name in found["tuned"]]
            * (found["name"] in SEEN_BEFORE),
            plan=found["plan"],
            sentence=sentence(found),
            errors=error_table(found),
            others=measure_table(found),
            correlations=correlation_table(found),
            settings=setting_table(found),
            constants={
                "bins": CALIBRATION_BINS,
                "noise": INPUT_NOISE,
                "sigma": ENERGY_SIGMA,
                "samples": ENERGY_SAMPLES,
                "radius": SAM_RADIUS,
                "images": min(IMAGES, found["data"]["train"]),
                "width_seeds": found["configuration"]["width_seeds"],
            },
        )
    )
    write_text(folder / MARKDOWN, text.strip() + "\n")


def sentence(found: Results) -> str:
    """The verdict of a row in words."""
    entropic, baseline, change = verdict(found)
    return (
        f"By cross-validation {entropic} is the best entropic method and {baseline} the best "
        f"baseline. On the test images {entropic} {word(change)}: {written(change)} points of "
        f"error ({len(found['seeds'])} seeds, paired, 95 %)."
    )


def written(change: Interval, scale: float = 100, digits: int = 2) -> str:
    """A difference and its interval as text."""
    mean, low, high = (f"{scale * one:+z.{digits}f}" for one in change)
    return f"{mean} ({low} to {high})"


def error_table(found: Results) -> pd.DataFrame:
    """Cross-validated and test error, and the difference to the best baseline."""
    numbers, change = table_of(found)["error"], differences(found)
    mean = numbers.groupby("method", sort=False).mean()
    error = numbers.groupby("method", sort=False).sem()
    rows = [
        {
            "method": name,
            "validation error %": f"{100 * found['tuned'][name]['error']:.2f}",
            "test error %": f"{100 * mean[name]:.2f} ± {100 * error[name]:.2f}",
            f"minus {best_baseline(found)}": written(change[name]) if name in change else "",
            "": word(change[name]) if name in change else "best baseline",
            "gradients": f"{found['methods'][name]['gradients']:,}",
            "seconds": f"{found['methods'][name]['seconds']:.1f}",
        }
        for name in mean.sort_values(kind="stable").index
    ]
    return pd.DataFrame(rows)


def measure_table(found: Results) -> pd.DataFrame:
    """The means over the seeds of everything that was measured."""
    mean = table_of(found).groupby("method", sort=False).mean().sort_values("error", kind="stable")
    columns = {
        title: [f"{scale * one:z.{digits}f}" for one in mean[quantity]]
        for quantity, (title, scale, digits) in QUANTITIES.items()
    }
    return pd.DataFrame({"method": mean.index, **columns})


def correlation_table(found: Results) -> pd.DataFrame:
    """Spearman's correlation of each measure with the test error, across and within methods."""
    frame = correlations(found)
    count = len(found["methods"])
    return pd.DataFrame(
        {
            "measure": [QUANTITIES[name][0].removesuffix(" %") for name in frame.index],
            "without test images": ["yes" if name in WIDTHS else "no" for name in frame.index],
            "across methods": [f"{one:+.2f}" for one in frame["across"]],
            "p": [p_value(one, count) for one in frame["across"]],
            "within methods": [
                written(Interval(*row), 1) for row in frame.iloc[:, 1:].itertuples(index=False)
            ],
        }
    )


def p_value(correlation: float, count: int) -> str:
    """Two-sided, of Spearman's correlation of ``count`` pairs, by Student's distribution."""
    if not np.isfinite(correlation) or count < 3:
        return "-"
    squared = min(correlation**2, 1 - 1e-12)
    t = abs(correlation) * np.sqrt((count - 2) / (1 - squared))
    return f"{2 * stats.t.sf(t, count - 2):.3f}"


def setting_table(found: Results) -> pd.DataFrame:
    """What each method is and the values that won."""
    return pd.DataFrame(
        [
            (name, CONTENDERS[name].summary, written_values(record["values"]))
            for name, record in found["tuned"].items()
        ],
        columns=["method", "what it is", "values that won"],
    )
