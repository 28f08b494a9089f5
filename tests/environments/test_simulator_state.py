"""Saved simulators go on bit for bit: observations, rewards, flags and the random numbers of later resets."""

from __future__ import annotations

import copy
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from klimb.environments import simulator_state
from klimb.environments.adapters.gymnasium import flattened
from klimb.errors import RunError

LIMIT = 12
FAST = ("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Ant-v5", "Reacher-v5")
OTHER = (
    *("MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"),
    *("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "CliffWalkingSlippery-v1", "Taxi-v4", "Blackjack-v1"),
)
ROBOTS = ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "Ant", "Humanoid", "HumanoidStandup", "Reacher")
PENDULUMS = ("InvertedPendulum", "InvertedDoublePendulum")
MUJOCO = (*(f"{name}-v{version}" for name in (*ROBOTS, *PENDULUMS) for version in (4, 5)), "Pusher-v5")
SLOW = sorted({*OTHER, *MUJOCO} - {*FAST})


def make(name: str, limit: int = LIMIT, **arguments: Any) -> gym.Env:
    if name in MUJOCO:
        pytest.importorskip("mujoco")
    return flattened(gym.make(name, max_episode_steps=limit, **arguments))


def act(env: gym.Env, action: Any) -> tuple[list[np.ndarray], bool]:
    """A step, and the next episode's first observation where it ended one."""
    obs, reward, terminated, truncated, _ = env.step(action)
    seen = [np.array(obs), np.array(reward), np.array(terminated), np.array(truncated)]
    if terminated or truncated:
        seen.append(np.array(env.reset()[0]))
    return seen, bool(terminated or truncated)


def saved(env: gym.Env) -> dict[str, Any]:
    return json.loads(json.dumps(simulator_state.capture(env)))


def assert_same_future(env: gym.Env, other: gym.Env, steps: int = 2 * LIMIT + 3) -> None:
    resets = 0
    for _ in range(steps):
        action = env.action_space.sample()
        (ours, over), (theirs, _) = act(env, action), act(other, action)
        assert [x.dtype for x in ours] == [x.dtype for x in theirs]
        assert [x.tobytes() for x in ours] == [x.tobytes() for x in theirs]
        resets += over
    assert resets > 0
    assert saved(env) == saved(other)


def assert_saved_exactly(name: str, **arguments: Any) -> None:
    """States after a first reset, inside an episode, and after a reset that followed an episode's end."""
    env = make(name, **arguments)
    assert simulator_state.supported(env)
    env.action_space.seed(1)
    env.reset(seed=3)
    states, ended = [saved(env)], 0
    assert_continues(env, name, **arguments)
    for steps in range(1, 200):
        over = act(env, env.action_space.sample())[1]
        ended += over
        if steps in (1, 7) or (over and ended in (1, 2)):
            states.append(saved(env))
            assert_continues(env, name, **arguments)
        if steps > 7 and ended > 1:
            break
    assert ended > 1
    assert len({json.dumps(state) for state in states}) == len(states)
    env.close()


def assert_continues(env: gym.Env, name: str, **arguments: Any) -> None:
    """Two fresh copies, one of them used before, do what `env` would have done: the used one also after more steps."""
    fresh, used = make(name, **arguments), make(name, **arguments)
    used.reset(seed=8)
    for _ in range(5):
        act(used, env.action_space.sample())
    state = saved(env)
    for twin in (fresh, used):
        simulator_state.restore(twin, state)
        assert saved(twin) == state
    assert_same_future(fresh, used)
    # The original takes part in it last, as it can't go back.
    simulator_state.restore(fresh, state)
    assert_same_future(env, fresh)
    for twin in (fresh, used):
        twin.close()


@pytest.mark.parametrize("name", FAST)
def test_a_restored_simulator_goes_on_bit_for_bit(name):
    assert_saved_exactly(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
@pytest.mark.filterwarnings("ignore:.*is out of date.*")
def test_a_restored_simulator_goes_on_bit_for_bit_in_every_environment(name):
    assert_saved_exactly(name)


@pytest.mark.slow
def test_a_fickle_passenger_is_saved_too():
    assert_saved_exactly("Taxi-v4", fickle_passenger=True, is_rainy=True)


def test_a_bare_environment_needs_no_wrappers():
    pytest.importorskip("mujoco")
    env, twin = gym.make("Ant-v5").unwrapped, gym.make("Ant-v5").unwrapped
    env.action_space.seed(1)
    env.reset(seed=3)
    for _ in range(4):
        env.step(env.action_space.sample())
    simulator_state.restore(twin, saved(env))
    for _ in range(4):
        action = env.action_space.sample()
        ours, theirs = env.step(action), twin.step(action)
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1:4] == theirs[1:4]
    assert env.reset()[0].tobytes() == twin.reset()[0].tobytes()


def test_a_simulation_that_diverged_is_saved_too():
    """MuJoCo resets such a one in the middle of a step, controls included."""
    mujoco = pytest.importorskip("mujoco")
    env, twin = make("Ant-v5", terminate_when_unhealthy=False), make("Ant-v5", terminate_when_unhealthy=False)
    env.action_space.seed(1)
    env.reset(seed=3)
    act(env, env.action_space.sample())
    data = env.unwrapped.data
    data.qvel[:] = 1e11
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        act(env, env.action_space.sample())
    finally:
        mujoco.set_mju_user_warning(None)
    assert not data.ctrl.any()
    simulator_state.restore(twin, saved(env))
    assert_same_future(env, twin)


def test_single_precision_stays_single():
    env, twin = make("MountainCarContinuous-v0"), make("MountainCarContinuous-v0")
    env.reset(seed=0)
    simulator_state.restore(twin, saved(env))
    assert twin.unwrapped.state.dtype == np.float64
    env.step(np.array([0.3], np.float32))
    simulator_state.restore(twin, saved(env))
    assert twin.unwrapped.state.dtype == np.float32


class SteeperCartPole(CartPoleEnv):
    """A user's own."""


class Doubled(gym.RewardWrapper):
    """A user's own."""

    def reward(self, reward):
        return 2 * reward


def test_only_known_classes_are_supported():
    known = gym.make("CartPole-v1")
    other_numbers = gym.make("CartPole-v1")
    other_numbers.unwrapped.np_random = np.random.Generator(np.random.MT19937(0))
    assert simulator_state.supported(known)
    assert simulator_state.supported(CartPoleEnv())
    for env in (SteeperCartPole(), Doubled(known), gym.wrappers.NormalizeObservation(known), other_numbers):
        assert not simulator_state.supported(env)
        with pytest.raises(RunError, match=r"can.t be saved or restored") as caught:
            simulator_state.capture(env)
        assert "\n" not in str(caught.value)


DAMAGE = {
    "no key": lambda state: state.pop("random"),
    "another kind": lambda state: state.update(kind="os.system"),
    "kind of a wrong type": lambda state: state.update(kind=["x"]),
    "wrapper missing": lambda state: state["wrappers"].pop(),
    "wrappers no list": lambda state: state.update(wrappers=7),
    "wrappers in another order": lambda state: state["wrappers"].reverse(),
    "wrapper no record": lambda state: state["wrappers"].__setitem__(0, None),
    "elapsed a float": lambda state: state["wrappers"][0]["values"].update(_elapsed_steps=1.5),
    "elapsed negative": lambda state: state["wrappers"][0]["values"].update(_elapsed_steps=-1),
    "flag no flag": lambda state: state["wrappers"][1]["values"].update(_has_reset=1),
    "attribute unknown": lambda state: state["wrappers"][1]["values"].update(step="x"),
    "generator too large": lambda state: state["random"].update(state=2**128),
    "generator even": lambda state: state["random"].update(increment=2),
    "generator a float": lambda state: state["random"].update(uinteger=0.5),
    "seed below": lambda state: state["random"].update(seed=-2),
    "values no record": lambda state: state.update(values=[]),
}
CARTPOLE_DAMAGE = {
    "vector too short": lambda state: state["values"]["state"]["numbers"].pop(),
    "vector of words": lambda state: state["values"]["state"].update(numbers=["a\nb"] * 4),
    "vector of flags": lambda state: state["values"]["state"].update(numbers=[True] * 4),
    "vector of huge numbers": lambda state: state["values"]["state"].update(numbers=[10**400] * 4),
    "objects": lambda state: state["values"]["state"].update(dtype="object"),
}
ANT_DAMAGE = {
    "integration too short": lambda state: state["values"]["integration"].pop(),
    "positions too long": lambda state: state["values"]["xpos"].append(0.0),
    "positions nested": lambda state: state["values"].update(xipos=[[0.0] * 3] * 14),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(pytest.param("CartPole-v1", one, id=f"cartpole: {what}") for what, one in (DAMAGE | CARTPOLE_DAMAGE).items()),
        *(pytest.param("Ant-v5", one, id=f"ant: {what}") for what, one in (DAMAGE | ANT_DAMAGE).items()),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(name, damage):
    env, twin = make(name), make(name)
    for one, seed in ((env, 3), (twin, 4)):
        one.reset(seed=seed)
        act(one, np.zeros(8, np.float32) if name == "Ant-v5" else 0)
    state, before = saved(env), saved(twin)
    damaged = copy.deepcopy(state)
    damage(damaged)
    with pytest.raises(RunError, match="does not fit the environment") as caught:
        simulator_state.restore(twin, damaged)
    assert "\n" not in str(caught.value)
    assert saved(twin) == before


@pytest.mark.parametrize("numbers", [{"s": 16}, {"s": -1}, {"s": None}, {"lastaction": 4}, {"s": True}])
def test_a_place_outside_the_table_is_refused(numbers):
    env = make("FrozenLake-v1")
    env.reset(seed=0)
    state = saved(env)
    state["values"].update(numbers)
    with pytest.raises(RunError, match="must be a whole number from 0 and below"):
        simulator_state.restore(env, state)
