"""Every space of actions: its arrays, its files, its distribution, and what the environment gets."""

from __future__ import annotations

import copy
import json

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import klimb
from klimb.errors import UnsupportedSpace
from klimb.policies.action_spec import GaussianStyle
from klimb.policies.actions import actions_from_json, remarks
from klimb.policies.products import MultiCategorical, Product

HYBRID = spaces.Dict(
    b=spaces.Discrete(3, start=-1),
    a=spaces.Box(-2, 2, (2,), np.float64),
    c=spaces.Tuple([spaces.MultiBinary(2), spaces.Box(0, 1, (), np.float32)]),
)
SPACES = {
    "discrete": spaces.Discrete(5),
    "discrete from -2": spaces.Discrete(4, start=-2),
    "multi-discrete": spaces.MultiDiscrete([2, 5, 1, 3]),
    "multi-discrete matrix": spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[0, 5], [-3, 0]]),
    "multi-binary": spaces.MultiBinary(4),
    "multi-binary matrix": spaces.MultiBinary([2, 2]),
    "box": spaces.Box(-1, 2, (3,)),
    "box matrix": spaces.Box(-1, 2, (2, 3)),
    "box scalar": spaces.Box(-1, 1, ()),
    "integer box": spaces.Box(np.array([-3, 0]), np.array([4, 2]), dtype=np.int64),
    "small integer box": spaces.Box(-3, 4, (2, 1), np.int8),
    "tuple of one": spaces.Tuple([spaces.Box(-1, 1, (2,))]),
    "choices": spaces.Tuple([spaces.Discrete(3), spaces.MultiDiscrete([2, 2])]),
    "hybrid": HYBRID,
}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def same(a, b):
    if isinstance(a, dict | spaces.Dict):
        return set(a) == set(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, tuple):
        return all(map(same, a, b))
    return np.allclose(a, b, rtol=1e-6) and np.shape(a) == np.shape(b)


@each_space
def test_actions_become_arrays_and_come_back(space):
    actions = klimb.action_spec(space)
    space.seed(0)
    samples = [space.sample() for _ in range(50)]
    rows = np.stack([actions.flatten(sample) for sample in samples])
    assert rows.shape == (50, *actions.shape)
    assert rows.dtype == actions.dtype
    assert actions.problem(rows) is None
    np.testing.assert_array_equal(actions.clip(rows), rows)
    for sample, row in zip(samples, rows, strict=True):
        again = actions.unflatten(row)
        assert space.contains(again), (again, space)
        assert same(sample, again)
    # The same in JAX, with the axis of environments.
    batch = jax.tree.map(np.asarray, actions.unflatten(jnp.asarray(rows)))
    assert all(same(samples[i], jax.tree.map(lambda x, i=i: x[i], batch)) for i in (0, 7, 49))


@each_space
def test_a_spec_survives_its_file(space):
    actions = klimb.action_spec(space)
    again = actions_from_json(json.loads(json.dumps(actions.to_json())))
    assert again == actions
    assert again.fits(actions)
    assert hash(again) == hash(actions)


@each_space
def test_a_policy_decides_what_the_environment_takes(space, tmp_path):
    policy = klimb.NetworkPolicy(3, klimb.action_spec(space), hidden=(4,), key=jax.random.key(0))
    rng, obs = np.random.default_rng(0), np.zeros((20, 3), np.float32)
    for _ in range(5):
        assert space.contains(policy.act(obs[0], deterministic=False, rng=rng))
    assert space.contains(policy.act(obs[0]))
    several = policy.act(obs, deterministic=False, rng=rng)
    assert all(space.contains(jax.tree.map(lambda x, i=i: np.asarray(x[i]), several)) for i in range(20))
    klimb.save_policy(policy, tmp_path)
    assert same(klimb.load_policy(tmp_path).act(obs), policy.act(obs))


def test_kinds_of_distributions():
    style = GaussianStyle()
    kinds = {
        name: type(spec.distribution(jnp.zeros(spec.num_outputs(style)), jnp.zeros(spec.num_log_std), style)).__name__
        for name, spec in ((name, klimb.action_spec(space)) for name, space in SPACES.items())
    }
    assert kinds["multi-binary"] == kinds["integer box"] == kinds["multi-discrete"] == MultiCategorical.__name__
    assert kinds["hybrid"] == kinds["choices"] == Product.__name__
    # One output for a switch: its log odds.
    switches = klimb.action_spec(spaces.MultiBinary(2))
    odds = switches.distribution(jnp.array([2.0, -1.0]), None, style)
    np.testing.assert_allclose(
        np.exp(odds.log_prob(jnp.array([1, 1]))), np.prod(1 / (1 + np.exp([-2.0, 1.0]))), rtol=1e-6
    )


def test_parts_of_a_dict_are_ordered_by_name():
    """Gymnasium keeps the order of `Dict(b=…, a=…)` and sorts that of `Dict({"b": …})`: both are the same actions."""
    parts = {"b": spaces.Discrete(2), "a": spaces.Box(-1, 1, (1,))}
    kept, sorted_ = klimb.action_spec(spaces.Dict(**parts)), klimb.action_spec(spaces.Dict(parts))
    assert kept == sorted_
    assert kept.names == ("a", "b")
    np.testing.assert_array_equal(kept.flatten({"b": 1, "a": np.array([0.5])}), np.float32([0.5, 1]))


def test_masks_are_flags_of_all_choices():
    choices = {name: klimb.action_spec(space).num_choices for name, space in SPACES.items()}
    assert choices["discrete"] == 5
    assert choices["multi-discrete"] == 11
    assert choices["multi-binary"] == 8
    assert choices["hybrid"] == 3 + 4
    assert choices["box"] == choices["box scalar"] == 0


REFUSED = {
    "too many integers": spaces.Box(-(2**31), 2**31 - 1, (1,), np.int64),
    "text": spaces.Text(5),
    "graph": spaces.Graph(spaces.Box(-1, 1, (2,)), None),
    "sequence": spaces.Sequence(spaces.Discrete(2)),
    "one of": spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
    "no parts": spaces.Dict({}),
    "part that is refused": spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]),
}


@pytest.mark.parametrize("space", REFUSED.values(), ids=REFUSED)
def test_other_spaces_are_refused_with_a_way_out(space):
    with pytest.raises(UnsupportedSpace, match=r"ActionWrapper|has no parts"):
        klimb.action_spec(space)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (HYBRID, {"exploration": "gsde"}, "gsde is for actions that are one Box, and these have several parts"),
        (SPACES["choices"], {"tanh_squash": True}, "tanh_squash is for continuous actions, and these are discrete"),
        (SPACES["multi-binary"], {"log_std_bounds": (-1.0, 1.0)}, "log_std_bounds is for continuous .* 4 switches"),
        (SPACES["multi-discrete"], {"state_dependent_std": True}, "state_dependent_std is for .* 4 discrete ones"),
    ],
)
def test_options_of_gaussians_need_one(space, options, message):
    with pytest.raises(UnsupportedSpace, match=message):
        klimb.NetworkPolicy(3, klimb.action_spec(space), key=jax.random.key(0), **options)


def test_options_of_gaussians_are_those_of_the_continuous_parts():
    actions = klimb.action_spec(spaces.Tuple([spaces.Discrete(3), spaces.Box(-2, 2, (2,))]))
    options = {"tanh_squash": True, "state_dependent_std": True, "log_std_bounds": (-1.0, 0.5)}
    policy = klimb.NetworkPolicy(3, actions, key=jax.random.key(0), **options)
    distribution = policy(jnp.ones(3))
    assert policy.network.sizes[-1] == 3 + 4
    assert type(distribution.parts[1]) is klimb.TanhGaussian
    action = policy.act(np.ones(3, np.float32), deterministic=False, rng=np.random.default_rng(0))
    assert np.abs(action[1]).max() < 2


def test_remarks_name_the_part():
    (remark,) = remarks(spaces.Dict(a=spaces.Discrete(2), force=spaces.Box(1, 1, (1,))))
    assert remark.startswith("part 'force': dimension 0 of the actions is from 1.0 to 1.0")


def damaged(fields, path, value):
    fields = copy.deepcopy(fields)
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return fields


DEEP = {"kind": "discrete", "n": 2}
for _ in range(12):
    DEEP = {"kind": "product", "parts": [DEEP]}


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("discrete from -2", ("start",), 2**40, "a first number, start, between"),
        ("discrete from -2", ("start",), 0.5, "a first number, start, between"),
        ("multi-discrete", ("n",), [2, 5], "2 discrete actions with 4 first numbers"),
        ("multi-discrete", ("n",), [2, 5, 0, 3], "some of them no choice"),
        ("multi-discrete", ("n",), [2, 5, 2**30, 3], "at most 1048576 choices"),
        ("multi-discrete", ("n",), "ab", "lists n, start and shape of integers"),
        ("multi-discrete", ("shape",), [2**40, 2**40, 2**40], "do not have the shape"),
        ("multi-discrete", ("shape",), [1] * 40 + [4], "do not have the shape"),
        ("multi-discrete", ("dtype",), "object", "one of the dtypes"),
        ("multi-discrete", ("colour",), 1, "lists n, start and shape of integers"),
        ("multi-binary", ("shape",), [2**20], "at most 65536 elements"),
        ("multi-binary", ("shape",), [0], "a list of positive integers"),
        ("multi-binary", ("shape",), None, "a list of positive integers"),
        ("box matrix", ("shape",), [2, 2], "6 action bounds do not have the shape"),
        ("box matrix", ("shape",), "23", "6 action bounds do not have the shape"),
        ("hybrid", ("parts",), [], "a list of 1 to 1024 parts"),
        ("hybrid", ("parts",), {}, "a list of 1 to 1024 parts"),
        ("hybrid", ("names",), ["b", "a", "c"], "one for each, in order"),
        ("hybrid", ("names",), ["a", "a", "c"], "one for each, in order"),
        ("hybrid", ("names",), ["a", "b"], "one for each, in order"),
        ("hybrid", ("names",), ["a", "b", "c" * 1000], "one for each, in order"),
        ("hybrid", ("parts", 0), 7, "no kind of actions that klimb knows"),
        ("hybrid", ("parts", 0), DEEP, "parts within parts of more than 8 levels"),
    ],
)
def test_damaged_files_are_refused(name, path, value, message):
    with pytest.raises(ValueError, match=message):
        actions_from_json(damaged(klimb.action_spec(SPACES[name]).to_json(), path, value))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("multi-discrete", [0, 5, 0, 0], "action 0 has 5 as number 1, which is in 0 … 4"),
        ("multi-discrete", [0, 0], "have the shape"),
        ("multi-discrete", [0.0, 0, 0, 0], "are float64, and discrete ones are integers"),
        ("multi-binary", [0, 2, 0, 0], "not all 0 or 1"),
        ("multi-binary", [0.5, 0, 0, 0], "switches are integers"),
        ("multi-binary", [1], "have the shape"),
        ("hybrid", [0.0, 0, 0.5, 0, 0, 0], "part 'b' of its actions has numbers that are not whole"),
        ("hybrid", [0.0, 0, np.nan, 0, 0, 0], "part 'b' of its actions has numbers that are not whole"),
        ("hybrid", [0.0, 0, 3, 0, 0, 0], "in part 'b' its actions are not all in 0 … 2"),
        ("hybrid", [0.0, 0, 0, 0, 7, 0], "in part 'c' in part 0 its actions are not all 0 or 1"),
        ("hybrid", [0.0], "have the shape"),
    ],
)
def test_recorded_actions_of_another_space_are_told_of(name, row, message):
    assert message in klimb.action_spec(SPACES[name]).problem(np.array([row]))


class Echo(gymnasium.Env):
    """Keeps the actions that it gets, and refuses those that are not of its space."""

    observation_space = spaces.Box(-1, 1, (2,))

    def __init__(self, space: spaces.Space) -> None:
        self.action_space, self.time = space, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.time += 1
        return self.observation_space.sample(), 1.0, self.time == 5, False, {}


@each_space
def test_an_environment_gets_actions_of_its_space(space):
    env = klimb.GymnasiumEnvironment.from_maker("echo", lambda: Echo(space))
    policy = klimb.NetworkPolicy(2, env.actions, hidden=(4,), key=jax.random.key(0))
    assert klimb.evaluate(policy, env, episodes=2, deterministic=False).mean == 5.0
