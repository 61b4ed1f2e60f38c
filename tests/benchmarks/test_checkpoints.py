"""Checkpoints: whole and unchanged, or passed over, aloud, for the newest that is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.common.checkpoints import Checkpoints, checksums
from benchmarks.common.options import UsageError


class State(NamedTuple):
    params: dict
    opt_state: tuple
    key: jax.Array


def state_at(step):
    params = {"w": jnp.linspace(0, step, 5000).reshape(50, 100), "b": jnp.ones(3, jnp.bfloat16)}
    return State(params, optax.adam(0.1).init(params), jax.random.key(step))


def record_at(step):
    return {"step": step, "curve": [{"error": 1 / 3}]}


def shapes(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def same(first, second):
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(raw(a), raw(b)), first, second)


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", print)
    for step in (10, 20):
        checkpoints.save(step, state_at(step), record_at(step))
    checkpoints.close()
    return tmp_path / "checkpoints"


def biggest(folder, among):
    files = [path for path in (folder / "20" / among).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(folder):
    path = biggest(folder, "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
    """One bit in the middle of what holds the arrays."""
    path = biggest(folder, "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_in_record(folder):
    """A step that is still a number."""
    path = biggest(folder, "record")
    path.write_text(path.read_text().replace('"step": 20', '"step": 21'))


def lose_array_metadata(folder):
    (folder / "20" / "state" / "_METADATA").unlink()


def lose_record(folder):
    biggest(folder, "record").unlink()


def lose_arrays(folder):
    biggest(folder, "state").unlink()


DAMAGES = [
    truncate, flip, flip_in_record, lose_array_metadata, lose_record, lose_arrays,
]  # fmt: skip


def latest(folder, like=lambda record: shapes(state_at(0))):
    lines = []
    checkpoints = Checkpoints(folder, lines.append)
    try:
        return checkpoints.latest(like), lines
    finally:
        checkpoints.close()


def test_what_was_saved_comes_back(folder):
    (state, record), lines = latest(folder)
    same(state, state_at(20))
    assert record == record_at(20)
    assert lines == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_aloud(folder, damage):
    damage(folder)
    (state, record), lines = latest(folder)
    same(state, state_at(10))
    assert record == record_at(10)
    assert len(lines) == 1
    assert "step 20 is damaged" in lines[0]
    # Its step can be written again, and what was damaged is kept.
    checkpoints = Checkpoints(folder, print)
    checkpoints.save(20, state_at(20), record_at(20))
    checkpoints.close()
    (state, record), lines = latest(folder)
    assert record == record_at(20)
    assert lines == []
    assert [path.name for path in folder.with_name("checkpoints-damaged").iterdir()] == ["20"]


def test_what_holds_nothing_of_the_state_may_be_lost(folder):
    """Orbax keeps the times of writing there."""
    (folder / "20" / "_CHECKPOINT_METADATA").unlink()
    (state, record), lines = latest(folder)
    same(state, state_at(20))
    assert (record, lines) == (record_at(20), [])


def test_none_that_is_whole_is_an_error_and_none_at_all_is_none(folder, tmp_path):
    assert latest(tmp_path / "new") == (None, [])
    truncate(folder)
    (folder / "10" / "state" / "_METADATA").unlink()
    with pytest.raises(UsageError, match=r"none of the 2 checkpoints in .* is whole"):
        latest(folder)


def test_a_refused_record_is_not_a_damaged_one(folder):
    def refuse(record):
        raise UsageError("another run")

    with pytest.raises(UsageError, match="another run"):
        latest(folder, refuse)
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.bool_, jnp.uint32])
def test_each_single_bit_changes_the_checksum(dtype):
    """Of every entry: of small arrays all 8, 16 or 32 flips are tried."""
    x = np.asarray(jnp.arange(6).reshape(2, 3).astype(dtype))
    width = 1 if dtype == jnp.bool_ else 8 * x.dtype.itemsize
    bits = x.view(f"uint{8 * x.dtype.itemsize}")
    flipped = np.stack(
        [
            np.where(np.arange(6).reshape(2, 3) == at, bits ^ bits.dtype.type(1 << bit), bits)
            for at in range(6)
            for bit in range(width)
        ]
    ).view(x.dtype)
    sums = checksums({"all": [jnp.asarray(one) for one in (x, *flipped)]})
    first, *others = sums.values()
    assert first not in others


def test_checksums_do_not_depend_on_the_devices():
    x = jnp.arange(64.0).reshape(8, 8)
    mesh = jax.make_mesh((8,), ("a",), (jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a")))
    assert checksums([x]) == checksums([spread])
    assert checksums([x]) != checksums([x.T])
