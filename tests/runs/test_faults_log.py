"""`faults.log`: each traceback once, bounded, and never the end of a training."""

from __future__ import annotations

import re

import pytest

from klimb.runs import faults_log
from klimb.runs.faults_log import FaultsLog

TRACE = 'Traceback (most recent call last):\n  File "robot.py", line 3, in step\nValueError: fell\n'


def test_a_traceback_is_written_once_and_its_place_is_said_once(tmp_path, caplog):
    log = FaultsLog(tmp_path)
    for number in range(3):
        log.add(f"iteration {number}", TRACE)
    log.add("iteration 3", None)
    text = (tmp_path / "faults.log").read_text()
    assert text.count("ValueError: fell") == 1
    lines = [line.partition("UTC  ")[2] for line in re.findall(r"^\d{4}-\d\d-\d\d .*", text, flags=re.MULTILINE)]
    assert lines == [
        "iteration 0",
        "iteration 1; the traceback is as before",
        "iteration 2; the traceback is as before",
        "iteration 3",
    ]
    assert [record.getMessage() for record in caplog.records] == [f"the traceback is in {tmp_path / 'faults.log'}"]


def test_a_line_is_one_line(tmp_path):
    FaultsLog(tmp_path).add("two\nlines \x1b[31m", None)
    (line,) = (tmp_path / "faults.log").read_text().splitlines()
    assert line.endswith("two lines \\x1b[31m")


def test_the_file_ends_somewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(faults_log, "MAX_BYTES", 1000)
    log = FaultsLog(tmp_path)
    for number in range(100):
        log.add(f"iteration {number}", TRACE.replace("fell", str(number)))
    assert 1000 < (tmp_path / "faults.log").stat().st_size < 1300


def test_without_a_directory_the_traceback_is_logged_once(caplog):
    log = FaultsLog(None)
    log.add("iteration 0", TRACE)
    log.add("iteration 1", TRACE)
    assert [record.getMessage() for record in caplog.records] == [TRACE.rstrip()]


@pytest.mark.parametrize("trace", [TRACE, None])
def test_a_file_that_can_not_be_written_is_warned_of(tmp_path, caplog, trace):
    (tmp_path / "faults.log").mkdir()
    FaultsLog(tmp_path).add("iteration 0", trace)
    (record,) = caplog.records
    assert "faults.log can't be written (Is a directory)" in record.getMessage()
    assert (trace is not None) == ("ValueError: fell" in record.getMessage())
