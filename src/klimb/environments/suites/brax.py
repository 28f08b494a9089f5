"""Brax's robots (Freeman et al. 2021), with its own physics in JAX."""

from __future__ import annotations

import warnings
from typing import Any

from klimb.environments.rendering.mujoco import Pose
from klimb.environments.suites.physics import Clocked, PhysicsEnvironment
from klimb.environments.suites.suite import import_library, require_known
from klimb.errors import ConfigError

BACKENDS = ("generalized", "positional", "spring", "mjx")
EPISODE_STEPS = 1000
"""Brax's own time limit in all published results."""


class BraxEnvironment(PhysicsEnvironment):
    """An environment of Brax, without its wrappers."""

    packages = ("brax",)

    def model(self) -> Any:
        """MuJoCo's model of the robot."""
        return self.env.sys.mj_model

    def pose(self, state: Clocked) -> Pose:
        """Where everything is in a state."""
        physics = state.inner.pipeline_state
        return Pose(physics.q, physics.qd)


def make_brax(name: str, *, backend: str = "generalized") -> BraxEnvironment:
    """The Brax environment `name`, e.g. `halfcheetah`, with episodes of 1000 steps.

    backend: of the physics. On a CPU `spring` is twice as fast as `generalized`, and it is other physics: returns with
    one can't be compared with returns with another.

    Raises MissingExtra if Brax is not installed, EnvironmentNotFound for an unknown name, ConfigError for a backend.
    """
    with warnings.catch_warnings():
        # Brax says with every import that its environments are not maintained any more; docs/compiled-worlds.md does.
        warnings.simplefilter("ignore")
        envs = import_library("brax.envs", f"brax:{name}", "brax")
    require_known(name, envs._envs, "Brax")
    if backend not in BACKENDS:
        raise ConfigError(f"brax:{name}: backend = {backend!r}; Brax has {', '.join(BACKENDS)}")
    id = f"brax:{name}" + ("" if backend == "generalized" else f"(backend={backend})")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BraxEnvironment(id, envs.get_environment(name, backend=backend), EPISODE_STEPS)
