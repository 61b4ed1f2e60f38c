"""Parameters over a mesh of devices, of one process or two, give what one device gives."""

import functools
import json
import re
import sys

import jax
import numpy as np
import pytest

from entropix.flatness import eigenvalues
from tests.flatness import spread
from tests.replicas.test_processes import free_port, join

ASKED = {
    "hessian": spread.answers,
    "gauss-newton": spread.products,
    "covariance": spread.products,
}
GATHERS = r"all-gather|all-to-all|collective-permute"


@functools.cache
def on_one_device(name):
    return spread.quickly(ASKED[name])(spread.operators(*spread.problem())[name])


def assert_same(found, expected):
    for ours, one in zip(found, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(ours), one, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.slow
def test_on_a_mesh_the_numbers_are_the_same_and_no_vector_is_gathered(name):
    h = spread.operators(*spread.problem(spread.mesh()))[name]
    compiled = spread.quickly(ASKED[name]).lower(h).compile()
    assert not re.search(GATHERS, compiled.as_text())
    assert_same(jax.tree.leaves(compiled(h)), on_one_device(name))


@pytest.mark.slow
def test_eigenvectors_lie_where_the_parameters_do():
    h = spread.operators(*spread.problem(spread.mesh()))["hessian"]
    vectors = eigenvalues(h, 0, k=1).eigenvectors
    assert vectors["w"].sharding.spec[2] == "fsdp"
    assert vectors["v"].sharding.spec[1] == "fsdp"


@pytest.mark.slow
def test_two_processes_give_what_one_device_gives():
    arguments = [str(free_port()), "2", "4"]
    outputs = join([sys.executable, "-m", "tests.flatness.spread", *arguments], 2)
    for output in outputs:
        found = json.loads(output.strip().splitlines()[-1])
        assert found["devices"] == 8
        assert_same(found["answers"], on_one_device("hessian"))
