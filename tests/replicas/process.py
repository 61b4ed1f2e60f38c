"""One of several processes: trains all algorithms over the devices of all, prints the parameters.

Started by `test_processes.py` as ``python -m tests.replicas.process PORT PROCESSES DEVICES ID``.
"""

import json
import os
import sys


def main(port: int, processes: int, devices: int, process_id: int) -> None:
    """Joins the others, trains, prints; imports jax after the devices are set."""
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} --xla_cpu_experimental_ynn_fusion_type="
    )
    import jax

    jax.distributed.initialize(f"localhost:{port}", processes, process_id)

    import numpy as np

    from entropix import replicas
    from tests.replicas.test_plan import ALGORITHMS, BATCHES, STEPS, Y, one_replica_step, start

    found = {}
    for name, algorithm in ALGORITHMS.items():
        plan = replicas.plan(Y)
        tx = algorithm(axis_name=plan.axis_name)
        run, state = plan.run(one_replica_step(tx)), plan.place(start(tx))
        batches = [plan.place_batch(plan.local_part(batch)) for batch in BATCHES]
        for at in range(STEPS):
            state, _ = jax.block_until_ready(run(state, batches[at % len(batches)]))
        params = plan.collect(state)[0]
        found[name] = {key: np.asarray(leaf).tolist() for key, leaf in params.items()}
        shapes = jax.tree.map(np.shape, plan.local_part(BATCHES[0]))
    print(json.dumps({"params": found, "fed": shapes, "devices": jax.device_count()}))  # noqa: T201


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
