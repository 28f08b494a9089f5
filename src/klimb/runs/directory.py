"""The directory of one run: which files it holds, and how it is created, opened and written."""

from __future__ import annotations

import json
import logging
import math
import shlex
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import PyTree

from klimb.errors import NameTaken, RunError, one_line
from klimb.files import (
    UnusablePath,
    as_path,
    exists,
    flush_directory,
    is_file,
    kind_of_link,
    make_directory,
    make_new_directory,
    read_limited,
    remove,
    remove_if_possible,
    write_text,
)
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
from klimb.runs.lock import RunLock
from klimb.runs.metrics import FILE_NAME, MetricsLog, Record, read_metrics
from klimb.runs.own_files import BEST, DEMONSTRATOR, SWEEP, TUNE
from klimb.runs.policy_file import policy_name, save_policy
from klimb.runs.provenance import Provenance, read_provenance, write_provenance
from klimb.types import TrainState

MAX_SCORE_FILE = 2**12
"""Bytes of a file that holds a few numbers."""

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
        place: str | Path | NewName,
        config: RunConfig,
        state: TrainState,
        policies: list[PyTree],
        demonstrator: tuple[PyTree, dict[str, Any]] | None = None,
        provenance: Provenance | None = None,
    ) -> RunDirectory:
        """A new run directory with its first checkpoint, locked. It appears complete or not at all.

        place: where; nothing may exist there. config: of the run. state: before the first iteration. policies: one per
        seed. demonstrator: the policy that was cloned from the run's demonstrations, and its likelihoods; or None.
        provenance: what the run is trained with and on; None to leave that out.
        Raises NameTaken when `place` exists (no run is ever overwritten), RunError when it can't be written.
        """
        new_name = place if isinstance(place, NewName) else None
        path = as_path(place) if new_name is None else new_name.unused()
        require_unused(path)
        # Renamed once it can be resumed: a process killed before that leaves no incomplete run behind.
        directory = cls(path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex[:8]}.part"), config)
        try:
            make_new_directory(directory.path)
            directory.lock()
            write_text(directory.path / "config.toml", config.to_toml())
            if provenance is not None:
                write_provenance(directory.path, [provenance])
            if demonstrator is not None:
                directory._save_demonstrator(*demonstrator)
            directory.save(Checkpoint(state, 0, 0.0), policies, score=None)
            path = directory._take(path, new_name)
            if directory._lock is None:
                directory.path = path
                directory.lock()
        except BaseException as error:
            directory.close()
            shutil.rmtree(directory.path, ignore_errors=True)
            if isinstance(error, OSError):
                raise RunError(f"cannot make the run directory {one_line(path)}: {error.strerror}") from None
            raise
        flush_directory(path.parent)
        directory.path = path
        return directory

    def _take(self, path: Path, new_name: NewName | None) -> Path:
        """Rename the directory, and give its new path.

        path: the new one. new_name: of what to take the next unused name when another process has just taken `path`;
        None to raise NameTaken. On Windows the directory has to be locked again.
        """
        if sys.platform == "win32":  # it renames no directory with an open file in it
            self.close()
        while True:
            try:
                self.path.rename(path)
                return path
            except OSError:
                if not exists(path):
                    raise
            if new_name is None:
                require_unused(path)
            else:
                path = new_name.unused()

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """The existing run at `path`. RunError when it is not a run directory, ConfigError for a wrong config.toml."""
        path = as_path(path)
        try:
            there, is_run = exists(path), is_file(path / "config.toml")
        except UnusablePath as error:
            raise RunError(f"{one_line(path)} is not a run: {error.strerror}") from None
        if not is_run:
            what = "it has no config.toml" if there else "there is no such directory"
            if there and is_file(path / SWEEP):
                what = "it is a sweep; its subdirectories are runs (klimb resume, klimb.resume_sweep continue them)"
            if there and is_file(path / TUNE):
                what = f"it is a search, which klimb resume continues; its best trial is {one_line(path / BEST)}"
            raise RunError(f"{one_line(path)} is not a run: {what}")
        return cls(path, RunConfig.read(path / "config.toml"))

    def lock(self) -> None:
        """Lock the directory against other writers until `close`.

        Raises RunError when another process holds the lock, or when a link would make klimb write somewhere else.
        """
        for name in (".lock", FILE_NAME, faults_log.FILE_NAME, "checkpoints", BEST):
            kind = kind_of_link(self.path / name)
            if kind is not None:
                raise RunError(
                    f"{one_line(self.path / name)} is a {kind}; klimb writes into the run directory alone: put a copy "
                    "in its place"
                )
        self._lock = RunLock(self.path)

    def save(self, checkpoint: Checkpoint, policies: list[PyTree], *, score: float | None) -> None:
        """Write records and policies, then the checkpoint, so that a checkpoint never lacks the records before it.

        checkpoint: to write. policies: one per seed. score: mean return of the episodes that ended since the last
        checkpoint, None where unknown or where evaluations choose the best; the best-scoring one is in `best/` too.
        Raises OSError when something can't be written, and RunError when the directory has been removed.
        """
        if not exists(self.path / "config.toml"):
            raise RunError(f"the run directory {self.path} has been removed during the training")
        if self._log is not None:
            self._log.flush()
        self._save_policies(policies, self.path, checkpoint.iteration)
        save_checkpoint(self.path / "checkpoints", checkpoint, keep=self.config.options.keep_checkpoints)
        if score is not None and self.is_better(score):
            try:
                self._write_best(checkpoint, policies, score)
            except OSError as error:
                logger.warning("%s can't be written (%s); the training continues", self.path / BEST, error.strerror)

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
        make_directory(folder)
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
            content = json.loads(read_limited(self.path / BEST / "score.json", MAX_SCORE_FILE))
            # Runs of klimb 0.1 have no evaluations, and do not say so.
            score = float(content["score"]) if content.get("by", "training") == self._chosen_by else math.nan
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return None
        return score if math.isfinite(score) else None

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
        return read_metrics(path) if is_file(path) else []

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
            remove(self.path / ENDED)
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
            records = self.history()
        except OSError:
            return None
        steps = next((record.get("env_steps") for record in records if record["iteration"] == iteration), None)
        return steps if type(steps) is int and 0 <= steps < 2**53 else None

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
            figures = json.loads(read_limited(self.demonstrator / "cloning.json", MAX_SCORE_FILE))
        except (OSError, ValueError, RecursionError):
            return {}
        return figures if isinstance(figures, dict) else {}

    def _save_demonstrator(self, policy: PyTree, figures: dict[str, Any]) -> None:
        save_policy(policy, self.demonstrator)
        write_text(self.demonstrator / "cloning.json", json.dumps(figures, indent=2) + "\n")

    def _save_policies(self, policies: list[PyTree], folder: Path, iteration: int) -> None:
        options = self.config.options
        # Temporary files of a process that was killed while writing.
        for temporary in folder.glob(".policy*.part"):
            remove_if_possible(temporary)
        for k, policy in enumerate(policies):
            name = policy_name(options.seed + k if options.num_seeds > 1 else None)
            save_policy(policy, folder, name=name, iteration=iteration)


def require_unused(path: Path) -> None:
    """RunError when there is something of this name: a run is written into a directory of its own.

    path: of a new run.
    """
    if exists(path):
        raise NameTaken(
            f"{one_line(path)} exists already; choose another --run-dir, or go on with it: klimb resume "
            f"{one_line(shlex.quote(str(path)))}"
        )


class NewName(NamedTuple):
    """A place for a new run: in a folder, under a name, or under the first of name-2, name-3 … that is unused."""

    folder: Path
    name: str

    def unused(self) -> Path:
        """The first path that does not exist now. Another process may take it at any moment."""
        path, number = self.folder / self.name, 2
        while exists(path):
            path, number = self.folder / f"{self.name}-{number}", number + 1
        return path
