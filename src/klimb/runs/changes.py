"""Changes of a run's configuration when it is resumed: which are allowed, and how they are written down.

A setting may change as long as the saved state stays valid: its arrays keep their shapes and their meaning. Options
that can't change stand in `FIXED`, fields of rules in their `Traits.fixed`; what changes the shape of a rule's state is
found out by the training itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from klimb.errors import ConfigError, nearest, shown
from klimb.fields import build
from klimb.improve.rule import Rule, traits_of
from klimb.rules import UnknownRule, rule_name
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.provenance import Change

_SEEDS = "the saved states and policies are those of the run's seeds"
_COLLECTED = "the iterations and environments in the checkpoints have this size"
_NETWORKS = "the networks are made at the start of a run"
_SOURCE = "the run has started from it"
_DEMONSTRATIONS = "the run has learned from them"

OPTIONS = frozenset(field.name for field in dataclasses.fields(TrainOptions))
"""The names of the training options; a rule's fields have other names."""

FIXED: dict[str, str] = {
    "seed": _SEEDS,
    "num_seeds": _SEEDS,
    "num_envs": _COLLECTED,
    "num_steps": _COLLECTED,
    "batch": _COLLECTED,
    "overlap": "with it, the saved records and environments are one policy behind",
    "init_from": _SOURCE,
    "demonstrations": _DEMONSTRATIONS,
    "demonstrator": _DEMONSTRATIONS,
    **{name: _NETWORKS for name in ("hidden", "critic_hidden", "activation", "initial_log_std", "policy", "critic")},
    **{name: _NETWORKS for name in ("state_dependent_std", "tanh_squash", "log_std_bounds", "exploration")},
    **{
        name: _NETWORKS
        for name in ("critic_observes", "layer_norm", "residual", "initialization", "network", "critic_network")
    },
    **{name: _NETWORKS for name in ("memory", "memory_size", "critic_memory")},
    "chunk_steps": "rollouts that are kept are cut into parts of this length",
    "normalize_observations": "the networks have been trained on observations scaled in this way",
}
"""Training options that can't change when a run is resumed, each with the reason. All others may."""


def with_changes(config: RunConfig, fields: Mapping[str, Any], rule: Rule | None = None) -> RunConfig:
    """A run's configuration with some settings changed.

    config: of the run. fields: new values, by the names of training options or fields of the rule. rule: the run's
    rule with its new values, instead of the one in the configuration; None for that one.
    Raises ConfigError for a name that is neither, and for values out of range.
    """
    if rule is not None:
        _require_same_rule(config.rule, rule)
        config = dataclasses.replace(config, rule=rule)
    of_rule = _settings(config.rule)
    for name in fields:
        if name not in OPTIONS and name not in of_rule:
            title = rule_name(config.rule)
            raise ConfigError(f"a training with {title} has no option {name!r}{nearest(name, {*OPTIONS, *of_rule})}")
    options = {name: value for name, value in fields.items() if name in OPTIONS}
    changed = {name: value for name, value in fields.items() if name not in OPTIONS}
    new_options = build(TrainOptions, {**dataclasses.asdict(config.options), **options}) if options else config.options
    if not changed:
        return dataclasses.replace(config, options=new_options)
    if isinstance(config.rule, UnknownRule):
        return RunConfig(config.env, UnknownRule(config.rule.name, {**of_rule, **changed}), new_options)
    rule_class: Any = type(config.rule)
    return RunConfig(config.env, build(rule_class, {**of_rule, **changed}), new_options)


def changes_between(before: RunConfig, after: RunConfig) -> list[Change]:
    """The settings in which two configurations of one run differ, in the order of their declarations.

    before: the configuration that the run has. after: the one that it is resumed with.
    """
    pairs = [(_settings(before.rule), _settings(after.rule))]
    pairs.append((dataclasses.asdict(before.options), dataclasses.asdict(after.options)))
    changes = []
    for old, new in pairs:
        for name, value in new.items():
            if name in old and _plain(old[name]) != _plain(value):
                changes.append(Change(name, _plain(old[name]), _plain(value)))
    return changes


def require_changeable(before: RunConfig, after: RunConfig) -> None:
    """ConfigError, with the reason, when a setting differs that can't change in a run that has begun.

    before: the configuration that the run has. after: the one that it is resumed with.
    """
    fixed = {**traits_of(after.rule).fixed, **FIXED}
    for change in changes_between(before, after):
        if change.name in fixed:
            raise refusal(change.name, fixed[change.name])
    if before.options.straggler_timeout is not None and after.options.straggler_timeout is None:
        raise ConfigError(
            "straggler_timeout can't be left out again: iterations of the run may have had fewer steps than planned, "
            "so that its length is counted in steps and not in iterations; give one that no worker reaches"
        )
    if before.options.uses_critic != after.options.uses_critic:
        name = "bootstrap" if before.options.bootstrap != after.options.bootstrap else "advantage"
        raise refusal(name, "only one of the two values trains a critic")


def refusal(name: str, reason: str) -> ConfigError:
    """The error for a setting that can't change. name: of the setting. reason: as a clause."""
    return ConfigError(
        f"{name} can't change when a run is resumed: {reason}; train a new run with it, which can start from this "
        "run's policy (--init-from RUN)"
    )


def describe(change: Change) -> str:
    """A change in one line: env_steps 200000 → 400000."""
    return f"{change.name} {_text(change.before)} → {_text(change.after)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return "none" if value is None else shown(value) if isinstance(value, str) else str(value)


def _require_same_rule(before: Rule, after: Rule) -> None:
    """ConfigError unless both are the same kind of rule; a module is part of a name only where it can be imported."""
    names = [rule_name(rule).rpartition(":")[2] for rule in (before, after)]
    if names[0] != names[1]:
        raise ConfigError(
            f"the run uses {rule_name(before)} and can't continue with {rule_name(after)}: train a new run, which "
            "can start from this run's policy (init_from)"
        )


def _settings(rule: Rule) -> dict[str, Any]:
    """The fields of a rule, by name."""
    if isinstance(rule, UnknownRule):
        return {name: None if value == "none" else value for name, value in rule.settings.items()}
    return dataclasses.asdict(rule)  # type: ignore[call-overload]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def value_of(config: RunConfig, name: str) -> Any:
    """The value of a setting. config: of a run. name: of a training option, or of a field of its rule."""
    return getattr(config.options, name) if name in OPTIONS else _settings(config.rule)[name]
