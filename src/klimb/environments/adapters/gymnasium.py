"""Any Gymnasium environment, many copies in one process, with same-step autoreset."""

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
from jaxtyping import Float

from klimb.environments import simulator_state
from klimb.environments.host import Fault, HostEnvironment, HostStep, HostVector
from klimb.errors import EnvironmentFault, one_line

logger = logging.getLogger("klimb")


@dataclass(frozen=True)
class GymnasiumEnvironment(HostEnvironment):
    """A Gymnasium environment by its id (or `module:Id-v0`), or by a function that makes one.

    Observations that are not one-dimensional boxes (discrete, images, dictionaries) are flattened with
    Gymnasium's own wrapper; discrete ones become one-hot rows.
    """

    id: str
    make: Callable[[], gym.Env] = field(repr=False)
    observation_space: gym.spaces.Box
    action_space: gym.spaces.Space
    one_hot: bool = False
    env_spec: dict[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def from_maker(cls, name: str, make: Callable[[], gym.Env]) -> GymnasiumEnvironment:
        """Makes one copy to read its spaces from."""
        return cls._from_maker(name, make, None)

    @classmethod
    def from_registry(cls, name: str, identifier: str, module: str | None) -> GymnasiumEnvironment:
        """A registered environment; `module` is what has to be imported for `identifier` to be registered.

        Raises EnvironmentFault when it can't be made, and Gymnasium's own errors.
        """
        try:
            return cls._from_maker(name, lambda: gym.make(identifier), _env_spec(identifier, module))
        except (ImportError, gym.error.Error):
            raise
        except Exception as error:
            raise EnvironmentFault(f"{name} can't be made: {_said(error)}") from error

    @classmethod
    def _from_maker(
        cls, name: str, make: Callable[[], gym.Env], env_spec: dict[str, Any] | None
    ) -> GymnasiumEnvironment:
        def flat() -> gym.Env:
            return flattened(make())

        env = flat()
        one_hot = isinstance(env.unwrapped.observation_space, gym.spaces.Discrete)
        space = env.observation_space
        env.close()
        assert isinstance(space, gym.spaces.Box)
        return cls(name, flat, space, env.action_space, one_hot, env_spec)

    def vector(self, copies: int, *, restart: bool = False) -> GymnasiumVector:
        return GymnasiumVector(self.make, copies, restart=restart)


def flattened(env: gym.Env) -> gym.Env:
    """The same environment with observations in one-dimensional boxes."""
    space = env.observation_space
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return env
    return gym.wrappers.FlattenObservation(env)


def _env_spec(identifier: str, module: str | None) -> dict[str, Any] | None:
    spec = gym.registry[identifier]
    # What was registered by hand as an object, or from the main script, can't be named to another process.
    if not isinstance(spec.entry_point, str) or spec.entry_point.startswith("__main__"):
        return None
    try:
        return {"spec": spec.to_json(), "module": module}
    except (TypeError, ValueError):  # arguments that are no data
        return None


def make_from_spec(env_spec: dict[str, Any]) -> gym.Env:
    """The environment that a `env_spec` describes."""
    if env_spec["module"] is not None:
        importlib.import_module(env_spec["module"])
    return flattened(gym.make(EnvSpec.from_json(env_spec["spec"])))


class GymnasiumVector(HostVector):
    """Copies stepped one after the other. An episode's last observation is kept; the next begins in the same step.

    With `restart` a copy that raises, or gives what is no observation or reward, is made and started anew, and that
    row is not valid; else, and when it fails again without one good step in between, that is an EnvironmentFault.
    """

    def __init__(self, make: Callable[[], gym.Env], copies: int, *, restart: bool = False) -> None:
        self._make, self._restart = make, restart
        self._envs = [make() for _ in range(copies)]
        self._all_valid = np.ones(copies, bool)
        self._shape = self._envs[0].observation_space.shape
        self._seed, self._restarts = 0, 0
        self._failed_last = np.zeros(copies, bool)
        self._faults: list[Fault] = []

    def reset(self, seed: int) -> Float[np.ndarray, " M *obs"]:
        return self.reset_each(copy_seeds(seed, len(self._envs)))

    def reset_each(self, seeds: np.ndarray) -> Float[np.ndarray, " M *obs"]:
        """Start every copy anew with a seed of its own."""
        self._seed = int(seeds[0])
        return np.stack([self._begin(copy, int(seed)) for copy, seed in enumerate(seeds)])

    def step(self, action: np.ndarray) -> HostStep:
        faults: dict[int, str] = {}
        steps = []
        for copy, (env, one) in enumerate(zip(self._envs, action, strict=True)):
            try:
                steps.append(_answer(*env.step(one)))
            # An environment that ends the process means the episode, at most.
            except (Exception, SystemExit) as error:
                steps.append(self._nothing())
                faults[copy] = _said(error)
        next_obs, reward, terminated, truncated = zip(*steps, strict=True)
        successor: np.ndarray
        try:
            successor = self._observations(next_obs)
            rewards = _numbers(reward, "reward", (len(reward),))
        except _Unfit:
            successor, rewards = self._one_by_one(next_obs, reward, faults)
        over, cut = np.array(terminated, bool), np.array(truncated, bool)
        obs, ended = successor, np.flatnonzero(over | cut)
        if len(ended):
            obs = successor.copy()
            for copy in map(int, ended):
                if copy not in faults:
                    obs[copy] = self._next_episode(copy)
        valid = self._all_valid
        if faults or self._failed_last.any():
            over, cut, valid = self._mend(faults, obs, over, cut)
        return HostStep(successor, obs, rewards, over, cut & ~over, valid)

    def close(self) -> None:
        for copy, env in enumerate(self._envs):
            try:
                env.close()
            except Exception as error:
                logger.warning("copy %d of the environment can't be closed: %s", copy, _said(error))

    def take_faults(self) -> list[Fault]:
        faults, self._faults = self._faults, []
        return faults

    def capture(self) -> list[dict[str, Any]] | None:
        if not all(map(simulator_state.supported, self._envs)):
            return None
        return [simulator_state.capture(env) for env in self._envs]

    def restore(self, states: list[dict[str, Any]]) -> None:
        for env, state in zip(self._envs, states, strict=True):
            simulator_state.restore(env, state)

    def _next_episode(self, copy: int) -> np.ndarray:
        try:
            return self._first(copy, None)
        except Exception as error:
            if not self._restart:
                raise EnvironmentFault(
                    f"copy {copy} of the environment can't begin an episode: {_said(error)}"
                ) from error
            self._faults.append(Fault(copy, _said(error)))
            return self._start_anew(copy)

    def _begin(self, copy: int, seed: int) -> np.ndarray:
        try:
            return self._first(copy, seed)
        except Exception as error:
            raise EnvironmentFault(f"copy {copy} of the environment can't be started: {_said(error)}") from error

    def _first(self, copy: int, seed: int | None) -> np.ndarray:
        """The first observation of a new episode of a copy."""
        first = self._envs[copy].reset(seed=seed)[0]
        return self._observations([first])[0]

    def _observations(self, observations: Sequence[Any]) -> np.ndarray:
        return _numbers(observations, "observation", (len(observations), *(self._shape or ())))

    def _nothing(self) -> tuple[np.ndarray, float, bool, bool]:
        return np.zeros(self._shape or (), np.float32), 0.0, False, False

    def _one_by_one(
        self, next_obs: Sequence[Any], reward: Sequence[Any], faults: dict[int, str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Observations and rewards where some copy's are none: that copy's are zeros, and its fault is noted."""
        successor, rewards = (
            np.zeros((len(reward), *(self._shape or ())), np.float32),
            np.zeros(len(reward), np.float32),
        )
        for copy, pair in enumerate(zip(next_obs, reward, strict=True)):
            try:
                successor[copy] = self._observations(pair[:1])[0]
                rewards[copy] = _numbers(pair[1:], "reward", (1,))[0]
            except _Unfit as unfit:
                faults.setdefault(copy, str(unfit))
        return successor, rewards

    def _mend(
        self, faults: dict[int, str], obs: np.ndarray, over: np.ndarray, cut: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start the copies with a fault anew: (terminated, truncated, valid), and their first observations in `obs`."""
        valid = self._all_valid.copy()
        over, cut = over.copy(), cut.copy()
        for copy, cause in faults.items():
            if not self._restart or self._failed_last[copy]:
                again = " right after it was started anew" if self._restart else ""
                raise EnvironmentFault(f"copy {copy} of the environment fails{again}: {cause}")
            self._faults.append(Fault(copy, cause))
            over[copy] = cut[copy] = valid[copy] = False
            obs[copy] = self._start_anew(copy)
        self._failed_last = ~valid
        return over, cut, valid

    def _start_anew(self, copy: int) -> np.ndarray:
        """Another environment in a copy's place, with a seed that depends on how many there have been."""
        with contextlib.suppress(Exception):
            self._envs[copy].close()
        self._restarts += 1
        seed = np.random.SeedSequence([self._seed, self._restarts]).generate_state(1)[0]
        try:
            self._envs[copy] = self._make()
        except Exception as error:
            raise EnvironmentFault(f"copy {copy} of the environment can't be made anew: {_said(error)}") from error
        return self._begin(copy, int(seed))


class _Unfit(Exception):
    """What an environment gave is not what its spaces say."""


def _answer(obs: Any, reward: Any, terminated: Any, truncated: Any, info: Any) -> tuple[Any, Any, bool, bool]:
    """What counts of an environment's answer to an action; an error where it is none."""
    if reward is None:  # NumPy would take it for NaN
        raise _Unfit("its reward is None")
    return obs, reward, bool(terminated), bool(truncated)


def _numbers(values: Sequence[Any], what: str, shape: tuple[int, ...]) -> np.ndarray:
    """As float32 of a shape; _Unfit where they are none."""
    try:
        array = np.array(values, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise _Unfit(f"its {what} is no number or array of numbers ({_said(error)})") from None
    if array.shape != shape:
        raise _Unfit(f"its {what} has the shape {array.shape[1:]} instead of {shape[1:]}")
    return array


def _said(error: BaseException) -> str:
    """An exception in one line."""
    return one_line(error if isinstance(error, _Unfit) else f"{type(error).__name__}: {error}", 200)


def copy_seeds(seed: int, copies: int) -> np.ndarray:
    """One seed a copy, spread out from one number so that neighbouring numbers share no episode."""
    return np.random.SeedSequence(seed).generate_state(copies)
