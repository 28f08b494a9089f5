"""docs/errors.md has, word for word, what wrong inputs get; every one is one line, and of one family."""

from __future__ import annotations

import pytest

import klimb
from klimb.errors import KlimbError
from wrong_inputs import CALLED, PAGE, PLAIN, RETURNED, TYPED, Tried, error_classes, page, try_all

LINES = [line for lines in TYPED.values() for line in lines]
CODES = [*(f"`{code}`" for codes in CALLED.values() for code in codes), *RETURNED, PLAIN]
MAX_LINE = 330
"""Characters of a message: three lines of a terminal."""


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> Tried:
    return try_all(tmp_path_factory.mktemp("inputs"))


def test_there_are_thirty_of_each():
    assert len(set(LINES)) >= 30
    assert len(set(CODES)) >= 30


def test_the_page_says_what_inputs_get(tried):
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, tried) == text, "make errors writes the tables again"


@pytest.mark.parametrize("line", LINES)
def test_what_is_typed_wrong_gets_one_line_and_status_2(line, tried):
    status, said = next(outcomes[line] for outcomes in tried.typed.values() if line in outcomes)
    assert status == "2"
    assert said.startswith("klimb: ")
    assert_is_for_people(said)


@pytest.mark.parametrize("code", CODES)
def test_what_is_written_wrong_gets_one_line_and_an_error_of_the_family(code, tried):
    kind, said = next(outcomes[code] for outcomes in tried.called.values() if code in outcomes)
    assert issubclass(getattr(klimb, kind), KlimbError)
    assert_is_for_people(said)


def assert_is_for_people(said: str) -> None:
    """One line of moderate length, in words of klimb's own, and not with two marks in a row."""
    assert "\n" not in said
    assert 10 < len(said) <= MAX_LINE
    for foreign in ("Traceback", "pydantic", "object at 0x", "Tracer", "?;", "??", "..;", "NoneType"):
        assert foreign not in said


def test_every_error_is_public():
    for name, cls in error_classes().items():
        assert getattr(klimb, name) is cls
