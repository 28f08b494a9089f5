"""Compiled programs kept between processes, so that the second start of a run is quick."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import jax
import jaxlib

from klimb.errors import one_line
from klimb.files import exists

SWITCH = "KLIMB_COMPILATION_CACHE"

logger = logging.getLogger("klimb")


def enable() -> None:
    """Keep XLA's compiled programs under the user's cache directory, a folder for each version of jaxlib.

    KLIMB_COMPILATION_CACHE=off switches it off; another value is the directory to use. The entries are programs, which
    nothing but their directory protects: one that other users may write into is not used, with a warning.
    """
    where = os.environ.get(SWITCH, "")
    if where.lower() in ("off", "0", "none"):
        return
    try:
        base = Path(where or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # an account that the system does not know, as some clusters and containers have
        logger.warning(
            "this user has no home directory: compiled programs are not kept, and the next start is as slow as this "
            "one; set HOME, or %s to a directory of your own (or to off)",
            SWITCH,
        )
        return
    try:
        directory = _prepared(base / "klimb" / f"jaxlib-{jaxlib.__version__}")
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        cause = getattr(error, "strerror", None) or error
        logger.warning(
            "the compilation cache %s is not used (%s): the next start is as slow as this one; set %s to a directory "
            "of your own (or to off)",
            one_line(base / "klimb"),
            one_line(cause),
            SWITCH,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _prepared(directory: Path) -> Path:
    """The directory itself, not a link, which is there and which no other user may write into. Else OSError."""
    _require_own(directory)
    missing = [directory, *directory.parents]
    for path in reversed(missing[: next(k for k, path in enumerate(missing) if exists(path))]):
        path.mkdir(mode=0o700, exist_ok=True)
    # What a link leads to now is used: who owns the link may change that later.
    directory = directory.resolve()
    _require_own(directory)
    return directory


def _require_own(directory: Path) -> None:
    """PermissionError when another user may write into a directory, or may put another one in its place."""
    if not hasattr(os, "getuid"):  # Windows: the folders of a user are closed to others by default
        return
    user = os.getuid()
    for path in filter(exists, (directory, directory.parent)):
        status = path.stat()
        if status.st_uid != user:
            raise PermissionError(0, f"{path} belongs to another user, number {status.st_uid}")
        # A group with the number of the user has no other members: that is how most systems make accounts.
        others = stat.S_IWOTH if status.st_gid == user else stat.S_IWOTH | stat.S_IWGRP
        if status.st_mode & others:
            raise PermissionError(0, f"other users may write into {path}, and what they put there would run: remove it")
    base = directory.parent.parent
    if exists(base) and base.stat().st_uid not in (user, 0):
        raise PermissionError(0, f"{base} belongs to another user, number {base.stat().st_uid}")
    for path in filter(exists, directory.resolve().parents):
        # In a directory with the sticky bit, as /tmp, nobody can rename what belongs to another user.
        if path.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise PermissionError(0, f"every user may write into {path}, and rename what is there")
