"""The distributed run: kills, other layouts on resuming, several processes, what it refuses."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks.common.checkpoints import Checkpoints
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.common.options import UsageError
from benchmarks.common.run_folder import RESULTS
from benchmarks.common.training import initial_state, replica_keys
from benchmarks.distributed import main
from benchmarks.distributed.algorithms import ALGORITHMS
from benchmarks.distributed.main import Distributed, run
from entropix import eval_params, replicas
from tests.replicas.test_processes import free_port, join

ROOT = Path(__file__).parents[2]
SHORT = Distributed(steps=20, checkpoint_every=10, batch_size=16, every=3, replicas=4, devices=2)


def result(folder):
    return json.loads((folder / RESULTS).read_text())


def center(folder):
    with np.load(folder / main.CENTER) as arrays:
        return dict(arrays)


def assert_same_center(folder, other, atol=1e-6):
    mine, theirs = center(folder), center(other)
    assert list(mine) == list(theirs)
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=atol)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run left alone, on the jit backend."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run(replace(SHORT, output=folder)) == 0
    return folder


@pytest.mark.slow
def test_the_record_of_a_run(alone):
    found = result(alone)
    assert found["step"] == 20
    assert found["replaced"] == 0
    assert found["layouts"] == [{"replicas": 4, "devices": 2}]
    assert len(found["losses"]) == 2
    assert found["losses"][1] < found["losses"][0] < 2.3
    assert found["test_error_of_center"] < 0.9
    assert found["spread"] > 0
    assert sorted(path.name for path in (alone / "checkpoints").iterdir()) == ["10", "20"]


@pytest.mark.slow
def test_other_backends_and_a_resumed_run_end_the_same(alone, tmp_path, capsys):
    first = tmp_path / "first"
    run(replace(SHORT, output=first, steps=10, backend="pmap"))
    run(replace(SHORT, output=first, resume=True, keep=1))
    assert "Resumed at step 10, 4 replicas on 2 devices there" in capsys.readouterr().out
    assert_same_center(first, alone)
    assert [path.name for path in (first / "checkpoints").iterdir()] == ["20"]


@pytest.mark.slow
def test_resuming_on_other_replicas_and_devices_keeps_the_center(tmp_path, capsys):
    """8 replicas on 4 devices, 4 on 2, and back."""
    folder = tmp_path / "run"
    losses, centers = [], []
    for count, devices in ((8, 4), (4, 2), (8, 4)):
        run(replace(SHORT, output=folder, replicas=count, devices=devices, resume=bool(losses)))
        losses.append(result(folder)["train_loss_of_center"])
        centers.append(center(folder))
    for other in centers[1:]:
        for name in centers[0]:
            np.testing.assert_allclose(other[name], centers[0][name], rtol=0, atol=1e-6)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    # And it trains on from there without a jump.
    run(replace(SHORT, output=folder, replicas=4, devices=2, resume=True, steps=22))
    found = result(folder)
    assert found["train_loss_of_center"] < 1.2 * losses[0]
    assert found["layouts"][-1] == {"replicas": 4, "devices": 2}
    assert "8 replicas on 4 devices there" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(alone, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    # Cut short: all that holds arrays.
    for path in (folder / "checkpoints/20/state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run(replace(SHORT, output=folder, resume=True))
    shown = capsys.readouterr().out
    assert "The checkpoint of step 20 is damaged" in shown
    assert "Resumed at step 10" in shown
    assert result(folder)["digest"] == result(alone)["digest"]


@pytest.mark.slow
def test_parle_is_judged_at_the_anchors(tmp_path):
    """20 steps with L = 3 end between two outer steps, where x' is not x."""
    folder = tmp_path / "run"
    run(replace(SHORT, output=folder, algorithm="parle"))
    states = Checkpoints(folder / "checkpoints", print)
    axis_name = main.make_plan(SHORT).axis_name
    network = Network(MODELS["mlp"].build(10, 0.0), (8, 8, 1))
    tx = ALGORITHMS["parle"](SHORT, axis_name)
    init = functools.partial(initial_state, network, lambda _: tx)
    state, _ = states.latest(lambda _: replicas.stack_states(init, replica_keys(0, 4)))
    states.close()
    found = center(folder)
    for weights, near in ((eval_params(state.opt_state, state.params), 0), (state.params, 1e-4)):
        for path, leaf in jax.tree.leaves_with_path(weights):
            distance = np.abs(leaf.mean(0) - found[jax.tree_util.keystr(path)]).max()
            assert (distance < 1e-6) == (near == 0), path


def test_a_process_without_a_device_is_refused_at_once(monkeypatch):
    class Device:
        def __init__(self, owner):
            self.process_index = owner

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "devices", lambda: [Device(0), Device(1), Device(2)])
    with pytest.raises(UsageError, match=r"--devices must leave one to each .* got 2 .*process 2"):
        main.make_plan(replace(SHORT, devices=2))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_the_run_left_alone():
    """A few of the kills of `python -m benchmarks kill_test`, which makes 20 by default."""
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks", "kill_test", "--kills", "2"],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "every run ended as the one left alone" in finished.stdout


@pytest.mark.slow
def test_two_processes_end_as_one(alone, tmp_path):
    """One device each; what one process wrote, the other has not."""
    options = ["--steps", "20", "--checkpoint-every", "10", "--batch-size", "16", "--every", "3"]
    options += ["--output", str(tmp_path / "run"), "--processes", "2"]
    options += ["--coordinator", f"localhost:{free_port()}", "--process-id"]
    outputs = join([sys.executable, "-m", "benchmarks", "distributed", *options], 2)
    assert "step 20" in outputs[0]
    written = [line for line in outputs[1].splitlines() if not line.startswith("[Gloo]")]
    assert written == []
    assert_same_center(tmp_path / "run", alone)
    assert result(tmp_path / "run")["processes"] == 2
    # One process alone goes on from what the two have written.
    run(replace(SHORT, output=tmp_path / "run", resume=True, steps=21))
    assert result(tmp_path / "run")["step"] == 21


def start(folder, *options):
    """Two processes with four devices each, which share two replicas."""
    command = [sys.executable, "-m", "benchmarks", "distributed", *FSDP, *options]
    command += ["--output", str(folder), "--processes", "2"]
    command += ["--coordinator", f"localhost:{free_port()}", "--process-id"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [*command, str(at)], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for at in range(2)
    ]  # fmt: skip


def stopped(folder, how):
    """Stops the second of two processes in the third checkpoint; the first names it, and ends."""
    processes = start(folder, "--steps", "100000", "--heartbeat-seconds", "15")
    try:
        # The third checkpoint begins: two are whole.
        seen = []
        while "step 30:" not in (line := processes[0].stdout.readline()):
            assert line, "".join(seen)
            seen.append(line)
        processes[1].send_signal(how)
        told, _ = processes[0].communicate(timeout=300)
    finally:
        for one in processes:
            one.kill()
            one.wait()
            one.stdout.close()
    assert processes[0].returncode != 0
    # By its number, alone or behind the name of its job.
    assert re.search(r"stopped sending heartbeats\):\s*\S*\b1\b", told), told[-3000:]


FSDP = ["--fsdp", "--algorithm", "diloco", "--batch-size", "16", "--every", "3", "--replicas", "2"]
FSDP += ["--checkpoint-every", "10", "--learning-rate", "0.03"]


@pytest.mark.slow
def test_a_process_that_hangs_is_named_and_the_others_go_on_from_the_last_whole_checkpoint(
    tmp_path, capsys
):
    """FSDP replicas, 2 x 4 in two processes; then one process, a damaged checkpoint, 4 x 2."""
    folder = tmp_path / "run"
    stopped(folder, signal.SIGSTOP)
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    steps = sorted(int(name) for name in names if name.isdigit())
    for path in (folder / f"checkpoints/{steps[-1]}").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    options = Distributed(
        fsdp=True, algorithm="diloco", batch_size=16, every=3, learning_rate=0.03, replicas=2,
        checkpoint_every=10, output=folder, resume=True, steps=steps[-1],
    )  # fmt: skip
    run(options)
    assert f"checkpoint of step {steps[-1]} is damaged" in capsys.readouterr().out
    kept = center(folder)
    # At the step of the checkpoint nothing is trained.
    run(replace(options, replicas=4))
    for name, leaf in center(folder).items():
        np.testing.assert_allclose(leaf, kept[name], rtol=0, atol=1e-6)
    assert result(folder)["layouts"][-1] == {"replicas": 4, "devices": 8}
    run(replace(options, replicas=4, steps=steps[-1] + 10))
    assert result(folder)["losses"][-1] < 2.3


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_and_the_center_is_kept_on_what_is_left(tmp_path):
    """FSDP replicas, 2 x 4 in two processes; then 4 x 2 in the one that is left."""
    folder = tmp_path / "run"
    stopped(folder, signal.SIGKILL)
    options = Distributed(
        fsdp=True, algorithm="diloco", batch_size=16, every=3, learning_rate=0.03, replicas=4,
        checkpoint_every=10, output=folder, resume=True,
    )  # fmt: skip
    tx = ALGORITHMS["diloco"](options, ())
    init = functools.partial(
        initial_state, Network(MODELS["mlp"].build(10, 0.0), (8, 8, 1)), lambda _: tx
    )
    states = Checkpoints(folder / "checkpoints", print)
    state, record = states.latest(lambda _: replicas.stack_states(init, replica_keys(0, 2)))
    states.close()
    assert record["layouts"] == [{"replicas": 2, "devices": 8}]
    assert record["step"] >= 20
    # At the step of the checkpoint nothing is trained.
    run(replace(options, steps=record["step"]))
    assert result(folder)["layouts"][-1] == {"replicas": 4, "devices": 8}
    kept = eval_params(state.opt_state, state.params, axis=0)
    found = center(folder)
    for path, leaf in jax.tree.leaves_with_path(kept):
        np.testing.assert_allclose(found[jax.tree_util.keystr(path)], leaf, rtol=0, atol=1e-6)


def test_work_that_fails_waits_for_the_name_of_a_process_that_is_gone(monkeypatch, capsys):
    waits = []
    monkeypatch.setattr(main.time, "sleep", waits.append)
    for count in (1, 2):
        monkeypatch.setattr(jax, "process_count", lambda: count)  # noqa: B023
        with pytest.raises(jax.errors.JaxRuntimeError), main.until_named(15):
            raise jax.errors.JaxRuntimeError("connection closed")
    assert waits == [15 + main.LOOKS_AND_TELLS]
    assert "named after 15 seconds of silence" in capsys.readouterr().out


def test_the_patience_of_the_user_is_that_of_the_runtime(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *at, **how: calls.append((at, how)))
    by_hand = dict(coordinator="localhost:1", processes=2, process_id=1)
    main.join(replace(SHORT, **by_hand, heartbeat_seconds=7))
    main.join(replace(SHORT, pod=True, heartbeat_seconds=8))
    main.join(SHORT)
    assert calls == [
        (("localhost:1", 2, 1), {"heartbeat_timeout_seconds": 7}),
        ((), {"heartbeat_timeout_seconds": 8}),
    ]


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((8, 12), P(None, "x")), ((12, 6), P("x")), ((4,), P("x")), ((6, 3), P()), ((), P())],
)
def test_what_is_divided(shape, spec):
    assert main.along_longest(jax.ShapeDtypeStruct(shape, jnp.float32), "x", 4) == spec


@pytest.mark.slow
def test_fully_sharded_replicas_end_as_whole_ones(tmp_path):
    """2 x 4, each device with a part; and the same replicas, each whole on two devices."""
    options = replace(SHORT, algorithm="diloco", replicas=2, learning_rate=0.03)
    run(replace(options, output=tmp_path / "whole", devices=2))
    run(replace(options, output=tmp_path / "divided", devices=8, fsdp=True))
    assert_same_center(tmp_path / "whole", tmp_path / "divided", atol=1e-5)


@pytest.mark.slow
def test_a_replica_that_diverged_is_replaced_and_counted(tmp_path, monkeypatch, capsys):
    original = replicas.stack_states

    def with_one_bad(init, keys):
        state = original(init, keys)
        params = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), state.params)
        return state._replace(params=params)

    monkeypatch.setattr(main.replicas, "stack_states", with_one_bad)
    run(replace(SHORT, output=tmp_path / "run"))
    found = result(tmp_path / "run")
    assert found["replaced"] == 1
    assert np.isfinite(found["train_loss_of_center"])
    assert np.isfinite(found["losses"][-1])
    assert "1 replicas replaced by the center of the others" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsdp": True}, "--fsdp needs several devices .* got 4 replicas on 2 devices"),
        ({"replicas": 6, "devices": 4}, "got 6 replicas on 4 devices"),
        ({"devices": 99}, "--devices .*got 99"),
        ({"replicas": 2, "devices": 8, "batch_size": 18}, "--batch-size must be a multiple of 4"),
        ({"steps": 0}, "--steps .*got 0"),
        ({"learning_rate": -1.0}, "--learning-rate .*got -1.0"),
        ({"algorithm": "magic"}, "algorithm 'magic' is unknown; accepted: replicated_sgd"),
        ({"backend": "mpi"}, "backend 'mpi' is unknown; accepted: pmap, shard_map, jit"),
        ({"resume": True}, "--resume needs --output"),
        ({"coordinator": "localhost:1"}, "--coordinator, --processes and --process-id go together"),
    ],
)
def test_what_is_refused_before_any_work(changes, message):
    with pytest.raises(UsageError, match=message):
        run(replace(SHORT, **changes))


@pytest.mark.slow
def test_nothing_is_overwritten(alone):
    before = {path: path.read_bytes() for path in alone.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="is not empty; give --resume"):
        run(replace(SHORT, output=alone))
    with pytest.raises(UsageError, match="another configuration: model 'mlp' there, 'lenet' here"):
        run(replace(SHORT, output=alone, resume=True, model="lenet"))
    with pytest.raises(UsageError, match="is at step 20, past --steps 5"):
        run(replace(SHORT, output=alone, resume=True, steps=5))
    assert {path: path.read_bytes() for path in alone.rglob("*") if path.is_file()} == before
