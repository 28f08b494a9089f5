"""Navix (Pignatelli et al. 2024): MiniGrid's rooms, keys and doors in JAX."""

from __future__ import annotations

from typing import Any

import gymnasium.spaces
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.environments.rendering.renderer import OwnPictures, enlarged
from klimb.environments.suites.spaces import gymnasium_space
from klimb.environments.suites.suite import Step, SuiteEnvironment, import_library, legacy_key, require_known

STEPS_PER_SECOND = 5.0
"""Of films."""
TRUNCATED, TERMINATED = 1, 2
"""Navix's kinds of steps that are the last one of an episode."""


class NavixEnvironment(SuiteEnvironment):
    """A Navix environment. Its `step` resets by itself, one step late, so that only `_step` inside of it is called.

    id: the name that `klimb.make` takes. env: Navix's.
    """

    packages = ("navix",)

    def __init__(self, id: str, env: Any) -> None:
        # Grids of numbers have an `n` too, that of each cell; what klimb reads of them are their bounds.
        space = gymnasium_space(_Bounded(env.observation_space), f"{id}'s observation")
        actions: gymnasium.spaces.Space = gymnasium.spaces.Discrete(len(env.action_set))
        super().__init__(id, env, space, actions, max_episode_steps=int(env.max_steps))

    def begin(self, key: PRNGKeyArray) -> Step:
        """The start of an episode. key: that it is drawn with."""
        first = self.env.reset(legacy_key(key))
        return Step(first, first.observation)

    def advance(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Step:
        """One step, without a reset.

        key: is not used: Navix keeps one in its state. state: Navix's `Timestep`. action: in the action space.
        """
        after = self.env._step(state, action)
        terminated, truncated = after.step_type == TERMINATED, after.step_type == TRUNCATED
        return Step(after, after.observation, reward=after.reward, terminated=terminated, truncated=truncated)

    def renderer(self) -> OwnPictures:
        """Navix's own picture of the whole grid, enlarged."""
        rgb = jax.jit(import_library("navix.observations", self.id, "navix").rgb)
        return OwnPictures(lambda state: enlarged(np.asarray(rgb(state.state))), STEPS_PER_SECOND)


class _Bounded:
    """A space by its bounds."""

    def __init__(self, space: Any) -> None:
        self.shape, self.dtype, self.low, self.high = space.shape, space.dtype, space.minimum, space.maximum


def make_navix(name: str, *, pictures: bool = False) -> NavixEnvironment:
    """The Navix environment `name`, e.g. `Navix-Empty-5x5-v0`.

    pictures: whether observations are pictures, instead of the numbers of what is in each cell.

    Raises MissingExtra if Navix is not installed, and EnvironmentNotFound for an unknown name.
    """
    navix = import_library("navix", f"navix:{name}", "navix")
    require_known(name, navix.registry(), "Navix")
    options = {"observation_fn": navix.observations.rgb} if pictures else {}
    return NavixEnvironment(f"navix:{name}" + ("(pictures=True)" if pictures else ""), navix.make(name, **options))
