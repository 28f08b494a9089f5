"""Demonstration files: the same after a trip, and one clear line for everything that is wrong with one."""

from __future__ import annotations

import json

import gymnasium
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import klimb
from klimb import DemonstrationError, NetworkPolicy, load_demonstrations, save_demonstrations
from klimb.policies.networks import Box, Discrete
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
    import dataclasses

    rows = len(recorded.reward)
    free = dataclasses.replace(
        recorded, action=np.zeros((rows, 2), np.float32), actions=Box((-1.0, -np.inf), (1.0, np.inf))
    )
    assert load_demonstrations(save_demonstrations(free, tmp_path / "free.safetensors")).actions == free.actions


def write(path, arrays, **meta) -> None:
    told = {"environment": "jax:CartPole-v1", "actions": {"n": 2}}
    save_file(arrays, path, {"format": FORMAT, "klimb": json.dumps(told)} | meta)


WRONG = [
    (lambda a, p: write(p, {k: v for k, v in a.items() if k != "reward"}), "array reward is missing or not expected"),
    (lambda a, p: write(p, a | {"extra": a["reward"]}), "array extra is missing or not expected"),
    (lambda a, p: write(p, a, format="klimb-policy"), r"holds no demonstrations \(its format is 'klimb-policy'\)"),
    (lambda a, p: write(p, a, klimb="{"), "can't be used"),
    (lambda a, p: write(p, a, klimb=json.dumps({"environment": "x"})), "can't be used: 'actions'"),
    (lambda a, p: write(p, a | {"terminated": a["reward"]}), "array terminated is float32, not bool"),
    (lambda a, p: write(p, a | {"reward": a["terminated"]}), "array reward is bool"),
    (lambda a, p: write(p, a | {"reward": a["obs"]}), "array reward has the shape"),
    (lambda a, p: write(p, a | {"next_obs": a["obs"][:, :2]}), "obs is .* and next_obs"),
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


def test_damage_anywhere_in_the_header_is_an_error_or_harmless(path, recorded):
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, 900, size=60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        try:
            loaded = load_demonstrations(path)
        except DemonstrationError:
            continue
        assert len(loaded.reward) == len(recorded.reward)


# Minari.


@pytest.fixture
def minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari")


@pytest.mark.filterwarnings("ignore")
def test_a_local_minari_dataset_can_be_cloned(minari):
    env = minari.DataCollector(gymnasium.make("CartPole-v1"))
    lengths = []
    for seed in range(3):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        ended, length = False, 0
        while not ended:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            ended, length = terminated or truncated, length + 1
        lengths.append(length)
    env.create_dataset("klimb/test-v0", algorithm_name="random", author="tests", description="three episodes")
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


def test_without_minari_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(klimb.MissingExtra, match=r"pip install 'klimb\[offline\]'"):
        load_demonstrations("minari:any")
