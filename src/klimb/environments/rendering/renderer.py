"""The interface of what draws an environment's states."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PyTree, UInt8

SMALLEST_SIDE = 240
"""Pixels, so that a board of ten cells can be watched."""


class Renderer(abc.ABC):
    """Draws the states of one environment, one after the other.

    A picture is `[H, W, 3]`: height, width, and red, green and blue from 0 to 255; of the same size for all states.
    steps_per_second: steps of the environment in a second of its time, at which a film shows it.
    """

    steps_per_second: float = 30.0

    def part(self, state: PyTree) -> PyTree:
        """What pictures need of the states of N copies, which are kept for some steps; traced. All of it, unless a
        renderer says otherwise; then `picture` gets this part.

        state: of N copies.
        """
        return state

    @abc.abstractmethod
    def picture(self, state: PyTree, obs: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of a state.

        state: of the environment, without the axis of environments. obs: what is observed in it.
        """

    def close(self) -> None:  # noqa: B027
        """Give back what drawing needs: windows of a simulator, memory of a GPU."""


class OwnPictures(Renderer):
    """What an environment's own method `render` returns.

    render: from a state to a picture. steps_per_second: of the environment.
    """

    def __init__(self, render: Callable[[PyTree], Any], steps_per_second: float) -> None:
        self._render, self.steps_per_second = render, steps_per_second

    def picture(self, state: PyTree, obs: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
        """The picture of a state, which may be on a device. ValueError for anything but a picture."""
        return as_picture(self._render(state))


def enlarged(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of at least `SMALLEST_SIDE` pixels on each side, enlarged by a whole number: edges stay sharp."""
    factor = max(1, -(-SMALLEST_SIDE // min(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def as_picture(drawn: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Bytes `[H, W, 3]`. ValueError for anything else.

    drawn: a picture as somebody else's function returned it; a fourth channel, of opacity, is left out.
    """
    picture = np.asarray(drawn)
    if picture.ndim != 3 or picture.shape[2] not in (3, 4) or 0 in picture.shape or picture.dtype != np.uint8:
        given = "None" if drawn is None else f"an array of {picture.dtype} of shape {list(picture.shape)}"
        raise ValueError(f"a picture has bytes (uint8) of shape [height, width, 3], and {given} was returned")
    # Copied: some draw every picture into the same memory.
    return picture[..., :3].copy()
