"""Real layers over devices: the work is divided, only couplings travel, the numbers stay."""

import functools

import jax
import numpy as np
import pytest

from entropix import replicas
from tests.replicas.networks import NETWORKS, batches, make_step, optimizer, start, vmapped
from tests.replicas.programs import between, collectives, inside_conditionals

Y, STEPS = 8, 4
QUICK = {"conv"}
ALL = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NETWORKS],
)


@pytest.fixture(autouse=True)
def strict_ranks():
    """Flax promotes ranks."""


class Run:
    """Some steps on one device or by a plan: its program, its state and answers at the end."""

    def __init__(self, name, y, devices, size):
        net = NETWORKS[name]
        plan = devices and replicas.plan(y, devices=devices)
        tx = optimizer(plan.axis_name if plan else "replicas")
        step, state = make_step(net, tx), start(net, tx, y)
        data = batches(net, y, size)
        if plan:
            run, state, data = plan.run(step), plan.place(state), [*map(plan.place_batch, data)]
        else:
            run = vmapped(step, state)
        compiled = run.lower(state, data[0]).compile()
        self.text, self.flops = compiled.as_text(), compiled.cost_analysis()["flops"]
        for at in range(STEPS):
            state, answer = jax.block_until_ready(compiled(state, data[at % 2]))
        rest = (state.params, state.batch_stats, state.opt_state, answer)
        self.found = plan.collect(rest) if plan else jax.device_get(rest)


@functools.cache
def run_on(name, y, devices=None, *, size=16):
    return Run(name, y, devices, size)


def assert_same(actual, expected, atol=2e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("devices", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_replicas_that_have_devices_of_their_own(name, devices):
    """Each device computes its own replicas only, and hears of the others at a coupling only."""
    one, many = run_on(name, Y), run_on(name, Y, devices)
    assert_same(many.found, one.found)
    assert one.flops / many.flops >= 0.9 * devices
    found = collectives(many.text)
    assert [each.kind for each in found] == ["all-reduce"]
    assert found[0].computation in inside_conditionals(many.text)


@pytest.mark.slow
@ALL
def test_devices_that_share_a_replica(name):
    """Two replicas on eight devices: batch statistics and dropout of the whole mini-batch."""
    # A batch against which an update of the parameters, which each device makes whole, is small.
    one, many = run_on(name, 2, size=128), run_on(name, 2, 8, size=128)
    assert_same(many.found, one.found)
    assert one.flops / many.flops >= 0.9 * 8
    found = collectives(many.text)
    assert {each.kind for each in found} == {"all-reduce"}
    conditional = inside_conditionals(many.text)
    assert all(each.computation in conditional for each in found if between(each, 4))
    assert any(between(each, 4) for each in found)
