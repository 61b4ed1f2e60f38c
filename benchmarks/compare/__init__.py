"""`python -m benchmarks compare`: errors and widths at the same number of gradients."""
