"""What the wheel and the source distribution must hold. `python tests/distributions.py FOLDER` checks those in one.

Only the standard library is used: `make package` runs it where klimb is not installed.
"""

from __future__ import annotations

import runpy
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = runpy.run_path(str(ROOT / "src" / "klimb" / "_version.py"))["__version__"]
SHIPPED = ("benchmarks", "docs", "examples", "src/klimb", "tests", "tutorials", "website")
"""Folders of which the source distribution holds everything."""
FILES = (
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md"),
    *("RELEASING.md", "SECURITY.md", "constraints.txt", "pyproject.toml"),
)
EXAMPLES = (
    *("klimb/py.typed", "klimb/__init__.pyi", "klimb/report/assets/page.html", "klimb/filming/assets/watch.js"),
    *("klimb/presets/trpo/mujoco.toml", "klimb/zoo/trpo/Hopper-v4/policy.safetensors", "klimb/export/standalone.py"),
)
"""A file of each kind that the wheel must hold, also if the folder that it is compared with has lost it."""


def files_of(folder: str) -> dict[str, Path]:
    """The files of a folder of the repository by their paths from its root, without caches. folder: from the root."""
    every = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix(): path for path in every if not _is_cache(path)}


def wheel_problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel, one line each: it has to hold `src/klimb`, byte for byte, and nothing else."""
    information = f"klimb-{VERSION}.dist-info"
    expected = {name.removeprefix("src/"): path.read_bytes() for name, path in files_of("src/klimb").items()}
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    package = {name: content for name, content in found.items() if not name.startswith(f"{information}/")}
    problems = [f"{name} is missing" for name in sorted({*expected, *EXAMPLES} - package.keys())]
    problems += [f"{name} does not belong there" for name in sorted(package.keys() - expected.keys())]
    problems += [f"{name} is another file" for name in expected if package.get(name, expected[name]) != expected[name]]
    if f"{information}/METADATA" not in found:
        return [*problems, f"{information}/METADATA is missing"]
    problems += metadata_problems(message_from_bytes(found[f"{information}/METADATA"]))
    scripts = found.get(f"{information}/entry_points.txt", b"").decode()
    if "klimb = klimb.cli.main:main" not in scripts:
        problems.append("the command klimb is missing")
    if f"{information}/licenses/LICENSE" not in found:
        problems.append("the license is missing")
    return problems


def sdist_problems(sdist: Path) -> list[str]:
    """What is wrong with a source distribution, one line each."""
    top = f"klimb-{VERSION}/"
    expected = {*FILES, *(name for folder in SHIPPED for name in files_of(folder))}
    with tarfile.open(sdist) as archive:
        members = [member.name for member in archive if member.isfile()]
    found = {name.removeprefix(top) for name in members}
    problems = [f"{name} is missing" for name in sorted(expected - found)]
    problems += [f"{name} is outside of {top}" for name in members if not name.startswith(top)]
    return problems + [f"{name} is a cache" for name in sorted(found) if _is_cache(Path(name))]


def metadata_problems(metadata: Message) -> list[str]:
    """What of a wheel's metadata differs from pyproject.toml, one line each."""
    expected = {
        "Name": ["klimb"],
        "Version": [VERSION],
        "License-Expression": [PROJECT["license"]],
        "Requires-Python": [PROJECT["requires-python"]],
        "Provides-Extra": sorted(PROJECT["optional-dependencies"]),
        "Classifier": sorted(PROJECT["classifiers"]),
    }
    found = {name: sorted(metadata.get_all(name, [])) for name in expected}
    return [f"{name} is {found[name]}, not {expected[name]}" for name in expected if found[name] != expected[name]]


def problems_of(folder: Path) -> list[str]:
    """What is wrong with the distributions in a folder, one line each. folder: with one wheel and one sdist."""
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if [path.name for path in (*wheels, *sdists)] != [f"klimb-{VERSION}-py3-none-any.whl", f"klimb-{VERSION}.tar.gz"]:
        return [f"{folder} does not hold one wheel and one source distribution of version {VERSION}"]
    return [
        *(f"{wheels[0].name}: {problem}" for problem in wheel_problems(wheels[0])),
        *(f"{sdists[0].name}: {problem}" for problem in sdist_problems(sdists[0])),
    ]


def _is_cache(path: Path) -> bool:
    return path.suffix in (".pyc", ".pyd", ".pyo", ".part") or any(
        part in ("__pycache__", ".cache") or part.endswith("_cache") for part in path.parts
    )


if __name__ == "__main__":
    problems = problems_of(Path(sys.argv[1]))
    print("\n".join(problems or [f"{sys.argv[1]}: the wheel and the source distribution are complete"]))
    sys.exit(1 if problems else 0)
