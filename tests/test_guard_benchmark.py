"""The guard of speed: what it compares with what, and when it says that something has become slower."""

from __future__ import annotations

import pytest

import guard
from results_file import read_results
from speed import works

WORK, OURS, OTHER = "work: a title", "klimb", "rejax PPO"


def result(median: float, work: str = WORK, other: str = OTHER) -> dict:
    """As speed.measure returns it; the recorded turns lie 10 % around their median."""
    return {"work": work, "ratios": {OURS: {other: {"median": median, "min": 0.9 * median, "max": 1.1 * median}}}}


@pytest.mark.parametrize(
    ("today", "slower", "verdict"),
    [
        (2.0, False, "within the recorded turns"),
        (1.81, False, "within the recorded turns"),
        (1.79, True, "SLOWER by 10 %"),
        (2.3, False, "faster than every turn"),
    ],
)
def test_slower_is_below_all_recorded_turns(today, slower, verdict):
    found = guard.compared(result(today), [result(9.0, "other: work"), result(2.0)])
    assert found.is_slower == slower
    text = guard.said(found)
    assert f"recorded 2.00 (1.80–2.20), today {today:.2f}: {verdict}" in text


def test_the_conclusion_names_what_is_slower():
    same, slow = (guard.compared(result(today), [result(2.0)]) for today in (2.0, 1.0))
    assert guard.conclusion([same, same]) == "None of 2 works has become slower."
    assert guard.conclusion([same, slow]).startswith("work has become slower.")
    assert "`python benchmarks/speed.py work`" in guard.conclusion([same, slow])


def test_a_title_may_change_but_not_the_work_or_the_contender():
    assert guard.compared(result(2.0, "work: another title"), [result(2.0)]).recorded == 2.0
    for recorded in ([], [result(2.0, "works: a title")], [result(2.0, other="SBX PPO")]):
        with pytest.raises(
            SystemExit, match=r"no ratio of klimb to rejax PPO is recorded for work: run .*speed\.py work"
        ):
            guard.compared(result(2.0), recorded)


def test_guarded_works_are_recorded():
    """Every one of them, with one other contender."""
    assert len(guard.guarded_works()) == len(guard.GUARDED)
    recorded = read_results("speed")["results"]
    for work in guard.guarded_works():
        (other,) = work.others
        today = {"work": work.name, "ratios": {work.ours.name: {other.name: {"median": 1.0}}}}
        found = guard.compared(today, recorded)
        assert found.low <= found.recorded <= found.high
        assert found.other == guard.GUARDED[guard.key_of(work.name)]
    assert {guard.key_of(work.name) for work in works()} >= set(guard.GUARDED)


@pytest.mark.parametrize(("today", "status"), [(1.0, True), (2.0, False)])
def test_the_exit_status_and_nothing_else_says_it(monkeypatch, capsys, today, status):
    written = []
    monkeypatch.setattr(guard, "install_peers", lambda: None)
    monkeypatch.setattr(guard, "guarded_works", lambda: [WORK])
    monkeypatch.setattr(guard, "measure", lambda work: result(today))
    monkeypatch.setattr(guard, "read_results", lambda name: {"results": [result(2.0)]})
    monkeypatch.setattr("results_file.write_results", lambda *args, **content: written.append(args))
    with pytest.raises(SystemExit) as ended:
        guard.main()
    assert ended.value.code == status
    assert "today" in capsys.readouterr().out
    assert not written
