"""Puts the best policy of every cell of the table of returns into the zoo, `make zoo`.

For every rule and environment that `returns.py` has measured and whose runs are still in `runs/returns`: of the longest
training, the policy of the seed with the highest return of the final policy. `klimb list zoo` shows what there is.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from klimb.runs.directory import RunDirectory
from klimb.runs.zoo import ROOT, ZooEntry
from results_file import read_results
from returns import RUNS
from returns_tasks import Piece


def piece_of(row: dict[str, Any]) -> Piece:
    """What a row is a measurement of."""
    return Piece(**{field.name: row[field.name] for field in dataclasses.fields(Piece)})


def cells(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of the longest trainings whose runs are there, by rule and environment, in the order of their seeds."""
    there = [row for row in rows if (RUNS / piece_of(row).name / "config.toml").exists()]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(there, key=lambda row: row["seed"]):
        cell = (row["rule"], row["env"])
        if row["env_steps"] == max(other["env_steps"] for other in there if (other["rule"], other["env"]) == cell):
            found.setdefault(cell, []).append(row)
    return found


def add(rows: list[dict[str, Any]]) -> Path:
    """The best policy of a cell, in the zoo. rows: all its pieces."""
    seeds = [(mean, row, k) for row in rows for k, mean in enumerate(row["final"])]
    mean, row, number = max(seeds, key=lambda seed: seed[0])
    run, seed = RunDirectory.open(RUNS / piece_of(row).name), row["seed"] + number
    alone = dataclasses.replace(run.config.options, seed=seed, num_seeds=1)
    directory = ROOT / row["rule"] / row["env"].partition(":")[2]
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text(dataclasses.replace(run.config, options=alone).to_toml(), encoding="utf-8")
    for suffix in ("json", "safetensors"):
        shutil.copyfile(run.path / f"policy_seed{seed}.{suffix}", directory / f"policy.{suffix}")
    ZooEntry(
        rule=row["rule"],
        env=row["env"],
        seed=seed,
        mean=mean,
        standard_error=row["final_standard_error"][number],
        episodes=row["final_episodes"],
        seeds=[each for each, _, _ in seeds],
        env_steps=row["env_steps"],
        command=row["command"],
        klimb=row["klimb"],
        commit=row["commit"],
    ).write(directory)
    return directory


def main() -> None:
    """Fill the zoo."""
    table = [row for row in read_results("returns")["rows"] if not row["variant"]]
    for rows in cells(table).values():
        print(add(rows).relative_to(ROOT))


if __name__ == "__main__":
    main()
