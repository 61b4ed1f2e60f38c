"""`python -m benchmarks speed`: every figure a ratio of medians taken in one run."""
