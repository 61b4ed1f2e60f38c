"""Eigenvalues, traces and quadratures beside those of other packages, where they are installed."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from entropix.flatness import dense, eigenvalues, hessian, spectrum, trace
from tests.flatness import problems

PARAMS, DATA = problems.mlp_problem()
STEPS, RUNS, PROBES = 20, 8, 200

pytestmark = [
    pytest.mark.slow,
    # Of the peers' own making.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def strict_ranks():
    """Peers promote ranks."""


def torch_problem():
    """The network, its loss and its data in torch."""
    torch = pytest.importorskip("torch")
    inputs, hidden = PARAMS["w"].shape
    classes = PARAMS["v"].shape[1]
    model = torch.nn.Sequential(
        torch.nn.Linear(inputs, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, classes, False)
    )
    with torch.no_grad():
        for to, leaf in zip(model.parameters(), ("w", "b", "v"), strict=True):
            to.copy_(torch.tensor(np.asarray(PARAMS[leaf]).T))
    data = torch.tensor(np.asarray(DATA[0])), torch.tensor(np.asarray(DATA[1])).long()
    torch.manual_seed(0)
    return model, torch.nn.CrossEntropyLoss(), data


def matfree():
    """(two eigenvalues by which end, trace and its standard error, quadratures)."""
    pytest.importorskip("matfree")
    from matfree import decomp, stochtrace

    flat, restore = ravel_pytree(PARAMS)
    gradient = jax.grad(lambda w: problems.mlp(restore(w), DATA))

    def product(v):
        return jax.jvp(gradient, (flat,), (v,))[1]

    @jax.jit
    def quadrature(key):
        start = jax.random.rademacher(key, flat.shape, flat.dtype)
        found = decomp.tridiag_sym(STEPS)(product, start)
        values, vectors = jnp.linalg.eigh(found.J_small)
        return values, vectors[0] ** 2

    runs = [quadrature(key) for key in jax.random.split(jax.random.key(0), RUNS)]
    estimator = stochtrace.estimator_monte_carlo_mean_and_sem(
        stochtrace.monte_carlo_trace(), stochtrace.sampler_signs(flat, num=PROBES)
    )
    total = estimator(product, jax.random.key(1))
    return {"largest": np.sort(runs[0][0])[::-1][:2]}, total, runs


def pyhessian():
    package = pytest.importorskip("pyhessian")
    lanczos = pytest.importorskip("benchmarks.common.lanczos")
    model, criterion, data = torch_problem()
    with lanczos.eig_of_old_torch():
        h = package.hessian(model, criterion, data=data, cuda=False)
        top, _ = h.eigenvalues(maxIter=500, tol=1e-6, top_n=2)
        samples = h.trace(maxIter=PROBES, tol=0)
        runs = list(zip(*h.density(STEPS, n_v=RUNS), strict=True))
    # Power iteration finds those of largest absolute value.
    return {"both": top}, (np.mean(samples), np.std(samples) / len(samples) ** 0.5), runs


def curvlinops():
    package = pytest.importorskip("curvlinops")
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    model, criterion, data = torch_problem()
    h = package.HessianLinearOperator(
        model, criterion, list(model.parameters()), [data], check_deterministic=False
    )
    runs = []
    for _ in range(RUNS):
        values, vectors = fast_lanczos(h, STEPS)
        runs.append((values, vectors[0] ** 2))
    totals = [float(package.xtrace(h, 20)) for _ in range(RUNS)]
    total = np.mean(totals), np.std(totals) / (RUNS - 1) ** 0.5
    # Its Lanczos finds copies; SciPy finds eigenvalues with its products.
    top = scipy.sparse.linalg.eigsh(h.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    return {"largest": np.sort(top)[::-1]}, total, runs


def hessian_eigenthings():
    package = pytest.importorskip("hessian_eigenthings")
    model, criterion, data = torch_problem()
    h = package.HessianOperator(model, [data], package.supervised_loss(criterion))
    top = package.lanczos(h, k=2, max_iter=STEPS, which="LA", seed=0).eigenvalues
    total = package.trace(h, num_matvecs=PROBES, method="hutchinson", seed=0)
    density = package.spectral_density(h, num_runs=RUNS, lanczos_steps=STEPS, seed=0)
    runs = list(zip(density.raw_eigenvalues, density.raw_weights, strict=True))
    return {"largest": np.sort(np.asarray(top))[::-1]}, (total.estimate, total.stderr), runs


PEERS = {
    "matfree": matfree,
    "PyHessian": pyhessian,
    "curvlinops": curvlinops,
    "hessian-eigenthings": hessian_eigenthings,
}


@pytest.mark.parametrize("name", PEERS)
def test_values_are_those_of_a_peer(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        top, (mean, error), runs = PEERS[name]()
    h = hessian(problems.mlp, PARAMS, DATA)
    exact = np.linalg.eigvalsh(np.asarray(dense(h), float))
    ((which, values),) = top.items()
    ours = eigenvalues(h, 0, k=2, tol=1e-6, which=which)
    np.testing.assert_allclose(np.asarray(values, float), ours.eigenvalues, rtol=1e-3)
    total = trace(h, 0)
    assert abs(mean - float(total.mean)) < 5 * np.hypot(error, float(total.std_error))
    # Quadratures, by the mean of a function over the spectrum that is no low polynomial.
    smooth = lambda values: np.exp(-((values / exact[-1]) ** 2) * 4)
    found = spectrum(h, 0, num_steps=STEPS, num_probes=RUNS)
    of_ours = np.sum(np.asarray(found.weights) * smooth(np.asarray(found.nodes)), 1)
    of_peer = np.array([np.sum(np.asarray(w) * smooth(np.asarray(v))) for v, w in runs])
    for samples in (of_ours, of_peer):
        bar = np.std(samples, ddof=1) / RUNS**0.5
        assert abs(samples.mean() - smooth(exact).mean()) < 5 * bar + 1e-5
