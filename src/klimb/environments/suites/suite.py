"""What the environments of all JAX libraries have in common: spaces, rows of observations, action masks, types."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num, PRNGKeyArray, PyTree

from klimb.environments.base import CompiledEnvironment, Transition
from klimb.environments.suites.spaces import box
from klimb.errors import ConfigError, EnvironmentNotFound, MissingExtra, nearest, one_line
from klimb.policies.action_spec import ActionSpec
from klimb.policies.actions import action_spec
from klimb.policies.observation_parts import MaskedObservations
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.observations import observation_spec


class Step(NamedTuple):
    """What a library returns of one step, or of a reset, in its own words: `obs` is as its space has it.

    mask: the flags of the action mask, None where there is none. reward, terminated, truncated: of a step.
    """

    state: PyTree
    obs: PyTree
    mask: Array | None = None
    reward: Any = 0.0
    terminated: Any = False
    truncated: Any = False


class SuiteEnvironment(CompiledEnvironment):
    """An environment of a library that is written in JAX, stepped by the library's pure functions.

    A library is added by a class with `begin` and `advance`. Never by its wrappers: those reset on their own, and lose
    the true last observation.

    id: the name that `klimb.make` takes. env: the library's object. space: of observations, without an action mask.
    action_space: of actions. masked: whether there is an action mask. max_episode_steps: steps after which an episode
    is truncated; None where there is no limit.
    """

    bank_resets = True

    def __init__(
        self,
        id: str,
        env: Any,
        space: gymnasium.spaces.Space,
        action_space: gymnasium.spaces.Space,
        *,
        masked: bool = False,
        max_episode_steps: int | None = None,
    ) -> None:
        self.id, self.env, self.masked = id, env, masked
        self._limit, self._action_space, self._actions = max_episode_steps, action_space, action_spec(action_space)
        self._space, self._observed = space, observation_spec(space, flat=True)
        self._types: dict[bool, PyTree] = {}

    @abc.abstractmethod
    def begin(self, key: PRNGKeyArray) -> Step:
        """The start of an episode. key: that it is drawn with."""

    @abc.abstractmethod
    def advance(self, key: PRNGKeyArray, state: PyTree, action: PyTree) -> Step:
        """One step, without a reset.

        key: for its randomness. state: the library's. action: in the action space.
        """

    @property
    def max_episode_steps(self) -> int | None:
        """Steps after which an episode is truncated; None where there is no limit."""
        return self._limit

    @property
    def observations(self) -> ObservationSpec:
        """The library's observations as one array each, with the action mask at the end if there is one."""
        return MaskedObservations(self._observed, self._actions.num_choices) if self.masked else self._observed

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """The box of these arrays."""
        spec, space = self.observations, self._space
        if isinstance(space, gymnasium.spaces.Box) and space.shape == spec.shape:
            return box(spec.shape, space.low, space.high, spec.dtype)
        is_one_hot = not (spec.is_scaled or self.masked)
        return box(spec.shape, *((0, 1) if is_one_hot else (-np.inf, np.inf)))

    @property
    def action_space(self) -> gymnasium.spaces.Space:
        """The space of actions."""
        return self._action_space

    @property
    def actions(self) -> ActionSpec:
        """What the action space means to klimb."""
        return self._actions

    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Num[Array, " *obs_shape"]]:
        """The library's state, and the observation, at the start of an episode."""
        begun = self.begin(key)
        # A scan's state has the same types after a step as before it; some libraries start with others.
        state = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), begun.state, self._types_of(begun.state))
        return state, self._row(begun)

    def step(self, key: PRNGKeyArray, state: PyTree, action: PyTree) -> Transition:
        """One step, without a reset.

        key: for its randomness. state: the library's. action: in the action space.
        """
        after = self.advance(key, own_containers(state), action)
        return Transition(
            state=jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), after.state),
            obs=self._row(after),
            reward=jnp.asarray(after.reward, jnp.float32),
            terminated=jnp.asarray(after.terminated, bool),
            truncated=jnp.asarray(after.truncated, bool),
        )

    def _row(self, step: Step) -> Num[Array, " *obs_shape"]:
        return self.observations.row((step.obs, step.mask) if self.masked else step.obs, jnp)

    def _types_of(self, state: PyTree) -> PyTree:
        """The types that the parts of a state have after a step: traced once, since a physics engine's step is long."""
        precision = jnp.result_type(float) == np.float64
        if precision not in self._types:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), state)
            action = jax.ShapeDtypeStruct(self._actions.shape, self._actions.dtype)
            after = jax.eval_shape(self._state_after, shapes, action)
            self._types[precision] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), after)
        return self._types[precision]

    def _state_after(self, state: PyTree, action: Array) -> PyTree:
        return self.advance(jax.random.key(0), own_containers(state), self._actions.unflatten(action)).state


def own_containers(state: PyTree) -> PyTree:
    """The state with dictionaries of its own: some libraries write into those of the state that they step."""
    return jax.tree.map(lambda x: x, state)


def legacy_key(key: PRNGKeyArray) -> Array:
    """The key as an array of integers: many libraries keep it in their state, where files expect numbers."""
    return jax.random.key_data(key)


def import_library(module: str, name: str, extra: str) -> ModuleType:
    """A library's module; MissingExtra, with the extra to install, when it is not there.

    module: to import. name: of the environment. extra: of klimb.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{name} needs the package {module.partition('.')[0]}, which cannot be imported ({one_line(error)}): "
            f"pip install 'klimb[{extra}]'"
        ) from error


def refused_download(name: str, what: str, cls: str) -> ConfigError:
    """The error for an environment that its library would download something for, which klimb never starts.

    name: of the environment. what: is downloaded. cls: klimb's class, for environments that were made without klimb.
    """
    return ConfigError(
        f"{name} downloads {what} when it is made for the first time, and klimb downloads nothing: make it in Python "
        f"with its own library, and give it to klimb.environments.suites.{cls} (docs/compiled-worlds.md)"
    )


def require_known(name: str, known: Iterable[str], library: str) -> None:
    """EnvironmentNotFound, with the nearest names, unless the library has an environment of this name.

    name: without its prefix. known: the library's names. library: what it is called.
    """
    known = list(known)
    if name not in known:
        raise EnvironmentNotFound(f"{library} has no environment {name[:80]!r}{nearest(name[:80], known)}")
