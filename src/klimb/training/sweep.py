"""`sweep` and `resume_sweep`: a run for every combination of values, with as many in one program as can share it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from klimb.environments.registry import Environment, make, recorded_name, require_trust
from klimb.errors import ConfigError
from klimb.files import as_path
from klimb.improve.rule import Rule
from klimb.runs.config import RunConfig
from klimb.runs.directory import NewName
from klimb.runs.sweep_file import SWEEP, Sweep, read_sweep, require_unused_by_sweeps
from klimb.runs.typed_options import SweepOptionsDict
from klimb.tracking.registry import sinks_of
from klimb.tracking.trackers import Trackers
from klimb.training import peers
from klimb.training.driver import Notify
from klimb.training.given import options_of, require_rule
from klimb.training.ongoing_run import Callback
from klimb.training.progress.choice import view_of
from klimb.training.progress.view import SILENT, View
from klimb.training.run_writer import Run
from klimb.training.sweep_on_ray import RaySweep, require_possible
from klimb.training.sweep_trainer import NewView, SweepTrainer, Trained

logger = logging.getLogger("klimb")


def sweep(
    env: str | Any,
    rule: Rule,
    over: Mapping[str, Sequence[Any]],
    *,
    run_dir: str | Path | None = None,
    callback: Callback | None = None,
    progress: bool | View = False,
    ray: str | None = None,
    **options: Unpack[SweepOptionsDict],
) -> list[Run]:
    """Train with every combination of some values of training options and of the rule's fields.

    env: a name (see `klimb.make`) or an environment object. rule: with the values of what is not varied.
    over: the values of each field, e.g. `{"max_kl": [0.003, 0.01, 0.03], "gamma": [0.9, 0.99]}`. Numbers that the rule
        only calculates with share one program, with all seeds of all of them; everything else (training options,
        counts, switches, choices) is trained one value after the other.
    run_dir: a directory to make, with a run directory for each combination in it; None keeps the runs in memory.
    options, callback, progress: as for `train`; records and policies of a `klimb.OngoingRun` are those of every
        seed of every combination of one program, in order, and its directory is the sweep's. `stop` ends the sweep.

    ray: a Ray cluster, whose tasks each train the combinations that can share a program. It needs `run_dir`, on a file
        system that all machines share.

    Gives one `Run` per combination, in the order of `itertools.product`. Each is an ordinary run, which can be resumed,
    reported and compared by itself; its numbers are those of that run trained alone, up to rounding. After Ctrl-C
    `resume_sweep` continues everything that is unfinished.

    Raises ConfigError for a field that is unknown or can't be varied (the seeds), and for values that are out
    of range or given twice; RunError when `run_dir` exists; TrainingFailed, after all others have been trained, when
    some combination can't be trained to its end.
    """
    require_rule(rule, env, "klimb.sweep")
    environment = make(env)
    plan = Sweep(RunConfig(recorded_name(env), rule, options_of(rule, {**options}, "klimb.sweep")), over)
    callbacks = () if callback is None else (callback,)
    new_view = partial(view_of, progress)
    return _in_order(
        plan, start_sweep(plan, environment, run_dir=run_dir, callbacks=callbacks, new_view=new_view, ray=ray)
    )


def start_sweep(
    plan: Sweep,
    environment: Environment,
    *,
    run_dir: str | Path | NewName | None = None,
    callbacks: Sequence[Callback] = (),
    new_view: NewView = lambda: SILENT,
    notify: Notify = logger.info,
    ray: str | None = None,
    trackers: Trackers | None = None,
) -> Iterator[Trained]:
    """A sweep from its start, one program after the other: the runs of each when they are trained.

    plan: what is trained. environment: the one that it names. run_dir, errors: as for `sweep`. callbacks: each called
    as the `callback` of `sweep`, in order. new_view: makes the view of each program. notify: called with lines about
    the start, for people. trackers: that log the runs, which the caller finishes; None to finish those of each program
    when it ends.
    """
    sinks_of(plan.config.options.log)
    peers.require_alone("a sweep")
    members = plan.members()
    for member in members:
        member.config.check_demonstrations()
    place = run_dir if isinstance(run_dir, NewName | None) else as_path(run_dir)
    if isinstance(place, Path):
        require_unused_by_sweeps(place)
    trainer = SweepTrainer(plan, environment, place, callbacks, new_view, notify, trackers=trackers)
    if ray is None:
        yield from trainer.start(members)
        return
    require_possible(plan, environment, callbacks)
    directory = trainer.make_directory()
    if directory is None:
        raise ConfigError("a sweep on Ray is written into files: give it a run_dir")
    # The modules that the sweep's own file names are those that the caller has named.
    yield from RaySweep(plan, environment, directory, notify, True, ray).go_on(members)


def resume_sweep(
    run_dir: str | Path,
    *,
    env: Any | None = None,
    rule: Rule | None = None,
    callback: Callback | None = None,
    progress: bool | View = False,
    trust_environment: bool = False,
    notify: Notify = logger.info,
    ray: str | None = None,
) -> list[Run]:
    """Continue everything in a sweep that is unfinished.

    run_dir: the directory of the sweep. env, rule: needed only for a sweep that was started from Python with objects
        that a file can't name; the rule with the values of what is not varied.
    callback, progress, ray: as for `sweep`. trust_environment, notify: as for `resume`.

    Gives the runs that were unfinished, in the order of the sweep. Combinations that shared a program go on in one;
    the result is then the same, byte for byte, as that of a sweep never interrupted, as far as `resume` says so.
    Raises as `resume` and `sweep`.
    """
    plan = read_sweep(run_dir, rule=rule, trust=trust_environment)
    if env is None and not trust_environment:
        require_trust(plan.config.env, Path(run_dir) / SWEEP)
    environment = make(plan.config.env if env is None else env)
    going_on = go_on_with_sweep(
        plan,
        environment,
        Path(run_dir),
        callbacks=() if callback is None else (callback,),
        new_view=partial(view_of, progress),
        notify=notify,
        ray=ray,
        trust=trust_environment,
    )
    return _in_order(plan, going_on)


def go_on_with_sweep(
    plan: Sweep,
    environment: Environment,
    directory: Path,
    *,
    callbacks: Sequence[Callback] = (),
    new_view: NewView = lambda: SILENT,
    notify: Notify = logger.info,
    ray: str | None = None,
    trust: bool = False,
    trackers: Trackers | None = None,
) -> Iterator[Trained]:
    """What is unfinished of a sweep, one program after the other: the runs of each when they are trained.

    plan, directory: of the sweep. environment: the one that it names. callbacks, new_view, notify, ray: as for
    `start_sweep`. trust: whether modules that the runs' files name may be imported. trackers: as for `start_sweep`.
    """
    sinks_of(plan.config.options.log)
    peers.require_alone("a sweep")
    if ray is not None:
        require_possible(plan, environment, callbacks)
        yield from RaySweep(plan, environment, directory, notify, trust, ray).go_on(plan.members())
        return
    trainer = SweepTrainer(plan, environment, directory, callbacks, new_view, notify, trust, trackers=trackers)
    yield from trainer.go_on(plan.members())


def _in_order(plan: Sweep, parts: Iterator[Trained]) -> list[Run]:
    """The runs of all parts, in the order of the plan."""
    runs = {name: run for part in parts for name, run in part.items()}
    return [runs[member.name] for member in plan.members() if member.name in runs]
