"""Films as files: animated WebP with Pillow, MP4 with PyAV."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from klimb.errors import ConfigError, MissingExtra, RunError, one_line
from klimb.files import as_path, is_directory, write_output

SUFFIXES = (".webp", ".mp4")
QUALITY = 80
"""Of WebP, from 0 to 100."""


def write_clip(pictures: UInt8[np.ndarray, "F H W 3"], pictures_per_second: float, path: str | Path) -> Path:
    """Write a film in the format of its file's ending. Returns the path.

    pictures, pictures_per_second: of the film. path: the file. Raises as `klimb.Clip.save` does.
    """
    path = as_path(path)
    require_format(path)
    writer = write_webp if path.suffix.lower() == ".webp" else write_mp4
    content = writer(pictures, pictures_per_second)
    try:
        write_output(path, content)
    except OSError as error:
        raise RunError(f"cannot write {one_line(path)}: {error.strerror or error}") from None
    return path


def require_format(path: Path) -> None:
    """ConfigError when no film can be written to a file of this name, MissingExtra when the package is not installed,
    and RunError when there is no such directory.

    path: the file.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{one_line(path)}: a film is a .webp or a .mp4 file; give one of these endings")
    if path.suffix.lower() == ".mp4":
        _av()
    if not is_directory(path.absolute().parent):
        raise RunError(f"cannot write {one_line(path)}: there is no such directory")


def write_webp(pictures: UInt8[np.ndarray, "F H W 3"], pictures_per_second: float) -> bytes:
    """The bytes of an animated WebP, which browsers show as a picture, again and again."""
    first, *others = map(Image.fromarray, pictures)
    file = io.BytesIO()
    duration = max(1, round(1000 / pictures_per_second))
    first.save(file, "WEBP", save_all=True, append_images=others, duration=duration, loop=0, quality=QUALITY, method=2)
    return file.getvalue()


def write_mp4(pictures: UInt8[np.ndarray, "F H W 3"], pictures_per_second: float) -> bytes:
    """The bytes of an MP4 file with H.264, which every player and browser knows."""
    av: Any = _av()
    # Colours are stored for two by two pixels.
    if min(pictures.shape[1:3]) < 2:
        pictures = pictures.repeat(2, axis=1).repeat(2, axis=2)
    height, width = (side - side % 2 for side in pictures.shape[1:3])
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(pictures_per_second).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra(
            f"an .mp4 file needs the package av, which cannot be imported ({one_line(error)}): "
            "pip install 'klimb[video]'; a .webp file needs nothing more"
        ) from error
    return av
