"""A film inside a page: pictures with a slider, and rewards and actions below them."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from klimb.filming.clip import Clip
from klimb.filming.panels import action_rows, plain

MOST_PICTURES = 240
"""In a page. Of longer films every second or third picture is shown, and so on."""
LARGEST_SIDE, QUALITY = 360, 70
SCRIPTS = ("strips.js", "clip.js")
"""Files of `assets` that play the film, in this order."""


def card_data(clip: Clip) -> dict[str, Any]:
    """What the script reads. clip: the film."""
    # One less, because the last one is always shown.
    every = max(1, -(-(len(clip.pictures) - 1) // (MOST_PICTURES - 1)))
    chosen = np.unique(np.append(np.arange(0, len(clip.pictures), every), len(clip.pictures) - 1))
    actions = action_rows(clip.action)
    return {
        "pictures": [still(clip.pictures[k]) for k in chosen],
        "shown": clip.shown[chosen].tolist(),
        "per_second": clip.pictures_per_second / every,
        "panels": [
            {"title": "reward", "lines": [plain(clip.reward)]},
            {"title": clip.action_title, "lines": plain(actions.T)},
        ],
    }


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
