"""What does a search cost, and what does it find? `make bench-tune` writes the table of docs/tuning.md.

`klimb tune` on CartPole-v1, with and without `--prune`, beside some of its trials trained by a `klimb train` each; all
in processes of their own, which share a new cache of compiled programs. Then the best values and the defaults, trained
again with other seeds.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from klimb.report.configuration import command
from klimb.runs.tune_file import Tuning, best_of, read_trials
from results_file import HERE, write_results

PAGE = HERE.parent / "docs" / "tuning.md"
BEGIN, END = "<!-- tune: written by make bench-tune -->\n", "<!-- end of tune -->\n"
TASK = "trpo CartPole-v1"
ENV_STEPS, TRIALS, ALONE = "8192", 24, 3
SEARCH = f"{TASK} --over max_kl:log:1e-3:1e-1 gamma:0.9:0.999 --trials {TRIALS} --num-seeds 4 --env-steps {ENV_STEPS}"
FIRST_SEED, SEEDS = 1000, 20


def klimb(folder: Path, words: list[str]) -> float:
    """Run a command, and give its seconds."""
    environment = {**os.environ, "KLIMB_COMPILATION_CACHE": str(folder / "cache")}
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "klimb", *words], cwd=folder, env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - begin


def search(folder: Path, *flags: str) -> dict[str, Any]:
    """A search: its seconds, and its best trial."""
    name = "search" + "".join(flags)
    seconds = klimb(folder, ["tune", *shlex.split(SEARCH), *flags, "--run-dir", name, "-q"])
    tuning = Tuning.read(folder / name)
    trials = read_trials(folder / name, tuning)
    best = best_of(trials)
    assert best is not None
    states = {state: sum(trial.state == state for trial in trials) for state in ("complete", "pruned", "failed")}
    return {"seconds": seconds, **states, "best": best.number, "score": best.score, "values": best.values}


def again(folder: Path, name: str, values: dict[str, Any]) -> float:
    """The mean return of trainings with some values and other seeds than the search's."""
    flags = [word for field, value in values.items() for word in (f"--{field.replace('_', '-')}", str(value))]
    seeds = ["--seed", str(FIRST_SEED), "--num-seeds", str(SEEDS), "--env-steps", ENV_STEPS]
    klimb(folder, ["train", *shlex.split(TASK), *flags, *seeds, "--run-dir", name, "-q"])
    return json.loads((folder / name / "evaluation.json").read_text())["mean"]


def page(results: dict[str, Any]) -> str:
    """The table."""
    whole, pruned = results["search"], results["pruned"]
    values = ", ".join(f"`{name}` {value:g}" for name, value in whole["values"].items())
    return "\n".join(
        [
            f"| `klimb tune {SEARCH}` | |",
            "|---|---|",
            f"| {TRIALS} trials, three batches of eight | {whole['seconds']:.0f} s |",
            f"| the same with `--prune`: {pruned['pruned']} trials pruned | {pruned['seconds']:.0f} s |",
            f"| one trial alone, with `klimb train` (median of {ALONE}) | {results['alone']:.1f} s |",
            f"| {TRIALS} trials alone, divided by the search | {TRIALS * results['alone'] / whole['seconds']:.1f} |",
            f"| best values, and their score | {values}; {whole['score']:.0f} |",
            f"| mean return with the best values, {SEEDS} other seeds | {results['best']:.0f} |",
            f"| mean return with the defaults, the same seeds | {results['defaults']:.0f} |",
        ]
    )


def main() -> None:
    """Measure, and write the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results: dict[str, Any] = {"search": search(folder)}
        tuning = Tuning.read(folder / "search")
        alone = []
        for trial in read_trials(folder / "search", tuning)[:ALONE]:
            words = shlex.split(" ".join(command(tuning.config_of(trial).to_dict())))[1:]
            alone.append(klimb(folder, [*words, "--run-dir", f"alone-{trial.number}", "-q"]))
        results |= {"alone": statistics.median(alone), "pruned": search(folder, "--prune")}
        results |= {
            "best": again(folder, "best", results["search"]["values"]),
            "defaults": again(folder, "defaults", {}),
        }
    write_results("tuning", command=f"klimb tune {SEARCH}", **results)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + page(results) + "\n\n" + END + rest.split(END)[1], encoding="utf-8")
    print(page(results))


if __name__ == "__main__":
    main()
