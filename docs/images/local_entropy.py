"""Draws local_entropy.svg, the figure of the front page: ``python docs/images/local_entropy.py``.

The local entropy of a line is a convolution, and is computed here on a grid.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

# Of Okabe and Ito's palette, told apart by the color-blind.
COLORS = ("#0072B2", "#D55E00", "#009E73")


def loss(x: np.ndarray) -> np.ndarray:
    """A wide valley on the left, a narrow and deeper one on the right."""
    wide = 1.0 * np.exp(-((x + 1.2) ** 2) / (2 * 0.7**2))
    narrow = 1.25 * np.exp(-((x - 1.5) ** 2) / (2 * 0.09**2))
    return 6 * (1.3 - wide - narrow) + 0.15 * x**2


def local_entropy(x: np.ndarray, gamma: float) -> np.ndarray:
    """F(x, gamma), up to the constant that makes it -f as gamma grows."""
    step = x[1] - x[0]
    exponent = -loss(x)[None, :] - gamma / 2 * (x[:, None] - x[None, :]) ** 2
    top = exponent.max(1, keepdims=True)
    integral = np.exp(exponent - top).sum(1) * step
    return top[:, 0] + np.log(integral) + np.log(gamma / (2 * np.pi)) / 2


def main() -> None:
    """Writes the figure beside this file."""
    x = np.linspace(-6, 6, 4801)
    shown = np.abs(x) <= 3
    plt.rcParams.update({"font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "entropix"})
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axes.plot(x[shown], loss(x)[shown], color="black", label="loss f")
    for gamma, color, style in zip((100, 15, 4), COLORS, ("--", "-.", "-"), strict=True):
        smooth = -local_entropy(x, gamma)
        axes.plot(x[shown], smooth[shown], color=color, linestyle=style, label=f"−F, γ = {gamma}")
        inside = np.where(shown)[0]
        lowest = inside[np.argmin(smooth[shown])]
        axes.plot(x[lowest], smooth[lowest], "o", color=color)
    lowest = np.argmin(loss(x))
    axes.plot(x[lowest], loss(x)[lowest], "o", color="black")
    axes.set_xlabel("weight x")
    axes.set_ylabel("loss, minus local entropy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", ncols=2)
    axes.set_ylim(top=11.5)
    folder = Path(__file__).parent
    figure.savefig(folder / "local_entropy.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
