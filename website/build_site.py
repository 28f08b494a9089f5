"""Builds the documentation site: `make docs`, or `python website/build_site.py`.

The pages of docs/ are copied with the links that they have in the site, the reference is generated from the package,
Zensical makes HTML of both, and the result is checked. Warnings and broken links end it with status 1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import command_reference
import names_index
import reference
import tutorials
from links import PAGES, Links, relative
from navigation import sections
from site_check import problems
from surface import ROOT

DOCS = ROOT / "docs"
HERE = Path(__file__).parent
STAGE = ROOT / "build" / "site"
SITE = ROOT / "site"
WIDE = "---\nhide:\n  - navigation\n  - toc\n---\n"
"""On top of the first page, which needs no list of what else there is."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def pages(repository: str) -> dict[str, str]:
    """Every page by its place in the site, as Markdown. repository: address of the repository; empty for none."""
    links = Links(ROOT, repository)
    made = {}
    for file in (*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in PAGES if name != "README.md")):
        path = file.relative_to(ROOT).as_posix()
        place = PAGES.get(path, path.removeprefix("docs/"))
        text = file.read_text()
        made[place] = links.turned(names_index.with_anchors(text) if place == "glossary.md" else text, path, place)
    for place, text in reference.pages().items():
        # Its links are written as if it stood in docs.
        made[place] = links.turned(text, f"docs/{place}", place)
    for script in tutorials.scripts(ROOT):
        made[f"tutorials/{script.stem}.md"] = tutorials.page(script)
    made[command_reference.PLACE] = command_reference.page()
    made["names.md"] = names_index.page((DOCS / "glossary.md").read_text())
    made["index.md"] = f"{WIDE}{made['index.md']}"
    made = {place: reference.linked(text, place, relative) for place, text in made.items()}
    return made | dict(links.source_pages())


def stage(made: dict[str, str]) -> None:
    """Write what Zensical reads. made: the pages."""
    shutil.rmtree(STAGE, ignore_errors=True)
    content = STAGE / "docs"
    shutil.copytree(DOCS, content, ignore=shutil.ignore_patterns("*.md"))
    shutil.copytree(HERE / "assets", content / "assets")
    for place, text in made.items():
        (content / place).parent.mkdir(parents=True, exist_ok=True)
        (content / place).write_text(text)
    for script in tutorials.scripts(ROOT):
        (content / "tutorials" / f"{script.stem}.ipynb").write_text(tutorials.notebook_text(script))
    settings = tomllib.loads((HERE / "zensical.toml").read_text())["project"]
    named = [place for place in made if not place.startswith("source/")]
    settings |= {"docs_dir": "docs", "site_dir": "site", "nav": sections((DOCS / "index.md").read_text(), named)}
    # JSON is YAML, in which Zensical reads its settings too.
    (STAGE / "mkdocs.yml").write_text(json.dumps(settings, indent=1))


def build() -> list[str]:
    """Let Zensical build the site. Returns what it warns of."""
    settings = str(STAGE / "mkdocs.yml")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", settings]
    done = subprocess.run(command, capture_output=True, text=True, cwd=STAGE, check=False)
    said = COLOUR.sub("", done.stderr).strip()
    if "--strict" in said:  # a traceback of Zensical's, which says no more than the warnings before it
        said = said.partition("Traceback")[0].strip()
    return [said] if done.returncode or "warning" in said.lower() else []


def main(words: Sequence[str] = ()) -> int:
    """Build and check. Returns the exit status. words: of the command line, the address of the repository or none."""
    stage(pages(words[0] if words else os.environ.get("KLIMB_REPOSITORY", "")))
    wrong = build() or sorted(problems(STAGE / "site"))
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        return 1
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(STAGE / "site", SITE)
    print(f"{SITE.relative_to(ROOT)}/index.html: {len(list(SITE.rglob('*.html')))} pages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
