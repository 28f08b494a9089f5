"""The report of a run while it is trained: served on this machine, and brought up to date in pages that are open."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from html import escape
from pathlib import Path

from klimb.errors import KlimbError
from klimb.local_page import Audience, served
from klimb.report.data import Spec, read_run
from klimb.report.html import FILE_NAME, fill, resource
from klimb.report.page import Live, render
from klimb.runs.ending import ENDED
from klimb.runs.lock import RunLock
from klimb.runs.metrics import FILE_NAME as METRICS

EVALUATION = "evaluation.json"
FILES = (METRICS, ENDED, EVALUATION, "config.toml", "provenance.json")
"""Files of a run that its report is made from."""
SECONDS = 1.0
"""Between two looks at the files, at least."""
SHARE = 0.2
"""Of the time that is spent on making the page, at most: that of a long run takes seconds, and the training needs the
machine too."""
SETTLED = 120.0
"""Seconds after which a run that has ended, and is not evaluated, counts as one that will not be: in Python that is
normal."""


class LiveReport:
    """The page of a run as it is now, made when a page asks for it, and only once per state of the files.

    run_dir: of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.seconds = 0.0
        """What the last page took to be made."""
        self.made = 0
        """How many pages were made."""
        self.given = ""
        """The state of the last page that was sent completely."""
        self._lock = threading.Lock()
        self._state, self._text = "", ""

    def state(self) -> str:
        """A name for the present state of the files: another one after each change."""
        facts = [(name, *_facts(self.run_dir / name)) for name in FILES]
        return hashlib.sha256(repr((facts, self.ended())).encode()).hexdigest()[:16]

    def ended(self) -> bool:
        """Whether the run has ended: nobody writes into it, and its policy was evaluated, if it will be at all."""
        ended = _facts(self.run_dir / ENDED)
        if not ended or RunLock.holder(self.run_dir) is not None:
            return False
        # Whoever trains releases the lock, evaluates the policy, and writes the report.
        after = [_facts(self.run_dir / name) for name in (EVALUATION, FILE_NAME)]
        evaluated = any(facts and facts[0] >= ended[0] for facts in after)
        return evaluated or time.time() - ended[0] / 1e9 > SETTLED

    def page(self) -> str:
        """The page. What can't be shown, such as a run without an iteration, is said in it."""
        with self._lock:
            state = self.state()  # before the files are read: what changes meanwhile is another state
            if state != self._state:
                began = time.monotonic()
                self._text, self._state = self._made(state), state
                self.seconds, self.made = time.monotonic() - began, self.made + 1
            return self._text

    def _made(self, state: str) -> str:
        try:
            return render(read_run(self.run_dir), live=live_part(state))
        except KlimbError as error:
            live = live_part(state)
            data: Spec = {"charts": [], "steps": [], "first": [], "last": []}
            name = escape(self.run_dir.resolve().name)
            return fill(
                "waiting.html",
                data,
                player=live.script,
                live=True,
                status=live.html,
                title=name,
                said=escape(str(error)),
            )

    def was_given(self, text: str) -> None:
        """Remember which page was sent completely. text: the page."""
        with self._lock:
            if text is self._text:
                self.given = self._state


def live_part(state: str) -> Live:
    """What a page has besides to be kept up to date. state: of the files that it was made from."""
    html = f'<p class="live" id="live" role="status" data-state="{state}">connecting</p>\n'
    return Live(resource("live.js"), html)


def serve_report(run_dir: Path, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the report of a run, and keep open pages up to date, until the run has ended and a page has shown it.

    run_dir: of the run, which another process may train. port: of the page; 0 for a free one. on_ready: called with the
    page's address.

    Nothing is read or made while no page is open. Raises RunError when the port can't be used.
    """
    report, audience, sent = LiveReport(run_dir), Audience("state"), ""
    with served(report.page, audience, port, report.was_given) as address:
        on_ready(address)
        while True:
            audience.wait()
            ended, state = report.ended(), report.state()
            if state != sent:
                audience.send({"kind": "state", "state": state, "ended": ended})
                sent = state
            elif ended and report.given == state:
                return  # one look after the message, so that all pages have asked for it
            time.sleep(max(SECONDS, report.seconds * (1 / SHARE - 1)))


def _facts(path: Path) -> tuple[int, ...]:
    """When a file was changed, and its size; nothing where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
