"""Drawing what the policy sees: observations that are pictures or boards."""

from __future__ import annotations

import colorsys

import numpy as np
from jaxtyping import PyTree, UInt8

from klimb.environments.rendering.renderer import Renderer, enlarged
from klimb.policies.observation_parts import MaskedObservations
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.picture_observations import PictureObservations


class ObservedPictures(Renderer):
    """Observations as pictures: one channel is brightness, three are red, green and blue, and four bytes the last of
    four pictures in time; any other number of channels are layers of a board, each in a colour of its own.

    pictures: what they are.
    """

    steps_per_second = 10.0

    def __init__(self, pictures: PictureObservations) -> None:
        self._spec = pictures

    @classmethod
    def of(cls, observations: ObservationSpec) -> ObservedPictures | None:
        """The renderer of observations that are pictures, with an action mask or without; None for others."""
        seen = observations.observed if isinstance(observations, MaskedObservations) else observations
        return cls(seen) if isinstance(seen, PictureObservations) else None

    def picture(self, state: PyTree, obs: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of what is observed. state: is not used."""
        spec, seen = self._spec, np.asarray(obs)
        seen = np.ravel(seen)[: spec.size].reshape(spec.dimensions)
        if seen.ndim == 4:
            seen = seen[-1]
        elif spec.channels_first:
            seen = np.moveaxis(seen, 0, -1)
        layers = np.atleast_3d(seen.astype(np.float32) / spec.brightest)
        bright = np.clip(np.round(255 * _colors(layers, spec.numbers == "uint8")), 0, 255).astype(np.uint8)
        return enlarged(bright)


def _colors(layers: np.ndarray, is_bytes: bool) -> np.ndarray:
    """Red, green and blue from 0 to 1. layers: `[H, W, C]`, from 0 to 1. is_bytes: whether they were pictures of
    bytes, of which four are grey ones one after the other in time."""
    count = layers.shape[2]
    if count == 4 and is_bytes:
        layers, count = layers[..., -1:], 1
    if count == 1:
        return np.repeat(layers, 3, axis=2)
    if count == 3:
        return layers
    colors = np.array([colorsys.hsv_to_rgb(k / count, 0.65, 1.0) for k in range(count)], np.float32)
    return np.max(layers[..., None] * colors, axis=2)
