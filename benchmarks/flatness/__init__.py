"""The `flatness` experiment: one minimum, measured by every estimator."""
