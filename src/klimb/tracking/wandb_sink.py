"""Runs in Weights & Biases, online or offline as W&B is set to."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from klimb.files import kind_of_link, read_limited, write_atomically
from klimb.tracking.sink import Outcome, Point, TrackedRun
from klimb.tracking.wandb_file import is_complete, logged

SECONDS_TO_BEGIN, SECONDS_TO_END = 30.0, 45.0
"""That W&B may take to reach its server, and to send what is left at the end."""
SECONDS_TO_WRITE = 10.0
"""That it may take to write its file, offline."""
FOLDER = "wandb"
"""W&B's files inside of a run directory."""

_ONE_AT_A_TIME = threading.Lock()
"""Runs of a sweep begin together."""


class WandbSink:
    """One run of klimb in W&B."""

    def __init__(self) -> None:
        self._tracked: TrackedRun | None = None
        self._run: Any = None
        self._summary: dict[str, Any] = {}
        """What the summary is already, where that is known from files."""

    def begin(self, run: TrackedRun) -> int | None:
        """As `Sink.begin`. Online W&B's server says which step is the last one, offline its files do."""
        self._tracked = run
        if run.directory is not None and kind_of_link(run.directory / FOLDER) is not None:
            raise OSError(errno.ELOOP, "klimb writes into the run directory alone, and there is a link", FOLDER)
        if _is_online():
            steps = self._begun().step  # the next one
            return steps - 1 if steps > 0 else None
        last, self._summary = (None, {}) if run.directory is None else in_files(run.directory / FOLDER, run.id)
        return last

    def log(self, points: Sequence[Point]) -> None:
        """As `Sink.log`."""
        for point in points:
            self._begun().log(dict(point.values), step=point.step, commit=True)

    def finish(self, outcome: Outcome) -> None:
        """As `Sink.finish`. Where W&B's files say that there is nothing new, no further ones are written."""
        if self._run is None and outcome.summary.items() <= self._summary.items():
            return
        run = self._begun()
        run.summary.update(outcome.summary)
        for path in () if run.disabled else outcome.files:
            # A copy: W&B would make a link, through which the file of the run could be changed.
            copy = Path(run.dir) / path.name
            write_atomically(copy, read_limited(path, path.stat().st_size))
            run.save(str(copy), base_path=run.dir, policy="now")
        run.finish(exit_code=1 if outcome.reason == "failed" else 0)
        if run.offline:
            _wait_for(Path(run.dir).parent / f"run-{run.id}.wandb")

    def _begun(self) -> Any:
        """W&B's run, which is begun here if it was not."""
        if self._run is None:
            assert self._tracked is not None, "begin comes first"
            self._run = _begin(self._tracked)
        return self._run


def _is_online() -> bool:
    """Whether W&B is to send to its server. ConnectionError when it is, and has no key for it."""
    with _ONE_AT_A_TIME, _own_hooks():
        # It prints nothing, and asks for no key in this thread; unless the user's own code has set it up.
        is_first = "wandb" not in sys.modules
        import wandb

        settings = wandb.setup(settings=wandb.Settings(silent=True) if is_first else None).settings
        online = settings.mode in ("online", "shared", "run")
        if online and not wandb.login(prompt=False):
            raise ConnectionError("there is no API key: type wandb login, or set WANDB_MODE=offline")
        return online


def _begin(run: TrackedRun) -> Any:
    """A run of W&B, which knows nothing but what klimb says: not the machine, not its user, not what is printed."""
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        init_timeout=SECONDS_TO_BEGIN,
        finish_timeout=SECONDS_TO_END,
        finish_timeout_raises=True,
        host="",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    with _ONE_AT_A_TIME, _own_hooks():
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "klimb",
            id=run.id,
            name=run.name,
            group=run.group,
            dir=None if run.directory is None else str(run.directory.resolve()),
            config={**run.settings, "provenance": run.provenance},
            allow_val_change=True,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )


def _wait_for(path: Path) -> None:
    """Wait until a file is written: W&B's process does that a moment after the run is finished.

    path: the file. Whoever goes on with the run reads in it what has been logged.
    """
    deadline = time.monotonic() + SECONDS_TO_WRITE
    while not is_complete(path) and time.monotonic() < deadline:
        time.sleep(0.02)


@contextlib.contextmanager
def _own_hooks() -> Iterator[None]:
    """W&B replaces what ends a program and what prints an error that nobody catches: they are put back."""
    before = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = before


def in_files(folder: Path, identifier: str) -> tuple[int | None, dict[str, Any]]:
    """The last step and the summary in all files of a run. A damaged file counts as if it were not there.

    folder: of W&B. identifier: of the run.
    """
    last: int | None = None
    summary: dict[str, Any] = {}
    for path in sorted(folder.glob(f"*run-*/run-{identifier}.wandb")):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            step, found = logged(path)
            summary |= found
            last = step if last is None or (step is not None and step > last) else last
    return last, summary
