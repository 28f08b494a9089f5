"""Writes the records, checkpoints and policies of a training, and makes its result."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from klimb.environments.host import Fault
from klimb.errors import EnvironmentFault
from klimb.improve.rule import rule_title
from klimb.policies.policy import Policy
from klimb.runs.checkpoint import Checkpoint
from klimb.runs.config import RunConfig
from klimb.runs.directory import NewName, RunDirectory
from klimb.runs.ending import Ending
from klimb.runs.faults_log import FaultsLog
from klimb.runs.metrics import Record, to_records
from klimb.runs.provenance import Provenance
from klimb.tracking.trackers import RunTrackers
from klimb.training.demonstrator import Demonstrator
from klimb.training.program import Program
from klimb.training.recent_score import RecentScore
from klimb.types import TrainState

logger = logging.getLogger("klimb")


@dataclass(frozen=True, repr=False)
class Run:
    """The result of a training.

    policies: that the training results in, one per seed. config: of the run. state: after the last iteration.
    directory: of the run, or None if it was not written.
    """

    policies: list[Policy]
    config: RunConfig
    state: TrainState
    directory: Path | None
    records: list[Record] | None = field(default=None, repr=False)
    """The records of a run that was not written."""
    ended: Ending | None = None
    """What ended the training; None of a run that an error holds."""

    @property
    def policy(self) -> Policy:
        """The policy of the (first) seed."""
        return self.policies[0]

    def __repr__(self) -> str:
        """Rule and environment, how long it was trained, the last mean return, and where it is."""
        seeds = len(self.policies)
        steps = int(np.asarray(self.state.env_steps).max())
        trained = f"{steps:,} environment steps" if steps else f"{int(np.asarray(self.state.iteration).max()):,} epochs"
        parts = [
            f"{rule_title(self.config.rule)} on {self.config.env}",
            trained + (f" × {seeds} seeds" if seeds > 1 else ""),
            *self._last_return(),
            "in memory" if self.directory is None else f"in {self.directory}",
        ]
        return f"<Run: {', '.join(parts)}>"

    def _last_return(self) -> list[str]:
        """The mean return, over seeds, of the newest iteration in which an episode of each ended; none without one."""
        try:
            records = self.history
        except (OSError, ValueError):  # its directory is gone
            return []
        for record in reversed(records):
            values = np.atleast_1d(np.array(record.get("episode_return"), float))
            if np.isfinite(values).all():
                return [f"mean return {values.mean():.4g} in iteration {record['iteration']:,}"]
        return []

    @cached_property
    def history(self) -> list[Record]:
        """The records of all iterations, read from the run directory if there is one."""
        if self.directory is None:
            return self.records or []
        return RunDirectory(self.directory, self.config).history()


class RunWriter:
    """Writes one run of a program, which may train several.

    config: of the run. part: the run's copies among those of the program. directory: of the run; None to keep the
    records in memory. records: of the iterations before, where there is no directory.
    """

    def __init__(
        self, config: RunConfig, part: slice, directory: RunDirectory | None, records: Sequence[Record] = ()
    ) -> None:
        self.config, self.directory, self.part = config, directory, part
        self._records = list(records)
        self._score = RecentScore()
        self._faults: FaultsLog | None = None
        self.saved_at: int | None = None
        """The iteration of the last checkpoint; None while there is none, or when it could not be written."""
        self.ended: Ending | None = None
        self.trackers: RunTrackers | None = None
        """What logs the run; None for a run that is not logged."""

    @classmethod
    def create(
        cls,
        config: RunConfig,
        run_dir: str | Path | NewName | None,
        program: Program,
        state: TrainState,
        part: slice = slice(None),
        demonstrator: Demonstrator | None = None,
        provenance: Provenance | None = None,
    ) -> RunWriter:
        """A writer for a new run, with its first checkpoint.

        config: of the run. run_dir: the directory to create, or None to keep the records in memory. program, state: of
        all copies, before the first iteration. part: the run's copies. demonstrator: that was cloned, or None.
        provenance: what it is trained with and on; None to leave that out.
        Raises RunError when the directory exists or can't be written.
        """
        writer = cls(config, part, None)
        if run_dir is not None:
            policies = program.policies(state)[part]
            cloned = None if demonstrator is None else (demonstrator.policy, demonstrator.figures)
            own = writer._own(program, state)
            writer.directory = RunDirectory.create(run_dir, config, own, policies, cloned, provenance)
            writer.directory.start_log()
            writer.saved_at = 0
        return writer

    def append(
        self, metrics: dict[str, np.ndarray], times: list[float], speed: float, evaluation: Record
    ) -> list[Record]:
        """Write the metrics of a call; returns their records.

        metrics: `[iterations, copies]` each. times: seconds of training at the end of each iteration. speed:
        environment steps per second. evaluation: what an evaluation after the last of them adds to its record.
        """
        own = {name: values[:, self.part] for name, values in metrics.items()}
        records = to_records(own, wall_time=times, steps_per_second=speed)
        records[-1] |= evaluation
        self._score.take_in(own)
        if self.directory is None:
            self._records.extend(records)
        else:
            self.directory.append(records)
        if self.trackers is not None:
            self.trackers.log(records)
        return records

    def add_faults(self, faults: list[Fault], iteration: int, num_envs: int) -> None:
        """Write faults of environments that were survived, with their tracebacks, to `faults.log`.

        faults: of all copies of the program. iteration: the one that they happened in. num_envs: environments per copy.
        """
        copies = range(self.config.options.num_seeds)
        for fault in faults:
            copy, number = divmod(fault.copy, num_envs)
            k = copy - (self.part.start or 0)
            if k in copies:
                seed = f" of seed {self.config.options.seed + k}" if len(copies) > 1 else ""
                what = f"iteration {iteration}, environment {number}{seed}: {fault.cause}; it is restarted"
                self._faults_log.add(what, fault.traceback)

    def add_fatal_fault(self, fault: EnvironmentFault, iteration: int) -> None:
        """Write the fault that ends the training to `faults.log`; without a run directory it is in the error alone.

        fault: that was raised. iteration: the last one that was completed.
        """
        if self.directory is not None:
            self._faults_log.add(f"after iteration {iteration}: {fault}", fault.environment_traceback)

    @property
    def _faults_log(self) -> FaultsLog:
        # Made late: the directory has its last name by then.
        if self._faults is None:
            self._faults = FaultsLog(None if self.directory is None else self.directory.path)
        return self._faults

    def load_history(self, iteration: int) -> list[Record]:
        """The records of a run that is resumed from the checkpoint of an iteration."""
        if self.directory is None or iteration == 0:
            return list(self._records)
        self.saved_at = iteration
        records = self.directory.history()
        if [record["iteration"] for record in records[-1:]] != [iteration]:
            logger.warning("%s: the metrics do not reach up to iteration %d", self.directory.path, iteration)
        # The score counts from the last regular checkpoint; the one resumed from may have been saved by a stop signal.
        due = iteration - iteration % self.config.options.checkpoint_every
        self._score.restore([record for record in records if record["iteration"] > due], self.config.options.num_seeds)
        return records

    def save(
        self,
        program: Program,
        state: TrainState,
        policies: list[Any],
        host_states: dict[str, Any] | None,
        *,
        iteration: int,
        wall_time: float,
        due: bool,
    ) -> None:
        """Write a checkpoint, and the policies as files of their own.

        program, state, policies: of all copies. host_states: the states of all copies' host environments, or None.
        iteration: iterations done. wall_time: seconds of training so far. due: whether it is a regular checkpoint,
        which may become the best one.
        Logs a warning when it can't be written. Raises RunError when the directory has been removed.
        """
        if self.directory is None:
            return
        checkpoint = self._checkpoint(program, state, host_states, iteration, wall_time)
        try:
            score = self._score.draw() if due else None
            by_evaluation = self.config.options.eval_every > 0
            self.directory.save(checkpoint, policies[self.part], score=None if by_evaluation else score)
            self.saved_at = iteration
        except OSError as error:
            self.saved_at = None
            logger.warning(
                "%s: the checkpoint of iteration %d can't be written (%s); earlier ones are kept, and the training "
                "continues",
                self.directory.path,
                iteration,
                error.strerror,
            )

    def is_best(self, evaluation: Record) -> bool:
        """Whether an evaluation is the best so far, of a run that is written. evaluation: as for `append`."""
        score = _score_of(evaluation)
        return self.directory is not None and score is not None and self.directory.is_better(score)

    def save_best(
        self,
        program: Program,
        state: TrainState,
        evaluation: Record,
        host_states: dict[str, Any] | None,
        *,
        iteration: int,
        wall_time: float,
    ) -> None:
        """Write the policies into `best/`, with a checkpoint.

        program, state: of all copies. evaluation: as for `append`, the best so far. host_states, iteration, wall_time:
        as for `save`. Logs a warning when it can't be written.
        """
        score = _score_of(evaluation)
        assert self.directory is not None
        assert score is not None
        checkpoint = self._checkpoint(program, state, host_states, iteration, wall_time)
        try:
            self.directory.save_best(checkpoint, program.policies(state)[self.part], score=score)
        except OSError as error:
            logger.warning(
                "%s: the best policy, of iteration %d, can't be written (%s); the training continues",
                self.directory.path,
                iteration,
                error.strerror,
            )

    def end(self, ending: Ending) -> None:
        """Record what ended the training."""
        self.ended = ending
        if self.trackers is not None:
            self.trackers.ending = ending
        if self.directory is not None:
            self.directory.write_ending(ending)

    def unwritten(self, iteration: int) -> str | None:
        """A message about what could not be written of a run that ends at an iteration; None if all was.

        Tries once more to write waiting records.
        """
        if self.directory is None:
            return None
        missing = [] if self.saved_at == iteration else ["the last checkpoint"]
        try:
            self.directory.write_waiting()
        except OSError:
            missing.append("the last records")
        return f"{self.directory.path} lacks {' and '.join(missing)}" if missing else None

    def result(self, program: Program, state: TrainState) -> Run:
        """The run's result.

        program, state: of all copies, after the last iteration.
        """
        path = None if self.directory is None else self.directory.path
        policies = program.policies(state)[self.part]
        return Run(policies, self.config, self._own(program, state), path, self._records, self.ended)

    def close(self) -> None:
        """Close the files and release the lock."""
        if self.directory is not None:
            self.directory.close()

    def _own(self, program: Program, state: TrainState) -> TrainState:
        """The state of this run's copies."""
        copies = range(program.num_copies)
        return state if copies[self.part] == copies else jax.tree.map(lambda x: x[self.part], state)

    def _checkpoint(
        self,
        program: Program,
        state: TrainState,
        host_states: dict[str, Any] | None,
        iteration: int,
        wall_time: float,
    ) -> Checkpoint:
        """The checkpoint of this run's copies."""
        if host_states is not None:
            host_states = jax.tree.map(
                lambda rows: rows[self.part], host_states, is_leaf=lambda rows: isinstance(rows, list)
            )
        return Checkpoint(self._own(program, state), iteration, wall_time, host_states)


def _score_of(evaluation: Record) -> float | None:
    """The mean return of an evaluation over seeds, exactly; None where a seed's has failed, or there was none."""
    returns = np.atleast_1d(np.array(evaluation.get("eval_return"), float))
    return math.fsum(returns) / len(returns) if np.isfinite(returns).all() else None
