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
# # From Entropy-SGD over Parle to DiLoCo, by three knobs
#
# Entropy-SGD was made to find wide minima, DiLoCo to train language models over slow networks.
# They are settings of one loop. This notebook turns its knobs, then trains a small GPT with four
# workers and counts what each way of working together sends.
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
import pydoc_data.topics
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import entropix
from entropix import replicas

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # for every kind of eye

# %% [markdown]
# ## One loop, three knobs
#
# From an anchor $x$, an inner optimizer makes $L$ steps, pulled back by $\gamma$; a running
# average $\mu$ of where it was is taken; the anchor then moves toward it:
#
# $$x' \leftarrow \mathrm{inner}\bigl(x',\, \nabla f(x') + \gamma (x' - x)\bigr), \qquad
# \mu \leftarrow \alpha \mu + (1 - \alpha)\, x', \qquad
# x \leftarrow \mathrm{outer}(x,\, x - \mu).$$
#
# | | pull $\gamma$ | average $\alpha$ | what the replicas share |
# | --- | --- | --- | --- |
# | Entropy-SGD | $> 0$ | 0.75 | there is one replica |
# | Parle | $> 0$ | 0.75 | anchors of their own, pulled together by $\rho$ |
# | Entropy-SGD of replicas at one anchor | $> 0$ | 0.75 | the anchor |
# | DiLoCo | 0 | 0: the last iterate | the anchor, and the outer momentum |
#
# Two quadratic losses that disagree about the minimum show what the knobs do: two workers, one
# bowl each.

# %%
BOWLS = jnp.array([[[1.0, 0.1], [-1.0, 1.0]], [[0.1, 1.0], [1.0, -1.0]]])  # curvatures, middles


def bowl_gradients(x, key):
    curvature, middle = BOWLS[:, 0], BOWLS[:, 1]
    return curvature * (x - middle) + 0.3 * jax.random.normal(key, x.shape)


best = (BOWLS[:, 0] * BOWLS[:, 1]).sum(0) / BOWLS[:, 0].sum(0)  # of the mean of the two losses


def paths(tx, num_steps=1200):
    x = jnp.zeros((2, 2)) + jnp.array([2.0, 1.5])

    def step(carry, key):
        x, state = carry
        updates, state = tx.update(bowl_gradients(x, key), state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), (x, entropix.eval_params(state, x))

    keys = jax.random.split(jax.random.key(0), num_steps)
    return jax.jit(lambda: jax.lax.scan(step, (x, tx.init(x)), keys)[1])()


def shared(gamma, ema_decay):
    outer = optax.chain(entropix.average_updates(axis=0), optax.sgd(0.7))
    return entropix.entropy_descent(
        outer, optax.sgd(0.05), inner_steps=40, gamma=gamma, ema_decay=ema_decay
    )


knobs = {
    "Entropy-SGD, each alone": entropix.entropy_descent(
        optax.sgd(0.7), optax.sgd(0.05), inner_steps=40, gamma=0.5
    ),
    "Parle, ρ = 1": entropix.parle(
        0.5,
        gamma=0.5,
        rho=1.0,
        inner_learning_rate=0.05,
        inner_steps=40,
        inner_momentum=None,
        axis=0,
    ),
    "one anchor, γ = 0.5": shared(0.5, 0.75),
    "DiLoCo": entropix.diloco(optax.sgd(0.05), optax.sgd(0.7), inner_steps=40, axis=0),
}
found = {name: paths(tx) for name, tx in knobs.items()}

# %%
fig, panels = plt.subplots(1, 4, figsize=(12, 3.5), sharey=True, layout="constrained")
for panel, (name, (iterates, anchors)) in zip(panels, found.items(), strict=True):
    for worker, color in enumerate((BLUE, ORANGE)):
        panel.plot(*iterates[:, worker].T, color=color, linewidth=0.4, alpha=0.7)
        panel.plot(*BOWLS[worker, 1], "x", color=color, markersize=9, markeredgewidth=2)
        last = jnp.broadcast_to(anchors[-1], (2, 2))[worker]
        panel.plot(*last, "o", color=color, markeredgecolor="black", zorder=3)
    panel.plot(*best, "*", color=GREEN, markersize=14, markeredgecolor="black")
    panel.set(title=name, xlabel="weight 1", xlim=(-1.7, 2.4), ylim=(-1.7, 2.2))
_ = panels[0].set_ylabel("weight 2")
ends = {name: jnp.broadcast_to(anchors[-1], (2, 2)) for name, (_, anchors) in found.items()}
gaps = {name: float(jnp.abs(end[0] - end[1]).max()) for name, end in ends.items()}
print({name: round(gap, 3) for name, gap in gaps.items()})
assert gaps["Parle, ρ = 1"] < 0.7 * gaps["Entropy-SGD, each alone"]
assert gaps["DiLoCo"] == 0

# %% [markdown]
# Crosses: the minimum of either worker's own loss; star: that of the mean of both; dots: the
# anchors at the end. Left, each worker goes home. The coupling $\rho$ brings the anchors nearer to
# each other. With one shared anchor the workers still set out for their own minima in each round,
# as far as $\gamma$ lets them: the narrower the scope, the nearer the anchor is to the minimum of
# the mean. DiLoCo has no pull, but its rounds end: $L$ steps of size $\eta$ are a scope of about
# $\gamma \approx 1 / (\eta L)$, here 0.5.
#
# ## The same to the last bit
#
# That the last two are one method is no figure of speech. Without pull, without average, and with
# an inner optimizer that goes on from round to round, Entropy-SGD with a shared anchor **is**
# DiLoCo.

# %%
adam, nesterov = optax.adam(0.02), optax.sgd(0.7, momentum=0.9, nesterov=True)
left = entropix.diloco(adam, nesterov, inner_steps=10, axis=0)
right = entropix.entropy_descent(
    optax.chain(entropix.average_updates(axis=0), nesterov),
    adam,
    inner_steps=10,
    gamma=0.0,
    ema_decay=0.0,
    reset_inner=False,
)
difference = float(jnp.abs(paths(left, 200)[0] - paths(right, 200)[0]).max())
print(f"largest difference in 200 steps: {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# ## A small GPT, four workers
#
# The text is the manual that comes with Python. Four workers read it at random places; the model
# predicts the next character.

# %%
text = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
text = re.sub(r"[^ -~\n]", "", re.sub(r"[ \n]+", " ", text))[:400_000]
alphabet = sorted(set(text))
codes = np.array([alphabet.index(character) for character in text], np.int32)
CONTEXT, WIDTH, WORKERS, BATCH = 32, 32, 4, 6


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Gpt(nnx.Module):
    def __init__(self, rngs):
        self.token = nnx.Embed(len(alphabet), WIDTH, rngs=rngs)
        self.place = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, len(alphabet), rngs=rngs)

    def __call__(self, tokens):
        x = self.token(tokens) + self.place(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


graph, start, rest = nnx.split(Gpt(nnx.Rngs(0)), nnx.Param, ...)
start = nnx.as_pure(start)
NUM_WEIGHTS = sum(leaf.size for leaf in jax.tree.leaves(start))


def loss(params, tokens):
    logits = nnx.merge(graph, params, rest)(tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def pieces(generator, *shape):
    places = generator.integers(0, len(codes) - 40_000 - CONTEXT, shape)
    return codes[places[..., None] + np.arange(CONTEXT + 1)]


held_out = codes[-40_000:][: 256 * (CONTEXT + 1)].reshape(256, CONTEXT + 1)
print(f"{NUM_WEIGHTS:,} weights, {len(alphabet)} characters")

# %% [markdown]
# The same model in Flax linen, folded up here, has the same weights; its loss takes the place of
# the other below.

# %% cellView="form" jupyter={"source_hidden": true} tags=["hide-input"]
# @title The same with Flax linen
from flax import linen


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        mask = linen.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x), mask=mask)
        hidden = linen.gelu(linen.Dense(4 * WIDTH)(linen.LayerNorm()(x)))
        return x + linen.Dense(WIDTH)(hidden)


class LinenGpt(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        x = linen.Embed(len(alphabet), WIDTH)(tokens)
        x = x + linen.Embed(CONTEXT, WIDTH)(jnp.arange(tokens.shape[1]))
        for _ in range(2):
            x = LinenBlock()(x)
        return linen.Dense(len(alphabet))(linen.LayerNorm()(x))


linen_gpt = LinenGpt()
linen_start = linen_gpt.init(jax.random.key(0), held_out[:1, :-1])


def linen_loss(params, tokens):
    logits = linen_gpt.apply(params, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


print(f"held-out loss before training {float(linen_loss(linen_start, held_out)):.2f}")
assert sum(leaf.size for leaf in jax.tree.leaves(linen_start)) == NUM_WEIGHTS

# %% [markdown]
# Every method gets the same mini-batches and the same number of steps. Data parallelism averages
# the gradients of all workers at each step. DiLoCo averages every $H$ steps what the workers did,
# and takes a step of Nesterov's momentum with it; with `Compression("int8")` the differences
# travel in one byte each. With $n$ weights and $M$ workers a ring all-reduce moves $8 n (M - 1) /
# M$ bytes through each worker.

# %%
STEPS, RATE = 200, 4e-3
exchange = 8 * NUM_WEIGHTS * (WORKERS - 1) / WORKERS


def worker_optimizer():
    return optax.adamw(optax.cosine_decay_schedule(RATE, STEPS, alpha=0.1))


def diloco(every, compression=None):
    outer = optax.sgd(0.7, momentum=0.5, nesterov=True)
    return entropix.diloco(
        worker_optimizer(), outer, inner_steps=every, compression=compression, axis=0
    )


methods = {  # the optimizer, and bytes through each worker in all
    "data parallel": (
        optax.chain(entropix.average_updates(axis=0), worker_optimizer()),
        exchange * STEPS,
    ),
    "DiLoCo, H = 10": (diloco(10), exchange * STEPS / 10),
    "DiLoCo, H = 50": (diloco(50), exchange * STEPS / 50),
    "DiLoCo, H = 50, int8": (
        diloco(50, entropix.Compression("int8")),
        exchange * STEPS / 50 * (1 + 4 / 256) / 4,
    ),
    "never a word": (worker_optimizer(), 0.0),
}


judge = jax.jit(loss)
# One compiled program for the gradients of all methods, and a small one for each of the updates.
gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))
batches = jnp.asarray(pieces(np.random.default_rng(0), STEPS, WORKERS, BATCH))


def train(tx):
    @jax.jit
    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = replicas.replicate(start, WORKERS)
    state, losses = tx.init(params), []
    for batch in batches:
        values, grads = gradients(params, batch)
        params, state = update(params, state, grads)
        losses.append(float(values.mean()))
    center = entropix.eval_params(state, params, axis=0)
    single = jax.tree.map(lambda leaf: leaf[0], params)
    return losses, *(float(judge(weights, held_out)) for weights in (center, single))


results = {name: train(tx) for name, (tx, _) in methods.items()}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
colors = dict(zip(methods, ("black", BLUE, GREEN, ORANGE, PINK), strict=True))
for name, (losses, shared_loss, single_loss) in results.items():
    smooth = np.convolve(losses, np.ones(15) / 15, "valid")
    left.plot(np.arange(len(smooth)) + 7, smooth, color=colors[name], linewidth=1, label=name)
    sent = methods[name][1]
    final = single_loss if name == "never a word" else shared_loss
    right.plot(max(sent / 1e6, 0.1), final, "o", color=colors[name], markersize=8)
    place = {"xytext": (9, 4), "textcoords": "offset points", "rotation": 20}
    right.annotate(name, (max(sent / 1e6, 0.1), final), **place)
    print(f"{name:22} {sent / 1e6:7.2f} MB per worker, held-out loss {final:.3f}")
left.set(xlabel="step", ylabel="training loss, nats per character", ylim=(None, 4.0))
left.legend(frameon=False)
right.set(xscale="log", xlabel="bytes through each worker, MB (left edge: none)")
right.set(ylabel="held-out loss of the shared weights", xlim=(0.05, 1000))
right.margins(y=0.25)

parallel, far, small = (
    results[name][1] for name in ("data parallel", "DiLoCo, H = 50", "DiLoCo, H = 50, int8")
)
assert far < results["never a word"][2] + 0.05
assert abs(small - far) < 0.05

# %% [markdown]
# Fifty times fewer bytes, and with int8 two hundred times fewer. What that costs in loss is read
# off the figure. The pink point is one worker that never talked; it needs no network, and has seen
# a quarter of the data.
#
# This run is short and small. The page *Local SGD and DiLoCo* has the family of methods, streaming
# and overlap, and what one exchange costs for large models.
