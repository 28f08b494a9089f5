"""Every figure is drawn, the same each time, and the command line says what is wrong with what it is given."""

from pathlib import Path

import matplotlib as mpl
import pytest

from klimb.cli.main import execute
from klimb.errors import ConfigError, RunError
from klimb.theory.figures import style
from klimb.theory.figures.registry import FIGURES, load
from problems import slow_except

SMALLER = {"estimator-variance": {"batches": 100}, "bounds": {"problems": 2}, "policy-iteration": {"iterations": 300}}


@pytest.mark.parametrize("name", slow_except({"kl-directions"}, FIGURES))
def test_drawing_is_complete_and_reproducible(name: str, tmp_path: Path) -> None:
    module = load(name)
    data = module.compute(**SMALLER.get(name, {}))
    before = [mpl.rcParams[key] for key in style.SETTINGS]
    for k in range(2):
        style.save(module.draw(data), tmp_path / f"{k}.svg")
    style.save(module.draw(data), tmp_path / "drawing.png")
    assert [mpl.rcParams[key] for key in style.SETTINGS] == before
    first, second = ((tmp_path / f"{k}.svg").read_bytes() for k in range(2))
    assert first == second
    assert b"<svg" in first
    picture = (tmp_path / "drawing.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    assert 2 <= len(module.summary(data)) <= 5


def test_both_kinds_are_written_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    execute(["figure", "kl-directions"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kl-directions.png", "kl-directions.svg"]
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["kl-directions.png", "kl-directions.svg"]
    assert 2 <= len(said) - 2 <= 5


def test_one_file_where_one_is_named(tmp_path: Path) -> None:
    """And none is written over unless that is asked for."""
    execute(["figure", "kl-directions", "-o", str(tmp_path / "x.pdf")])
    pdf = (tmp_path / "x.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    (tmp_path / "y.svg").write_text("mine")
    for words in (["kl-directions", "-o", "y.svg"], ["-o", "x.pdf", "kl-directions"]):
        with pytest.raises(RunError, match=r"exists already; give --overwrite, or another file with -o FILE"):
            execute(["figure", *(str(tmp_path / word) if "." in word else word for word in words)])
    assert (tmp_path / "y.svg").read_text() == "mine"
    execute(["figure", "-o", str(tmp_path / "x.pdf"), "kl-directions", "--overwrite"])
    assert (tmp_path / "x.pdf").read_bytes() == pdf
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pdf", "y.svg"]


def test_nothing_is_drawn_where_one_file_of_several_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bounds.svg").write_text("mine")
    for words in (["bounds"], ["all"]):
        with pytest.raises(RunError, match=r"^bounds\.svg exists already"):
            execute(["figure", *words])
    assert [path.name for path in tmp_path.iterdir()] == ["bounds.svg"]


def test_all_go_into_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klimb.cli.figure.FIGURES", {name: FIGURES[name] for name in ("kl-directions", "bounds")})
    execute(["figure", "all", "-o", str(tmp_path / "new" / "figures")])
    assert len(list((tmp_path / "new" / "figures").iterdir())) == 4


def test_no_name_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    execute(["figure"])
    said = capsys.readouterr().out
    for name, entry in FIGURES.items():
        assert f"{name} " in said
        assert entry.title in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["feilds"], "did you mean 'fields'"),
        (
            ["fields", "-o", "x.jpg"],
            r"x\.jpg ends in \.jpg; figures are written as \.png, \.svg and \.pdf: choose -o x\.png",
        ),
        (["fields", "-o", "x"], "x has no ending; figures are written as"),
        (["fields", "-o"], "--output needs a value"),
        (["fields", "bounds"], "'bounds' is one word too many"),
        (["all", "-o", "x.png"], "need a directory"),
        (["fields", "--dpi", "3"], "no flag --dpi"),
    ],
)
def test_bad_input_is_said_plainly(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        execute(["figure", *arguments])


def test_files_that_cannot_be_written_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        execute(["figure", "kl-directions", "-o", str(tmp_path / "nowhere" / "x.png")])
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="cannot make the directory"):
        execute(["figure", "all", "-o", str(tmp_path / "taken")])
