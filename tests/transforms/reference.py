"""The papers' algorithms as float64 NumPy loops, to hold the library to."""

import math
from collections.abc import Callable

import numpy as np

Gradient = Callable[[np.ndarray, int], np.ndarray]


class Momentum:
    """Heavy-ball or Nesterov momentum; decay None is none."""

    def __init__(self, decay: float | None, nesterov: bool) -> None:
        self.decay, self.nesterov, self.velocity = decay, nesterov, 0.0

    def __call__(self, d: np.ndarray) -> np.ndarray:
        if self.decay is None:
            return d
        self.velocity = self.decay * self.velocity + d
        return d + self.decay * self.velocity if self.nesterov else self.velocity


def entropy_sgd(
    gradient: Gradient,
    x: np.ndarray,
    *,
    gradients: int,
    inner_steps: int,
    gamma: Callable[[int], float],
    learning_rate: float,
    inner_learning_rate: float,
    ema_decay: float,
    momentum: float | None = None,
    inner_momentum: float | None = None,
    weight_decay: float = 0.0,
    debias: bool = False,
    scale_by_gamma: bool = False,
    reset_inner: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Chaudhari et al. 2017, Algorithm 1 without noise: x' (x after a full loop), and x."""
    outer, inner = Momentum(momentum, True), Momentum(inner_momentum, True)
    held = x
    for outer_step in range(-(-gradients // inner_steps)):
        if reset_inner:
            inner = Momentum(inner_momentum, True)
        x_prime, mu = x, x
        for inner_step in range(inner_steps):
            index = outer_step * inner_steps + inner_step
            if index == gradients:
                return held, x
            d = gradient(x_prime, index) + weight_decay * x_prime
            d = d + gamma(outer_step) * (x_prime - x)
            x_prime = x_prime - inner_learning_rate * inner(d)
            mu = ema_decay * mu + (1 - ema_decay) * x_prime
            held = x_prime
        direction = x - mu
        if debias:
            direction = direction / (1 - ema_decay**inner_steps)
        if scale_by_gamma:
            direction = gamma(outer_step) * direction
        held = x = x - learning_rate * outer(direction)
    return held, x


def replicated_sgd(
    gradient: Callable[[np.ndarray, int, int], np.ndarray],
    replicas: np.ndarray,
    *,
    steps: int,
    every: int,
    gamma: Callable[[int], float],
    learning_rate: float,
    momentum: float | None = None,
    weight_decay: float = 0.0,
    push: Callable[[int], float] | None = None,
) -> np.ndarray:
    """Pittorino et al. 2021, Algorithm 2: ``gradient(x, replica, step)``, replicas (y, N).

    With ``push`` each is also pushed along the unit vector from the mean to it.
    """
    replicas = replicas.copy()
    optimizers = [Momentum(momentum, True) for _ in replicas]
    for step in range(steps):
        mean = replicas.mean(0)
        for a, optimizer in enumerate(optimizers):
            d = gradient(replicas[a], a, step) + weight_decay * replicas[a]
            if step % every == 0:
                gap = replicas[a] - mean
                d = d + every * gamma(step) * gap
                if push is not None:
                    d = d - every * push(step) * gap / math.sqrt(sum(gap**2))
            replicas[a] = replicas[a] - learning_rate * optimizer(d)
    return replicas


def elastic_sgd(
    gradient: Callable[[np.ndarray, int, int], np.ndarray],
    replicas: np.ndarray,
    *,
    steps: int,
    every: int,
    gamma: Callable[[int], float],
    center_rate: float,
    learning_rate: float,
    momentum: float | None = None,
    weight_decay: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Zhang et al. 2015, synchronous, the center moving first: replicas (y, N) and center."""
    replicas, center = replicas.copy(), replicas.mean(0)
    optimizers = [Momentum(momentum, True) for _ in replicas]
    for step in range(steps):
        if step % every == 0:
            center = (1 - center_rate) * center + center_rate * replicas.mean(0)
        for a, optimizer in enumerate(optimizers):
            x = replicas[a]
            d = optimizer(gradient(x, a, step) + weight_decay * x)
            if step % every == 0:
                d = d + every * gamma(step) * (x - center)
            replicas[a] = x - learning_rate * d
    return replicas, center


def parle(
    gradient: Callable[[np.ndarray, int, int], np.ndarray],
    replicas: np.ndarray,
    *,
    gradients: int,
    inner_steps: int,
    gamma: Callable[[int], float],
    rho: Callable[[int], float],
    learning_rate: float,
    inner_learning_rate: float,
    ema_decay: float,
    momentum: float | None = None,
    inner_momentum: float | None = None,
    reset_inner: bool = False,
) -> np.ndarray:
    """Chaudhari et al. 2018 for whole outer steps: the checkpoints x of the replicas, (y, N)."""
    replicas = replicas.copy()
    outer = [Momentum(momentum, True) for _ in replicas]
    inner = [Momentum(inner_momentum, True) for _ in replicas]
    for outer_step in range(gradients // inner_steps):
        averages = []
        for a, x in enumerate(replicas):
            if reset_inner:
                inner[a] = Momentum(inner_momentum, True)
            w = z = x
            for inner_step in range(inner_steps):
                d = gradient(w, a, outer_step * inner_steps + inner_step)
                w = w - inner_learning_rate * inner[a](d + gamma(outer_step) * (w - x))
                z = ema_decay * z + (1 - ema_decay) * w
            averages.append(z)
        r = np.mean(averages, 0)
        for a, x in enumerate(replicas.copy()):
            d = (x - averages[a]) + rho(outer_step) * (x - r)
            replicas[a] = x - learning_rate * outer[a](d)
    return replicas


def relaxation(
    gradient: Gradient,
    x: np.ndarray,
    *,
    gradients: int,
    inner_steps: int,
    gamma: float,
    average: Callable[[list[np.ndarray]], np.ndarray],
    learning_rate: float,
    inner_learning_rate: float,
) -> np.ndarray:
    """Chaudhari et al. 2017: x after steps to the average of each loop's L + 1 iterates."""
    for outer_step in range(gradients // inner_steps):
        iterates = [x]
        for inner_step in range(inner_steps):
            w = iterates[-1]
            d = gradient(w, outer_step * inner_steps + inner_step) + gamma * (w - x)
            iterates.append(w - inner_learning_rate * d)
        x = x - learning_rate * (x - average(iterates))
    return x


class Adam:
    """Adam with Optax's defaults."""

    def __init__(self) -> None:
        self.first, self.second, self.count = 0.0, 0.0, 0

    def __call__(self, d: np.ndarray) -> np.ndarray:
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * d
        self.second = 0.999 * self.second + 0.001 * d**2
        first = self.first / (1 - 0.9**self.count)
        second = self.second / (1 - 0.999**self.count)
        return first / (np.sqrt(second) + 1e-8)


def diloco(
    gradient: Callable[[np.ndarray, int, int], np.ndarray],
    start: np.ndarray,
    *,
    replicas: int,
    gradients: int,
    inner_steps: int,
    inner: Callable[[], Callable[[np.ndarray], np.ndarray]],
    learning_rate: float,
    outer_learning_rate: float = 0.7,
    momentum: float | None = 0.9,
    phase: int = 0,
    delay: int = 0,
    blend: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Douillard et al. 2023, Algorithm 1, and 2025 for phase, delay and blend: x^a and theta."""
    theta = start.copy()
    x = np.stack([start] * replicas)
    inners, outer = [inner() for _ in range(replicas)], Momentum(momentum, True)
    left, travelling = inner_steps - phase, []
    for step in range(gradients):
        for a in range(replicas):
            x[a] = x[a] - learning_rate * inners[a](gradient(x[a], a, step))
        left -= 1
        if left == 0:
            travelling.append((step + delay, np.mean(theta - x, 0)))
            left = inner_steps
        if travelling and travelling[0][0] == step:
            theta = theta - outer_learning_rate * outer(travelling.pop()[1])
            x = (1 - blend) * x + blend * theta
    return x, theta
