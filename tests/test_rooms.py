"""A room of the package imports only from rooms above it in this list, and no files import each other in a circle."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src" / "klimb"
ROOMS = (
    *("_version", "other_names", "errors", "files", "terminal", "console", "modules", "processes", "fields"),
    *("precision", "mesh", "local_page", "types", "policies", "tabular", "environments", "collect", "filming"),
    *("estimate", "improve", "guided", "rules", "theory", "runs", "tracking", "export", "training", "presets"),
    *("report", "sharing", "cli", "__main__"),
)


def modules_imported(file: Path) -> set[str]:
    """The modules of klimb that a file imports: at the top, inside functions and under TYPE_CHECKING alike."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= names if names <= MODULES.keys() else {node.module} | names
    return found & MODULES.keys()


FILES = {
    file.relative_to(ROOT.parent).with_suffix(""): file for file in ROOT.rglob("*.py") if file.parent != ROOT.parent
}
MODULES = {".".join(path.parts).removesuffix(".__init__"): file for path, file in FILES.items()}
IMPORTS = {module: modules_imported(file) - {module} for module, file in MODULES.items()}


def test_every_import_points_up_the_list():
    place = {room: i for i, room in enumerate(ROOMS)}
    for module, imported in IMPORTS.items():
        for other in imported if module != "klimb" else ():
            assert other != "klimb", f"{module} imports klimb itself"
            assert place[other.split(".")[1]] <= place[module.split(".")[1]], f"{module} imports {other}"


def test_no_files_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(IMPORTS).prepare()


def test_every_room_is_in_the_list():
    assert {module.split(".")[1] for module in MODULES if "." in module} == set(ROOMS)
