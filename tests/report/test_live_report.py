"""The report that is served: it follows the run, in pages that are open, and ends with it."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import trpo_run, write_evaluation

from browser import CHROMIUM, Browser
from klimb.cli import report as report_command
from klimb.errors import ConfigError
from klimb.report import live
from klimb.report.live import LiveReport, serve_report
from klimb.report.page import write_report
from klimb.runs.ending import ENDED, Ending, write_ending
from klimb.runs.lock import RunLock

LAST = 40


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of 40 iterations, of which the first 30 have been made; many of its steps are rejected."""
    run = trpo_run(tmp_path / "run", LAST, evaluate=False)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records[:20]:
        record["status"] = "KL_TOO_LARGE"
    (tmp_path / "whole.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    advance(run, 30)
    return run


def advance(run: Path, iteration: int) -> None:
    """Make the run as long as it was after an iteration, as a training that goes on does."""
    lines = (run.parent / "whole.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:iteration]))


def end(run: Path) -> None:
    write_ending(run, Ending("complete", LAST, LAST * 2048, "all environment steps were made"))


def end_and_evaluate(run: Path) -> None:
    end(run)
    write_evaluation(run, [np.full(4, 123.0)])


class Serving:
    """The command in a thread, and its address."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(live, "SECONDS", 0.05)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=serve_report, args=(run, 0, self._at), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _at(self, address: str) -> None:
        self.address = address
        self._ready.set()

    def ended(self, seconds: float = 30.0) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


HEADING = "[...document.querySelectorAll('h2')].find((one) => one.textContent === 'Rejected steps')"
TOP = f"Math.round({HEADING}.getBoundingClientRect().top)"
FOLDED = "document.querySelector('details[data-key=KL_TOO_LARGE]')"
PRESSED = "document.querySelector('.legend button').getAttribute('aria-pressed')"


def shows(iteration: int) -> str:
    """True in a page whose last iteration this is."""
    return f"document.querySelector('main').textContent.includes('{iteration} iterations')"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_an_open_page_follows_the_run_and_keeps_what_the_reader_has_chosen(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, lock = Serving(run_dir, monkeypatch), RunLock(run_dir)
    with Browser(tmp_path / "profile") as browser:
        browser.open(serving.address)
        browser.wait_for("document.getElementById('live')?.textContent.startsWith('live')")
        assert browser.value(shows(30))
        browser.value("window.loaded = 'once'")
        browser.value(
            f"{FOLDED}.open = true; document.querySelector('.legend button').click(); {HEADING}.scrollIntoView()"
        )
        before, pressed = browser.value(TOP), browser.value(PRESSED)
        assert browser.value("scrollY") > 500
        advance(run_dir, 37)
        browser.wait_for(shows(37))
        assert browser.value("window.loaded") == "once"
        assert browser.value("document.querySelectorAll('.plot > svg').length") > 10
        assert browser.value(f"{FOLDED}.open")
        assert browser.value(PRESSED) == pressed == "false"
        assert abs(browser.value(TOP) - before) <= 2
        # Its files say that it has ended, but its process still writes: it evaluates, or another one resumes the run.
        advance(run_dir, LAST)
        end(run_dir)
        browser.wait_for(shows(LAST))
        assert not serving.ended(0.3)
        write_evaluation(run_dir, [np.full(4, 123.0)])
        lock.release()
        browser.wait_for("document.getElementById('live').textContent.startsWith('the run has ended')")
        assert browser.value("document.querySelector('main').textContent.includes('Final evaluation')")
    assert serving.ended()


def test_a_page_is_made_only_when_one_is_asked_for_and_the_run_has_changed(run_dir: Path) -> None:
    report = LiveReport(run_dir)
    first = report.page()
    assert report.page() is first
    state = report.state()
    advance(run_dir, 31)
    assert report.state() != state
    assert report.made == 1
    assert report.page() is not first
    assert report.made == 2


def test_nothing_is_made_while_no_page_is_open(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(live, "render", lambda run, live: made.append(live.html) or "page")
    serving = Serving(run_dir, monkeypatch)
    for iteration in (31, 32):
        advance(run_dir, iteration)
        time.sleep(0.15)
    assert made == []
    end_and_evaluate(run_dir)
    assert not serving.ended(0.3), "it has not been shown yet"
    with urllib.request.urlopen(serving.address, timeout=30) as answer:
        assert answer.read() == b"page"
    assert not serving.ended(0.3)
    with urllib.request.urlopen(serving.address + "events", timeout=30) as answer:
        messages = [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]
    assert [(message["kind"], message["ended"]) for message in messages] == [("state", True)]
    assert messages[0]["state"] in made[0]
    assert len(made) == 1
    assert serving.ended()


def test_a_run_has_ended_when_nobody_writes_and_it_was_evaluated_or_is_old(run_dir: Path) -> None:
    report = LiveReport(run_dir)
    assert not report.ended()
    end(run_dir)
    assert not report.ended(), "the evaluation may still come"
    ago = time.time() - live.SETTLED - 1
    os.utime(run_dir / ENDED, (ago, ago))
    assert report.ended()
    end_and_evaluate(run_dir)
    assert report.ended()
    lock = RunLock(run_dir)
    assert not report.ended()
    lock.release()
    assert report.ended()


def test_a_run_without_an_iteration_is_waited_for(run_dir: Path) -> None:
    advance(run_dir, 0)
    report = LiveReport(run_dir)
    assert "holds no iteration yet" in report.page()
    advance(run_dir, 1)
    assert "1 iteration<" in report.page()


def test_only_the_page_that_is_served_may_ask_its_server(run_dir: Path) -> None:
    assert "connect-src 'self'" in LiveReport(run_dir).page()
    assert "connect-src" not in write_report(run_dir).read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--live", "--video"], "leave out --video and --output"),
        (["--live", "--output", "page.html"], "leave out --video and --output"),
        (["--live", "--port", "65536"], "port has to be from 0 to 65535"),
        (["--port", "80"], "--port is the port of the page of --live"),
    ],
)
def test_flags_that_do_not_go_together(run_dir: Path, flags: list[str], said: str) -> None:
    arguments = report_command.ReportArguments(
        run_dir,
        output=Path("page.html") if "--output" in flags else None,
        live="--live" in flags,
        video="--video" in flags,
        port=int(flags[-1]) if "--port" in flags else 0,
    )
    with pytest.raises(ConfigError, match=said):
        report_command.report(arguments)
