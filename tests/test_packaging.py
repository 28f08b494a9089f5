"""The distributions, what a release names in several files, and the files that servers and tools read."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import distributions
import klimb

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
FOR_GITHUB = pytest.mark.skipif(not GITHUB.is_dir(), reason="the source distribution has no workflows")
NEEDED = 77
"""The version of setuptools from which on it knows license expressions."""


def builder() -> str | None:
    """A Python with a setuptools that builds klimb: this one, or that of `make package`; None where there is none."""
    own = ROOT / ".venv" / "package" / "bin" / "python"
    try:
        here = int(importlib.metadata.version("setuptools").partition(".")[0]) >= NEEDED
    except importlib.metadata.PackageNotFoundError:
        here = False
    return sys.executable if here else str(own) if own.exists() else None


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built from a copy of the sources without a network."""
    python = builder()
    if python is None:
        pytest.skip(f"needs setuptools {NEEDED} or newer, which make package installs")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*distributions.FILES, ".pre-commit-config.yaml"):
        shutil.copy(ROOT / name, source / name)
    for name in distributions.SHIPPED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.part"))
    for kind in ("sdist", "wheel"):
        build = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
        subprocess.run([python, "-c", build, str(folder)], cwd=source, check=True, capture_output=True, timeout=120)
    return folder


@pytest.mark.slow
def test_the_distributions_are_complete(dist: Path) -> None:
    assert distributions.problems_of(dist) == []


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"klimb", f"klimb-{klimb.__version__}.dist-info"}
    assert set(distributions.EXAMPLES) <= set(names)


@pytest.mark.slow
def test_the_source_distribution_can_be_tested(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/conftest.py", "tests/data/run-0.1.0/config.toml", "constraints.txt", "docs/index.md"} <= names
    assert not {name for name in names if name.startswith((".venv", ".git", "site/", "runs/"))}


def test_what_is_missing_or_too_much_in_a_wheel_is_found(tmp_path: Path) -> None:
    wheel = tmp_path / "klimb.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("klimb/_version.py", "")
        archive.writestr("tests/test_contract.py", "")
        archive.writestr(f"klimb-{klimb.__version__}.dist-info/METADATA", "Name: klimb\nVersion: 0.0.1\n")
    problems = distributions.wheel_problems(wheel)
    assert "klimb/py.typed is missing" in problems
    assert "klimb/_version.py is another file" in problems
    assert "tests/test_contract.py does not belong there" in problems
    assert f"Version is ['0.0.1'], not ['{klimb.__version__}']" in problems


def test_all_files_name_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == klimb.__version__ == distributions.VERSION
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == klimb.__version__


def test_the_licence_and_the_newest_python_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == distributions.PROJECT["license"]
    prefix = "Programming Language :: Python :: 3."
    named = [f"3.{one.removeprefix(prefix)}" for one in distributions.PROJECT["classifiers"] if one.startswith(prefix)]
    assert distributions.PROJECT["requires-python"] == f">={named[0]}"
    if GITHUB.is_dir():
        assert workflow("tests")["jobs"]["tests"]["strategy"]["matrix"]["python"] == named


def workflow(name: str) -> dict[str, Any]:
    """A workflow of GitHub by the name of its file."""
    return yaml.safe_load((GITHUB / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))


@FOR_GITHUB
@pytest.mark.parametrize("name", ["tests", "release"])
def test_workflows_have_what_github_asks_for(name: str) -> None:
    content = workflow(name)
    # YAML 1.1 reads the key `on` as true.
    assert content.keys() == {"name", True, "permissions", "jobs"} | ({"concurrency"} & content.keys())
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert {"runs-on", "steps", "timeout-minutes"} <= job.keys()
        assert set(job.get("needs", [])) <= content["jobs"].keys()
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))


@FOR_GITHUB
def test_workflows_run_targets_of_the_makefile_and_files_that_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = "\n".join(
        step.get("run", "")
        for name in ("tests", "release")
        for job in workflow(name)["jobs"].values()
        for step in job["steps"]
    )
    targets = {word for words in re.findall(r"^make ([a-z -]+)$", commands, re.MULTILINE) for word in words.split()}
    assert {"lint", "types", "docs", "package"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    extras = re.findall(r"'\.\[([a-z,]+)\]'", commands)
    assert extras
    assert all(set(named.split(",")) <= distributions.PROJECT["optional-dependencies"].keys() for named in extras)
    assert "--constraint constraints.txt" in commands


@FOR_GITHUB
def test_only_the_job_that_publishes_may_ask_for_an_identity() -> None:
    jobs = workflow("release")["jobs"]
    assert {name for name, job in jobs.items() if "permissions" in job} == {"publish"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == ["build"]
    assert jobs["publish"]["environment"]
    # Whoever publishes runs no code of the repository.
    assert all("run" not in step for step in jobs["publish"]["steps"])


@FOR_GITHUB
@pytest.mark.parametrize("form", ["bug", "feature", "question"])
def test_forms_of_issues_can_be_filled_in(form: str) -> None:
    content = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{form}.yml").read_text(encoding="utf-8"))
    assert content.keys() == {"name", "description", "labels", "body"}
    kinds = {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    names = [field.get("id") for field in content["body"] if field["type"] != "markdown"]
    assert None not in names
    assert len(names) == len(set(names))
    for field in content["body"]:
        assert field["type"] in kinds
        assert ("value" if field["type"] == "markdown" else "label") in field["attributes"]


def test_the_hooks_call_tools_that_are_installed_for_development() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    tools = {Path(hook["entry"].split()[0]).name for hook in hooks}
    dev = {re.split(r"[>=<]", one)[0] for one in distributions.PROJECT["optional-dependencies"]["dev"]}
    assert tools <= dev
