"""Untrusted files: every defect gives a one-line error."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_files import little_memory

import klimb
from klimb import TRPO, NetworkPolicy, PolicyFileError, load_demonstrations
from klimb.cli.main import main
from klimb.errors import DemonstrationError
from klimb.policies.actions import Box

fault = pytest.mark.fault
SMALL = dict(num_envs=2, num_steps=16, hidden=(4,), critic_epochs=1, critic_num_minibatches=1, checkpoint_every=1)


def saved(folder: Path, change) -> Path:
    """A policy with other numbers, saved."""
    policy = NetworkPolicy(3, Box((-1.0, -1.0), (1.0, 1.0)), hidden=(4,), key=jax.random.key(0))
    return klimb.save_policy(change(policy), folder)


def with_weight(value: float, *places: tuple[int, int]):
    """A change of some weights of the first layer."""
    return lambda policy: eqx.tree_at(
        lambda p: p.network.weights[0],
        policy,
        policy.network.weights[0].at[tuple(zip(*places, strict=True))].set(value),
    )


def with_statistics(name: str, value: object):
    return lambda policy: eqx.tree_at(
        lambda p: getattr(p.encoder.normalizer, name), policy, jnp.asarray(value, jnp.float32)
    )


NOT_FINITE = "refused, with the array and how many of its numbers are not finite"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            with_weight(np.nan, (0, 1), (2, 3)),
            "array network.weights[0] holds 2 numbers of 12 that are not finite",
            marks=fault("weights of a policy are NaN", NOT_FINITE),
            id="nan",
        ),
        pytest.param(
            with_weight(-np.inf, (1, 1)),
            "array network.weights[0] holds 1 number of 12 that is not finite",
            marks=fault("a weight of a policy is infinite", NOT_FINITE),
            id="inf",
        ),
        pytest.param(
            lambda policy: eqx.tree_at(lambda p: p.log_std, policy, jnp.array([0, jnp.nan])),
            "array log_std holds 1 number of 2 that is not finite",
            marks=fault("a log standard deviation of a policy is NaN", NOT_FINITE),
            id="log_std",
        ),
        pytest.param(
            with_statistics("mean", [0, np.inf, 0]),
            "array encoder.normalizer.mean holds 1 number of 3 that is not finite",
            id="mean",
        ),
        pytest.param(
            with_statistics("variance", [1, -0.5, -2]),
            "array encoder.normalizer.variance holds 2 numbers of 3 that are negative",
            marks=fault(
                "a variance of a policy's observations is negative",
                "refused, with how many of its numbers are negative",
            ),
            id="variance",
        ),
        pytest.param(
            with_statistics("count", -1),
            "array encoder.normalizer.count holds 1 number of 1 that is negative",
            marks=fault("a policy has counted a negative number of observations", "refused, with the array"),
            id="count",
        ),
    ],
)
def test_policies_that_are_not_finite(tmp_path, change, said):
    path = saved(tmp_path, change)
    with pytest.raises(PolicyFileError) as raised:
        klimb.load_policy(path)
    message = str(raised.value)
    assert message == f"{path / 'policy.safetensors'} can't be used: {said}"


def test_policies_at_the_edge_are_read(tmp_path):
    for number, change in enumerate(
        (
            with_weight(3e38, (0, 0)),
            with_weight(1e-45, (0, 0)),
            with_statistics("variance", [0, 0, 3e38]),
            with_statistics("count", 0),
        )
    ):
        klimb.load_policy(saved(tmp_path / str(number), change))


class Foreign(eqx.Module):
    """A class of the user's own, whose arrays may mean anything."""

    table: jax.Array

    def __call__(self, obs):
        return klimb.Categorical(logits=self.table)


def test_arrays_of_other_classes_may_be_anything(tmp_path):
    klimb.save_policy(Foreign(jnp.array([0.0, -jnp.inf])), tmp_path)
    assert klimb.load_policy(tmp_path, like=Foreign(jnp.zeros(2))).table[1] == -jnp.inf


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "run"
    klimb.train("CartPole-v1", TRPO(), env_steps=64, run_dir=path, **SMALL)
    return path


def spoil(path: Path) -> None:
    policy = klimb.load_policy(path)
    klimb.save_policy(with_weight(np.nan, (0, 0))(policy), path)


@fault("the policy of a run is not finite when it is evaluated", "one line, and no return")
def test_evaluating_a_policy_that_is_not_finite(run, tmp_path, capsys):
    path = shutil.copytree(run, tmp_path / "run")
    spoil(path)
    assert main(["evaluate", str(path), "--episodes", "1"]) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(
        r"klimb: .*policy\.safetensors can't be used: array network\.weights\[0\] holds 1 number of 16 .*\n",
        printed.err,
    )
    assert "return" not in printed.out


@fault("the policy of a run is not finite when it is resumed", "the checkpoint is used, and the policy written again")
def test_resuming_a_run_whose_policy_is_not_finite(run, tmp_path, caplog):
    path = shutil.copytree(run, tmp_path / "run")
    spoil(path)
    resumed = klimb.resume(path, env_steps=96)
    assert "that is not finite; the checkpoint is used, and its policy written again" in caplog.text
    assert resumed.history[-1]["iteration"] == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(eqx.filter(klimb.load_policy(path), eqx.is_array)))


# Minari datasets in HDF5.

MANY = 3 * 10**9
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A folder of datasets with one of two short episodes."""
    minari, folder = pytest.importorskip("minari"), tmp_path_factory.mktemp("minari")
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        collector = minari.DataCollector(gymnasium.make("CartPole-v1", max_episode_steps=6))
        for seed in range(2):
            collector.reset(seed=seed)
            while not any(collector.step(0)[2:4]):
                pass
        # Minari warns of all that a dataset should say of itself, and of a folder that it leaves to Python to remove.
        with warnings.catch_warnings(action="ignore"):
            collector.create_dataset("klimb/test-v0")
            del collector
            gc.collect()
    finally:
        os.environ.pop("MINARI_DATASETS_PATH") if before is None else os.environ.update(MINARI_DATASETS_PATH=before)
    return folder


class Dataset:
    """A copy of a dataset that can be changed."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "klimb" / "test-v0" / "data"
        self.file = self.data / "main_data.hdf5"

    def describe(self, **changes: object) -> None:
        path = self.data / "metadata.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def change(self, function) -> None:
        import h5py

        with h5py.File(self.file, "a") as file:
            function(h5py, file, file["episode_1"])

    def refusal(self) -> str:
        with little_memory(1024), pytest.raises(DemonstrationError) as raised:
            load_demonstrations("minari:klimb/test-v0")
        said = str(raised.value)
        assert said.startswith("minari:klimb/test-v0")
        assert said.isprintable()
        return said


@pytest.fixture
def own(dataset, tmp_path, monkeypatch) -> Dataset:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shutil.copytree(dataset, tmp_path / "minari")))
    return Dataset(tmp_path / "minari")


def replace(group, name: str, shape: tuple[int, ...], dtype: str, **options: object):
    del group[name]
    return group.create_dataset(name, shape, dtype, **options)


def make_bomb(h5py, file, episode) -> None:
    """All arrays of an episode of many steps, which take no room in the file."""
    shapes = {"observations": (MANY + 1, 4), "actions": (MANY,)}
    for name in COLUMNS:
        shape = shapes.get(name, (MANY,))
        replace(episode, name, shape, episode[name].dtype, chunks=(2**20, *shape[1:]), compression="gzip")


@fault("a Minari dataset of some kilobytes unpacks to gigabytes", "refused before it is unpacked, with both sizes")
def test_a_dataset_that_unpacks_to_gigabytes(own):
    own.change(make_bomb)
    size = own.file.stat().st_size
    assert size < 10**5
    said = own.refusal()
    unpacked = int(re.search(r"its first 2 episodes are (\d+) bytes when they are unpacked", said)[1])
    assert unpacked > MANY * (16 + 8 + 1 + 1)
    assert f"from a file of {size}; klimb reads at most {2**32} of all 2" in said


@fault("a Minari dataset holds gigabytes that klimb has no use for", "they are not read")
def test_infos_are_not_read(own):
    def add(h5py, file, episode):
        infos = episode.require_group("infos")
        infos.create_dataset("bomb", (MANY,), "float64", chunks=(2**20,), compression="gzip")
        episode.attrs["bomb"] = "x" * 60_000

    own.change(add)
    with little_memory(1024):
        loaded = load_demonstrations("minari:klimb/test-v0")
    assert loaded.lengths.tolist() == [6, 6]


@fault("a Minari dataset claims 2⁴⁰ episodes", "refused, with the limit")
@pytest.mark.parametrize("count", [2**40, -1, 2.0, True, None, "2"])
def test_too_many_episodes(own, count):
    own.describe(total_episodes=count)
    assert f"episodes; klimb reads at most {2**20}" in own.refusal()


@fault("the metadata of a Minari dataset are gigabytes", "refused by their size, without reading them")
def test_large_metadata(own):
    os.truncate(own.data / "metadata.json", 6 * 2**30)
    assert f"its metadata have {6 * 2**30} bytes; klimb reads at most {2**24}" in own.refusal()


@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5"])
@fault("a file of a Minari dataset is replaced by a pipe", "refused without waiting for it")
def test_pipes(own, name):
    (own.data / name).unlink()
    os.mkfifo(own.data / name)
    assert "it is not a regular file" in own.refusal()


ELSEWHERE = "refused, and the other file is not opened"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            lambda h5py, file, episode: episode.__setitem__("rewards", h5py.ExternalLink("/dev/zero", "x")),
            "episode_1/rewards is a link to another place",
            marks=fault("an array of a Minari dataset is a link to another file", ELSEWHERE),
            id="link",
        ),
        pytest.param(
            lambda h5py, file, episode: episode.__setitem__("rewards", h5py.SoftLink("/episode_1/rewards")),
            "episode_1/rewards is a link to another place",
            id="loop",
        ),
        pytest.param(
            lambda h5py, file, episode: episode.create_dataset(
                "rewards", (6,), "float64", external=[("/etc/passwd", 0, 48)]
            ),
            "episode_1/rewards is stored in other files",
            marks=fault("the numbers of a Minari dataset are the bytes of another file", ELSEWHERE),
            id="external",
        ),
        pytest.param(
            lambda h5py, file, episode: episode.create_virtual_dataset("rewards", virtual(h5py)),
            "episode_1/rewards is stored in other files",
            id="virtual",
        ),
        pytest.param(
            lambda h5py, file, episode: episode.create_dataset("rewards", data=["much"] * 6, dtype=h5py.string_dtype()),
            "episode_1/rewards holds 'object', which are no numbers",
            marks=fault("rewards of a Minari dataset are strings", "refused, with the array"),
            id="strings",
        ),
        pytest.param(
            lambda h5py, file, episode: episode.create_group("rewards"), "episode_1/rewards is no array", id="group"
        ),
        pytest.param(
            lambda h5py, file, episode: episode.create_dataset("rewards", data=h5py.Empty("f")),
            "is no array",
            id="empty",
        ),
        pytest.param(lambda h5py, file, episode: None, "episode_1/rewards is missing", id="missing"),
        pytest.param(
            lambda h5py, file, episode: episode.create_dataset("rewards", (6, 2), "float64"),
            "episode_1/rewards has the shape [6, 2]; it has to be one number per step",
            id="shape",
        ),
        pytest.param(
            lambda h5py, file, episode: episode.create_dataset("rewards", (5,), "float64"),
            "episode_1/observations has the shape [7, 4] where [6, 4] is expected",
            marks=fault("arrays of an episode of a Minari dataset have different lengths", "refused, with both shapes"),
            id="length",
        ),
        pytest.param(
            lambda h5py, file, episode: twice_packed(h5py, episode),
            "episode_1/rewards is packed by the filters [1, 1]; klimb reads HDF5's own, each once",
            marks=fault("an array of a Minari dataset is compressed twice", "refused: it could unpack to any size"),
            id="twice",
        ),
    ],
)
def test_arrays_that_are_none(own, change, said):
    def put(h5py, file, episode):
        del episode["rewards"]
        change(h5py, file, episode)

    own.change(put)
    assert said in own.refusal()


def virtual(h5py):
    layout = h5py.VirtualLayout((6,), "float64")
    layout[:] = h5py.VirtualSource("/tmp/other.hdf5", "x", (6,))
    return layout


def twice_packed(h5py, episode) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((6,))
    for _ in range(2):
        properties.set_deflate(9)
    space = h5py.h5s.create_simple((6,))
    h5py.h5d.create(episode.id, b"rewards", h5py.h5t.NATIVE_DOUBLE, space, dcpl=properties)


@fault("a Minari dataset is stored in another format than HDF5", "refused, with the format")
def test_other_formats(own):
    own.describe(data_format="parquet")
    assert "is stored as 'parquet'; klimb reads datasets in HDF5" in own.refusal()


def test_a_whole_dataset_is_read_as_minari_reads_it(own):
    import minari

    loaded = load_demonstrations("minari:klimb/test-v0")
    episodes = list(minari.load_dataset("klimb/test-v0").iterate_episodes())
    for name, values in {
        "obs": [episode.observations[:-1] for episode in episodes],
        "next_obs": [episode.observations[1:] for episode in episodes],
        "action": [episode.actions for episode in episodes],
        "reward": [episode.rewards for episode in episodes],
        "terminated": [episode.terminations for episode in episodes],
        "truncated": [episode.truncations for episode in episodes],
    }.items():
        expected = np.concatenate(values)
        np.testing.assert_array_equal(getattr(loaded, name), expected.astype(getattr(loaded, name).dtype))
