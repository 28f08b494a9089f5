"""Driving a training: `train` and `resume`, with records, checkpoints and a clean stop on signals."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal as signals
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.collect.whole_episodes import require_fit
from klimb.environments.registry import Environment, make, recorded_name, require_trust
from klimb.errors import ConfigError, EnvironmentFault, PolicyFileError, RunError, TrainingFailed, one_line
from klimb.improve.rule import Rule, is_offline, traits_of
from klimb.rules import RULES
from klimb.runs.config import RunConfig
from klimb.runs.demonstration_file import load_demonstrations
from klimb.runs.directory import RunDirectory, require_unused
from klimb.runs.ending import Ending, Reason
from klimb.runs.files import as_path
from klimb.runs.metrics import Record, to_records
from klimb.runs.policy_file import ForeignPolicy, load_policy, policy_name
from klimb.runs.typed_options import TrainOptionsDict
from klimb.training.demonstrator import Demonstrator, clone
from klimb.training.given import given_policy, options_of, require_rule
from klimb.training.networks import Networks
from klimb.training.ongoing_run import Callback, OngoingRun
from klimb.training.pace import CallSize, Clock
from klimb.training.program import Program
from klimb.training.progress.choice import view_of
from klimb.training.progress.view import SILENT, View, Views, log_lines
from klimb.training.rejections import Rejections
from klimb.training.run_writer import Run, RunWriter
from klimb.training.stop_signals import StopSignals
from klimb.training.supervision import Supervision
from klimb.training.surroundings import observe
from klimb.types import Status, TrainState

Notify = Callable[[str], None]

logger = logging.getLogger("klimb")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a training, after its newest iteration.

    signal: the number received. runs: the run as it was then (of a sweep, every run), written or not:
    `error.runs[0].policy` is its policy; empty after a second Ctrl-C, which does not wait for the device. Where there
    is a run directory a checkpoint has been saved, from which `klimb.resume` goes on.
    """

    def __init__(self, message: str, signal_number: int, runs: list[Run]) -> None:
        super().__init__(message)
        self.signal, self.runs = signal_number, runs


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
    callback: Callback | None = None,
    progress: bool | View = False,
    **options: Unpack[TrainOptionsDict],
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
    callback: called with a `klimb.OngoingRun` after every call to the device, which makes one iteration or several: it
        has the new records and the policy, and can stop the training.
    progress: whether to show the training: as a panel in a terminal or a notebook, elsewhere as lines on standard
        error. In any case the logger "klimb" gets them, at the level INFO.
    options: the fields of `klimb.TrainOptions` by name: env_steps, seed, num_seeds, num_envs, num_steps,
        gamma, gae_lambda, advantage, …

    Raises ConfigError for an option that is unknown or out of range, WrongObject for a rule's class or name instead of
    a rule, and the like, EnvironmentNotFound or UnsupportedSpace
    for an environment that klimb can't train in, PolicyFileError for an `init_from` and DemonstrationError for
    demonstrations that can't be used or are from another environment, RunError when `run_dir` exists. Ctrl-C and
    SIGTERM save a checkpoint (when there is a run directory) and raise `Interrupted`, which has the policy.
    """
    require_rule(rule, env)
    named: dict[str, Any] = {**options}
    for field, given in (("policy", policy), ("critic", critic)):
        if isinstance(given, str):
            named[field] = given
    if demonstrations is not None:
        source = demonstrations.source if isinstance(demonstrations, Demonstrations) else str(demonstrations)
        named["demonstrations"] = source
    environment = make(env)
    with view_of(progress) as view:
        return start(
            RunConfig(recorded_name(env), rule, options_of(rule, named)),
            environment,
            policy=given_policy(policy, environment),
            critic=None if isinstance(critic, str) else critic,
            demonstrations=demonstrations if isinstance(demonstrations, Demonstrations) else None,
            run_dir=run_dir,
            callbacks=() if callback is None else (callback,),
            view=view,
        )


def start(
    config: RunConfig,
    environment: Environment,
    *,
    policy: PyTree | None = None,
    critic: Any = None,
    demonstrations: Demonstrations | None = None,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    notify: Notify = logger.info,
    view: View = SILENT,
) -> Run:
    """A training from its first iteration to its last, by a configuration and the environment that it names.

    config: of the run. environment: the one that it names.
    policy, critic, demonstrations: objects that the configuration can't name, as `train` takes them.
    run_dir, errors: as for `train`. callbacks: each called as the `callback` of `train`, in order.
    notify: called with lines about the start, for people. view: that shows the training; the caller enters and leaves
    it.
    """
    if run_dir is not None:
        # Before anything is computed: whether there is room for the run, and whether its rule can be written.
        require_unused(as_path(run_dir))
        config.to_toml()
    policy = policy_for(environment, config) if policy is None else policy
    found = demonstrations_for(environment, config, demonstrations)
    demonstrator = demonstrator_for(environment, config, policy, found, notify)
    cloned = None if demonstrator is None else demonstrator.policy
    program = Program(config, environment, policy, found, critic=critic, demonstrator=cloned)
    if type(config.rule) not in RULES.values():
        # What a step of the user's own returns is checked before anything is compiled or written.
        program.source.trace(program.state_template())
    state = program.initial_state()
    provenance = None if run_dir is None else observe("start", environment)
    writer = RunWriter.create(config, run_dir, program, state, demonstrator=demonstrator, provenance=provenance)
    (run,) = drive(program, state, [writer], callbacks, iteration=0, wall_time=0.0, view=view)
    return run


def resume(
    run_dir: str | Path,
    *,
    env: Any | None = None,
    rule: Rule | None = None,
    policy: PyTree | None = None,
    critic: Any = None,
    demonstrations: Demonstrations | None = None,
    callback: Callback | None = None,
    progress: bool | View = False,
    trust_environment: bool = False,
) -> Run:
    """Go on with a run from its newest checkpoint, to the `env_steps` of its configuration.

    The result is the same, byte for byte, as that of a run never interrupted: on compiled environments, and on those
    whose simulator's state can be saved (docs/reliability.md). On others running episodes start again.

    run_dir: the run.
    env, rule, policy, critic, demonstrations: needed only for a run that was started from Python with objects that a
        configuration file can't name.
    callback: as for `train`.
    progress: whether to show the training, as for `train`.
    trust_environment: import the modules that the configuration names for its environment, rule, policy or critic.

    Raises RunError when the directory is no run, has no usable checkpoint, or is being written by another process;
    UntrustedEnvironment when a module would have to be imported; ConfigError when the rule is not at hand.
    """
    directory = RunDirectory.open(run_dir)
    config, source = directory.config, directory.path / "config.toml"
    if rule is not None:
        require_rule(rule, None, "klimb.resume")
        config = RunConfig(config.env, rule, config.options)
    config = config.require_modules(source, trust=trust_environment)
    if env is None and not trust_environment:
        require_trust(config.env, source)
    environment = make(config.env if env is None else env)
    with contextlib.closing(directory), view_of(progress) as view:
        directory.lock()
        policy = _saved_policy(directory, environment) if policy is None else policy
        found = demonstrations_for(environment, config, demonstrations)
        demonstrator = _saved_demonstrator(directory, environment, config, policy, found)
        program = Program(config, environment, policy, found, critic=critic, demonstrator=demonstrator)
        state, iteration, wall_time, host_states = directory.load(program.state_template())
        directory.start_log(keep_until=iteration)
        directory.remove_ending()
        directory.add_provenance(observe("resume", environment, iteration=iteration))
        (run,) = drive(
            program,
            program.place(state),
            [RunWriter(config, slice(None), directory)],
            () if callback is None else (callback,),
            iteration=iteration,
            wall_time=wall_time,
            host_states=host_states,
            view=view,
        )
    return run


def _saved_policy(directory: RunDirectory, environment: Environment) -> PyTree | None:
    """The policy of the (first) seed, which says how policies of the run are built.

    Where it can't be read, the one that the run started from. None where the configuration says how it is made.
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


def _saved_demonstrator(
    directory: RunDirectory,
    environment: Environment,
    config: RunConfig,
    policy: PyTree | None,
    demonstrations: Demonstrations | None,
) -> PyTree | None:
    """The policy that the run has cloned from its demonstrations, if it has; cloned again where it can't be read."""
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
    callbacks: Sequence[Callback],
    *,
    iteration: int,
    wall_time: float,
    host_states: dict[str, Any] | None = None,
    view: View = SILENT,
) -> list[Run]:
    """Advance to the last iteration: records after every call, a checkpoint when one is due and at the end.

    program, state: what is advanced, and from where. writers: where records and checkpoints go. callbacks: called after
    every call to the device, in order. iteration, wall_time: that the state is after. host_states: where host
    environments stood, or None. view: that shows the training. Returns a result for each writer; NotSaved,
    TrainingFailed and Interrupted as `train` raises them.
    """
    clock, rejections = Clock(wall_time), Rejections(program.config.options.max_rejections)
    supervision = Supervision(program, [(writer.config, writer.part) for writer in writers])
    view, finished = Views(log_lines(logger), view), False
    try:
        view.begin(program.config, iteration, _directories(writers))
        histories = [writer.load_history(iteration) for writer in writers]
        rejections.restore([record for history in histories for record in history])
        supervision.restore(histories)
        with _faults_written(writers, iteration):
            program.start(iteration=iteration, host_states=host_states)
        training = _Training(program, state, writers, callbacks, iteration, clock, rejections, supervision, view)
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
    stopped: bool = False

    def run(self) -> None:
        """To the end. Interrupted and TrainingFailed when it ends before, with a checkpoint."""
        options = self.program.config.options
        size = CallSize(1 if options.check_finite else self.program.max_iterations_per_call)
        if not self._finished:
            self.view.doing("compiling")
        with StopSignals() as stop, _stopping_at_once(self.writers):
            while not (self._finished or self.stopped):
                metrics = self._call(size)
                self.rejections.count(metrics["status"])
                self._conclude(metrics, stop)
        self._end(self._reasons)

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
        # A copy: the state is given up, and its buffers are used again.
        before = np.array(self.state.env_steps)
        try:
            with _faults_written(self.writers, self.iteration):
                self.state, metrics = self.supervision.advance(self.state, self._iterations(size, before))
        except EnvironmentFault as fault:
            # Nothing has been learned of the rollout: the state is still that of the last iteration.
            _save(self.writers, self.program, self.state, self.iteration, self.clock.now, due=False)
            raise self._failure(str(fault)) from fault
        faults = self.program.take_faults()
        count = len(metrics["iteration"])
        times, seconds = self.clock.lap(count)
        size.adapt(count, seconds)
        self.iteration += count
        evaluations = self.supervision.evaluate(self.state, before, self.iteration, self.view.episodes)
        if any(evaluations):
            self.clock.pass_over()
        speed = self.program.rows_used(metrics, int(before.sum(dtype=np.int64))) / seconds
        records = []
        for writer, evaluation in zip(self.writers, evaluations, strict=True):
            writer.add_faults(faults, self.iteration, self.program.config.options.num_envs)
            records.append(writer.append(metrics, times, speed, evaluation))
            writer.save_best(self.program, self.state, evaluation, iteration=self.iteration, wall_time=self.clock.now)
        several = len(self.writers) > 1
        self._tell(to_records(metrics, wall_time=times, steps_per_second=speed) if several else records[0])
        return metrics

    def _iterations(self, size: CallSize, env_steps: np.ndarray) -> int:
        """How many iterations the next call makes: not past the next checkpoint or evaluation, or a reason to stop."""
        every = self.program.config.options.checkpoint_every
        certain = self.program.certain_iterations(self.state, self.iteration)
        to_checkpoint = every - self.iteration % every
        limit = min(size.iterations, certain, to_checkpoint, self.rejections.remaining)
        return self.supervision.certain(env_steps, limit)

    def _tell(self, records: list[Record]) -> None:
        """Show new records, and call the callbacks with them."""
        self.view.update(records)
        if not self.callbacks:
            return
        parents = {path.parent if len(self.writers) > 1 else path for path in _directories(self.writers)}
        run = OngoingRun(records, next(iter(parents), None), partial(self.program.policies, self.state))
        for callback in self.callbacks:
            callback(run)
        run.release()
        self.stopped = run.stopped

    def _conclude(self, metrics: dict[str, np.ndarray], stop: StopSignals) -> None:
        """Save what is due after a call, and stop if something is a reason to."""
        options, finished = self.program.config.options, self._finished
        fails, signal = self.rejections.limit_reached, stop.received
        stops = not finished and (self.stopped or signal is not None or fails)
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
            message = f"stopped after iteration {self.iteration}{_saved(self.writers, held=True)}"
            raise Interrupted(message, signal, runs)

    def _failure(self, cause: str, *, located: bool = False) -> TrainingFailed:
        """The error of a training that can't go on. located: whether the cause says in which iteration it was."""
        self._end([("failed", cause)] * len(self.writers))
        start = "" if located else f"stopped after iteration {self.iteration}: "
        return TrainingFailed(f"{start}{cause}{_saved(self.writers)}")

    def _end(self, reasons: list[tuple[Reason, str]]) -> None:
        for writer, (reason, message) in zip(self.writers, reasons, strict=True):
            env_steps = round(float(np.asarray(self.state.env_steps)[writer.part].mean()))
            writer.end(Ending(reason, self.iteration, env_steps, one_line(message, 4000)))


@contextlib.contextmanager
def _faults_written(writers: list[RunWriter], iteration: int) -> Iterator[None]:
    """A fault of an environment that ends the training is written into the run directories, and raised."""
    try:
        yield
    except EnvironmentFault as fault:
        for writer in writers:
            writer.add_fatal_fault(fault, iteration)
        raise


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


def _saved(writers: list[RunWriter], *, held: bool = False) -> str:
    """How to go on, for a message. held: whether the error has the runs."""
    directories = [writer.directory for writer in writers if writer.directory is not None]
    if not directories and held:
        return "; there is no run directory to resume from, but the policy is here: error.runs[0].policy"
    if directories and any(writer.directory is not None and writer.saved_at is None for writer in writers):
        return "; the checkpoint could not be written"
    return f", checkpoint saved; {_go_on(directories)}" if directories else "; nothing was saved (no run directory)"


def _go_on(directories: list[RunDirectory]) -> str:
    """The commands that go on with runs."""
    flag = " --trust-environment" if directories[0].config.names_modules else ""
    ways = " and ".join(f"klimb resume {shlex.quote(str(directory.path))}{flag}" for directory in directories)
    return f"go on with: {ways}"


@contextlib.contextmanager
def _stopping_at_once(writers: list[RunWriter]) -> Iterator[None]:
    """Interrupted, with how to go on, for a second Ctrl-C too, which does not wait for a checkpoint."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as interrupt:
        directories = [writer.directory for writer in writers if writer.directory is not None]
        saved = (
            f"from the last checkpoint {_go_on(directories)}" if directories else "nothing was saved (no run directory)"
        )
        raise Interrupted(f"stopped at once; {saved}", signals.SIGINT, []) from interrupt
