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
# # How wide is a minimum? Every estimator on two of them
#
# One network, one data set, one number of gradients: once trained by SGD, once by Entropy-SGD.
# Then every estimator of `entropix.flatness` looks at both minima. They do not measure the same
# thing, and this notebook says which number answers which question, and which of them can be
# fooled.
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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx
from sklearn.datasets import load_digits

import entropix
from entropix import flatness
from entropix.nn import eval_model, loss_of_params

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # for every kind of eye

# %% [markdown]
# ## Two minima of one network

# %%
images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
order = jax.random.permutation(jax.random.key(0), len(labels))
images, labels = images[order], labels[order]
data, test = (images[:500], labels[:500]), (images[500:], labels[500:])


def batch_loss(model, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def train(tx, epochs=40):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, rows):
        batch = data[0][rows], data[1][rows]
        optimizer.update(model, nnx.grad(batch_loss)(model, batch))

    for key in jax.random.split(jax.random.key(1), epochs):
        for rows in jax.random.permutation(key, 500).reshape(20, 25):
            step(model, optimizer, rows)
    return eval_model(model, optimizer)


models = {
    "SGD": train(optax.sgd(0.03, momentum=0.9, nesterov=True)),
    "Entropy-SGD": train(entropix.entropy_sgd()),
}
# The loss as a function of the weights, as every estimator takes it.
loss, sgd = loss_of_params(models["SGD"], batch_loss)
_, entropic = loss_of_params(models["Entropy-SGD"], batch_loss)
minima = {"SGD": sgd, "Entropy-SGD": entropic}
graph = nnx.graphdef(models["SGD"])


def error(params, batch):
    x, y = batch
    return jnp.mean(nnx.merge(graph, params)(x).argmax(-1) != y)


for name, params in minima.items():
    print(
        f"{name:12} training loss {float(loss(params, data)):.4f}, "
        f"test error {float(error(params, test)):.1%}, test loss {float(loss(params, test)):.3f}"
    )

# %% [markdown]
# With Flax linen, folded up here, the loss is a function of the parameters from the start.

# %% cellView="form" jupyter={"source_hidden": true} tags=["hide-input"]
# @title The same with Flax linen
from flax import linen

net = linen.Sequential([linen.Dense(32), linen.relu, linen.Dense(10)])


def linen_loss(params, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()


linen_params = net.init(jax.random.key(0), images)
found = flatness.trace(flatness.hessian(linen_loss, linen_params, data), 0, num_probes=20)
print(f"before training the trace is {float(found.mean):.1f} ± {float(found.std_error):.1f}")

# %% [markdown]
# ## All numbers at once
#
# An *operator* is a symmetric matrix that is never formed, such as the Hessian; `trace`,
# `eigenvalues` and `spectrum` ask it questions. The others take the loss itself. Each answer
# carries its error.

# %%
sigmas = jnp.array([0.1, 0.2, 0.3, 0.4, 0.5])


def measure(params):
    H = flatness.hessian(loss, params, data)
    trace = flatness.trace(H, 0, num_probes=60)
    ends = flatness.eigenvalues(H, 1, k=1, tol=1e-3)
    spectrum = flatness.spectrum(H, 2, num_steps=50, num_probes=3)
    noise = flatness.gradient_noise(loss, params, data)
    energy = flatness.local_energy(error, params, data, 3, sigma=sigmas, num_samples=60)
    entropy = flatness.local_entropy(
        loss,
        params,
        data,
        4,
        gamma=jnp.array([3000.0, 300.0]),
        beta=500.0,
        num_nodes=6,
        num_steps=96,
        num_burn_in=48,
        num_chains=2,
        num_modes=8,
    )
    sharpness = flatness.sam_sharpness(loss, params, data, radius=0.3, num_steps=5)
    table = {
        "local energy, σ = 0.5 (points)": (100 * energy.mean[-1], 100 * energy.std_error[-1]),
        "local entropy, γ = 300 (nats)": (entropy.value[-1], entropy.std_error[-1]),
        "trace of the Hessian": (trace.mean, trace.std_error),
        "largest eigenvalue": (ends.eigenvalues[0], ends.residuals[0]),
        "eigenvalues below 0.01 (share)": spectrum.fraction_below(0.01),
        "worst rise within 0.3": (sharpness.mean, sharpness.std_error),
        "directions of the gradient noise": (noise.participation_ratio, jnp.zeros(())),
    }
    return table, energy, spectrum, noise


measured = {name: measure(params) for name, params in minima.items()}
print(f"{'':34} {'SGD':>20} {'Entropy-SGD':>20}")
for row in measured["SGD"][0]:
    cells = [f"{float(t[row][0]):.4g} ± {float(t[row][1]):.1g}" for t, *_ in measured.values()]
    print(f"{row:34} {cells[0]:>20} {cells[1]:>20}")

# %%
trace_of = {name: float(table["trace of the Hessian"][0]) for name, (table, *_) in measured.items()}
assert trace_of["Entropy-SGD"] < 0.8 * trace_of["SGD"]

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
grid = jnp.linspace(-0.2, 1.7, 600)
for color, (name, (_, energy, spectrum, noise)) in zip(
    (BLUE, ORANGE), measured.items(), strict=True
):
    left.errorbar(sigmas, 100 * energy.mean, 100 * energy.std_error, color=color, label=name)
    density = spectrum.density(grid, 0.02)
    middle.semilogy(grid, density.mean, color=color, label=name)
    falling = jnp.sort(noise.eigenvalues)[::-1][:100]
    right.semilogy(jnp.arange(1, 101), falling / falling[0], color=color, label=name)
left.set(xlabel="noise on the weights σ", ylabel="local energy, points of error")
middle.set(xlabel="eigenvalue of the Hessian", ylabel="density", ylim=(1e-4, 50))
right.set(xlabel="rank", ylabel="eigenvalue of the gradient noise, relative")
for panel in (left, middle, right):
    panel.legend(frameon=False)

# %% [markdown]
# | number | question |
# | --- | --- |
# | local energy | How many more errors are there when all weights are noisy? |
# | local entropy | How much volume of low loss is around here? What Entropy-SGD climbs. |
# | trace | How much does the loss rise on the average, for small steps in random directions? |
# | largest eigenvalue | How much along the worst one? Sets the learning rate that is stable. |
# | spectrum | How many directions are flat, how many steep? |
# | worst rise | How much may an adversary raise the loss within a ball? What SAM descends. |
# | gradient noise | In how many directions do the examples disagree? |
#
# Here the minimum of Entropy-SGD has half the trace and half the largest eigenvalue of the other,
# and more volume around it, while local energy and test error hardly tell them apart.
#
# ## Which of them can be fooled?
#
# Multiply the first layer of a ReLU network by 4 and divide the second by 4: the function is the
# same, so is every prediction. A number that changes was not about the function alone.


# %%
def rescaled(params, factor=4.0):
    first, last = (dict(layer) for layer in (params["layers"][0], params["layers"][2]))
    first = {name: factor * leaf for name, leaf in first.items()}
    last["kernel"] = last["kernel"] / factor
    return {**params, "layers": {**params["layers"], 0: first, 2: last}}


other = rescaled(sgd)
assert jnp.allclose(loss(other, data), loss(sgd, data), rtol=1e-4)
again, *_ = measure(other)
before = measured["SGD"][0]
for row in before:
    print(f"{row:34} {float(again[row][0] / before[row][0]):6.2f} times as large")
energy_ratio, top_ratio, trace_ratio = (
    float(again[row][0] / before[row][0])
    for row in ("local energy, σ = 0.5 (points)", "largest eigenvalue", "trace of the Hessian")
)
assert abs(energy_ratio - 1) < 0.02
assert max(top_ratio, 1 / top_ratio) > 1.5
assert max(trace_ratio, 1 / trace_ratio) > 1.5

# %% [markdown]
# Local energy with noise in proportion to each weight does not notice, and everything that is
# measured in the units of the weights does. So compare traces, eigenvalues and entropies between
# networks of the same architecture that were trained alike, and local energies between any two.
#
# ## What the surface looks like
#
# Slices along random directions, in which each filter is as long as the filter of the network, and
# the straight line from one minimum to the other.

# %%
steps = jnp.linspace(-1.5, 1.5, 31)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for color, (name, params) in zip((BLUE, ORANGE), minima.items(), strict=True):
    slices = [
        flatness.loss_slice(
            loss, params, data, [flatness.filter_normalized_direction(params, seed)], steps
        )
        for seed in range(5)
    ]
    left.plot(steps, jnp.mean(jnp.stack(slices), 0), color=color, label=name)
left.set(xlabel="multiple of a filter-normalized direction", ylabel="loss, mean of 5 directions")
left.legend(frameon=False)
line = flatness.linear_barrier(loss, sgd, entropic, data)
right.plot(line.positions, line.values, color="black")
right.set(xlabel="from SGD (0) to Entropy-SGD (1)", ylabel="loss", ylim=(0, None))
print(f"barrier {float(line.barrier):.3f} at a distance of {float(line.distance):.2f}")

# %% [markdown]
# Far from its minimum the slice of Entropy-SGD rises the faster of the two, though its trace is
# the smaller: slices answer yet another question. Both runs started from the same weights; the
# line tells whether they ended in one basin.
#
# ## Sharpness while training: the edge of stability
#
# Gradient descent on a quadratic diverges where the curvature exceeds $2 / \eta$. On a network,
# descent without any noise goes into ever sharper regions until it is there, and stays. `tracker`
# follows the largest eigenvalue from within the compiled training step, warm-started from the last
# time.

# %%
RATE, EVERY = 0.2, 50
few = images[:200] - images[:200].mean()
few = few / few.std() / 8, jax.nn.one_hot(labels[:200], 10)
rngs = nnx.Rngs(0)


def layer(inputs, outputs):
    return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)


small = nnx.Sequential(layer(64, 32), jnp.tanh, layer(32, 32), jnp.tanh, layer(32, 10))
squared_error, params = loss_of_params(
    small, lambda model, batch: jnp.mean(jnp.sum((model(batch[0]) - batch[1]) ** 2, -1)) / 2
)
optimizer = optax.sgd(RATE)
follow = flatness.tracker(squared_error, every=EVERY, learning_rate=RATE)


def step(carry, _):
    params, opt_state, state = carry
    grads = jax.grad(squared_error)(params, few)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    state, record = follow.update(state, params, updates, few)
    return (optax.apply_updates(params, updates), opt_state, state), record


start = params, optimizer.init(params), follow.init(params)
records = jax.jit(lambda start: jax.lax.scan(step, start, length=4000)[1])(start)
records = jax.tree.map(lambda leaf: leaf[::EVERY], records)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(records.step, records.sharpness, color=BLUE, label="largest eigenvalue")
left.plot(records.step, records.gradient_curvature, color=GREEN, label="along the gradient")
left.axhline(2 / RATE, color="black", linestyle="--", label="2 / learning rate")
left.set(xlabel="step", ylabel="curvature", ylim=(0, 14))
right.semilogy(records.step, records.loss, color=BLUE)
right.set(xlabel="step", ylabel="training loss")
left.legend(frameon=False, loc="upper left")
late = records.sharpness[-20:]
print(f"sharpness at the start {records.sharpness[0]:.1f}, at the end {late.mean():.1f}")
assert records.sharpness[0] < 0.5 * (2 / RATE)
assert jnp.all(jnp.abs(late * RATE / 2 - 1) < 0.25)

# %% [markdown]
# The sharpness grows to $2 / \eta$ and stays there, while the loss goes on falling. A larger
# learning rate ends at a flatter place: one of the reasons why it generalizes.
#
# The page *Flatness* has the cost of each estimator and how to read its error, and `python -m
# entropix.flatness` runs all of them on any model.
