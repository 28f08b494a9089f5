"""Code named by a file: only the modules that a configuration names, and only with --trust-environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import jax
import pytest

import klimb
from klimb import TRPO, NetworkPolicy, RunConfig, TrainOptions, save_policy
from klimb.cli.main import main
from klimb.environments.registry import require_trust
from klimb.errors import UntrustedEnvironment
from klimb.policies.actions import Discrete
from klimb.training.surroundings import git_commit

OPTIONS = TrainOptions(env_steps=32, num_envs=2, num_steps=16, hidden=(4,), critic_num_minibatches=1)
MODULE = """
import pathlib
import gymnasium as gym
pathlib.Path({mark!r}).write_text("imported")
class Still(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return self.observation_space.low, {{}}
    def step(self, action):
        return self.observation_space.low, 0.5, False, False, {{}}
if "Stranger-v0" not in gym.registry:
    gym.register("Stranger-v0", Still, max_episode_steps=5)
"""


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Iterator[Path]:
    """The file that the stranger's module writes when it is imported; the package of it writes it too."""
    mark = tmp_path / "imported"
    package = tmp_path / "site" / "stranger_package"
    package.mkdir(parents=True)
    (tmp_path / "site" / "stranger.py").write_text(MODULE.format(mark=str(mark)))
    (package / "__init__.py").write_text(MODULE.format(mark=str(mark)))
    (package / "inner.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    yield mark
    for name in ("stranger", "stranger_package", "stranger_package.inner"):
        sys.modules.pop(name, None)


def make_run(folder: Path, env: str) -> Path:
    save_policy(NetworkPolicy(3, Discrete(2), hidden=(4,), key=jax.random.key(0)), folder)
    (folder / "config.toml").write_text(RunConfig(env, TRPO(), OPTIONS).to_toml())
    return folder


NAMES = (
    "stranger:Stranger-v0",
    "gymnasium:stranger:Stranger-v0",
    "stranger_package.inner:Stranger-v0",
    "gymnasium:gymnasium:stranger:Stranger-v0",
    "stranger:",
)
FROM_FILES = {
    "evaluate": "evaluate run --episodes 1",
    "record": "record run --episodes 1",
    "resume": "resume run",
    "train": "train --config run/config.toml --eval-episodes 0",
    "sweep": "sweep --config run/config.toml --over max_kl 0.01 0.02 --eval-episodes 0",
    "tune": "tune --config run/config.toml --over max_kl:0.01:0.02 --eval-episodes 1",
}


@pytest.mark.fault(
    "a configuration names an environment of a module",
    "nothing is imported: refused, with the module's name, unless --trust-environment is given",
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", FROM_FILES.values(), ids=FROM_FILES)
def test_a_name_out_of_a_file_imports_nothing(mark, words, name, capsys):
    make_run(Path("run"), name)
    if words.startswith(("sweep", "tune")):  # they take their words before the flags
        words = words.replace(" --config run/config.toml", "") + " --config run/config.toml"
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert not mark.exists()
    assert not {"stranger", "stranger_package"} & set(sys.modules)
    assert "run/config.toml' names the environment" in error
    assert "give --trust-environment" in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("words", [FROM_FILES[name] for name in ("evaluate", "record", "train")])
def test_with_the_flag_it_is_imported(mark, words):
    make_run(Path("run"), "stranger:Stranger-v0")
    assert main([*words.split(), "--trust-environment"]) == 0
    assert mark.exists()


def test_resume_takes_the_flag(mark, capsys):
    make_run(Path("run"), "stranger:Stranger-v0")
    assert main(["resume", "run", "--trust-environment"]) == 2
    assert mark.exists()
    assert "checkpoint" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "train trpo stranger:Stranger-v0 --num-envs 2 --num-steps 16 --env-steps 32 --hidden 4 --eval-episodes 0",
        "train trpo stranger:Stranger-v0 --config plain/config.toml --eval-episodes 0",
        "evaluate plain --env stranger:Stranger-v0 --episodes 1",
        "record plain --env stranger:Stranger-v0 --episodes 1",
    ],
)
def test_what_is_typed_is_trusted(mark, words, capsys):
    make_run(Path("plain"), "CartPole-v1")
    assert main(words.split()) == 0
    assert mark.exists()
    if words.startswith("train"):
        assert "klimb evaluate runs/trpo-stranger-Stranger-v0 --trust-environment" in capsys.readouterr().out


def test_from_python(mark):
    make_run(Path("run"), "stranger:Stranger-v0")
    with pytest.raises(UntrustedEnvironment, match=r"'run/config\.toml' names .* imports the module 'stranger'"):
        klimb.resume("run")
    assert not mark.exists()


@pytest.mark.parametrize("words", ["report run", "compare run"])
def test_reports_and_comparisons_make_no_environment(mark, words, capsys):
    run = make_run(Path("run"), "stranger:Stranger-v0")
    (run / "metrics.jsonl").write_text('{"iteration": 1, "env_steps": 32, "episode_return": 2.5}\n')
    assert main(words.split()) == 0
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "jax:x:y", "gymnax:x:y", "envpool:x:y", "gymnasium:Ant-v5", "ALE/Pong-v5", "../x", ""]
)
def test_names_that_import_nothing_need_no_trust(name):
    require_trust(name, "config.toml")


@pytest.mark.parametrize(
    "name", [":CartPole-v1", "a..b:CartPole-v1", ".a:X", "a\0b:X", "no_such.module:X", "a b:X", "x:"]
)
def test_modules_that_are_none(name):
    with pytest.raises(klimb.EnvironmentNotFound, match="neither an importable module nor"):
        klimb.make(name)


@pytest.mark.fault(
    "the name of an environment in a configuration looks like a path",
    "refused if there is no such environment; no directory outside of runs/ is created",
)
@pytest.mark.parametrize(
    "name", ["../../x", "..", "/etc/x", "a\\..\\b", "x\0y", "x\ny", "é" * 150, "jax:../../CartPole-v1"]
)
def test_directories_of_runs_stay_where_they_belong(name, mark):
    from klimb.cli.train import directory_name

    path = Path("runs") / directory_name(RunConfig(name, TRPO(), OPTIONS))
    assert path.parent == Path("runs")
    assert path.name.startswith("trpo-")
    assert path.name.isascii()
    assert path.name.isprintable()
    assert len(path.name) < 250
    make_run(Path("run"), name)
    assert main(["train", "--config", "run/config.toml"]) == 2
    assert {found.name for found in Path().iterdir()} == {"run", "site"}


STRANGE = """
import pathlib
pathlib.Path({mark!r}).write_text("imported")
"""
WITH_WORKERS = {"num_envs": 2, "num_steps": 16, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}
FLAGS = "--num-envs 2 --num-steps 16 --hidden 4 --critic-epochs 1 --critic-num-minibatches 1 --eval-episodes 0"


def strange_folder(folder: Path, module: str) -> Path:
    """A folder with a module of the name of one that worker processes import; the file that its code writes."""
    mark = folder.parent / f"imported-{folder.name}"
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(STRANGE.format(mark=str(mark)))
    return mark


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(
            "gymnasium",
            marks=pytest.mark.fault(
                "a run with worker processes is resumed in a folder that holds a gymnasium.py", "its code is not run"
            ),
        ),
        pytest.param(
            "random",
            marks=[
                pytest.mark.slow,
                pytest.mark.slow,
                pytest.mark.fault(
                    "a run with worker processes is resumed in a folder that holds a random.py",
                    "its code is not run, and the training goes on",
                ),
            ],
        ),
    ],
)
def test_resuming_imports_nothing_of_the_current_directory(module, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    mark = strange_folder(folder, module)
    klimb.train("gymnasium:CartPole-v1", TRPO(), env_steps=32, run_dir=folder / "run", workers=1, **WITH_WORKERS)
    monkeypatch.chdir(folder)
    assert main(["resume", "run", "--env-steps", "64", "--eval-episodes", "0"]) == 0
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.fault(
    "a training with worker processes is started in a folder that holds modules named like Python's own",
    "they are not imported, and the training goes on",
)
def test_training_imports_nothing_of_the_current_directory(tmp_path, monkeypatch):
    marks = [strange_folder(tmp_path / "folder", module) for module in ("random", "types", "numpy", "klimb", "json")]
    monkeypatch.chdir(tmp_path / "folder")
    assert main(f"train trpo gymnasium:CartPole-v1 --workers 2 --env-steps 32 {FLAGS}".split()) == 0
    assert not any(mark.exists() for mark in marks)


@pytest.mark.fault(
    "an environment is checked in a folder that holds a gymnasium.py", "its code is not run in the worker process"
)
def test_checking_imports_nothing_of_the_current_directory(tmp_path, monkeypatch):
    mark = strange_folder(tmp_path / "folder", "gymnasium")
    monkeypatch.chdir(tmp_path / "folder")
    check = klimb.check_env("gymnasium:CartPole-v1", steps=5)
    (workers,) = (finding for finding in check.findings if finding.name == "worker processes")
    assert workers.status == "ok", workers
    assert not mark.exists()


OWN = """
import gymnasium as gym
class Still(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}
    def step(self, action):
        return self.observation_space.low, 0.5, False, False, {}
gym.register("Own-v0", "own_environment_of_mine:Still", max_episode_steps=5)
"""


@pytest.mark.parametrize(
    ("folder", "entry"),
    [
        pytest.param("plain", "{absolute}", id="absolute"),
        pytest.param("plain", "plain", id="relative"),
        pytest.param(".", "", id="the-current-directory"),
        pytest.param(
            "a:b",
            "{absolute}",
            marks=pytest.mark.fault(
                "a module is in a directory whose name holds a colon",
                "worker processes find it, and import nothing from the parts of the name",
            ),
            id="colon",
        ),
        pytest.param("ä\udcff", "{absolute}", id="no-text"),
    ],
)
def test_workers_find_what_this_process_finds(folder, entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(exist_ok=True)
    (Path(folder) / "own_environment_of_mine.py").write_text(OWN)
    # What is left of and right of the colon, as relative paths.
    Path("b").mkdir()
    (Path("b") / "random.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(entry.format(absolute=Path(folder).absolute()))
    try:
        environment = klimb.make("own_environment_of_mine:Own-v0")
        check = klimb.check_env(environment, steps=5)
        (workers,) = (finding for finding in check.findings if finding.name == "worker processes")
        assert workers.status == "ok", workers
    finally:
        sys.modules.pop("own_environment_of_mine", None)
        gymnasium.registry.pop("Own-v0", None)


@pytest.mark.slow
def test_a_module_that_is_typed_is_found_by_the_workers(tmp_path, monkeypatch):
    (tmp_path / "own_environment_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        words = f"train trpo own_environment_of_mine:Own-v0 --workers 1 --env-steps 32 {FLAGS}"
        assert main(words.split()) == 0
    finally:
        sys.modules.pop("own_environment_of_mine", None)
        gymnasium.registry.pop("Own-v0", None)


def git(*words: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository with a file that looks changed, as one that was unpacked does; the program that it wants to run."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # As on a machine without a configuration of the user.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    git("init", "--quiet")
    Path("tracked").write_text("text\n")
    git("add", "tracked")
    git("commit", "--quiet", "-m", "first")
    Path("tracked").write_text("text\n")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    return program


def name_a_filter(program: Path) -> None:
    git("config", "filter.x.clean", str(program))
    Path(".git/info").mkdir(exist_ok=True)
    Path(".git/info/attributes").write_text("* filter=x\n")


def name_a_filter_elsewhere(program: Path) -> None:
    Path(".git/more").write_text(f'[filter "x"]\n\tprocess = {program}\n\tclean = {program}\n')
    git("config", "include.path", "more")
    Path(".gitattributes").write_text("tracked filter=x\n")


def name_a_watcher(program: Path) -> None:
    git("config", "core.fsmonitor", str(program))


def name_a_transport(program: Path) -> None:
    """The tree of HEAD is missing, and would be fetched."""
    git("config", "core.repositoryFormatVersion", "1")
    git("config", "extensions.partialClone", "origin")
    git("config", "remote.origin.url", "ssh://example.invalid/x")
    git("config", "remote.origin.promisor", "true")
    git("config", "core.sshCommand", str(program))
    tree = subprocess.run(
        ["git", "rev-parse", "HEAD^{tree}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (Path(".git/objects") / tree[:2] / tree[2:]).unlink()


@pytest.mark.fault(
    "the current directory is a stranger's git repository, whose configuration names programs",
    "none is run when a training records the commit",
)
@pytest.mark.parametrize("change", [name_a_filter, name_a_filter_elsewhere, name_a_watcher, name_a_transport])
def test_the_programs_of_a_repository_are_not_run(repository, change):
    change(repository)
    ran = repository.with_name("ran")
    ran.unlink(missing_ok=True)
    commit = git_commit()
    assert commit is not None
    assert not ran.exists()
    # What git alone does there.
    subprocess.run(["git", "status"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert ran.exists()


def test_changes_are_seen_where_the_repository_names_nothing(repository):
    assert git_commit().uncommitted is False
    Path("tracked").write_text("other\n")
    assert git_commit().uncommitted is True
    name_a_filter(repository)
    assert git_commit().uncommitted is None
