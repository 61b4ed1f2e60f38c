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
# # Entropy-SGD in one dimension, and on a network
#
# A minimum is worth more if its neighborhood is low too. This notebook shows what that does to a
# loss of one weight, lets Entropy-SGD loose on it, and then trains a small Flax network in ten
# lines.
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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx

import entropix
from entropix.nn import eval_model

COLORS = ("#0072B2", "#D55E00", "#009E73")  # told apart by the color-blind

# %% [markdown]
# ## A sharp and a wide minimum
#
# The loss $f$ has a wide valley on the left and a narrow, deeper one on the right. The local
# entropy
#
# $$F(x, \gamma) = \log \int e^{-f(x') - \frac{\gamma}{2} (x - x')^2} dx'
# + \tfrac12 \log \frac{\gamma}{2 \pi}$$
#
# sees a neighborhood of width $1 / \sqrt\gamma$. In one dimension it is a convolution, and a grid
# is enough.


# %%
def loss(x):
    wide = jnp.exp(-((x + 1.2) ** 2) / (2 * 0.7**2))
    narrow = 1.25 * jnp.exp(-((x - 1.5) ** 2) / (2 * 0.09**2))
    return 3 * (1.3 - wide - narrow) + 0.1 * x**2


grid = jnp.linspace(-6, 6, 2401)
shown = jnp.abs(grid) <= 3


@jax.jit
def local_entropy(gamma):
    exponent = -loss(grid)[None, :] - gamma / 2 * (grid[:, None] - grid[None, :]) ** 2
    integral = jax.nn.logsumexp(exponent, axis=1) + jnp.log(grid[1] - grid[0])
    return integral + jnp.log(gamma / (2 * jnp.pi)) / 2


fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
for axis, gamma, color in zip(axes, (100.0, 10.0, 1.0), COLORS, strict=True):
    smooth = -local_entropy(gamma)
    lowest = jnp.argmin(jnp.where(shown, smooth, jnp.inf))
    axis.plot(grid[shown], loss(grid)[shown], color="black", label="loss f")
    axis.plot(grid[shown], smooth[shown], color=color, linestyle="--", label="−F")
    axis.plot(grid[lowest], smooth[lowest], "o", color=color)
    axis.set(title=f"γ = {gamma:g}", xlabel="weight x")
    axis.legend(frameon=False)
_ = axes[0].set_ylabel("loss, minus local entropy")

# %% [markdown]
# The lowest point of $-F$ is marked. The narrow valley is the deepest of $f$, but not of $-F$, not
# even at $\gamma = 100$: it has less volume than the wide one. As $\gamma$ falls it fills up,
# and at $\gamma = 1$ it is gone.
#
# ## Entropy-SGD on it
#
# Entropy-SGD estimates $-\nabla F = \gamma (x - \langle x' \rangle)$ by a walk around the anchor
# $x$. At temperature 1 the noise of each inner step has the standard deviation $\sqrt{2 \eta'}$;
# the papers use far less. Two hundred walkers start all over the line, and `vmap` gives each its
# own key.

# %%
INNER_RATE = 0.002


def train(tx, start, key, num_steps):
    state = tx(key).init(start)

    def step(carry, _):
        x, state = carry
        updates, state = tx(key).update(jax.grad(loss)(x), state, x)
        return (optax.apply_updates(x, updates), state), None

    (x, state), _ = jax.lax.scan(step, (start, state), length=num_steps)
    return entropix.eval_params(state, x)


def entropic(gamma):
    return lambda key: entropix.entropy_descent(
        optax.sgd(0.3),
        optax.sgd(INNER_RATE),
        inner_steps=1000,
        gamma=gamma,
        noise_std=(2 * INNER_RATE) ** 0.5,
        ema_decay=0.998,
        debias=True,
        key=key,
    )


starts = jnp.linspace(-3, 3, 200)
keys = jax.random.split(jax.random.key(0), 200)
ends = {
    "SGD": jax.vmap(lambda x, key: train(lambda _: optax.sgd(INNER_RATE), x, key, 60_000))(
        starts, keys
    ),
    "γ = 10": jax.vmap(lambda x, key: train(entropic(10.0), x, key, 60_000))(starts, keys),
    "γ = 1": jax.vmap(lambda x, key: train(entropic(1.0), x, key, 60_000))(starts, keys),
}
wide = {name: float(jnp.mean(jnp.abs(x + 1.2) < 1.0)) for name, x in ends.items()}
for name, share in wide.items():
    print(f"{name}: {share:.0%} end in the wide valley")

# %%
fig, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
axis.plot(grid[shown], loss(grid)[shown], color="black", label="loss f")
for offset, (color, (name, x)) in enumerate(zip(COLORS, ends.items(), strict=True)):
    axis.plot(x, jnp.full_like(x, -0.6 - 0.7 * offset), "|", color=color, label=name)
axis.set(xlabel="weight x", ylabel="loss; below it, where the walkers ended")
_ = axis.legend(frameon=False, loc="center right")

# %% [markdown]
# SGD stays in the valley in which it starts. At $\gamma = 10$ the neighborhood shows the narrow
# valley to walkers further away, and some more end there. At $\gamma = 1$ it is wide enough to
# weigh the volumes of both, and nine walkers in ten end in the wide valley.
#
# ## A Flax network in ten lines

# %%
x = jax.random.normal(jax.random.key(0), (1000, 4))
y = (x[:, 0] * x[:, 1] > 0).astype(int)  # a straight line gets half of them wrong
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(4, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 2, rngs=rngs))
optimizer = nnx.Optimizer(model, entropix.entropy_sgd(), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


for start in list(range(0, 1000, 100)) * 60:
    step(model, optimizer, x[start : start + 100], y[start : start + 100])

evaluated = eval_model(model, optimizer)  # the anchor: the weights to evaluate
errors = float((evaluated(x).argmax(1) != y).mean())
print(f"{errors:.1%} wrong")
assert errors < 0.03

# %% [markdown]
# The same with Flax linen, folded up. There the parameters are a tree of their own, and
# `eval_params` gives the tree to evaluate.

# %% cellView="form" jupyter={"source_hidden": true} tags=["hide-input"]
# @title The same with Flax linen
from flax import linen
from flax.training.train_state import TrainState

net = linen.Sequential([linen.Dense(64), linen.relu, linen.Dense(2)])
variables = net.init(jax.random.key(0), x)
state = TrainState.create(apply_fn=net.apply, params=variables, tx=entropix.entropy_sgd())


@jax.jit
def linen_step(state, x, y):
    def loss(params):
        logits = state.apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


for start in list(range(0, 1000, 100)) * 60:
    state = linen_step(state, x[start : start + 100], y[start : start + 100])

anchor = entropix.eval_params(state.opt_state, state.params)
errors = float((net.apply(anchor, x).argmax(1) != y).mean())
print(f"{errors:.1%} wrong")
assert errors < 0.03
