"""The style of all figures, in effect only while one is drawn or saved: the user's settings do not change."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from klimb.errors import RunError
from klimb.files import write_output
from klimb.theory.figures.registry import check_suffix

BLUE, ORANGE, GREEN, PINK, GOLD = "#0072b2", "#d55e00", "#008a63", "#ad4f88", "#a87c00"
INK, QUIET, GRID = "#16191d", "#6b7178", "#e6e8eb"

WITHOUT_DATE: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""What Matplotlib would write into a file besides, by its ending: without it the same figure has the same bytes."""

# `Any`, because Matplotlib's own type lists every key.
SETTINGS: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 11,
    "axes.titlesize": 12.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 12,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Without a salt the ids in an SVG file are random.
    "svg.hashsalt": "klimb",
    # Text in a PDF stays text.
    "pdf.fonttype": 42,
}


def with_style(draw: Callable[[Any], Figure]) -> Callable[[Any], Figure]:
    """Decorates a `draw` function: it runs under these settings, and its figure gets a canvas that needs no screen."""

    def styled(data: Any) -> Figure:
        with mpl.rc_context(SETTINGS):
            figure = draw(data)
            FigureCanvasAgg(figure)
            return figure

    styled.__doc__ = draw.__doc__
    return styled


def page(width: float, height: float) -> Figure:
    """An empty figure with automatic layout. width, height: in inches."""
    return Figure(
        figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.04, hspace=0.04)
    )


def label(axes: Axes, text: str, x: float, y: float, colour: str, *, opaque: bool = False, **options: Any) -> Text:
    """Text on a white box, legible on top of lines.

    axes: to write on. text: the label. x, y: position in data coordinates. colour: of the curve that it names.
    opaque: the box hides the lines behind it completely. options: of `Axes.text`.
    """
    options.setdefault("fontsize", 11)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 1 if opaque else 0.8}
    return axes.text(x, y, text, color=colour, bbox=box, **options)


def annotate(axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], colour: str) -> None:
    """Text next to a point, such as a curve's end; it may be outside the axes.

    axes: to write on. text: the label. point: in data coordinates. offset: from it, in typographic points.
    colour: of the curve that it names.
    """
    axes.annotate(
        text,
        point,
        offset,
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=12,
        annotation_clip=False,
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, width: float = 2.0) -> None:
    """An arrow whose tip is exactly at `end`.

    axes: to draw on. start, end: in data coordinates. colour: of the arrow. width: of the line, in typographic points.
    """
    properties = {
        "arrowstyle": "-|>,head_length=0.5,head_width=0.24",
        "color": colour,
        "linewidth": width,
        "shrinkA": 0,
        "shrinkB": 0,
        "joinstyle": "miter",
    }
    axes.annotate("", xy=end, xytext=start, arrowprops=properties, zorder=5)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, with the same bytes every time.

    figure: what to write. path: a .png, .svg or .pdf file.

    Raises ConfigError for another suffix, RunError when the file can't be written.
    """
    check_suffix(path)
    try:
        with mpl.rc_context(SETTINGS):
            write(figure, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def write(figure: Figure, path: Path) -> None:
    """Writes a figure under the settings in effect, without a date and with a layout that has no rounding errors.

    figure: what to write. path: the file. Raises OSError.
    """
    # The solver of the layout adds its constraints in an order that changes between two figures of the same data, which
    # changes the last digit of a position, and with it the ids in an SVG file.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(length, 9) for length in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))
    content, suffix = io.BytesIO(), path.suffix.lower()
    figure.savefig(content, format=suffix.removeprefix("."), dpi=200, metadata=WITHOUT_DATE.get(suffix, {}))
    write_output(path, content.getvalue())
