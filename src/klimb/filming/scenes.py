"""Episodes step by step, with pictures: of environments of either kind."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium
import jax
import numpy as np
from jaxtyping import PyTree, UInt8

from klimb.collect.whole_episodes import (
    MAX_STEPS,
    STEPS_PER_CALL,
    EpisodeStep,
    compiled_episodes,
    decide,
    endless,
    require_fit,
)
from klimb.environments import returns
from klimb.environments.base import CompiledEnvironment
from klimb.environments.faults import Trouble
from klimb.environments.host import HostEnvironment
from klimb.environments.registry import Environment
from klimb.environments.rendering import offscreen
from klimb.environments.rendering.renderer import Renderer, as_picture
from klimb.errors import ConfigError, KlimbError, MissingExtra, one_line, shown
from klimb.policies.memory import Memory, carry_size

FASTEST = 30.0
"""Pictures in a second of a film, at most: of faster environments every second or third step is drawn, and so on."""


class Shot(NamedTuple):
    """One state of an episode.

    draw: makes its picture, `[H, W, 3]`; only before the next shot is asked for. action: taken in it, in the
    environment's units and as arrays hold it, `[*act]`; None in the last state. reward: of the step that led to it; 0
    in the first state.
    """

    draw: Callable[[], UInt8[np.ndarray, "H W 3"]]
    action: np.ndarray | None
    reward: float


class Scene(abc.ABC):
    """An environment that is drawn, for one episode after the other.

    environment: which. deterministic: take the policy's mode instead of sampling. steps_per_second: of the
    environment's own time. every: one in so many steps is drawn.

    Raises ConfigError when the environment can't be drawn, and MissingExtra when a package is missing.
    """

    steps_per_second: float

    def __init__(self, environment: Environment, *, deterministic: bool) -> None:
        self.environment, self.deterministic = environment, deterministic

    def _set_speed(self, given: Any, name: str) -> None:
        """The steps in a second. ConfigError unless they are a number above 0. name: of the attribute that says it."""
        is_number = isinstance(given, int | float | np.number) and np.isfinite(given) and given > 0
        if not is_number:
            self.close()
            raise ConfigError(f"{self.environment.id} can't be drawn: its {name} is {shown(given, 40)}, not above 0")
        self.steps_per_second = float(given)

    @property
    def every(self) -> int:
        """One in so many steps is drawn."""
        return max(1, int(np.ceil(self.steps_per_second / FASTEST - 1e-6)))

    @property
    def pictures_per_second(self) -> float:
        """At which the pictures show the environment in its own time."""
        return self.steps_per_second / self.every

    def episode(self, policy: PyTree, seed: int) -> Iterator[Shot]:
        """The states of one episode: the one that `klimb.evaluate` runs with this seed and `episodes=1`.

        policy: a callable pytree that fits the environment. seed: of the environment and of the policy's draws.
        Raises PolicyFileError when the policy does not fit, EnvironmentFault when the environment fails or the episode
        never ends, ConfigError when a state can't be drawn.
        """
        require_fit(policy, self.environment)
        return self._episode(policy, seed)

    @abc.abstractmethod
    def _episode(self, policy: PyTree, seed: int) -> Iterator[Shot]: ...

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what drawing needs."""

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def scene_of(environment: Environment, *, deterministic: bool = True) -> Scene:
    """The scene of an environment of either kind.

    environment: which. deterministic: take the policy's mode instead of sampling. Raises as `Scene` does.
    """
    offscreen.prepare()
    kind = CompiledScene if isinstance(environment, CompiledEnvironment) else HostScene
    return kind(environment, deterministic=deterministic)


class CompiledScene(Scene):
    """A compiled environment: its states are drawn by its renderer."""

    environment: CompiledEnvironment

    def __init__(self, environment: Environment, *, deterministic: bool) -> None:
        super().__init__(environment, deterministic=deterministic)
        self._renderer: Renderer = _drawing(environment, self.environment.renderer)
        self._start, self._advance = compiled_episodes(self.environment, self._moment, 1, deterministic)
        self._set_speed(self._renderer.steps_per_second, "steps_per_second")

    def close(self) -> None:
        """Close the renderer."""
        self._renderer.close()

    def _episode(self, policy: PyTree, seed: int) -> Iterator[Shot]:
        carry, before = self._start(jax.random.key(seed), Memory(carry_size(policy))), 0.0
        for _ in range(0, MAX_STEPS, STEPS_PER_CALL):
            carry, (states, obs, *columns, _) = self._advance(policy, carry)
            action, reward, ended = map(np.asarray, columns)
            for t in range(STEPS_PER_CALL):
                yield Shot(partial(self._picture, states, obs, t), action[t, 0], before)
                before = float(reward[t, 0])
                if ended[t, 0]:
                    # The state after the end is the next one of the program, which knows no end, or its last one.
                    is_last = t + 1 == STEPS_PER_CALL
                    ended_in = _with_axis((self._renderer.part(carry[1]), carry[2]))
                    last = (*ended_in, 0) if is_last else (states, obs, t + 1)
                    yield Shot(partial(self._picture, *last), None, before)
                    return
        raise endless(self.environment.id, MAX_STEPS)

    def _moment(self, step: EpisodeStep) -> tuple:
        ended = step.terminated | step.truncated
        return self._renderer.part(step.state), step.obs, step.action, step.reward, ended

    def _picture(self, states: PyTree, obs: Any, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of one of several states. states, obs: `[T, 1, …]`. t: which."""
        state = jax.tree.map(lambda x: x[t], states)
        is_whole = type(self._renderer).part is Renderer.part
        state = self.environment.of_copy(state, 0) if is_whole else jax.tree.map(lambda x: x[0], state)
        return _drawing(self.environment, partial(self._renderer.picture, state, np.asarray(obs[t, 0])))


class HostScene(Scene):
    """An environment that runs in Python, and draws itself."""

    environment: HostEnvironment

    def __init__(self, environment: Environment, *, deterministic: bool) -> None:
        super().__init__(environment, deterministic=deterministic)
        self._env: gymnasium.Env = _drawing(environment, self.environment.drawn)
        self._decide = eqx.filter_jit(partial(decide, deterministic=deterministic))
        given = (self._env.metadata or {}).get("render_fps")
        self._set_speed(FASTEST if given is None else given, 'metadata["render_fps"]')

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _episode(self, policy: PyTree, seed: int) -> Iterator[Shot]:
        actions, observations = self.environment.actions, self.environment.observations
        key, env_seed = jax.random.key(seed), int(np.random.SeedSequence(seed).generate_state(1)[0])
        obs = self._called("reset", partial(_begun, self._env, env_seed, observations.shape))
        carry, reward = Memory(carry_size(policy)).empty(1), 0.0
        for _ in range(MAX_STEPS):
            key, key_act = jax.random.split(key)
            row, _, carry = self._decide(key_act, policy, obs.astype(observations.dtype)[None], carry)
            action = np.asarray(row)[0]
            yield Shot(self._picture, action, reward)
            taken = actions.unflatten(actions.clip(action))
            obs, reward, ended = self._called("step", partial(_stepped, self._env, taken, observations.shape))
            if ended:
                yield Shot(self._picture, None, reward)
                return
        raise endless(self.environment.id, MAX_STEPS)

    def _called(self, what: str, call: Any) -> Any:
        """What a call of the environment returns. EnvironmentFault when it raises. what: the name of its method."""
        try:
            return call()
        except (Exception, SystemExit) as error:
            trouble = Trouble.of(error, what, self._env)
            raise trouble.fault(f"{self.environment.id} fails") from trouble.error

    def _picture(self) -> UInt8[np.ndarray, "H W 3"]:
        return _drawing(self.environment, lambda: as_picture(self._env.render()))


def _with_axis(tree: PyTree) -> PyTree:
    """With an axis of one time step in front."""
    return jax.tree.map(lambda x: x[None], tree)


def _begun(env: gymnasium.Env, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """The first observation. shape: that it has to have."""
    return returns.numbers_of(returns.reset_of(env.reset(seed=seed)), shape, "reset", "observation")


def _stepped(env: gymnasium.Env, action: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, float, bool]:
    """The next observation, the reward, and whether the episode has ended. shape: of observations."""
    obs, reward, terminated, truncated = returns.step_of(env.step(action))
    return returns.numbers_of(obs, shape, "step", "observation"), float(reward), terminated or truncated


def _drawing(environment: Environment, draw: Any) -> Any:
    """What a call that draws returns, or that prepares to. ConfigError, with the cause in one line, when it fails.

    environment: which is drawn. draw: the call.
    """
    try:
        # Simulators and their libraries warn of what is none of the reader's business, such as functions of their own.
        with warnings.catch_warnings(action="ignore"):
            return draw()
    except gymnasium.error.DependencyNotInstalled as missing:
        remedy = "; pip install 'klimb[video]' installs it" if "pygame" in str(missing) else ""
        raise MissingExtra(f"{environment.id} can't be drawn: {one_line(missing, 120)}{remedy}") from missing
    except KlimbError:
        raise
    # SystemExit: an environment that calls sys.exit() must not end the program.
    except (Exception, SystemExit) as error:
        needs = offscreen.NEEDS_A_LIBRARY if _has_mujoco(environment) and not _can_draw() else None
        cause = f"{type(error).__name__}: {one_line(error, 200)}"
        raise ConfigError(f"{environment.id} can't be drawn: {needs or cause}") from error


def _has_mujoco(environment: Environment) -> bool:
    return any(name in ("mujoco", "mujoco-mjx", "brax") for name in environment.packages)


def _can_draw() -> bool:
    return offscreen.has_screen() or offscreen.installed() is not None
