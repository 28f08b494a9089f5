"""Every space of observations: its arrays, its files, what networks read of it, and what only the critic sees."""

from __future__ import annotations

import copy
import json

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import klimb
from klimb.collect.host.collector import numpy_policy_spec
from klimb.collect.host.numpy_policy import NumpyPolicySpec
from klimb.errors import ConfigError, UnsupportedSpace
from klimb.policies.observation_kinds import BoxObservations, OneHotObservations
from klimb.policies.observation_parts import MaskedObservations, PartsObservations
from klimb.policies.observations import flat_observations, observations_from_json
from mixed_tasks import Valves, valves

MIXED = spaces.Dict(
    b=spaces.Discrete(3, start=-1),
    a=spaces.Box(-2, 2, (2, 2), np.float64),
    c=spaces.Tuple([spaces.MultiBinary([2, 1]), spaces.MultiDiscrete([[2, 3]], start=[[1, 0]])]),
    d=spaces.Box(0, 255, (), np.uint8),
)
SPACES = {
    "discrete": spaces.Discrete(5),
    "discrete from 3": spaces.Discrete(4, start=3),
    "multi-discrete": spaces.MultiDiscrete([2, 5, 3], start=[0, -2, 1]),
    "multi-discrete matrix": spaces.MultiDiscrete([[2, 3], [4, 1]]),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary matrix": spaces.MultiBinary([2, 3]),
    "box": spaces.Box(-1, 2, (3,)),
    "box matrix": spaces.Box(-1, 2, (2, 3)),
    "box row": spaces.Box(-1, 2, (1, 3)),
    "box scalar": spaces.Box(-1, 1, ()),
    "image": spaces.Box(0, 255, (4, 3, 2), np.uint8),
    "tuple": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(2)]),
    "mixed": MIXED,
}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


@each_space
def test_rows_of_compiled_environments_are_the_same(space):
    """What a traced program makes of an observation is what NumPy makes of it."""
    spec = flat_observations(space)
    space.seed(1)
    row = jax.jit(lambda obs: spec.row(obs, jnp))
    for _ in range(5):
        obs = space.sample()
        made = row(obs)
        np.testing.assert_array_equal(made, np.float32(spec.flatten(obs)))
        assert (made.shape, made.dtype) == (spec.shape, spec.dtype)


def test_the_row_of_a_picture_keeps_its_bytes_and_a_mask_stands_at_the_end():
    picture = spaces.Box(0, 255, (9, 8, 3), np.uint8)
    spec = flat_observations(picture)
    obs = picture.sample()
    np.testing.assert_array_equal(spec.row(obs, jnp), obs)
    assert spec.row(obs, jnp).dtype == np.uint8
    both = flat_observations(spaces.Dict({"picture": picture, "speed": spaces.Box(-1, 1, (2,))}))
    masked = MaskedObservations(both, 3)
    given, mask = {"picture": obs, "speed": np.float32([0.5, -0.5])}, np.array([True, False, True])
    np.testing.assert_array_equal(masked.row((given, mask), jnp), masked.with_mask(given, mask))


@each_space
def test_observations_are_flattened_as_gymnasium_does_it(space):
    spec = flat_observations(space)
    space.seed(0)
    for _ in range(20):
        obs = space.sample()
        expected = spaces.flatten(space, obs)
        assert spec.shape == expected.shape
        np.testing.assert_array_equal(spec.flatten(obs), expected.astype(np.float32))
        # What is flat already stays so, and batches of it too.
        np.testing.assert_array_equal(spec.flatten(expected), expected.astype(np.float32))
        rows = np.stack([expected] * 7).astype(np.float32)
        np.testing.assert_array_equal(spec.flatten(rows), rows)
        # A batch as vector environments give it.
        batch = gymnasium.vector.utils.concatenate(
            space, [obs] * 7, gymnasium.vector.utils.create_empty_array(space, 7)
        )
        np.testing.assert_array_equal(spec.flatten(batch), rows)


@each_space
def test_a_spec_survives_its_file(space):
    for spec in (flat_observations(space), MaskedObservations(flat_observations(space), 4)):
        again = observations_from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec
        assert again.scaled == spec.scaled


def test_one_hot_parts_are_not_scaled():
    spec = flat_observations(MIXED)
    assert spec.names == ("b", "a", "c", "d")
    assert spec.scaled == (False,) * 3 + (True,) * 4 + (True,) * 2 + (False,) * 5 + (True,)
    policy = klimb.NetworkPolicy(spec, klimb.action_spec(spaces.Discrete(2)), hidden=(4,), key=jax.random.key(0))
    MIXED.seed(0)
    rows = np.stack([spec.flatten(MIXED.sample()) for _ in range(50)])
    before = policy(jnp.asarray(rows)).logits
    for _ in range(2):
        policy, rescaling = policy.observe(jnp.asarray(rows), jnp.ones(50))
    mean, variance = policy.encoder.normalizer.mean, policy.encoder.normalizer.variance
    scaled = np.array(spec.scaled)
    np.testing.assert_array_equal(mean[~scaled], 0)
    np.testing.assert_array_equal(variance[~scaled], 1)
    np.testing.assert_allclose(mean[scaled], rows.mean(0)[scaled], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance[scaled], rows.var(0)[scaled], rtol=1e-4)
    assert np.abs(before - policy(jnp.asarray(rows)).logits).max() > 1e-6, "the first statistics are not absorbed"
    np.testing.assert_array_equal(rescaling.scale[~scaled], 1)
    np.testing.assert_array_equal(rescaling.shift[~scaled], 0)


@each_space
def test_a_policy_takes_what_the_environment_gives(space):
    policy = klimb.NetworkPolicy(
        flat_observations(space), klimb.action_spec(spaces.Discrete(9)), hidden=(4,), key=jax.random.key(0)
    )
    policy = eqx.tree_at(lambda p: p.network.weights, policy, tuple(100 * w for w in policy.network.weights))
    space.seed(1)
    samples = [space.sample() for _ in range(10)]
    taken = [policy.act(obs) for obs in samples]
    np.testing.assert_array_equal(taken, [policy.act(spaces.flatten(space, obs)) for obs in samples])


class Secret(gymnasium.Env):
    """The reward of a step is the secret number, which only the critic may see; the policy sees noise and the time."""

    observation_space = spaces.Dict(
        time=spaces.Box(0, 1, (1,)), secret=spaces.Box(-1, 1, (1,)), place=spaces.Discrete(2)
    )
    action_space = spaces.Discrete(2)

    def look(self):
        secret = np.float32([self.secret])
        return {"time": np.float32([self.time / 8]), "secret": secret, "place": int(self.np_random.integers(2))}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.secret = 0, float(self.np_random.uniform(-1, 1))
        return self.look(), {}

    def step(self, action):
        self.time += 1
        return self.look(), self.secret, False, self.time == 8, {}


def secret():
    return klimb.GymnasiumEnvironment.from_maker("secret", Secret)


OPTIONS = {"num_envs": 8, "num_steps": 64, "hidden": (8,), "env_steps": 4096, "gamma": 0.9}


@pytest.fixture(scope="module")
def asymmetric():
    return klimb.train(secret(), klimb.TRPO(), critic_observes=("secret",), **OPTIONS)


def test_the_policy_does_not_see_what_only_the_critic_sees(asymmetric):
    policy, spec = asymmetric.policy, secret().observations
    assert policy.encoder.num_features == 1 + 2
    assert policy.observations.columns == (0, 2, 3)
    row = spec.flatten({"time": [0.5], "secret": [0.7], "place": 1})
    logits = policy(jnp.asarray(row)).logits
    np.testing.assert_array_equal(policy(jnp.asarray(row).at[1].set(-0.7)).logits, logits)
    assert (np.asarray(policy(jnp.asarray(row).at[0].set(0.1)).logits) != logits).any()
    # The critic knows it: it explains what nothing else in the observation can.
    assert asymmetric.history[-1]["explained_variance"] > 0.5
    assert klimb.evaluate(policy, secret(), episodes=4).lengths.mean() == 8


def test_a_deployed_policy_needs_no_secrets(asymmetric, tmp_path):
    klimb.save_policy(asymmetric.policy, tmp_path)
    policy = klimb.load_policy(tmp_path)
    assert policy.observations.critic_only == ("secret",)
    for seen in ({"time": [0.5], "place": 1}, {"time": [0.1], "place": 0}):
        assert policy.act(seen) == asymmetric.policy.act({**seen, "secret": [0.3]})
    with pytest.raises(ConfigError, match="the observation has no part 'place', which the policy reads"):
        policy.act({"time": [0.5]})


def test_numpy_decides_from_the_same_parts(asymmetric):
    _, static = eqx.partition(asymmetric.policy, eqx.is_array)
    spec = numpy_policy_spec(static)
    assert spec.columns == (0, 2, 3)
    assert NumpyPolicySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.slow
def test_masks_and_hidden_parts_go_together():
    spec = valves("observation").observations.hiding(("wanted",))
    assert isinstance(spec, MaskedObservations)
    assert spec.columns == (0, 1, 2)
    env = valves("observation")
    policy = klimb.NetworkPolicy(spec, env.actions, hidden=(4,), key=jax.random.key(0))
    assert policy.act({"valve": 1, "action_mask": [0, 0, 1]})["valve"] == 3
    assert policy.act({"valve": 1}, action_mask=[0, 1, 0])["valve"] == 2
    obs, _ = Valves("observation").reset(seed=0)
    assert env.action_space.contains(policy.act(obs))
    run = klimb.train(env, klimb.Reinforce(), critic_observes=("wanted",), env_steps=64, num_envs=2, num_steps=32)
    assert run.policy.observations == spec


@pytest.mark.parametrize(
    ("env", "names", "message"),
    [
        ("CartPole-v1", ("secret",), "names parts of Dict observations, and these are no dictionaries"),
        (None, ("secrt",), r"critic_observes = 'secrt' is no part of the observations.*did you mean 'secret'\?"),
        (None, ("secret", "time", "place"), "names all parts of the observations: leave the policy one"),
    ],
)
def test_wrong_names_are_refused(env, names, message):
    with pytest.raises(ConfigError, match=message):
        klimb.train(env or secret(), klimb.TRPO(), critic_observes=names, **OPTIONS)


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (SPACES["discrete"], 7, "neither an integer from 0 to 4 nor a one-hot vector of length 5"),
        (SPACES["discrete"], 0.5, "neither an integer from 0 to 4 nor a one-hot vector of length 5"),
        (SPACES["multi-discrete"], [0, 5, 1], "has a number outside of its range"),
        (SPACES["multi-discrete"], [0, 0], r"has the shape \(2,\), and the policy reads the shape \(10,\)"),
        (SPACES["box matrix"], np.zeros((3, 2)), r"has the shape \(3, 2\), and the policy reads the shape \(6,\)"),
        (MIXED, {"b": 0}, "the observation has no part 'a', which the policy reads"),
        (MIXED, "text", "the observation is of the type str"),
        (SPACES["tuple"], (np.zeros(2),), "the observation"),
    ],
)
def test_other_observations_are_refused(space, obs, message):
    with pytest.raises(ConfigError, match=message):
        flat_observations(space).flatten(obs)


@pytest.mark.parametrize(
    "space",
    [spaces.Graph(spaces.Box(-1, 1, (2,)), None), spaces.Sequence(spaces.Discrete(2)), spaces.Dict({})],
    ids=str,
)
def test_spaces_without_a_fixed_size_are_refused(space):
    with pytest.raises(UnsupportedSpace, match="no fixed size"):
        klimb.observation_spec(space)


def damaged(fields, path, value):
    fields = copy.deepcopy(fields)
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return fields


DEEP = {"kind": "box", "shape": [2]}
for _ in range(12):
    DEEP = {"kind": "parts", "parts": [DEEP]}
HIDING = PartsObservations((BoxObservations((2,)), OneHotObservations(3)), ("a", "b"), ("a",))


@pytest.mark.parametrize(
    ("spec", "path", "value", "message"),
    [
        (flat_observations(SPACES["box matrix"]), ("space_shape",), [2, 2], "are not made of arrays of the shape"),
        (flat_observations(SPACES["box matrix"]), ("shape",), [2**21], "klimb reads at most"),
        (flat_observations(SPACES["discrete from 3"]), ("start",), 0.5, "a first number, start"),
        (flat_observations(SPACES["multi-discrete"]), ("n",), [2, 5], "2 one-hot observations have 3 first numbers"),
        (flat_observations(SPACES["multi-discrete"]), ("n",), [2, 5, 2**30], "of which klimb reads at most"),
        (flat_observations(SPACES["multi-discrete"]), ("n",), [2, 0, 3], "lists n, start and space_shape"),
        (flat_observations(SPACES["multi-discrete"]), ("start",), None, "lists n, start and space_shape"),
        (flat_observations(MIXED), ("parts",), [], "a list of 1 to 1024 parts"),
        (flat_observations(MIXED), ("names",), ["a", "a", "b", "c"], "one for each, and no two are equal"),
        (flat_observations(MIXED), ("parts", 0), {"kind": "box", "shape": [2, 2]}, "parts of observations are vectors"),
        (flat_observations(MIXED), ("parts", 0), DEEP, "parts within parts of more than 8 levels"),
        (HIDING, ("critic_only",), ["a", "b"], "names some of the parts of observations, and not all"),
        (HIDING, ("critic_only",), ["c"], "names some of the parts of observations, and not all"),
        (HIDING, ("critic_only",), "a", "names some of the parts of observations, and not all"),
        (HIDING, ("names",), None, "names some of the parts of observations, and not all"),
        (MaskedObservations(HIDING, 3), ("choices",), 0, "a number of choices from 1"),
        (MaskedObservations(HIDING, 3), ("observed",), None, "no kind of observations that klimb knows"),
        (MaskedObservations(HIDING, 3), ("observed",), {"kind": "box", "shape": [2, 2]}, "vectors or pictures"),
    ],
)
def test_damaged_files_are_refused(spec, path, value, message):
    with pytest.raises(ValueError, match=message):
        observations_from_json(damaged(spec.to_json(), path, value))
