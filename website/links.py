"""Links of the pages: as plain Markdown they are relative to the repository, in the site to other pages.

A link to a file that is no page leads to the repository, when its address is known (`KLIMB_REPOSITORY`); else to a page
that shows the file.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reference import outside_fences

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "SECURITY.md": "security-policy.md",
    "README.md": "index.md",
}
"""Files outside of docs that are pages of the site, or for which one stands."""
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]+)?\)")
CODE = re.compile(r"(`+[^`]+`+)")


@dataclass
class Links:
    """Turns the links of one page after the other. root: of the repository. repository: its address; empty for none.

    shown: the files that need a page, collected on the way.
    """

    root: Path
    repository: str = ""
    shown: set[str] = field(default_factory=set)

    def turned(self, text: str, file: str, page: str) -> str:
        """A page with the links that it has in the site.

        text: of the page, as Markdown. file: its path in the repository, to which its links are relative. page: its
        place in the site.
        """

        def turn(match: re.Match[str]) -> str:
            target, anchor = match[1], match[2] or ""
            if not target or "://" in target or target.startswith("mailto:"):
                return match[0]
            path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
            return f"]({self._address(path, anchor, page)})"

        def change(line: str) -> str:
            # A link whose text is code has its target outside of it.
            return "".join(part if part.startswith("`") else LINK.sub(turn, part) for part in CODE.split(line))

        return self._without_directories(with_separate_lists(outside_fences(text, change)))

    def _address(self, path: str, anchor: str, page: str) -> str:
        place = place_of(path)
        if place is not None:
            return relative(page, place + anchor)
        if self.repository:
            return f"{self.repository.rstrip('/')}/{path}{anchor}"
        if not (self.root / path).is_file():
            return DIRECTORY
        self.shown.add(path)
        return relative(page, source_page(path) + anchor.replace("#L", "#__codelineno-0-"))

    def _without_directories(self, text: str) -> str:
        """A page in which directories, for which there is no page, are no links."""
        return re.sub(rf"\[([^\]]*)\]\({re.escape(DIRECTORY)}\)", r"\1", text)

    def source_pages(self) -> Iterator[tuple[str, str]]:
        """Place and text of a page for each file that is shown."""
        for path in sorted(self.shown):
            yield source_page(path), source_text(path, (self.root / path).read_text())


DIRECTORY = "no-page"
"""Stands for the target of a link to a directory."""


def place_of(path: str) -> str | None:
    """Where a file of the repository stands in the site; None for one that is no page or picture of it.

    path: from the root of the repository.
    """
    if path.startswith("tutorials/"):
        return f"{path.removesuffix('.py')}.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path)


def source_page(path: str) -> str:
    """Where the page stands that shows a file. path: from the root of the repository."""
    return f"source/{path}.md"


def source_text(path: str, content: str) -> str:
    """The page that shows a file. path: from the root of the repository. content: of the file."""
    language = {".py": "python", ".pyi": "python", ".yaml": "yaml", ".toml": "toml"}.get(Path(path).suffix, "text")
    # A fence longer than any in the file.
    fence = "`" * max(4, *(len(ticks) + 1 for ticks in re.findall(r"`{3,}", content)), 4)
    search = "---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n"
    return f'{search}# {path}\n\n{fence}{language} linenums="1"\n{content.rstrip()}\n{fence}\n'


def relative(page: str, target: str) -> str:
    """A link. page: where it stands. target: the page that it leads to, with its anchor."""
    path, mark, anchor = target.partition("#")
    if path == page and anchor:
        return f"#{anchor}"
    return posixpath.relpath(path, posixpath.dirname(page) or ".") + mark + anchor


ITEM = re.compile(r"(?:- |\d+\. )\S")


def with_separate_lists(text: str) -> str:
    """A page in which an empty line stands before each list, as Zensical wants it; repository hosts need none.

    text: of the page.
    """
    before = ""

    def change(line: str) -> str:
        nonlocal before
        begins = ITEM.match(line) is not None
        needed = begins and before == "text"
        before = "" if not line.strip() else "item" if begins or before == "item" else "text"
        return f"\n{line}" if needed else line

    return outside_fences(text, change)
