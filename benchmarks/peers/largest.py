"""What the largest eigenvalue of a Hessian costs, and how exact each package's answer is.

Each is asked for a relative accuracy of 1e-3 in its own terms: a residual here and in SciPy, the
change from one power iteration to the next in PyHessian, which says nothing of the error.
"""

import functools
from collections.abc import Callable

from benchmarks.common.lanczos import SMALL, Task, eig_of_old_torch, torch_problem
from benchmarks.common.timing import Figure, figure, time_rounds
from benchmarks.peers.curvature import installed, missing
from entropix.flatness import eigenvalues, hessian

TOLERANCE, EXACT_TOLERANCE = 1e-3, 1e-6
# Power iteration stops here at the latest; its own default.
POWER_ITERATIONS = 100
OURS = "eigenvalues, k = 1"


def entropix_top(task: Task, tol: float = TOLERANCE) -> Callable[[], float]:
    """This library's restarted Lanczos."""
    params, data = task.problem()
    return lambda: float(
        eigenvalues(hessian(task.loss, params, data), 2, k=1, tol=tol).eigenvalues[0]
    )


def pyhessian(task: Task) -> Callable[[], float]:
    """Power iteration, for the eigenvalue of largest absolute value."""
    from pyhessian import hessian

    model, criterion, data = torch_problem(task)

    def call() -> float:
        with eig_of_old_torch():
            found = hessian(model, criterion, data=data, cuda=False).eigenvalues(
                maxIter=POWER_ITERATIONS, tol=TOLERANCE, top_n=1
            )
        model.zero_grad(set_to_none=True)
        return float(found[0][0])

    return call


def curvlinops(task: Task) -> Callable[[], float]:
    """Products of curvlinops in ARPACK."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    model, criterion, data = torch_problem(task)

    def call() -> float:
        operator = HessianLinearOperator(
            model, criterion, list(model.parameters()), [data], check_deterministic=False
        )
        found = eigsh(
            operator.to_scipy(), k=1, which="LA", tol=TOLERANCE, return_eigenvectors=False
        )
        return float(found[0])

    return call


def hessian_eigenthings(task: Task) -> Callable[[], float]:
    """Its Lanczos."""
    import hessian_eigenthings as package

    model, criterion, data = torch_problem(task)

    def call() -> float:
        operator = package.HessianOperator(model, [data], package.supervised_loss(criterion))
        found = package.lanczos(operator, k=1, which="LA", tol=TOLERANCE, seed=0)
        return float(found.eigenvalues[0])

    return call


PEERS: dict[str, tuple[tuple[str, ...], Callable[[Task], Callable[[], float]]]] = {
    "PyHessian": (("torch", "pyhessian"), pyhessian),
    "curvlinops": (("torch", "curvlinops"), curvlinops),
    "hessian-eigenthings": (("torch", "hessian_eigenthings"), hessian_eigenthings),
}


def measure(rounds: int) -> list[Figure]:
    """The time of each installed package against ours, and the errors of both."""
    present, title = installed(PEERS), section()
    if not present:
        return [missing(OURS, name, packages, title) for name, (packages, _) in PEERS.items()]
    exact = entropix_top(SMALL, EXACT_TOLERANCE)()
    builders = {OURS: functools.partial(entropix_top, SMALL)} | {
        name: functools.partial(build, SMALL) for name, build in present.items()
    }
    calls = {name: build() for name, build in builders.items()}
    errors = {name: abs(call() / exact - 1) for name, call in calls.items()}
    seconds = time_rounds(calls, rounds=rounds)
    return [
        figure(
            seconds, OURS, name, section=title, target=1.0,
            note=f"off by {errors[OURS]:.1e}, the peer by {errors[name]:.1e}",
        )
        if name in present
        else missing(OURS, name, packages, title)
        for name, (packages, _) in PEERS.items()
    ]  # fmt: skip


def section() -> str:
    """The title of the table; to count the weights starts a backend, which no import may do."""
    weights = SMALL.network.num_parameters()
    return f"largest eigenvalue of the Hessian: {weights:,} weights, {SMALL.examples:,} examples"
