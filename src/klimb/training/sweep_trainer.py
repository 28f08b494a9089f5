"""Trains the combinations of a sweep: which of them share a program, and how the programs start and go on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from klimb.environments.registry import Environment
from klimb.errors import NameTaken, RunError, TrainingFailed
from klimb.files import exists, is_file
from klimb.improve.rule import is_offline
from klimb.rules import rule_name
from klimb.runs.changes import OPTIONS, value_of
from klimb.runs.checkpoint import Checkpoint
from klimb.runs.config import RunConfig
from klimb.runs.directory import NewName, RunDirectory
from klimb.runs.sweep_file import Member, Sweep
from klimb.runs.tune_file import TrialBatch
from klimb.tracking.trackers import Trackers
from klimb.training.driver import (
    Notify,
    demonstrations_for,
    demonstrator_for,
    policy_for,
    resume,
    saved_demonstrator,
    saved_policy,
)
from klimb.training.length import Iterations, length_of
from klimb.training.loop import drive
from klimb.training.ongoing_run import Callback, OngoingRun
from klimb.training.program import VARIED_OPTIONS, Program
from klimb.training.progress.view import MAX_NAMES, View
from klimb.training.run_writer import Run, RunWriter
from klimb.training.surroundings import observe
from klimb.types import TrainState

NewView = Callable[[], View]
"""Makes the view of the next program."""
Trained = dict[str, Run]
"""Runs by the names of their combinations."""
Plan = Sweep | TrialBatch
"""Combinations of values that are trained: all of a sweep, or some trials of a search."""


class SweepTrainer:
    """Trains the combinations of a sweep, as many of them in one program as can share it.

    plan, environment, directory: of the sweep; no directory keeps the runs in memory. callbacks, new_view, notify: as
    for `start_sweep`. trust: whether modules that the runs' files name may be imported. up_to: percent of their
    iterations after which they are paused; None to train to the end. trackers: that log the runs, which the caller
    finishes; None to finish those of each program when it ends.
    """

    def __init__(
        self,
        plan: Plan,
        environment: Environment,
        place: Path | NewName | None,
        callbacks: Sequence[Callback],
        new_view: NewView,
        notify: Notify,
        trust: bool = False,
        up_to: int | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self._trust, self._up_to, self._trackers = trust, up_to, trackers
        self._plan, self._environment, self._place = plan, environment, place
        self._directory = place if isinstance(place, Path) else None
        self._callbacks, self._new_view, self._notify = callbacks, new_view, notify
        self._shared = _numbers(plan)
        """Fields whose values can be data of one program, as far as it is known."""
        self._failures: list[str] = []
        self._begun: set[str] = set()
        self._stopped = False

    def start(self, members: list[Member]) -> Iterator[Trained]:
        """Train combinations from nothing."""
        yield from self._each(members, self._start)
        self._raise_failures()

    def go_on(self, members: list[Member]) -> Iterator[Trained]:
        """Train what is unfinished of combinations, some of which may not have begun."""
        begun = [member for member in members if self._is_begun(member)]
        unfinished = [member for member in begun if not self._is_over(member)]
        names = {member.name for member in begun}
        yield from self._each(unfinished, self._go_on)
        yield from self._each([member for member in members if member.name not in names], self._start)
        self._raise_failures()

    def unfinished(self, members: list[Member]) -> list[Member]:
        """Those that have not been trained to their end. members: some of the sweep."""
        return [member for member in members if not (self._is_begun(member) and self._is_over(member))]

    def _each(self, members: list[Member], train: Callable[[list[Member]], Iterator[Trained]]) -> Iterator[Trained]:
        """The combinations in groups that can share a program, each trained by `train`."""
        groups = self.groups(members)
        while groups and not self._stopped:
            group = groups.pop(0)
            try:
                yield from train(group)
            except _NotShared:
                groups = self.groups([*group, *(member for rest in groups for member in rest)])
            except TrainingFailed as failure:
                # One value that can't be trained with does not cost the others.
                self._failures.append(f"{', '.join(member.name for member in group)}: {failure}")
                self._notify(f"failed       {self._failures[-1]}")

    def _raise_failures(self) -> None:
        if self._failures:
            raise TrainingFailed("; ".join(self._failures))

    def groups(self, members: list[Member]) -> list[list[Member]]:
        """The combinations that have the same values of everything that can't share a program, as far as it is known.

        members: some of the sweep.
        """
        groups: dict[str, list[Member]] = {}
        for member in members:
            own = {name: value_of(member.config, name) for name in self._plan.over if name not in self._shared}
            groups.setdefault(repr(own), []).append(member)
        return list(groups.values())

    def _start(self, group: list[Member]) -> Iterator[Trained]:
        config = group[0].config
        demonstrations = demonstrations_for(self._environment, config, None)
        policy = policy_for(self._environment, config)
        demonstrator = demonstrator_for(self._environment, config, policy, demonstrations, self._notify)
        cloned = None if demonstrator is None else demonstrator.policy
        program = self._program(group, policy, demonstrations, cloned)
        writers: list[RunWriter] = []
        try:
            state = program.initial_state()
            self._require_shared(program, state, group)
            self.make_directory()
            entry = None if self._directory is None else observe("start", self._environment, preset=self._plan.preset)
            for member, part in zip(group, _parts(group), strict=True):
                path = None if self._directory is None else self._path(member)
                writers.append(RunWriter.create(member.config, path, program, state, part, demonstrator, entry))
        except BaseException:
            _close(program, writers)
            raise
        yield self._drive(program, state, writers, group, Checkpoint(state, 0, 0.0))

    def _go_on(self, group: list[Member]) -> Iterator[Trained]:
        """Combinations that shared a program, in one program again where their checkpoints allow it."""
        directories = [RunDirectory.open(self._path(member)) for member in group]
        pairs = zip(directories, group, strict=True)
        unchanged = all(directory.config.to_toml() == member.config.to_toml() for directory, member in pairs)
        common = set.intersection(*(set(directory.saved_iterations()) for directory in directories))
        if unchanged and common:
            trained = self._go_on_together(group, directories, sorted(common, reverse=True))
            if trained is not None:
                yield trained
                return
        # One of them has been resumed alone, or with other settings.
        for member, directory in zip(group, directories, strict=True):
            self._announce([member])
            rule = member.config.rule if directory.config.to_toml() == member.config.to_toml() else None
            run = resume(
                self._path(member),
                env=self._environment,
                rule=rule,
                callback=self._call_back if self._callbacks else None,
                progress=self._new_view(),
                trust_environment=self._trust,
                notify=self._notify,
                trackers=self._trackers,
            )
            self._note_stop([run])
            yield {member.name: run}
            if self._stopped:
                return

    def _go_on_together(
        self, group: list[Member], directories: list[RunDirectory], iterations: list[int]
    ) -> Trained | None:
        """Go on from the newest of some iterations of which all have a usable checkpoint; None where there is none."""
        config = group[0].config
        policy = saved_policy(directories[0], self._environment)
        demonstrations = demonstrations_for(self._environment, config, None)
        cloned = saved_demonstrator(directories[0], self._environment, config, policy, demonstrations)
        program = self._program(group, policy, demonstrations, cloned)
        writers = [
            RunWriter(member.config, part, directory)
            for member, part, directory in zip(group, _parts(group), directories, strict=True)
        ]
        try:
            self._require_shared(program, program.state_template(), group)
            for directory in directories:
                directory.lock()
            checkpoint = _joint_checkpoint(program, directories, iterations)
            if checkpoint is None:
                _close(program, writers)
                return None
            entry = observe("resume", self._environment, iteration=checkpoint.iteration)
            for directory in directories:
                directory.start_log(keep_until=checkpoint.iteration)
                directory.remove_ending()
                directory.add_provenance(entry)
            state = program.place(checkpoint.state)
        except BaseException:
            _close(program, writers)
            raise
        return self._drive(program, state, writers, group, checkpoint)

    def _drive(
        self,
        program: Program,
        state: TrainState,
        writers: list[RunWriter],
        group: list[Member],
        checkpoint: Checkpoint,
    ) -> Trained:
        self._announce(group)
        with self._new_view() as view:
            runs = drive(
                program,
                state,
                writers,
                self._callbacks,
                iteration=checkpoint.iteration,
                wall_time=checkpoint.wall_time,
                host_states=checkpoint.host_states,
                view=view,
                sweep=self._directory,
                pause_at=self._pause(group[0].config),
                names=[member.name for member in group],
                trackers=self._trackers,
            )
        self._note_stop(runs)
        return {member.name: run for member, run in zip(group, runs, strict=True)}

    def _announce(self, group: list[Member]) -> None:
        """Say which combinations are trained next."""
        self._begun |= {member.name for member in group}
        names = ", ".join(member.name for member in group[:MAX_NAMES])
        more = f" and {len(group) - MAX_NAMES} more" if len(group) > MAX_NAMES else ""
        total = len(self._plan.members())
        self._notify(f"training     {names}{more} ({len(self._begun)} of {total} {self._plan.noun} begun)")

    def _call_back(self, run: OngoingRun) -> None:
        for callback in self._callbacks:
            callback(run)

    def _note_stop(self, runs: Sequence[Run]) -> None:
        """A callback that stops a program stops the sweep."""
        self._stopped |= any(run.ended is not None and run.ended.reason == "callback" for run in runs)

    def _program(self, group: list[Member], policy: Any, demonstrations: Any, cloned: Any) -> Program:
        """One program for all combinations of a group."""
        names = self._varied(group)
        variations = {name: [value_of(member.config, name) for member in group] for name in names}
        config = group[0].config
        return Program(config, self._environment, policy, demonstrations, variations or None, demonstrator=cloned)

    def _varied(self, group: list[Member]) -> list[str]:
        """The fields whose values are data of the group's program; none where it has a single combination."""
        return [name for name in self._plan.over if name in self._shared] if len(group) > 1 else []

    def _require_shared(self, program: Program, state: TrainState, group: list[Member]) -> None:
        """_NotShared, with fewer fields that count as shared, when the rule decides by some of them what it does."""
        names = self._varied(group)
        if not names or _is_traced(program, state):
            return
        deciding = names if len(names) == 1 else [name for name in names if not self._is_shared_alone(group, name)]
        deciding = deciding or names
        self._shared -= set(deciding)
        self._notify(
            f"sweep        the program of {rule_name(group[0].config.rule)} depends on {', '.join(deciding)}: each "
            "value is compiled separately"
        )
        raise _NotShared

    def _is_shared_alone(self, group: list[Member], name: str) -> bool:
        """Whether one field's values can be data of a program in which no other field is varied."""
        config = group[0].config
        policy = policy_for(self._environment, config)
        demonstrations = demonstrations_for(self._environment, config, None)
        variations = {name: [value_of(member.config, name) for member in group]}
        program = Program(config, self._environment, policy, demonstrations, variations)
        try:
            return _is_traced(program, program.initial_state())
        finally:
            program.close()

    def make_directory(self) -> Path | None:
        """The directory of the sweep, when its first program is known to be possible; None of one in memory."""
        if isinstance(self._place, NewName):
            while self._directory is None:
                path = self._place.unused()
                # Another sweep may take the name at this moment.
                with contextlib.suppress(NameTaken):
                    self._plan.write(path)
                    self._directory = path
        elif self._directory is not None and not exists(self._directory):
            self._plan.write(self._directory)
        return self._directory

    def _pause(self, config: RunConfig) -> int | None:
        """The iteration after which a combination is paused; None for the end. config: of it."""
        return None if self._up_to is None else max(1, round(self._up_to / 100 * config.num_iterations))

    def _path(self, member: Member) -> Path:
        assert self._directory is not None
        return self._directory / member.name

    def _is_begun(self, member: Member) -> bool:
        return is_file(self._path(member) / "config.toml")

    def _is_over(self, member: Member) -> bool:
        """Whether a run has been trained to its end, as far as that is known before its checkpoint is read."""
        directory = RunDirectory.open(self._path(member))
        ending, saved = directory.ending(), directory.saved_iterations()
        pause = self._pause(member.config)
        if pause is not None and saved and saved[0] >= pause:
            return True
        if ending is not None and ending.final:
            return bool(saved) and saved[0] >= ending.iteration
        length = length_of(dataclasses.replace(directory.config, rule=member.config.rule))
        if is_offline(member.config.rule) or not isinstance(length, Iterations):
            return False
        return bool(saved) and saved[0] >= length.iterations


class _NotShared(Exception):
    """The combinations of a group can't share a program."""


def _numbers(plan: Plan) -> set[str]:
    """Fields whose values may be data of one program: real numbers of a rule that learns from an environment."""
    options = OPTIONS - VARIED_OPTIONS if plan.varies_options else OPTIONS
    members = plan.members()
    if is_offline(plan.config.rule):
        return set()
    return {
        name
        for name in plan.over
        if name not in options and all(isinstance(value_of(member.config, name), float) for member in members)
    }


def _parts(group: list[Member]) -> list[slice]:
    """The copies of each combination among those of the program."""
    each = group[0].config.options.num_seeds
    return [slice(i * each, (i + 1) * each) for i in range(len(group))]


def _is_traced(program: Program, state: TrainState) -> bool:
    """Whether a program can be compiled with its varied values as data."""
    try:
        program.source.trace(state)
    except jax.errors.ConcretizationTypeError:
        return False
    return True


def _joint_checkpoint(program: Program, directories: list[RunDirectory], iterations: list[int]) -> Checkpoint | None:
    """The newest iteration of which all runs have a usable checkpoint, put together as a state of all copies."""
    seeds = program.num_copies // len(directories)
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape[1:]), x.dtype), program.state_template())
    for iteration in iterations:
        with contextlib.suppress(RunError):
            parts = [directory.load_iteration(template, iteration) for directory in directories]
            state = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(part.state for part in parts))
            host_states = [part.host_states for part in parts]
            return Checkpoint(state, iteration, max(part.wall_time for part in parts), _joined(host_states))
    return None


def _joined(host_states: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The states of all copies' host environments; None where those of some run are not known."""
    known = [states for states in host_states if states is not None]
    if len(known) < len(host_states):
        return None
    is_list = lambda node: isinstance(node, list)  # noqa: E731
    return jax.tree.map(lambda *rows: [row for part in rows for row in part], *known, is_leaf=is_list)


def _close(program: Program, writers: list[RunWriter]) -> None:
    """Release what a program that is not driven holds."""
    try:
        program.close()
    finally:
        for writer in writers:
            writer.close()
