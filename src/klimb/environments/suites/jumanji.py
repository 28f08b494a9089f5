"""Jumanji (Bonnet et al. 2024): packing, routing, logic puzzles and games, many with action masks."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import gymnasium.spaces
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.environments.adapters.action_masks import unmasked
from klimb.environments.rendering.renderer import OwnPictures, Renderer
from klimb.environments.suites.spaces import gymnasium_space, named_parts, observation_space
from klimb.environments.suites.suite import (
    Step,
    SuiteEnvironment,
    import_library,
    legacy_key,
    refused_download,
    require_known,
)
from klimb.errors import UnsupportedSpace, one_line
from klimb.policies.observation_parts import ACTION_MASK

STEPS_PER_SECOND = 5.0
"""Of films."""
DOWNLOADING = ("Sokoban-v0",)
"""Environments that fetch their levels over the network when they are made."""


class JumanjiEnvironment(SuiteEnvironment):
    """A Jumanji environment.

    An action of several numbers whose mask has a flag for each *combination* becomes one choice among all
    combinations: of a mask for each number alone the policy could not learn which combinations are allowed.

    id: the name that `klimb.make` takes. env: Jumanji's. Raises UnsupportedSpace for several agents with a reward each.
    """

    packages = ("jumanji",)

    def __init__(self, id: str, env: Any) -> None:
        if env.reward_spec.shape != ():
            raise UnsupportedSpace(
                f"{id} has a reward for each of {env.reward_spec.shape[0]} agents, and klimb trains one policy by one "
                "reward: give the sum from an environment of your own (docs/own-environment.md)"
            )
        space, actions = env.observation_spec, gymnasium_space(env.action_spec, f"{id}'s action")
        mask = getattr(space, ACTION_MASK, None)
        if np.issubdtype(env.action_spec.dtype, np.integer) and isinstance(actions, gymnasium.spaces.Box):
            raise UnsupportedSpace(
                f"{id} has actions of integers without a number of choices, {one_line(env.action_spec, 80)}: write an "
                "environment of your own that chooses among them (docs/own-environment.md)"
            )
        self.combinations = _combinations(actions, mask)
        if self.combinations is not None:
            actions = gymnasium.spaces.Discrete(int(np.prod(self.combinations)))
        observed = observation_space(space, f"{id}'s observation")
        observed = unmasked(observed, None if mask is None else "observation")
        super().__init__(id, env, observed, actions, masked=mask is not None, max_episode_steps=_limit(env))
        self._timeless = _without_clock(env)

    def begin(self, key: PRNGKeyArray) -> Step:
        """The start of an episode. key: that it is drawn with."""
        state, first = self.env.reset(legacy_key(key))
        return self._seen(state, first)

    def advance(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Step:
        """One step, without a reset.

        key: is not used: Jumanji keeps one in its state. state: Jumanji's. action: in the action space.
        """
        if self.combinations is not None:
            action = jnp.stack(jnp.unravel_index(action, self.combinations), axis=-1).astype(jnp.int32)
        state, after = self._timeless.step(state, action)
        ended, has_value = after.last(), after.discount > 0
        over = False if self.max_episode_steps is None else state.step_count >= self.max_episode_steps
        return self._seen(state, after)._replace(
            reward=after.reward, terminated=ended & ~has_value, truncated=(ended & has_value) | over
        )

    def renderer(self) -> Renderer:
        """Jumanji's own drawing by Matplotlib; without a drawing of its own, as for all compiled environments."""
        viewers = (part for part in vars(self.env).values() if hasattr(part, "_display_rgb_array"))
        viewer: Any = next(viewers, None)
        if viewer is None:
            return super().renderer()
        viewer._display = viewer._display_rgb_array
        return OwnPictures(partial(_drawn, viewer), STEPS_PER_SECOND)

    def _seen(self, state: PyTree, timestep: Any) -> Step:
        obs = named_parts(timestep.observation, self.env.observation_spec)
        return Step(state, obs, obs[ACTION_MASK] if self.masked else None)


def _drawn(viewer: Any, state: PyTree) -> np.ndarray:
    """Jumanji's picture of a state, which would show a window if there were a screen, and warns that there is none."""
    with warnings.catch_warnings(action="ignore"):
        return viewer.render(state)


def _combinations(actions: gymnasium.spaces.Space, mask: Any) -> tuple[int, ...] | None:
    """The sizes of the numbers of an action, if the mask has a flag for each combination of them; else None."""
    if mask is None or not isinstance(actions, gymnasium.spaces.MultiDiscrete):
        return None
    sizes = tuple(int(n) for n in actions.nvec)
    return sizes if tuple(mask.shape) == sizes else None


def _without_clock(env: Any) -> Any:
    """The environment without its time limit, by which Jumanji ends an episode as if its task had ended."""
    if _limit(env) is None:
        return env
    timeless = copy.copy(env)
    timeless.time_limit = np.iinfo(np.int32).max
    return timeless


def _limit(env: Any) -> int | None:
    limit = getattr(env, "time_limit", None)
    return None if limit is None else int(limit)


def make_jumanji(name: str) -> JumanjiEnvironment:
    """The Jumanji environment `name`, e.g. `Snake-v1`.

    Raises MissingExtra if Jumanji is not installed, EnvironmentNotFound for an unknown name, UnsupportedSpace for
    several agents with a reward each.
    """
    jumanji = import_library("jumanji", f"jumanji:{name}", "jumanji")
    require_known(name, jumanji.registered_environments(), "Jumanji")
    if name in DOWNLOADING:
        raise refused_download(f"jumanji:{name}", "its levels", "jumanji.JumanjiEnvironment")
    return JumanjiEnvironment(f"jumanji:{name}", jumanji.make(name))
