"""Checkpoints: whole, the newest usable one, and no more of them than asked for."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from klimb import RunError
from klimb.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def make_state(number: float) -> dict:
    return {
        "weights": jnp.full((3, 2), number),
        "count": jnp.uint32(7),
        "flag": jnp.array([True, False]),
        "empty": (),
        "keys": jax.random.split(jax.random.key(5), 4),
    }


TEMPLATE = jax.eval_shape(lambda: make_state(0.0))


def save(directory, iteration: int, keep: int = 3):
    return save_checkpoint(directory, Checkpoint(make_state(float(iteration)), iteration, 1.25 * iteration), keep=keep)


def test_round_trip_keeps_keys_types_and_numbers(tmp_path):
    save(tmp_path, 4)
    state, iteration, wall_time, _ = load_checkpoint(tmp_path, TEMPLATE)
    assert (iteration, wall_time) == (4, 5.0)
    assert eqx.tree_equal(state, make_state(4.0))


def test_only_the_newest_are_kept(tmp_path):
    for iteration in (1, 2, 10, 11):
        save(tmp_path, iteration, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000010.safetensors", "000000011.safetensors"]


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, None])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(damage, tmp_path):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    newest.write_bytes(newest.read_bytes()[:-3] if damage is None else damage)
    state, iteration, *_ = load_checkpoint(tmp_path, TEMPLATE)
    assert iteration == 1
    assert float(state["weights"][0, 0]) == 1.0


def test_no_usable_checkpoint_says_what_was_tried(tmp_path):
    with pytest.raises(RunError, match="contains none"):
        load_checkpoint(tmp_path, TEMPLATE)
    save(tmp_path, 1).write_bytes(b"rubbish")
    with pytest.raises(RunError, match=r"000000001\.safetensors: not a whole"):
        load_checkpoint(tmp_path, TEMPLATE)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    save(tmp_path, 1)
    other = {**TEMPLATE, "weights": jax.ShapeDtypeStruct((3, 3), jnp.float32)}
    with pytest.raises(RunError, match=r"float32\[3, 2\] where float32\[3, 3\] is expected"):
        load_checkpoint(tmp_path, other)


def test_an_interrupted_write_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["000000001.safetensors"]
