"""Draws continuum.svg, the figure of the page on local SGD: ``python docs/images/continuum.py``.

Entropy-SGD, Parle and DiLoCo on one quadratic in two dimensions, by the library's own transforms.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import entropix

# Of Okabe and Ito's palette, told apart by the color-blind; the workers' lines differ too.
COLORS, LINES = ("#0072B2", "#D55E00", "#009E73"), ("-", "--", ":")
ANCHOR = "#000000"
CURVATURE = jnp.array([0.15, 1.0])
START = jnp.array([[-2.6, 1.5]])
MINIMUM = jnp.zeros(2)
H, ROUNDS = 12, 4

PULLED = {
    "inner_learning_rate": 0.12, "inner_steps": H, "inner_momentum": None, "noise": 0.0,
}  # fmt: skip
METHODS = {
    "Entropy-SGD: one loop, pulled back to its anchor": (
        1,
        entropix.entropy_sgd(
            1.0, gamma=0.3, momentum=None, ema_decay=0.75, nesterov=False, **PULLED
        ),
    ),
    "Parle: anchors that pull each other": (
        3, entropix.parle(1.0, gamma=0.3, rho=0.4, momentum=None, axis=0, **PULLED),
    ),
    "DiLoCo: no pull, one anchor for all": (
        3,
        entropix.diloco(
            optax.sgd(0.12), optax.sgd(0.7, momentum=0.5, nesterov=True), inner_steps=H, axis=0
        ),
    ),
}  # fmt: skip


def walk(workers: int, tx: optax.GradientTransformationExtraArgs) -> tuple[np.ndarray, np.ndarray]:
    """What the workers hold, and their anchors, after each gradient."""
    # Each worker's data has a minimum of its own; their mean is the minimum.
    angles = 2 * jnp.pi * (jnp.arange(workers) / workers + 0.1)
    own = 0.9 * jnp.stack([2.0 * jnp.cos(angles), jnp.sin(angles)], 1)
    own = MINIMUM + (own - own.mean(0) if workers > 1 else 0 * own)
    start = jnp.tile(START, (workers, 1))

    def step(carry, key):
        x, state = carry
        noise = 0.5 * jax.random.normal(key, x.shape)
        updates, state = tx.update(CURVATURE * (x - own) + noise, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), (x, entropix.eval_params(state, x))

    keys = jax.random.split(jax.random.key(4), H * ROUNDS)
    _, (held, anchors) = jax.lax.scan(step, (start, tx.init(start)), keys)
    first = start[None]
    anchors = jnp.broadcast_to(anchors, held.shape)
    return np.concatenate([first, held]), np.concatenate([first, anchors])


def main() -> None:
    """Writes the figure beside this file."""
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "entropix"})
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    x, y = np.meshgrid(np.linspace(-3.2, 1.6, 161), np.linspace(-1.6, 2.1, 121))
    loss = 0.5 * (CURVATURE[0] * x**2 + CURVATURE[1] * y**2)
    for plot, (title, (workers, tx)) in zip(axes, METHODS.items(), strict=True):
        held, anchors = walk(workers, tx)
        plot.contour(x, y, loss, levels=12, colors="0.85", linewidths=0.8)
        for at in range(workers):
            color, line = COLORS[at], LINES[at]
            plot.plot(*held[:, at].T, color=color, linestyle=line, linewidth=1.2)
            met = anchors[::H, at]
            shared = title.startswith("DiLoCo")
            if at == 0 or not shared:
                plot.plot(
                    *met.T, "o-", color=ANCHOR if shared or workers == 1 else color, markersize=6,
                    markeredgecolor="white", linewidth=2.2,
                )  # fmt: skip
        plot.plot(*MINIMUM, "*", color="#CC79A7", markersize=13, zorder=5)
        plot.set_title(title, fontsize=10)
        plot.set_xlabel("weight 1 (flat)")
        plot.spines[["top", "right"]].set_visible(False)
        plot.set(xlim=(-3.2, 1.6), ylim=(-1.6, 2.1))
    axes[0].set_ylabel("weight 2 (stiff)")
    folder = Path(__file__).parent
    figure.savefig(folder / "continuum.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
