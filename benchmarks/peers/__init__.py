"""`python -m benchmarks peers`: this library and others, in turn in one run."""
