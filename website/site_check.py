"""What a built site may not have: links that lead nowhere, anything from the network, Markdown that was not read."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}
"""What a browser loads by itself, other than links that wait for a click."""
# A list needs an empty line before it, and a table one row for its rule.
UNREAD = re.compile(r"^\s*(?:- \S|\d+\. \S|\| .* \|\s*$|#+ \S)", re.MULTILINE)


class Page(HTMLParser):
    """The anchors and the links of one page, and its paragraphs as text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.paragraphs: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "p" or (self._inside and tag not in ("pre", "table", "ul", "ol", "div"))
        if tag == "p":
            self.paragraphs.append("")
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            if tag == "a" and name == "href":
                self.links.append(value or "")
            if (tag, name) in LOADED and dict(attrs).get("rel") not in ("canonical", "prev", "next"):
                self.loaded.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.paragraphs[-1] += data


def problems(site: Path) -> Iterator[str]:
    """Everything that is wrong with a site, one line each. site: the folder with its HTML files."""
    pages = {path.relative_to(site).as_posix(): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    for place, page in pages.items():
        for link in (*page.links, *page.loaded):
            wrong = _problem(link, place, pages, site)
            if wrong:
                yield f"{place}: {link} {wrong}"
        for address in page.loaded:
            if _is_elsewhere(address):
                yield f"{place}: {address} is loaded from the network"
        for paragraph in page.paragraphs:
            unread = UNREAD.search(paragraph)
            if unread and not place.startswith("source/"):
                yield f"{place}: Markdown that is not read as such: {unread[0].strip()!r}"


def _is_elsewhere(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme not in ("", "data")


def _problem(link: str, place: str, pages: dict[str, Page], site: Path) -> str:
    """What is wrong with a link; empty for nothing, and for links to other sites."""
    if _is_elsewhere(link) or link.startswith("data:"):
        return ""
    path, _, anchor = link.partition("#")
    target = _resolved(unquote(path.partition("?")[0]), place)
    file = site / target
    if file.is_dir():
        target, file = posixpath.normpath(posixpath.join(target, "index.html")), file / "index.html"
    if not file.is_file():
        return "leads to no file"
    if anchor and target in pages and unquote(anchor) not in pages[target].anchors:
        return "leads to no anchor"
    return ""


def _resolved(path: str, place: str) -> str:
    """The file that a link means, from the root of the site. path: of the link. place: of the page."""
    if path.startswith("/"):
        return path.lstrip("/")
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), path)) if path else place
