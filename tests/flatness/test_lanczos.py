"""The Lanczos process against an independent NumPy one, its identities, and its stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.flatness import Operator, lanczos

RNG = np.random.default_rng(0)


def symmetric(spectrum):
    basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(len(spectrum), len(spectrum))))
    return basis * spectrum @ basis.T


def reference(a, start, num_steps):
    """Lanczos by the book, each vector orthogonalized three times against all before it."""
    q = [start / np.linalg.norm(start)]
    diagonal, off_diagonal = [], []
    for _ in range(num_steps):
        w = a @ q[-1]
        diagonal.append(q[-1] @ w)
        for _ in range(3):
            for vector in q:
                w = w - (vector @ w) * vector
        off_diagonal.append(np.linalg.norm(w))
        q.append(w / off_diagonal[-1])
    return np.array(diagonal), np.array(off_diagonal), np.array(q[:-1])


def run_lanczos(matvec, v0, *arguments, **options):
    return lanczos(Operator.from_matvec(matvec, v0), v0, *arguments, **options)


def tridiagonal(result):
    taken = int(result.num_steps)
    off = result.off_diagonal[: taken - 1]
    return np.diag(result.diagonal[:taken]) + np.diag(off, 1) + np.diag(off, -1)


@pytest.mark.parametrize("num_steps", [1, 9, 40, 150])
def test_equals_the_numpy_process(num_steps, x64):
    a, start = symmetric(RNG.normal(size=200) ** 3), RNG.normal(size=200)
    result = run_lanczos(
        lambda v: jnp.asarray(a) @ v, jnp.asarray(start), num_steps, with_basis=True
    )
    diagonal, off_diagonal, basis = reference(a, start, num_steps)
    np.testing.assert_allclose(result.diagonal, diagonal, atol=1e-9)
    np.testing.assert_allclose(result.off_diagonal, off_diagonal[:-1], atol=1e-9)
    np.testing.assert_allclose(result.residual_norm, off_diagonal[-1], atol=1e-9)
    np.testing.assert_allclose(result.basis, basis, atol=1e-7)
    assert int(result.num_steps) == num_steps


def test_a_start_that_is_a_constant_of_a_compiled_function():
    start = jnp.ones(3)
    found = jax.jit(lambda: run_lanczos(lambda v: 2 * v, start, 1).diagonal)()
    np.testing.assert_allclose(found, [2.0])
    with pytest.raises(ValueError, match="norm 0"):
        jax.eval_shape(lambda: run_lanczos(lambda v: v, 0 * np.ones(3), 1))


def test_float32_basis_stays_orthonormal_when_ritz_values_converge():
    """Without re-orthogonalization the outliers come back as ghosts after some 30 steps."""
    spectrum = np.concatenate([1e-2 * RNG.normal(size=500), [30.0, 20.0, -10.0]])
    a = jnp.asarray(symmetric(spectrum), jnp.float32)
    start = jnp.asarray(RNG.normal(size=503), jnp.float32)
    result = run_lanczos(lambda v: a @ v, start, 120, with_basis=True)
    gram = np.asarray(result.basis, np.float64) @ np.asarray(result.basis, np.float64).T
    np.testing.assert_allclose(gram, np.eye(120), atol=2e-6)
    ritz = np.linalg.eigvalsh(tridiagonal(result))
    assert np.sum(np.abs(ritz) > 1) == 3
    np.testing.assert_allclose(ritz[[-1, -2, 0]], [30.0, 20.0, -10.0], rtol=1e-5)


def test_relation_of_basis_and_tridiagonal(x64):
    a, start = symmetric(RNG.normal(size=60)), RNG.normal(size=60)
    result = run_lanczos(lambda v: jnp.asarray(a) @ v, jnp.asarray(start), 20, with_basis=True)
    q = np.asarray(result.basis)
    left = a @ q.T - q.T @ tridiagonal(result)
    np.testing.assert_allclose(left[:, :-1], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(left[:, -1]), result.residual_norm, atol=1e-12)


@pytest.mark.parametrize(
    ("spectrum", "steps"),
    [
        (np.ones(30), 1),
        (np.zeros(30), 1),
        (np.repeat([1.0, 2.0, 5.0], 10), 3),
        (np.concatenate([np.zeros(26), [1.0, 2.0, 3.0, 4.0]]), 5),
    ],
    ids=["identity", "zero", "three values", "rank four"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stops_where_the_krylov_space_ends(spectrum, steps, dtype, x64):
    scaled = jnp.asarray(spectrum, dtype)
    start = jnp.asarray(RNG.normal(size=30), dtype)
    result = run_lanczos(lambda v: scaled * v, start, 12, with_basis=True)
    assert int(result.num_steps) == steps
    ritz = np.linalg.eigvalsh(tridiagonal(result))
    np.testing.assert_allclose(ritz, np.unique(spectrum), atol=20 * np.finfo(dtype).eps)
    assert float(result.residual_norm) == 0
    for rest in (result.diagonal[steps:], result.off_diagonal[steps - 1 :], result.basis[steps:]):
        assert not np.any(rest)


def test_no_product_is_spent_after_the_stop():
    calls = []
    matvec = lambda v: jax.pure_callback(lambda v: calls.append(1) or v, v, v)
    assert int(run_lanczos(matvec, jnp.ones(5), 4).num_steps) == 1
    assert len(calls) == 1


def test_more_steps_than_dimensions_are_clipped_and_said(x64):
    a = symmetric(np.arange(6.0))
    result = run_lanczos(lambda v: jnp.asarray(a) @ v, jnp.asarray(RNG.normal(size=6)), 50)
    assert int(result.num_steps) == 6
    assert result.diagonal.shape == (6,)
    np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal(result)), np.arange(6.0), atol=1e-12)


def test_trees_and_mixed_dtypes():
    like = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": [jnp.ones(4, jnp.float32)]}
    double = lambda v: jax.tree.map(lambda leaf: 2 * leaf, v)
    result = run_lanczos(double, like, 3, with_basis=True)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), result.basis) == {
        "a": ((3, 2, 3), jnp.bfloat16),
        "b": [((3, 4), jnp.float32)],
    }
    assert result.diagonal.dtype == jnp.float32
    assert float(result.diagonal[0]) == pytest.approx(2.0, rel=1e-2)


@pytest.mark.slow
def test_jit_and_vmap_give_the_same(x64):
    a, starts = np.diag(RNG.normal(size=40)), jnp.asarray(RNG.normal(size=(3, 40)))
    # The second start lies in an invariant subspace of two dimensions.
    starts = starts.at[1, 2:].set(0)
    run = lambda start: run_lanczos(lambda v: jnp.asarray(a) @ v, start, 15)
    mapped = jax.vmap(run)(starts)
    assert mapped.num_steps.tolist() == [15, 2, 15]
    for index, start in enumerate(starts):
        for ours, theirs in zip(run(start)[:4], jax.jit(run)(start)[:4], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-11)
        np.testing.assert_allclose(mapped.diagonal[index], run(start).diagonal, atol=1e-9)


def test_basis_is_updated_in_place():
    """Peak memory is one basis and a few vectors, not two bases."""
    size, steps = 100_000, 64
    matvec = lambda v: 2 * v + jnp.roll(v, 1) + jnp.roll(v, -1)
    compiled = jax.jit(lambda v: run_lanczos(matvec, v, steps)).lower(jnp.ones(size)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < (steps + 16) * size * 4


@pytest.mark.parametrize(
    ("matvec", "v0", "num_steps", "error", "message"),
    [
        (lambda v: v, jnp.ones(3), 0, ValueError, "num_steps .*got 0"),
        (lambda v: v, jnp.ones(3), 2.5, TypeError, "num_steps .*got 2.5"),
        (lambda v: v, jnp.arange(3), 2, TypeError, "floating-point arrays, got int32"),
        (lambda v: v[:2], jnp.ones(3), 2, ValueError, "shapes of its argument"),
        (lambda v: v, {}, 2, ValueError, "at least one array"),
        (jnp.eye(3), jnp.ones(3), 2, TypeError, "matvec must be a function"),
    ],
)
def test_bad_input(matvec, v0, num_steps, error, message):
    with pytest.raises(error, match=message):
        run_lanczos(matvec, v0, num_steps)
