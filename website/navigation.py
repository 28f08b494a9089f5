"""The sections of the site, and the pages of each, in the order in which docs/index.md names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

HOW_TO = "How-to"
PLACES = {
    "Start": ("index.md", "getting-started.md", "tutorials/"),
    HOW_TO: (),
    "Rules": ("algorithms/index.md", "algorithms/"),
    "Theory": ("theory/index.md", "theory/"),
    "Results and speed": (
        *("results.md", "ablations.md", "minatar.md", "ideas.md", "benchmarks.md"),
        *("performance.md", "seconds.md", "gpu.md", "scaling.md"),
    ),
    "Reference": ("commands.md", "api/index.md", "api/", "errors.md", "glossary.md", "names.md"),
    "About": (
        *("design.md", "reliability.md", "platforms.md", "security.md", "security-policy.md"),
        *("contributing.md", "releasing.md", "changelog.md"),
    ),
}
"""What belongs to each section: pages, and folders with a slash. A page that nothing names is a how-to page."""
GROUPS = {"API": "api/"}
"""Folders whose pages stand below a title of their own inside of their section."""
TITLES = {
    "index.md": "klimb",
    "api/index.md": "Every name",
    "algorithms/index.md": "Choosing a rule",
    "security-policy.md": "Reporting a vulnerability",
    "theory/index.md": "Overview",
}
"""Pages whose heading says too little, or too much, among others."""


def linked_pages(index: str) -> list[str]:
    """The pages in the order of their links. index: the text of docs/index.md."""
    return list(dict.fromkeys(re.findall(r"\]\(([^)#:]+\.md)\)", index)))


def sections(index: str, others: Sequence[str]) -> list[dict[str, list[Any]]]:
    """The navigation: every page once, below the title of its section.

    index: the text of docs/index.md. others: pages that it does not name, such as generated ones.
    """
    every = list(dict.fromkeys(["index.md", *linked_pages(index), *others]))
    found: dict[str, list[str]] = {title: [] for title in PLACES}
    for page in every:
        found[_section(page)].append(page)
    return [{title: _grouped(_ordered(title, pages))} for title, pages in found.items()]


def _section(page: str) -> str:
    for title, places in PLACES.items():
        if any(page == place or (place.endswith("/") and page.startswith(place)) for place in places):
            return title
    return HOW_TO


def _ordered(title: str, pages: list[str]) -> list[str]:
    """Pages in the order of the places of their section; those of one folder keep theirs."""
    places = PLACES[title]

    def rank(page: str) -> int:
        exact = [number for number, place in enumerate(places) if page == place]
        within = [number for number, place in enumerate(places) if place.endswith("/") and page.startswith(place)]
        return (exact or within or [len(places)])[0]

    return sorted(pages, key=rank)


def _grouped(pages: list[str]) -> list[Any]:
    """Pages, with those of each group in place of the first of them."""
    items: list[Any] = []
    for page in pages:
        title = next((title for title, folder in GROUPS.items() if page.startswith(folder)), None)
        if title is None:
            items.append(_item(page))
        elif items and title in items[-1]:
            items[-1][title].append(_item(page))
        else:
            items.append({title: [_item(page)]})
    return items


def _item(page: str) -> str | dict[str, str]:
    return {TITLES[page]: page} if page in TITLES else page
