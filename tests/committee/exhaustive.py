"""All weights of a small binary network, one by one: the reference of the message passing."""

import functools

import numpy as np


@functools.lru_cache(maxsize=1)
def every(k, n):
    """All weights of that shape, (2^(K n), K, n)."""
    columns = [
        np.where(np.arange(2 ** (k * n), dtype=np.int32) >> bit & 1, 1, -1).astype(np.float32)
        for bit in range(k * n)
    ]
    return np.stack(columns, axis=1).reshape(-1, k, n)


def outputs(model, patterns):
    """All 2^(K n) weights and what each answers to each pattern: (W, K, n) and (W, M)."""
    k, n = model.shape
    weights = every(k, n)
    answers = np.empty((len(weights), len(patterns)), np.int8)
    for at, x in enumerate(np.asarray(patterns, np.float32)):
        inputs = x.reshape(-1, n)
        fields = [weights[:, u] @ inputs[u % len(inputs)] for u in range(k)]
        tau = np.sign(fields)
        answers[:, at] = np.sign(tau.sum(0)) if model.output == "majority" else tau.prod(0)
    return weights, answers


def solutions(model, patterns, labels):
    """The weights that classify every pattern as labeled, (S, K, n)."""
    weights, answers = outputs(model, patterns)
    return weights[np.all(answers == np.asarray(labels), axis=1)].astype(np.float64)


def counted(model, patterns, labels, field):
    """Log of the sum of e^(field . W) over the solutions, and the mean solution."""
    found = solutions(model, patterns, labels)
    weight = np.exp(np.sum(found * np.asarray(field), axis=(1, 2)))
    return np.log(weight.sum()), np.tensordot(weight, found, 1) / weight.sum()
