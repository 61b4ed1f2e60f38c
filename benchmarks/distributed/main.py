"""The `distributed` experiment: its options, its loop, its record."""

import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from benchmarks.common import data as image_data
from benchmarks.common import environment
from benchmarks.common.errors import UsageError, check_known
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.files import write_text, write_whole
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.common.replicated import (
    ALGORITHMS,
    Feed,
    Hyperparameters,
    RunState,
    initial_state,
    make_step,
    mended,
    resized,
)
from benchmarks.distributed.checkpoints import ReplicaCheckpoints, abstract
from entropix import replicas
from entropix.replicas import Plan
from entropix.replicas._plan import Backend

RESULT, CENTER, CHECKPOINTS = "result.json", "center.npz", "checkpoints"
# What may differ between a run and the one that goes on with it.
FREE_TO_CHANGE = (
    "replicas", "devices", "backend", "steps", "checkpoint_every", "keep", "output", "resume",
    "data_dir", "cache_dir", "pod", "coordinator", "processes", "process_id",
)  # fmt: skip


@dataclass(frozen=True)
class Distributed:
    """Train coupled replicas over all devices of one or several processes, and survive kills.

    Writes checkpoints, the weights of the center and result.json into a folder of its own.
    """

    dataset: str = "digits"
    """Images: digits (built in), or a TFDS set such as mnist, fashion_mnist, cifar10, cifar100."""
    model: str = "mlp"
    """Network: mlp, mnistfc, smallconv, lenet or allcnn."""
    algorithm: str = "replicated_sgd"
    """replicated_sgd, elastic_sgd or parle."""
    replicas: int = 4
    """Copies of the network, a multiple of the devices or a divisor of them."""
    devices: int | None = None
    """How many devices, over all processes; by default all."""
    backend: str = "jit"
    """What maps the step over devices: jit, shard_map or pmap."""
    steps: int = 500
    """Updates of each replica."""
    batch_size: int = 32
    """Images per gradient of one replica, a multiple of the devices that share one."""
    every: int = 10
    """Steps between couplings."""
    learning_rate: float = 0.1
    """Of SGD, or of the inner loop of parle."""
    gamma: float = 0.01
    """Coupling."""
    momentum: float = 0.9
    """Nesterov's momentum."""
    seed: int = 0
    """Of initializations, mini-batches and dropout."""
    checkpoint_every: int = 100
    """Steps between checkpoints, at which replicas that diverged are replaced too."""
    keep: int = 3
    """How many checkpoints stay."""
    output: Path | None = None
    """Folder to write; by default runs/distributed-<time>, which all processes must share."""
    resume: bool = False
    """Go on from the last checkpoint in --output, on these replicas and devices."""
    data_dir: Path | None = None
    """Where TFDS keeps its sets; by default $TFDS_DATA_DIR, else TFDS's own."""
    cache_dir: Path | None = None
    """Where decoded images are kept; by default entropix in $XDG_CACHE_HOME or ~/.cache."""
    pod: bool = False
    """Join the other processes of a TPU pod slice or a cluster, found by themselves."""
    coordinator: str | None = None
    """Join other processes by hand: host:port of the first one, the same for all."""
    processes: int | None = None
    """With --coordinator: how many processes."""
    process_id: int | None = None
    """With --coordinator: which of them this is, from 0."""


def run(config: Distributed) -> int:
    """Trains to the end, from the start or the last checkpoint; the exit status."""
    check(config)
    join(config)
    say = Console().print if jax.process_index() == 0 else lambda *_: None
    folder = config.output or Path("runs") / f"distributed-{time.strftime('%Y%m%d-%H%M%S')}"
    if not config.resume and folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--output {folder} is not empty; give --resume to go on with its run")
    plan = make_plan(config)
    images = image_data.load(config.dataset, data_dir=config.data_dir, cache_dir=config.cache_dir)
    image_data.check_size(images, config.batch_size)
    module = MODELS[config.model].build(images.num_classes, MODELS[config.model].dropout)
    network = Network(module, images.image_shape)
    tx = ALGORITHMS[config.algorithm](hyperparameters(config), plan.axis_name)

    checkpoints = ReplicaCheckpoints(folder / CHECKPOINTS, config.keep)
    record = checkpoints.last_record()
    if record is None:
        record = {"step": 0, "replaced": 0, "losses": [], "layouts": []}
        state = plan.place(initial_state(network, tx, config.seed, config.replicas))
    else:
        check_same_run(config, record)
        state = taken_up(config, plan, checkpoints, record, network, tx)
        say(f"Resumed at step {record['step']}, {described(record['layouts'][-1])} there.")
    layout = {"replicas": config.replicas, "devices": len(plan.devices)}
    if not record["layouts"] or record["layouts"][-1] != layout:
        record["layouts"] = [*record["layouts"], layout]
        say(f"Training {described(layout)}; the center is kept where the number changes.")

    advance = plan.run(make_step(network, tx, plan))
    feed = Feed(images, plan, config.seed, config.batch_size)
    for step in range(record["step"], config.steps):
        state, losses = advance(state, feed(step))
        if jax.default_backend() == "cpu":
            # Simulated devices share a few threads: collectives of two steps at once starve.
            jax.block_until_ready(state)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            state, replaced = mend(plan, state)
            record = record | {
                "step": step + 1,
                "replaced": record["replaced"] + replaced,
                "losses": [*record["losses"], float(np.mean(np.asarray(plan.collect(losses))))],
                "configuration": identity(config),
            }
            checkpoints.save(plan, state, record)
            say(
                f"step {step + 1}: loss {record['losses'][-1]:.4f}"
                + (f", {replaced} replicas replaced by the center of the others" * bool(replaced))
            )
    checkpoints.close()
    finish(folder, config, plan, network, images, state, record)
    say(f"Written: {folder / RESULT}")
    return 0


def check(config: Distributed) -> None:
    """Raises a `UsageError` for impossible values."""
    check_known("model", config.model, MODELS)
    check_known("algorithm", config.algorithm, ALGORITHMS)
    check_known("backend", config.backend, get_args(Backend))
    for name in ("replicas", "steps", "batch_size", "every", "checkpoint_every", "keep"):
        if getattr(config, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} must be at least 1, got {getattr(config, name)}")
    for name in ("learning_rate", "gamma", "momentum"):
        if not 0 <= getattr(config, name) < math.inf:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} must be at least 0, got {getattr(config, name)}")
    if config.resume and config.output is None:
        raise UsageError("--resume needs --output, the folder of the run to go on with")
    by_hand = (config.coordinator, config.processes, config.process_id)
    if any(part is not None for part in by_hand) and any(part is None for part in by_hand):
        raise UsageError("--coordinator, --processes and --process-id go together")


def join(config: Distributed) -> None:
    """Makes the devices of all processes known to each."""
    if config.coordinator is not None:
        jax.distributed.initialize(config.coordinator, config.processes, config.process_id)
    elif config.pod:
        jax.distributed.initialize()


def make_plan(config: Distributed) -> Plan:
    """The layout asked for."""
    try:
        plan = replicas.plan(
            config.replicas,
            devices=config.devices,
            backend=config.backend,  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    if config.batch_size % plan.data_shards:
        raise UsageError(
            f"--batch-size must be a multiple of {plan.data_shards}, the devices that share a "
            f"replica, got {config.batch_size}"
        )
    return plan


def hyperparameters(config: Distributed) -> Hyperparameters:
    """What the algorithm is told."""
    return Hyperparameters(config.learning_rate, config.gamma, config.every, config.momentum)


def identity(config: Distributed) -> dict[str, Any]:
    """What a run must have in common with the one that it goes on with."""
    fields = dataclasses.asdict(config)
    return {name: field for name, field in fields.items() if name not in FREE_TO_CHANGE}


def check_same_run(config: Distributed, record: dict[str, Any]) -> None:
    """Raises a `UsageError` unless a checkpoint is of this run, and this run may go on."""
    if not config.resume:
        raise UsageError(f"--output {config.output} holds checkpoints; give --resume to go on")
    mine, stored = identity(config), record["configuration"]
    differences = ", ".join(
        f"{name} {stored.get(name)!r} there, {mine[name]!r} here"
        for name in mine
        if stored.get(name) != mine[name]
    )
    if differences:
        raise UsageError(f"--resume: {config.output} holds another run: {differences}")
    if record["step"] > config.steps:
        raise UsageError(
            f"--resume: {config.output} is at step {record['step']}, past --steps {config.steps}"
        )


def taken_up(
    config: Distributed,
    plan: Plan,
    checkpoints: ReplicaCheckpoints,
    record: dict[str, Any],
    network: Network,
    tx: Any,
) -> RunState:
    """The last state, laid out for these replicas and devices."""
    before = record["layouts"][-1]["replicas"]
    shapes = jax.eval_shape(lambda: initial_state(network, tx, config.seed, before))
    everywhere = NamedSharding(Mesh(np.asarray(plan.devices), ("all",)), P())
    state = checkpoints.restore(record["step"], abstract(shapes, everywhere))
    if before != config.replicas:
        state = resized(state, config.replicas, config.seed)
    placed: RunState = plan.place(state)
    return placed


def mend(plan: Plan, state: RunState) -> tuple[RunState, int]:
    """Replaces replicas that diverged; answers how many."""
    if plan.backend == "pmap":
        whole, replaced = jax.jit(mended)(plan.collect(state))
        return (plan.place(whole) if replaced else state), int(replaced)
    new_state, replaced = jax.jit(mended)(state)
    return plan.place(new_state), int(replaced)


def described(layout: dict[str, int]) -> str:
    """A layout in words."""
    return f"{layout['replicas']} replicas on {layout['devices']} devices"


def finish(
    folder: Path,
    config: Distributed,
    plan: Plan,
    network: Network,
    images: image_data.ImageData,
    state: RunState,
    record: dict[str, Any],
) -> None:
    """Evaluates the center and writes what was found, in the first process alone."""
    whole = jax.device_get((plan.collect(state.params), plan.collect(state.batch_stats)))
    if jax.process_index() != 0:
        return
    params, stats = jax.tree.map(lambda leaf: leaf.mean(0, keepdims=True), whole)
    train, test = jax.device_put(
        ((images.x_train, images.y_train), (images.x_test, images.y_test)), jax.local_devices()[0]
    )
    evaluator = Evaluator(network, train, test)
    scores = evaluator.scores(params, evaluator.statistics(params, stats), whole=True)
    spread = replicas.spread(whole[0])
    found = {
        "configuration": identity(config) | {"steps": config.steps, "backend": config.backend},
        "environment": environment.describe(),
        "processes": jax.process_count(),
        **{name: record[name] for name in ("step", "replaced", "losses", "layouts")},
        "spread": float(spread.total),
        "spread_by_leaf": {
            jax.tree_util.keystr(path): float(leaf)
            for path, leaf in jax.tree.leaves_with_path(spread.leaves)
        },
        "test_error_of_center": scores.test_error[0],
        "train_loss_of_center": scores.train_loss[0],
        "digest": digest(whole),
    }
    arrays = {
        jax.tree_util.keystr(path): leaf[0] for path, leaf in jax.tree.leaves_with_path(params)
    }
    write_whole(folder / CENTER, lambda file: np.savez(file, allow_pickle=False, **arrays))
    write_text(folder / RESULT, json.dumps(found, indent=2) + "\n")


def digest(tree: Any) -> str:
    """A fingerprint of every bit of all replicas."""
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(tree))).hexdigest()
