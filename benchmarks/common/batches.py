"""Which training images each gradient sees."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.data import Dataset
from entropix.replicas import Plan


@dataclass(frozen=True)
class BatchOrder:
    """Mini-batches by shuffled passes over the training set, without incomplete batches.

    A pure function of (seed, replica, step), so that a resumed run sees what it would have seen.
    Replica 0 sees what a method without replicas sees.

    Attributes:
      num_examples: size of the training set.
      batch_size: images per gradient.
      seeds: one stream for each.
      replicas: streams per seed.
    """

    num_examples: int
    batch_size: int
    seeds: tuple[int, ...]
    replicas: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Whole mini-batches in one pass."""
        return self.num_examples // self.batch_size

    def indices(self, start: int, stop: int) -> NDArray[np.int32]:
        """Places in the training set for steps start to stop, (steps, seeds, replicas, batch)."""
        return np.stack([self._step(step) for step in range(start, stop)])

    def _step(self, step: int) -> NDArray[np.int32]:
        """Places for one step, (seeds, replicas, batch_size)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first = place * self.batch_size
        shape = (len(self.seeds), self.replicas, self.batch_size)
        streams = [
            shuffled(self.num_examples, seed, replica, epoch)[first : first + self.batch_size]
            for seed in self.seeds
            for replica in range(self.replicas)
        ]
        return np.stack(streams).reshape(shape)


class Feed:
    """The mini-batches of this process's replicas."""

    def __init__(self, data: Dataset, plan: Plan, seed: int, batch_size: int) -> None:
        """Keeps the set; nothing is drawn yet."""
        self._data, self._plan = data, plan
        self._order = BatchOrder(len(data.x_train), batch_size, (seed,), plan.replicas)

    def __call__(self, step: int) -> Any:
        """The batch of one step, on the devices."""
        places = self._plan.local_part(self._order.indices(step, step + 1)[0, 0])
        return self._plan.place_batch((self._data.x_train[places], self._data.y_train[places]))


# Two passes of 10 seeds with 8 replicas each stay; one pass of 60,000 places is 0.24 MB.
@lru_cache(maxsize=160)
def shuffled(num_examples: int, seed: int, replica: int, epoch: int) -> NDArray[np.int32]:
    """The order of the training set in one pass of one stream."""
    generator = np.random.default_rng((seed, replica, epoch))
    return generator.permutation(num_examples).astype(np.int32)
