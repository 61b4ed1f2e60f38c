"""Mini-batches and budgets."""

import numpy as np
import pytest

from benchmarks.common.batches import BatchOrder
from benchmarks.common.budget import plan_budget
from benchmarks.common.methods import METHODS
from benchmarks.common.options import UsageError


def test_one_pass_shows_each_example_once():
    order = BatchOrder(num_examples=12, batch_size=4, seeds=(0, 1), replicas=2)
    first, second = order.indices(0, 3), order.indices(3, 6)
    assert first.shape == (3, 2, 2, 4)
    for seed in range(2):
        for replica in range(2):
            np.testing.assert_array_equal(np.sort(first[:, seed, replica].ravel()), np.arange(12))
    assert (first != second).any()


def test_the_incomplete_batch_is_left_out():
    order = BatchOrder(num_examples=11, batch_size=4, seeds=(0,))
    assert order.steps_per_epoch == 2
    assert len(set(order.indices(0, 2).ravel())) == 8


def test_order_depends_on_seed_replica_and_step_only():
    wide = BatchOrder(100, 10, seeds=(3, 4), replicas=2)
    narrow = BatchOrder(100, 10, seeds=(4,))
    np.testing.assert_array_equal(wide.indices(7, 25)[:, 1, 0], narrow.indices(7, 25)[:, 0, 0])
    np.testing.assert_array_equal(
        wide.indices(0, 25), np.concatenate([wide.indices(0, 13), wide.indices(13, 25)])
    )
    assert (wide.indices(0, 1)[0, 0, 0] != wide.indices(0, 1)[0, 0, 1]).any()


def chosen(*names):
    return [(METHODS[name], METHODS[name].hyperparameters("mlp", {})) for name in names]


def test_budget_is_whole_cycles_of_all_methods():
    budget = plan_budget(9380, 3, 24, chosen(*METHODS))
    assert budget.gradients == 9300
    assert budget.interval % 300 == 0
    for name, method in METHODS.items():
        factor = 3 if name == "replicated_sgd_y" else 1
        assert budget.total(method) == 9300 * factor
        assert budget.steps(method) * budget.gradients_per_step(method) == budget.total(method)
        stops = budget.stops(method)
        assert stops[-1] == budget.steps(method)
        assert stops == sorted(set(stops))
        cycle = method.cycle_steps(method.defaults)
        assert all(stop % cycle == 0 for stop in stops)


def test_a_budget_short_of_one_cycle_is_refused():
    with pytest.raises(UsageError, match=r"30 gradients is too small.*multiples of 300"):
        plan_budget(30, 3, 24, chosen(*METHODS))
    assert plan_budget(30, 3, 24, chosen("sgd")).gradients == 30
