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
# # Partial entropy, and what the noise of SGD does
#
# Which layers gain from a smoother loss? How hot is each layer while it trains, in how many
# directions does the noise of mini-batches point, and does it drive the weights in circles? Small
# networks answer in seconds.
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
NEEDED = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}  # by the names that are imported

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
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from entropix import dynamics, flatness, losses

BLUE, ORANGE = "#0072B2", "#D55E00"  # for every kind of eye

# %% [markdown]
# ## Smoothing one layer at a time
#
# Instead of a new optimizer, a new loss: the mean over the weights' neighborhood, a cube of side
# $2R$,
#
# $$g(w) = -\log \frac{1}{1 + y} \Bigl( e^{-f(w)} + \sum_{a=1}^{y} e^{-f(w + \Delta^a)} \Bigr),
# \qquad \Delta^a_i \sim U(-R, R),$$
#
# where only the weights that a `mask` chooses are displaced: those of one layer, or of both. Any
# optimizer descends it. The task is made hard: 300 images of digits, a fifth of whose labels are
# wrong.

# %%
images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
order = jax.random.permutation(jax.random.key(0), len(labels))
images, labels = images[order], labels[order]
NUM, BATCH = 300, 30
is_wrong = jax.random.bernoulli(jax.random.key(1), 0.2, (NUM,))
given = jnp.where(is_wrong, (labels[:NUM] + 1 + jnp.arange(NUM) % 9) % 10, labels[:NUM])
data, test = (images[:NUM], given), (images[NUM:], labels[NUM:])


def network(key):
    rngs = nnx.Rngs(key)
    return nnx.Sequential(nnx.Linear(64, 48, rngs=rngs), jnp.tanh, nnx.Linear(48, 10, rngs=rngs))


graph = nnx.graphdef(network(0))
LAYERS = {"first": 0, "last": 2}  # in the Sequential


def init(key):
    return nnx.as_pure(nnx.split(network(key), nnx.Param)[1])


def loss(params, batch):
    x, y = batch
    logits = nnx.merge(graph, params)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def error(params, batch):
    x, y = batch
    return jnp.mean(nnx.merge(graph, params)(x).argmax(-1) != y)


def smoothed(radius, *layers):
    chosen = {str(LAYERS[layer]) for layer in layers}

    def mask(path):
        return any(str(getattr(part, "key", "")) in chosen for part in path)

    return losses.local_entropy_loss(loss, radius=radius, samples=4, mask=mask)


tx = optax.sgd(0.1, momentum=0.9, nesterov=True)


orders = np.stack([np.random.default_rng(epoch).permutation(NUM) for epoch in range(40)])
orders = jnp.asarray(orders.reshape(40, -1, BATCH))


def train(objective, keys):
    """The weights after each epoch, of one network for each key."""

    def step(carry, inputs):
        params, state = carry
        rows, key = inputs
        grads = jax.grad(objective)(params, (data[0][rows], data[1][rows]), key)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, 0))
    def epoch(carry, rows, key):
        return jax.lax.scan(step, carry, (rows, jax.random.split(key, len(rows))))[0]

    params, history = jax.vmap(init)(keys), []
    carry = params, jax.vmap(tx.init)(params)
    for number, rows in enumerate(orders):
        carry = epoch(carry, rows, jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(keys))
        history.append(carry[0])
    return history


seeds = jax.random.split(jax.random.key(2), 6)
RADIUS = 0.3
objectives = {
    "nothing": lambda params, batch, _: loss(params, batch),
    **{layer: smoothed(RADIUS, layer) for layer in LAYERS},
    "both layers": smoothed(RADIUS, *LAYERS),
}
histories = {name: train(objective, seeds) for name, objective in objectives.items()}
ends = {name: history[-1] for name, history in histories.items()}
errors = {name: jax.vmap(lambda p: error(p, test))(params) for name, params in ends.items()}

# %%
base = errors["nothing"]
gain = {name: 100 * (errors[name] - base) for name in errors if name != "nothing"}
means = jnp.array([values.mean() for values in gain.values()])
bars = jnp.array([values.std(ddof=1) / len(values) ** 0.5 for values in gain.values()])
fig, panel = plt.subplots(figsize=(6, 3.6), layout="constrained")
panel.bar(range(len(gain)), means, yerr=2 * bars, color=BLUE, width=0.6, capsize=4)
panel.axhline(0, color="black", linewidth=0.8)
panel.set(xticks=range(len(gain)), xticklabels=list(gain), xlabel="smoothed")
panel.set(ylabel="test error less that of\nthe plain loss, points")
print(f"plain loss: test error {100 * base.mean():.1f} %")
for name, mean, bar in zip(gain, means, bars, strict=True):
    print(f"{name:11} {mean:+.1f} ± {bar:.1f} points")
assert means[0] < -1
assert means[-1] < -1

# %% [markdown]
# With Flax linen, folded up here, the mask finds the layers by the names that linen gave them.

# %% cellView="form" jupyter={"source_hidden": true} tags=["hide-input"]
# @title The same with Flax linen
from flax import linen

net = linen.Sequential([linen.Dense(48), jnp.tanh, linen.Dense(10)])


def linen_loss(params, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()


linen_params = net.init(seeds[0], images)
first = losses.local_entropy_loss(
    linen_loss, radius=RADIUS, samples=4, mask=lambda path: "layers_0" in jax.tree_util.keystr(path)
)
value = float(first(linen_params, data, jax.random.key(0)))
print(f"before training {float(linen_loss(linen_params, data)):.2f}, smoothed {value:.2f}")

# %% [markdown]
# On these data smoothing the first layer alone does what smoothing both does, and smoothing the
# last one alone does not help. The mini-batches and the seeds are the same with each loss; bars
# are two standard errors over six seeds. Where it is enough to smooth one layer, the $y$ copies
# can be of that layer alone.
#
# ## How hot is each layer?
#
# The *training signal* of a layer is the mean size of its gradient's components; its *temperature*
# is by how much that varies from mini-batch to mini-batch.


# %%
def layer_name(path):
    found = {str(getattr(part, "key", "")) for part in path}
    return next(layer for layer, number in LAYERS.items() if str(number) in found)


moments = (1, 2, 5, 10, 15, 20, 30, 40)
hot = []
for number in moments:
    params = jax.tree.map(lambda leaf: leaf[0], histories["nothing"][number - 1])
    hot.append(
        flatness.layer_temperature(loss, params, data, minibatch_size=BATCH, group=layer_name)
    )

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
for color, marker, layer in zip((BLUE, ORANGE), "os", LAYERS, strict=True):
    for panel, field in ((left, "signal"), (right, "temperature")):
        values = [float(getattr(found, field)[layer]) for found in hot]
        panel.plot(moments, values, marker + "-", color=color, label=f"{layer} layer")
left.set(xlabel="epoch", ylabel="training signal", yscale="log")
right.set(xlabel="epoch", ylabel="temperature", yscale="log")
_ = left.legend(frameon=False)

# %% [markdown]
# ## The noise has few directions
#
# The gradient of a mini-batch of $b$ examples scatters around the full gradient with covariance $D
# / b$, where $D$ is that of the examples' gradients. Of thousands of directions it fills a few.

# %%
trained = jax.tree.map(lambda leaf: leaf[0], ends["nothing"])
noise = {
    "at the start": flatness.gradient_noise(loss, init(seeds[0]), data),
    "after training": flatness.gradient_noise(loss, trained, data),
}
fig, panel = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for color, (when, found) in zip((ORANGE, BLUE), noise.items(), strict=True):
    share = jnp.cumsum(found.eigenvalues) / found.trace
    panel.plot(jnp.arange(1, len(share) + 1), share, color=color, label=when)
    print(
        f"{when}: {found.num_parameters:,} weights, half of the noise in "
        f"{int(jnp.sum(share < 0.5)) + 1} directions, "
        f"participation ratio {float(found.participation_ratio):.1f}"
    )
    assert found.participation_ratio < 0.02 * found.num_parameters
panel.set(xlabel="directions", ylabel="share of the noise", xscale="log", ylim=(0, 1))
panel.legend(frameon=False)

# %% [markdown]
# ## Does it drive the weights in circles?
#
# Near a minimum with Hessian $H$, SGD with gradient noise $D$ is a walk in a bowl. If $H$ and $D$
# have the same axes, each piece of the walk is as likely as the same piece backwards. If not, a
# current flows: the weights circulate for ever, at no gain in the loss. Two weights show it.

# %%
hessian = jnp.diag(jnp.array([1.0, 0.2]))
noises = {
    "noise along the axes": jnp.diag(jnp.array([1.0, 0.3])),
    "noise across the axes": jnp.array([[0.7, 0.6], [0.6, 0.7]]),
}


def walk(factor):
    def step(x, z):
        x = x - 0.2 * (hessian @ x + factor @ z)
        return x, x

    return jax.lax.scan(step, jnp.zeros(2), jax.random.normal(jax.random.key(0), (200_000, 2)))[1]


SCALE = 0.3  # of the arrows, the same on both sides
fig, panels = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
found = {}
for panel, (name, factor) in zip(panels, noises.items(), strict=True):
    path = walk(factor)
    limits = [(-2.5 * float(s), 2.5 * float(s)) for s in path.std(0)]
    found[name] = dynamics.probability_current(path, 0, num_surrogates=1999)
    field = dynamics.current_field(path, num_bins=10, extent=limits)
    a, b = field.centers
    panel.pcolormesh(a, b, field.density.T, cmap="Greys", shading="nearest")
    sure = jnp.linalg.norm(field.current / field.std_error, axis=-1) > 3
    arrows = jnp.where(sure[..., None], field.current, 0.0)
    panel.quiver(a, b, arrows[..., 0].T, arrows[..., 1].T, color=ORANGE, width=0.008, scale=SCALE)
    panel.set(title=name, xlabel="weight 1")
    print(
        f"{name}: area swept per step {float(found[name].area_rate[0, 1]):+.4f}, "
        f"p = {float(found[name].p_value):.4f}"
    )
panels[0].set_ylabel("weight 2")
assert found["noise across the axes"].p_value < 0.01
assert abs(found["noise across the axes"].z[0, 1]) > 2 * abs(found["noise along the axes"].z[0, 1])

# %% [markdown]
# Arrows: the probability current, where it is above three standard errors; shade: where the walk
# has been. Left nothing is left of it, right it goes around.
#
# And the network? SGD goes on from where training ended, and a random projection of its weights is
# recorded.

# %%
directions = jax.random.key(3)


@jax.jit
def go_on(params):
    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, NUM)
        updates, state = tx.update(jax.grad(loss)(params, (data[0][rows], data[1][rows])), state)
        params = optax.apply_updates(params, updates)
        snapshot = jax.tree.map(lambda leaf: leaf[None], params)
        return (params, state), dynamics.random_projection(snapshot, directions, num_components=3)[
            0
        ]

    keys = jax.random.split(jax.random.key(4), 6000)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[1]


path = go_on(trained)
current = dynamics.probability_current(path, 0, num_surrogates=1999)
rhythm = dynamics.periodogram(path, 0)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.plot(path[:, 0], path[:, 1], color=BLUE, linewidth=0.3)
left.set(xlabel="random direction 1", ylabel="random direction 2")
right.loglog(rhythm.frequency, rhythm.power.mean(1), color=BLUE, linewidth=0.6, label="SGD")
right.fill_between(
    rhythm.frequency,
    rhythm.lower.mean(1),
    rhythm.upper.mean(1),
    color=ORANGE,
    alpha=0.4,
    label="the same steps in random order",
)
right.set(xlabel="frequency, cycles per step", ylabel="power of the increments")
right.legend(loc="lower left")
print(f"loops: p = {float(current.p_value):.3f}; white increments: p = {float(rhythm.p_value):.3f}")
assert rhythm.p_value < 0.05

# %% [markdown]
# The increments are not white: momentum makes successive steps alike. Whether the walk also goes
# in loops is what the first p-value says, and a large one is no proof that it does not: a loop
# that is slower than the blocks of the path is not seen.
#
# The pages *Smoothed losses* and *Dynamics* say more; `python -m benchmarks partial` smooths
# layers, pairs and all at several radii.
