"""Demonstration files: the same after a trip, and one clear line for everything that is wrong with one."""

from __future__ import annotations

import dataclasses
import json
import struct

import gymnasium
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

import klimb
from klimb import DemonstrationError, NetworkPolicy, load_demonstrations, save_demonstrations
from klimb.policies.actions import Box, Discrete
from klimb.runs.demonstration_file import COLUMNS, FORMAT


@pytest.fixture(scope="module")
def recorded():
    return klimb.record(NetworkPolicy(4, Discrete(2), hidden=(4,), key=jax.random.key(0)), "CartPole-v1", episodes=3)


@pytest.fixture
def path(recorded, tmp_path):
    return save_demonstrations(recorded, tmp_path / "demonstrations.safetensors")


def test_round_trip_by_file_and_by_run(recorded, path):
    for source in (path, path.parent, str(path)):
        loaded = load_demonstrations(source)
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(loaded, name), getattr(recorded, name))
        assert (loaded.actions, loaded.environment) == (recorded.actions, "jax:CartPole-v1")
        assert loaded.source == str(path)
    assert not list(path.parent.glob(".*"))  # nothing half-written is left


def test_boxes_without_bounds_survive(recorded, tmp_path):
    rows = len(recorded.reward)
    free = dataclasses.replace(
        recorded, action=np.zeros((rows, 2), np.float32), actions=Box((-1.0, -np.inf), (1.0, np.inf))
    )
    assert load_demonstrations(save_demonstrations(free, tmp_path / "free.safetensors")).actions == free.actions


def write(path, arrays, **meta) -> None:
    told = {"environment": "jax:CartPole-v1", "actions": {"n": 2}}
    save_file(arrays, path, {"format": FORMAT, "klimb": json.dumps(told)} | meta)


def claim(path, arrays, name, dtype, shape) -> None:
    """A file whose header claims for one array what its bytes, of which there are none, are not."""
    content = save(arrays, {"format": FORMAT, "klimb": json.dumps({"environment": "x", "actions": {"n": 2}})})
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    order = sorted((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"])
    body, at = b"", 0
    for key in order:
        begin, end = header[key]["data_offsets"]
        part = b"" if key == name else content[8 + length + begin : 8 + length + end]
        header[key]["data_offsets"] = [at, at + len(part)]
        body, at = body + part, at + len(part)
    header[name] |= {"dtype": dtype, "shape": shape}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


BOX = {"low": [-1.0], "high": [1.0]}
WRONG = [
    (lambda a, p: write(p, {k: v for k, v in a.items() if k != "reward"}), "array 'reward' is missing"),
    (lambda a, p: write(p, a | {"extra": a["reward"]}), "array 'extra' is not expected"),
    (lambda a, p: write(p, a, format="klimb-policy"), r"holds no demonstrations \(its format is 'klimb-policy'\)"),
    (lambda a, p: write(p, a, klimb="{"), "can't be used"),
    (lambda a, p: write(p, a, klimb=json.dumps({"environment": "x"})), "has no environment or no action space"),
    *[
        (lambda a, p, klimb=klimb: write(p, a, klimb=klimb), line)
        for klimb, line in {
            "null": "has no environment or no action space",
            '{"environment": "x", "actions": null}': "has no environment or no action space",
            '{"environment": "x", "actions": {"n": Infinity}}': "discrete actions have a number n from 1 to",
            '{"environment": "x", "actions": {"n": 0}}': "discrete actions have a number n from 1 to",
            '{"environment": "x", "actions": {"low": [0], "high": [1, 2]}}': "1 lower and 2 upper action bounds",
            '{"environment": "x", "actions": {"low": [2], "high": [1]}}': r"action dimension 0 is from 2\.0 to 1\.0",
            '{"environment": "x", "actions": {"low": [NaN], "high": [1]}}': "has lists low and high of numbers",
            r'{"environment": "two\nlines", "actions": {"n": 2}}': "has no environment or no action space",
        }.items()
    ],
    (lambda a, p: write(p, a, klimb="[" * 100_000), "recursion depth"),
    (
        lambda a, p: write(p, a, klimb=json.dumps({"environment": "x", "actions": BOX | {"low": [-(10**400)]}})),
        "too large",
    ),
    (
        lambda a, p: write(p, a, klimb=json.dumps({"environment": "x", "actions": BOX})),
        r"action is I32.* where F32\[\d+, 1\]",
    ),
    (lambda a, p: write(p, a | {"action": a["reward"]}), "action is F32.* where I32"),
    (lambda a, p: write(p, a | {"obs": np.zeros((), np.float32)}), r"obs is F32\[\] where F32"),
    (lambda a, p: write(p, a | {"obs": a["obs"].astype(np.float64)}), "obs is F64.* where F32"),
    (lambda a, p: claim(p, a, "obs", "F32", [2**40, 4]), "can't be used"),
    (lambda a, p: claim(p, a, "obs", "F32", [2**62, 2**62]), "can't be used"),
    (lambda a, p: claim(p, a, "obs", "F32", [2**62, 0]), r"obs is F32\[4611686018427387904, 0\] where"),
    (lambda a, p: claim(p, a, "log_prob", "F8_E4M3", [0]), "log_prob is F8_E4M3"),
    (
        lambda a, p: write(p, a | {"terminated": a["reward"]}),
        r"array terminated is F32\[(\d+)\] where BOOL\[\1\] is expected",
    ),
    (lambda a, p: write(p, a | {"reward": a["terminated"]}), r"array reward is BOOL"),
    (lambda a, p: write(p, a | {"reward": a["obs"]}), "array reward has the shape"),
    (lambda a, p: write(p, a | {"next_obs": a["obs"][:, :2]}), r"next_obs is F32\[\d+, 2\] where F32\[\d+, 4\]"),
    (lambda a, p: write(p, {k: v[:-1] for k, v in a.items()}), "is cut off"),
    (lambda a, p: write(p, {k: v[:0] for k, v in a.items()}), "is empty"),
    (lambda a, p: p.write_bytes(p.read_bytes()[:-7]), "can't be used"),
    (lambda a, p: p.write_bytes(b"not a file of ours"), "can't be used"),
    (lambda a, p: p.write_bytes(b""), "can't be used"),
    (lambda a, p: p.unlink(), "there are no demonstrations at .*: record some with klimb record RUN"),
]


@pytest.mark.parametrize(("spoil", "line"), WRONG, ids=[line[:28] for _, line in WRONG])
def test_what_is_wrong_gets_one_line_with_the_file(path, spoil, line):
    spoil(load_file(path), path)
    with pytest.raises(DemonstrationError, match=line) as error:
        load_demonstrations(path)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_of_the_arrays_is_an_error_and_of_the_header_leaves_them_as_they_are(path, recorded):
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    rng = np.random.default_rng(0)
    for at in (*rng.integers(0, 8 + length, size=60), *rng.integers(8 + length, len(whole), size=120)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1 :])
        try:
            loaded = load_demonstrations(path)
        except DemonstrationError:
            continue
        assert at < 8 + length
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(loaded, name), getattr(recorded, name))


def test_files_of_other_tools_have_no_checksum(path, recorded):
    write(path, load_file(path))
    np.testing.assert_array_equal(load_demonstrations(path).obs, recorded.obs)
    write(path, load_file(path), sha256="0" * 64)
    with pytest.raises(DemonstrationError, match="contents do not match their checksum"):
        load_demonstrations(path)


def test_half_a_file_is_an_error(path):
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(DemonstrationError, match="can't be used"):
            load_demonstrations(path)


def test_types_are_the_same_in_every_file(recorded, tmp_path):
    wide = dataclasses.replace(recorded, action=recorded.action.astype(np.int64), obs=recorded.obs.astype(np.float64))
    loaded = load_demonstrations(save_demonstrations(wide, tmp_path / "wide.safetensors"))
    assert (loaded.action.dtype, loaded.obs.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(loaded.obs, recorded.obs)


def test_where_nothing_can_be_read_or_written(recorded, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DemonstrationError, match=r"cannot write .*file/demonstrations\.safetensors"):
        save_demonstrations(recorded, tmp_path / "file" / "demonstrations.safetensors")
    with pytest.raises(DemonstrationError, match=r"can't be used: .*too long"):
        load_demonstrations("x" * 5000)


# Minari.


@pytest.fixture
def minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari")


def collect(minari, env: str, name: str) -> list[int]:
    """Three random episodes as a local dataset; returns their lengths."""
    collector = minari.DataCollector(gymnasium.make(env))
    lengths = []
    for seed in range(3):
        collector.reset(seed=seed)
        collector.action_space.seed(seed)
        ended, length = False, 0
        while not ended:
            _, _, terminated, truncated, _ = collector.step(collector.action_space.sample())
            ended, length = terminated or truncated, length + 1
        lengths.append(length)
    collector.create_dataset(name, algorithm_name="random", author="tests", description="three episodes")
    return lengths


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_local_minari_dataset_can_be_cloned(minari):
    lengths = collect(minari, "CartPole-v1", "klimb/test-v0")
    loaded = load_demonstrations("minari:klimb/test-v0")
    assert loaded.lengths.tolist() == lengths
    assert loaded.environment == "CartPole-v1"
    loaded.check_fit(klimb.make("CartPole-v1"))
    with pytest.raises(DemonstrationError, match="are missing in"):
        loaded.check_log_probs()
    run = klimb.train("CartPole-v1", klimb.BehaviourCloning(max_epochs=2), demonstrations=loaded, hidden=(4,))
    assert len(run.history) == 2
    with pytest.raises(DemonstrationError, match=r"no local Minari dataset 'klimb/tset-v0'; did you mean"):
        load_demonstrations("minari:klimb/tset-v0")


def without_spaces(data) -> None:
    metadata = json.loads((data / "metadata.json").read_text())
    del metadata["action_space"]
    (data / "metadata.json").write_text(json.dumps(metadata))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("env", "spoil", "line"),
    [
        ("CartPole-v1", lambda data: (data / "metadata.json").write_text("{"), "can't be used: Misconfigured"),
        ("CartPole-v1", without_spaces, "has no action_space in its metadata, and klimb runs no code"),
        ("CartPole-v1", lambda data: (data / "main_data.hdf5").write_bytes(b"other"), "can't be used"),
        (
            "CartPole-v1",
            lambda data: (data / "main_data.hdf5").write_bytes((data / "main_data.hdf5").read_bytes()[:3000]),
            "can't be used",
        ),
        ("FrozenLake-v1", lambda data: None, "klimb reads boxes"),
    ],
    ids=["metadata", "spaces", "foreign", "half", "discrete observations"],
)
def test_minari_datasets_that_cannot_be_used_get_one_line(minari, tmp_path, env, spoil, line):
    collect(minari, env, "klimb/test-v0")
    spoil(tmp_path / "minari" / "klimb" / "test-v0" / "data")
    with pytest.raises(DemonstrationError, match=f"^minari:klimb/test-v0.*{line}") as error:
        load_demonstrations("minari:klimb/test-v0")
    assert "\n" not in str(error.value)


def test_without_minari_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(klimb.MissingExtra, match=r"pip install 'klimb\[offline\]'"):
        load_demonstrations("minari:any")
