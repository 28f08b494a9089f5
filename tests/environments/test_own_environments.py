"""Environments of a user's own that raise or return what no environment may: what they are told."""

from __future__ import annotations

import re
import traceback

import gymnasium
import jax
import numpy as np
import pytest

import klimb
from klimb.environments.adapters.gymnasium import image_shape
from klimb.environments.faults import MAX_TEXT, traceback_text
from klimb.errors import EnvironmentFault, environment_traceback
from klimb.training.program import Program

spaces = gymnasium.spaces
OBS = np.zeros(3, np.float32)
UNTIL_NOW = object()
"""Stands for what a sound environment returns."""


class Robot(gymnasium.Env):
    """Returns what it is told, or calls it."""

    action_space = spaces.Discrete(2)

    def __init__(self, step=UNTIL_NOW, reset=UNTIL_NOW, space=None):
        self.observation_space = space or spaces.Box(-1, 1, (3,), np.float32)
        self._step, self._reset = step, reset

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return (OBS, {}) if self._reset is UNTIL_NOW else self._reset() if callable(self._reset) else self._reset

    def step(self, action):
        return (OBS, 1.0, False, False, {}) if self._step is UNTIL_NOW else self.moved()

    def moved(self):
        return self._step() if callable(self._step) else self._step


def fall():
    raise ValueError("my robot fell over")


def fall_because_of_a_wheel():
    try:
        raise KeyError("wheel")
    except KeyError as error:
        raise ValueError("my robot fell over") from error


def assert_nothing():
    raise AssertionError  # as `assert` does without pytest


def wrapped(env):
    """As `gymnasium.make` does it, where a return is unpacked before klimb sees it."""
    return gymnasium.wrappers.TimeLimit(gymnasium.wrappers.OrderEnforcing(env), 10)


def fault_of(wrap=lambda env: env, **robot) -> EnvironmentFault:
    """The error of one reset and one step."""
    vector = klimb.GymnasiumEnvironment.from_maker("robot", lambda: wrap(Robot(**robot))).vector(1)

    def run():
        vector.reset(np.arange(1))
        vector.step(np.zeros(1, np.int64))

    with pytest.raises(EnvironmentFault) as raised:
        run()
    assert "\n" not in str(raised.value)
    return raised.value


FIVE = r"step must return five values \(observation, reward, terminated, truncated, info\)"
TWO = r"reset must return two values \(observation, info\)"
STEPS = {
    "four values": ((OBS, 1.0, False, {}), FIVE + r"; it returned 4 values.*done is split into terminated"),
    "six values": ((OBS, 1.0, False, False, {}, 3), FIVE + "; it returned (6|more than 5) values"),
    "nothing": (lambda: None, FIVE + "; it returned None"),
    "no info": ((OBS, 1.0, False, False, None), FIVE + ", info as a dict; it returned None as info"),
    "a wrong shape": (
        (OBS[:2], 1.0, False, False, {}),
        r"step must return an observation of shape \(3,\), .* it returned an array of shape \(2,\) and dtype float32",
    ),
    "words as observation": (
        (["left", "right", "up"], 1.0, False, False, {}),
        r"observation of shape \(3,\), .* it returned 3 values \(str, str, str\)",
    ),
    "an array as reward": (
        (OBS, np.ones(1), False, False, {}),
        r"a reward that is one number; it returned an array of shape \(1,\)",
    ),
    "a word as reward": ((OBS, "1.5", False, False, {}), r"a reward that is one number; it returned '1\.5' \(str\)"),
    "None as reward": ((OBS, None, False, False, {}), "a reward that is one number; it returned None"),
    "lives as terminated": ((OBS, 1.0, 3, False, {}), r"terminated as a bool; it returned 3 \(int\)"),
    "an array as truncated": ((OBS, 1.0, False, np.zeros(2, bool), {}), "truncated as a bool; it returned an array"),
}


@pytest.mark.parametrize("wrap", [lambda env: env, wrapped], ids=["bare", "wrapped"])
@pytest.mark.parametrize("what", STEPS)
def test_a_wrong_step_is_told_what_a_step_must_return(what, wrap):
    result, message = STEPS[what]
    fault = fault_of(wrap, step=result)
    assert re.search(message, str(fault)), fault
    # Nothing was raised by the user's code; where it is defined is said instead.
    assert re.search(r"\(Robot\.step: test_own_environments\.py, line \d+\)$", str(fault))
    assert fault.environment_traceback is None


@pytest.mark.parametrize("wrap", [lambda env: env, wrapped], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    ("result", "message"),
    [
        (OBS, TWO + r"; it returned an array of shape \(3,\) and dtype float32, without an info"),
        (OBS[:2], TWO + r"; it returned an array of shape \(2,\)"),
        ((OBS, {}, 1), TWO + "; it returned 3 values"),
        (lambda: None, TWO + "; it returned None"),
        ((OBS, None), TWO + ", info as a dict; it returned None as info"),
        ((OBS[:2], {}), r"reset must return an observation of shape \(3,\), .* an array of shape \(2,\)"),
    ],
    ids=["old reset", "two numbers", "three values", "nothing", "no info", "wrong shape"],
)
def test_a_wrong_reset_is_told_what_a_reset_must_return(result, message, wrap):
    assert re.search(message, str(fault_of(wrap, reset=result)))


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (
            spaces.Dict(goal=spaces.Discrete(2), place=spaces.Box(0, 1, (2,))),
            {"place": OBS[:2]},
            r"reset must return an observation in Dict\(.*; it returned a dict with the keys 'place'",
        ),
        (spaces.Discrete(3), 7, r"reset must return an observation in Discrete\(3\); it returned 7 \(int\)"),
    ],
)
def test_a_wrong_part_of_an_observation_is_told_of_before_it_is_flattened(space, obs, message):
    assert re.search(message, str(fault_of(space=space, reset=(obs, {}))))


def test_numbers_that_mean_the_same_as_bools_are_taken():
    environment = klimb.GymnasiumEnvironment.from_maker(
        "robot", lambda: Robot(step=(OBS, np.float64(2), 1, np.array(True), {}))
    )
    vector = environment.vector(1)
    vector.reset(np.arange(1))
    step = vector.step(np.zeros(1, np.int64))
    assert step.terminated[0]
    assert not step.truncated[0]  # an end is an end, whatever the clock says
    assert step.reward[0] == 2


def test_an_exception_is_chained_and_its_traceback_begins_in_the_users_code():
    """B2 of the review: the user's file was nowhere."""
    fault = fault_of(wrapped, step=fall)
    assert re.search(r"ValueError: my robot fell over \(test_own_environments\.py, line \d+\)$", str(fault))
    assert isinstance(fault.__cause__, ValueError)
    text = fault.environment_traceback
    names = ["step", "moved", "fall"]
    assert re.findall(r"in (\w+)$", text, flags=re.MULTILINE) == names
    assert text.endswith("ValueError: my robot fell over\n")
    assert 'raise ValueError("my robot fell over")' in text
    # The exception itself has the same frames.
    assert [frame.name for frame in traceback.extract_tb(fault.__cause__.__traceback__)] == names


def test_an_exception_in_reset_is_chained_too():
    fault = fault_of(wrapped, reset=fall)
    assert isinstance(fault.__cause__, ValueError)
    # Frames of the tests' own checks of shapes stand before them.
    assert re.findall(r"in (\w+)$", fault.environment_traceback, flags=re.MULTILINE)[-2:] == ["reset", "fall"]


def test_the_exceptions_that_led_to_one_are_in_its_traceback():
    text = fault_of(step=fall_because_of_a_wheel).environment_traceback
    assert text.index("KeyError: 'wheel'") < text.index("direct cause") < text.index("ValueError: my robot fell over")


def test_an_assertion_without_a_text_shows_its_line():
    assert "AssertionError: raise AssertionError  # as `assert` does without pytest (test_own_environments.py" in str(
        fault_of(step=assert_nothing)
    )


def test_sys_exit_in_a_reset_does_not_end_the_process():
    def leave():
        raise SystemExit(3)

    assert "SystemExit: 3" in str(fault_of(reset=leave))


def test_a_traceback_without_end_is_cut_in_its_middle():
    def fall_deep(depth=0):
        raise ValueError("x" * 10 * MAX_TEXT)

    text = fault_of(step=fall_deep).environment_traceback
    assert len(text) < 1.1 * MAX_TEXT
    assert text.startswith("Traceback (most recent call last)")


def test_an_exception_of_klimbs_own_code_keeps_its_last_frame():
    with pytest.raises(ValueError, match="at least 1") as raised:
        klimb.evaluate(None, "CartPole-v1", episodes=0)
    assert traceback_text(raised.value).count('File "') >= 1


@pytest.mark.parametrize(
    "space",
    [
        spaces.Graph(spaces.Box(0, 1, (2,)), None),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Dict(a=spaces.Sequence(spaces.Discrete(2)), b=spaces.Discrete(2)),
    ],
    ids=["graph", "sequence", "inside a dict"],
)
def test_observations_without_a_fixed_size_are_refused_with_a_remedy(space):
    """B8 of the review: a bare AssertionError."""
    with pytest.raises(klimb.UnsupportedSpace, match=r"no fixed size: klimb reads Box, .*padded to its maximum"):
        klimb.GymnasiumEnvironment.from_maker("robot", lambda: Robot(space=space))


def test_the_advice_for_actions_names_a_wrapper_that_exists():
    """B6 of the review."""
    with pytest.raises(klimb.UnsupportedSpace, match=r"gymnasium\.ActionWrapper") as raised:
        klimb.action_spec(spaces.Sequence(spaces.Discrete(2)))
    for name in re.findall(r"gymnasium\.(\w+)", str(raised.value)):
        assert hasattr(gymnasium, name)


def test_a_function_that_makes_something_else_is_told():
    with pytest.raises(klimb.ConfigError, match=r"returned None, which is not a gymnasium\.Env"):
        klimb.GymnasiumEnvironment.from_maker("robot", lambda: None)


def test_a_copy_that_can_not_be_made_is_a_fault():
    made = []

    def make():
        made.append(1)
        return Robot() if len(made) == 1 else fall()

    environment = klimb.GymnasiumEnvironment.from_maker("robot", make)
    with pytest.raises(EnvironmentFault, match="copy 0 of the environment can't be made: ValueError") as raised:
        environment.vector(2)
    assert "in fall" in environment_traceback(raised.value)


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (spaces.Box(0, 255, (64, 64, 3), np.uint8), None),
        (spaces.Box(0, 200, (64, 64, 3), np.uint8), (64, 64, 3)),
        (spaces.Box(0, 1, (64, 64, 1), np.float32), None),
        (spaces.Box(-1, 1, (64, 64, 1), np.float32), (64, 64, 1)),
        (spaces.Box(0, 1, (64, 64), np.float32), (64, 64)),
        (spaces.Box(0, 1, (10, 4), np.float32), None),
        (spaces.Box(0, 1, (4096,), np.float32), None),
        (spaces.Dict(a=spaces.Box(0, 9, (32, 32, 3), np.uint8), b=spaces.Discrete(2)), (32, 32, 3)),
        (spaces.Tuple([spaces.Discrete(2)]), None),
        (spaces.Discrete(5000), None),
    ],
)
def test_what_looks_like_an_image(space, shape):
    assert image_shape(space) == shape


def test_an_image_that_is_flattened_is_said_once(caplog):
    space = spaces.Box(-1, 1, (32, 32, 3))
    environment = klimb.GymnasiumEnvironment.from_maker("camera", lambda: Robot(space=space))
    rule, small = klimb.TRPO(), dict(num_envs=1, num_steps=8, hidden=(4,))
    config = klimb.RunConfig("object:camera", rule, klimb.TrainOptions(**small))
    Program(config, environment)
    (record,) = caplog.records
    assert "observations of shape (32, 32, 3) look like images" in record.getMessage()
    assert "the first layer has 3072 inputs × 4 units" in record.getMessage()
    caplog.clear()
    network = klimb.NetworkPolicy(environment.observations, environment.actions, hidden=(4,), key=jax.random.key(0))
    Program(config, environment, network)
    assert not caplog.records
