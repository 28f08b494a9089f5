"""`train` and `resume`: what a training starts or goes on from, and with which settings."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.collect.whole_episodes import require_fit
from klimb.environments.registry import Environment, make, recorded_name, require_trust
from klimb.errors import ConfigError, PolicyFileError, RunError
from klimb.files import as_path, is_file
from klimb.improve.rule import Rule, is_offline, traits_of, with_values
from klimb.rules import RULES
from klimb.runs.changes import OPTIONS, changes_between, describe, refusal, require_changeable, with_changes
from klimb.runs.checkpoint import Checkpoint
from klimb.runs.config import RunConfig
from klimb.runs.demonstration_file import load_demonstrations
from klimb.runs.directory import NewName, RunDirectory, require_unused
from klimb.runs.policy_file import ForeignPolicy, load_policy, policy_name
from klimb.runs.provenance import Change
from klimb.runs.typed_options import TrainOptionsDict
from klimb.tracking.registry import sinks_of
from klimb.tracking.trackers import Trackers
from klimb.training import peers
from klimb.training.demonstrator import Demonstrator, clone
from klimb.training.given import given_policy, options_of, require_rule
from klimb.training.length import length_of
from klimb.training.loop import drive
from klimb.training.memory import demonstrations_need_no_memory
from klimb.training.networks import Networks
from klimb.training.ongoing_run import Callback
from klimb.training.program import Program
from klimb.training.progress.choice import view_of
from klimb.training.progress.view import SILENT, View
from klimb.training.run_writer import Run, RunWriter
from klimb.training.surroundings import observe
from klimb.types import TrainState

Notify = Callable[[str], None]

logger = logging.getLogger("klimb")


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
    ray: str | None = None,
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
    ray: a Ray cluster whose actors step the environment instead of processes here: `auto` for one that Ray knows of on
        this machine, or a new one; `local` for a new one; or HOST:PORT. It changes no result, and is not recorded.
    options: the fields of `klimb.TrainOptions` by name: env_steps, seed, num_seeds, num_envs, num_steps,
        gamma, gae_lambda, advantage, …

    Returns the run, with its policies and records.
    Raises ConfigError for an option that is unknown or out of range; WrongObject for an argument of another type, such
    as a rule's class or name instead of a rule; EnvironmentNotFound or UnsupportedSpace for an environment that klimb
    can't train in; PolicyFileError for an `init_from`, and DemonstrationError for demonstrations, that can't be used or
    are from another environment; RunError when `run_dir` exists. Ctrl-C, SIGTERM and SIGHUP
    save a checkpoint (when there is a run directory) and raise `Interrupted`, which has the policy.
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
            ray=ray,
        )


def start(
    config: RunConfig,
    environment: Environment,
    *,
    policy: PyTree | None = None,
    critic: Any = None,
    demonstrations: Demonstrations | None = None,
    run_dir: str | Path | NewName | None = None,
    callbacks: Sequence[Callback] = (),
    preset: str | None = None,
    notify: Notify = logger.info,
    view: View = SILENT,
    ray: str | None = None,
    trackers: Trackers | None = None,
) -> Run:
    """A training from its first iteration to its last, by a configuration and the environment that it names.

    config: of the run. environment: the one that it names.
    policy, critic, demonstrations: objects that the configuration can't name, as `train` takes them.
    run_dir, errors: as for `train`. callbacks: each called as the `callback` of `train`, in order.
    preset: that the configuration was made with, for the provenance.
    notify: called with lines about the start, for people. view: that shows the training; the caller enters and leaves
    it. ray: as for `train`. trackers: that log the run, which the caller finishes; None to finish them here.
    """
    sinks_of(config.options.log)
    if not peers.is_first():
        run_dir, view, notify = None, SILENT, logger.debug
    if run_dir is not None:
        # Before anything is computed: whether there is room for the run, and whether its rule can be written.
        if not isinstance(run_dir, NewName):
            require_unused(as_path(run_dir))
        config.to_toml()
    policy = policy_for(environment, config) if policy is None else policy
    found = demonstrations_for(environment, config, demonstrations)
    demonstrator = demonstrator_for(environment, config, policy, found, notify)
    cloned = None if demonstrator is None else demonstrator.policy
    program = Program(config, environment, policy, found, critic=critic, demonstrator=cloned, cluster=ray)
    if type(config.rule) not in RULES.values():
        # What a step of the user's own returns is checked before anything is compiled or written.
        program.source.trace(program.state_template())
    state = program.initial_state()
    provenance = None if run_dir is None else observe("start", environment, preset=preset)
    writer = RunWriter.create(config, run_dir, program, state, demonstrator=demonstrator, provenance=provenance)
    (run,) = drive(program, state, [writer], callbacks, iteration=0, wall_time=0.0, view=view, trackers=trackers)
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
    notify: Notify = logger.info,
    ray: str | None = None,
    trackers: Trackers | None = None,
    **changes: Any,
) -> Run:
    """Continue a run from its newest checkpoint, to the `env_steps` of its configuration.

    The result is the same, byte for byte, as that of a run never interrupted: on compiled environments, and on those
    whose simulator's state can be saved (docs/reliability.md). On others the episodes that were running start again.

    run_dir: the run.
    env, rule, policy, critic, demonstrations: needed only for a run that was started from Python with objects that a
        configuration file can't name.
    callback: as for `train`.
    progress: whether to show the training, as for `train`.
    trust_environment: import the modules that the configuration names for its environment, rule, policy or critic.
    notify: called with lines about what changes, for people.
    ray: as for `train`; a run may be resumed with another cluster, or without one.
    trackers: that log the run, for a caller who finishes them; None to finish them here.
    changes: new values of training options (`env_steps`, `gamma`, …) or of fields of the rule, by name; the run's
        configuration has them from then on. `env_steps` may be more or less than before, but more than have been made.
        What would change the shape or the meaning of the saved state is refused. A `rule` with other values changes the
        rule's fields too.

    Returns the run as it is at its end.
    Raises RunError when the directory is not a run, has no usable checkpoint, or is being written by another process;
    UntrustedEnvironment when a module would have to be imported; ConfigError when the rule has to be
    given, or for a change that is not possible.
    """
    directory = RunDirectory.open(run_dir)
    source = directory.path / "config.toml"
    before = directory.config
    if rule is not None:
        require_rule(rule, None, "klimb.resume")
    config = before if rule is None else RunConfig(before.env, rule, before.options)
    config = config.require_modules(source, trust=trust_environment)
    config = with_changes(before if rule is not None else config, changes, rule)
    require_changeable(before, config)
    sinks_of(config.options.log)
    if env is None and not trust_environment:
        require_trust(config.env, source)
    environment = make(config.env if env is None else env)
    if not peers.is_first():
        progress, notify = False, logger.debug
    with contextlib.closing(directory), view_of(progress) as view:
        if peers.is_first():
            directory.lock()
        policy = saved_policy(directory, environment) if policy is None else policy
        found = demonstrations_for(environment, config, demonstrations)
        demonstrator = saved_demonstrator(directory, environment, config, policy, found)
        program = Program(config, environment, policy, found, critic=critic, demonstrator=demonstrator, cluster=ray)
        try:
            checkpoint = _checkpoint_to_go_on_from(program, directory, config, notify)
            writer = _writer_from(directory, config, environment, checkpoint.iteration)
        except BaseException:
            program.close()
            raise
        (run,) = drive(
            program,
            program.place(checkpoint.state),
            [writer],
            () if callback is None else (callback,),
            iteration=checkpoint.iteration,
            wall_time=checkpoint.wall_time,
            host_states=checkpoint.host_states,
            view=view,
            trackers=trackers,
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


def _writer_from(directory: RunDirectory, config: RunConfig, environment: Environment, iteration: int) -> RunWriter:
    """The writer of a run that goes on from the checkpoint of an iteration; of several processes only the first's
    writes."""
    writer = RunWriter(config, slice(None), directory)
    if not peers.is_first():
        records = [record for record in directory.history() if record["iteration"] <= iteration]
        writer = RunWriter(config, slice(None), None, records)
    # Nothing is written before all processes have read.
    _require_same_iteration(directory, peers.exchange(iteration))
    if peers.is_first():
        directory.start_log(keep_until=iteration)
        directory.remove_ending()
        _record_resumption(directory, config, environment, iteration)
    return writer


def _require_same_iteration(directory: RunDirectory, iterations: list[int]) -> None:
    """RunError unless all processes of a training have found the same checkpoint. iterations: those of each."""
    if len(set(iterations)) > 1:
        raise RunError(
            f"{directory.path}: the processes of the training have found checkpoints of the iterations "
            f"{', '.join(map(str, iterations))}; the run has to be on a file system that all of them share"
        )


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
        raise ConfigError(
            f"the run ended after {iteration} epochs; to continue it, raise max_epochs or holdout_patience too"
        )
    raise ConfigError(
        f"env_steps = {options.env_steps}, but the run has already made {done} environment steps in {iteration} "
        f"iterations{'' if options.env_steps != before.options.env_steps else ' and is complete'}: choose more"
    )


def _schedule_lines(before: RunConfig, after: RunConfig, state: TrainState, iteration: int) -> list[str]:
    """What a change of the length of the run does to the schedules that depend on it, in one line."""
    anneals = traits_of(after.rule).anneals or after.options.critic_learning_rate_schedule != "constant"
    env_steps = float(np.asarray(state.env_steps).mean())
    done = [float(length_of(config).fraction_done(iteration, env_steps)) for config in (before, after)]
    if not anneals or done[0] == done[1]:
        return []
    return [f"the schedules follow the new length: {done[1]:.0%} of it is over, of the old one {done[0]:.0%}"]


def saved_policy(directory: RunDirectory, environment: Environment) -> PyTree | None:
    """The policy of the (first) seed, which says how policies of the run are built.

    Where it can't be read, the one that the run started from. None where the configuration says how it is made.

    directory: of the run. environment: the one of the run.
    """
    options = directory.config.options
    if options.own_policy is not None:
        return None
    first_seed = options.seed if options.num_seeds > 1 else None
    if not is_file(directory.path / f"{policy_name(first_seed)}.json"):
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
    if weighted and config.options.memory is not None:
        raise demonstrations_need_no_memory()
    if weighted and config.options.demonstrator == "recorded":
        demonstrations.check_log_probs()
    return demonstrations
