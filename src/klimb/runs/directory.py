"""The directory of one run: which files it holds, and how it is created, opened and written."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import uuid
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from klimb.errors import RunError, one_line
from klimb.runs import faults_log
from klimb.runs.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_checkpoint_of,
    save_checkpoint,
    saved_iterations,
    write_checkpoint,
)
from klimb.runs.config import RunConfig
from klimb.runs.ending import ENDED, Ending, read_ending, write_ending
from klimb.runs.files import as_path, flush_directory, write_text
from klimb.runs.lock import RunLock
from klimb.runs.metrics import FILE_NAME, MetricsLog, Record, read_metrics
from klimb.runs.policy_file import policy_name, save_policy
from klimb.runs.provenance import Provenance, read_provenance, write_provenance
from klimb.runs.sweep_file import SWEEP
from klimb.types import TrainState

BEST, DEMONSTRATOR = "best", "demonstrator"

logger = logging.getLogger("klimb")


class RunDirectory:
    """`config.toml`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, policies, `best/`, and what says about them.

    That is the provenance, the evaluation, the report, and the faults of its environments, where there were some.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config
        self._log: MetricsLog | None = None
        self._lock: RunLock | None = None
        self._log_fails = False

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: RunConfig,
        state: TrainState,
        policies: list[PyTree],
        demonstrator: tuple[PyTree, dict[str, Any]] | None = None,
        provenance: Provenance | None = None,
    ) -> RunDirectory:
        """A new run directory with its first checkpoint, locked. It appears complete or not at all.

        path: where; nothing may exist there. config: of the run. state: before the first iteration. policies: one per
        seed. demonstrator: the policy that was cloned from the run's demonstrations, and its likelihoods; or None.
        provenance: what the run is trained with and on; None to leave that out.
        Raises RunError when `path` exists (no run is ever overwritten) or can't be written.
        """
        path = Path(path)
        require_unused(path)
        # Renamed once it can be resumed: a process killed before that leaves no incomplete run behind.
        directory = cls(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part"), config)
        try:
            directory.path.mkdir(parents=True)
            directory.lock()
            write_text(directory.path / "config.toml", config.to_toml())
            if provenance is not None:
                write_provenance(directory.path, [provenance])
            if demonstrator is not None:
                directory._save_demonstrator(*demonstrator)
            directory.save(Checkpoint(state, 0, 0.0), policies, score=None)
            directory.path.rename(path)
        except BaseException as error:
            directory.close()
            shutil.rmtree(directory.path, ignore_errors=True)
            if isinstance(error, OSError):
                raise RunError(f"cannot make the run directory {path}: {error.strerror}") from None
            raise
        flush_directory(path.parent)
        directory.path = path
        return directory

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The existing run at `path`. RunError when it is not a run directory, ConfigError for a wrong config.toml."""
        path = as_path(path)
        try:
            exists, is_run = path.exists(), (path / "config.toml").is_file()
        except (OSError, ValueError) as error:
            raise RunError(f"{one_line(path)} is not a run: {one_line(error)}") from None
        if not is_run:
            what = "it has no config.toml" if exists else "there is no such directory"
            if exists and (path / SWEEP).is_file():
                what = "it is a sweep; its subdirectories are runs (klimb resume, klimb.resume_sweep continue them)"
            raise RunError(f"{one_line(path)} is not a run: {what}")
        return cls(path, RunConfig.read(path / "config.toml"))

    def lock(self) -> None:
        """Lock the directory against other writers until `close`.

        Raises RunError when another process holds the lock, or when a link would make klimb write somewhere else.
        """
        for name in (".lock", FILE_NAME, faults_log.FILE_NAME, "checkpoints", BEST):
            if (self.path / name).is_symlink():
                raise RunError(f"{self.path / name} is a link; klimb writes into the run directory alone: remove it")
        self._lock = RunLock(self.path)

    def save(self, checkpoint: Checkpoint, policies: list[PyTree], *, score: float | None) -> None:
        """Write records and policies, then the checkpoint, so that a checkpoint never lacks the records before it.

        checkpoint: to write. policies: one per seed. score: mean return of the episodes that ended since the last
        checkpoint, None where unknown or where evaluations choose the best; the best-scoring one is in `best/` too.
        Raises OSError when something can't be written, and RunError when the directory has been removed.
        """
        if not (self.path / "config.toml").exists():
            raise RunError(f"the run directory {self.path} has been removed during the training")
        if self._log is not None:
            self._log.flush()
        self._save_policies(policies, self.path, checkpoint.iteration)
        if score is not None and self.is_better(score):
            self._write_best(checkpoint, policies, score)
        save_checkpoint(self.path / "checkpoints", checkpoint, keep=self.config.options.keep_checkpoints)

    def save_best(self, checkpoint: Checkpoint, policies: list[PyTree], *, score: float) -> None:
        """Write the records, then policies and checkpoint into `best/`. Raises OSError when that fails.

        checkpoint: that was evaluated. policies: one per seed. score: what they are worth.
        """
        if self._log is not None:
            self._log.flush()
        self._write_best(checkpoint, policies, score)

    def is_better(self, score: float) -> bool:
        """Whether a score is higher than that of `best/`."""
        best = self.best_score()
        return best is None or score > best

    def _write_best(self, checkpoint: Checkpoint, policies: list[PyTree], score: float) -> None:
        folder = self.path / BEST
        folder.mkdir(exist_ok=True)
        self._save_policies(policies, folder, checkpoint.iteration)
        write_checkpoint(folder / "checkpoint.safetensors", checkpoint)
        content = {"iteration": checkpoint.iteration, "score": score, "by": self._chosen_by}
        # Written last: if the process is killed before this line, the score stays lower and all is written again.
        write_text(folder / "score.json", json.dumps(content) + "\n")

    @property
    def _chosen_by(self) -> str:
        """What scores are: returns of evaluations, or of training episodes."""
        return "evaluation" if self.config.options.eval_every > 0 else "training"

    def load(self, template: TrainState) -> Checkpoint:
        """The newest usable checkpoint. RunError when there is none.

        template: a state of the same structure, shapes and dtypes.
        """
        return load_checkpoint(
            self.path / "checkpoints", template, otherwise=self.path / BEST / "checkpoint.safetensors"
        )

    def load_iteration(self, template: TrainState, iteration: int) -> Checkpoint:
        """The checkpoint of one iteration. RunError when it can't be used.

        template: a state of the same structure, shapes and dtypes. iteration: its number.
        """
        return load_checkpoint_of(self.path / "checkpoints", template, iteration)

    def saved_iterations(self) -> list[int]:
        """The iterations of the checkpoints that there are, newest first."""
        return saved_iterations(self.path / "checkpoints")

    def best_score(self) -> float | None:
        """The score of the checkpoint in `best/`, where it is comparable to those of the run; else None.

        It is the highest mean return of an evaluation with `eval_every`, else the highest between two checkpoints.
        """
        try:
            content = json.loads((self.path / BEST / "score.json").read_text(encoding="utf-8"))
            # Runs of klimb 0.1 have no evaluations, and do not say so.
            return float(content["score"]) if content.get("by", "training") == self._chosen_by else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def start_log(self, *, keep_until: int | None = None) -> None:
        """Open the metrics for appending. RunError when they can't be written.

        keep_until: the iteration after which records are dropped; None keeps all.
        """
        options = self.config.options
        seeds = range(options.seed, options.seed + options.num_seeds)
        try:
            self._log = MetricsLog(self.path, keep_until=keep_until, seeds=seeds)
        except OSError as error:
            raise RunError(f"cannot write into {self.path}: {error.strerror}") from None

    def append(self, records: list[Record]) -> None:
        """Add records to the metrics. Those that can't be written wait for the next call, with a warning."""
        assert self._log is not None, "start_log comes first"
        try:
            self._log.append(records)
        except OSError as error:
            if not self._log_fails:
                logger.warning(
                    "%s can't be written (%s): records wait in memory, and the training continues",
                    self.path / FILE_NAME,
                    error.strerror,
                )
            self._log_fails = True
        else:
            self._log_fails = False

    def write_waiting(self) -> None:
        """Try once more to write the waiting records. Raises OSError when they still can't be written."""
        if self._log is not None:
            self._log.write_waiting()

    def history(self) -> list[Record]:
        """All records so far, one per iteration."""
        path = self.path / FILE_NAME
        return read_metrics(path) if path.is_file() else []

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Write `evaluation.json`, which the report reads. RunError when it can't be written.

        evaluation: episodes, deterministic, and per seed the returns, lengths, mean and standard error.
        """
        try:
            write_text(self.path / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")
        except OSError as error:
            raise RunError(f"cannot write the evaluation into {self.path}: {error.strerror}") from None

    def write_ending(self, ending: Ending) -> None:
        """Record what ended the training. Where that can't be written a warning is logged.

        ending: what it was.
        """
        try:
            write_ending(self.path, ending)
        except OSError as error:
            logger.warning("cannot write %s into %s (%s)", ENDED, self.path, error.strerror)

    def remove_ending(self) -> None:
        """The training goes on: it has not ended. RunError when the file can't be removed."""
        try:
            (self.path / ENDED).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot remove {self.path / ENDED}: {error.strerror}") from None

    def ending(self) -> Ending | None:
        """What ended the training; None while it goes on, and when it was killed. RunError when damaged."""
        return read_ending(self.path)

    def provenance(self) -> list[Provenance]:
        """What the run was trained with and on, oldest first; empty for runs of klimb 0.1. RunError when damaged."""
        return read_provenance(self.path)

    def add_provenance(self, entry: Provenance) -> None:
        """Record that the run is resumed. Where that can't be written a warning is logged, and the run goes on.

        entry: what it is resumed with and on.
        """
        try:
            before = read_provenance(self.path)
        except RunError as error:
            logger.warning("%s; a new record of the provenance is started", error)
            before = []
        try:
            write_provenance(self.path, [*before, entry])
        except OSError as error:
            logger.warning("cannot write the provenance into %s (%s): it is left as it was", self.path, error.strerror)

    @property
    def writer(self) -> str | None:
        """The process that writes the run now, in words; None where none does, or it is not known."""
        return RunLock.holder(self.path)

    def env_steps_at(self, iteration: int) -> int | None:
        """Environment steps, per seed, until an iteration; None where the metrics do not say."""
        try:
            return next(record["env_steps"] for record in self.history() if record["iteration"] == iteration)
        except (OSError, StopIteration, KeyError):
            return None

    def change(self, config: RunConfig, entry: Provenance) -> None:
        """Record that the run is resumed with other settings, and make them those of the run.

        config: with the new settings. entry: with what has changed. Raises RunError when they can't be written.
        """
        # First what has changed: if the process is killed between the two files, the same command records it again.
        self.add_provenance(entry)
        try:
            write_text(self.path / "config.toml", config.to_toml())
        except OSError as error:
            raise RunError(f"cannot write the configuration into {self.path}: {error.strerror}") from None
        self.config = config

    def close(self) -> None:
        """Close the metrics and release the lock."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def demonstrator(self) -> Path:
        """Where the policy is that was cloned from the run's demonstrations, if one was."""
        return self.path / DEMONSTRATOR

    def demonstrator_figures(self) -> dict[str, Any]:
        """The likelihoods of the cloned demonstrator; empty where there are none to be read."""
        try:
            return dict(json.loads((self.demonstrator / "cloning.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _save_demonstrator(self, policy: PyTree, figures: dict[str, Any]) -> None:
        save_policy(policy, self.demonstrator)
        write_text(self.demonstrator / "cloning.json", json.dumps(figures, indent=2) + "\n")

    def _save_policies(self, policies: list[PyTree], folder: Path, iteration: int) -> None:
        options = self.config.options
        # Temporary files of a process that was killed while writing.
        for temporary in folder.glob(".policy*.part"):
            temporary.unlink(missing_ok=True)
        for k, policy in enumerate(policies):
            name = policy_name(options.seed + k if options.num_seeds > 1 else None)
            save_policy(policy, folder, name=name, iteration=iteration)


def require_unused(path: Path) -> None:
    """RunError when there is something of this name: a run is written into a directory of its own.

    path: of a new run.
    """
    if path.exists():
        raise RunError(
            f"{path} exists already; choose another --run-dir, or go on with it: klimb resume {shlex.quote(str(path))}"
        )


def unused_directory(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `name-2`, `name-3` … that does not exist.

    parent: folder of the runs. name: of the run.
    """
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path
