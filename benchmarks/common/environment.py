"""On what a run ran."""

import contextlib
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

import entropix

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "orbax-checkpoint", "tensorflow-datasets")


def describe() -> dict[str, Any]:
    """Versions, platform and devices."""
    return {
        "entropix": entropix.__version__,
        "versions": {package: installed(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def command() -> str:
    """What was typed to start this run."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def simulate(devices: int) -> None:
    """Asks for simulated CPU devices, unless the environment or a started backend has decided."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    # Refused once a backend has started.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)


def installed(package: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
