"""Observations as vectors, by Gymnasium's flattening; those that it would take for others are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from klimb.environments.returns import InvalidObservation, described
from klimb.errors import one_line, shown
from klimb.policies.observations import flat_observations


def flatten_observations(env: gym.Env) -> gym.Env:
    """The environment `env` in Gymnasium's `FlattenObservation`, which refuses what is not in the discrete parts.

    Of a number that is out of range Gymnasium makes the one-hot row of another number, or raises an IndexError.
    """
    _, flatten = flat(env.observation_space)
    wrapper: gym.wrappers.FlattenObservation = gym.wrappers.FlattenObservation(env)
    # In place of Gymnasium's function, and not a class of klimb's: checkpoints hold the names of wrappers' classes.
    wrapper.func = flatten
    return wrapper


def flat(space: gym.Space) -> tuple[gym.spaces.Box, Callable[[Any], Any]]:
    """The box of flat observations, and what makes a vector of an observation.

    space: of observations as the environment gives them. Raises UnsupportedSpace for those without a fixed size.
    """
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return space, lambda obs: obs
    flat_observations(space)
    box = gym.spaces.flatten_space(space)
    assert isinstance(box, gym.spaces.Box)
    return box, partial(_flatten, space)


def _flatten(space: gym.Space, obs: Any) -> Any:
    _require(space, obs, "")
    return gym.spaces.flatten(space, obs)


def _require(space: gym.Space, obs: Any, part: str) -> None:
    """InvalidObservation for an observation of which flattening would make another one.

    What is no number, or is missing, is left to Gymnasium, which raises. part: that the observation is, for messages.
    """
    match space:
        case gym.spaces.Discrete():
            _require_range(space, obs, part, np.asarray(space.start), np.asarray(space.n))
        case gym.spaces.MultiDiscrete():
            _require_range(space, obs, part, space.start, space.nvec)
        case gym.spaces.Dict() if isinstance(obs, dict):
            for name, inner in space.spaces.items():
                if name in obs:
                    _require(inner, obs[name], f"{part}[{shown(name, 40)}]")
        case gym.spaces.Tuple() if isinstance(obs, tuple | list):
            for number, (inner, own) in enumerate(zip(space.spaces, obs, strict=False)):
                _require(inner, own, f"{part}[{number}]")
        case gym.spaces.Box() if np.iscomplexobj(obs):
            raise InvalidObservation(f"{_observation(part)} of real numbers; it returned {described(obs)}")


def _require_range(space: gym.Space, obs: Any, part: str, start: np.ndarray, count: np.ndarray) -> None:
    """InvalidObservation unless integers are of a space with `count` of them from `start` on, in each element."""
    try:
        numbers = np.asarray(obs)
    except ValueError:  # sequences of different lengths
        return
    if numbers.dtype.kind not in "iub":
        return
    fits = numbers.size == start.size and numbers.ndim <= max(start.ndim, 1)
    if not fits or (numbers < start).any() or (numbers >= start + count).any():
        # Its elements say more than its shape, where that is right.
        returned = shown(numbers.tolist(), 60) if fits and numbers.ndim > 0 else described(obs)
        raise InvalidObservation(f"{_observation(part)} in {one_line(space, 80)}; it returned {returned}")


def _observation(part: str) -> str:
    return f"an observation whose part {part} is" if part else "an observation"
