"""The foot of the page: with what, on what and when the run was trained, in one line that opens."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from html import escape

from klimb.errors import one_line
from klimb.runs.changes import describe
from klimb.runs.provenance import Accelerator, Commit, Provenance

SHORT_HASH = 8
MAX_COMMAND = 4000


def provenance_html(entries: Sequence[Provenance]) -> str:
    """The foot as HTML, empty for a run without provenance. entries: of the run, oldest first."""
    if not entries:
        return ""
    shown = "\n".join(_entry_html(entry) for entry in entries)
    return (
        f'<footer class="foot"><details data-key="foot"><summary>{escape(summary(entries))}</summary>\n'
        f"<ol>\n{shown}\n</ol></details></footer>"
    )


def summary(entries: Sequence[Provenance]) -> str:
    """The line that is always seen: versions and machine of the first entry, its date, and how often it was resumed.

    entries: of the run, oldest first, at least one.
    """
    first, resumed = entries[0], sum(entry.event == "resume" for entry in entries[1:])
    parts = [
        f"klimb {first.klimb}",
        *(f"JAX {version}" for name, version in first.packages.items() if name == "jax"),
        f"Python {first.python}",
        *_machine(first),
        *([] if first.git is None else [f"commit {_commit(first.git, first.git.hash[:SHORT_HASH])}"]),
        *_preset(first),
        _when(first),
        *([f"resumed {resumed:,} time{'' if resumed == 1 else 's'}"] if resumed else []),
    ]
    return " · ".join(one_line(part, 200) for part in parts)


def _entry_html(entry: Provenance) -> str:
    facts = [
        f"klimb {entry.klimb}",
        f"Python {entry.python}",
        *(f"{name} {version}" for name, version in entry.packages.items()),
        *_machine(entry),
        *([] if entry.git is None else [f"git commit {_commit(entry.git, entry.git.hash)}"]),
        *_preset(entry),
    ]
    command = "" if entry.command is None else one_line(" ".join(map(_quoted, entry.command)), MAX_COMMAND)
    changes = "".join(f"<br>changed: {escape(one_line(describe(change), 400))}" for change in entry.changes)
    typed = f"<br><code>{escape(command)}</code>" if command else ""
    heading = _when(entry)
    return (
        f"<li><b>{escape(one_line(heading[:1].upper() + heading[1:]))}</b>: "
        f"{escape(', '.join(one_line(fact, 200) for fact in facts))}{typed}{changes}</li>"
    )


def _quoted(word: str) -> str:
    """A word of a command for a shell, which replaces what stands there for the user's names."""
    plain = re.fullmatch(r"(\$USER|\$HOSTNAME|[\w@%+=:,./~-])+", word, flags=re.ASCII)
    return word if plain else shlex.quote(word)


def _when(entry: Provenance) -> str:
    """started 2026-11-29 08:20:31 UTC"""
    date = entry.date.replace("T", " ").replace("Z", " UTC")
    return f"started {date}" if entry.event == "start" else f"resumed after iteration {entry.iteration:,}, {date}"


def _preset(entry: Provenance) -> list[str]:
    return [] if entry.preset is None else [f"preset {entry.preset}"]


def _machine(entry: Provenance) -> list[str]:
    cores = f"{entry.cores:,} core{'' if entry.cores == 1 else 's'}"
    return [entry.platform, cores, *_accelerator(entry.accelerator)]


def _accelerator(devices: Accelerator) -> list[str]:
    """The accelerator's name; nothing where JAX computes on the cores, which have been counted."""
    if devices.platform == "cpu":
        return []
    return [devices.kind if devices.count == 1 else f"{devices.count} × {devices.kind}"]


def _commit(commit: Commit, name: str) -> str:
    return f"{name} with uncommitted changes" if commit.uncommitted else name
