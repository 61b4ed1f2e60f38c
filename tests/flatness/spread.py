"""A network whose parameters and examples are spread over a mesh, and what is asked of it.

Also one of several processes, started by `test_sharding.py` as
``python -m tests.flatness.spread PORT PROCESSES DEVICES ID``: prints its answers.
"""

import functools
import json
import os
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entropix.flatness import (
    diagonal,
    eigenvalues,
    gauss_newton,
    gradient_covariance,
    hessian,
    spectrum,
    trace,
)
from tests.flatness import problems

# Programs that run once need not be optimized.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SPECS = {"w": P(None, "fsdp"), "b": P(), "v": P("fsdp")}


def arrays():
    rng = np.random.default_rng(0)
    params = {
        "w": rng.normal(size=(8, 16)) / 3,
        "b": rng.normal(size=16) / 3,
        "v": rng.normal(size=(16, 4)) / 4,
    }
    x, y = rng.normal(size=(32, 8)), rng.integers(0, 4, 32)
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), (params, x)), y.astype(np.int32)


def problem(mesh=None):
    """Parameters and data on one device, or spread over a mesh that several processes may share."""
    (params, x), y = arrays()
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, (params, (x, y)))

    def placed(array, spec):
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, spec), lambda index: array[index]
        )

    return (
        {name: placed(leaf, SPECS[name]) for name, leaf in params.items()},
        (placed(x, P("data")), placed(y, P("data"))),
    )


def mesh():
    return jax.make_mesh((2, 4), ("data", "fsdp"), (AxisType.Auto,) * 2)


def operators(params, data):
    return {
        "hessian": hessian(problems.mlp, params, data),
        "gauss-newton": gauss_newton(problems.mlp_outputs, problems.cross_entropy, params, data),
        "covariance": gradient_covariance(problems.mlp, params, data),
    }


def products(h):
    """Numbers that are sums of products."""
    return {"trace": trace(h, 2, num_probes=4, method="hutchinson")}


def answers(h):
    """Numbers of all estimators that work on vectors, in one program."""
    found = eigenvalues(h, 0, k=2, tol=1e-5)
    density = spectrum(h, 1, num_steps=6, num_probes=2, reorthogonalize=True)
    return {
        "eigenvalues": found.eigenvalues,
        "spectrum": density.moment(2),
        "trace": trace(h, 2, num_probes=8),
        "diagonal": diagonal(h, 3, num_probes=4).mean["b"],
    }


def main(port: int, processes: int, devices: int, process_id: int) -> None:
    """Joins the others, asks, prints."""
    jax.distributed.initialize(f"localhost:{port}", processes, process_id)
    found = quickly(answers)(operators(*problem(mesh()))["hessian"])
    numbers = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(found)]
    print(json.dumps({"devices": jax.device_count(), "answers": numbers}))  # noqa: T201


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={sys.argv[3]} "
        "--xla_cpu_experimental_ynn_fusion_type="
    )
    main(*map(int, sys.argv[1:]))
