"""The foot of a report: one line of versions, machine and date, which opens to all entries of the provenance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made_up_runs import HOSTILE, Page, read, trpo_run

from klimb.report.page import write_report
from klimb.report.provenance import summary
from klimb.runs.provenance import Accelerator, Commit, Provenance, write_provenance

START = Provenance(
    event="start",
    iteration=0,
    date="2026-11-29T08:20:31Z",
    command=["klimb", "train", "trpo", "CartPole-v1", "--run-dir", "two words"],
    klimb="0.2.0",
    python="3.11.7",
    packages={"jax": "0.10.2", "numpy": "2.3.1"},
    platform="Linux 6.1.0 x86_64",
    cores=2,
    accelerator=Accelerator("cpu", "cpu", 2),
    git=Commit("0123456789abcdef0123456789abcdef01234567", uncommitted=True),
)
RESUME = dataclasses.replace(
    START,
    event="resume",
    iteration=1200,
    date="2026-11-30T10:00:00Z",
    command=None,
    cores=1,
    accelerator=Accelerator("gpu", "NVIDIA H200", 4),
    git=None,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trpo_run(tmp_path_factory.mktemp("foot") / "run", 30)


def page_of(folder: Path, entries: list[Provenance]) -> Page:
    write_provenance(folder, entries)
    return read(write_report(folder))


def test_the_line_of_a_run_that_was_never_resumed(folder: Path) -> None:
    line = (
        "klimb 0.2.0 · JAX 0.10.2 · Python 3.11.7 · Linux 6.1.0 x86_64 · 2 cores · "
        "commit 01234567 with uncommitted changes · started 2026-11-29 08:20:31 UTC"
    )
    assert summary([START]) == line
    page = page_of(folder, [START])
    assert f"{line} Started 2026-11-29 08:20:31 UTC" in page.text
    assert [tag for tag, _ in page.elements].count("details") == 1


def test_all_entries_are_inside(folder: Path) -> None:
    text = page_of(folder, [START, RESUME]).text
    assert " · resumed 1 time " in text
    assert "klimb train trpo CartPole-v1 --run-dir 'two words'" in text
    assert "numpy 2.3.1" in text
    assert "git commit 0123456789abcdef0123456789abcdef01234567 with uncommitted changes" in text
    assert "Resumed after iteration 1,200, 2026-11-30 10:00:00 UTC" in text
    assert "1 core, 4 × NVIDIA H200" in text
    assert text.index("Started 2026") < text.index("Resumed after")


def test_the_command_can_be_typed_again(folder: Path) -> None:
    """A shell replaces what stands for the user's names, and runs nothing that a file says."""
    words = ["klimb", "--run-dir", "~/$USER/x", "$HOSTNAME", "$(touch x)", "`touch x`", "a;b", "$OTHER", "it's", ""]
    text = page_of(folder, [dataclasses.replace(START, command=words)]).text
    quoted = "'$(touch x)' '`touch x`' 'a;b' '$OTHER' 'it'\"'\"'s' ''"
    assert f"klimb --run-dir ~/$USER/x $HOSTNAME {quoted}" in text


def test_the_line_of_an_old_run_that_was_resumed_since() -> None:
    line = summary([RESUME, dataclasses.replace(RESUME, iteration=1300)])
    assert line == (
        "klimb 0.2.0 · JAX 0.10.2 · Python 3.11.7 · Linux 6.1.0 x86_64 · 1 core · 4 × NVIDIA H200 · "
        "resumed after iteration 1,200, 2026-11-30 10:00:00 UTC · resumed 1 time"
    )


def test_changes_that_are_not_known_are_not_claimed() -> None:
    unknown = dataclasses.replace(START, git=Commit("0" * 40, uncommitted=None))
    assert "· commit 00000000 ·" in summary([unknown])


def test_hostile_text_stays_text(folder: Path) -> None:
    hostile = dataclasses.replace(
        START,
        command=[HOSTILE, "two\nlines"],
        packages={HOSTILE: HOSTILE, "jax": HOSTILE},
        platform=HOSTILE,
        date=HOSTILE,
        git=Commit(HOSTILE, uncommitted=False),
    )
    page = page_of(folder, [hostile, dataclasses.replace(hostile, event="resume")])
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert all(tag != "img" and "onerror" not in attributes for tag, attributes in page.elements)
    assert HOSTILE.split("&")[0] in page.text


def test_a_run_without_provenance_has_no_foot(folder: Path) -> None:
    page_of(folder, [START])
    (folder / "provenance.json").unlink()
    page = read(write_report(folder))
    assert "footer" not in [tag for tag, _ in page.elements]
    assert "foot" not in page.text
