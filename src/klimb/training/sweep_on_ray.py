"""A sweep as tasks of a Ray cluster: each trains the combinations that can share a program.

A task goes on with what it finds in the directory of the sweep, which all machines share. So a task that Ray repeats,
because its process or its machine was lost, continues from the newest checkpoints.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from klimb.collect.host.ray_cluster import RayCluster, quiet
from klimb.environments.base import CompiledEnvironment
from klimb.environments.registry import GIVEN, Environment, make
from klimb.errors import ConfigError, KlimbError, RunError, TrainingFailed, one_line
from klimb.files import is_file, remove_if_possible, write_text
from klimb.runs.directory import RunDirectory
from klimb.runs.sweep_file import Member, read_sweep
from klimb.runs.tune_file import TrialBatch, is_search, read_trials, read_tuning
from klimb.training.driver import Notify, demonstrations_for, saved_demonstrator, saved_policy
from klimb.training.loop import Interrupted
from klimb.training.program import Program
from klimb.training.progress.view import MAX_NAMES, SILENT
from klimb.training.run_writer import Run, RunWriter
from klimb.training.stop_signals import StopSignals
from klimb.training.sweep_trainer import Plan, SweepTrainer, Trained

MAX_RETRIES = 3
"""How often Ray repeats a task whose process or machine was lost."""
SECONDS_TO_STOP = 120.0
"""That tasks get to save checkpoints when the sweep is stopped."""


class Outcome(NamedTuple):
    """What a task answers.

    failure: why its combinations could not all be trained; None if they were. shared: whether the directory of the
    sweep is there.
    """

    failure: str | None = None
    shared: bool = True


class RaySweep:
    """Trains the combinations of a sweep in a cluster.

    plan: of the sweep. environment: the one that it names. directory: of the sweep, which has its file; on a file
    system that all machines share. notify: called with lines for people. trust: whether modules that the files of the
    sweep name may be imported. address: of the cluster. up_to: as for `SweepTrainer`.
    """

    def __init__(
        self,
        plan: Plan,
        environment: Environment,
        directory: Path,
        notify: Notify,
        trust: bool,
        address: str,
        up_to: int | None = None,
    ) -> None:
        self._plan, self._environment, self._directory = plan, environment, directory.resolve()
        self._notify, self._trust, self._address, self._up_to = notify, trust, address, up_to

    def go_on(self, members: list[Member]) -> Iterator[Trained]:
        """Train what is unfinished of some combinations: their runs, as they are done.

        members: of the plan.

        Raises TrainingFailed, when all others are trained, if some can't be; Interrupted after a signal, when the tasks
        have saved checkpoints.
        """
        trainer = SweepTrainer(
            self._plan, self._environment, self._directory, (), lambda: SILENT, self._notify, up_to=self._up_to
        )
        groups = trainer.groups(trainer.unfinished(members))
        if not groups:
            return
        cluster = RayCluster(self._address)
        witness = self._directory / f".shared-{uuid.uuid4().hex[:8]}"
        failures: list[str] = []
        try:
            write_text(witness, "")
            task = cluster.ray.remote(num_cpus=cpus_of(self._plan), max_retries=MAX_RETRIES)(train_part)
            with quiet():
                waiting = {task.remote(*self._arguments(witness, group)): group for group in groups}
            self._notify(f"training     {len(groups)} tasks in the Ray cluster, which has {cluster.cpus} CPUs")
            with StopSignals() as stop:
                while waiting:
                    for reference in cluster.ray.wait(list(waiting), num_returns=1, timeout=0.5)[0]:
                        group = waiting.pop(reference)
                        yield from self._take_in(cluster, reference, group, failures)
                    if stop.received is not None and waiting:
                        self._stop(cluster, list(waiting), stop.received)
        finally:
            remove_if_possible(witness)
            cluster.close()
        if failures:
            raise TrainingFailed("; ".join(failures))

    def _arguments(self, witness: Path, group: list[Member]) -> tuple[Any, ...]:
        """What the task of some combinations is called with. witness: a file in the directory."""
        return str(self._directory), witness.name, [member.name for member in group], self._trust, self._up_to

    def _take_in(
        self, cluster: RayCluster, reference: Any, group: list[Member], failures: list[str]
    ) -> Iterator[Trained]:
        """The runs of a task that has ended; what has failed is added to the failures."""
        names = ", ".join(member.name for member in group[:MAX_NAMES])
        try:
            outcome: Outcome = cluster.ray.get(reference)
        except cluster.ray.exceptions.RayError as error:  # lost too often, or an error in the task
            outcome = Outcome(one_line(str(error).strip().splitlines()[-1]))
        if not outcome.shared:
            raise RunError(
                f"a machine of the Ray cluster has no {self._directory}: give a --run-dir on a file system that all of "
                "them share"
            )
        if outcome.failure is not None:
            failures.append(f"{names}: {outcome.failure}")
            self._notify(f"failed       {failures[-1]}")
            return
        self._notify(f"trained      {names}{' and more' if len(group) > MAX_NAMES else ''}")
        yield {member.name: finished_run(self._directory / member.name, member, self._environment) for member in group}

    def _stop(self, cluster: RayCluster, waiting: list[Any], signal: int) -> None:
        """Have all tasks save checkpoints. Interrupted when they have."""
        for reference in waiting:
            # As Ctrl-C in the task: it saves a checkpoint and ends.
            cluster.ray.cancel(reference, force=False)
        cluster.ray.wait(waiting, num_returns=len(waiting), timeout=SECONDS_TO_STOP)
        raise Interrupted(
            f"stopped, with {len(waiting)} tasks under way; go on with: klimb resume "
            f"{shlex.quote(str(self._directory))} --ray {self._address}",
            signal,
            [],
        )


def train_part(directory: str, witness: str, names: Sequence[str], trust: bool, up_to: int | None = None) -> Outcome:
    """What a task does: begin some combinations of a sweep, or go on with them, until they are trained.

    directory: of the sweep. witness: a file that is in it. names: of the combinations. trust: whether modules that the
    files of the sweep name may be imported. up_to: as for `SweepTrainer`.
    """
    path = Path(directory)
    if not is_file(path / witness):
        return Outcome(shared=False)
    notes: list[str] = []
    try:
        plan = read_plan(path, names, trust=trust)
        members = [member for member in plan.members() if member.name in names]
        trainer = SweepTrainer(plan, make(plan.config.env), path, (), lambda: SILENT, notes.append, trust, up_to)
        for _ in trainer.go_on(members):
            pass
    except Interrupted as interrupted:
        return Outcome(str(interrupted))
    except KlimbError as error:
        return Outcome(str(error))
    return Outcome()


def read_plan(directory: Path, names: Sequence[str], *, trust: bool) -> Plan:
    """What is trained in a directory: a sweep, or some trials of a search.

    directory: of either. names: of the trials. trust: whether modules that its files name may be imported.
    """
    if not is_search(directory):
        return read_sweep(directory, trust=trust)
    tuning = read_tuning(directory, trust=trust)
    return TrialBatch(tuning, [trial for trial in read_trials(directory, tuning) if trial.name in names])


def require_possible(plan: Plan, environment: Environment, callbacks: Sequence[Callable]) -> None:
    """ConfigError for a sweep that tasks of a cluster can't train.

    plan, environment: of the sweep. callbacks: that it would be given.
    """
    if plan.config.env.startswith(f"{GIVEN}:"):
        raise ConfigError("an environment object can't be sent to a Ray cluster: give the environment by its name")
    if callbacks:
        raise ConfigError("callbacks run where a training runs, and a sweep on Ray has none here: leave callback out")
    if not isinstance(environment, CompiledEnvironment) and plan.config.options.workers is None:
        raise ConfigError("a sweep on Ray needs the number of processes of each task: give --workers 1 or more")


def cpus_of(plan: Plan) -> int:
    """Number of CPUs that a task needs. plan: of the sweep."""
    return max(1, plan.config.options.workers or 1)


def finished_run(path: Path, member: Member, environment: Environment) -> Run:
    """The run of a combination that has been trained, from its files.

    path: of the run. member: the combination. environment: of the run.
    """
    directory = RunDirectory.open(path)
    config = member.config
    policy = saved_policy(directory, environment)
    demonstrations = demonstrations_for(environment, config, None)
    cloned = saved_demonstrator(directory, environment, config, policy, demonstrations)
    program = Program(config, environment, policy, demonstrations, demonstrator=cloned)
    try:
        checkpoint = directory.load(program.state_template())
        writer = RunWriter(config, slice(None), directory)
        writer.ended = directory.ending()
        return writer.result(program, program.place(checkpoint.state))
    finally:
        program.close()
