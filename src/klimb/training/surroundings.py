"""What a training runs with and on: versions, the machine, the command, the git commit of the current directory."""

from __future__ import annotations

import datetime
import getpass
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Sequence
from typing import Literal

import jax

from klimb._version import __version__
from klimb.environments.registry import Environment
from klimb.modules import versions
from klimb.runs.provenance import Accelerator, Change, Commit, Provenance
from klimb.training.devices import cores
from klimb.training.typed_command import typed_command

PACKAGES = ("jax", "jaxlib", "numpy", "equinox", "optax")
"""What every training computes with. An environment adds its own."""
GIT_TIMEOUT = 2.0
"""Seconds that git may take for each of two questions; on a slow file system the answer is not waited for."""

GIT_ENVIRONMENT = {
    # It neither asks for anything nor locks the index, which would stop a `git commit` at the same time.
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    # What a partial clone lacks is not fetched, with programs that the repository's configuration names.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
}


def observe(
    event: Literal["start", "resume"],
    environment: Environment,
    *,
    iteration: int = 0,
    changes: Sequence[Change] = (),
    preset: str | None = None,
) -> Provenance:
    """The entry of a run for a training that begins now.

    event: whether it starts or is resumed. environment: where it trains. iteration: iterations done before.
    changes: of the configuration, from then on. preset: that the settings were taken from, by its name.
    """
    words, devices = typed_command(), jax.local_devices()
    return Provenance(
        event=event,
        iteration=iteration,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=None if words is None else without_names(words),
        klimb=__version__,
        python=platform.python_version(),
        packages=versions((*PACKAGES, *environment.packages)),
        platform=_system(),
        cores=cores(),
        accelerator=Accelerator(devices[0].platform, devices[0].device_kind, len(devices)),
        git=git_commit(),
        changes=list(changes),
        preset=preset,
    )


def without_names(words: Iterable[str]) -> list[str]:
    """Words of a command with paths that say nothing about whose machine it was; all else is what was typed.

    The home directory is written `~`, and a directory named like the user or the machine `$USER` or `$HOSTNAME`: a
    shell replaces `~` before the command sees it.
    """
    # Text that is no Unicode can't be written as JSON that others read.
    return [_without_names(word.encode("utf-8", "replace").decode("utf-8")) for word in words]


def _without_names(word: str) -> str:
    home = os.path.expanduser("~").rstrip("/\\")
    if os.path.isabs(home):
        word = re.sub(rf"(?<![^=:,\s]){re.escape(home)}(?![^/\\:,\s])", "~", word)
    if not re.search(r"[/\\]", word):
        return word
    for name, variable in ((_user(), "$USER"), (socket.gethostname(), "$HOSTNAME")):
        if name:
            word = re.sub(rf"(?<![^/\\=:,\s]){re.escape(name)}(?![^/\\:,\s])", variable, word)
    return word


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # an account without a name, as in some containers
        return ""


def _system() -> str:
    """Operating system, its version in figures, and architecture: what follows the figures may name the machine."""
    mac = platform.mac_ver()[0]
    figures = re.match(r"\d+(\.\d+)*", mac or platform.release())
    parts = ("macOS" if mac else platform.system(), figures[0] if figures else "", platform.machine())
    return " ".join(part for part in parts if part)


def git_commit() -> Commit | None:
    """The commit that is checked out in the current directory; None where there is none, or no git. Never raises.

    The repository may be a stranger's: no program that its configuration names is run.
    """
    commit = _git("rev-parse", "--verify", "HEAD")
    if commit is None or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return None
    if _names_filters():
        return Commit(commit, None)
    # Untracked files do not count: runs/ is often one. A submodule has a configuration of its own.
    changes = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return Commit(commit, None if changes is None else changes != "")


def _names_filters() -> bool:
    """Whether the repository itself, and not the user, names filters: git runs them to see what has changed."""
    names = _git("config", "--list", "--name-only", "--show-scope", "--includes")
    own = r"(local|worktree)\s+filter\."
    return names is None or any(re.match(own, line) for line in names.splitlines())


def _git(*words: str) -> str | None:
    """What git prints, without line ends at both sides; None when it fails, is missing, or takes too long."""
    git = shutil.which("git")
    if git is None:
        return None
    try:
        done = subprocess.run(
            # No program that the repository's configuration names watches its files for git.
            [git, "-c", "core.fsmonitor=false", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=GIT_TIMEOUT,
            env={**os.environ, **GIT_ENVIRONMENT},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None
