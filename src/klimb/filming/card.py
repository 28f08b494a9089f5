"""A film inside a page: pictures with a slider, and rewards and actions below them."""

from __future__ import annotations

import base64
import io
import math
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from klimb.filming.clip import Clip
from klimb.filming.panels import action_rows, plain

MOST_PICTURES = 240
"""In a page. Of longer films every second or third picture is shown, and so on."""
MOST_BYTES = 2_500_000
"""Of all pictures in a page, as base64: a page with a film stays under 5 MB."""
MOST_STEPS = 4000
"""That the charts below the film have points for. Of longer episodes they show means over some steps."""
LARGEST_SIDE, QUALITY = 360, 70
SMALLEST_SIDE = 32
SCRIPTS = ("strips.js", "clip.js")
"""Files of `assets` that play the film, in this order."""


def card_data(clip: Clip) -> dict[str, Any]:
    """What the script reads. clip: the film."""
    # One less, because the last one is always shown.
    every = max(1, -(-(len(clip.pictures) - 1) // (MOST_PICTURES - 1)))
    chosen = np.unique(np.append(np.arange(0, len(clip.pictures), every), len(clip.pictures) - 1))
    per_point = max(1, -(-len(clip.reward) // MOST_STEPS))
    rewards = clip.reward.astype(np.float64)
    mean = f", mean of {per_point} steps" if per_point > 1 else ""
    return {
        "pictures": _stills([clip.pictures[k] for k in chosen]),
        "shown": clip.shown[chosen].tolist(),
        "returns": plain(np.concatenate([[0.0], np.cumsum(rewards)])[clip.shown[chosen]]),
        "per_second": clip.pictures_per_second / every,
        "steps": len(clip.reward),
        "per_point": per_point,
        "panels": [
            {"title": f"reward{mean}", "lines": [plain(_means(rewards, per_point))]},
            {"title": f"{clip.action_title}{mean}", "lines": plain(_means(action_rows(clip.action), per_point).T)},
        ],
    }


def _means(rows: np.ndarray, size: int) -> np.ndarray:
    """Means over so many rows each; the last one over those that remain. rows: `[T, …]`, at least one."""
    if size == 1:
        return rows
    first = np.arange(0, len(rows), size)
    counts = np.diff(np.append(first, len(rows))).reshape(-1, *[1] * (rows.ndim - 1))
    return np.add.reduceat(rows, first, axis=0) / counts


def _stills(pictures: list[np.ndarray]) -> list[str]:
    """Pictures as WebP in base64, as small as it takes for all of them to have at most `MOST_BYTES`."""
    side = LARGEST_SIDE
    while True:
        stills = [still(picture, side) for picture in pictures]
        size = sum(map(len, stills))
        if size <= MOST_BYTES or side <= SMALLEST_SIDE:
            return stills
        side = max(SMALLEST_SIDE, int(0.95 * side * math.sqrt(MOST_BYTES / size)))


def card_html(clip: Clip, data: dict[str, Any]) -> str:
    """The section of a page, without its data. clip: the film. data: of `card_data`."""
    actions = "the most likely actions" if clip.deterministic else "sampled actions"
    end = "" if clip.whole else f", of which the first {clip.shown[-1]:,} steps are shown"
    lead = (
        f"One episode with {actions} (seed {clip.seed}): return {clip.episode_return:,.1f} in "
        f"{len(clip.reward):,} steps{end}."
    )
    return (
        f"<section><header><h2>One episode</h2><p>{escape(lead)}</p></header>\n"
        f'<figure class="card wide clip"><img id="clip-picture" alt="{escape(clip.environment)}, drawn" '
        f'src="data:image/webp;base64,{data["pictures"][0]}">'
        '<div class="player"><button id="clip-button" type="button">Play</button>'
        f'<input id="clip-slider" type="range" min="0" max="{len(data["pictures"]) - 1}" value="0" '
        'aria-label="picture of the film"><span id="clip-readout"></span></div>'
        '<div id="clip-strips"></div></figure></section>'
    )


def script() -> str:
    """The scripts that play the film, as one."""
    return "\n".join(asset(name) for name in SCRIPTS)


def asset(name: str) -> str:
    """The text of a file of `assets`. name: its name."""
    return resources.files("klimb.filming").joinpath("assets", name).read_text(encoding="utf-8")


def still(picture: np.ndarray, side: int = LARGEST_SIDE) -> str:
    """A picture as WebP in base64. picture: `[H, W, 3]`. side: pixels of the longer side, at most."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=2)
    return base64.b64encode(file.getvalue()).decode()
