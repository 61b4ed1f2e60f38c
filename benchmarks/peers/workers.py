"""What a round of DiLoCo costs beside a loop of torch: workers, inner steps, one outer step."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import optax

import entropix
from benchmarks.common.lanczos import SMALL, torch_problem
from benchmarks.common.timing import Figure, figure, time_rounds
from benchmarks.peers.curvature import missing
from entropix.replicas import replicate

WORKERS, INNER_STEPS, BATCH = 4, 10, 128
INNER_RATE, OUTER_RATE, OUTER_MOMENTUM = 1e-3, 0.7, 0.9
OURS, PEER = "diloco", "a loop of torch"
SECTION = f"DiLoCo: {WORKERS} workers, {INNER_STEPS} steps of AdamW at batch {BATCH}, a meeting"


def batches() -> tuple[jax.Array, jax.Array]:
    """Images and labels, shapes (steps, workers, batch, ...): the examples in turn, repeated."""
    _, (images, labels) = SMALL.problem()
    rows = jnp.arange(INNER_STEPS * WORKERS * BATCH) % SMALL.examples
    rows = rows.reshape(INNER_STEPS, WORKERS, BATCH)
    return images[rows], labels[rows]


class Ours:
    """All workers in one program."""

    def __init__(self) -> None:
        """Compiles nothing yet."""
        tx = entropix.diloco(
            optax.adamw(INNER_RATE, weight_decay=1e-2),
            optax.sgd(OUTER_RATE, momentum=OUTER_MOMENTUM, nesterov=True),
            inner_steps=INNER_STEPS,
            axis=0,
        )
        self._data = batches()
        params = replicate(SMALL.problem()[0], WORKERS)
        self._carry = params, tx.init(params)

        def step(carry: Any, batch: Any) -> tuple[Any, None]:
            params, state = carry
            gradients = jax.vmap(jax.grad(SMALL.loss))(params, batch)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        self._round = jax.jit(
            lambda carry, data: jax.lax.scan(step, carry, data)[0], donate_argnums=0
        )

    def __call__(self) -> Any:
        self._carry = self._round(self._carry, self._data)
        return self._carry

    def loss(self) -> float:
        """Training loss of the shared weights."""
        params, state = self._carry
        shared = jax.tree.map(lambda leaf: leaf[0], entropix.eval_params(state, params))
        return float(SMALL.loss(shared, SMALL.problem()[1]))


class Torch:
    """One worker after the other, as a user of torch writes it on one device."""

    def __init__(self) -> None:
        """Builds all workers at the same weights."""
        import torch

        self._shared, self._criterion, self._all = torch_problem(SMALL)
        self._workers = [torch_problem(SMALL)[0] for _ in range(WORKERS)]
        self._inner = [
            torch.optim.AdamW(worker.parameters(), INNER_RATE, weight_decay=1e-2)
            for worker in self._workers
        ]
        self._outer = torch.optim.SGD(
            self._shared.parameters(), OUTER_RATE, momentum=OUTER_MOMENTUM, nesterov=True
        )
        images, labels = batches()
        self._images = torch.tensor(jax.device_get(images))
        self._labels = torch.tensor(jax.device_get(labels)).long()

    def __call__(self) -> None:
        import torch

        for number, (worker, optimizer) in enumerate(zip(self._workers, self._inner, strict=True)):
            for images, labels in zip(
                self._images[:, number], self._labels[:, number], strict=True
            ):
                optimizer.zero_grad()
                self._criterion(worker(images), labels).backward()
                optimizer.step()
        with torch.no_grad():
            owned = zip(*(worker.parameters() for worker in self._workers), strict=True)
            for shared, copies in zip(self._shared.parameters(), owned, strict=True):
                shared.grad = shared - torch.stack(copies).mean(0)
            self._outer.step()
            for worker in self._workers:
                worker.load_state_dict(self._shared.state_dict())

    def loss(self) -> float:
        """Training loss of the shared weights."""
        images, labels = self._all
        return self._criterion(self._shared(images), labels).item()


def measure(rounds: int) -> list[Figure]:
    """A round here against a round of torch's, from the same weights over the same batches."""
    if importlib.util.find_spec("torch") is None:
        return [missing(OURS, PEER, ("torch",), SECTION)]
    ours, peer = Ours(), Torch()
    seconds = time_rounds({OURS: ours, PEER: peer}, rounds=rounds)
    note = f"after {rounds + 1} rounds loss {ours.loss():.4g}, torch's {peer.loss():.4g}"
    return [figure(seconds, OURS, PEER, section=SECTION, note=note)]
