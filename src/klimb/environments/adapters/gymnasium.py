"""Gymnasium environments: several copies in one process, reset in the step in which an episode ends."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from jaxtyping import Float, Integer

from klimb.environments import simulator_state
from klimb.environments.host import DerivativeSizes, Fault, HostEnvironment, HostStep, HostVector
from klimb.environments.seeds import restart_seed
from klimb.environments.simulator_derivatives import Differentiator, derivative_sizes
from klimb.errors import EnvironmentFault, one_line

logger = logging.getLogger("klimb")


@dataclass(frozen=True)
class GymnasiumEnvironment(HostEnvironment):
    """A Gymnasium environment, from the registry or from a function that makes one.

    Observations that are not one-dimensional boxes (discrete, images, dictionaries) are flattened with Gymnasium's
    `FlattenObservation`; discrete ones become one-hot rows.
    """

    id: str
    make: Callable[[], gym.Env] = field(repr=False)
    observation_space: gym.spaces.Box
    action_space: gym.spaces.Space
    one_hot: bool = False
    env_spec: dict[str, Any] | None = field(default=None, repr=False)
    max_episode_steps: int | None = field(default=None, repr=False)
    derivatives: DerivativeSizes | None = field(default=None, repr=False)
    packages: tuple[str, ...] = field(default=("gymnasium",), repr=False)

    @classmethod
    def from_maker(cls, name: str, make: Callable[[], gym.Env]) -> GymnasiumEnvironment:
        """An environment from a function that makes one; it is called once to read the spaces.

        name: for messages and run directories. make: a function of no arguments that returns a new `gymnasium.Env`.
        """
        return cls._from_maker(name, make, None)

    @classmethod
    def from_registry(cls, name: str, identifier: str, module: str | None) -> GymnasiumEnvironment:
        """A registered environment.

        name: for messages and run directories. identifier: in Gymnasium's registry. module: the module whose import
        registers it, or None.
        Raises EnvironmentFault when it can't be made, and Gymnasium's own errors.
        """
        try:
            return cls._from_maker(name, lambda: gym.make(identifier), _env_spec(identifier, module))
        except (ImportError, gym.error.Error):
            raise
        except Exception as error:
            raise EnvironmentFault(f"{name} can't be made: {_described(error)}") from error

    @classmethod
    def _from_maker(
        cls, name: str, make: Callable[[], gym.Env], env_spec: dict[str, Any] | None
    ) -> GymnasiumEnvironment:
        env = flattened(make())
        one_hot = isinstance(env.unwrapped.observation_space, gym.spaces.Discrete)
        space, limit = env.observation_space, None if env.spec is None else env.spec.max_episode_steps
        derivatives, packages = derivative_sizes(env), _packages(env)
        env.close()
        assert isinstance(space, gym.spaces.Box)
        return cls(
            name, lambda: flattened(make()), space, env.action_space, one_hot, env_spec, limit, derivatives, packages
        )

    def vector(self, copies: int, *, restart: bool = False) -> GymnasiumVector:
        """Copies in this process.

        copies: their number. restart: whether a copy with a fault is restarted.
        """
        return GymnasiumVector(self.make, copies, restart=restart)


def flattened(env: gym.Env) -> gym.Env:
    """The environment `env`, wrapped so that observations are one-dimensional boxes."""
    space = env.observation_space
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return env
    return gym.wrappers.FlattenObservation(env)


def _packages(env: gym.Env) -> tuple[str, ...]:
    """Gymnasium, the packages of the environment's classes, and the simulator of those that Gymnasium wraps."""
    modules = [kind.__module__ for kind in type(env.unwrapped).__mro__]
    simulators = [name for name in ("mujoco", "box2d") if any(f"gymnasium.envs.{name}." in one for one in modules)]
    return tuple(dict.fromkeys(("gymnasium", *(one.partition(".")[0] for one in modules), *simulators)))


def _env_spec(identifier: str, module: str | None) -> dict[str, Any] | None:
    spec = gym.registry[identifier]
    # An entry point that is an object, or stands in the main script, can't be imported by another process.
    if not isinstance(spec.entry_point, str) or spec.entry_point.startswith("__main__"):
        return None
    try:
        return {"spec": spec.to_json(), "module": module}
    except (TypeError, ValueError):  # arguments that can't be written as JSON
        return None


def make_from_spec(env_spec: dict[str, Any]) -> gym.Env:
    """The environment that `GymnasiumEnvironment.env_spec` describes."""
    if env_spec["module"] is not None:
        importlib.import_module(env_spec["module"])
    return flattened(gym.make(EnvSpec.from_json(env_spec["spec"])))


class GymnasiumVector(HostVector):
    """Copies stepped one after the other. When an episode ends, the next one begins in the same step.

    A copy has a fault when it raises or returns an invalid observation or reward. With `restart` it is then replaced
    by a new environment, and the row is not valid. EnvironmentFault without `restart`, and when a copy has a fault in
    two steps in a row.
    """

    def __init__(self, make: Callable[[], gym.Env], copies: int, *, restart: bool = False) -> None:
        self._make, self._restart = make, restart
        self._envs = [make() for _ in range(copies)]
        self._all_valid = np.ones(copies, bool)
        self._shape = self._envs[0].observation_space.shape
        self._failed_last = np.zeros(copies, bool)
        self._seeds: list[int] = []
        self._faults: list[Fault] = []
        self._differentiator: Differentiator | None = None

    def reset(self, seeds: Integer[np.ndarray, " M"]) -> Float[np.ndarray, " M *obs"]:
        """Start a new episode in every copy. Returns the first observations.

        seeds: one per copy. A copy that is restarted after a fault gets the `restart_seed` of its own.
        """
        self._seeds = seeds.tolist()
        return np.stack([self._begin(copy) for copy in range(len(self._envs))])

    def step(self, action: np.ndarray) -> HostStep:
        """Step every copy with its row of `action`. Raises EnvironmentFault as the class says."""
        faults: dict[int, str] = {}
        steps = []
        for copy, (env, own_action) in enumerate(zip(self._envs, action, strict=True)):
            try:
                steps.append(_checked(*env.step(own_action)))
            # SystemExit: an environment that calls sys.exit() must not end the training.
            except (Exception, SystemExit) as error:
                steps.append(self._blank_step())
                faults[copy] = _described(error)
        next_obs, reward, terminations, truncations = zip(*steps, strict=True)
        successor: np.ndarray
        try:
            successor = self._observations(next_obs)
            rewards = _as_float32(reward, "reward", (len(reward),))
        except _InvalidOutput:
            successor, rewards = self._convert_each(next_obs, reward, faults)
        terminated, truncated = np.array(terminations, bool), np.array(truncations, bool)
        obs, ended = successor, np.flatnonzero(terminated | truncated)
        if len(ended) or faults:
            obs = successor.copy()
            for copy in map(int, ended):
                if copy not in faults:
                    obs[copy] = self._next_episode(copy)
        valid = self._all_valid
        if faults or self._failed_last.any():
            terminated, truncated, valid = self._replace_faulty(faults, obs, terminated, truncated)
        return HostStep(successor, obs, rewards, terminated, truncated & ~terminated, valid)

    def close(self) -> None:
        """Close every copy. One that can't be closed is logged."""
        if self._differentiator is not None:
            self._differentiator.close()
        for copy, env in enumerate(self._envs):
            try:
                env.close()
            except Exception as error:
                logger.warning("copy %d of the environment can't be closed: %s", copy, _described(error))

    def take_faults(self) -> list[Fault]:
        """The faults since the last call."""
        faults, self._faults = self._faults, []
        return faults

    def capture(self) -> list[dict[str, Any]] | None:
        """The simulator state of every copy; None where a copy's class is not supported."""
        if not all(map(simulator_state.supported, self._envs)):
            return None
        return [simulator_state.capture(env) for env in self._envs]

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Put every copy into its captured state. RunError when a state does not fit."""
        for env, state in zip(self._envs, states, strict=True):
            simulator_state.restore(env, state)

    def simulator_states(self) -> Float[np.ndarray, "M S"]:
        """MuJoCo's state of every copy."""
        return np.stack([simulator_state.physics_state(env) for env in self._envs])

    def differentiate(
        self, states: Float[np.ndarray, "R S"], actions: Float[np.ndarray, "R D"]
    ) -> Float[np.ndarray, "R numbers"]:
        """The derivatives of R steps, by differences in a further copy of the environment."""
        if self._differentiator is None:
            self._differentiator = Differentiator(self._make())
        rows = [self._differentiator(state, action) for state, action in zip(states, actions, strict=True)]
        # Without `reshape` no rows, where none were valid, would have no columns either.
        return np.reshape(rows, (len(states), self._differentiator.numbers))

    def _next_episode(self, copy: int) -> np.ndarray:
        try:
            return self._first(copy, None)
        except Exception as error:
            if not self._restart:
                raise EnvironmentFault(
                    f"copy {copy} of the environment can't begin an episode: {_described(error)}"
                ) from error
            self._faults.append(Fault(copy, _described(error)))
            return self._replace(copy)

    def _begin(self, copy: int) -> np.ndarray:
        """The first observation of a copy after it was seeded."""
        try:
            return self._first(copy, self._seeds[copy])
        except Exception as error:
            raise EnvironmentFault(f"copy {copy} of the environment can't be started: {_described(error)}") from error

    def _first(self, copy: int, seed: int | None) -> np.ndarray:
        """The first observation of a new episode of a copy."""
        observation = self._envs[copy].reset(seed=seed)[0]
        return self._observations([observation])[0]

    def _observations(self, observations: Sequence[Any]) -> np.ndarray:
        return _as_float32(observations, "observation", (len(observations), *(self._shape or ())))

    def _blank_step(self) -> tuple[np.ndarray, float, bool, bool]:
        return np.zeros(self._shape or (), np.float32), 0.0, False, False

    def _convert_each(
        self, next_obs: Sequence[Any], reward: Sequence[Any], faults: dict[int, str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Observations and rewards, with zeros for copies whose output is invalid; these are added to `faults`."""
        successor, rewards = (
            np.zeros((len(reward), *(self._shape or ())), np.float32),
            np.zeros(len(reward), np.float32),
        )
        for copy, pair in enumerate(zip(next_obs, reward, strict=True)):
            try:
                successor[copy] = self._observations(pair[:1])[0]
                rewards[copy] = _as_float32(pair[1:], "reward", (1,))[0]
            except _InvalidOutput as error:
                faults.setdefault(copy, str(error))
        return successor, rewards

    def _replace_faulty(
        self, faults: dict[int, str], obs: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Replace the copies with a fault. Returns (terminated, truncated, valid), and sets their rows of `obs`."""
        valid = self._all_valid.copy()
        terminated, truncated = terminated.copy(), truncated.copy()
        for copy, cause in faults.items():
            if not self._restart or self._failed_last[copy]:
                again = " right after it was restarted" if self._restart else ""
                raise EnvironmentFault(f"copy {copy} of the environment fails{again}: {cause}")
            self._faults.append(Fault(copy, cause))
            terminated[copy] = truncated[copy] = valid[copy] = False
            obs[copy] = self._replace(copy)
        self._failed_last = ~valid
        return terminated, truncated, valid

    def _replace(self, copy: int) -> np.ndarray:
        """Put a new environment in the place of a copy, with its next seed. Returns its first observation."""
        with contextlib.suppress(Exception):
            self._envs[copy].close()
        self._seeds[copy] = restart_seed(self._seeds[copy])
        try:
            self._envs[copy] = self._make()
        except Exception as error:
            raise EnvironmentFault(f"copy {copy} of the environment can't be replaced: {_described(error)}") from error
        return self._begin(copy)


class _InvalidOutput(Exception):
    """An environment returned an observation or a reward that does not fit its spaces."""


def _checked(obs: Any, reward: Any, terminated: Any, truncated: Any, info: Any) -> tuple[Any, Any, bool, bool]:
    """What `step` of an environment returned, without the info. _InvalidOutput where there is no reward."""
    if reward is None:  # NumPy would convert it to NaN
        raise _InvalidOutput("its reward is None")
    return obs, reward, bool(terminated), bool(truncated)


def _as_float32(values: Sequence[Any], what: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array of this shape; _InvalidOutput where the values can't be one."""
    try:
        array = np.array(values, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise _InvalidOutput(f"its {what} is not a number or an array of numbers ({_described(error)})") from None
    if array.shape != shape:
        raise _InvalidOutput(f"its {what} has the shape {array.shape[1:]} instead of {shape[1:]}")
    return array


def _described(error: BaseException) -> str:
    """An exception in one line."""
    return one_line(error if isinstance(error, _InvalidOutput) else f"{type(error).__name__}: {error}", 200)
