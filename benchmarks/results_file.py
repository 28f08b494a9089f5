"""Where a benchmark's numbers go: JSON beside the commit, the versions and the machine that they are from."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Line(dict):
    """A part of the results that is written on one line."""


def write_results(name: str, **content: Any) -> Path:
    """`benchmarks/results/<name>.json`."""
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": current_commit(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {package: version(package) for package in ("klimb", "jax", "jaxlib", "equinox", "optax", "numpy")},
        **content,
    }
    path = HERE / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_indented(results) + "\n")
    return path


def current_commit() -> str:
    """The commit of this repository."""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()


def read_results(name: str) -> dict[str, Any]:
    """What `write_results` wrote last; nothing where there is no such file."""
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _indented(results: dict[str, Any]) -> str:
    """JSON with two spaces per level, and every `Line` on one line."""
    lines: list[Line] = []

    def marked(value: Any) -> Any:
        match value:
            case Line():
                lines.append(value)
                return f"\0{len(lines) - 1}"
            case dict():
                return {key: marked(item) for key, item in value.items()}
            case list() | tuple():
                return [marked(item) for item in value]
        return value

    text = json.dumps(marked(results), indent=2)
    return re.sub(r'"\\u0000(\d+)"', lambda found: json.dumps(lines[int(found[1])]), text)
