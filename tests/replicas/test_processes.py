"""Several processes on this machine, joined by gloo, give what one device gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.replicas.test_plan import ALGORITHMS, BATCH, DIM, Y, on_one_device

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def join(command, processes, timeout=300):
    """Runs ``command + [process id]`` in so many processes; what each printed."""
    # One device in each, unless the command asks for more.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    started = [
        subprocess.Popen(
            [*command, str(at)], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for at in range(processes)
    ]  # fmt: skip
    try:
        answers = [one.communicate(timeout=timeout) for one in started]
    finally:
        for one in started:
            one.kill()
    for one, (_, errors) in zip(started, answers, strict=True):
        assert one.returncode == 0, errors[-2000:]
    return [output for output, _ in answers]


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
@pytest.mark.slow
def test_processes_give_what_one_device_gives(processes, devices):
    arguments = [str(free_port()), str(processes), str(devices)]
    outputs = join([sys.executable, "-m", "tests.replicas.process", *arguments], processes)
    for output in outputs:
        found = json.loads(output.strip().splitlines()[-1])
        assert found["devices"] == processes * devices
        assert found["fed"] == [[Y // processes, BATCH, DIM], [Y // processes, BATCH]]
        for algorithm in ALGORITHMS:
            expected, _ = on_one_device(algorithm)
            for name, leaf in found["params"][algorithm].items():
                # Sums over processes are added up in another order: some rounding in 50 steps.
                np.testing.assert_allclose(leaf, expected[name], rtol=0, atol=5e-6)
