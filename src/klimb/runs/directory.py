"""The directory of one run: what is where, and how it is made, opened and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from klimb.errors import RunError
from klimb.runs.checkpoint import load_checkpoint, save_checkpoint
from klimb.runs.config import RunConfig
from klimb.runs.files import write_text
from klimb.runs.metrics import MetricsLog, Record, read_metrics
from klimb.runs.policy_file import policy_name, save_policy
from klimb.types import TrainState


class RunDirectory:
    """`config.toml`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, policies, evaluation and report."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config
        self._log: MetricsLog | None = None

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> RunDirectory:
        """A new directory. RunError when there is something at `path` already: no run is ever overwritten."""
        path = Path(path)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"{path} exists already; choose another --run-dir, or go on with it: klimb resume {path}"
            ) from None
        except OSError as error:
            raise RunError(f"cannot make the run directory {path}: {error.strerror}") from None
        write_text(path / "config.toml", config.to_toml())
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run. RunError when the directory is none."""
        path = Path(path)
        if not (path / "config.toml").is_file():
            what = "there is no such directory" if not path.exists() else "it has no config.toml"
            raise RunError(f"{path} is not a run: {what}")
        return cls(path, RunConfig.read(path / "config.toml"))

    def save(self, state: TrainState, policies: list[PyTree], *, iteration: int, wall_time: float) -> None:
        """The policies first, then the checkpoint: whoever finds a checkpoint finds its policies."""
        options = self.config.options
        for k, policy in enumerate(policies):
            save_policy(policy, self.path, name=policy_name(options.seed + k if options.num_seeds > 1 else None))
        save_checkpoint(
            self.path / "checkpoints", state, iteration=iteration, wall_time=wall_time, keep=options.keep_checkpoints
        )

    def load(self, template: TrainState) -> tuple[TrainState, int, float]:
        """(state, iteration, wall time) of the newest usable checkpoint."""
        return load_checkpoint(self.path / "checkpoints", template)

    def start_log(self, *, keep_until: int | None = None) -> None:
        """Open the metrics for appending, without the records after iteration `keep_until`."""
        self._log = MetricsLog(self.path, keep_until=keep_until)

    def append(self, records: list[Record]) -> None:
        """Add records to the metrics."""
        assert self._log is not None, "start_log comes first"
        self._log.append(records)

    def history(self) -> list[Record]:
        """All records so far."""
        path = self.path / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Keep an evaluation beside the policies, for the report."""
        write_text(self.path / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")

    def close(self) -> None:
        """Close the metrics."""
        if self._log is not None:
            self._log.close()
            self._log = None


def unused_directory(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `name-2`, `name-3` … that does not exist."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path
