"""Trainings of guided policy search that stay in `runs/guided`, and the tables made of them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from results_file import HERE

RUNS = HERE.parent / "runs" / "guided"
EPISODES = 50


def klimb_command(*words: str) -> str:
    command = [str(Path(sys.executable).with_name("klimb")), *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=1800).stdout


def trained(arguments: str, name: str) -> Path:
    """`klimb train ARGUMENTS`, unless it has been run before; a run that was cut off is made anew."""
    directory = RUNS / name
    if not (directory / "evaluation.json").exists():
        shutil.rmtree(directory, ignore_errors=True)
        print(f"klimb train {arguments}", flush=True)
        klimb_command("train", *shlex.split(arguments), "--run-dir", str(directory))
    return directory


def evaluated(directory: Path) -> list[float]:
    """The mean return of every seed's policy."""
    answer = json.loads(klimb_command("evaluate", str(directory), "--episodes", str(EPISODES), "--json"))
    return [entry["mean"] for entry in answer["seeds"]]


def thousands(number: float) -> str:
    return f"{round(number):,}".replace(",", " ")


def table(head: str, rows: list[str]) -> list[str]:
    return [head, "|" + "---|" * (head.count("|") - 1), *rows, ""]


def minus(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def listed(values: list[float]) -> str:
    return ", ".join(map(minus, values))
