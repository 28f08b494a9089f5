"""Drawing by MuJoCo: positions of a simulation in JAX are written into MuJoCo's own data, which its renderer draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree, UInt8

from klimb.environments.rendering.renderer import Renderer

HEIGHT, WIDTH = 360, 480


class Pose(NamedTuple):
    """Where everything is. positions, velocities: generalised, of the model. mocap: positions `[K, 3]` and
    quaternions `[K, 4]` of bodies that are moved from outside, such as targets; None where there are none."""

    positions: Any
    velocities: Any
    mocap: tuple[Any, Any] | None = None


class MujocoRenderer(Renderer):
    """MuJoCo's own renderer, through the model's first camera; where there is none, through one that follows the robot.

    model: `mujoco.MjModel`. pose: from a state of the environment to where everything is. steps_per_second: of the
    environment. Raises what MuJoCo raises where it finds no way to draw.
    """

    def __init__(self, model: Any, pose: Callable[[PyTree], Pose], steps_per_second: float) -> None:
        import mujoco

        self._library, self._model, self._pose = mujoco, model, pose
        self.steps_per_second = steps_per_second
        self._data = mujoco.MjData(model)
        self._renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
        self._camera: Any = 0 if model.ncam else _following(mujoco, model)

    def part(self, state: PyTree) -> Pose:
        """Where everything is: states of a simulation in JAX can have many megabytes, most of them contacts."""
        return self._pose(state)

    def picture(self, state: Pose, obs: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of a state. state: its part. obs: is not used."""
        pose, data = state, self._data
        data.qpos, data.qvel = np.asarray(pose.positions), np.asarray(pose.velocities)
        if pose.mocap is not None and self._model.nmocap:
            data.mocap_pos, data.mocap_quat = map(np.asarray, pose.mocap)
        self._library.mj_forward(self._model, data)
        self._renderer.update_scene(data, camera=self._camera)
        return self._renderer.render()

    def close(self) -> None:
        """Give back the graphics context."""
        self._renderer.close()


def _following(mujoco: Any, model: Any) -> Any:
    """A camera that looks from the side at the first body, and moves with it."""
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    if model.nbody > 1:
        camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
    return camera
