"""The loop of a training: calls to the device, their records, checkpoints, evaluations, and a clean stop on signals."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal as signals
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from klimb.errors import EnvironmentFault, PeerLost, RunError, TrainingFailed, one_line
from klimb.improve.rule import is_offline
from klimb.runs.directory import RunDirectory
from klimb.runs.ending import Ending, Reason
from klimb.runs.metrics import Record, to_records
from klimb.tracking.trackers import Trackers, finished_at_end
from klimb.training import peers
from klimb.training.ongoing_run import Callback, OngoingRun
from klimb.training.pace import CallSize, Clock
from klimb.training.program import Program
from klimb.training.progress.figures import Part
from klimb.training.progress.view import SILENT, View, Views, log_lines
from klimb.training.rejections import Rejections, copy_names
from klimb.training.run_writer import Run, RunWriter
from klimb.training.stop_signals import StopSignals
from klimb.training.supervision import Supervision
from klimb.types import Status, TrainState

NOTHING_SAVED = "nothing was saved (no run directory)"

logger = logging.getLogger("klimb")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP during a training, after its newest iteration.

    message: one line for people. signal_number: the number received, the attribute `signal`. runs: the run as it was
    then (of a sweep, every run), written or not: `error.runs[0].policy` is its policy; empty after a second Ctrl-C,
    which does not wait for the device. Where there is a run directory a checkpoint has been saved, from which
    `klimb.resume` goes on.
    """

    def __init__(self, message: str, signal_number: int, runs: list[Run]) -> None:
        super().__init__(message)
        self.signal, self.runs = signal_number, runs


class NotSaved(RunError):
    """A training that could not be written.

    message: one line for people. runs: the training, from which `klimb.save_policy(error.runs[0].policy, directory)`
    saves the policy.
    """

    def __init__(self, message: str, runs: list[Run]) -> None:
        super().__init__(message)
        self.runs = runs


def drive(
    program: Program,
    state: TrainState,
    writers: list[RunWriter],
    callbacks: Sequence[Callback],
    *,
    iteration: int,
    wall_time: float,
    host_states: dict[str, Any] | None = None,
    view: View = SILENT,
    sweep: Path | None = None,
    names: Sequence[str] = (),
    pause_at: int | None = None,
    trackers: Trackers | None = None,
) -> list[Run]:
    """Advance to the last iteration: records after every call, a checkpoint when one is due and at the end.

    program, state: what is advanced, and from where. writers: where records and checkpoints go. callbacks: called after
    every call to the device, in order. iteration, wall_time: that the state is after. host_states: where host
    environments stood, or None. view: that shows the training. sweep: the directory of the sweep that is resumed after
    a stop, if the runs are part of one. names: of the combinations of a sweep, one for each writer. pause_at: the
    iteration after which a checkpoint is saved and the runs are left as they are, to be gone on with as after a stop;
    None to train to the end. trackers: that log the runs, which the caller finishes; None to
    finish them here. Returns a result for each writer; NotSaved, TrainingFailed and Interrupted as `train` raises them.
    """
    copies = copy_names([writer.config for writer in writers], names)
    clock, rejections = Clock(wall_time), Rejections(program.config.options.max_rejections, copies)
    supervision = Supervision(program, [(writer.config, writer.part) for writer in writers])
    view, finished = Views(log_lines(logger), view), False
    with finished_at_end(trackers) as trackers:
        try:
            parts = [Part(name, writer.config, writer.part) for name, writer in zip(names, writers, strict=False)]
            view.begin(program.config, iteration, _directories(writers), parts)
            histories = [writer.load_history(iteration) for writer in writers]
            rejections.restore(_joint_statuses(histories))
            supervision.restore(histories)
            _begin_to_track(trackers, writers, histories, names)
            with _faults_written(writers, iteration):
                program.start(iteration=iteration, host_states=host_states)
            training = _Training(
                program, state, writers, callbacks, iteration, clock, rejections, supervision, view, sweep, pause_at
            )
            with _peers_watched(training):
                training.run()
            state, iteration, finished = training.state, training.iteration, True
            runs = [writer.result(program, state) for writer in writers]
            lacking = [words for writer in writers if (words := writer.unwritten(iteration)) is not None]
            if lacking:
                raise NotSaved(f"the training is done, but {'; '.join(lacking)}: the disk can't be written", runs)
            return runs
        finally:
            try:
                program.close()
            finally:
                for writer in writers:
                    writer.close()
                view.end(finished=finished)


def _begin_to_track(
    trackers: Trackers, writers: list[RunWriter], histories: list[list[Record]], names: Sequence[str]
) -> None:
    """Open the trackers of every run, which are given the records so far; of several processes the first one logs."""
    if not peers.is_first():
        return
    for i, (writer, records) in enumerate(zip(writers, histories, strict=True)):
        writer.trackers = trackers.begin(writer.config, writer.directory, records, names[i] if names else "")


@dataclass
class _Training:
    """A training under way: what is advanced, where it stands, and where records and checkpoints go."""

    program: Program
    state: TrainState
    writers: list[RunWriter]
    callbacks: Sequence[Callback]
    iteration: int
    clock: Clock
    rejections: Rejections
    supervision: Supervision
    view: View
    sweep: Path | None
    pause_at: int | None = None
    stopped: bool = False

    def __post_init__(self) -> None:
        # A copy: the state is given up, and its buffers are used again.
        self.env_steps = np.array(self.state.env_steps)

    def run(self) -> None:
        """To the end. Interrupted and TrainingFailed when it ends before, with a checkpoint."""
        options = self.program.config.options
        size = CallSize(1 if options.check_finite else self.program.max_iterations_per_call)
        if not self._finished:
            self.view.doing("compiling")
        with StopSignals() as stop, _stopping_at_once(self.writers, self.sweep):
            while not (self._finished or self._paused or self.stopped):
                metrics = self._call(size)
                self.rejections.count(metrics["status"])
                self._conclude(metrics, stop)
        if self._finished or not self._paused:
            self._end(self._reasons)

    @property
    def _paused(self) -> bool:
        return self.pause_at is not None and self.iteration >= self.pause_at

    @property
    def _finished(self) -> bool:
        over = self.program.certain_iterations(self.state, self.iteration) == 0
        return over or self.supervision.ended

    @property
    def _reasons(self) -> list[tuple[Reason, str]]:
        """Why it has ended, of every run."""
        if self.supervision.ended:
            return [(one.reason, one.message) for one in self.supervision.stoppings if one.reason is not None]
        offline = is_offline(self.program.config.rule)
        complete = "the passes over the demonstrations are done" if offline else "all environment steps were made"
        reason: tuple[Reason, str] = ("callback", "a callback stopped the training")
        return [("complete", complete) if self._finished else reason for _ in self.writers]

    def _call(self, size: CallSize) -> dict[str, np.ndarray]:
        """Make some iterations and record them, evaluate if that is due, and tell the callbacks; the metrics."""
        before = self.env_steps
        try:
            with _faults_written(self.writers, self.iteration):
                iterations = peers.from_first(self._iterations(size, before))
                self.state, metrics = self.supervision.advance(self.state, iterations)
        except EnvironmentFault as fault:
            # Nothing has been learned of the rollout: the state is still that of the last iteration.
            self._rescue()
            raise self._failure(str(fault)) from fault
        faults = self.program.take_faults()
        count = len(metrics["iteration"])
        times, seconds = self.clock.lap(count)
        size.adapt(count, seconds)
        self.iteration += count
        self.env_steps = np.array(self.state.env_steps)
        evaluations = self.supervision.evaluate(self.state, before, self.iteration, self.view.episodes)
        if any(evaluations):
            self.clock.pass_over()
        speed = self.program.rows_used(metrics, int(before.sum(dtype=np.int64))) / seconds
        records = []
        for writer, evaluation in zip(self.writers, evaluations, strict=True):
            writer.add_faults(faults, self.iteration, self.program.config.options.num_envs)
            records.append(writer.append(metrics, times, speed, evaluation))
        self._save_best(evaluations)
        several = len(self.writers) > 1
        try:
            self._tell(to_records(metrics, wall_time=times, steps_per_second=speed) if several else records[0])
        except Exception as error:
            # Whoever is told may fail; what has been trained is not lost by that.
            self._rescue()
            self._end([("failed", f"a callback raised {type(error).__name__}: {error}")] * len(self.writers))
            raise
        return metrics

    def _rescue(self) -> None:
        """A checkpoint before an error that this process alone has.

        The others of several processes wait for it elsewhere, and can't say where their environments stand: the last
        checkpoint is what there is.
        """
        if peers.count() == 1:
            _save(self.writers, self.program, self.state, self.iteration, self.clock.now, due=False)

    def _save_best(self, evaluations: list[Record]) -> None:
        """Write the policies of the runs whose evaluations are the best so far."""
        best = [writer.is_best(evaluation) for writer, evaluation in zip(self.writers, evaluations, strict=True)]
        if not peers.from_first(any(best)):
            return
        program, state, now = self.program, self.state, self.clock.now
        host_states = program.host_states()
        for writer, evaluation, is_best in zip(self.writers, evaluations, best, strict=True):
            if is_best:
                writer.save_best(program, state, evaluation, host_states, iteration=self.iteration, wall_time=now)

    def _iterations(self, size: CallSize, env_steps: np.ndarray) -> int:
        """Iterations of the next call: not past a checkpoint, an evaluation, a pause, or a reason to stop."""
        every = self.program.config.options.checkpoint_every
        certain = self.program.certain_iterations(self.state, self.iteration)
        to_checkpoint = every - self.iteration % every
        limit = min(size.iterations, certain, to_checkpoint, self.rejections.remaining)
        if self.pause_at is not None:
            limit = min(limit, self.pause_at - self.iteration)
        return self.supervision.certain(env_steps, limit)

    def _tell(self, records: list[Record]) -> None:
        """Show new records, and call the callbacks with them."""
        self.view.update(records)
        if not self.callbacks:
            return
        directory = next(iter(_directories(self.writers)), None) if self.sweep is None else self.sweep
        run = OngoingRun(records, directory, partial(self.program.policies, self.state))
        for callback in self.callbacks:
            callback(run)
        run.release()
        self.stopped = run.stopped

    def _conclude(self, metrics: dict[str, np.ndarray], stop: StopSignals) -> None:
        """Save what is due after a call, and stop if something is a reason to."""
        options, finished = self.program.config.options, self._finished
        fails = self.rejections.limit_reached
        signal, self.stopped = self._agreed(stop.received)
        stops = not finished and (self.stopped or self._paused or signal is not None or fails)
        due = finished or self.iteration % options.checkpoint_every == 0
        broken = options.check_finite and bool((metrics["status"] == Status.NONFINITE).any())
        if due or stops or broken:
            _save(self.writers, self.program, self.state, self.iteration, self.clock.now, due=due)
            if saved := _directories(self.writers, self.iteration):
                self.view.saved(self.iteration, saved)
        if broken:
            raise self._failure(_first_nan(self.program, metrics, self.iteration), located=True)
        if stops and fails:
            raise self._failure(self.rejections.message)
        if stops and signal is not None:
            name = signals.Signals(signal).name
            self._end([("interrupted", f"{name} stopped the training")] * len(self.writers))
            runs = [writer.result(self.program, self.state) for writer in self.writers]
            message = f"stopped after iteration {self.iteration}{_saved(self.writers, self.sweep, held=True)}"
            raise Interrupted(message, signal, runs)

    def _agreed(self, signal: int | None) -> tuple[int | None, bool]:
        """A signal that any process of the training has received, and whether a callback of any of them stops it."""
        said = peers.exchange([signal, self.stopped])
        return next((number for number, _ in said if number is not None), None), any(stopped for _, stopped in said)

    def _failure(self, cause: str, *, located: bool = False) -> TrainingFailed:
        """The error of a training that can't go on. located: whether the cause says in which iteration it was."""
        self._end([("failed", cause)] * len(self.writers))
        start = "" if located else f"stopped after iteration {self.iteration}: "
        return TrainingFailed(f"{start}{cause}{_saved(self.writers, self.sweep)}", _directories(self.writers))

    def lost(self, cause: str) -> PeerLost:
        """The error of a training of several processes that has lost one: what was computed since is gone with it."""
        peers.leave_at_exit(leaves=False)
        self._end([("failed", cause)] * len(self.writers))
        directories = [writer.directory for writer in self.writers if writer.directory is not None]
        how = f"; from the last checkpoint {_go_on(directories, self.sweep)}, in all processes" if directories else ""
        return PeerLost(f"stopped after iteration {self.iteration}: {cause}{how}", _directories(self.writers))

    def _end(self, reasons: list[tuple[Reason, str]]) -> None:
        for writer, (reason, message) in zip(self.writers, reasons, strict=True):
            env_steps = round(float(self.env_steps[writer.part].mean()))
            writer.end(Ending(reason, self.iteration, env_steps, one_line(message, 4000)))


@contextlib.contextmanager
def _peers_watched(training: _Training) -> Iterator[None]:
    """PeerLost when another process of the training is gone, with how to go on from the last checkpoint."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Of a collective that is dispatched at once, Gloo's error is a ValueError.
        if peers.count() == 1 or (isinstance(error, ValueError) and "Gloo" not in str(error)):
            raise
        raise training.lost(f"another process of the training is gone ({one_line(error, 100)})") from error


@contextlib.contextmanager
def _faults_written(writers: list[RunWriter], iteration: int) -> Iterator[None]:
    """A fault of an environment that ends the training is written into the run directories, and raised."""
    try:
        yield
    except EnvironmentFault as fault:
        for writer in writers:
            writer.add_fatal_fault(fault, iteration)
        raise


def _joint_statuses(histories: list[list[Record]]) -> list[Record]:
    """The statuses of all runs of a program by iteration, those of every copy in one list.

    histories: the records of each run.
    """
    statuses = [[record.get("status") for record in records] for records in zip(*histories, strict=False)]
    return [
        {"status": [name for cell in cells for name in (cell if isinstance(cell, list) else [cell])]}
        for cells in statuses
    ]


def _save(
    writers: list[RunWriter], program: Program, state: TrainState, iteration: int, wall_time: float, *, due: bool
) -> None:
    """A checkpoint of every run. NotSaved when a run's directory is gone: nobody would ever find what follows."""
    gone = []
    host_states = program.host_states()
    policies = program.policies(state)
    for writer in writers:
        if writer.saved_at != iteration:
            try:
                writer.save(program, state, policies, host_states, iteration=iteration, wall_time=wall_time, due=due)
            except RunError as error:
                gone.append(str(error))
    if gone:
        runs = [writer.result(program, state) for writer in writers]
        raise NotSaved(f"{'; '.join(gone)}; stopped after iteration {iteration}", runs)


def _directories(writers: list[RunWriter], saved_at: int | None = None) -> list[Path]:
    """Where the runs are that are written; of those only that have a checkpoint of an iteration, where one is given."""
    written = [writer for writer in writers if saved_at in (None, writer.saved_at)]
    return [writer.directory.path for writer in written if writer.directory is not None]


def _first_nan(program: Program, metrics: dict[str, np.ndarray], iteration: int) -> str:
    """What made the first NaN of the first copy whose step was not finite."""
    copy = int(np.flatnonzero((metrics["status"] == Status.NONFINITE).any(0))[0])
    return f"iteration {iteration}: {program.source.first_nan(copy)}"


def _saved(writers: list[RunWriter], sweep: Path | None, *, held: bool = False) -> str:
    """How to go on, for a message. held: whether the error has the runs."""
    directories = [writer.directory for writer in writers if writer.directory is not None]
    if not peers.is_first():
        return "; the first process has the run"
    if not directories and held:
        return "; there is no run directory to resume from, but the policy is here: error.runs[0].policy"
    if directories and any(writer.directory is not None and writer.saved_at is None for writer in writers):
        return "; the checkpoint could not be written"
    return f", checkpoint saved; {_go_on(directories, sweep)}" if directories else f"; {NOTHING_SAVED}"


def _go_on(directories: list[RunDirectory], sweep: Path | None) -> str:
    """The command that goes on with a run, or with a whole sweep."""
    flag = " --trust-environment" if directories[0].config.resumed_with_trust else ""
    path = directories[0].path if sweep is None else sweep
    return f"go on with: klimb resume {shlex.quote(str(path))}{flag}"


@contextlib.contextmanager
def _stopping_at_once(writers: list[RunWriter], sweep: Path | None) -> Iterator[None]:
    """Interrupted, with how to go on, for a second Ctrl-C too, which does not wait for a checkpoint."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as interrupt:
        directories = [writer.directory for writer in writers if writer.directory is not None]
        how = f"from the last checkpoint {_go_on(directories, sweep)}" if directories else NOTHING_SAVED
        raise Interrupted(f"stopped at once; {how}", signals.SIGINT, []) from interrupt
