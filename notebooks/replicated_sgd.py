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
# # Replicated SGD: copies that look for a valley wide enough for all
#
# One walker falls into the first hole it meets. Several walkers, each pulled toward the mean of
# all, can only come to rest where there is room for all of them. This notebook lets them loose on
# a loss of two weights, then trains four copies of a Flax network on four devices, simulated if
# there are none.
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

# The cure for wrong reductions of jax 0.10.2 on CPU (other versions take no notice), and four
# devices where there is one processor.
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_experimental_ynn_fusion_type= --xla_force_host_platform_device_count=4 "
    + os.environ.get("XLA_FLAGS", "")
)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx
from sklearn.datasets import load_digits

import entropix
from entropix import flatness, replicas, scoping

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # for every kind of eye

# %% [markdown]
# ## A valley among holes
#
# The loss has one wide valley, left of the middle, and seventy narrow holes around it. A walker
# that is in a hole sees nothing of the valley; a hole has so little volume that weights that are
# perturbed a little fall out of it.

# %%
VALLEY = jnp.array([-0.8, 0.4])
holes = jax.random.uniform(jax.random.key(0), (150, 2), minval=-3, maxval=3)
holes = holes[jnp.linalg.norm(holes - VALLEY, axis=1) > 0.9][:70]


def loss(w):
    wide = jnp.exp(-jnp.sum((w - VALLEY) ** 2) / (2 * 1.1**2))
    narrow = jnp.exp(-jnp.sum((w - holes) ** 2, axis=1) / (2 * 0.15**2))
    return 2.4 - 2.0 * wide - 0.4 * jnp.sum(narrow) + 0.05 * jnp.sum(w**2)


axis = jnp.linspace(-3.2, 3.2, 161)
surface = jax.vmap(lambda b: jax.vmap(lambda a: loss(jnp.array([a, b])))(axis))(axis)


def draw_loss(panel):
    panel.contourf(axis, axis, surface, levels=24, cmap="Greys_r")
    panel.set(xlabel="weight 1", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")


# %% [markdown]
# ## Seven replicas
#
# Every replica $a$ of $y$ descends the loss with noise of its own, as mini-batches would give it,
# and on every $K$-th step is pulled toward the mean of all:
#
# $$d^a = \nabla f(x^a) + K \gamma \,(x^a - \bar x), \qquad x^a \leftarrow x^a - \eta\, d^a,
# \qquad \bar x = \frac1y \sum_a x^a.$$
#
# The coupling $\gamma$ starts small, so that the replicas look around, and grows, so that they
# have to agree. `couple_replicas` adds the pull and goes in front of any optimizer. Here the
# replicas are stacked on the leading axis.

# %%
RATE, NUM_STEPS = 0.02, 800


def train(starts, key, *, final=5.0, every=1):
    tx = optax.sgd(RATE)
    if final is not None:
        cap = 0.5 * scoping.largest_stable_gamma(RATE, every=every)
        gamma = scoping.exponential_to(final / 10, 10.0, NUM_STEPS, cap=cap)
        tx = optax.chain(entropix.couple_replicas(gamma, every=every, axis=0), tx)

    def step(carry, key):
        x, state = carry
        noisy = jax.vmap(jax.grad(loss))(x) + 2.0 * jax.random.normal(key, x.shape)
        updates, state = tx.update(noisy, state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    keys = jax.random.split(key, NUM_STEPS)
    return jax.lax.scan(step, (starts, tx.init(starts)), keys)[1]


start = jax.random.uniform(jax.random.key(5), (7, 2), minval=-3, maxval=3)
alone = jax.jit(lambda: train(start, jax.random.key(1), final=None))()
coupled = jax.jit(lambda: train(start, jax.random.key(1)))()

# %%
fig, panels = plt.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
for panel, paths, title in zip(panels, (alone, coupled), ("alone", "coupled"), strict=True):
    draw_loss(panel)
    panel.plot(paths[:, :, 0], paths[:, :, 1], color=BLUE, linewidth=0.5, alpha=0.7)
    panel.plot(*paths[0].T, "o", color="white", markeredgecolor=BLUE, label="start of a replica")
    panel.plot(*paths[-1].T, "o", color=ORANGE, markeredgecolor="black", label="its end")
    panel.set_title(f"seven replicas, {title}")
panels[1].plot(*coupled[-1].mean(0), "*", color=GREEN, ms=17, mec="black", label="their center")
panels[0].set_ylabel("weight 2")
_ = panels[1].legend(loc="upper right")

# %% [markdown]
# Dark is low. Alone, a replica is caught by the first hole on its way. Coupled, they are pulled
# out of holes that have room for one only, and end together in the wide valley.
#
# ## How many replicas, how strong a pull, how often?
#
# One picture is no proof. The same from 60 random starts each, for several $y$, final $\gamma$
# (ten times that of the start) and $K$: what share of the replicas ends in the valley?


# %%
def share_in_valley(y, **options):
    def end(key):
        first, second = jax.random.split(key)
        start = jax.random.uniform(first, (y, 2), minval=-3, maxval=3)
        return train(start, second, **options)[-1]

    ends = jax.jit(jax.vmap(end))(jax.random.split(jax.random.key(2), 60))
    return float(jnp.mean(jnp.linalg.norm(ends - VALLEY, axis=-1) < 0.8))


sizes, couplings, periods = (1, 2, 3, 5, 9), (0.1, 0.5, 2.0, 10.0), (1, 3, 10)
by_size = [share_in_valley(1, final=None), *map(share_in_valley, sizes[1:])]
by_coupling = [share_in_valley(5, final=gamma) for gamma in couplings]
by_period = [share_in_valley(5, every=k) for k in periods]

# %%
fig, panels = plt.subplots(1, 3, figsize=(10, 3.3), sharey=True, layout="constrained")
for panel, x, shares, name in zip(
    panels,
    (sizes, couplings, periods),
    (by_size, by_coupling, by_period),
    ("replicas y", "final coupling γ (y = 5)", "steps between pulls K (y = 5)"),
    strict=True,
):
    panel.plot(range(len(x)), shares, "o-", color=BLUE)
    panel.set(xlabel=name, ylim=(0, 1.05), xticks=range(len(x)), xticklabels=[f"{v:g}" for v in x])
_ = panels[0].set_ylabel("share of replicas in the valley")
print(f"one walker {by_size[0]:.0%}, five replicas {by_size[3]:.0%}")
print(f"five replicas: K = 1 {by_period[0]:.0%}, K = 10 {by_period[-1]:.0%}")
assert by_size[3] > by_size[0] + 0.2
assert by_coupling[2] > by_coupling[0] + 0.2
assert by_period[-1] > by_period[0] - 0.15

# %% [markdown]
# Alone, half of the walkers miss the valley. A few replicas find it far more often, and more than
# a few add little. A pull that stays weak leaves everyone in a hole of their own; one that is
# strong from the start makes one walker of all, before they have looked around. Seldom pulls work
# as well as one on each step, because each is $K$ times as strong; between them nothing has to be
# communicated.
#
# ## Four copies of a network on four devices
#
# A step is written for **one** replica. A `plan` lays $y$ replicas over the devices at hand, and
# the name of its axis tells the optimizer where the others are.

# %%
images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
shuffled = jax.random.permutation(jax.random.key(0), len(labels))
images, labels = images[shuffled], labels[shuffled]
train_images, train_labels, test_images, test_labels = (
    images[:600],
    labels[:600],
    images[600:],
    labels[600:],
)


def network(key):
    rngs = nnx.Rngs(key)
    return nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 10, rngs=rngs))


graph, _ = nnx.split(network(0), nnx.Param)


def cross_entropy(params, batch):
    x, y = batch
    logits = nnx.merge(graph, params)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def error(params, batch):
    x, y = batch
    return jnp.mean(nnx.merge(graph, params)(x).argmax(-1) != y)


Y, STEPS = 4, 240
plan = replicas.plan(Y, devices=min(Y, jax.device_count()))
gamma = scoping.exponential_to(1e-3, 300.0, 200)
tx = entropix.replicated_sgd(0.05, gamma=gamma, every=10, axis_name=plan.axis_name)


def step(state, batch):  # of one replica, on its own mini-batch
    params, opt_state = state
    grads = jax.grad(cross_entropy)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None


params = replicas.replicate(lambda key: nnx.as_pure(nnx.split(network(key), nnx.Param)[1]), Y)
state = plan.place((params, replicas.stack_states(tx.init, params)))
run, spread_of = plan.run(step), jax.jit(lambda params: replicas.spread(params).total)
rows = jax.random.randint(jax.random.key(1), (STEPS, Y, 32), 0, len(train_labels))
spread = []
for chosen in rows:
    state, _ = run(state, plan.place_batch((train_images[chosen], train_labels[chosen])))
    spread.append(float(spread_of(state[0])))  # also waits: few cores act as four devices
params, opt_state = jax.tree.map(jnp.asarray, plan.collect(state))  # on one device again
center = entropix.eval_params(opt_state, params, axis=0)
print(f"{Y} replicas on {min(Y, jax.device_count())} devices")

# %% [markdown]
# With Flax linen, folded up here, only the model's function and its initialization are others.

# %% cellView="form" jupyter={"source_hidden": true} tags=["hide-input"]
# @title The same with Flax linen
from flax import linen

net = linen.Sequential([linen.Dense(64), linen.relu, linen.Dense(10)])


def linen_step(state, batch):  # of one replica, on its own mini-batch
    def loss(params):
        x, y = batch
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y).mean()

    params, opt_state = state
    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value


linen_params = replicas.replicate(lambda key: net.init(key, images), Y)
linen_state = plan.place((linen_params, replicas.stack_states(tx.init, linen_params)))
linen_run, losses = plan.run(linen_step), []
for chosen in rows[:50]:
    batch = plan.place_batch((train_images[chosen], train_labels[chosen]))
    linen_state, values = linen_run(linen_state, batch)
    losses.append(float(values.mean()))
print(f"mean loss of the replicas {losses[0]:.2f}, after 50 steps {losses[-1]:.2f}")
assert losses[-1] < losses[0]

# %% [markdown]
# Is the center better than the replicas? Each judged on the test images, and by its *local
# energy*: the rise of the training error when every weight is multiplied by $1 + \sigma z$.

# %%
test = (test_images, test_labels)
sigma = jnp.array([0.1, 0.2, 0.3, 0.4, 0.5])
energy = jax.jit(
    lambda params: (
        flatness.local_energy(
            error, params, (train_images, train_labels), 0, sigma=sigma, num_samples=40
        ).mean
    )
)
singles = [jax.tree.map(lambda leaf, a=a: leaf[a], params) for a in range(Y)]
single_errors = [float(error(single, test)) for single in singles]
center_error = float(error(center, test))
single_energies, center_energy = jnp.stack([energy(single) for single in singles]), energy(center)

fig, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
panels[0].plot(spread, color=BLUE)
panels[0].set(xlabel="step", ylabel="spread of the replicas, per weight", ylim=(0, None))
panels[1].plot(sigma, 100 * single_energies.T, color=ORANGE, label="single replicas")
panels[1].plot(sigma, 100 * center_energy, "o-", color=GREEN, label="center")
panels[1].set(xlabel="noise on the weights σ", ylabel="rise of the error, points", ylim=(0, None))
handles, names = panels[1].get_legend_handles_labels()
_ = panels[1].legend(dict(zip(names, handles, strict=True)).values(), dict.fromkeys(names))
print("test error of the replicas", [f"{e:.1%}" for e in single_errors])
print(f"test error of the center    {center_error:.1%}")
assert center_error <= sum(single_errors) / Y + 0.01
assert spread[-1] < 0.5 * max(spread)

# %% [markdown]
# The replicas start at initializations of their own, far apart, and meet. The last figures say
# what the meeting was worth on these few images; `python -m benchmarks compare` does it with
# several seeds, error bars and the same number of gradients for everybody. The page *Replicated
# SGD* says how strong the pull should be, *Replicas on devices* what else a plan can do.
