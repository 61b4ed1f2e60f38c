"""Memory of a product for a language model, in units of the logits: what the page says of it."""

import jax
import jax.numpy as jnp
import pytest

from entropix.flatness import gauss_newton, hessian

VOCABULARY, EXAMPLES, POSITIONS, WIDTH = 8192, 8, 32, 8
LOGITS = EXAMPLES * POSITIONS * VOCABULARY * 4


def hidden(params, tokens):
    return jnp.tanh(jnp.matmul(params["embedding"][tokens], params["mix"]))


def logits(params, batch):
    return jnp.matmul(hidden(params, batch[0]), params["embedding"].T)


def cross_entropy(logits, batch):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][..., None], -1)
    return -jnp.mean(picked)


def loss(params, batch):
    return cross_entropy(logits(params, batch), batch)


def loss_in_pieces(params, batch, size=16):
    @jax.checkpoint
    def piece(of_piece):
        some, wanted = of_piece
        shares = jax.nn.log_softmax(jnp.matmul(some, params["embedding"].T))
        return -jnp.sum(jnp.take_along_axis(shares, wanted[:, None], 1))

    pieces = hidden(params, batch[0]).reshape(-1, size, WIDTH), batch[1].reshape(-1, size)
    return jnp.sum(jax.lax.map(piece, pieces)) / batch[1].size


def in_logits(product):
    """Memory of a compiled product beside its arguments and its answer."""
    shape = jax.ShapeDtypeStruct
    params = {
        "embedding": shape((VOCABULARY, WIDTH), jnp.float32),
        "mix": shape((WIDTH, WIDTH), jnp.float32),
    }
    batch = (shape((EXAMPLES, POSITIONS), jnp.int32),) * 2
    compiled = jax.jit(product).lower(params, batch, params).compile()
    return compiled.memory_analysis().temp_size_in_bytes / LOGITS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("product", "least", "most"),
    [
        (lambda w, x, v: hessian(loss, w, x)(v), 4, 7.5),
        (lambda w, x, v: gauss_newton(logits, cross_entropy, w, x)(v), 2, 4.5),
        # A chunk is an eighth of the examples.
        (lambda w, x, v: hessian(loss, w, x, batch_size=1)(v), 4 / 8, 1.1),
        (lambda w, x, v: hessian(loss_in_pieces, w, x)(v), 0, 0.9),
    ],
    ids=["hessian", "gauss-newton", "chunks", "pieces"],
)
def test_memory_in_units_of_the_logits(product, least, most):
    assert least < in_logits(product) < most


@pytest.mark.slow
def test_the_loss_in_pieces_is_the_loss():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "embedding": jax.random.normal(keys[0], (50, WIDTH)),
        "mix": jax.random.normal(keys[1], (WIDTH, WIDTH)),
    }
    tokens = jax.random.randint(keys[2], (2, 4, POSITIONS), 0, 50)
    found, expected = (f(params, tuple(tokens)) for f in (loss_in_pieces, loss))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
