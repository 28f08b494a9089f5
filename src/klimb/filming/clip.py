"""One episode as a film: pictures, and the rewards and actions that belong to them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, PyTree, UInt8
from PIL import Image

from klimb.environments.registry import make
from klimb.errors import ConfigError
from klimb.filming.panels import action_title
from klimb.filming.scenes import Scene, scene_of
from klimb.filming.writing import write_clip, write_webp
from klimb.policies.policy import policy_of

LARGEST_SIDE = 400
"""Pixels of the longer side of a picture; larger ones are made smaller."""
MOST_PICTURES = 1200
"""Of one film, which are all in memory at once. A film of a longer episode ends there."""

OnPictures = Callable[[int], None]
"""Called whenever a picture has been drawn: with the number of those that have been."""


@dataclass(frozen=True)
class Clip:
    """An episode with F pictures and T steps.

    pictures: red, green and blue. shown: the number of the step before which each picture was drawn; T for the last
    state. reward: of each step. action: in the environment's units and as arrays hold it. action_title: what a chart of
    the actions is called. pictures_per_second: at which the film runs in the environment's own time. environment: its
    name. seed: of the episode. deterministic: whether the policy took its mode. whole: whether the film goes on to the
    end of the episode.
    """

    pictures: UInt8[np.ndarray, "F H W 3"]
    shown: Int[np.ndarray, " F"]
    reward: Float[np.ndarray, " T"]
    action: Num[np.ndarray, " T *act"]
    action_title: str
    pictures_per_second: float
    environment: str
    seed: int
    deterministic: bool
    whole: bool

    @property
    def episode_return(self) -> float:
        """The sum of all rewards of the episode."""
        return float(np.sum(self.reward, dtype=np.float64))

    @property
    def seconds(self) -> float:
        """How long the film runs."""
        return len(self.pictures) / self.pictures_per_second

    def save(self, path: str | Path) -> Path:
        """Write the film as an animated WebP (`.webp`) or as MP4 (`.mp4`, extra `video`). Returns the path.

        path: the file, which is replaced. Raises ConfigError for another ending, MissingExtra without the extra, and
        RunError when the file can't be written.
        """
        return write_clip(self.pictures, self.pictures_per_second, path)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        data = base64.b64encode(write_webp(self.pictures, self.pictures_per_second)).decode()
        return f'<img src="data:image/webp;base64,{data}" alt="an episode with return {self.episode_return:g}">'


def film(
    policy: PyTree,
    env: str | Any,
    *,
    seed: int = 0,
    deterministic: bool = True,
    on_pictures: OnPictures | None = None,
) -> Clip:
    """Film one episode: the one that `klimb.evaluate` runs with `episodes=1` and the same seed.

    policy: a callable pytree, or a `klimb.Run` of one seed. env: a name (see `klimb.make`) or an environment, of which
    a copy is drawn: Gymnasium's with `render_mode="rgb_array"`, compiled ones by what `renderer()` returns. seed: of
    the environment and of the policy's draws. deterministic: take the policy's mode instead of sampling. on_pictures:
    called with the number of pictures whenever one has been drawn.

    Returns the film, which can be saved, and which notebooks show.
    Where there is no screen, MuJoCo draws with EGL or else OSMesa, unless the environment variable `MUJOCO_GL` is set.
    Raises ConfigError when the environment can't be drawn, MissingExtra when a package is missing, PolicyFileError when
    the policy does not fit, EnvironmentFault when the environment fails or the episode does not end.
    """
    with scene_of(make(env), deterministic=deterministic) as scene:
        return filmed(scene, policy_of(policy), seed, on_pictures)


def filmed(scene: Scene, policy: PyTree, seed: int, on_pictures: OnPictures | None = None) -> Clip:
    """One episode as a film.

    scene: where. policy: a callable pytree. seed: of the episode. on_pictures: sees the film grow.
    """
    pictures: list[np.ndarray] = []
    shown, actions, rewards, whole = [], [], [], True
    for step, shot in enumerate(scene.episode(policy, seed)):
        rewards.append(shot.reward)
        if shot.action is not None:
            actions.append(shot.action)
        # The last state is always worth a picture.
        if step % scene.every == 0 or shot.action is None:
            whole = len(pictures) < MOST_PICTURES
            if whole:
                pictures.append(_resized(shot.draw()))
                if pictures[-1].shape != pictures[0].shape:
                    before, now = (" × ".join(map(str, x.shape[:2])) for x in (pictures[0], pictures[-1]))
                    raise ConfigError(
                        f"{scene.environment.id} can't be filmed: its pictures have different sizes, {before} and {now}"
                    )
                shown.append(step)
                if on_pictures is not None:
                    on_pictures(len(pictures))
    return Clip(
        pictures=_stacked(pictures),
        shown=np.array(shown),
        reward=np.array(rewards[1:], np.float32),
        action=np.stack(actions),
        action_title=action_title(scene.environment.actions),
        pictures_per_second=scene.pictures_per_second,
        environment=scene.environment.id,
        seed=seed,
        deterministic=scene.deterministic,
        whole=whole,
    )


def _stacked(pictures: list[np.ndarray]) -> UInt8[np.ndarray, "F H W 3"]:
    """Pictures as one array. The list is emptied on the way: a long film is in memory once, and not twice."""
    film = np.empty((len(pictures), *pictures[0].shape), np.uint8)
    for number in reversed(range(len(pictures))):
        film[number] = pictures.pop()
    return film


def _resized(picture: np.ndarray) -> np.ndarray:
    """A picture whose longer side is at most `LARGEST_SIDE`."""
    height, width = picture.shape[:2]
    factor = LARGEST_SIDE / max(height, width)
    if factor >= 1:
        return picture
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.array(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.LANCZOS))
