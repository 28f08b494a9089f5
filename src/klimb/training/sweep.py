"""A sweep: one training of several rules that differ in numbers, and a run for each of them."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax

from klimb.environments.registry import Environment, make, recorded_name
from klimb.errors import ConfigError, RunError, nearest, shown
from klimb.fields import build
from klimb.improve.rule import Rule, is_offline
from klimb.rules import rule_name
from klimb.runs.config import RunConfig, settings_of
from klimb.runs.typed_options import SweepOptionsDict
from klimb.training.driver import Notify, demonstrations_for, demonstrator_for, drive, policy_for
from klimb.training.given import options_of, require_rule
from klimb.training.ongoing_run import Callback
from klimb.training.program import Program
from klimb.training.progress.choice import view_of
from klimb.training.progress.view import SILENT, View
from klimb.training.run_writer import Run, RunWriter
from klimb.training.surroundings import observe

logger = logging.getLogger("klimb")


def sweep(
    env: str | Any,
    rule: Rule,
    over: Mapping[str, Sequence[float]],
    *,
    run_dir: str | Path | None = None,
    callback: Callback | None = None,
    progress: bool | View = False,
    **options: Unpack[SweepOptionsDict],
) -> list[Run]:
    """Train with every combination of some values of the rule's fields, all seeds of all of them in one program.

    env: a name (see `klimb.make`) or an environment object. rule: with the values of what is not varied.
    over: the values of each field, e.g. `{"max_kl": [0.003, 0.01, 0.03]}`. The fields are numbers that the rule only
    calculates with; those that decide what it does (counts, switches, choices) need runs of their own.
    run_dir: a directory to make, with a run directory for each combination in it; None keeps the runs in memory.
    options, callback, progress, errors: as for `train`; records and policies of a `klimb.OngoingRun` are those of every
    seed of every combination, in order, and its directory is that of the sweep.

    Gives one `Run` a combination, in the order of `itertools.product`. Each is an ordinary run, which can be resumed,
    reported and compared by itself; its numbers are those of that run trained alone, up to rounding.

    Raises ConfigError for a field that the rule does not have or that can't be varied, and for values that are out of
    range or given twice; RunError when `run_dir` exists.
    """
    require_rule(rule, env, "klimb.sweep")
    environment = make(env)
    config = RunConfig(recorded_name(env), rule, options_of(rule, {**options}, "klimb.sweep"))
    callbacks = () if callback is None else (callback,)
    with view_of(progress) as view:
        return start_sweep(config, environment, over, run_dir=run_dir, callbacks=callbacks, view=view)


def start_sweep(
    config: RunConfig,
    environment: Environment,
    over: Mapping[str, Sequence[float]],
    *,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    notify: Notify = logger.info,
    view: View = SILENT,
) -> list[Run]:
    """A sweep by a configuration and the environment that it names.

    config: of every run but for the fields that are varied. over, run_dir, errors: as for `sweep`.
    callbacks: each called as the `callback` of `sweep`, in order.
    notify: called with lines about the start, for people. view: as for `start`.
    """
    rules = _combinations(config.rule, over)
    configs = [dataclasses.replace(config, rule=one) for one in rules]
    if is_offline(config.rule):
        name = rule_name(config.rule)
        raise ConfigError(f"{name} learns from demonstrations alone, one pass per call, and can't be swept")
    if run_dir is not None and Path(run_dir).exists():
        raise RunError(f"{run_dir} exists already; choose another directory for the sweep")
    first = configs[0]
    variations = {field: [getattr(one, field) for one in rules] for field in over}
    demonstrations, policy = demonstrations_for(environment, first, None), policy_for(environment, first)
    demonstrator = demonstrator_for(environment, first, policy, demonstrations, notify)
    cloned = None if demonstrator is None else demonstrator.policy
    program = Program(first, environment, policy, demonstrations, variations, demonstrator=cloned)
    try:
        state = program.initial_state()
        program.source.trace(state)
    except jax.errors.ConcretizationTypeError:
        raise ConfigError(
            f"{rule_name(config.rule)} decides by {', '.join(over)} what it does, so that the values can't share a "
            "program: give each a run of its own"
        ) from None
    each = config.options.num_seeds
    writers: list[RunWriter] = []
    provenance = None if run_dir is None else observe("start", environment)
    try:
        for i, (one, own) in enumerate(zip(rules, configs, strict=True)):
            name = ",".join(f"{field}={getattr(one, field)!r}" for field in over)
            path = None if run_dir is None else Path(run_dir) / name
            part = slice(i * each, (i + 1) * each)
            writers.append(RunWriter.create(own, path, program, state, part, demonstrator, provenance))
    except RunError:
        for writer in writers:
            writer.close()
        raise
    return drive(program, state, writers, callbacks, iteration=0, wall_time=0.0, view=view)


def _combinations(rule: Rule, over: Mapping[str, Sequence[float]]) -> list[Any]:
    """The rule under every combination of values, each of them checked."""
    fields = settings_of(rule)
    for field, values in over.items():
        if field not in fields:
            known = [name for name, value in fields.items() if isinstance(value, float)]
            hint = nearest(field, fields) or f" (it has {', '.join(known)})"
            raise ConfigError(
                f"can't sweep over {shown(field)}: {rule_name(rule)} has no hyperparameter of this name{hint}"
            )
        if not isinstance(fields[field], float):
            raise ConfigError(
                f"can't sweep over {field}, which is {shown(fields[field])} in {rule_name(rule)}: only numbers that a "
                "rule calculates with can be swept"
            )
        if not values:
            raise ConfigError(f"there are no values of {field} to sweep over")
        if len(set(values)) < len(values):
            raise ConfigError(f"the values of {field} to sweep over, {list(values)}, are not all different")
    product = itertools.product(*over.values())
    return [build(type(rule), fields | dict(zip(over, values, strict=True))) for values in product]
