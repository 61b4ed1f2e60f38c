"""Traffic read from known programs, and the table of the scaling experiment."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.common.options import UsageError
from benchmarks.common.traffic import bytes_per_step, collectives
from benchmarks.scaling.main import Program, Scaling, run, table
from entropix import replicas


def program(fn, *arguments):
    return jax.jit(fn).lower(*arguments).compile().as_text()


def test_traffic_of_known_programs():
    """1,000 float32 and 3 integers of each device are summed; inside a branch, sometimes."""
    plan = replicas.plan(8)
    x = plan.place({"a": jnp.ones((8, 1000)), "b": jnp.ones((8, 3), jnp.int32)})
    mean = lambda x: jax.tree.map(lambda leaf: leaf - leaf.sum(0, keepdims=True), x)
    always = program(mean, x)
    assert sum(one.payload for one in collectives(always)) == 4000 + 12
    assert not any(one.conditional for one in collectives(always))
    assert bytes_per_step(always, 10) == 4012
    sometimes = program(lambda t, x: jax.lax.cond(t == 0, mean, lambda x: x, x), jnp.int32(1), x)
    assert all(one.conditional for one in collectives(sometimes))
    assert bytes_per_step(sometimes, 10) == 401.2
    assert collectives(program(lambda x: jax.tree.map(lambda leaf: 2 * leaf, x), x)) == []


@pytest.mark.slow
def test_the_traffic_of_a_step_of_replicas():
    """All parameters and the share of finite replicas, in float32, on every K-th step."""
    program = Program(Scaling(batch_size=16), 4, 2, 10)
    assert program.traffic == 4 * (program.parameters + 1) / 10


@pytest.mark.slow
def test_a_small_table(tmp_path):
    config = Scaling(
        replicas=(1, 4), devices=(1, 2), rounds=2, batch_size=16, output=tmp_path / "out"
    )
    assert run(config) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    cells = {(c["replicas"], c["devices"], c["every"]): c for c in found["cells"]}
    assert set(cells) == {(1, 1, 1), (1, 2, 1), (4, 1, 1), (4, 1, 10), (4, 2, 1), (4, 2, 10)}
    assert cells[1, 1, 1]["ratio"] == 1
    assert cells[4, 1, 1]["traffic"] == cells[1, 1, 1]["traffic"] == 0
    # All parameters and the share of finite replicas, in float32.
    assert cells[4, 2, 1]["traffic"] == 4 * (found["parameters"] + 1)
    np.testing.assert_allclose(cells[4, 2, 10]["traffic"], cells[4, 2, 1]["traffic"] / 10)
    assert cells[1, 2, 1]["traffic"] >= 4 * found["parameters"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert len([line for line in text.splitlines() if line.startswith("| 2 |")]) == 2
    assert list(table(found)["devices D"]) == ["1", "1", "2", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": (3,)}, r"--every takes divisors of 10, got \(3,\)"),
        ({"replicas": (2, 4)}, "must hold 1, which the others are compared with"),
        ({"devices": (1, 0)}, r"--devices takes numbers of at least 1, got \(1, 0\)"),
        ({"devices": (1, 64), "replicas": (1, 64)}, "--devices: 64 asked for, 8 are there"),
        ({"rounds": 1}, "--rounds .*got 1"),
        ({"model": "giant"}, "model 'giant' is unknown"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        run(Scaling(**arguments))
