"""Recordings as Minari datasets: the same after a trip, readable by Minari, and there as a whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import shlex
import warnings
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

import klimb
from klimb import (
    ConfigError,
    DemonstrationError,
    Demonstrations,
    GymnasiumEnvironment,
    NetworkPolicy,
    RunError,
    load_demonstrations,
)
from klimb.cli.main import main
from klimb.environments.registry import Environment
from klimb.runs.demonstration_file import COLUMNS
from klimb.runs.minari_writing import require_new_dataset, write_dataset

SPACES = {
    "vector": gymnasium.spaces.Box(-1.0, 1.0, (3,)),
    "pictures": gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8),
}
ACTIONS = {
    "discrete": gymnasium.spaces.Discrete(3, start=5),
    "box": gymnasium.spaces.Box(-1.0, 1.0, (2,)),
    "several parts": gymnasium.spaces.Dict(
        {"gear": gymnasium.spaces.Discrete(3), "force": gymnasium.spaces.Box(-2.0, 2.0, (2,))}
    ),
}


@pytest.fixture
def minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari")


class Made(gymnasium.Env):
    """Random observations; the second of three steps or the third ends."""

    def __init__(self, observation_space, action_space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.time += 1
        terminated = self.time == 2 and bool(self.np_random.random() < 0.5)
        return self.observation_space.sample(), float(self.time), terminated, self.time == 3, {}


def recorded_in(env) -> tuple[Demonstrations, Environment]:
    """Six episodes of a fresh policy."""
    environment = klimb.make(env)
    options = {} if environment.actions.is_integer else {"initial_log_std": 1.0}
    policy = NetworkPolicy(environment.observations, environment.actions, key=jax.random.key(0), **options)
    return klimb.record(policy, environment, episodes=6, seed=2), environment


def require_equal(loaded: Demonstrations, recorded: Demonstrations) -> None:
    for name in COLUMNS:
        expected = getattr(recorded, name)
        found = getattr(loaded, name)
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, expected, err_msg=name)
    assert (loaded.actions, loaded.environment) == (recorded.actions, recorded.environment)


@pytest.mark.parametrize("observations", SPACES)
@pytest.mark.parametrize("actions", ACTIONS)
def test_every_space_is_the_same_after_a_trip(minari, observations, actions):
    """Also samples beyond the bounds of a box, of which the environment, and the dataset, has the clipped ones."""
    spaces = SPACES[observations], ACTIONS[actions]
    recorded, environment = recorded_in(GymnasiumEnvironment.from_maker("Made-v0", lambda: Made(*spaces)))
    assert recorded.terminated.any()
    assert recorded.truncated.any()
    write_dataset(recorded, "klimb/made-v0", environment, algorithm="trpo")
    require_equal(load_demonstrations("minari:klimb/made-v0"), recorded)
    dataset = minari.load_dataset("klimb/made-v0")
    assert (dataset.observation_space, dataset.action_space) == (environment.observation_space, spaces[1])
    episodes = list(dataset.iterate_episodes())
    assert [len(episode.rewards) for episode in episodes] == recorded.lengths.tolist()
    if actions != "several parts":
        assert all(dataset.action_space.contains(np.asarray(a)) for episode in episodes for a in episode.actions)
    if actions == "box":
        assert np.abs(recorded.action).max() > 1


@pytest.mark.parametrize(
    ("env", "known"),
    [
        ("CartPole-v1", "CartPole-v1"),
        ("gymnasium:CartPole-v1", "CartPole-v1"),
        ("gymnasium:CartPole-v1+gymnasium.wrappers:TimeLimit(max_episode_steps=7)", None),
        ("FrozenLake-v1", None),
        ("PlanarReacher-v0", None),
    ],
)
def test_compiled_and_host_environments_are_named_as_gymnasium_knows_them(minari, env, known):
    recorded, environment = recorded_in(env)
    write_dataset(recorded, "one-v0", environment, algorithm="trpo")
    loaded = load_demonstrations("minari:one-v0")
    require_equal(loaded, recorded)
    loaded.check_fit(klimb.make(env))
    loaded.check_log_probs()
    dataset = minari.load_dataset("one-v0")
    assert (dataset.env_spec and dataset.env_spec.id) == known
    metadata = dataset.storage.metadata
    assert metadata["algorithm_name"] == "trpo"
    assert (metadata["total_episodes"], metadata["total_steps"]) == (6, len(recorded.reward))
    infos = next(iter(dataset.iterate_episodes())).infos
    np.testing.assert_allclose(infos["action_log_prob"], recorded.log_prob[: recorded.lengths[0]])


def test_modes_have_no_log_probs(minari):
    recorded, environment = recorded_in("CartPole-v1")
    modes = dataclasses.replace(recorded, log_prob=np.full_like(recorded.log_prob, np.nan))
    write_dataset(modes, "modes-v0", environment, algorithm="trpo")
    with pytest.raises(DemonstrationError, match="behaviour log-probs are missing"):
        load_demonstrations("minari:modes-v0").check_log_probs()


def test_an_existing_dataset_is_replaced_only_when_that_is_asked_for(minari, tmp_path, monkeypatch):
    recorded, environment = recorded_in("CartPole-v1")
    place = write_dataset(recorded, "a/b/two-v0", environment, algorithm="trpo")
    assert place == tmp_path / "minari" / "a" / "b" / "two-v0"
    assert set(minari.namespace.list_local_namespaces()) == {"a", "a/b"}
    with pytest.raises(RunError, match="exists already; give --overwrite, or another name with --to minari:NAME-v0"):
        require_new_dataset("minari:a/b/two-v0", overwrite=False)
    assert require_new_dataset("minari:a/b/two-v0", overwrite=True) == "a/b/two-v0"
    other = dataclasses.replace(recorded, reward=2 * recorded.reward)
    # Neither a dataset that can't be written nor one that can't take its place harms the one that is there.
    with monkeypatch.context() as patch:
        patch.setattr("klimb.runs.minari_writing._create", failing)
        with pytest.raises(DemonstrationError, match=r"cannot write .*two-v0: no room"):
            write_dataset(other, "a/b/two-v0", environment, algorithm="trpo", overwrite=True)
    require_equal(load_demonstrations("minari:a/b/two-v0"), recorded)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_once())
        with pytest.raises(DemonstrationError, match=r"cannot write .*two-v0: no room"):
            write_dataset(other, "a/b/two-v0", environment, algorithm="trpo", overwrite=True)
    require_equal(load_demonstrations("minari:a/b/two-v0"), recorded)
    assert list((tmp_path / "minari").glob(".*")) == []
    write_dataset(other, "a/b/two-v0", environment, algorithm="trpo", overwrite=True)
    require_equal(load_demonstrations("minari:a/b/two-v0"), other)
    assert list((tmp_path / "minari").glob(".*")) == []
    (tmp_path / "minari" / "mine-v0").mkdir()
    with pytest.raises(RunError, match="exists already; give another name"):
        require_new_dataset("minari:mine-v0", overwrite=True)


def failing(*arguments: object) -> None:
    raise OSError(28, "no room")


def rename_once():
    """A `Path.rename` that fails the second time, when the new dataset is to take its place."""
    real, calls = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        calls.append(path)
        return failing() if len(calls) == 2 else real(path, target)

    return rename


@pytest.mark.parametrize(
    "name", ["minari:", "minari:one", "minari:../one-v0", "minari:one-v0/", "one-v0", "minari:a b-v0"]
)
def test_what_is_no_name_of_a_dataset_gets_one_line(minari, name):
    with pytest.raises(ConfigError, match="names no Minari dataset: write minari:NAME-v0"):
        require_new_dataset(name, overwrite=False)


@pytest.mark.parametrize("after_reset", [False, True])
def test_log_probs_of_other_tools_are_read(minari, after_reset):
    """One for each step or, with the infos of the reset, one more before them."""
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=np.zeros((4, 3), np.float32),
            actions=np.arange(3),
            rewards=np.ones(3),
            terminations=np.arange(3) == 2,
            truncations=np.zeros(3, bool),
            infos={"action_log_prob": np.array([*[9.0] * after_reset, -1.0, -2.0, -3.0]), "other": np.zeros(7)},
        )
        for _ in range(2)
    ]
    with warnings.catch_warnings(action="ignore"):
        minari.create_dataset_from_buffers(
            "others-v0", buffers, observation_space=SPACES["vector"], action_space=gymnasium.spaces.Discrete(3)
        )
    np.testing.assert_array_equal(load_demonstrations("minari:others-v0").log_prob, [-1, -2, -3] * 2)


def spoil(name: str, content) -> None:
    import h5py

    with h5py.File(Path(os.environ["MINARI_DATASETS_PATH"]) / "one-v0" / "data" / "main_data.hdf5", "a") as file:
        infos = file["episode_1/infos"]
        if name in infos:
            del infos[name]
        infos[name] = h5py.ExternalLink("/dev/zero", "x") if content is None else content


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("action_log_prob", np.zeros(1), r"episode_1/infos/action_log_prob has the shape \[1\] where"),
        ("action_log_prob", None, "episode_1/infos/action_log_prob is a link to another place"),
        ("sampled_action", None, "episode_1/infos/sampled_action is a link to another place"),
        ("action_log_prob", ["much"], "episode_1/infos/action_log_prob holds 'object', which are no numbers"),
        ("sampled_action", np.zeros((2, 9)), r"episode_1/infos/sampled_action has the shape \[2, 9\] where"),
    ],
)
def test_damaged_infos_get_one_line(minari, name, content, line):
    recorded, environment = recorded_in("CartPole-v1")
    write_dataset(recorded, "one-v0", environment, algorithm="trpo")
    spoil(name, content)
    with pytest.raises(DemonstrationError, match=line):
        load_demonstrations("minari:one-v0")


def test_without_minari_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(klimb.MissingExtra, match=r"pip install 'klimb\[offline\]'"):
        require_new_dataset("minari:one-v0", overwrite=False)


@pytest.mark.slow
def test_from_a_run_to_a_dataset_to_an_estimate_and_a_training(minari, tmp_path, monkeypatch, capsys):
    """klimb record --to; the dataset is estimated from, and weighted in a training, by its log-probs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    small = shlex.split("--num-envs 4 --num-steps 32 --hidden 8 --env-steps 128 --eval-episodes 0 --quiet")
    assert main(["train", "trpo", "CartPole-v1", *small, "--run-dir", "run"]) == 0
    words = ["record", "run", "--episodes", "20", "--to", "minari:cartpole/few-v0"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"dataset      {tmp_path}/minari/cartpole/few-v0\n" in said
    assert "--demonstrations minari:cartpole/few-v0\n" in said
    assert main(words) == 2
    assert "exists already; give --overwrite, or another name with --to" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main([*words, "-o", "file"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert main(["estimate", "run", "--demonstrations", "minari:cartpole/few-v0"]) == 0
    assert "effective sample size 20.0 of 20 episodes" in capsys.readouterr().out
    train = ["train", "off-policy-gradient", "CartPole-v1", "--demonstrations", "minari:cartpole/few-v0"]
    assert main([*train, *small, "--run-dir", "learned"]) == 0
