"""What a sweep of belief propagation costs beside the same sweep in NumPy."""

from benchmarks.common.timing import Figure
from benchmarks.speed.committee import one_sweep


def measure(rounds: int) -> list[Figure]:
    """The lines of `python -m benchmarks speed` whose reference is NumPy."""
    return [line for line in one_sweep(rounds) if line.reference.startswith("NumPy")]
