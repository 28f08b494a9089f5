"""Craftax (Matthews et al. 2024): an open world of crafting and survival, and its smaller Classic version."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.environments.rendering.renderer import OwnPictures, enlarged
from klimb.environments.suites.spaces import gymnasium_space, observation_space
from klimb.environments.suites.suite import Step, SuiteEnvironment, import_library, legacy_key, require_known

PIXELS, STEPS_PER_SECOND = 16, 10.0
"""Of films: of each block, and speed."""
NAMES = ("Craftax-Symbolic-v1", "Craftax-Pixels-v1", "Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1")


class CraftaxEnvironment(SuiteEnvironment):
    """A Craftax environment, which does not reset by itself, and its parameters.

    id: the name that `klimb.make` takes. env, params: Craftax's.
    """

    packages = ("craftax",)

    def __init__(self, id: str, env: Any, params: Any) -> None:
        self.params = params
        # Craftax ends an episode by its clock and by a death alike: these are the parameters without the clock.
        self._timeless = params.replace(max_timesteps=jnp.iinfo(jnp.int32).max)
        super().__init__(
            id,
            env,
            observation_space(env.observation_space(params), f"{id}'s observation"),
            gymnasium_space(env.action_space(params), f"{id}'s action"),
            max_episode_steps=int(params.max_timesteps),
        )

    def begin(self, key: PRNGKeyArray) -> Step:
        """A new world. key: that it is drawn with."""
        obs, state = self.env.reset_env(legacy_key(key), self.params)
        return Step(state, obs)

    def advance(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Step:
        """One step, without a reset.

        key: for its randomness. state: Craftax's. action: in the action space.
        """
        obs, state, reward, done, _ = self.env.step_env(legacy_key(key), state, action, self.params)
        died = self.env.is_terminal(state, self._timeless)
        return Step(state, obs, reward=reward, terminated=died, truncated=done & ~died)

    def renderer(self) -> OwnPictures:
        """Craftax's own picture of the world around the player."""
        classic = ".craftax_classic." if "Classic" in self.id else ".craftax."
        library = import_library(f"craftax{classic}renderer", self.id, "craftax")
        draw = jax.jit(library.make_craftax_pixel_renderer(PIXELS))
        return OwnPictures(lambda state: enlarged(np.asarray(draw(state)).astype(np.uint8)), STEPS_PER_SECOND)


def make_craftax(name: str) -> CraftaxEnvironment:
    """The Craftax environment `name`, e.g. `Craftax-Classic-Symbolic-v1`, with its default parameters.

    Raises MissingExtra if Craftax is not installed, and EnvironmentNotFound for an unknown name.
    """
    require_known(name, NAMES, "Craftax")
    library = import_library("craftax.craftax_env", f"craftax:{name}", "craftax")
    env = library.make_craftax_env_from_name(name, auto_reset=False)
    return CraftaxEnvironment(f"craftax:{name}", env, env.default_params)
