"""`python -m benchmarks partial`: smoothing layer by layer, and the layers' temperatures."""
