"""Schedules of gamma against their formulas, and the converters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entropix
from entropix import scoping

FORMULAS = {
    "exponential": (scoping.exponential(0.01, 0.001), lambda t: 0.01 * 1.001**t),
    "exponential_to": (scoping.exponential_to(0.01, 1e4, 500), lambda t: 0.01 * 1e4 ** (t / 500)),
    "linear": (scoping.linear(0.01, 0.5), lambda t: 0.01 * (1 + 0.5 * t)),
    "quadratic": (scoping.quadratic(0.01, 0.5), lambda t: 0.01 * (1 + 0.5 * t**2)),
    "saturating": (scoping.saturating(0.01, 0.02), lambda t: 0.01 * (1 - np.exp(-0.02 * t))),
    "cosine": (
        scoping.cosine(0.01, 0.5, 600),
        lambda t: 0.01 + 0.49 * (1 - np.cos(np.pi * min(t, 600) / 600)) / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("step", [0, 1, 7, 500, 1000])
def test_formula(name, step):
    schedule, formula = FORMULAS[name]
    expected = pytest.approx(formula(step), rel=1e-5, abs=1e-12)
    assert schedule(step) == expected
    assert jax.jit(schedule)(jnp.int32(step)) == expected
    assert jax.jit(schedule)(jnp.int32(step)).dtype == jnp.float32


def test_exponential_keeps_its_digits_in_float32():
    """1.0001 rounded to float32 and raised to 1e5 would be off by 0.3 %."""
    assert scoping.exponential(1e-4, 1e-4)(100_000) == pytest.approx(
        1e-4 * 1.0001**100_000, rel=1e-5
    )


@pytest.mark.parametrize("step", [0, 10, 1000])
@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (scoping.exponential, (0.01, 0.1)),
        (scoping.exponential_to, (0.01, 1e4, 50)),
        (scoping.linear, (0.01, 0.5)),
        (scoping.quadratic, (0.01, 0.5)),
        (scoping.saturating, (1.0, 0.1)),
        (scoping.cosine, (0.01, 0.5, 100)),
    ],
)
def test_cap(build, arguments, step):
    assert build(*arguments, cap=0.05)(step) == pytest.approx(
        min(float(build(*arguments)(step)), 0.05)
    )


def test_automatic_makes_pull_and_loss_equal():
    params = {"w": jnp.array([[0.0, 1.0, 2.0], [4.0, 1.0, 0.0]]), "b": jnp.array([1.0, 3.0])}
    # Squared distances to the mean: (4 + 0 + 1) + 1 for each replica.
    assert scoping.automatic(3.0, params) == pytest.approx(0.5)
    moved = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), params)
    assert scoping.automatic(3.0, moved, axis=-1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="params must hold at least one array"):
        scoping.automatic(1.0, {})


def test_converters():
    assert scoping.from_parle(100.0) == 0.01
    assert scoping.from_deep_relaxation(0.1) == 10.0
    assert scoping.from_easgd(0.1 * 0.3, 0.1) == pytest.approx(0.3)
    assert scoping.from_easgd(0.9, 0.1, every=10) == pytest.approx(0.9)
    assert scoping.from_sacreddnn(0.25) == 0.5
    assert scoping.from_entropy_mcmc(4e-4) == pytest.approx(2500.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: scoping.exponential(-1, 0.1), "gamma_0 .*got -1"),
        (lambda: scoping.exponential(1, -1), "gamma_1 .*got -1"),
        (lambda: scoping.exponential_to(1, 0, 10), "factor .*got 0"),
        (lambda: scoping.exponential_to(1, 2, 0), "steps .*got 0"),
        (lambda: scoping.linear(1, -1), "gamma_1 .*got -1"),
        (lambda: scoping.saturating(1, 0), "tau .*got 0"),
        (lambda: scoping.cosine(1, -2, 10), "gamma_end .*got -2"),
        (lambda: scoping.linear(1, 1, cap=-1), "cap .*got -1"),
        (lambda: scoping.from_easgd(1.0, 0.1, every=0), "every .*got 0"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("every", [1, 2, 10])
@pytest.mark.parametrize("momentum", [None, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [True, False])
def test_replicas_meet_below_the_largest_stable_gamma_and_part_above(every, momentum, nesterov):
    rate = 0.05
    bound = scoping.largest_stable_gamma(rate, every=every, momentum=momentum, nesterov=nesterov)

    def distance(gamma):
        """From their mean, of replicas without a loss, after 3,000 steps from a distance of 1."""
        x, velocity = 1.0, 0.0
        for step in range(3000):
            pull = every * gamma * x if step % every == 0 else 0.0
            velocity = pull + (momentum or 0.0) * velocity
            x -= rate * (pull + (momentum or 0.0) * velocity if nesterov else velocity)
        return abs(x)

    assert distance(0.98 * bound) < 0.1
    assert distance(1.02 * bound) > 10


def test_replicated_sgd_diverges_above_the_largest_stable_gamma():
    def spread(factor):
        gamma = factor * scoping.largest_stable_gamma(0.1, every=2, momentum=0.9)
        tx = entropix.replicated_sgd(0.1, gamma=gamma, every=2, axis=0)
        x = jnp.array([-1.0, 1.0])

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(jnp.zeros(2), state, x)
            return (x + updates, state), None

        (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=600)
        return float(jnp.ptp(x))

    assert spread(0.95) < 0.1
    assert spread(1.05) > 10
    parts = scoping.parle_schedules(1, rho_cap=1.5)
    assert float(parts.rho(100)) == 1.5
