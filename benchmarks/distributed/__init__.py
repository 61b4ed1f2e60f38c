"""`python -m benchmarks distributed`: one training run over the devices of all processes."""
