"""Gymnasium environments: several copies in one process, reset in the step in which an episode ends."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from jaxtyping import Float, Integer, Num

from klimb.environments import mujoco_warnings, returns, simulator_state
from klimb.environments.adapters.action_masks import ActionMask, MaskSource, mask_source, unmasked
from klimb.environments.adapters.flattening import flatten_observations
from klimb.environments.adapters.wrappers import wrapped
from klimb.environments.faults import Trouble
from klimb.environments.host import DerivativeSizes, Fault, HostEnvironment, HostStep, HostVector
from klimb.environments.seeds import restart_seed
from klimb.environments.simulator_derivatives import Differentiator, derivative_sizes
from klimb.errors import ConfigError, KlimbError, UnsupportedSpace
from klimb.policies.actions import action_spec
from klimb.policies.observation_parts import MaskedObservations
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.observations import observation_spec
from klimb.policies.picture_observations import PictureObservations

logger = logging.getLogger("klimb")

IMAGE_SIZE = 2048
"""Numbers in a box of two or more dimensions from which on it is taken for an image."""


@dataclass(frozen=True)
class GymnasiumEnvironment(HostEnvironment):
    """A Gymnasium environment, from the registry or from a function that makes one.

    Observations that are neither one-dimensional boxes nor pictures (discrete, dictionaries) are flattened with
    Gymnasium's `FlattenObservation`; discrete ones become one-hot rows.

    make: a function that makes a copy, adapted. observation_space, action_space: of such a copy. observed: what
    observations mean. env_spec: how other processes make copies, None where they can't. max_episode_steps: steps after
    which an episode is truncated, None where there is no limit. takes_render_mode: whether copies can be made that draw
    themselves.
    """

    id: str
    make: Callable[..., gym.Env] = field(repr=False)
    observation_space: gym.spaces.Box
    action_space: gym.spaces.Space
    observed: ObservationSpec = field(repr=False)
    masked: bool = False
    env_spec: dict[str, Any] | None = field(default=None, repr=False)
    max_episode_steps: int | None = field(default=None, repr=False)
    derivatives: DerivativeSizes | None = field(default=None, repr=False)
    packages: tuple[str, ...] = field(default=("gymnasium",), repr=False)
    image_shape: tuple[int, ...] | None = field(default=None, repr=False)
    takes_render_mode: bool = field(default=False, repr=False)

    @classmethod
    def from_maker(cls, name: str, make: Callable[..., gym.Env]) -> GymnasiumEnvironment:
        """An environment from a function that makes one; it is called once to read the spaces.

        name: for messages and run directories. make: a function of no arguments that returns a new `gymnasium.Env`.
        For films it is called with `render_mode="rgb_array"`, if it takes a `render_mode`.
        """
        return cls._from_maker(name, make, None)

    @classmethod
    def from_registry(
        cls, name: str, identifier: str, module: str | None, wrappers: tuple[str, ...] = ()
    ) -> GymnasiumEnvironment:
        """A registered environment.

        name: for messages and run directories. identifier: in Gymnasium's registry. module: the module whose import
        registers it, or None. wrappers: texts of `NamedWrapper`, innermost first.
        Raises EnvironmentFault when it can't be made, and Gymnasium's own errors.
        """
        try:
            env_spec = _env_spec(identifier, module, wrappers)
            return cls._from_maker(name, lambda **given: wrapped(gym.make(identifier, **given), wrappers), env_spec)
        except (gym.error.DependencyNotInstalled, KlimbError):
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, ImportError) and _is_gymnasiums_own(identifier):
                raise
            trouble = Trouble.of(error, "make")
            raise trouble.fault(f"{name} can't be made") from trouble.error

    @classmethod
    def _from_maker(
        cls, name: str, make: Callable[..., gym.Env], env_spec: dict[str, Any] | None
    ) -> GymnasiumEnvironment:
        made = make()
        if not isinstance(made, gym.Env):
            raise ConfigError(
                f"{name}: the function that makes it returned {returns.described(made)}, which is not a gymnasium.Env"
            )
        image, mask = image_shape(made.observation_space), mask_source(made)
        env = adapted(made, mask)
        one_hot = isinstance(env.unwrapped.observation_space, gym.spaces.Discrete)
        observed = observation_spec(unmasked(made.observation_space, mask), one_hot=one_hot, flat=True)
        space, limit = env.observation_space, None if env.spec is None else env.spec.max_episode_steps
        derivatives, packages = derivative_sizes(env), _packages(env)
        env.close()
        assert isinstance(space, gym.spaces.Box)
        return cls(
            id=name,
            make=lambda **given: adapted(make(**given), mask),
            takes_render_mode=_takes_render_mode(make),
            observation_space=space,
            action_space=env.action_space,
            observed=observed,
            masked=mask is not None,
            env_spec=None if env_spec is None else {**env_spec, "action_mask": mask},
            max_episode_steps=limit,
            derivatives=derivatives,
            packages=packages,
            image_shape=image,
        )

    @property
    def observations(self) -> ObservationSpec:
        """Flat observations, with their action mask if there is one."""
        return MaskedObservations(self.observed, self.actions.num_choices) if self.masked else self.observed

    def vector(self, copies: int, *, restart: bool = False) -> GymnasiumVector:
        """Copies in this process.

        copies: their number. restart: whether a copy with a fault is restarted.
        """
        return GymnasiumVector(self.make, copies, restart=restart)

    def drawn(self) -> gym.Env:
        """A copy with `render_mode="rgb_array"`. ConfigError where it has no such mode."""
        try:
            env = self.make(**({"render_mode": "rgb_array"} if self.takes_render_mode else {}))
        except (gym.error.DependencyNotInstalled, KlimbError):
            raise
        except (Exception, SystemExit) as error:
            cause = Trouble.of(error, "make").cause
            raise ConfigError(f'{self.id} can\'t be made with render_mode="rgb_array": {cause}') from error
        if env.render_mode != "rgb_array":
            mode = env.render_mode
            env.close()
            remedy = "" if self.takes_render_mode else "; let the function that makes it take a render_mode"
            raise ConfigError(f"{self.id} can't draw itself: its render_mode is {mode!r}, not 'rgb_array'{remedy}")
        return env


def flattened(env: gym.Env) -> gym.Env:
    """The environment `env`, wrapped so that observations are one-dimensional boxes, or pictures as they are.

    Raises UnsupportedSpace for observations without a fixed size.
    """
    space = env.observation_space
    if isinstance(space, gym.spaces.Box) and (len(space.shape) == 1 or PictureObservations.from_space(space)):
        return env
    if not isinstance(space, gym.spaces.Space):
        raise UnsupportedSpace(
            f"the environment's observation_space is {returns.described(space)}: it must be a gymnasium.spaces.Space, "
            "such as Box(-np.inf, np.inf, (4,)), set in its __init__ or on its class"
        )
    return flatten_observations(env)


def adapted(env: gym.Env, mask: MaskSource | None) -> gym.Env:
    """The environment with observations that are vectors, and its action mask at their end if it has one.

    env: as it was made. mask: where it gives its mask (`mask_source`).
    """
    return flattened(env) if mask is None else ActionMask(env, mask)


def image_shape(space: gym.Space) -> tuple[int, ...] | None:
    """The shape of the largest part of a space that looks like an image and is none to klimb, which makes a vector of
    it.

    space: of observations as the environment gives them. Pictures are bytes, or floats from 0 to 1; other boxes of at
    least two dimensions with many numbers only look like them.
    """
    match space:
        case gym.spaces.Box():
            is_large = len(space.shape) > 1 and math.prod(space.shape) >= IMAGE_SIZE
            return space.shape if is_large and PictureObservations.from_space(space) is None else None
        case gym.spaces.Dict() | gym.spaces.Tuple():
            parts = space.spaces.values() if isinstance(space, gym.spaces.Dict) else space.spaces
            shapes = [shape for part in parts if (shape := image_shape(part)) is not None]
            return max(shapes, key=math.prod, default=None)
    return None


def _takes_render_mode(make: Callable[..., gym.Env]) -> bool:
    """Whether a function can be called with a `render_mode`."""
    try:
        parameters = inspect.signature(make).parameters
    except ValueError:  # some functions of C have none
        return False
    return "render_mode" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _is_gymnasiums_own(identifier: str) -> bool:
    entry_point = gym.registry[identifier].entry_point
    return isinstance(entry_point, str) and entry_point.startswith("gymnasium.")


def _packages(env: gym.Env) -> tuple[str, ...]:
    """Gymnasium, the packages of the environment's classes, and the simulator of those that Gymnasium wraps."""
    modules = [kind.__module__ for kind in type(env.unwrapped).__mro__]
    simulators = [name for name in ("mujoco", "box2d") if any(f"gymnasium.envs.{name}." in one for one in modules)]
    return tuple(dict.fromkeys(("gymnasium", *(one.partition(".")[0] for one in modules), *simulators)))


def _env_spec(identifier: str, module: str | None, wrappers: tuple[str, ...]) -> dict[str, Any] | None:
    spec = gym.registry[identifier]
    # An entry point that is an object, or stands in the main script, can't be imported by another process.
    if not isinstance(spec.entry_point, str) or spec.entry_point.startswith("__main__"):
        return None
    try:
        return {"spec": spec.to_json(), "module": module, "wrappers": list(wrappers)}
    except (TypeError, ValueError):  # arguments that can't be written as JSON
        return None


def make_from_spec(env_spec: dict[str, Any]) -> gym.Env:
    """The environment that `GymnasiumEnvironment.env_spec` describes."""
    if env_spec["module"] is not None:
        importlib.import_module(env_spec["module"])
    spec = EnvSpec.from_json(env_spec["spec"])
    mujoco_warnings.log_warnings(spec.entry_point)
    env = wrapped(gym.make(spec), env_spec["wrappers"])
    return adapted(env, env_spec["action_mask"])


class GymnasiumVector(HostVector):
    """Copies stepped one after the other. When an episode ends, the next one begins in the same step.

    A copy has a fault when it raises or returns an invalid observation or reward. With `restart` it is then replaced
    by a new environment, and the row is not valid. EnvironmentFault without `restart`, and when a copy has a fault in
    two steps in a row.
    """

    def __init__(self, make: Callable[[], gym.Env], copies: int, *, restart: bool = False) -> None:
        self._make, self._restart = make, restart
        self._envs: list[gym.Env] = []
        for copy in range(copies):
            self._envs.append(self._made(copy))
        self._actions = action_spec(self._envs[0].action_space)
        self._all_valid = np.ones(copies, bool)
        space = self._envs[0].observation_space
        self._shape = space.shape or ()
        self._dtype: np.dtype = np.dtype(space.dtype)
        picture = PictureObservations.from_space(space)
        self._kept: type[np.generic] = np.float32 if picture is None else picture.dtype
        self._failed_last = np.zeros(copies, bool)
        self._seeds: list[int] = []
        self._faults: list[Fault] = []
        self._differentiator: Differentiator | None = None

    def reset(self, seeds: Integer[np.ndarray, " M"]) -> Num[np.ndarray, " M *obs"]:
        """Start a new episode in every copy. Returns the first observations.

        seeds: one per copy. A copy that is restarted after a fault gets the `restart_seed` of its own.
        """
        self._seeds = seeds.tolist()
        return np.stack([self._begin(copy) for copy in range(len(self._envs))]).astype(self._kept, copy=False)

    def step(self, action: np.ndarray) -> HostStep:
        """Step every copy with its row of `action`. Raises EnvironmentFault as the class says."""
        faults: dict[int, Trouble] = {}
        count, shape, dtype, ndarray = len(self._envs), self._shape, self._dtype, np.ndarray
        in_space = self._actions.unflatten
        rows, blank = [], bytes(dtype.itemsize * math.prod(shape))
        others: dict[int, np.ndarray] = {}
        rewards: list[float] = []
        terminated, truncated = np.zeros(count, bool), np.zeros(count, bool)
        for copy, (env, own_action) in enumerate(zip(self._envs, action, strict=True)):
            try:
                obs, reward, ends, is_cut = returns.step_of(env.step(in_space(own_action)))
                # Copied at once, because the next copy may write its observation into the same memory. Nothing that
                # copies as little is quicker.
                if type(obs) is ndarray and obs.dtype is dtype and obs.shape == shape:
                    row = obs.tobytes()
                else:
                    row, others[copy] = blank, returns.numbers_of(obs, shape, "step", "observation")
                    self._dtype = returns.real_dtype(obs) or dtype
            # SystemExit: an environment that calls sys.exit() must not end the training.
            except (Exception, SystemExit) as error:
                row, reward, ends, is_cut = blank, 0.0, False, False
                faults[copy] = Trouble.of(error, "step", env)
            rows.append(row)
            rewards.append(reward)
            if ends or is_cut:
                terminated[copy], truncated[copy] = ends, is_cut
        successor = np.frombuffer(b"".join(rows), dtype).reshape(count, *shape).astype(self._kept)
        for copy, other in others.items():
            successor[copy] = other
        current, ended = successor, np.flatnonzero(terminated | truncated)
        if len(ended) or faults:
            current = successor.copy()
            for copy in map(int, ended):
                current[copy] = self._next_episode(copy)
        valid = self._all_valid
        if faults or self._failed_last.any():
            valid = self._replace_faulty(faults, current)
        return HostStep(successor, current, np.array(rewards, np.float32), terminated, truncated & ~terminated, valid)

    def close(self) -> None:
        """Close every copy. One that can't be closed is logged."""
        if self._differentiator is not None:
            self._differentiator.close()
        for copy, env in enumerate(self._envs):
            try:
                env.close()
            except Exception as error:
                logger.warning(
                    "copy %d of the environment can't be closed: %s", copy, Trouble.of(error, "close", env).cause
                )

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
        except (Exception, SystemExit) as error:
            trouble = Trouble.of(error, "reset", self._envs[copy])
            if not self._restart:
                raise trouble.fault(f"copy {copy} of the environment can't begin an episode") from trouble.error
            self._faults.append(Fault(copy, trouble.cause, trouble.traceback))
            return self._replace(copy)

    def _begin(self, copy: int) -> np.ndarray:
        """The first observation of a copy after it was seeded."""
        try:
            return self._first(copy, self._seeds[copy])
        except (Exception, SystemExit) as error:
            trouble = Trouble.of(error, "reset", self._envs[copy])
            raise trouble.fault(f"copy {copy} of the environment can't be started") from trouble.error

    def _first(self, copy: int, seed: int | None) -> np.ndarray:
        """The first observation of a new episode of a copy."""
        observation = returns.reset_of(self._envs[copy].reset(seed=seed))
        return returns.numbers_of(observation, self._shape, "reset", "observation")

    def _made(self, copy: int) -> gym.Env:
        """A new environment for a copy."""
        try:
            return self._make()
        except (Exception, SystemExit) as error:
            trouble = Trouble.of(error, "make")
            raise trouble.fault(f"copy {copy} of the environment can't be made") from trouble.error

    def _replace_faulty(self, faults: dict[int, Trouble], obs: np.ndarray) -> np.ndarray:
        """Replace the copies with a fault, and set their rows of `obs`. Returns which rows are valid."""
        valid = self._all_valid.copy()
        for copy, trouble in faults.items():
            if not self._restart or self._failed_last[copy]:
                again = " right after it was restarted" if self._restart else ""
                raise trouble.fault(f"copy {copy} of the environment fails{again}") from trouble.error
            self._faults.append(Fault(copy, trouble.cause, trouble.traceback))
            valid[copy] = False
            obs[copy] = self._replace(copy)
        self._failed_last = ~valid
        return valid

    def _replace(self, copy: int) -> np.ndarray:
        """Put a new environment in the place of a copy, with its next seed. Returns its first observation."""
        with contextlib.suppress(Exception):
            self._envs[copy].close()
        self._seeds[copy] = restart_seed(self._seeds[copy])
        self._envs[copy] = self._made(copy)
        return self._begin(copy)
