"""Schedules of gamma against their formulas, and the converters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def settled(curvature, share=0.5, **test):
    """The coupling found on a parabola by a loop that has settled."""
    make = lambda gamma: entropix.entropy_sgd(
        inner_learning_rate=0.02, inner_steps=300, gamma=gamma, noise=0.0, ema_decay=0.75
    )
    grad_fn = lambda x, batch: curvature * x
    return scoping.find_gamma(
        make, grad_fn, jnp.array([1.0, -2.0]), jnp.zeros(300), share=share, **test
    )


@pytest.mark.slow
def test_half_of_the_way_to_the_minimum_is_at_the_curvature():
    found = settled(0.7)
    assert found.gamma == pytest.approx(0.7, rel=1e-3)
    np.testing.assert_allclose(found.ways[:10], 0.7 / (0.7 + found.gammas[:10]), rtol=1e-3)
    np.testing.assert_allclose(found.gammas, np.geomspace(1e-4, 1e2, 13), rtol=1e-6)


@pytest.mark.slow
def test_other_curvatures_shares_and_ranges():
    assert settled(5.0).gamma == pytest.approx(5.0, rel=1e-3)
    # h / (h + gamma) = 1 / 5 at 4 h.
    assert settled(0.7, share=0.2).gamma == pytest.approx(2.8, rel=1e-3)
    few = settled(0.7, low=0.01, high=10.0, num_gammas=4)
    assert few.gamma == pytest.approx(0.7, rel=1e-3)
    assert np.isnan(settled(0.7, low=1.0).gamma)
    assert np.isnan(settled(0.7, high=0.1).gamma)


@pytest.mark.slow
def test_a_loop_too_short_to_settle_knows_its_own_length():
    """On a slope the way is (1 - exp(-gamma t)) / gamma: one half of t at gamma = 1.594 / t."""
    steps, rate = 400, 1e-2
    for momentum in (None, 0.9):
        make = lambda gamma, momentum=momentum: entropix.entropy_descent(
            optax.sgd(1.0),
            optax.sgd(rate, momentum=momentum),
            inner_steps=steps, gamma=gamma, ema_decay=0.0,
        )  # fmt: skip
        found = scoping.find_gamma(
            make, lambda x, batch: jnp.ones(3), jnp.zeros(3), jnp.zeros(steps), num_gammas=40
        )
        time = rate * steps / (1 - (momentum or 0.0))
        # The velocity takes 1 / (1 - m) steps to grow.
        assert found.gamma == pytest.approx(1.594 / time, rel=0.02 if momentum is None else 0.06)


@pytest.mark.slow
def test_replicas_that_always_disagree_are_held_back_by_half_at_the_curvature():
    targets = jax.random.normal(jax.random.key(0), (3, 5))
    found = scoping.find_gamma(
        lambda gamma: entropix.replicated_sgd(0.05, gamma=gamma, every=2, axis=0),
        lambda x, target: 0.8 * (x - target),
        jnp.zeros((3, 5)),
        jnp.broadcast_to(targets, (400, 3, 5)),
        high=1.0, axis=0,
    )  # fmt: skip
    # Coupled at every other step with twice the strength, and evaluated in between.
    assert found.gamma == pytest.approx(0.8, rel=0.05)


@pytest.mark.slow
def test_replicas_whose_gradients_are_noise_are_held_back_by_half_at_three_times_the_curvature():
    noise = jax.random.normal(jax.random.key(0), (1200, 2, 1000))
    found = scoping.find_gamma(
        lambda gamma: entropix.replicated_sgd(0.01, gamma=gamma, every=1, momentum=None, axis=1),
        lambda x, z: 0.5 * x + z,
        jnp.zeros((1000, 2)),
        noise,
        low=0.1, high=10.0, num_gammas=5, axis=1,
    )  # fmt: skip
    # The variance is 1 / (1 - (1 - eta (h + gamma))^2) in units of eta^2.
    assert found.gamma == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize(
    ("named", "error", "message"),
    [
        ({"share": 0.0}, ValueError, "share .*> 0 and < 1.*got 0"),
        ({"share": 1.0}, ValueError, "share .*> 0 and < 1.*got 1"),
        ({"low": 0.0}, ValueError, "low .*> 0.*got 0"),
        ({"low": 1.0, "high": 0.5}, ValueError, "high .*> 1.*got 0.5"),
        ({"num_gammas": 1}, ValueError, "num_gammas .*>= 2.*got 1"),
        ({"num_gammas": 2.0}, TypeError, "num_gammas .*>= 2.*got 2.0"),
    ],
)
def test_bad_input_of_the_finder(named, error, message):
    with pytest.raises(error, match=message):
        settled(1.0, **named)
