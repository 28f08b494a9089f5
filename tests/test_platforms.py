"""What other systems lack, taken away here: Windows' and macOS' ways are tried where the tests run."""

from __future__ import annotations

import builtins
import importlib
import os
import sys
from pathlib import Path, PureWindowsPath

import jax
import jax.numpy as jnp
import pytest

import klimb
from klimb import files, modules, processes
from klimb.cli.train import directory_name
from klimb.collect.host.workers import _memory_file
from klimb.files import open_to_append, write_atomically
from klimb.runs import hub, lock, zoo
from klimb.runs.directory import RunDirectory
from klimb.training import devices, resources, sources
from klimb.types import TrainState

CONFIG = klimb.RunConfig("CartPole-v1", klimb.TRPO(), klimb.TrainOptions())
STATE = TrainState(*[()] * 7, iteration=jnp.int32(0), env_steps=jnp.uint32(0), key=jax.random.key(0))
SMALL = {"num_envs": 2, "num_steps": 16, "hidden": (4,), "env_steps": 32, "critic_epochs": 1}


@pytest.fixture
def windows(monkeypatch):
    """What klimb asks of the system is answered as on Windows."""
    monkeypatch.setattr(sys, "platform", "win32")


def without(monkeypatch, *names: str) -> None:
    """Make modules impossible to import."""
    original = builtins.__import__

    def refuse(name, *arguments, **more):
        if name in names:
            raise ImportError(f"No module named {name!r}")
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_files_are_flushed_through_the_descriptor_that_wrote_them(tmp_path, monkeypatch):
    """Windows refuses to flush a descriptor that is open for reading only, and can't open directories at all."""
    fcntl = pytest.importorskip("fcntl")

    true_open, true_sync, flushed = os.open, os.fsync, []

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed.append(descriptor)
        true_sync(descriptor)

    def open_file(path, *arguments, **more):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return true_open(path, *arguments, **more)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "open", open_file)
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert len(flushed) == 1


@pytest.mark.parametrize(("platform", "tries"), [("win32", 3), ("linux", 1)])
def test_a_file_that_is_being_read_is_replaced_when_it_is_closed(tmp_path, monkeypatch, platform, tries):
    attempts, rename = [], Path.replace

    def replace(self, target):
        attempts.append(target)
        if len(attempts) < 3:
            raise PermissionError(13, "Access is denied")
        return rename(self, target)

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "replace", replace)
    if platform == "win32":
        write_atomically(tmp_path / "file", b"content")
        assert (tmp_path / "file").read_bytes() == b"content"
    else:
        with pytest.raises(PermissionError):
            write_atomically(tmp_path / "file", b"content")
        assert not list(tmp_path.iterdir())
    assert len(attempts) == tries


def test_a_file_that_stays_open_is_an_error_after_some_time(tmp_path, monkeypatch, windows):
    def replace(self, target):
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files, "SECONDS_TO_REPLACE", 0.1)
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())


def test_files_are_appended_to_without_the_flags_of_unix(tmp_path, monkeypatch):
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        monkeypatch.delattr(os, name)
    descriptor = open_to_append(tmp_path / "log")
    os.write(descriptor, b"line\n")
    os.close(descriptor)
    assert files.read_limited(tmp_path / "log", 10) == b"line\n"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the open files")
def test_a_run_directory_is_renamed_without_an_open_file_in_it(tmp_path, monkeypatch, windows):
    """Windows renames no directory in which a file is open."""
    monkeypatch.setattr(lock, "fcntl", None)
    rename, where = Path.rename, []

    def refusing(self, target):
        held = {Path(os.readlink(link)) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)}
        if any(self in file.parents for file in held):
            raise PermissionError(13, "Access is denied")
        where.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    directory = RunDirectory.create(tmp_path / "run", CONFIG, STATE, [])
    assert where == [tmp_path / "run"]
    assert RunDirectory.open(tmp_path / "run").saved_iterations() == [0]
    assert f"process {os.getpid()}" in (tmp_path / "run" / ".lock").read_text()  # it is locked again
    directory.close()
    assert not (tmp_path / "run" / ".lock").read_text()


def test_without_locks_two_processes_are_not_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    first, second = lock.RunLock(tmp_path), lock.RunLock(tmp_path)
    assert lock.RunLock.holder(tmp_path) is None
    first.release()
    second.release()


def test_fcntl_is_not_needed(monkeypatch):
    without(monkeypatch, "fcntl")
    try:
        assert importlib.reload(lock).fcntl is None
    finally:
        monkeypatch.undo()
        importlib.reload(lock)


@pytest.mark.parametrize(("platform", "workers"), [("win32", 0), ("darwin", 3), ("linux", 3)])
def test_where_the_number_of_workers_is_open_windows_has_none(monkeypatch, platform, workers):
    monkeypatch.setattr(sys, "platform", platform)
    assert sources._workers(klimb.TrainOptions(), cores=3) == workers
    assert sources._workers(klimb.TrainOptions(workers=2), cores=3) == 2


def test_worker_processes_that_are_asked_for_are_refused_in_one_line(windows):
    with pytest.raises(klimb.ConfigError, match=r"workers = 2: klimb has no worker processes on Windows.*--workers 0"):
        klimb.train("gymnasium:CartPole-v1", klimb.TRPO(), **SMALL, workers=2)


def test_late_workers_are_nothing_without_workers(windows):
    with pytest.raises(klimb.ConfigError, match="klimb has none on Windows; leave it out"):
        klimb.train("gymnasium:CartPole-v1", klimb.TRPO(), **SMALL, straggler_timeout=1.0)


def test_a_process_is_not_ended_because_its_parent_is_a_launcher(monkeypatch, windows):
    """In a virtual environment on Windows the parent of a process is never the one that has started it."""
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("the process has ended itself"))
    processes.end_with(parent=-1)


def test_shared_memory_is_a_temporary_file_where_there_is_no_memfd(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    file = _memory_file(1000)
    assert os.fstat(file.fileno()).st_size == 1000
    file.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no worker processes")
def test_workers_share_memory_in_a_temporary_file(monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    run = klimb.train("gymnasium:CartPole-v1", klimb.TRPO(), **SMALL, workers=1)
    assert int(run.state.env_steps.max()) >= 32


def test_cores_are_counted_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert devices.cores() == os.cpu_count()


def test_peak_memory_is_left_out_where_the_system_does_not_say(monkeypatch, windows):
    without(monkeypatch, "resource")
    assert "this process" not in resources.peak_memory()


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_peak_memory_has_the_unit_of_the_system(monkeypatch, platform, unit):
    resource = pytest.importorskip("resource")

    monkeypatch.setattr(sys, "platform", platform)
    expected = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert expected <= resources.peak_memory()["this process"] <= 2 * expected


@pytest.mark.parametrize("path", [r"C:\runs\trpo-CartPole-v1", "c:/runs/trpo-CartPole-v1"])
def test_a_drive_is_no_module(path):
    assert modules.module_of(path) is None
    with pytest.raises(klimb.WrongObject, match="to start from the policy of a run, write init_from="):
        klimb.train("jax:CartPole-v1", klimb.TRPO(), policy=path, **SMALL)


@pytest.mark.parametrize(
    ("name", "module"),
    [("c:Encoder", "c"), ("own.rules:Rule", "own.rules"), ("gymnasium.envs:x/CartPole", "gymnasium.envs")],
)
def test_a_module_of_one_letter_is_no_drive(name, module):
    assert modules.module_of(name) == module


def test_names_of_policies_are_read_from_paths_of_windows():
    """The command line takes them as paths, and Windows writes `zoo:trpo\\Hopper-v4` for one."""
    of_zoo, of_hub = PureWindowsPath("zoo:trpo/Hopper-v4"), PureWindowsPath("hf://user/name@v1")
    assert zoo.is_zoo(of_zoo)
    assert zoo.directory_of(of_zoo) == zoo.directory_of("zoo:trpo/Hopper-v4")
    assert hub.is_hub(of_hub)
    assert hub.HubName.read(of_hub) == hub.HubName("user/name", "v1")


@pytest.mark.parametrize("env", ["gymnasium:Hopper-v5", "jax:CartPole-v1", "brax:ant(backend=spring)", "own:My/Env-v0"])
def test_directories_of_runs_have_names_that_windows_allows(env):
    config = klimb.RunConfig(env, klimb.TRPO(), klimb.TrainOptions())
    assert not set(directory_name(config)) & set('<>:"/\\|?*()')
