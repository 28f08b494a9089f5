"""Films as files: what a player finds in them."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from counting import Counting, Half
from PIL import Image

import klimb
from klimb.errors import ConfigError, MissingExtra, RunError
from klimb.filming.card import MOST_BYTES, MOST_PICTURES, MOST_STEPS, card_data


@pytest.fixture(scope="module")
def clip() -> klimb.Clip:
    clip = klimb.film(Half(), Counting(20))
    # Pictures that differ by little would be one to a codec.
    return dataclasses.replace(clip, pictures=clip.pictures * 12)


def test_webp_holds_every_picture_in_its_time(clip: klimb.Clip, tmp_path: Path) -> None:
    path = clip.save(tmp_path / "film.webp")
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (21, (24, 16), 0)
        for frame in (0, 7, 20):
            image.seek(frame)
            image.load()
            assert image.info["duration"] == 50
            # Compressed: near the colour, and nearer to it than to the next picture's in the middle.
            assert abs(np.asarray(image.convert("RGB"), float).mean() - 12 * frame) < 3


def test_mp4_holds_every_picture_in_its_time(clip: klimb.Clip, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = clip.save(str(tmp_path / "film.mp4"))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.average_rate, stream.codec_context.name) == (20, "h264")
    assert len(frames) == 21
    assert frames[0].shape == (16, 24, 3)
    assert abs(float(frames[7].mean()) - 84) < 3


def test_mp4_of_pictures_with_odd_sides_loses_one_line(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from klimb.filming.writing import write_clip

    write_clip(np.zeros((3, 17, 25, 3), np.uint8), 12.5, tmp_path / "film.mp4")
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (24, 16, 12.5)


def test_mp4_of_pictures_of_one_line_is_twice_as_large(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from klimb.filming.writing import write_clip

    write_clip(np.zeros((3, 1, 25, 3), np.uint8), 10.0, tmp_path / "film.mp4")
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (50, 2)


def test_other_formats_and_places_are_refused(clip: klimb.Clip, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"film\.gif: a film is a \.webp or a \.mp4 file"):
        clip.save(tmp_path / "film.gif")
    with pytest.raises(RunError, match=r"cannot write .*there is no such directory"):
        clip.save(tmp_path / "nowhere" / "film.webp")
    assert not list(tmp_path.iterdir())


def test_without_its_package_mp4_is_refused_with_the_extra(
    clip: klimb.Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"pip install 'klimb\[video\]'"):
        clip.save(tmp_path / "film.mp4")


def test_a_notebook_shows_the_film(clip: klimb.Clip) -> None:
    import base64
    import re

    html = clip._repr_html_()
    data = re.search(r'src="data:image/webp;base64,([^"]+)"', html)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as image:
        assert image.n_frames == 21
    assert "return 210" in html


@pytest.mark.parametrize("count", [1, 2, 239, 240, 241, 480, 721])
def test_a_page_has_a_bounded_number_of_pictures_and_the_last_one(clip: klimb.Clip, count: int) -> None:
    pictures = np.zeros((count, 8, 8, 3), np.uint8)
    rewards = np.ones(max(1, count - 1), np.float32)
    lines = {"reward": rewards, "action": rewards[:, None]}
    long = dataclasses.replace(clip, pictures=pictures, shown=np.arange(count), **lines)
    shown = card_data(long)["shown"]
    assert len(shown) == len(card_data(long)["pictures"]) <= MOST_PICTURES
    assert (shown[0], shown[-1]) == (0, count - 1)


def test_a_film_in_a_page_has_a_size_that_it_keeps(clip: klimb.Clip) -> None:
    """Noise, which nothing compresses, and an episode of many steps."""
    steps = 3 * MOST_STEPS - 1
    noise = np.random.default_rng(0).integers(0, 256, (60, 360, 360, 3), np.uint8)
    rewards = np.arange(steps, dtype=np.float32)
    long = dataclasses.replace(
        clip,
        pictures=noise,
        shown=np.linspace(0, steps, 60).astype(int),
        reward=rewards,
        action=np.ones((steps, 8), np.float32),
    )
    data = card_data(long)
    assert 0.3 * MOST_BYTES < sum(map(len, data["pictures"])) <= MOST_BYTES
    reward, action = data["panels"]
    assert (reward["title"], data["per_point"], data["steps"]) == ("reward, mean of 3 steps", 3, steps)
    assert len(reward["lines"][0]) == len(action["lines"][0]) == MOST_STEPS
    assert reward["lines"][0][:2] == [1.0, 4.0]
    assert reward["lines"][0][-1] == steps - 1.5  # of the last two
    assert action["lines"][7][-1] == 1.0
    assert data["returns"][0] == 0
    assert data["returns"][-1] == pytest.approx(rewards.sum(dtype=np.float64), rel=1e-5)
    assert len(json.dumps(data)) < MOST_BYTES + 500_000
