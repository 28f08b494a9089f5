"""What a run says of itself: with what, on what, when and by which command it was trained, and nothing about whom."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

import equinox
import jax
import numpy as np
import optax
import pytest

import klimb
from klimb.cli.main import main
from klimb.errors import RunError
from klimb.modules import versions
from klimb.runs.directory import RunDirectory
from klimb.runs.provenance import (
    MAX_FILE,
    Accelerator,
    Change,
    Commit,
    Provenance,
    as_plain,
    read_provenance,
    write_provenance,
)
from klimb.training import surroundings
from klimb.training.surroundings import git_commit, observe, without_names
from klimb.training.typed_command import running, typed_command

SMALL = shlex.split(
    "--num-envs 2 --num-steps 16 --env-steps 64 --hidden 4 --critic-epochs 1 --critic-num-minibatches 1"
)
USER, HOST = "alice-of-the-tests", "workstation-of-the-tests"
OLD = Path(__file__).parent.parent / "data" / "run-0.1.0"

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def patch_machine(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A user and a machine with names that can be looked for; returns the home directory."""
    home = folder / "home" / USER
    home.mkdir(parents=True)
    patch.setenv("HOME", str(home))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        patch.setenv(name, USER)
    patch.setattr(socket, "gethostname", lambda: HOST)
    patch.setenv("KLIMB_COMPILATION_CACHE", "off")
    patch.setenv("GIT_CEILING_DIRECTORIES", str(folder))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        patch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run from the command line, of two iterations, in a directory that the shell has spelt out."""
    folder = tmp_path_factory.mktemp("provenance")
    with pytest.MonkeyPatch.context() as patch:
        home = patch_machine(patch, folder)
        patch.chdir(home)
        run = home / "runs" / USER / "one"
        words = ["train", "reinforce", "CartPole-v1", *SMALL, "--eval-episodes", "1", "--run-dir", str(run)]
        assert main(words) == 0
    return run


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    """A copy, in another current directory that is in no git work tree."""
    patch_machine(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current directory, in no git work tree."""
    patch_machine(monkeypatch, tmp_path)
    path = tmp_path / "project"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.mark.slow
def test_a_start_says_with_what_on_what_when_and_how(trained):
    (entry,) = json.loads((trained / "provenance.json").read_text())
    assert (entry["event"], entry["iteration"]) == ("start", 0)
    began = datetime.datetime.fromisoformat(entry["date"])
    assert began.tzinfo == datetime.UTC
    assert 0 <= (datetime.datetime.now(datetime.UTC) - began).total_seconds() < 3600
    assert entry["klimb"] == klimb.__version__
    assert entry["python"] == platform.python_version()
    imported = {"jax": jax, "numpy": np, "equinox": equinox, "optax": optax}
    expected = {name: module.__version__ for name, module in imported.items()}
    assert entry["packages"] == {**expected, "jaxlib": jax.lib.__version__}
    assert platform.machine() in entry["platform"]
    assert {"Linux": "Linux", "Darwin": "macOS"}.get(platform.system(), platform.system()) in entry["platform"]
    assert 1 <= entry["cores"] <= os.cpu_count()
    devices = jax.local_devices()
    assert entry["accelerator"] == {
        "platform": jax.default_backend(), "kind": devices[0].device_kind, "count": len(devices)
    }  # fmt: skip
    assert entry["git"] is None
    typed = ["klimb", "train", "reinforce", "CartPole-v1", *SMALL, "--eval-episodes", "1"]
    assert entry["command"] == [*typed, "--run-dir", "~/runs/$USER/one"]


@pytest.mark.slow
def test_nothing_in_it_names_a_person_a_machine_or_a_place(trained):
    text = (trained / "provenance.json").read_text()
    for name in (USER, HOST, str(trained), "/home/"):
        assert name not in text


@pytest.mark.slow
def test_a_resume_adds_an_entry(run):
    (start,) = read_provenance(run)
    klimb.resume(run)
    assert main(["resume", "run"]) == 0
    first, second, third = read_provenance(run)
    assert first == start
    assert (second.event, second.iteration, second.command) == ("resume", 2, None)
    assert (third.event, third.iteration, third.command) == ("resume", 2, ["klimb", "resume", "run"])
    assert first.date <= second.date <= third.date
    assert third.packages == first.packages
    assert typed_command() is None


@pytest.mark.slow
def test_a_run_without_the_file_is_resumed_reported_and_evaluated(run, capsys):
    (run / "provenance.json").unlink()
    assert '<footer class="foot">' not in klimb.write_report(run).read_text()
    assert main(["evaluate", "run", "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"] is None
    klimb.resume(run)
    assert [(entry.event, entry.iteration) for entry in read_provenance(run)] == [("resume", 2)]


def test_a_run_of_klimb_0_1_is_reported_without_it(tmp_path):
    old = Path(shutil.copytree(OLD, tmp_path / "run"))
    assert RunDirectory.open(old).provenance() == []
    assert '<footer class="foot">' not in klimb.write_report(old).read_text()


@pytest.mark.slow
def test_evaluate_says_it_for_programs(run, capsys):
    assert main(["evaluate", "run", "--episodes", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["provenance"] == json.loads((run / "provenance.json").read_text())


@pytest.mark.slow
def test_a_damaged_file_stops_no_resume_and_is_one_line_elsewhere(run, capsys, caplog):
    (run / "provenance.json").write_text('[{"event": "start"}]')
    assert main(["evaluate", "run", "--episodes", "1", "--json"]) == 2
    error = capsys.readouterr().err
    assert "provenance.json is not the provenance of a run" in error
    assert "remove the file" in error
    assert error.count("\n") == 1
    with pytest.raises(RunError, match="is not the provenance"):
        klimb.write_report(run)
    entry = observe("resume", klimb.make("CartPole-v1"), iteration=7)
    RunDirectory.open(run).add_provenance(entry)
    assert "a new record of the provenance is started" in caplog.text
    assert read_provenance(run) == [entry]


@pytest.mark.slow
def test_where_it_cannot_be_written_there_is_a_warning(run, caplog, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    before = read_provenance(run)
    monkeypatch.setattr("klimb.runs.provenance.write_text", fail)
    RunDirectory.open(run).add_provenance(before[0])
    assert "No space left on device" in caplog.text
    assert read_provenance(run) == before


def test_a_run_that_is_resumed_very_often_keeps_its_start_and_the_newest(tmp_path):
    entry = observe("resume", klimb.make("CartPole-v1"))
    entries = [dataclasses.replace(entry, iteration=i, command=["x" * 1000]) for i in range(2000)]
    write_provenance(tmp_path, entries)
    assert MAX_FILE / 2 < (tmp_path / "provenance.json").stat().st_size <= MAX_FILE
    kept = [one.iteration for one in read_provenance(tmp_path)]
    assert kept == [0, *range(2001 - len(kept), 2000)]


def test_entries_are_read_as_they_were_written(tmp_path):
    entry = observe("start", klimb.make("FrozenLake-v1"))
    entries = [
        entry,
        dataclasses.replace(entry, event="resume", iteration=3, git=Commit("0" * 40, None), command=["klimb", "é\n"]),
    ]
    write_provenance(tmp_path, entries)
    assert read_provenance(tmp_path) == entries
    assert json.loads((tmp_path / "provenance.json").read_text()) == as_plain(entries)
    assert {field.name for field in dataclasses.fields(Provenance)} == set(as_plain(entries)[0])


# Packages of the environment.


def packages_of(name: str) -> dict[str, str]:
    return versions(klimb.make(name).packages)


def test_packages_that_the_environment_is_made_of():
    gymnasium = {"gymnasium": importlib.metadata.version("gymnasium")}
    assert packages_of("CartPole-v1") == {}
    assert packages_of("FrozenLake-v1") == gymnasium
    assert packages_of("gymnasium:CartPole-v1") == gymnasium
    entry = observe("start", klimb.make("gymnasium:CartPole-v1"))
    assert entry.packages == versions(surroundings.PACKAGES) | gymnasium


def test_packages_of_mujoco():
    mujoco = pytest.importorskip("mujoco")
    assert packages_of("gymnasium:InvertedPendulum-v5")["mujoco"] == mujoco.__version__


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name"), [("envpool", "CartPole-v1"), ("gymnax", "Catch-bsuite")])
def test_packages_of_other_ecosystems(package, name):
    pytest.importorskip(package)
    assert packages_of(f"{package}:{name}") == {package: importlib.metadata.version(package)}


def test_packages_that_are_not_installed_are_left_out():
    assert versions(["numpy", "no-such-package-at-all", "builtins", ""]) == {"numpy": np.__version__}


# The command.


@pytest.mark.parametrize(
    ("word", "recorded"),
    [
        ("trpo", "trpo"),
        ("runs/one", "runs/one"),
        ("../data/x", "../data/x"),
        ("/data/x", "/data/x"),
        ("HOME", "~"),
        ("HOME/x", "~/x"),
        ("--run-dir=HOME/x", "--run-dir=~/x"),
        ("minari:HOME/x", "minari:~/x"),
        ("HOME-of-another/x", f"/home/{USER}-of-another/x"),
        ("/mntHOME/x", "/mnt/home/$USER/x"),
        (f"/scratch/{USER}/x", "/scratch/$USER/x"),
        (f"../{USER}", "../$USER"),
        (f"--init-from={USER}/x", "--init-from=$USER/x"),
        (f"/nodes/{HOST}/x", "/nodes/$HOSTNAME/x"),
        (f"/scratch/{USER}2/x", f"/scratch/{USER}2/x"),
        ("a\udc80b", "a?b"),
    ],
)
def test_paths_are_what_was_typed_without_names(word, recorded, monkeypatch, tmp_path):
    patch_machine(monkeypatch, tmp_path)
    monkeypatch.setenv("HOME", f"/home/{USER}")
    assert without_names([word.replace("HOME", f"/home/{USER}")]) == [recorded]


def test_an_account_without_home_and_name(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr("getpass.getuser", lambda: (_ for _ in ()).throw(KeyError("no such user")))
    assert without_names(["/data/x", "y"]) == ["/data/x", "y"]


def test_the_command_is_that_of_the_command_line_alone():
    assert typed_command() is None

    def fail() -> None:
        assert typed_command() == ("klimb", "train")
        raise RuntimeError

    with pytest.raises(RuntimeError), running(["train"]):
        fail()
    assert typed_command() is None


# The commit.


def git(*words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *words], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


def fake_git(folder: Path, monkeypatch, script: str) -> None:
    """The only `git` that there is."""
    program = folder / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(surroundings, "GIT_TIMEOUT", 0.3)


@needs_git
def test_the_commit_of_the_current_directory(folder):
    assert git_commit() is None
    git("init", "-q")
    assert git_commit() is None
    (folder / "mine.py").write_text("x = 1\n")
    git("add", "mine.py")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == Commit(commit, uncommitted=False)
    (folder / "untracked").write_text("runs are often not tracked")
    assert git_commit() == Commit(commit, uncommitted=False)
    (folder / "mine.py").write_text("x = 2\n")
    assert git_commit() == Commit(commit, uncommitted=True)
    git("add", "mine.py")
    assert observe("start", klimb.make("CartPole-v1")).git == Commit(commit, uncommitted=True)


@needs_git
def test_no_program_of_the_repository_watches_its_files(folder):
    """`core.fsmonitor` names a program that git starts."""
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    program = folder / "monitor"
    program.write_text("#!/bin/sh\ntouch started\n")
    program.chmod(0o755)
    git("config", "core.fsmonitor", str(program))
    assert git_commit() is not None
    assert not (folder / "started").exists()
    git("status")
    assert (folder / "started").exists()


def test_without_git_there_is_no_commit(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    assert git_commit() is None


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_git_that_hangs_is_not_waited_for(folder, monkeypatch):
    fake_git(folder, monkeypatch, "sleep 30")
    start = time.monotonic()
    assert git_commit() is None
    assert time.monotonic() - start < 10


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_where_the_status_takes_too_long_changes_are_not_known(folder, monkeypatch):
    script = f'case "$*" in *rev-parse*) echo {"a" * 40};; *) sleep 30;; esac'
    fake_git(folder, monkeypatch, script)
    assert git_commit() == Commit("a" * 40, uncommitted=None)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("said", ["fatal: not a repository", "echo; echo /home/x", "exit 128"])
def test_what_is_no_commit_is_not_recorded(folder, monkeypatch, said):
    fake_git(folder, monkeypatch, said if said.startswith(("echo", "exit")) else f"echo '{said}'")
    assert git_commit() is None


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a current directory can't be removed")
def test_a_current_directory_that_is_gone_has_no_commit(folder):
    folder.rmdir()
    assert git_commit() is None


def test_every_key_is_in_the_docs():
    page = (Path(__file__).parent.parent.parent / "docs" / "runs.md").read_text()
    table = page.split("\n## Provenance\n")[1].split("\n## ")[0]
    keys = [field.name for kind in (Provenance, Accelerator, Commit, Change) for field in dataclasses.fields(kind)]
    assert len(keys) >= 16
    for key in keys:
        assert f"`{key}`" in table, key
