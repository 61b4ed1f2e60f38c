"""A canary for the fault of jax 0.10.2 on CPU (jax issue 39103).

That version compiles some small matrix products followed by a reduction to wrong numbers. The
library cannot cure it, since the flag that does is read when the backend starts; it can refuse to
be silent.
"""

import functools
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np

_FAULTY_VERSION = "0.10.2"
_CURE = "--xla_cpu_experimental_ynn_fusion_type="


class FaultyBackendWarning(UserWarning):
    """This jax computes some reductions wrongly on this backend; the message has the cure."""


@functools.cache
def warn_if_backend_is_faulty() -> None:
    """Warns, once a process, when the fault is there and its cure is not.

    Warns:
      FaultyBackendWarning: the backend fails the canary, the sum of a (3, 3) x (3, 32769) product.
    """
    if jax.__version__ != _FAULTY_VERSION or jax.default_backend() != "cpu":
        return
    with jax.ensure_compile_time_eval():
        x = jnp.asarray(np.arange(3 * 32769, dtype=np.float32).reshape(-1, 3) % 7)
        w = jnp.asarray(np.arange(9, dtype=np.float32).reshape(3, 3))
        computed = np.asarray(jax.jit(lambda w, x: jnp.sum(w @ x.T, 0))(w, x))
    expected = np.sum(np.asarray(w) @ np.asarray(x).T, 0)
    if not np.allclose(computed, expected, rtol=1e-4):
        found = os.environ.get("XLA_FLAGS", "")
        warnings.warn(
            f"jax {_FAULTY_VERSION} computes some matrix products followed by a reduction wrongly "
            "on CPU, and fails entropix's check of it here. Set the environment variable XLA_FLAGS "
            f"to '{' '.join([found, _CURE]).strip()}' before Python starts, or use another version "
            "of jax.",
            FaultyBackendWarning,
            stacklevel=3,
        )
