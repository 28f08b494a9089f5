"""`klimb.check_env`: each thing that can be wrong is made, and is found; what is sound passes."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
import own_code
from klimb.environments.check_host import outside

spaces = gymnasium.spaces


class Walk(gymnasium.Env):
    """A random walk with a reward at its end. What `flaw` says is wrong with it."""

    action_space = spaces.Discrete(2)

    def __init__(self, flaw=None):
        low, dtype = (0, np.float32) if flaw == "range" else (-np.inf, np.float32)
        self.observation_space = spaces.Box(low, np.inf, (2,), dtype)
        self.flaw = flaw

    def reset(self, *, seed=None, options=None):
        super().reset(seed=None if self.flaw == "seed" else seed)
        self.place, self.time = np.zeros(2, np.float32), 0
        return self.place.copy(), {}

    def step(self, action):
        self.time += 1
        self.place += np.float32(2 * action - 1) + self.np_random.normal(size=2).astype(np.float32)
        obs = self.place.astype(np.float64) if self.flaw == "dtype" else self.place.copy()
        reward = float(self.place[0])
        if self.flaw == "reward" and self.time == 4:
            reward = np.nan
        if self.flaw == "constant":
            reward = 1.0
        if self.flaw == "observation" and self.time == 4:
            obs[1] = np.inf
        if self.flaw == "raises" and self.time == 4:
            raise RuntimeError("the walker is lost")
        return obs, reward, self.flaw not in ("endless", "constant") and self.time >= 7, False, {}


def checked(flaw=None, **options):
    environment = klimb.GymnasiumEnvironment.from_maker("walk", lambda: Walk(flaw))
    return klimb.check_env(environment, steps=30, **options)


def statuses(check) -> dict[str, str]:
    return {finding.name: finding.status for finding in check.findings}


def found(check, name):
    (finding,) = (finding for finding in check.findings if finding.name == name)
    return finding


def test_a_sound_environment_passes():
    check = checked()
    assert check.trainable
    noted = {name for name, status in statuses(check).items() if status != "ok"}
    # It is an object of this process, of a class of which nothing is known, in an unbounded space.
    assert noted == {"state of the simulator", "worker processes", "Gymnasium's checker"}
    assert found(check, "reset and step").text == "30 steps with random actions, 4 episodes ended"
    assert str(check).startswith("environment  walk (stepped in Python)\nok     spaces ")


@pytest.mark.parametrize(
    ("flaw", "name", "text"),
    [
        ("reward", "rewards", "the reward of step 3 is nan"),
        ("observation", "observations", "element 1 of the observation returned by step 3 is inf"),
        ("raises", "reset and step", "it fails: RuntimeError: the walker is lost (test_check.py, line"),
    ],
)
def test_what_can_not_be_trained_fails(flaw, name, text):
    check = checked(flaw)
    assert not check.trainable
    assert [finding.name for finding in check.failures] == [name]
    assert check.failures[0].text.startswith(text)
    assert (check.failures[0].traceback is not None) == (flaw == "raises")
    assert f"fails  {name} " in str(check)


@pytest.mark.parametrize(
    ("flaw", "name", "text"),
    [
        ("seed", "same seed, same episodes", "gave a different step 0 with the same seed"),
        ("endless", "end of episodes", "no episode ended in 30 steps"),
        ("constant", "rewards", "from 1 to 1, mean 1"),
        ("range", "observation space", "outside [0, inf]"),
        ("dtype", "observation space", "its dtype is float64 instead of float32"),
    ],
)
def test_what_will_be_noticed_later_is_a_note_with_a_remedy(flaw, name, text):
    check = checked(flaw)
    assert check.trainable
    assert found(check, name).status == "note"
    assert text in found(check, name).text
    assert len(found(check, name).remedy) > 20
    # The others are as they are without the flaw.
    others = {key: value for key, value in statuses(checked()).items() if key not in (name, "Gymnasium's checker")}
    assert others.items() <= (statuses(check) | ({"end of episodes": "ok"} if flaw == "constant" else {})).items()


def test_gymnasiums_warnings_are_readable_and_told_once():
    texts = [finding.text for finding in checked().findings if finding.name == "Gymnasium's checker"]
    assert "A Box observation space minimum value is -infinity. This is probably too low." in texts
    assert len(texts) == len(set(texts))
    assert not any("\x1b" in text or "WARN" in text for text in texts)
    (error,) = (finding.text for finding in checked("seed").findings if "super().reset(seed=seed)" in finding.text)
    assert error.startswith("AssertionError: ")


@pytest.mark.parametrize(
    ("obs", "space", "text"),
    [
        (np.zeros(2, np.float32), spaces.Box(-1, 1, (2,)), None),
        (np.float32([0, 3]), spaces.Box(-1, 1, (2,)), "element [1] is 3, outside [-1, 1]"),
        (np.zeros(2), spaces.Box(-1, 1, (2,)), "its dtype is float64 instead of float32"),
        (np.zeros(2, np.uint8), spaces.Box(-1, 1, (2,)), None),
        (np.zeros((2, 1), np.float32), spaces.Box(-1, 1, (2,)), "its shape is (2, 1) instead of (2,)"),
        (np.zeros(3, np.float32), spaces.Box(-1, 1, (2,)), "it is [0. 0. 0.]"),
        (5, spaces.Discrete(3), "it is 5"),
        (1, spaces.Discrete(3), None),
    ],
)
def test_why_an_observation_is_not_in_its_space(obs, space, text):
    assert outside(obs, space) == text
    if text is None:
        assert space.contains(obs)
    else:
        assert not space.contains(obs)


def test_a_list_is_no_observation():
    assert outside([0.0, 0.0], spaces.Box(-1, 1, (2,))) == "it is a list instead of an array"


def test_spaces_that_klimb_has_no_network_for():
    class Talk(Walk):
        action_space = spaces.Text(3)

    environment = klimb.GymnasiumEnvironment.from_maker("talk", Talk)
    check = klimb.check_env(environment, steps=5)
    assert [finding.name for finding in check.failures] == ["spaces"]
    assert "is not supported; klimb supports Discrete, MultiDiscrete" in check.failures[0].text


def test_wrong_questions_are_errors():
    with pytest.raises(klimb.EnvironmentNotFound):
        klimb.check_env("CartPol-v1")
    with pytest.raises(ValueError, match="at least 1"):
        klimb.check_env("CartPole-v1", steps=0)


ELSEWHERE = """
import os, sys
import gymnasium
import numpy as np

class Elsewhere(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1e9, 1e9, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, flaw):
        self.flaw = flaw
        if flaw == "raises" and "pytest" not in sys.modules:
            raise RuntimeError("no display")
        if flaw == "exits" and "pytest" not in sys.modules:
            os._exit(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1), {}

    def step(self, action):
        print("this must not disturb the answer")
        self.time += 1
        lost = self.time == 3 and self.flaw == "process" and "pytest" not in sys.modules
        return np.array([self.np_random.normal() + lost]), self.np_random.normal(), False, self.time == 5, {}

gymnasium.register("Elsewhere-v0", "elsewhere_environment:Elsewhere", disable_env_checker=True, max_episode_steps=9)
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The check of an environment that is another one in other processes."""
    (tmp_path / "elsewhere_environment.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    importlib.import_module("elsewhere_environment")

    def check(flaw):
        gymnasium.registry["Elsewhere-v0"].kwargs = {"flaw": flaw}
        return klimb.check_env("elsewhere_environment:Elsewhere-v0", steps=12)

    yield check
    gymnasium.registry.pop("Elsewhere-v0")
    sys.modules.pop("elsewhere_environment")


@pytest.mark.parametrize(
    ("flaw", "status", "text"),
    [
        ("none", "ok", "a worker process gave the same 12 steps, bit for bit"),
        pytest.param("process", "note", "a worker process gave a different step 2", marks=pytest.mark.slow),
        ("raises", "fails", "RuntimeError: no display (elsewhere_environment.py, line"),
        pytest.param("exits", "fails", "ends with status 3", marks=pytest.mark.slow),
    ],
)
def test_worker_processes_are_tried(elsewhere, flaw, status, text):
    check = elsewhere(flaw)
    finding = found(check, "worker processes")
    assert finding.status == status
    assert text in finding.text
    assert check.trainable == (status != "fails")
    assert found(check, "end of episodes").text == "after 9 steps at the latest"
    if flaw == "raises":
        assert "in __init__" in finding.traceback


def test_an_environment_whose_state_can_be_saved():
    check = klimb.check_env("gymnasium:Pendulum-v1", steps=5, in_worker=False)
    assert found(check, "state of the simulator").status == "ok"
    assert found(check, "worker processes").status == "ok"


def test_rows_that_only_carry_out_a_reset_are_no_steps():
    """EnvPool resets a step late: fewer steps than actions, and the same ones with the same actions."""
    pytest.importorskip("envpool")
    check = klimb.check_env("envpool:CartPole-v1", steps=60)
    assert found(check, "same seed, same episodes").status == "ok"
    steps, ended = map(int, re.findall(r"(\d+) (?:steps|episodes? ended)", found(check, "reset and step").text))
    assert ended >= 1
    assert steps == 60 - ended


def test_a_sound_compiled_environment_passes():
    environment = dataclasses.replace(klimb.make("CartPole-v1"), max_episode_steps=30)
    check = klimb.check_env(environment, steps=64)
    assert set(statuses(check).values()) == {"ok"}
    assert "compiled" in check.environment


class Line(klimb.CompiledEnvironment):
    """A point on a line."""

    id = "line"
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)
    max_episode_steps = 9

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros(1)

    def step(self, key, state, action):
        state = state + 0.1 * (2.0 * action - 1)
        return klimb.Transition(state, state[None], -jnp.abs(state), jnp.bool_(False), jnp.bool_(False))


class Forked(Line):
    def step(self, key, state, action):
        if action > 0:
            state = state + 1
        return super().step(key, state, action)


class Shapeless(Line):
    def step(self, key, state, action):
        after = super().step(key, state, action)
        return after._replace(reward=after.reward[None], terminated=jnp.int32(0), state=(after.state,))


class Impure(Line):
    def step(self, key, state, action):
        after = super().step(key, state, action)
        return after._replace(obs=after.obs + np.random.default_rng().normal())


class Old(Line):
    def step(self, key, state, action):
        return tuple(super().step(key, state, action))


def test_a_compiled_environment_that_branches_is_shown_where():
    (_, finding) = klimb.check_env(Forked(), steps=5).findings
    assert finding.status == "fails"
    assert "TracerBoolConversionError" in finding.text
    assert "jnp.where" in finding.remedy
    assert "if action > 0" in finding.traceback


def assert_shown_where(fault):
    assert re.fullmatch(r"line can't be compiled: TracerBool[^\n]*bool\[\]\. \(test_check\.py, line \d+\)", str(fault))
    assert "if action > 0" in fault.environment_traceback
    assert "klimb/collect" not in fault.environment_traceback
    assert isinstance(fault.__cause__, jax.errors.TracerBoolConversionError)


def test_an_evaluation_in_a_compiled_environment_that_branches_is_shown_where():
    environment = Forked()
    policy = klimb.NetworkPolicy(environment.observations, environment.actions, hidden=(2,), key=jax.random.key(0))
    with pytest.raises(klimb.EnvironmentFault) as raised:
        klimb.evaluate(policy, environment, episodes=1)
    assert_shown_where(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["step", "reset"])
def test_a_training_in_a_compiled_environment_that_raises_is_shown_where(method):
    broken = Forked()
    if method == "reset":
        broken.reset = lambda key: Forked.step(broken, key, jnp.zeros(()), jax.random.uniform(key))
    options = dict(env_steps=64, num_envs=2, num_steps=16, hidden=(4,), critic_num_minibatches=1)
    with pytest.raises(klimb.KlimbError) as raised:
        klimb.train(broken, klimb.TRPO(), **options)
    fault = raised.value if isinstance(raised.value, klimb.EnvironmentFault) else raised.value.__cause__
    assert_shown_where(fault)


def test_a_compiled_environment_with_wrong_shapes():
    texts = [finding.text for finding in klimb.check_env(Shapeless(), steps=5).failures]
    assert texts == [
        "reward of step must be a number of shape (); it is float32 of shape (1,)",
        "terminated of step must be bool of shape (); it is int32 of shape ()",
        "step must return a state of the same structure, shapes and dtypes as reset does",
    ]
    (finding,) = klimb.check_env(Old(), steps=5).failures
    assert finding.text == "step must return a klimb.Transition; it returned tuple"


def test_a_compiled_environment_that_is_not_pure():
    check = klimb.check_env(Impure(), steps=5)
    assert found(check, "same seed, same episodes").status == "note"
    assert found(klimb.check_env(Line(), steps=5), "same seed, same episodes").status == "ok"


def test_pictures_of_a_compiled_environment_need_a_network():
    check = klimb.check_env(own_code.Spot(), steps=25)
    assert found(check, "images").status == "note"
    assert "[5, 5]" in found(check, "images").text
    assert check.trainable


class Port(Line):
    """The line again, as a port of a Gymnasium environment. What `flaw` says is wrong with it."""

    id = "port"

    def __init__(self, flaw=None):
        self.flaw = flaw

    def reset(self, key):
        place = jax.random.uniform(key, minval=-0.5, maxval=0.5)
        return place, place[None]

    def step(self, key, state, action):
        after = super().step(key, state, action)
        return after._replace(
            reward=after.reward + (0.01 if self.flaw == "reward" else 0),
            obs=jnp.where(after.obs > 0.2, (1.01 if self.flaw == "observation" else 1) * after.obs, after.obs),
            terminated=jnp.abs(after.state) > (0.5 if self.flaw == "end" else 0.75),
        )

    def write_reference(self, state, reference):
        reference.place = float(state)


class Original(gymnasium.Env):
    """The line in Python."""

    observation_space, action_space = Line.observation_space, Line.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.over = self.np_random.uniform(-0.5, 0.5), False
        return np.float32([self.place]), {}

    def step(self, action):
        assert not self.over
        self.place += 0.1 * (2 * action - 1)
        self.over = abs(self.place) > 0.75
        return np.float32([self.place]), -abs(self.place), self.over, False, {}


@pytest.fixture
def original():
    gymnasium.register("Original-v0", lambda: Original(), max_episode_steps=9)
    yield "Original-v0"
    del gymnasium.registry["Original-v0"]


def against(port, reference):
    return found(klimb.check_env(port, reference=reference, steps=60), "the same as the reference")


def test_a_port_is_compared_with_its_original(original):
    finding = against(Port(), original)
    assert finding.status == "ok"
    assert finding.text.startswith("60 steps as Original-v0 makes them")
    assert against(klimb.make("Pendulum-v1"), "Pendulum-v1").status == "ok"
    assert against(klimb.make("CartPole-v1"), "gymnasium:CartPole-v1").status == "ok"


@pytest.mark.parametrize(
    ("flaw", "text"),
    [
        ("reward", r"reward of step \d+: -?[\d.e-]+ and not -?[\d.e-]+$"),
        ("observation", r"observation of step \d+, number 0: [\d.]+ and not [\d.]+$"),
        ("end", r"step \d+ terminates$"),
    ],
)
def test_what_a_port_does_otherwise_is_shown_with_its_step(original, flaw, text):
    finding = against(Port(flaw), original)
    assert finding.status == "fails"
    assert re.search(text, finding.text)


def test_a_port_has_to_say_how_its_state_is_written(original):
    finding = against(Line(), original)
    assert finding.status == "fails"
    assert "write_reference" in finding.remedy
    assert "1 numbers as observation, and this one 3" not in finding.text
    other = against(Port(), "CartPole-v1")
    assert other.status == "fails"
    assert "AttributeError" in other.text or "ConfigError" in other.text


def test_a_reference_is_a_gymnasium_id_and_for_compiled_environments(original):
    with pytest.raises(klimb.EnvironmentNotFound, match="the reference is no Gymnasium id: 'Origina-v0'; did you"):
        against(Port(), "Origina-v0")
    with pytest.raises(klimb.ConfigError, match="a reference is for compiled ones"):
        klimb.check_env(klimb.make(f"gymnasium:{original}"), reference=original, steps=5, in_worker=False)


class Dear(Line):
    """A line whose first state takes long to find, and has Python's numbers in it."""

    def reset(self, key):
        far = jax.lax.fori_loop(0, 300, lambda _, x: jnp.sin(x) + jnp.cos(x), jax.random.normal(key, (50,)))
        return (1e-9 * far.sum(), 0), jnp.zeros(1)

    def step(self, key, state, action):
        place, time = state
        after = super().step(key, place, action)
        return after._replace(state=(after.state, jnp.int32(time) + 1))


def test_what_a_reset_costs_is_said_and_what_to_do_about_it():
    check = klimb.check_env(Dear(), steps=20)
    speed = found(check, "speed")
    assert speed.status == "note"
    assert re.fullmatch(r"[\d,]+ steps/s alone with 64 copies; a reset costs [\d.]+ × a step", speed.text)
    assert "bank_resets = True" in speed.remedy
    types = found(check, "types of the state")
    assert types.status == "note"
    assert types.text.startswith("[1]: Python's number")
    assert found(check, "first observations").text == "the same in every episode"
    Dear.bank_resets = True
    try:
        assert found(klimb.check_env(Dear(), steps=20), "speed").status == "ok"
    finally:
        del Dear.bank_resets


class Lake(klimb.CompiledEnvironment):
    """FrozenLake without its ice, of one-hot rows: the reference looks actions up in a table."""

    id = "lake"
    one_hot = True
    observation_space = spaces.Box(0, 1, (16,))
    action_space = spaces.Discrete(4)

    def reset(self, key):
        return jnp.int32(0), jax.nn.one_hot(0, 16)

    def step(self, key, state, action):
        row, column = state // 4, state % 4
        row = jnp.clip(row + jnp.array([0, 1, 0, -1])[action], 0, 3)
        column = jnp.clip(column + jnp.array([-1, 0, 1, 0])[action], 0, 3)
        place = 4 * row + column
        ends = jnp.isin(place, jnp.array([5, 7, 11, 12, 15]))
        return klimb.Transition(place, jax.nn.one_hot(place, 16), jnp.float32(place == 15), ends, jnp.bool_(False))

    def write_reference(self, state, reference):
        reference.s = int(state)


@pytest.fixture
def dry_lake():
    make = lambda: gymnasium.make("FrozenLake-v1", is_slippery=False).unwrapped  # noqa: E731
    gymnasium.register("DryLake-v0", make)
    yield "DryLake-v0"
    del gymnasium.registry["DryLake-v0"]


def test_a_reference_with_tables_and_discrete_observations(dry_lake):
    finding = against(Lake(), dry_lake)
    assert finding.status == "ok", finding.text


def test_what_raises_in_a_comparison_is_a_finding_with_its_traceback(dry_lake):
    class Careless(Lake):
        def write_reference(self, state, reference):
            reference.s = state["place"]

    finding = against(Careless(), dry_lake)
    assert finding.status == "fails"
    assert finding.text.startswith("step 0: ")
    assert 'state["place"]' in finding.traceback


def test_what_can_not_be_trained_in_is_not_compared(original):
    assert against(Shapeless(), original).text == "not compared: first fix what fails"
