"""Observations and actions: what is not of its space is refused, and what can't be learned is said."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from klimb.environments.adapters.gymnasium import GymnasiumEnvironment, GymnasiumVector
from klimb.errors import EnvironmentFault

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
            "an observation whose part ['b'] is of real numbers; it returned an array of shape (2, 2) and dtype complex64",
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
