# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Committee machines: where wide minima were found first
#
# Networks of a few sign units are simple enough to count their solutions: by enumeration when they
# are small, by belief propagation when they are not, and by the replica method when they are
# infinite. This notebook lets the three check each other, and then asks which algorithms find the
# solutions that have many others around them.
#
# The next cell installs the library where it is missing, as on a fresh Colab: from `SOURCE`, or
# from a clone of the repository or a wheel (`python -m pip wheel --no-deps .`) beside the notebook.

# %% tags=["hide-cell"]
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = ""  # "git+https://" and the address of the repository, or empty
NEEDED = {"matplotlib": "matplotlib"}  # by the names that are imported

missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
package = importlib.util.find_spec("entropix")
if package is None or package.origin is None:  # a clone beside the notebook is not the package
    here = Path.cwd()
    places = [*here.glob("entropix_jax-*.whl"), *here.glob("entropix*"), here, here.parent]
    beside = [p.as_uri() for p in places if p.suffix == ".whl" or (p / "pyproject.toml").exists()]
    if not (SOURCE or beside):
        raise FileNotFoundError("set SOURCE, or put a clone or a wheel beside the notebook")
    # Where jax is there already, as on Colab, it knows the accelerator.
    extra = "[cuda]" if shutil.which("nvidia-smi") and not importlib.util.find_spec("jax") else ""
    missing.append(f"entropix-jax{extra} @ {SOURCE or beside[0]}")
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)

# The cure for wrong reductions of jax 0.10.2 on CPU; other versions take no notice.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

# %%
import itertools
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from entropix import committee, replica_theory
from entropix.committee import Committee

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # for every kind of eye

# %% [markdown]
# ## Counting solutions: all of them, or by messages
#
# A committee of three units with five inputs each has $2^{15}$ settings of its binary weights. For
# 40 sets of random patterns we try them all, and compare with belief propagation, which passes
# messages between patterns and weights until they agree.

# %%
model = Committee(num_inputs=15, num_hidden=3)
everything = np.array(list(itertools.product((-1.0, 1.0), repeat=15)), np.float32).reshape(-1, 3, 5)


def enumerate_solutions(patterns, labels):
    fields = np.einsum("wki,mki->wmk", everything, patterns.reshape(-1, 3, 5))
    outputs = np.sign(np.sign(fields).sum(-1))
    return int((outputs == labels).all(1).sum())


@jax.jit
def count(patterns, labels):
    beliefs = committee.belief_propagation(model, patterns, labels)
    return beliefs.entropy / 15, beliefs.converged


exact, by_messages = [], []
for seed, alpha in enumerate(np.repeat([0.2, 0.4, 0.6, 0.8], 10)):
    patterns, labels = committee.random_patterns(model, float(alpha), seed)
    number = enumerate_solutions(np.asarray(patterns), np.asarray(labels))
    entropy, converged = count(patterns, labels)
    if number and converged:
        exact.append(math.log(number) / 15)
        by_messages.append(float(entropy))
exact, by_messages = np.array(exact), np.array(by_messages)

# %%
fig, panel = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
panel.plot([0, 0.7], [0, 0.7], color="black", linewidth=0.8)
panel.plot(exact, by_messages, "o", color=BLUE, alpha=0.7)
panel.set(xlabel="entropy per weight, by enumeration", ylabel="by belief propagation")
panel.set(xlim=(0, 0.7), ylim=(-0.05, 0.7), aspect="equal")
print(
    f"{len(exact)} instances, mean difference {np.abs(exact - by_messages).mean():.3f} per weight"
)
assert len(exact) >= 25
assert np.abs(exact - by_messages).mean() < 0.05

# %% [markdown]
# Messages go around in short loops in so small a network, and are still off by a hundredth or two.
# They cost the same per weight in networks of thousands, where there is nothing left to enumerate.
#
# ## A solution that algorithms find, and what theory says
#
# A binary perceptron with 1,001 weights and half as many patterns. *Focusing* belief propagation
# couples replicas of itself more and more strongly, and so ends where many solutions are. Then
# `local_entropy_curve` counts the solutions at each distance from the one it found.

# %%
perceptron, ALPHA = Committee(num_inputs=1001), 0.5
patterns, labels = committee.random_patterns(perceptron, ALPHA, 0)
protocol = committee.pseudo_reinforcement(jnp.linspace(0.0, 0.96, 33))
focused = committee.focusing_bp(perceptron, patterns, labels, protocol, 1)
print(f"solved: {bool(focused.solved)} after {int(focused.stages)} stages")
assert bool(focused.solved)
strengths = jnp.linspace(2.2, 0.4, 12)
curve = committee.local_entropy_curve(perceptron, focused.weights, patterns, labels, strengths)

# %% [markdown]
# The replica method says what to expect of infinitely many weights: how many solutions there are
# around a *typical* one, of which nearly all solutions are copies, and around the best center
# there is.

# %%
with jax.enable_x64(True):
    distance = jnp.concatenate([jnp.array([0.001, 0.004]), jnp.linspace(0.01, 0.25, 11)])
    typical = replica_theory.franz_parisi(ALPHA, distance, weights="binary")
    best = replica_theory.wide_minima(ALPHA, distance, weights="binary")
    typical, best = np.asarray(typical.entropy), np.asarray(best.entropy)
    distance = np.asarray(distance)
everywhere = -distance * np.log(distance) - (1 - distance) * np.log(1 - distance)

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
left.plot(distance, everywhere, color="black", linewidth=0.8, label="all weights, solutions or not")
left.plot(distance, best, color=GREEN, label="theory: around the best center")
left.plot(distance, typical, color=ORANGE, label="theory: around a typical solution")
at = np.asarray(curve.converged)
left.plot(
    curve.distance[at], curve.entropy[at], "o", color=BLUE, label="around what focusing BP found"
)
left.axhline(0, color="gray", linewidth=0.5)
left.set(xlabel="distance: share of weights flipped", ylabel="entropy per weight", xlim=(0, 0.25))
left.set(ylim=(-0.12, 0.6))
left.legend(frameon=False, fontsize=9)
stages = np.asarray(focused.history.errors) >= 0
right.plot(focused.history.gamma[stages], focused.history.errors[stages], "o-", color=BLUE)
right.set(xlabel="coupling of the replicas γ", ylabel="patterns still wrong", ylim=(0, None))
measured = np.interp(0.1, np.asarray(curve.distance[at]), np.asarray(curve.entropy[at]))
near = {name: np.interp(0.1, distance, y) for name, y in (("typical", typical), ("best", best))}
print(f"at a distance of 0.1: {measured:.3f}; theory: {near['best']:.3f} around the best center")
print(f"theory, around a typical solution: {near['typical']:.3f}; nearest: {typical[0]:.4f}")
assert typical[0] < 0
assert near["typical"] + 0.03 < measured < near["best"] + 0.03

# %% [markdown]
# Typical solutions are isolated: close to one of them the entropy is negative, there is no other.
# What the algorithm found is another kind of solution, and its curve comes near to that of the
# best center. There are exponentially few such regions, and yet they are what algorithms find. In
# deep networks they are called wide minima.
#
# ## Greedy and entropic learning
#
# *Least action learning* corrects one wrong pattern after the other, by the smallest change of the
# hidden signs. Its *entropic* form runs twenty replicas that are attracted to their mean. A tree
# of nine units, one pattern for each weight, real weights:

# %%
tree = Committee(num_inputs=495, num_hidden=9, weights="spherical")
patterns, labels = committee.random_patterns(tree, 1.0, 0)
learned = {
    "LAL": committee.least_action_learning(tree, patterns, labels, 1),
    "entropic LAL": committee.entropic_lal(tree, patterns, labels, 1),
}
fields = jnp.array([200.0, 100.0, 50.0, 25.0, 12.0, 8.0])
curves = {
    name: committee.local_entropy_curve(tree, found.weights, patterns, labels, fields)
    for name, found in learned.items()
}
with jax.enable_x64(True):
    squared_sine = jnp.linspace(0.004, 0.12, 9)
    majority = replica_theory.wide_minima(
        1.0, squared_sine, weights="spherical", num_hidden=math.inf
    )
    parity = replica_theory.wide_minima(
        1.0, squared_sine, weights="spherical", num_hidden=math.inf, output="parity"
    )
    squared_sine, majority, parity = map(
        np.asarray, (squared_sine, majority.entropy, parity.entropy)
    )

fig, panel = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for color, (name, curve) in zip((ORANGE, BLUE), curves.items(), strict=True):
    at = np.asarray(curve.converged)
    panel.plot(curve.distance[at], curve.relative_entropy[at], "o-", color=color, label=name)
panel.plot(squared_sine, majority, "--", color=GREEN, label="theory, best center: majority, K → ∞")
panel.plot(
    squared_sine, parity, ":", color=PINK, linewidth=2.5, label="theory, best center: parity, K → ∞"
)
panel.set(xlabel="distance 1 − S²", ylabel="entropy relative to all weights, per weight")
panel.set(xlim=(0, 0.12), ylim=(-1.0, 0.03))
panel.legend(frameon=False)
for name, found in learned.items():
    print(f"{name}: solved {bool(found.solved)} in {int(found.epochs)} passes")


def relative_entropy_at(curve, distance):
    at = np.asarray(curve.converged)
    order = np.argsort(np.asarray(curve.distance)[at])
    return np.interp(
        distance,
        np.asarray(curve.distance)[at][order],
        np.asarray(curve.relative_entropy)[at][order],
    )


narrow, wide = (relative_entropy_at(curves[name], 0.08) for name in ("LAL", "entropic LAL"))
print(f"relative entropy at 0.08: LAL {narrow:.3f}, entropic LAL {wide:.3f}")
assert wide > narrow + 0.05
assert np.allclose(parity, -math.log(2), atol=1e-6)

# %% [markdown]
# Zero would mean that every setting of the weights at that distance is a solution. Both rules
# solve all patterns, and only the curve tells them apart: the entropic one is in the wider region.
# The parity machine, whose output is the product of the hidden signs, has no wide minima at all:
# in the limit of many units its curve is flat, at $-\alpha \log 2$ at any distance. The output of
# a neighbor, however near, is a coin toss. The landscape, not the algorithm, decides whether wide
# minima exist.
#
# The pages *Committee machines* and *Replica theory* say what each function assumes and how exact
# it is; `python -m benchmarks committee` compares five algorithms on random patterns and on
# images.
