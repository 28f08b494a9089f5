"""Policy files: everything a policy is, nothing that runs, and a clear word about every damage."""

from __future__ import annotations

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import Categorical, NetworkPolicy, PolicyFileError, load_policy, save_policy
from klimb.policies.actions import Box, Discrete
from klimb.policies.encoders import FlatEncoder
from klimb.policies.normalizer import Normalizer

SPECS = [Discrete(3), Box((-2.0, -np.inf), (2.0, np.inf))]


def make_policy(spec=SPECS[0]) -> NetworkPolicy:
    policy = NetworkPolicy(4, spec, hidden=(8, 5), activation="relu", key=jax.random.key(3))
    data = jax.random.normal(jax.random.key(1), (50, 4)) * 3 + 1
    return eqx.tree_at(lambda p: p.encoder.normalizer, policy, policy.encoder.normalizer.update(data, jnp.ones(50)))


@pytest.mark.parametrize("spec", SPECS, ids=["discrete", "box"])
def test_round_trip_keeps_every_bit_and_the_normaliser(spec, tmp_path):
    policy = make_policy(spec)
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    assert eqx.tree_equal(loaded, policy)
    assert loaded.encoder.normalizer.count == 50
    obs = jnp.array([0.3, -2.0, 9.0, 1.0])
    assert eqx.tree_equal(loaded(obs), policy(obs))


@pytest.mark.parametrize("state_dependent_std", [False, True])
@pytest.mark.parametrize("tanh_squash", [False, True])
def test_round_trip_keeps_the_kind_of_distribution(state_dependent_std, tanh_squash, tmp_path):
    options = {"state_dependent_std": state_dependent_std, "tanh_squash": tanh_squash}
    policy = NetworkPolicy(4, Box((-2.0, 0.0), (2.0, 1.0)), hidden=(8,), key=jax.random.key(3), **options)
    loaded = load_policy(save_policy(policy, tmp_path))
    assert eqx.tree_equal(loaded, policy)
    obs = jnp.array([0.3, -2.0, 9.0, 1.0])
    assert eqx.tree_equal(loaded(obs), policy(obs))


@pytest.mark.parametrize("bounds", [None, (-2.0, 0.5), (0.5, 0.75)])
def test_round_trip_keeps_the_bounds_of_the_deviation(bounds, tmp_path):
    """Without bounds the file is one that an earlier klimb reads."""
    box, initial = Box((-2.0, 0.0), (2.0, 1.0)), 0.5
    policy = NetworkPolicy(4, box, hidden=(8,), initial_log_std=initial, log_std_bounds=bounds, key=jax.random.key(3))
    description = json.loads((save_policy(policy, tmp_path) / "policy.json").read_text())
    assert description["version"] == (3 if bounds is None else 4)
    assert description.get("log_std_bounds") == (None if bounds is None else list(bounds))
    assert ("log_std_bounds" in description) == (bounds is not None)
    loaded = load_policy(tmp_path)
    assert loaded.style.log_std_bounds == bounds
    assert eqx.tree_equal(loaded, policy)


@pytest.mark.parametrize("spec", SPECS, ids=["discrete", "box"])
def test_files_from_before_the_options_still_load(spec, tmp_path):
    policy = make_policy(spec)
    path = save_policy(policy, tmp_path) / "policy.json"
    description = json.loads(path.read_text())
    assert not description.pop("state_dependent_std")
    assert not description.pop("tanh_squash")
    path.write_text(json.dumps(description))
    assert eqx.tree_equal(load_policy(tmp_path), policy)


@pytest.mark.parametrize("version", [1, 2])
def test_files_without_the_normalisers_limits_have_those_of_their_time(version, tmp_path, monkeypatch):
    """Whatever the defaults are by now: they were ±10 and 1e-8 when klimb wrote such files."""
    policy = make_policy()
    path = save_policy(policy, tmp_path) / "policy.json"
    description = json.loads(path.read_text())
    assert description.pop("normalizer") == {"clip": 10.0, "variance_floor": 1e-8}
    if version == 1:
        description["observation_size"] = description.pop("observations")["shape"][0]
    path.write_text(edit(description, version=version))
    identity = Normalizer.identity
    changed = lambda shape: dataclasses.replace(identity(shape), clip=3.0, variance_floor=0.1)  # noqa: E731
    monkeypatch.setattr(Normalizer, "identity", changed)
    assert eqx.tree_equal(load_policy(tmp_path), policy)


@pytest.mark.parametrize("clip", [2.5, np.inf])
def test_the_normalisers_limits_are_kept(clip, tmp_path):
    policy = make_policy()
    normalizer = dataclasses.replace(policy.encoder.normalizer, clip=clip, variance_floor=0.5)
    policy = eqx.tree_at(lambda p: p.encoder, policy, FlatEncoder(normalizer))
    path = save_policy(policy, tmp_path) / "policy.json"
    written = json.loads(path.read_text(), parse_constant=pytest.fail)["normalizer"]
    assert written == {"clip": None if clip == np.inf else clip, "variance_floor": 0.5}
    assert eqx.tree_equal(load_policy(tmp_path), policy)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_either_file_names_the_policy(name, tmp_path):
    save_policy(make_policy(), tmp_path)
    assert eqx.tree_equal(load_policy(tmp_path / name), make_policy())


def test_a_users_own_policy_comes_back_with_like(tmp_path):
    class Table(eqx.Module):
        logits: jax.Array

        def __call__(self, obs):
            return Categorical(logits=self.logits[obs])

    table = Table(jnp.arange(6.0).reshape(3, 2))
    save_policy(table, tmp_path)
    assert eqx.tree_equal(load_policy(tmp_path, like=Table(jnp.zeros((3, 2)))), table)
    with pytest.raises(PolicyFileError, match="a policy of the class 'Table', which is not klimb's own"):
        load_policy(tmp_path)
    with pytest.raises(PolicyFileError, match=r"float32\[3, 2\] where float32\[4, 2\] is expected"):
        load_policy(tmp_path, like=Table(jnp.zeros((4, 2))))


def test_round_trip_keeps_the_exploration(tmp_path):
    box = Box((-2.0, 0.0), (2.0, 1.0))
    policy = NetworkPolicy(4, box, hidden=(8, 5), exploration="gsde", key=jax.random.key(3))
    description = json.loads((save_policy(policy, tmp_path) / "policy.json").read_text())
    assert (description["version"], description["exploration"]) == (4, "gsde")
    loaded = load_policy(tmp_path)
    assert loaded.log_std.shape == (5, 2)
    assert eqx.tree_equal(loaded, policy)


BOX_FIELDS = {"actions": {"kind": "box", "low": [0.0] * 3, "high": [1.0] * 3}}


def edit(description: dict, **changes: object) -> str:
    return json.dumps({**description, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format"),
        ({"version": 5}, "was written by a newer klimb: its version is 5, this one reads 4"),
        ({"log_std_bounds": [-1.0, 0.0]}, "log_std_bounds is for continuous actions"),
        ({"log_std_bounds": [-1.0]}, "log_std_bounds"),
        ({"exploration": "gsde"}, "exploration is for continuous actions"),
        ({"exploration": "both"}, "exploration"),
        ({**BOX_FIELDS, "exploration": "gsde", "hidden": []}, "the network has none"),
        ({**BOX_FIELDS, "exploration": "gsde", "state_dependent_std": True}, "leave state_dependent_std off"),
        ({"log_std_bounds": [-1.0, float("nan")]}, "log_std_bounds"),
        ({**BOX_FIELDS, "log_std_bounds": [1.0, 0.0]}, "the first is the minimum log standard deviation"),
        ({"normalizer": None}, "has no normalizer, which holds clip and variance_floor since version 3"),
        ({"normalizer": {"clip": 10.0}}, "normalizer.variance_floor"),
        ({"normalizer": {"clip": 0.0, "variance_floor": 1e-8}}, "normalizer.clip"),
        ({"normalizer": {"clip": float("inf"), "variance_floor": 1e-8}}, "normalizer.clip"),
        ({"normalizer": {"clip": 10**400, "variance_floor": 1e-8}}, "normalizer.clip"),
        ({"normalizer": {"clip": 10.0, "variance_floor": -1.0}}, "normalizer.variance_floor"),
        ({"normalizer": {"clip": 10.0, "variance_floor": 1e-8, "news": 1}}, "normalizer.news"),
        ({"version": 0}, "version"),
        ({"hidden": [8, 6]}, r"where float32\[8, 6\] is expected"),
        ({"hidden": [8]}, "is not expected"),
        ({"hidden": [10**9]}, "hidden"),
        ({"hidden": [2**20] * 3}, "hidden.0 = 1048576: input should be less than or equal to 65536"),
        ({"hidden": [2**16, 2**16]}, "its network has 4295426048 weights; klimb reads at most 1073741824"),
        ({"hidden": [8, 5, 3]}, "is missing"),
        ({"observation_size": 10**12}, "observation_size"),
        ({"observation_size": -4}, "observation_size"),
        ({"observations": {"kind": "box", "shape": [10**12]}}, "hold 1000000000000 numbers; klimb reads at most"),
        ({"observations": {"kind": "box", "shape": [-4]}}, "a list of positive integers"),
        ({"observations": {"kind": "hexagon"}}, "no kind of observations that klimb knows"),
        ({"activation": "__import__"}, "activation"),
        ({"actions": {"kind": "discrete", "n": "three"}}, "actions"),
        ({"actions": {"kind": "box", "low": [0.0], "high": [1.0, 2.0]}}, "1 lower and 2 upper"),
        ({"actions": {"kind": "box", "low": [1.0], "high": [0.0]}}, "dimension 0 is from 1.0 to 0.0"),
        ({"tanh_squash": True}, "tanh_squash is for continuous actions"),
        ({"actions": {"kind": "box", "low": [None], "high": [1.0]}, "tanh_squash": True}, "dimension 0 is from -inf"),
        ({"state_dependent_std": "maybe"}, "state_dependent_std"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_wrong_descriptions_are_refused_without_building_anything(changes, message, tmp_path):
    save_policy(make_policy(), tmp_path)
    path = tmp_path / "policy.json"
    path.write_text(edit(json.loads(path.read_text()), **changes))
    with pytest.raises(PolicyFileError, match=message) as error:
        load_policy(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format": 1}'])
def test_descriptions_that_are_not_descriptions(text, tmp_path):
    save_policy(make_policy(), tmp_path)
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(PolicyFileError, match=r"policy\.json"):
        load_policy(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_torn_arrays_are_refused(keep, tmp_path):
    save_policy(make_policy(), tmp_path)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(PolicyFileError, match="not a whole safetensors file"):
        load_policy(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(PolicyFileError, match=r"there is no policy file .*policy\.safetensors"):
        load_policy(tmp_path)
