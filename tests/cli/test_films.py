"""The commands that show a policy: `evaluate --video`, `report --video` and `watch`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from browser import CHROMIUM, browse
from klimb.cli.main import main

RUN = ["train", "ppo", "jax:PlanarReacher-v0", "--num-envs", "2", "--num-steps", "8", "--eval-episodes", "0"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of two seeds."""
    folder = tmp_path_factory.mktemp("films") / "arm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLIMB_COMPILATION_CACHE", "off")
        assert main([*RUN, "--env-steps", "32", "--num-seeds", "2", "--hidden", "8", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")


def test_an_evaluation_with_a_film(run_dir: Path, tmp_path: Path, capsys) -> None:
    video = tmp_path / "arm.webp"
    words = ["evaluate", str(run_dir), "--episodes", "2", "--seed", "4", "--video", str(video)]
    assert main(words) == 0
    said = capsys.readouterr().out
    line = re.search(r"^video +(\S+): an episode with return (-[\d.]+) in 100 steps, 5\.\d s$", said, re.MULTILINE)
    assert line is not None, said
    assert line[1] == str(video)
    with Image.open(video) as image:
        assert image.n_frames > 50
        assert image.size == (400, 400)
    # The film is of the episode that is evaluated alone.
    assert main([*words[:2], "--episodes", "1", "--seed", "4", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["seeds"][0]["returns"][0] == pytest.approx(float(line[2]), abs=0.01)
    # Not written over, and nothing is evaluated in vain.
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "exists already; give --overwrite, or another file with --video FILE" in captured.err
    assert not captured.out
    assert main([*words, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["video"]["length"] == 100


def test_a_film_of_an_unknown_format_is_refused_before_anything_runs(run_dir: Path, tmp_path: Path, capsys) -> None:
    assert main(["evaluate", str(run_dir), "--video", str(tmp_path / "film.avi")]) == 2
    captured = capsys.readouterr()
    assert "a film is a .webp or a .mp4 file" in captured.err
    assert not captured.out


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_report_with_a_film_in_a_browser(run_dir: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(run_dir), "--video", "-o", str(page)]) == 0
    assert page.stat().st_size < 5_000_000
    document, console = browse(page, tmp_path / "profile")
    assert not re.search(r"CONSOLE.*(error|refused)|Uncaught", console, re.IGNORECASE), console
    assert 'data-rendered="true"' in document
    assert "One episode with the most likely actions (seed 0): return" in document
    card = document.split('class="card wide clip"')[1].split("</figure>")[0]
    assert len(re.findall(r'<svg [^>]*class="strip"', card)) == 2
    assert "NaN" not in card
    step = re.search(r'id="clip-readout">step (\d+) of 100 · return so far (−|-)?[\d.]+', card)
    assert step is not None, card[-400:]
    assert int(step[1]) > 0, "the film plays"


def test_a_report_without_a_film_has_no_player(run_dir: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(run_dir), "-o", str(page)]) == 0
    text = page.read_text()
    assert "clip-data" not in text
    assert "function strips" not in text


@contextlib.contextmanager
def watching(run_dir: Path, *words: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command, in a process of its own, and the address of its page."""
    command = [sys.executable, "-m", "klimb", "watch", str(run_dir), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"watch +(http://127\.0\.0\.1:\d+/) ", line)
            assert address is not None, line
            yield process, address[1]
        finally:
            process.kill()


@pytest.mark.slow
def test_watching_a_run_until_it_is_interrupted(run_dir: Path) -> None:
    with watching(run_dir, "--speed", "50", "--policy-seed", "1") as (process, address):
        with urllib.request.urlopen(address + "events", timeout=60) as answer:
            begun = json.loads(answer.readline()[6:])
        assert begun == {"kind": "begin", "number": 1, "policy": "policy of iteration 2, after 48 environment steps"}
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert not out + err


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_watching_in_a_browser(run_dir: Path, tmp_path: Path) -> None:
    with watching(run_dir, "--speed", "20", "--episodes", "1") as (process, address):
        document, console = browse(address, tmp_path / "profile")
        assert not re.search(r"CONSOLE.*(refused to|violates)|Uncaught", console, re.IGNORECASE), console
        assert len(re.findall(r'<svg [^>]*class="strip"', document)) == 2
        assert "step 100 · return so far" in document
        assert "<li>episode 1: return" in document
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--policy-seed", "7"], "the run has no seed 7, only 0 to 1"),
        (["--speed", "0"], "speed has to be above 0"),
        (["--episodes", "0"], "episodes at least 1"),
        (["--port", "70000"], "port from 0 to 65535"),
        (["--env", "jax:LinearQuadratic-v0"], "it was trained on another environment"),
    ],
)
def test_what_can_not_be_watched(run_dir: Path, words: list[str], text: str, capsys) -> None:
    assert main(["watch", str(run_dir), *words, *(["--episodes", "1"] if "--env" in words else [])]) != 0
    assert text in capsys.readouterr().err
