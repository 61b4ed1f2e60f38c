"""`python -m benchmarks language`: local SGD on a language model, loss against bytes."""
