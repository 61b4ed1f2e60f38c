"""`python -m benchmarks tune` and `table`: every method tuned alike, then judged on fresh seeds."""
