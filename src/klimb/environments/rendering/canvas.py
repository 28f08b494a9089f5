"""A canvas for simple drawings in the environment's own units: lines and discs on a plane."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

SIDE = 400
SMOOTHING = 2
"""Drawn so many times larger, and made smaller at the end, so that edges are smooth."""
PAPER, INK, FAINT, BLUE, ORANGE = (255, 255, 255), (40, 44, 52), (222, 226, 230), (0, 114, 178), (213, 94, 0)

Point = tuple[Any, Any]
"""x and y, numbers of any kind."""


class Canvas:
    """A square picture of the plane around its origin, in `SIDE` pixels.

    half: half of its side, in the units of the drawing.
    """

    def __init__(self, half: float) -> None:
        self._scale, self._pixels = SIDE * SMOOTHING / (2 * half), SIDE * SMOOTHING
        self._image = Image.new("RGB", (self._pixels, self._pixels), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        for line in range(int(-half), int(half) + 1):
            self.line((line, -half), (line, half), 0.004 * half, FAINT)
            self.line((-half, line), (half, line), 0.004 * half, FAINT)

    def line(self, start: Point, end: Point, width: float, color: tuple[int, int, int] = INK) -> None:
        """A line with round ends. width: in the units of the drawing."""
        ends = [self._at(start), self._at(end)]
        self._draw.line(ends, color, max(1, round(width * self._scale)))
        self.disc(start, width / 2, color)
        self.disc(end, width / 2, color)

    def disc(self, centre: Point, radius: float, color: tuple[int, int, int] = INK) -> None:
        """A disc. radius: in the units of the drawing."""
        (x, y), r = self._at(centre), radius * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), color)

    def picture(self) -> UInt8[np.ndarray, "H W 3"]:
        """What has been drawn."""
        return np.array(self._image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))

    def _at(self, point: Point) -> Point:
        x, y = (float(value) for value in point)
        return self._pixels / 2 + x * self._scale, self._pixels / 2 - y * self._scale
