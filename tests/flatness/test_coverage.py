"""Bars hold at the stated rate over 200 keys, bounds at every key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from entropix.flatness import Operator, diagonal, eigenvalues, local_energy, spectrum, trace

RNG = np.random.default_rng(0)
KEYS, SIZE = 200, 52
VALUES = np.concatenate([RNG.normal(size=SIZE - 2), [6.0, -4.0]])
BASIS, _ = np.linalg.qr(RNG.normal(size=(SIZE, SIZE)))
MATRIX = BASIS * VALUES @ BASIS.T
GRID, WIDTH = np.array([-1.0, 0.0, 1.0, 6.0]), 0.5


def operator(rounding=None):
    """With a unit of rounding, the noise of products that are rounded to it is in them."""
    a = jnp.asarray(MATRIX)

    def product(v):
        w = jnp.matmul(a, v)
        return w if rounding is None else w.astype(jnp.bfloat16).astype(w.dtype)

    return Operator.from_matvec(product, jnp.zeros(SIZE))


def density(key):
    found = spectrum(operator(), key, num_steps=SIZE, num_probes=20, probe_batch_size=20)
    return found.density(jnp.asarray(GRID), WIDTH)


def moment(key, order):
    found = spectrum(operator(), key, num_steps=8, num_probes=20, probe_batch_size=20)
    return found.moment(order)


def energy(key, kind):
    """Of a quadratic at its minimum, for one level of noise."""
    a, w = jnp.asarray(MATRIX), jnp.linspace(1, 2, SIZE)
    return local_energy(
        lambda p, x: jnp.mean(x) * (p - w) @ jnp.matmul(a, p - w) / 2, w, jnp.ones(1), key,
        sigma=0.1, kind=kind, num_samples=100, sample_batch_size=100,
    )[1:3]  # fmt: skip


SQUARES = np.linspace(1, 2, SIZE) ** 2
# key -> (mean, standard error); the truth; degrees of freedom.
BARS = {
    "hutchinson": (
        lambda key: trace(operator(), key, num_probes=30, method="hutchinson", probe_batch_size=30),
        VALUES.sum(),
        29,
    ),
    "xtrace": (lambda key: trace(operator(), key, num_probes=30), VALUES.sum(), 14),
    "diagonal": (lambda key: diagonal(operator(), key, num_probes=30), np.diag(MATRIX), 29),
    "trace of the spectrum": (functools.partial(moment, order=1), VALUES.sum(), 19),
    "trace of the square": (functools.partial(moment, order=2), (VALUES**2).sum(), 19),
    "density": (
        density,
        scipy.stats.norm(VALUES, WIDTH).pdf(GRID[:, None]).mean(1),
        19,
    ),
    "local energy": (
        functools.partial(energy, kind="multiplicative"),
        0.005 * np.diag(MATRIX) @ SQUARES,
        99,
    ),
    "additive local energy": (
        functools.partial(energy, kind="additive"), 0.005 * VALUES.sum(), 99
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BARS)
@pytest.mark.slow
def test_bars_hold_at_the_stated_rate(name, x64):
    """95 % within Student's interval, as nearly as 200 keys can tell (three deviations)."""
    run, truth, degrees = BARS[name]
    mean, error = jax.vmap(run)(jax.random.split(jax.random.key(1), KEYS))
    off = np.abs(np.asarray(mean) - truth)
    # Entries of one answer depend on each other, and count as one.
    inside = np.mean(off < scipy.stats.t(degrees).ppf(0.975) * np.asarray(error))
    noise = 3 * (0.05 * 0.95 / KEYS) ** 0.5
    # The jackknife of XTrace errs on the side of too large bars.
    assert 0.95 - noise <= inside <= (1 if name == "xtrace" else 0.95 + noise)
    center = np.abs(np.mean(mean, 0) - truth)
    assert np.all(center < 4 * np.std(mean, 0) / KEYS**0.5)


@pytest.mark.parametrize("rounding", [None, 2.0**-7])
@pytest.mark.slow
def test_bounds_hold_at_every_key(rounding, x64):
    h = operator(rounding)
    h = Operator(h.matvec, h.space, h.rounding if rounding is None else rounding)

    def bounds(key):
        found = [eigenvalues(h, key, k=2, which=which, tol=1e-2) for which in ("largest", "both")]
        nodes = spectrum(h, key, num_steps=12, num_probes=2)
        values = jnp.concatenate([one.eigenvalues for one in found] + [nodes.nodes.ravel()])
        errors = jnp.concatenate([one.residuals for one in found] + [nodes.residuals.ravel()])
        ends = nodes.top, nodes.bottom
        return (
            jnp.append(values, jnp.stack([end.value for end in ends])),
            jnp.append(errors, jnp.stack([end.bound for end in ends])),
        )

    values, errors = jax.vmap(bounds)(jax.random.split(jax.random.key(2), KEYS))
    off = np.abs(np.asarray(values)[..., None] - VALUES).min(-1)
    assert np.all(off <= errors + 1e-12)
