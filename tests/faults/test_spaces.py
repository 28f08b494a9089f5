"""Observations and actions: what is not of its space is refused, and what can't be learned is said."""

from __future__ import annotations

import json
from dataclasses import dataclass

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import klimb
from klimb import TRPO
from klimb.environments.adapters.gymnasium import GymnasiumEnvironment, GymnasiumVector
from klimb.errors import EnvironmentFault, UnsupportedSpace
from klimb.policies.actions import Box, action_spec

fault = pytest.mark.fault
ROW = "its row is not valid, and the environment is restarted"


class Told(gymnasium.Env):
    """Returns the observations of a list, one per step, and then the one at reset."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space, first: object, later: object) -> None:
        self.observation_space, self.first, self.later = space, first, later

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.first, {}

    def step(self, action):
        return self.later, 1.0, False, False, {}


SHARED = np.zeros(2)


class Counting(gymnasium.Env):
    """Its observation is its own number and time, written into an array that `share` says who shares."""

    observation_space = spaces.Box(-100, 100, (2,), np.float64)
    action_space = spaces.Discrete(2)
    buffer = np.zeros(2)

    def __init__(self, share: str, number: int, length: int = 3) -> None:
        self.number, self.length = number, length
        arrays = {"module": SHARED, "class": type(self).buffer, "none": np.zeros(2)}
        self.obs = arrays.get(share.removesuffix(" view"), SHARED)
        self.view = share.endswith("view")

    def written(self) -> np.ndarray:
        self.obs[:] = self.number, self.time
        return self.obs[:] if self.view else self.obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.written(), {}

    def step(self, action):
        self.time += 1
        return self.written(), float(self.number), self.time >= self.length, False, {}


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(
            "module",
            marks=fault(
                "all copies of an environment write their observations into one array of their module",
                "every copy has its own observations",
            ),
        ),
        pytest.param(
            "class",
            marks=fault(
                "all copies of an environment write their observations into one array of their class",
                "every copy has its own observations",
            ),
        ),
        pytest.param(
            "module view",
            marks=fault(
                "all copies of an environment return views of one array", "every copy has its own observations"
            ),
        ),
        "none",
    ],
)
def test_shared_observations(share):
    made = iter(range(100))
    vector = GymnasiumVector(lambda: Counting(share, next(made)), 4)
    first = vector.reset(np.arange(4))
    np.testing.assert_array_equal(first, [[k, 0] for k in range(4)])
    for time in (1, 2, 3, 1, 2):
        step = vector.step(np.zeros(4, int))
        np.testing.assert_array_equal(step.next_obs, [[k, time] for k in range(4)])
        np.testing.assert_array_equal(step.obs, [[k, time % 3] for k in range(4)])
        np.testing.assert_array_equal(step.reward, range(4))
    np.testing.assert_array_equal(first, [[k, 0] for k in range(4)])


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        # Copies that change the dtype of what they return, or return no arrays.
        ([np.array([1.5, 2]), np.array([1, 2]), [0.25, 1], (True, False)], [[1.5, 2], [1, 2], [0.25, 1], [1, 0]]),
        ([np.array([1, 2], np.float16), np.float32([3, 4]), np.array([5, 6], object)], [[1, 2], [3, 4], [5, 6]]),
    ],
)
def test_observations_of_several_dtypes(kinds, expected):
    envs = iter([Told(spaces.Box(-9, 9, (2,)), kind, kind) for kind in kinds])
    vector = GymnasiumVector(lambda: next(envs), len(kinds))
    vector.reset(np.arange(len(kinds)))
    for _ in range(3):
        step = vector.step(np.zeros(len(kinds), int))
        assert step.next_obs.dtype == np.float32
        np.testing.assert_array_equal(step.next_obs, expected)
        assert step.next_obs.flags.writeable


BOX, FIVE = spaces.Box(-1, 1, (2,)), spaces.Discrete(5)
SMALL = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("space", "good", "bad", "said"),
    [
        pytest.param(
            BOX,
            SMALL,
            np.array([1 + 2j, 0]),
            "an observation of real numbers; it returned an array of shape (2,) and dtype complex128",
            marks=fault("an observation is complex", ROW),
            id="complex",
        ),
        pytest.param(
            BOX,
            SMALL,
            [1j, np.float32(0)],
            "an observation of real numbers; it returned",
            id="complex list",
        ),
        pytest.param(
            spaces.Dict({"a": BOX, "b": spaces.Box(-1, 1, (2, 2))}),
            {"a": SMALL, "b": np.zeros((2, 2), np.float32)},
            {"a": SMALL, "b": np.ones((2, 2), np.complex64)},
            "whose part ['b'] is of real numbers; it returned an array of shape (2, 2) and dtype complex64",
            marks=fault("a part of an observation is complex", ROW),
            id="complex part",
        ),
        pytest.param(
            FIVE,
            0,
            -1,
            "must return an observation in Discrete(5); it returned -1 (int)",
            marks=fault("a discrete observation is negative", ROW),
            id="-1",
        ),
        pytest.param(
            FIVE,
            np.int64(4),
            np.int64(5),
            "must return an observation in Discrete(5); it returned np.int64(5) (int64)",
            marks=fault("a discrete observation is too large", ROW),
            id="5",
        ),
        pytest.param(
            FIVE, 0, np.array([0, 3]), "must return an observation in Discrete(5); it returned an array", id="two"
        ),
        pytest.param(spaces.Discrete(3, start=-1), -1, -2, "it returned -2 (int)", id="start"),
        pytest.param(spaces.Discrete(3, start=4), 6, 3, "it returned 3 (int)", id="start 4"),
        pytest.param(
            spaces.MultiDiscrete([5, 3]),
            np.array([4, 2]),
            np.array([5, 0]),
            "must return an observation in MultiDiscrete([5 3]); it returned [5, 0]",
            marks=fault("an element of a MultiDiscrete observation is out of its range", ROW),
            id="multi",
        ),
        pytest.param(
            spaces.MultiDiscrete([5, 3], start=[1, -1]),
            np.array([5, -1]),
            np.array([5, 2]),
            "Multi",
            id="starts",
        ),
        pytest.param(
            spaces.MultiDiscrete([3, 3]), np.array([0, 0]), np.array([1]), "it returned an array", id="broadcast"
        ),
        pytest.param(
            spaces.Tuple([BOX, spaces.Dict({"door": FIVE})]),
            (SMALL, {"door": 1}),
            (SMALL, {"door": -1}),
            "must return an observation whose part [1]['door'] is in Discrete(5); it returned -1 (int)",
            marks=fault("a discrete part of an observation is out of its range", ROW),
            id="part",
        ),
    ],
)
@pytest.mark.parametrize("call", ["step", "reset"])
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_observations_that_are_not_of_their_space(space, good, bad, said, call):
    first, later = (good, bad) if call == "step" else (bad, good)
    environment = GymnasiumEnvironment.from_maker("told", lambda: Told(space, first, later))
    if call == "reset":
        with pytest.raises(EnvironmentFault) as raised:
            environment.vector(1).reset(np.zeros(1, int))
        assert said in str(raised.value)
        assert "Told.reset: test_spaces.py, line" in str(raised.value)
        return
    vector = environment.vector(2, restart=True)
    vector.reset(np.zeros(2, int))
    step = vector.step(np.zeros(2, int))
    assert not step.valid.any()
    assert not step.next_obs.any()
    causes = [found.cause for found in vector.take_faults()]
    assert len(causes) == 2
    assert said in causes[0]
    assert causes[0].isprintable()
    assert "Told.step: test_spaces.py, line" in causes[0]


def test_observations_of_their_space_are_flattened_as_gymnasium_does_it():
    space = spaces.Dict(
        {
            "door": spaces.Discrete(3, start=-1),
            "many": spaces.MultiDiscrete([[2, 3], [4, 1]]),
            "pixels": spaces.Box(0, 255, (2, 2), np.uint8),
            "bits": spaces.MultiBinary(3),
            "pair": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(2)]),
        }
    )
    space.seed(0)
    for _ in range(20):
        obs = space.sample()
        environment = GymnasiumEnvironment.from_maker("told", lambda obs=obs: Told(space, obs, obs))
        vector = environment.vector(1)
        flat = spaces.flatten(space, obs).astype(np.float32)
        np.testing.assert_array_equal(vector.reset(np.zeros(1, int))[0], flat)
        np.testing.assert_array_equal(vector.step(np.zeros(1, int)).next_obs[0], flat)


@fault("a reward is complex", ROW)
@pytest.mark.parametrize("reward", [1 + 2j, np.complex64(1), np.array(2j)])
def test_complex_rewards(reward):
    class Complex(Told):
        def step(self, action):
            return self.later, reward, False, False, {}

    vector = GymnasiumVector(lambda: Complex(BOX, SMALL, SMALL), 1, restart=True)
    vector.reset(np.zeros(1, int))
    step = vector.step(np.zeros(1, int))
    assert not step.valid.any()
    assert step.reward.tolist() == [0]
    (found,) = vector.take_faults()
    assert "must return a reward of real numbers; it returned" in found.cause


FLOAT32 = float(np.finfo(np.float32).max)
SMALL_TRAINING = dict(env_steps=1024, num_envs=16, num_steps=16, hidden=(4,), critic_epochs=1, critic_num_minibatches=1)


@dataclass(frozen=True)
class Aim(klimb.CompiledEnvironment):
    """Two actions: one in a given interval, the other between -1 and 1; the reward grows with how far both are up."""

    id = "aim"
    low: float = -1.0
    high: float = 1.0

    @property
    def observation_space(self):
        return spaces.Box(-np.inf, np.inf, (2,), np.float32)

    @property
    def action_space(self):
        return spaces.Box(np.array([self.low, -1], np.float32), np.array([self.high, 1], np.float32))

    def reset(self, key):
        return jnp.int32(0), jnp.ones(2)

    def step(self, key, state, action):
        reward = jnp.tanh(action[0]) + action[1]
        return klimb.Transition(
            state=state + 1,
            obs=jax.random.normal(key, (2,)),
            reward=reward,
            terminated=jnp.bool_(False),
            truncated=state + 1 >= 8,
        )


def interval(low: float, high: float) -> spaces.Box:
    return Aim(low, high).action_space


REMARKS = [
    pytest.param(
        -FLOAT32,
        FLOAT32,
        None,
        marks=fault(
            "an environment gives the largest float32 number as a bound of its actions",
            "that is no bound: trained as with infinity",
        ),
        id="float32",
    ),
    pytest.param(
        -1e30,
        1e30,
        "dimension 0 of the actions is from -1e+30 to 1e+30: bounds from 1e+18 on are treated as none",
        marks=[
            pytest.mark.slow,
            fault(
                "the bounds of an action are ±1e30", "treated as none, with a line that says so; the policy is trained"
            ),
        ],
        id="1e30",
    ),
    pytest.param(
        0.5,
        0.5,
        "dimension 0 of the actions is from 0.5 to 0.5: there is nothing to learn in it; leave it out",
        marks=[
            pytest.mark.slow,
            fault(
                "a dimension of the actions has equal bounds",
                "a line says that there is nothing to learn in it; the others are trained",
            ),
        ],
        id="equal",
    ),
]


@pytest.mark.parametrize(("low", "high", "said"), REMARKS)
def test_action_bounds_that_are_none(low, high, said, caplog):
    run = klimb.train(Aim(low, high), TRPO(), **SMALL_TRAINING)
    assert {record["status"] for record in run.history} == {"ACCEPTED"}
    assert run.history[-1]["episode_return"] > run.history[0]["episode_return"]
    warnings = [record.getMessage() for record in caplog.records if "of the actions" in record.getMessage()]
    assert len(warnings) == (said is not None)
    assert all(said in warning for warning in warnings)
    action = run.policy.act(np.zeros((10, 2)))
    assert np.isfinite(action).all()
    if low == high:
        assert (action[:, 0] == low).all()


@pytest.mark.slow
@fault(
    "the bounds of an action are closer together than float32 numbers resolve",
    "a line at the start names the dimension, the bounds and the remedy",
)
def test_narrow_actions(caplog):
    klimb.train(Aim(-1e-30, 1e-30), TRPO(), **SMALL_TRAINING | {"env_steps": 256})
    said = "dimension 0 of the actions is from -1e-30 to 1e-30: that is too narrow for steps in float32 numbers"
    assert said in caplog.text
    assert "gymnasium.wrappers.RescaleAction" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(-9e17, 9e17), (-2e-18, 2e-18), (0.999998, 1.000002), (999999, 1000001)])
def test_bounds_that_nothing_is_said_of_can_be_trained(low, high, caplog):
    run = klimb.train(Aim(low, high), TRPO(), **SMALL_TRAINING | {"env_steps": 10 * 256})
    assert sum(record["status"] == "ACCEPTED" for record in run.history) >= 9
    assert "of the actions" not in caplog.text


@pytest.mark.parametrize(
    ("low", "high", "treated"),
    [
        (-FLOAT32, FLOAT32, (-np.inf, np.inf)),
        (-1e18, 1.0, (-np.inf, 1.0)),
        (5.0, FLOAT32, (5.0, np.inf)),
        (-1e17, 1e17, (float(np.float32(-1e17)), float(np.float32(1e17)))),
    ],
)
def test_wide_bounds_of_a_space(low, high, treated):
    spec = action_spec(interval(low, high))
    assert (spec.low[0], spec.high[0]) == treated
    assert (spec.half_width[0], spec.center[0]) == (1, 0) or np.isfinite(treated).all()
    double = spaces.Box(-np.finfo(np.float64).max, np.finfo(np.float64).max, (3,), np.float64)
    assert action_spec(double) == Box((-np.inf,) * 3, (np.inf,) * 3)


@fault(
    "an environment is checked whose actions can't be learned",
    "check-env says so, with the dimension, its bounds and the remedy",
)
@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.5, 0.5, "nothing to learn in it"), (-1e30, 1e30, "treated as none"), (-1e-30, 1e-30, "too narrow")],
)
def test_the_check_says_the_same(low, high, said):
    check = klimb.check_env(Aim(low, high), steps=3)
    (finding,) = (finding for finding in check.findings if finding.name == "actions")
    assert finding.status == "note"
    assert finding.text.startswith("dimension 0 of the actions is from ")
    assert said in finding.text
    assert not [finding for finding in klimb.check_env(Aim(), steps=3).findings if finding.name == "actions"]


def test_several_dimensions_are_said_in_one_line():
    environment = Told(BOX, SMALL, SMALL)
    environment.action_space = spaces.Box(np.float32([0, 1, 2]), np.float32([0, 2, 2]))
    made = GymnasiumEnvironment.from_maker("told", lambda: environment)
    (finding,) = (one for one in klimb.check_env(made, steps=3).findings if one.name == "actions")
    assert finding.text.startswith(
        "dimension 0 of the actions is from 0.0 to 0.0 (and 1 more): there is nothing to learn"
    )


@fault(
    "actions are squashed by tanh into bounds that are none, such as the largest float32 number",
    "refused before anything is trained, with the dimension",
)
def test_squashing_into_no_bounds():
    with pytest.raises(UnsupportedSpace, match=r"bounded interval.* dimension 0 is from -inf to inf"):
        klimb.train(Aim(-FLOAT32, FLOAT32), TRPO(), tanh_squash=True, **SMALL_TRAINING)


@pytest.mark.parametrize("squash", [False, True])
def test_a_policy_saved_with_wide_bounds_is_what_it_was(squash, tmp_path):
    """As an earlier klimb has saved it: the bounds stand in the file as numbers, and the half-width is theirs."""
    old = Box((-1e30, -1.0), (1e30, 1.0))
    policy = klimb.NetworkPolicy(2, old, hidden=(4,), tanh_squash=squash, key=jax.random.key(0))
    klimb.save_policy(policy, tmp_path)
    assert json.loads((tmp_path / "policy.json").read_text())["actions"]["low"] == [-1e30, -1.0]
    loaded = klimb.load_policy(tmp_path)
    assert loaded.actions == old
    assert loaded.actions.half_width.tolist() == [1e30, 1]
    obs = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(loaded.act(obs), policy.act(obs))
    assert (np.abs(loaded.act(obs)[:, 0]) > 1e20).all()
    # It still acts in its environment.
    assert klimb.evaluate(loaded, Aim(-1e30, 1e30), episodes=1).returns.shape == (1,)
    with pytest.raises(klimb.PolicyFileError, match="trained on another environment"):
        klimb.evaluate(loaded, Aim(-2, 2), episodes=1)


class Masked(gymnasium.Env):
    """Two steps an episode; gives the masks of a list, one after the other."""

    observation_space = spaces.Box(-1, 1, (1,))

    def __init__(self, masks, space=None) -> None:
        self.action_space, self.masks, self.time = space or spaces.Discrete(3), masks, 0

    def answer(self):
        mask = self.masks[min(self.time, len(self.masks) - 1)]
        return {} if mask is None else {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), self.answer()

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time == 2, False, self.answer()


ONES = np.ones(3, np.int8)


@fault(
    "an action mask allows nothing, has another size or other numbers, or is missing",
    f"{ROW}; without restarts a line says what is wrong",
)
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(3), "step 1 of an episode gave an action mask that allows nothing, and the episode goes on"),
        (np.ones(4), "step 1 of an episode must give an action mask of 3 flags, 1 for each choice that is allowed"),
        (np.array([1, 2, 0]), "step 1 of an episode must give an action mask of 3 flags"),
        (np.array([1, np.nan, 0]), "step 1 of an episode must give an action mask of 3 flags"),
        ("110", "step 1 of an episode must give an action mask of 3 flags"),
        (None, "step 1 of an episode must give an action mask of 3 flags, .* it gave None"),
    ],
)
def test_a_wrong_mask_is_a_fault_with_its_step(mask, message):
    env = GymnasiumEnvironment.from_maker("masked", lambda: Masked([ONES, mask]))
    vector = env.vector(2)
    vector.reset(np.arange(2))
    with pytest.raises(EnvironmentFault, match=f"copy 0 of the environment fails: {message}"):
        vector.step(np.zeros(2, np.int32))
    vector = env.vector(2, restart=True)
    vector.reset(np.arange(2))
    step = vector.step(np.zeros(2, np.int32))
    assert not step.valid.any()
    assert [fault.copy for fault in vector.take_faults()] == [0, 1]


@pytest.mark.parametrize("last", [np.zeros(3), None])
def test_no_action_need_be_allowed_where_an_episode_has_ended(last):
    env = GymnasiumEnvironment.from_maker("masked", lambda: Masked([ONES, ONES, last]))
    vector = env.vector(1)
    vector.reset(np.arange(1))
    ended = [bool(vector.step(np.zeros(1, np.int32)).terminated[0]) for _ in range(4)]
    assert ended == [False, True, False, True]


def test_continuous_actions_have_no_mask():
    env = GymnasiumEnvironment.from_maker("masked", lambda: Masked([ONES], spaces.Box(-1, 1, (3,))))
    assert not env.masked
