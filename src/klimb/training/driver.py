"""Driving a training: `train` and `resume`, with records, checkpoints and a clean stop on signals."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.collect.whole_episodes import require_fit
from klimb.environments.registry import Environment, make, recorded_name, require_trust
from klimb.errors import ConfigError, EnvironmentFault, PolicyFileError, RunError, TrainingFailed
from klimb.fields import build
from klimb.improve.rule import Rule, is_offline, traits_of, with_values
from klimb.runs.changes import OPTIONS, changes_between, describe, refusal, require_changeable, with_changes
from klimb.runs.checkpoint import Checkpoint
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.demonstration_file import load_demonstrations
from klimb.runs.directory import RunDirectory
from klimb.runs.metrics import Record, to_records
from klimb.runs.policy_file import ForeignPolicy, load_policy, policy_name
from klimb.runs.provenance import Change
from klimb.training.demonstrator import Demonstrator, clone
from klimb.training.length import length_of
from klimb.training.networks import Networks
from klimb.training.pace import CallSize, Clock
from klimb.training.program import Program
from klimb.training.rejections import Rejections
from klimb.training.run_writer import Run, RunWriter
from klimb.training.stop_signals import StopSignals
from klimb.training.surroundings import observe
from klimb.types import Status, TrainState

OnRecords = Callable[[list[Record]], None]
Notify = Callable[[str], None]

logger = logging.getLogger("klimb")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a training; the checkpoint has been saved. `signal` is the number received."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal = signal_number


class NotSaved(RunError):
    """A training that could not be written. `runs` has it: `klimb.save_policy(error.runs[0].policy, directory)`."""

    def __init__(self, message: str, runs: list[Run]) -> None:
        super().__init__(message)
        self.runs = runs


def train(
    env: str | Any,
    rule: Rule,
    *,
    policy: PyTree | str | None = None,
    critic: Any = None,
    demonstrations: Demonstrations | str | Path | None = None,
    run_dir: str | Path | None = None,
    on_records: OnRecords | None = None,
    **options: Any,
) -> Run:
    """Train a policy in an environment with an update rule.

    env: a name (see `klimb.make`) or an environment object.
    rule: e.g. `TRPO(max_kl=0.01)`.
    policy: a callable pytree `policy(obs) -> Distribution` to start from, or `module:name` of a function that makes
        one: (observations, actions, key) -> policy. None for a fresh network, or for the policy of `init_from`.
    critic: a `klimb.Critic`, or a pytree that maps one observation to a number, to start from; or `module:name` of a
        function that makes one: (observations, key) -> critic. None for a fresh network.
    demonstrations: recorded episodes (`klimb.record`), or where they are, for the rules that learn from them.
    run_dir: a directory to make and write the run into; None keeps the run in memory.
    on_records: called with the new records (one an iteration) after every call to the device.
    options: the fields of `klimb.TrainOptions` by name: env_steps, seed, num_seeds, num_envs, num_steps,
        gamma, gae_lambda, advantage, …

    Raises ConfigError for an option that is unknown or out of range, EnvironmentNotFound or UnsupportedSpace
    for an environment that klimb can't train in, PolicyFileError for an `init_from` and DemonstrationError for
    demonstrations that can't be used or are from another environment, RunError when `run_dir` exists. Ctrl-C and
    SIGTERM save a checkpoint (when there is a run directory) and raise `Interrupted`.
    """
    for field, given in (("policy", policy), ("critic", critic)):
        if isinstance(given, str):
            options[field] = given
    if demonstrations is not None:
        source = demonstrations.source if isinstance(demonstrations, Demonstrations) else str(demonstrations)
        options["demonstrations"] = source
    environment = make(env)
    return start(
        RunConfig(recorded_name(env), rule, build(TrainOptions, options)),
        environment,
        policy=None if isinstance(policy, str) else policy,
        critic=None if isinstance(critic, str) else critic,
        demonstrations=demonstrations if isinstance(demonstrations, Demonstrations) else None,
        run_dir=run_dir,
        on_records=on_records,
    )


def start(
    config: RunConfig,
    environment: Environment,
    *,
    policy: PyTree | None = None,
    critic: Any = None,
    demonstrations: Demonstrations | None = None,
    run_dir: str | Path | None = None,
    on_records: OnRecords | None = None,
    notify: Notify = logger.info,
) -> Run:
    """A training from its first iteration to its last, by a configuration and the environment that it names.

    config: of the run. environment: the one that it names.
    policy, critic, demonstrations: objects that the configuration can't name, as `train` takes them.
    run_dir, on_records, errors: as for `train`. notify: called with lines about the start, for people.
    """
    policy = policy_for(environment, config) if policy is None else policy
    found = demonstrations_for(environment, config, demonstrations)
    demonstrator = demonstrator_for(environment, config, policy, found, notify)
    cloned = None if demonstrator is None else demonstrator.policy
    program = Program(config, environment, policy, found, critic=critic, demonstrator=cloned)
    state = program.initial_state()
    provenance = None if run_dir is None else observe("start", environment)
    writer = RunWriter.create(config, run_dir, program, state, demonstrator=demonstrator, provenance=provenance)
    (run,) = drive(program, state, [writer], on_records, iteration=0, wall_time=0.0)
    return run


def resume(
    run_dir: str | Path,
    *,
    env: Any | None = None,
    rule: Rule | None = None,
    policy: PyTree | None = None,
    critic: Any = None,
    demonstrations: Demonstrations | None = None,
    on_records: OnRecords | None = None,
    trust_environment: bool = False,
    notify: Notify = logger.info,
    **changes: Any,
) -> Run:
    """Go on with a run from its newest checkpoint, to the `env_steps` of its configuration.

    The result is the same, byte for byte, as that of a run never interrupted: on compiled environments, and on those
    whose simulator's state can be saved (docs/reliability.md). On others running episodes start again.

    run_dir: the run.
    env, rule, policy, critic, demonstrations: needed only for a run that was started from Python with objects that a
        configuration file can't name.
    on_records: called with the new records (one an iteration) after every call to the device.
    trust_environment: import the modules that the configuration names for its environment, rule, policy or critic.
    notify: called with lines about what changes, for people.
    changes: new values of training options (`env_steps`, `gamma`, …) or of fields of the rule, by name; the run's
        configuration has them from then on. `env_steps` may be more or less than before, but more than are done. What
        would change the shape or the meaning of the saved state is refused. A `rule` with other values changes it too.

    Raises RunError when the directory is no run, has no usable checkpoint, or is being written by another process;
    UntrustedEnvironment when a module would have to be imported; ConfigError when the rule is not at hand, or for a
    change that is not possible.
    """
    directory = RunDirectory.open(run_dir)
    source = directory.path / "config.toml"
    before = directory.config
    config = before if rule is None else RunConfig(before.env, rule, before.options)
    config = config.require_modules(source, trust=trust_environment)
    config = with_changes(before if rule is not None else config, changes, rule)
    require_changeable(before, config)
    if env is None and not trust_environment:
        require_trust(config.env, source)
    environment = make(config.env if env is None else env)
    with contextlib.closing(directory):
        directory.lock()
        policy = saved_policy(directory, environment) if policy is None else policy
        found = demonstrations_for(environment, config, demonstrations)
        demonstrator = saved_demonstrator(directory, environment, config, policy, found)
        program = Program(config, environment, policy, found, critic=critic, demonstrator=demonstrator)
        try:
            checkpoint = _checkpoint_to_go_on_from(program, directory, config, notify)
            directory.start_log(keep_until=checkpoint.iteration)
            _record_resumption(directory, config, environment, checkpoint.iteration)
        except BaseException:
            program.close()
            raise
        (run,) = drive(
            program,
            program.place(checkpoint.state),
            [RunWriter(config, slice(None), directory)],
            on_records,
            iteration=checkpoint.iteration,
            wall_time=checkpoint.wall_time,
            host_states=checkpoint.host_states,
        )
    return run


def _checkpoint_to_go_on_from(
    program: Program, directory: RunDirectory, config: RunConfig, notify: Notify
) -> Checkpoint:
    """The newest checkpoint of a run, if the training can go on from it with the configuration of now.

    directory: with the configuration of before. Raises RunError and ConfigError, before anything is written.
    """
    before = directory.config
    changes = changes_between(before, config)
    _require_same_shapes(program, changes)
    checkpoint = directory.load(program.state_template())
    if changes:
        _require_more_steps(program, before, checkpoint.state, checkpoint.iteration)
    for line in [*map(describe, changes), *_schedule_lines(before, config, checkpoint.state, checkpoint.iteration)]:
        notify(f"changed      {line}")
    return checkpoint


def _record_resumption(directory: RunDirectory, config: RunConfig, environment: Environment, iteration: int) -> None:
    """Add an entry to the provenance; where settings change, the configuration is written again."""
    changes = changes_between(directory.config, config)
    entry = observe("resume", environment, iteration=iteration, changes=changes)
    if changes:
        directory.change(config, entry)
    else:
        directory.add_provenance(entry)


def _require_same_shapes(program: Program, changes: list[Change]) -> None:
    """ConfigError for changed fields of the rule with which its state or history has another shape than the run's."""
    rule = program.config.rule
    before = {change.name: change.before for change in changes if change.name not in OPTIONS}
    if not before:
        return
    shapes = program.rule_shapes(rule)

    def differs(values: dict[str, Any]) -> bool:
        """Whether the rule keeps something else with these values."""
        return program.rule_shapes(with_values(rule, values)) != shapes

    if differs(before):
        responsible = [name for name, value in before.items() if differs({name: value})]
        raise refusal(" and ".join(responsible or before), "the saved state has another shape")


def _require_more_steps(program: Program, before: RunConfig, state: TrainState, iteration: int) -> None:
    """ConfigError when a run whose settings change is over already.

    before: its configuration without the changes. state, iteration: of its newest checkpoint.
    """
    if program.certain_iterations(state, iteration) > 0:
        return
    done, options = int(np.asarray(state.env_steps).min()), program.config.options
    if is_offline(program.config.rule):
        raise ConfigError(f"the run is over after {iteration} epochs; give more max_epochs or patience, too")
    raise ConfigError(
        f"env_steps = {options.env_steps}, and the run has made {done} environment steps in {iteration} iterations "
        f"already{'' if options.env_steps != before.options.env_steps else ', all that it should'}: choose more"
    )


def _schedule_lines(before: RunConfig, after: RunConfig, state: TrainState, iteration: int) -> list[str]:
    """What a change of the length of the run does to what is annealed over it, in one line."""
    if not traits_of(after.rule).anneals or before.options.env_steps == after.options.env_steps:
        return []
    env_steps = float(np.asarray(state.env_steps).mean())
    left = [1 - float(length_of(config).fraction_done(iteration, env_steps)) for config in (before, after)]
    return [f"annealed over the new length: it goes on from {left[1]:.0%} of its first value, not from {left[0]:.0%}"]


def saved_policy(directory: RunDirectory, environment: Environment) -> PyTree | None:
    """The policy of the (first) seed, which says how policies of the run are built.

    Where it can't be read, the one that the run started from. None where the configuration says how it is made.

    directory: of the run. environment: the one of the run.
    """
    options = directory.config.options
    if options.policy is not None:
        return None
    first_seed = options.seed if options.num_seeds > 1 else None
    if not (directory.path / f"{policy_name(first_seed)}.json").is_file():
        return policy_for(environment, directory.config)
    try:
        return load_policy(directory.path, seed=first_seed)
    except ForeignPolicy as error:
        raise ConfigError(f"{error}; in Python: klimb.resume(run, policy=...)") from None
    except PolicyFileError as error:
        logger.warning("%s; the checkpoint is used, and its policy written again", error)
        return policy_for(environment, directory.config)


def saved_demonstrator(
    directory: RunDirectory,
    environment: Environment,
    config: RunConfig,
    policy: PyTree | None,
    demonstrations: Demonstrations | None,
) -> PyTree | None:
    """The policy that the run has cloned from its demonstrations, if it has; cloned again where it can't be read.

    directory, environment, config: of the run. policy: how its policies are built. demonstrations: of the run.
    """
    if demonstrations is None or config.options.demonstrator != "cloned":
        return None
    try:
        return load_policy(directory.demonstrator, like=Networks(environment, config.options, policy).template)
    except PolicyFileError as error:
        logger.warning("%s; the demonstrations are cloned again", error)
        return clone(config, environment, policy_for(environment, config), demonstrations).policy


def demonstrator_for(
    environment: Environment,
    config: RunConfig,
    policy: PyTree | None,
    demonstrations: Demonstrations | None,
    notify: Notify,
) -> Demonstrator | None:
    """The demonstrator of a run that starts, where it is to be estimated; else None.

    environment, config: of the run. policy: that it starts from, or None. demonstrations: those of the run, or None.
    notify: called with one line about it.
    """
    if demonstrations is None or config.options.demonstrator != "cloned":
        return None
    demonstrator = clone(config, environment, policy, demonstrations)
    notify(demonstrator.line)
    return demonstrator


def policy_for(environment: Environment, config: RunConfig) -> PyTree | None:
    """The policy of another run that a run starts from, if it has any and it fits the environment.

    environment, config: of the run that starts.
    """
    if config.options.init_from is None:
        return None
    policy = load_policy(config.options.init_from)
    require_fit(policy, environment)
    return policy


def demonstrations_for(
    environment: Environment, config: RunConfig, given: Demonstrations | None
) -> Demonstrations | None:
    """The demonstrations of a run, if it has any and they fit the environment and the rule.

    environment, config: of the run. given: the demonstrations themselves; None to load what the configuration names.
    """
    config.check_demonstrations()
    source = config.options.demonstrations
    if source is None:
        return None
    demonstrations = load_demonstrations(source) if given is None else given
    demonstrations.check_fit(environment)
    weighted = not is_offline(config.rule) and traits_of(config.rule).demonstrations_in_batch
    if weighted and config.options.demonstrator == "recorded":
        demonstrations.check_log_probs()
    return demonstrations


def drive(
    program: Program,
    state: TrainState,
    writers: list[RunWriter],
    on_records: OnRecords | None,
    *,
    iteration: int,
    wall_time: float,
    host_states: dict[str, Any] | None = None,
    sweep: Path | None = None,
) -> list[Run]:
    """Advance to the last iteration: records after every call, a checkpoint when one is due and at the end.

    program, state: what is advanced, and from where. writers: where records and checkpoints go. on_records: called
    with new records. iteration, wall_time: that the state is after. host_states: where host environments stood, or
    None. sweep: the directory of the sweep that is resumed after a stop, if the runs are part of one. Returns a result
    for each writer; NotSaved, TrainingFailed and Interrupted as `train` raises them.
    """
    clock, rejections = Clock(wall_time), Rejections(program.config.options.max_rejections)
    try:
        rejections.restore(_joint_statuses([writer.load_history(iteration) for writer in writers]))
        program.start(iteration=iteration, host_states=host_states)
        state, iteration = _advance(program, state, writers, on_records, iteration, clock, rejections, sweep)
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


def _advance(
    program: Program,
    state: TrainState,
    writers: list[RunWriter],
    on_records: OnRecords | None,
    iteration: int,
    clock: Clock,
    rejections: Rejections,
    sweep: Path | None,
) -> tuple[TrainState, int]:
    """The last state and its iteration. Interrupted and TrainingFailed when it ends before, with a checkpoint."""
    options, saved = program.config.options, partial(_saved, writers, sweep)
    size = CallSize(1 if options.check_finite else program.max_iterations_per_call)
    with StopSignals() as stop:
        while (certain := program.certain_iterations(state, iteration)) > 0:
            until_checkpoint = options.checkpoint_every - iteration % options.checkpoint_every
            count = min(size.iterations, certain, until_checkpoint, rejections.remaining)
            before = int(np.asarray(state.env_steps).sum(dtype=np.int64))
            try:
                state, metrics = program.advance(state, count)
            except EnvironmentFault as fault:
                # Nothing has been learned of the rollout: the state is still that of the last iteration.
                _save(writers, program, state, iteration, clock.now, due=False)
                raise TrainingFailed(f"stopped after iteration {iteration}: {fault}{saved()}") from fault
            times, seconds = clock.lap(count)
            size.adapt(count, seconds)
            iteration += count
            speed = program.rows_used(metrics, before) / seconds
            records = [writer.append(metrics, times, speed) for writer in writers]
            if on_records is not None:
                together = (
                    to_records(metrics, wall_time=times, steps_per_second=speed) if len(writers) > 1 else records[0]
                )
                on_records(together)
            rejections.count(metrics["status"])
            finished = program.certain_iterations(state, iteration) == 0
            stops = not finished and (stop.received is not None or rejections.limit_reached)
            due = finished or iteration % options.checkpoint_every == 0
            if due or stops:
                _save(writers, program, state, iteration, clock.now, due=due)
            if options.check_finite and (metrics["status"] == Status.NONFINITE).any():
                _save(writers, program, state, iteration, clock.now, due=due)
                raise TrainingFailed(_first_nan(program, metrics, iteration) + saved())
            if stops and rejections.limit_reached:
                raise TrainingFailed(f"stopped after iteration {iteration}: {rejections.message}{saved()}")
            if stops and stop.received is not None:
                raise Interrupted(f"stopped after iteration {iteration}{saved()}", stop.received)
    return state, iteration


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


def _first_nan(program: Program, metrics: dict[str, np.ndarray], iteration: int) -> str:
    """What made the first NaN of the first copy whose step was not finite."""
    copy = int(np.flatnonzero((metrics["status"] == Status.NONFINITE).any(0))[0])
    return f"iteration {iteration}: {program.source.first_nan(copy)}"


def _saved(writers: list[RunWriter], sweep: Path | None) -> str:
    """How to go on, for a message."""
    directories = [writer.directory for writer in writers if writer.directory is not None]
    if not directories:
        return "; nothing was saved (no run directory)"
    if any(writer.directory is not None and writer.saved_at is None for writer in writers):
        return "; the checkpoint could not be written"
    flag = " --trust-environment" if directories[0].config.names_modules else ""
    path = directories[0].path if sweep is None else sweep
    return f", checkpoint saved; go on with: klimb resume {path}{flag}"
