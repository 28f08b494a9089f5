"""Files are opened in `klimb.files` and lines printed in `klimb.terminal`: what is guarded there always is."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "klimb"

FILES = {
    *("open", "safe_open", "fdopen", "mkstemp", "NamedTemporaryFile"),
    *("read_text", "read_bytes", "write_text", "write_bytes", "savefig", "truncate"),
    *("exists", "is_file", "is_dir", "is_symlink", "unlink", "mkdir", "makedirs", "touch", "rename", "symlink_to"),
    *("json.load", "tomllib.load", "np.load", "np.save", "np.savez", "shutil.copy", "shutil.copyfile", "os.replace"),
}
"""Functions and methods that open, look for, make or change files."""
LINES = {"print", "Console", "sys.stdout.write", "sys.stderr.write", "os.write"}
"""Functions that print."""
FUNCTIONS_OF_FILES = {"write_text", "exists", "is_file"}
"""What has the same name in `klimb.files`, where it is no method."""

DOORS = {"files.py": FILES, "terminal.py": LINES | {"open"}, "console.py": LINES}
ELSEWHERE = {
    ("cli/compilation_cache.py", "mkdir"): "a directory with access for the user alone",
    ("collect/host/worker.py", "print"): "answers to the process that started it, through a pipe of their own",
    ("collect/host/worker.py", "fdopen"): "the same pipe",
    ("collect/host/worker_process.py", "os.write"): "orders to a process that it has started",
    ("collect/host/workers.py", "fdopen"): "memory that processes share",
    ("collect/host/workers.py", "truncate"): "the same",
    ("environments/suites/playground.py", "exists"): "models inside of the installed library",
    ("environments/trial.py", "write_text"): "an answer, in a directory that the starting process has made for it",
    ("environments/trial.py", "read_text"): "the same answer",
    ("environments/trial.py", "exists"): "the same answer",
    ("export/python_file.py", "read_text"): "a part of the installed package",
    ("filming/card.py", "read_text"): "a part of the installed package",
    ("filming/writing.py", "open"): "a film in memory, which then goes through klimb.files",
    ("report/html.py", "read_text"): "a part of the installed package",
    ("runs/directory.py", "rename"): "the new directory of a run, to its name",
    ("runs/faults_log.py", "fdopen"): "a descriptor of klimb.files.open_to_append",
    ("runs/lock.py", "fdopen"): "a descriptor of klimb.files.open_to_append",
    ("runs/lock.py", "truncate"): "the same",
    ("runs/metrics.py", "fdopen"): "a descriptor of klimb.files.open_to_append",
    ("runs/minari_writing.py", "rename"): "the new dataset, to its name, and one that it replaces",
    ("theory/figures/style.py", "savefig"): "into memory, and then through klimb.files",
    ("training/diagnose/first_nan.py", "exists"): "source files of what is being run",
}
"""Calls outside of the doors, and why they are right there."""


def called(node: ast.Call) -> str:
    """The name of what a call calls; of a method of something unknown its last part."""
    function = node.func
    if isinstance(function, ast.Name):
        return "" if function.id in FUNCTIONS_OF_FILES else function.id
    if not isinstance(function, ast.Attribute):
        return ""
    whole = ast.unparse(function)
    if whole in FILES | LINES:
        return whole
    if whole == "RunDirectory.open":  # klimb's own
        return ""
    # `os.open` and a path's `open` are the same to this test.
    return function.attr if function.attr in FILES else ""


def calls(source: str) -> Counter[str]:
    """The calls that open files or print in a text of Python, and how many there are."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return Counter(name for node in nodes if (name := called(node)) in FILES | LINES)


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_file_is_opened_and_no_line_printed_outside_of_the_doors(file):
    name = file.relative_to(ROOT).as_posix()
    allowed = DOORS.get(name, set()) | {call for where, call in ELSEWHERE if where == name}
    assert not calls(file.read_text()).keys() - allowed, f"{name}: use klimb.files, klimb.terminal or klimb.console"


def test_every_exception_is_needed():
    for name, call in ELSEWHERE:
        assert calls((ROOT / name).read_text())[call], f"{name} does not call {call}"


@pytest.mark.parametrize(
    "line",
    [
        *('open("f")', 'Path("f").open()', "os.open(f, 0)", "path.read_text()", "(a / b).exists()", "print(1)"),
        *("safe_open(path)", "figure.savefig(f)", "json.load(f)", "sys.stdout.write(s)", "Console(stderr=True)"),
    ],
)
def test_the_test_finds(line):
    assert calls(line)
