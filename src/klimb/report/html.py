"""Parts of pages as HTML: the page around them, tiles of numbers, cards that `assets/charts.js` draws charts into."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from klimb.errors import RunError, one_line
from klimb.files import write_output, write_text
from klimb.local_page import content_policy
from klimb.report.data import Spec
from klimb.runs.own_files import require_no_file_of_a_run

FILE_NAME = "report.html"


def write_page(page: str, directory: Path, output: Path | None) -> Path:
    """Write a page. Returns its path. RunError when it can't be written.

    page: as HTML. directory: of what it is about. output: the file to write; `report.html` there by default.
    """
    path = directory / FILE_NAME if output is None else Path(output)
    try:
        if output is None:
            write_text(path, page)
        else:
            require_no_file_of_a_run(path)
            write_output(path, page.encode())
    except OSError as error:
        raise RunError(f"cannot write {one_line(path)}: {error.strerror}") from None
    return path


def fill(template: str, data: Spec, *, player: str = "", live: bool = False, **parts: str) -> str:
    """A whole page: a template with its parts, the style, and the script that draws its charts.

    template: a file of `assets`. data: what the script reads. player: a further script, which plays a film or
    keeps the page up to date. live: whether the page may ask the server that it is from. parts: HTML, by the template's
    names.
    """
    style, script = resource("style.css"), resource("charts.js") + player
    policy = content_policy(script, connects=live)
    return Template(resource(template)).substitute(parts, policy=policy, style=style, script=script, data=embed(data))


def without_readouts(charts: Sequence[Spec]) -> list[Spec]:
    """What the script reads of charts: the numbers beside them are a part of the page. charts: of the page."""
    return [{key: value for key, value in chart.items() if key != "readout"} for chart in charts]


def embed(data: Any) -> str:
    """`data` as JSON that is safe inside a script element: ASCII, and without `<`, `>` and `&`."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def resource(name: str) -> str:
    """The text of a file of `assets`. name: its name."""
    return resources.files("klimb.report").joinpath("assets", name).read_text(encoding="utf-8")


def sections_html(parts: list[Spec]) -> str:
    """Sections, one below the other. parts: of the page, as `section_html` takes them."""
    return "\n".join(filter(None, map(section_html, parts)))


def section_html(part: Spec) -> str:
    """A heading and empty cards; `charts.js` fills the n-th card of the page with the n-th chart.

    part: with a title, which may be empty, a lead, charts, and whether they are small. One with neither a chart nor a
    lead is left out.
    """
    lead = part["lead"].strip()
    if not part["charts"] and not lead:
        return ""
    cards = "\n".join(_card_html(chart) for chart in part["charts"])
    kind = "grid small" if part.get("small") else "grid"
    grid = f'<div class="{kind}">\n{cards}\n</div>' if cards else ""
    said = f"<p>{escape(lead)}</p>" if lead else ""
    header = f"<header><h2>{part['title']}</h2>{said}</header>" if part["title"] else ""
    return f"<section>{header}\n{grid}</section>"


def _card_html(chart: Spec) -> str:
    readout = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in chart.get("readout", [])
    )
    return (
        f'<figure class="card{" wide" if chart.get("wide") else ""}" data-chart>'
        f"<figcaption><h3>{escape(chart['title'])}</h3><p>{escape(chart['about'])}</p></figcaption>"
        + (f'<dl class="readout">{readout}</dl>' if readout else "")
        + '<div class="legend"></div><div class="plot"></div></figure>'
    )


def tiles_html(tiles: Sequence[tuple[str, str, str]]) -> str:
    """The numbers at the top. tiles: name, value and detail of each."""
    shown = []
    for name, value, detail in tiles:
        number, *error = value.split(" ± ")
        error_html = f'<span class="error"> ± {escape(error[0])}</span>' if error else ""
        shown.append(
            f"<div><dt>{escape(name)}</dt><dd><strong>{escape(number)}{error_html}</strong>"
            f"<span>{escape(detail)}</span></dd></div>"
        )
    return "\n".join(shown)
