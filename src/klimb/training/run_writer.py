"""Where the records and checkpoints of a training go."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from klimb.runs.checkpoint import Checkpoint
from klimb.runs.config import RunConfig
from klimb.runs.directory import RunDirectory
from klimb.runs.metrics import Record, to_records
from klimb.training.program import Program
from klimb.training.recent_score import RecentScore
from klimb.types import TrainState

logger = logging.getLogger("klimb")


@dataclass(frozen=True)
class Run:
    """A training that has ended: the policies (one a seed), the last state, and where it was written (or nowhere)."""

    policies: list[Any]
    config: RunConfig
    state: TrainState
    directory: Path | None
    kept: list[Record] | None = field(default=None, repr=False)
    """The records of a run that is not written anywhere."""

    @property
    def policy(self) -> Any:
        """The policy of the (first) seed."""
        return self.policies[0]

    @cached_property
    def history(self) -> list[Record]:
        """The records of all iterations: read from the run directory, where there is one."""
        if self.directory is None:
            return self.kept or []
        return RunDirectory(self.directory, self.config).history()


class RunWriter:
    """Some (`part`) of a program's copies as one run: in a directory, or in memory (`directory` None)."""

    def __init__(self, config: RunConfig, part: slice, directory: RunDirectory | None) -> None:
        self.config, self.directory = config, directory
        self._part = part
        self._kept: list[Record] = []
        self._score = RecentScore()
        self.saved_at: int | None = None
        """The iteration of the last checkpoint; None while there is none, or it could not be written."""

    @classmethod
    def create(
        cls,
        config: RunConfig,
        run_dir: str | Path | None,
        program: Program,
        state: TrainState,
        part: slice = slice(None),
    ) -> RunWriter:
        """A new run, in a new directory unless it stays in memory."""
        output = cls(config, part, None)
        if run_dir is not None:
            policies = program.policies(state)[part]
            output.directory = RunDirectory.create(run_dir, config, output._own(program, state), policies)
            output.directory.start_log()
            output.saved_at = 0
        return output

    def append(self, metrics: dict[str, np.ndarray], times: list[float], speed: float) -> list[Record]:
        """The metrics of a call, `[iterations, copies]`."""
        own = {name: values[:, self._part] for name, values in metrics.items()}
        records = to_records(own, wall_time=times, steps_per_second=speed)
        self._score.take_in(own)
        if self.directory is None:
            self._kept.extend(records)
        else:
            self.directory.append(records)
        return records

    def load_history(self, iteration: int) -> list[Record]:
        """The records of a run that is gone on with from the checkpoint of an iteration, whether or not it was due."""
        if self.directory is None or iteration == 0:
            return []
        self.saved_at = iteration
        records = self.directory.history()
        if [record["iteration"] for record in records[-1:]] != [iteration]:
            logger.warning("%s: the metrics do not reach up to iteration %d", self.directory.path, iteration)
        due = iteration - iteration % self.config.options.checkpoint_every
        self._score.restore([record for record in records if record["iteration"] > due])
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
        """A checkpoint, with the policies as files of their own. One that is due may be the best.

        program, state, policies: of all copies. host_states: where the host environments of all copies stand, or None.
        iteration: that the state is after. wall_time: seconds of training so far. due: whether it may be the best.

        Where it can't be written that is said, and the training goes on. RunError when the directory is gone.
        """
        if self.directory is None:
            return
        own = (
            None
            if host_states is None
            else jax.tree.map(lambda rows: rows[self._part], host_states, is_leaf=lambda rows: isinstance(rows, list))
        )
        checkpoint = Checkpoint(self._own(program, state), iteration, wall_time, own)
        try:
            score = self._score.draw() if due else None
            self.directory.save(checkpoint, policies[self._part], score=score)
            self.saved_at = iteration
        except OSError as error:
            self.saved_at = None
            logger.warning(
                "%s: the checkpoint of iteration %d can't be written (%s); those before it stay, and the training goes "
                "on",
                self.directory.path,
                iteration,
                error.strerror,
            )

    def unwritten(self, iteration: int) -> str | None:
        """What the disk still lacks of a run that ends at an iteration, after a last try; None for nothing."""
        if self.directory is None:
            return None
        lacking = [] if self.saved_at == iteration else ["the last checkpoint"]
        try:
            self.directory.write_waiting()
        except OSError:
            lacking.append("the last records")
        return f"{self.directory.path} lacks {' and '.join(lacking)}" if lacking else None

    def result(self, program: Program, state: TrainState) -> Run:
        """What has come of it."""
        path = None if self.directory is None else self.directory.path
        policies = program.policies(state)[self._part]
        return Run(policies, self.config, self._own(program, state), path, self._kept)

    def close(self) -> None:
        """Let go of the files."""
        if self.directory is not None:
            self.directory.close()

    def _own(self, program: Program, state: TrainState) -> TrainState:
        everything = range(program.num_copies)
        return state if everything[self._part] == everything else jax.tree.map(lambda x: x[self._part], state)
