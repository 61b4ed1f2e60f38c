"""The same Lanczos process by this library, by bare products, and by the packages users know.

Each candidate is a function of a `Task` that prepares its network and examples, and answers the
call to be timed: from weights and data to Ritz values. All start at random vectors of their own.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from benchmarks.common.models import Dense
from benchmarks.common.network import Network
from benchmarks.common.objectives import Objectives
from entropix.flatness import hessian, lanczos

# The threads of torch spin while they wait, and starve each other where anything else runs: on two
# busy cores that made the products 10 times slower. It must be there before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Call = Callable[[], Any]

# Ritz values this near to the largest one, relatively, are copies of it.
SAME = 1e-3
IMAGE_SHAPE = (28, 28, 1)


@dataclass(frozen=True)
class Task:
    """A classifier of normal images, and the Lanczos steps to take on its Hessian.

    Attributes:
      widths: units of the hidden layers.
      examples: images, in ten classes that a random linear map gives them.
      steps: of the Lanczos process.
    """

    widths: tuple[int, ...]
    examples: int
    steps: int

    def __str__(self) -> str:
        """As the title of a table has it."""
        count = self.network.num_parameters()
        return f"{count:,} parameters, {self.examples:,} examples, {self.steps} steps"

    @property
    def network(self) -> Network:
        """The network, without dropout."""
        return Network(Dense(self.widths, 10, 0.0), IMAGE_SHAPE)

    def loss(self, params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Mean cross entropy."""
        return Objectives(self.network).loss(params, (*batch, {}))

    def error(self, params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Share of the examples got wrong."""
        return Objectives(self.network).error(params, (*batch, {}))

    def problem(self) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        """Fresh weights, and the data."""
        params, _ = jax.jit(self.network.init)(jax.random.key(0))
        image_key, teacher_key = jax.random.split(jax.random.key(1))
        images = jax.random.normal(image_key, (self.examples, *IMAGE_SHAPE))
        teacher = jax.random.normal(teacher_key, (int(np.prod(IMAGE_SHAPE)), 10))
        labels = jnp.argmax(images.reshape(self.examples, -1) @ teacher, axis=1)
        return params, (images, labels)


SMALL = Task((256, 128), 2048, 80)


def entropix_lanczos(task: Task) -> Call:
    """This library's: linearized once, all vectors re-orthogonalized."""
    params, data = task.problem()
    start = optax.tree.random_like(jax.random.key(2), params)

    def call() -> NDArray[Any]:
        result = lanczos(hessian(task.loss, params, data), start, task.steps)
        return ritz_values(result.diagonal, result.off_diagonal)

    return call


def bare_products(task: Task, count: int | None = None) -> Call:
    """The floor: products of the same operator, each of the unit vector before it.

    Args:
      task: network and data.
      count: of the products. Default the task's steps.
    """
    params, data = task.problem()
    start = optax.tree.random_like(jax.random.key(2), params)

    @jax.jit
    def products(operator: Callable[[Any], Any], vector: Any) -> Any:
        def one(vector: Any, _: None) -> tuple[Any, None]:
            image = operator(vector)
            norm = optax.tree.norm(image)
            return jax.tree.map(lambda leaf: leaf / norm, image), None

        return jax.lax.scan(one, vector, None, length=count or task.steps)[0]

    return lambda: products(hessian(task.loss, params, data), start)


def matfree(task: Task) -> Call:
    """Matfree's tridiag_sym with full re-orthogonalization, in one compiled program."""
    from matfree.decomp import tridiag_sym

    params, data = task.problem()
    vector, unravel = ravel_pytree(params)
    start = jax.random.normal(jax.random.key(2), vector.shape)
    decompose = tridiag_sym(task.steps, materialize=False)

    def product(v: jax.Array, params: Any, data: Any) -> jax.Array:
        gradient = jax.grad(lambda weights: task.loss(weights, data))
        return ravel_pytree(jax.jvp(gradient, (params,), (unravel(v),))[1])[0]

    program = jax.jit(lambda start, params, data: decompose(product, start, params, data).J_small)
    return lambda: ritz_values(*program(start, params, data))


def pyhessian(task: Task) -> Call:
    """PyHessian's density with one probe."""
    from pyhessian import hessian

    model, criterion, data = torch_problem(task)

    def call() -> NDArray[Any]:
        with eig_of_old_torch(), warnings.catch_warnings():
            # That its gradients keep their graph alive; they are let go below.
            warnings.simplefilter("ignore", UserWarning)
            nodes, _ = hessian(model, criterion, data=data, cuda=False).density(task.steps, n_v=1)
        model.zero_grad(set_to_none=True)
        return np.sort(np.asarray(nodes[0]))

    return call


def curvlinops(task: Task) -> Call:
    """curvlinops' fast_lanczos, which does not re-orthogonalize."""
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    model, criterion, data = torch_problem(task)

    def call() -> NDArray[Any]:
        operator = HessianLinearOperator(
            model, criterion, list(model.parameters()), [data], check_deterministic=False
        )
        return np.asarray(fast_lanczos(operator, task.steps)[0])

    return call


def hessian_eigenthings(task: Task) -> Call:
    """hessian-eigenthings' spectral density with one run."""
    import hessian_eigenthings as package

    model, criterion, data = torch_problem(task)

    def call() -> NDArray[Any]:
        operator = package.HessianOperator(model, [data], package.supervised_loss(criterion))
        density = package.spectral_density(operator, num_runs=1, lanczos_steps=task.steps, seed=0)
        return np.sort(np.asarray(density.raw_eigenvalues[0]))

    return call


def torch_problem(task: Task) -> tuple[Any, Any, Any]:
    """The network, loss and data of the task in torch."""
    import torch

    params, (images, labels) = task.problem()
    layers: list[Any] = [torch.nn.Flatten()]
    for layer in params.values():
        rows, columns = layer["kernel"].shape
        linear = torch.nn.Linear(rows, columns)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.asarray(layer["kernel"]).T))
            linear.bias.copy_(torch.tensor(np.asarray(layer["bias"])))
        layers += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    data = torch.tensor(np.asarray(images)), torch.tensor(np.asarray(labels)).long()
    return model, torch.nn.CrossEntropyLoss(), data


@contextmanager
def eig_of_old_torch() -> Iterator[None]:
    """Gives torch the function that PyHessian ends with and torch has dropped."""
    import torch

    def eig(matrix: Any, eigenvectors: bool) -> tuple[Any, Any]:
        del eigenvectors
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    with mock.patch.object(torch, "eig", eig, create=True):
        yield


def ritz_values(diagonal: jax.Array, off_diagonal: jax.Array) -> NDArray[Any]:
    """Eigenvalues of the tridiagonal matrix, in rising order."""
    off = np.diag(np.asarray(off_diagonal), 1)
    return np.linalg.eigvalsh(np.diag(np.asarray(diagonal)) + off + off.T)


def describe_largest(ritz_values: NDArray[Any]) -> str:
    """The largest Ritz value and, where the process lost orthogonality, how often it came."""
    top = float(np.max(ritz_values))
    copies = int(np.sum(np.abs(ritz_values - top) < SAME * top))
    return f"{top:.6g}" + (f", found {copies} times" if copies > 1 else "")


# The packages that each peer needs, and the peer.
PEERS: dict[str, tuple[tuple[str, ...], Callable[[Task], Call]]] = {
    "matfree": (("matfree",), matfree),
    "PyHessian": (("torch", "pyhessian"), pyhessian),
    "curvlinops": (("torch", "curvlinops"), curvlinops),
    "hessian-eigenthings": (("torch", "hessian_eigenthings"), hessian_eigenthings),
}
