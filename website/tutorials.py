"""The tutorials as pages of the site, and as notebooks for Jupyter and Colab.

A tutorial is a script of `tutorials/` in the percent format: cells begin with `# %%`, those of text with
`# %% [markdown]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
import nbformat

ORDER = ("first_run", "from_reinforce_to_trpo", "your_own", "sweep_and_compare", "demonstrations_to_onnx")
"""In which they are read."""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def scripts(root: Path) -> list[Path]:
    """The scripts in order. root: of the repository."""
    found = {path.stem: path for path in (root / "tutorials").glob("*.py")}
    assert set(found) == set(ORDER), "a tutorial is missing from ORDER, or there is none of a name in it"
    return [found[name] for name in ORDER]


def notebook(script: Path) -> Any:
    """A tutorial as a notebook, without outputs. script: the tutorial."""
    made = jupytext.read(script)
    made.metadata = {"kernelspec": KERNEL}
    for number, cell in enumerate(made.cells):
        # The same file whenever it is made.
        cell["id"] = f"cell-{number}"
    return made


def notebook_text(script: Path) -> str:
    """The content of its file. script: the tutorial."""
    return str(nbformat.writes(notebook(script), version=4)) + "\n"


def page(script: Path) -> str:
    """A tutorial as Markdown. script: the tutorial."""
    title, *cells = notebook(script).cells
    heading, _, rest = title.source.partition("\n")
    name = f"{script.stem}.ipynb"
    download = f"[Notebook for Jupyter and Colab]({name}){{ download }}"
    parts = [heading, download, rest.strip()]
    for cell in cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"
