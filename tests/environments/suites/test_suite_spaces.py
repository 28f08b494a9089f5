"""Spaces of JAX libraries, of which no two have the same classes, and environments by name with options."""

from __future__ import annotations

from types import SimpleNamespace as Space

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import klimb
from klimb.environments.arguments import read_arguments
from klimb.environments.registry import recorded_name
from klimb.environments.suites import library
from klimb.environments.suites.spaces import gymnasium_space, observation_space
from klimb.environments.suites.suite import Step, SuiteEnvironment

IN_ORDER = spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Discrete(3))])
SPECS = {
    "num_values": (Space(num_values=4, shape=(), dtype=np.int32), spaces.Discrete(4)),
    "n": (Space(n=jnp.int32(3)), spaces.Discrete(3)),
    "counts": (Space(num_values=jnp.array([2, 5]), shape=(2,)), spaces.MultiDiscrete([2, 5])),
    "low": (Space(low=-1.0, high=1.0, shape=(2, 3), dtype=np.float32), spaces.Box(-1, 1, (2, 3))),
    "minimum": (Space(minimum=jnp.zeros(2), maximum=jnp.ones(2), shape=(2,), dtype=float), spaces.Box(0, 1, (2,))),
    "bytes": (Space(low=0, high=255, shape=(9, 9), dtype=jnp.uint8), spaces.Box(0, 255, (9, 9), np.uint8)),
    "flags": (Space(shape=(3,), dtype=bool, minimum=False, maximum=True), spaces.Box(0, 1, (3,))),
    "shape": (Space(shape=(3,), dtype=np.int32), spaces.Box(-np.inf, np.inf, (3,))),
    "parts": (Space(spaces={"b": Space(n=2), "a": Space(n=3)}), IN_ORDER),
    "tuple": (Space(spaces=(Space(n=2),)), spaces.Dict({"0": spaces.Discrete(2)})),
    "attributes": (
        Space(name="x", board=Space(shape=(2,), generate_value=None)),
        spaces.Dict({"board": spaces.Box(-np.inf, np.inf, (2,))}),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), SPECS.values(), ids=SPECS)
def test_spaces_by_what_they_have(given, expected):
    found = gymnasium_space(given, "a test's")
    assert found == expected
    if isinstance(expected, spaces.Dict):
        assert list(found.spaces) == list(expected.spaces)


def test_what_is_no_space_is_refused():
    for given in ("anything", Space(), Space(spaces={"a": "anything"})):
        with pytest.raises(klimb.UnsupportedSpace, match="a test's observation space is"):
            gymnasium_space(given, "a test's observation")


def test_clocks_and_scores_are_numbers_and_not_one_hot():
    given = Space(spaces={"clock": Space(n=4000), "kind": Space(n=3), "scores": Space(num_values=np.array([99, 2]))})
    found = observation_space(given, "a test's")
    assert found["clock"] == spaces.Box(0, 3999, ())
    assert found["kind"] == spaces.Discrete(3)
    assert found["scores"] == spaces.Box(np.zeros(2, np.float32), np.float32([98, 1]))


class Cards(SuiteEnvironment):
    """A library's environment of cards: a dictionary with a mask, whose state holds what a library's may hold."""

    def __init__(self):
        space = spaces.Dict({"card": spaces.Discrete(3), "chips": spaces.Box(0, np.inf, (2,))})
        super().__init__("cards:Test-v0", None, space, spaces.Discrete(3), masked=True, max_episode_steps=5)

    def begin(self, key):
        return self._seen({"time": 0, "chips": jnp.full(2, 0.5), "info": {}})

    def advance(self, key, state, action):
        state["chips"] = state["chips"] + action  # into the dictionary that was given
        state["time"] = jnp.int16(state["time"] + 1)
        return self._seen(state)._replace(reward=1, terminated=action == 2, truncated=state["time"] >= 5)

    def _seen(self, state):
        return Step(state, {"card": state["time"] % 3, "chips": state["chips"]}, jnp.arange(3) != state["time"] % 3)


def test_a_library_is_added_by_two_methods():
    env = Cards()
    assert klimb.check_env(env, steps=40).trainable
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (8,))
    state, obs = jax.jit(env.reset)(jax.random.key(0))
    np.testing.assert_array_equal(obs, [1, 0, 0, 0.5, 0.5, 0, 1, 1])
    assert state["time"].dtype == jnp.int16  # as after a step
    after = jax.jit(env.step)(jax.random.key(0), state, jnp.int32(2))
    np.testing.assert_array_equal(after.obs, [0, 1, 0, 2.5, 2.5, 1, 0, 1])
    np.testing.assert_array_equal(state["chips"], 0.5)
    assert (after.reward, bool(after.terminated), bool(after.truncated)) == (1.0, True, False)
    given = {"card": 1, "chips": [2.5, 2.5], "action_mask": [1, 0, 1]}
    np.testing.assert_array_equal(env.observations.flatten(given), after.obs)


def test_it_is_trained_and_never_does_what_is_not_allowed():
    run = klimb.train(
        Cards(), klimb.TRPO(), env_steps=256, num_envs=4, num_steps=32, hidden=(8,), critic_epochs=1, eval_episodes=2
    )
    assert run.history[-1]["status"] == "ACCEPTED"
    obs = {"card": 0, "chips": [0.5, 0.5], "action_mask": [0, 1, 1]}
    rng = np.random.default_rng(0)
    assert {int(run.policy.act(obs, deterministic=False, rng=rng)) for _ in range(30)} <= {1, 2}


@pytest.mark.parametrize(
    ("text", "found"),
    [("", ()), ("a=1, b='x y'", (("a", 1), ("b", "x y"))), ("a=(1, 2)", (("a", (1, 2)),)), ("a=-1.5", (("a", -1.5),))],
)
def test_arguments_are_literals(text, found):
    assert read_arguments(text) == read_arguments(text, words=True) == found


def test_words_need_no_quotes_where_that_is_said_and_nothing_is_evaluated():
    assert read_arguments("a=jax, b=True", words=True) == (("a", "jax"), ("b", True))
    for text in ("a=jax", "1", "a", "**a", "a=f()", "a=(", "a=1)(b=2", "a=__import__('os')"):
        assert read_arguments(text) is None
    for text in ("a=f()", "a=x.y", "a=x+1", "*a", "a=1)(b=2"):
        assert read_arguments(text, words=True) is None


def test_names_of_suites_have_options(monkeypatch):
    made = []

    def make_navix(name, *, size=5, colour="red"):
        made.append((name, size, colour))
        cards = Cards()
        cards.id = f"navix:{name}" + ("" if (size, colour) == (5, "red") else f"(colour={colour}, size={size})")
        return cards

    monkeypatch.setattr("klimb.environments.suites.navix.make_navix", make_navix)
    library._made.cache_clear()
    monkeypatch.setattr(library, "_BY_ID", {})
    first = klimb.make("navix:Room(size=8, colour=blue)")
    assert klimb.make("navix:Room(size=8, colour=blue)") is first
    assert klimb.make("navix:Room") is not first
    assert made == [("Room", 8, "blue"), ("Room", 5, "red")]
    # However it is written, it is one environment, which its id makes again.
    assert klimb.make("navix:Room(colour='blue', size=8)") is first
    assert klimb.make("navix:Room(size=5)") is klimb.make("navix:Room")
    assert recorded_name(klimb.make("navix:Room(size=5)")) == "navix:Room"
    assert recorded_name(first) == "navix:Room(colour=blue, size=8)"
    with pytest.raises(klimb.ConfigError, match=r"no option sizes; did you mean 'size'\? \(they are size, colour\)"):
        klimb.make("navix:Room(sizes=8)")
    for wrong, message in {
        "name=x": "no option name",
        "size=big": "is no whole number",
        "colour=1": "is no word",
    }.items():
        with pytest.raises(klimb.ConfigError, match=message):
            klimb.make(f"navix:Room({wrong})")
    unread = ("(8)", "(size=8", "(size=f())", "(size=8)x", "(size=[8])", "(size={[1]: 2})", "(size=1, size=2)")
    for wrong in (f"navix:Room{options}" for options in unread):
        with pytest.raises(klimb.EnvironmentNotFound, match=r"write navix:NAME, or navix:NAME\(option=value\)"):
            klimb.make(wrong)
    library._made.cache_clear()


@pytest.mark.parametrize("prefix", library.SUITES)
def test_a_library_that_is_not_installed_is_named_with_its_extra(prefix, monkeypatch):
    real = library.importlib.import_module

    def without(name, package=None):
        if not name.startswith("klimb"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, package)

    monkeypatch.setattr(library.importlib, "import_module", without)
    library._made.cache_clear()
    name = "Craftax-Symbolic-v1" if prefix == "craftax" else "Something"
    expected = rf"{prefix}:{name} needs the package .*pip install 'klimb\[{prefix}\]'"
    with pytest.raises(klimb.MissingExtra, match=expected):
        klimb.make(f"{prefix}:{name}")
    library._made.cache_clear()
