"""The same Lanczos process by this library, by bare products, and by the packages users know.

Each candidate is a function without arguments that prepares a network of 235,146 parameters and
2,048 examples, and answers the call to be timed: from weights and data to Ritz values. All start
at random vectors of their own.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from entropix.flatness import hessian, lanczos

# The threads of torch spin while they wait, and starve each other where anything else runs: on two
# busy cores that made the products 10 times slower. It must be there before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Call = Callable[[], Any]

STEPS = 80
EXAMPLES = 2048
IMAGE_SHAPE = (28, 28, 1)
# Ritz values this near to the largest one, relatively, are copies of it.
SAME = 1e-3
NETWORK = Network(Dense((256, 128), 10, 0.0), IMAGE_SHAPE)


def loss(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean cross entropy."""
    logits = NETWORK.logits(params, {}, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def problem() -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Fresh weights; normal images in classes that a random linear map gives them."""
    params, _ = jax.jit(NETWORK.init)(jax.random.key(0))
    image_key, teacher_key = jax.random.split(jax.random.key(1))
    images = jax.random.normal(image_key, (EXAMPLES, *IMAGE_SHAPE))
    teacher = jax.random.normal(teacher_key, (int(np.prod(IMAGE_SHAPE)), 10))
    return params, (images, jnp.argmax(images.reshape(EXAMPLES, -1) @ teacher, axis=1))


def entropix_lanczos() -> Call:
    """This library's: linearized once, all vectors re-orthogonalized."""
    params, data = problem()
    start = optax.tree.random_like(jax.random.key(2), params)

    def call() -> NDArray[Any]:
        result = lanczos(hessian(loss, params, data), start, STEPS)
        return ritz_values(result.diagonal, result.off_diagonal)

    return call


def bare_products() -> Call:
    """The floor: as many products of the same operator, each of the unit vector before it."""
    params, data = problem()
    start = optax.tree.random_like(jax.random.key(2), params)

    @jax.jit
    def products(operator: Callable[[Any], Any], vector: Any) -> Any:
        def one(vector: Any, _: None) -> tuple[Any, None]:
            image = operator(vector)
            norm = optax.tree.norm(image)
            return jax.tree.map(lambda leaf: leaf / norm, image), None

        return jax.lax.scan(one, vector, None, length=STEPS)[0]

    return lambda: products(hessian(loss, params, data), start)


def matfree() -> Call:
    """Matfree's tridiag_sym with full re-orthogonalization, in one compiled program."""
    from matfree.decomp import tridiag_sym

    params, data = problem()
    vector, unravel = ravel_pytree(params)
    start = jax.random.normal(jax.random.key(2), vector.shape)
    decompose = tridiag_sym(STEPS, materialize=False)

    def product(v: jax.Array, params: Any, data: Any) -> jax.Array:
        gradient = jax.grad(lambda weights: loss(weights, data))
        return ravel_pytree(jax.jvp(gradient, (params,), (unravel(v),))[1])[0]

    program = jax.jit(lambda start, params, data: decompose(product, start, params, data).J_small)
    return lambda: ritz_values(*program(start, params, data))


def pyhessian() -> Call:
    """PyHessian's density with one probe."""
    from pyhessian import hessian

    model, criterion, data = torch_problem()

    def call() -> NDArray[Any]:
        with eig_of_old_torch(), warnings.catch_warnings():
            # That its gradients keep their graph alive; they are let go below.
            warnings.simplefilter("ignore", UserWarning)
            nodes, _ = hessian(model, criterion, data=data, cuda=False).density(STEPS, n_v=1)
        model.zero_grad(set_to_none=True)
        return np.sort(np.asarray(nodes[0]))

    return call


def curvlinops() -> Call:
    """curvlinops' fast_lanczos, which does not re-orthogonalize."""
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    model, criterion, data = torch_problem()

    def call() -> NDArray[Any]:
        operator = HessianLinearOperator(
            model, criterion, list(model.parameters()), [data], check_deterministic=False
        )
        return np.asarray(fast_lanczos(operator, STEPS)[0])

    return call


def torch_problem() -> tuple[Any, Any, Any]:
    """The network, loss and data of `problem` in torch."""
    import torch

    params, (images, labels) = problem()
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
PEERS: dict[str, tuple[tuple[str, ...], Callable[[], Call]]] = {
    "matfree": (("matfree",), matfree),
    "PyHessian": (("torch", "pyhessian"), pyhessian),
    "curvlinops": (("torch", "curvlinops"), curvlinops),
}
