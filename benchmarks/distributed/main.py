"""`python -m benchmarks distributed`: coupled replicas over the devices of many processes."""

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import entropix
from benchmarks.common import environment
from benchmarks.common.batches import Feed
from benchmarks.common.checkpoints import Checkpoints
from benchmarks.common.data import Dataset, load_for
from benchmarks.common.evaluation import Evaluator
from benchmarks.common.models import MODELS
from benchmarks.common.network import Network
from benchmarks.common.options import (
    FREE,
    NOT_NEGATIVE,
    POSITIVE,
    Among,
    ImageOptions,
    ResumeOptions,
    UsageError,
    configuration,
)
from benchmarks.common.run_folder import check_same, open_folder, write_results, write_whole
from benchmarks.common.terminal import say
from benchmarks.common.training import TrainState, initial_state, make_step, replica_keys
from benchmarks.distributed.algorithms import ALGORITHMS
from entropix import replicas
from entropix.replicas import Plan
from entropix.replicas._plan import Backend

CENTER, CHECKPOINTS = "center.npz", "checkpoints"
# What the runtime takes beyond the patience of the user, to look and to tell.
LOOKS_AND_TELLS = 30.0


@dataclass(frozen=True, kw_only=True)
class Distributed(ImageOptions, ResumeOptions):
    """Train coupled replicas over all devices of one or several processes, and survive kills.

    Writes checkpoints, the weights of the center and results.json into a folder of its own, which
    all processes must share.
    """

    model: Annotated[str, Among("model", lambda: MODELS)] = "mlp"
    """Network: mlp, mnistfc, smallconv, lenet or allcnn; for a text gpt_small, gpt_tiny or
    char_lstm."""
    algorithm: Annotated[str, Among("algorithm", lambda: ALGORITHMS)] = "replicated_sgd"
    """replicated_sgd, elastic_sgd, parle or diloco."""
    replicas: Annotated[int, FREE, POSITIVE] = 4
    """Copies of the network, a multiple of the devices or a divisor of them."""
    devices: Annotated[int | None, FREE, POSITIVE] = None
    """How many devices, over all processes; by default all."""
    backend: Annotated[str, FREE, Among("backend", lambda: get_args(Backend))] = "jit"
    """What maps the step over devices: jit, shard_map or pmap."""
    fsdp: Annotated[bool, FREE] = False
    """Divide the weights and the optimizer of each replica over the devices that share it."""
    steps: Annotated[int, FREE, POSITIVE] = 500
    """Updates of each replica."""
    batch_size: Annotated[int, POSITIVE] = 32
    """Images per gradient of one replica, a multiple of the devices that share one."""
    every: Annotated[int, POSITIVE] = 10
    """Steps between couplings."""
    learning_rate: Annotated[float, NOT_NEGATIVE] = 0.1
    """Of SGD, or of the inner loop of parle."""
    gamma: Annotated[float, NOT_NEGATIVE] = 0.01
    """Coupling."""
    momentum: Annotated[float, NOT_NEGATIVE] = 0.9
    """Nesterov's momentum."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Of initializations, mini-batches and dropout."""
    checkpoint_every: Annotated[int, FREE, POSITIVE] = 100
    """Steps between checkpoints, at which replicas that diverged are replaced too."""
    keep: Annotated[int, FREE, POSITIVE] = 3
    """How many checkpoints stay."""
    pod: Annotated[bool, FREE] = False
    """Join the other processes of a TPU pod slice or a cluster, found by themselves."""
    coordinator: Annotated[str | None, FREE] = None
    """Join other processes by hand: host:port of the first one, the same for all."""
    processes: Annotated[int | None, FREE] = None
    """With --coordinator: how many processes."""
    process_id: Annotated[int | None, FREE] = None
    """With --coordinator: which of them this is, from 0."""
    heartbeat_seconds: Annotated[int, FREE, POSITIVE] = 100
    """A process that has been silent for so long is named, and the others end."""


def run(options: Distributed) -> int:
    """Trains to the end, from the start or the last whole checkpoint; the exit status."""
    folder = open_folder(options, "distributed")
    join(options)
    with until_named(options.heartbeat_seconds):
        return train(options, folder)


def train(options: Distributed, folder: Path) -> int:
    """Trains to the end; the exit status."""
    tell = say if jax.process_index() == 0 else lambda _: None
    images = load_for(options, batch_size=options.batch_size, block=MODELS[options.model].block)
    module = MODELS[options.model].build(images.num_classes, MODELS[options.model].dropout)
    network = Network(module, images.example_shape)
    plan = make_plan(options, network)
    tx = ALGORITHMS[options.algorithm](options, plan.axis_name)

    def start(count: int) -> TrainState:
        init = partial(initial_state, network, lambda _: tx)
        state: TrainState = replicas.stack_states(init, replica_keys(options.seed, count))
        return state

    checkpoints = Checkpoints(folder / CHECKPOINTS, tell, keep=options.keep, in_background=True)
    record: dict[str, Any] = {"step": 0, "replaced": 0, "losses": [], "layouts": []}
    found = checkpoints.latest(partial(shapes_there, options, plan, start))
    if found is None:
        state = fresh(options, plan, start)
    else:
        state, record = found
        if record["layouts"][-1]["replicas"] != options.replicas:
            state = resized(state, options.replicas, options.seed)
        state = plan.place(state)
        tell(f"Resumed at step {record['step']}, {described(record['layouts'][-1])} there.")
    layout = {"replicas": options.replicas, "devices": len(plan.devices)}
    if not record["layouts"] or record["layouts"][-1] != layout:
        record["layouts"] = [*record["layouts"], layout]
        tell(f"Training {described(layout)}; the center is kept where the number changes.")

    advance = plan.run(make_step(network, tx))
    feed = Feed(images, plan, options.seed, options.batch_size)
    for step in range(record["step"], options.steps):
        state, losses = advance(state, feed(step))
        if jax.default_backend() == "cpu":
            # Simulated devices share a few threads: collectives of two steps at once starve.
            jax.block_until_ready(state)
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps:
            state, replaced = mend(plan, state)
            record = record | {
                "step": step + 1,
                "replaced": record["replaced"] + replaced,
                "losses": [*record["losses"], float(np.mean(np.asarray(plan.collect(losses))))],
                "configuration": configuration(options),
            }
            # pmap's arrays are of this process alone, which Orbax does not know how to join.
            whole = plan.collect(state) if plan.backend == "pmap" else state
            checkpoints.save(step + 1, whole, record)
            tell(
                f"step {step + 1}: loss {record['losses'][-1]:.4f}"
                + f", {replaced} replicas replaced by the center of the others" * bool(replaced)
            )
    checkpoints.close()
    finish(folder, options, plan, network, images, state, record)
    tell(f"Written: {folder / 'results.json'}")
    return 0


def join(options: Distributed) -> None:
    """Makes the devices of all processes known to each."""
    by_hand = (options.coordinator, options.processes, options.process_id)
    if any(part is not None for part in by_hand) and any(part is None for part in by_hand):
        raise UsageError("--coordinator, --processes and --process-id go together")
    if options.coordinator is not None:
        jax.distributed.initialize(
            options.coordinator,
            options.processes,
            options.process_id,
            heartbeat_timeout_seconds=options.heartbeat_seconds,
        )
    elif options.pod:
        jax.distributed.initialize(heartbeat_timeout_seconds=options.heartbeat_seconds)


@contextlib.contextmanager
def until_named(heartbeat_seconds: float) -> Iterator[None]:
    """Where work with others fails, waits for the runtime to name the process that is gone.

    A process that dies breaks its connections. What the others see of that is an address, at the
    next exchange. Once it has been silent for as long as the user allows, the runtime names it, and
    ends the others.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError:
        if jax.process_count() > 1:
            say(
                f"Process {jax.process_index()}: an exchange with the others failed; if one of "
                f"them is gone, it is named after {heartbeat_seconds:g} seconds of silence."
            )
            time.sleep(heartbeat_seconds + LOOKS_AND_TELLS)
        raise


def make_plan(options: Distributed, network: Network | None = None) -> Plan:
    """The layout asked for; with ``--fsdp`` the network says what is divided."""
    owners = {device.process_index for device in jax.devices()[: options.devices]}
    idle = sorted(set(range(jax.process_count())) - owners)
    if idle:
        raise UsageError(
            f"--devices must leave one to each of the {jax.process_count()} processes, got "
            f"{options.devices} with none in process {', '.join(map(str, idle))}"
        )
    try:
        plan = replicas.plan(
            options.replicas,
            devices=options.devices,
            backend=options.backend,  # type: ignore[arg-type]
            model=divided(options, network) if options.fsdp and network is not None else None,
        )
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    if options.batch_size % plan.data_shards:
        raise UsageError(
            f"--batch-size must be a multiple of {plan.data_shards}, the devices that share a "
            f"replica, got {options.batch_size}"
        )
    return plan


def fresh(options: Distributed, plan: Plan, start: Any) -> TrainState:
    """The state at step 0; with ``--fsdp`` no device ever holds a whole replica."""
    if not options.fsdp:
        return plan.place(start(options.replicas))
    shapes = jax.eval_shape(lambda: start(options.replicas))
    make = jax.jit(lambda: start(options.replicas), out_shardings=plan.shardings(shapes))
    state: TrainState = make()
    return state


def divided(options: Distributed, network: Network) -> Any:
    """How fully sharded data parallelism divides each array: along its longest axis that divides.

    Raises:
      UsageError: no devices share a replica.
    """
    devices = len(jax.devices()[: options.devices])
    shards = devices // options.replicas
    if shards < 2:
        raise UsageError(
            f"--fsdp needs several devices for each replica, got {options.replicas} replicas on "
            f"{devices} devices"
        )

    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: along_longest(leaf, "data", shards), params)


def along_longest(leaf: jax.ShapeDtypeStruct, name: str, shards: int) -> P:
    """The longest axis of an array that so many devices can share, given to them."""
    axes = [at for at in range(leaf.ndim) if leaf.shape[at] % shards == 0]
    longest = max(axes, key=lambda at: leaf.shape[at], default=None)
    return P() if longest is None else P(*(None,) * longest, name)


def shapes_there(options: Distributed, plan: Plan, start: Any, record: dict[str, Any]) -> Any:
    """Shapes and shardings of the state in a checkpoint.

    Raises:
      UsageError: the checkpoint is of another run, or past the end of this one.
    """
    assert options.output is not None
    check_same(options.output, configuration(options), record["configuration"])
    if record["step"] > options.steps:
        raise UsageError(
            f"--resume: {options.output} is at step {record['step']}, past --steps {options.steps}"
        )
    shapes = jax.eval_shape(lambda: start(record["layouts"][-1]["replicas"]))
    # With --fsdp no device need hold a replica, whatever layout the checkpoint is of.
    mesh = Mesh(np.asarray(plan.devices), ("all",))

    def there(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = along_longest(leaf, "all", len(plan.devices)) if options.fsdp else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(there, shapes)


def resized(state: TrainState, count: int, seed: int) -> TrainState:
    """The state for another number of replicas, their center kept."""
    params, rest = replicas.resize(state.params, count, state._replace(params=None))
    return rest._replace(params=params, key=replica_keys(seed, count))


def mended(state: TrainState) -> tuple[TrainState, jax.Array]:
    """The state with replicas that diverged put at the center of the others, and how many."""
    revived = replicas.revive(state.params, state._replace(params=None))
    return revived.state._replace(params=revived.params), revived.num_replaced


def mend(plan: Plan, state: TrainState) -> tuple[TrainState, int]:
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
    options: Distributed,
    plan: Plan,
    network: Network,
    images: Dataset,
    state: TrainState,
    record: dict[str, Any],
) -> None:
    """Evaluates the center and writes what was found, in the first process alone."""
    whole: TrainState = jax.device_get(plan.collect(state._replace(key=jnp.zeros([]))))
    if jax.process_index() != 0:
        return
    on_device = jax.tree.map(jnp.asarray, (whole.opt_state, whole.params))
    center = entropix.eval_params(*on_device, axis=0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[None], center)
    stats = jax.tree.map(lambda leaf: leaf.mean(0, keepdims=True), whole.batch_stats)
    train, test = jax.device_put(
        ((images.x_train, images.y_train), (images.x_test, images.y_test)), jax.local_devices()[0]
    )
    evaluator = Evaluator(network, train, test)
    scores = evaluator.scores(params, evaluator.statistics(params, stats), whole=True)
    spread = replicas.spread(whole.params)
    found = {
        "configuration": configuration(options)
        | {"steps": options.steps, "backend": options.backend},
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
        "digest": digest((whole.params, whole.batch_stats)),
    }
    arrays = {
        jax.tree_util.keystr(path): leaf[0] for path, leaf in jax.tree.leaves_with_path(params)
    }
    write_whole(folder / CENTER, lambda file: np.savez(file, allow_pickle=False, **arrays))
    write_results(folder, found)


def digest(tree: Any) -> str:
    """A fingerprint of every bit of all replicas."""
    leaves = (np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
    return hashlib.sha256(b"".join(leaves)).hexdigest()
