"""`python -m benchmarks scaling`: what replicas and devices cost, in time and in traffic."""
