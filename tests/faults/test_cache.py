"""Compiled programs that are kept: only in a directory that no other user may write into."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxlib
import pytest

from klimb.cli import compilation_cache
from klimb.training import surroundings

fault = pytest.mark.fault
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """JAX's settings are those of before again."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """The directory that caches are in."""
    base = tmp_path / "caches"
    base.mkdir()
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", str(base))
    return base


def used() -> str | None:
    """The directory that JAX is told to use, after klimb has chosen one."""
    compilation_cache.enable()
    return jax.config.jax_compilation_cache_dir


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_of_its_own_is_made_and_used(base, caplog):
    umask = os.umask(0)
    try:
        assert used() == str(base / "klimb" / f"jaxlib-{jaxlib.__version__}")
    finally:
        os.umask(umask)
    assert {mode(base / "klimb"), mode(Path(used()))} == {0o700}
    # A directory that earlier versions have made, which others can read, is used too.
    (base / "klimb").chmod(0o755)
    assert used() is not None
    assert not caplog.records


def require_refused(caplog, *parts: str) -> None:
    """No cache is used, and one line says why, and what to do."""
    assert used() is None
    (record,) = caplog.records
    line = record.getMessage()
    assert record.name == "klimb"
    assert line.isprintable()
    for part in (*parts, "the next start is as slow as this one", "KLIMB_COMPILATION_CACHE"):
        assert part in line


@pytest.mark.parametrize("name", ["klimb", f"klimb/jaxlib-{jaxlib.__version__}"])
@fault("every user may write into the directory of compiled programs", "it is not used, with a line that says why")
def test_open_to_every_user(base, name, caplog):
    (base / name).mkdir(parents=True)
    (base / name).chmod(0o777)
    require_refused(caplog, f"other users may write into {base / name}", "remove it")


@fault("a group may write into the directory of compiled programs", "it is not used, with a line that says why")
def test_open_to_a_group(base, caplog, monkeypatch):
    (base / "klimb").mkdir()
    (base / "klimb").chmod(0o775)
    status = (base / "klimb").stat()
    monkeypatch.setattr(os, "getuid", lambda: status.st_uid)
    if status.st_gid == status.st_uid:
        # The group of the user alone.
        assert used() is not None
        if os.getuid() != 0:
            pytest.skip("only root can give a directory to another group")
        os.chown(base / "klimb", -1, status.st_uid + 1)
        jax.config.update("jax_compilation_cache_dir", None)
    require_refused(caplog, f"other users may write into {base / 'klimb'}")


@fault("the directory of compiled programs belongs to another user", "it is not used, with a line that says why")
def test_of_another_user(base, caplog, monkeypatch):
    (base / "klimb").mkdir()
    owner = (base / "klimb").stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    require_refused(caplog, f"{base / 'klimb'} belongs to another user, number {owner}")


@fault("another user can rename the directory of compiled programs", "it is not used, with a line that says why")
def test_in_a_directory_open_to_every_user(base, caplog):
    base.chmod(0o777)
    require_refused(caplog, f"every user may write into {base}")
    # As in /tmp, where nobody can rename what is another user's.
    base.chmod(0o1777)
    assert used() is not None


@fault("the directory of compiled programs is a link into one that others may write into", "it is not used")
def test_a_link(base, tmp_path, caplog):
    real = tmp_path / "elsewhere"
    real.mkdir()
    (base / "klimb").symlink_to(real)
    # What the link leads to is used, not the link: it could be changed later.
    assert used() == str(real / f"jaxlib-{jaxlib.__version__}")
    real.chmod(0o777)
    jax.config.update("jax_compilation_cache_dir", None)
    require_refused(caplog, f"other users may write into {base / 'klimb'}")


@fault("the directory of compiled programs can't be made", "a line says so; the training goes on without it")
def test_that_can_not_be_made(base, caplog):
    (base / "klimb").write_text("a file")
    require_refused(caplog, "the compilation cache", "is not used (Not a directory)")


def test_a_link_to_itself(base, caplog):
    (base / "klimb").symlink_to(base / "klimb")
    require_refused(caplog, "the compilation cache")


@pytest.fixture
def unknown_user(monkeypatch):
    """An account that the system does not know, as batch systems and containers have."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "KLIMB_COMPILATION_CACHE", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)


@fault("HOME is not set, and the user has no account", "no cache is used; a line names the variables to set")
def test_without_a_home(unknown_user, caplog):
    with pytest.raises(RuntimeError):
        Path.home()
    require_refused(caplog, "this user has no home directory", "set HOME, or KLIMB_COMPILATION_CACHE")


def test_the_command_of_an_unknown_user_is_recorded_as_typed(unknown_user):
    assert surroundings.without_names(["klimb", "train", "--run-dir", "/data/runs/x"])[-1] == "/data/runs/x"


def test_off(base, monkeypatch, caplog):
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    assert used() is None
    assert not caplog.records
