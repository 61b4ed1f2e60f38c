"""`python -m benchmarks committee`: how wide the solutions are that each algorithm finds."""
