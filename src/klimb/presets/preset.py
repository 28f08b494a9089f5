"""What a preset is: settings of a rule and of the training for some environments, read from a TOML file.

    environments = ["gymnasium:Swimmer-v5"]
    [rule]                    # fields of the rule
    max_kl = 0.02
    [options]                 # training options
    gamma = 0.9999
    [evidence]                # the training that justifies them
    command = "klimb train …"

All parts may be left out. Reading a file runs no code: what a preset can't set is in `REFUSED`.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from klimb.environments.registry import canonical_name
from klimb.errors import ConfigError, nearest, one_line, shown
from klimb.fields import Name, build, checked
from klimb.improve.rule import Rule
from klimb.rules import rule_class
from klimb.runs.changes import OPTIONS
from klimb.runs.config import TrainOptions
from klimb.runs.toml import read_toml

SUFFIX = ".toml"
SECTIONS = ("environments", "rule", "options", "evidence")
REFUSED = ("seed", "num_seeds", "policy", "critic", "init_from", "demonstrations", "demonstrator")
"""Training options that say which training it is, and not how a task is trained best; some of them name code."""
MAX_ENVIRONMENTS = 1000


@checked
class Evidence:
    """The training that justifies a preset."""

    command: Name
    """That trains with the settings of the preset, written as flags."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=2**16)]
    """The seeds that were trained."""
    mean_return: float
    """Mean over the seeds of the mean return of their final evaluations."""
    commit: Annotated[str, Field(min_length=1, max_length=64)]
    """Git commit, or version, of klimb."""
    date: datetime.date
    """On which it was trained."""
    note: Name | None = None
    """What else has to be known, such as that the training is one of another rule."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings that suit a rule in some environments.

    rule_name: of the rule. name: of the preset among those of the rule, or of its file, FILE.toml. environments: in
    which it is used when nothing else is asked for, with their prefixes. rule_options: values of fields of the rule.
    options: values of training options, as `klimb.train` takes them. evidence: the training that justifies them; None
    where a file of the user's own has none.
    """

    rule_name: str
    name: str
    environments: tuple[str, ...]
    rule_options: dict[str, Any]
    options: dict[str, Any]
    evidence: Evidence | None = None

    @property
    def title(self) -> str:
        """RULE/NAME of one of klimb's own; the name of a file."""
        return self.name if self.name.endswith(SUFFIX) else f"{self.rule_name}/{self.name}"

    def rule(self, **changes: Any) -> Rule:
        """The rule with the fields of the preset.

        changes: fields that get another value. Raises ConfigError for a field that there is not, or a wrong value.
        """
        return build(rule_class(self.rule_name), {**self.rule_options, **changes})

    def settings(self) -> dict[str, tuple[Any, Any]]:
        """(value, default) of every setting that differs from its default, by name; those of the rule first."""
        pairs = {}
        for cls, values in ((rule_class(self.rule_name), self.rule_options), (TrainOptions, self.options)):
            for name, value in values.items():
                default = _default(cls, name)
                if value != default:
                    pairs[name] = (value, default)
        return pairs

    def in_effect(self, rule: Rule, options: TrainOptions) -> dict[str, Any]:
        """The settings that differ from their defaults and that a training has, by name: those not overridden.

        rule, options: of the training.
        """
        return {
            name: value
            for name, (value, _) in self.settings().items()
            if getattr(options if name in OPTIONS else rule, name, None) == value
        }


def read_preset(path: Path, rule_name: str) -> Preset:
    """The preset in a file.

    path: of the file. rule_name: of the rule that it is for.
    Raises ConfigError, with the file's name, when it can't be read, or has something unknown or wrong in it.
    """
    tree = read_toml(path)
    try:
        return _preset_of(tree, rule_name, one_line(path.name, 200))
    except ConfigError as error:
        raise ConfigError(f"{one_line(path)}: {error}") from None


def written(value: Any) -> str:
    """A value as it is typed: true, none, 64 64."""
    match value:
        case None | bool():
            return str(value).lower()
        case tuple() | list():
            return " ".join(map(written, value))
    return str(value)


def _preset_of(tree: Mapping[str, Any], rule_name: str, name: str) -> Preset:
    _require_known(tree, SECTIONS, "a preset")
    sections = {section: _section(tree, section) for section in SECTIONS[1:]}
    fields, options, evidence = sections["rule"], sections["options"], sections["evidence"]
    cls = rule_class(rule_name)
    of_rule = {field.name for field in dataclasses.fields(cls)}
    for setting in options:
        if setting in REFUSED:
            raise ConfigError(
                f"{setting} can't be part of a preset, because it belongs to one training: give it as a flag"
            )
        if setting in of_rule:
            raise ConfigError(f"{setting} is a field of the rule {rule_name}: write it in [rule], not in [options]")
    for setting in fields:
        if setting in OPTIONS:
            raise ConfigError(f"{setting} is a training option: write it in [options], not in [rule]")
    rule, training = build(cls, fields), build(TrainOptions, options)
    return Preset(
        rule_name,
        name,
        _environments(tree.get("environments", [])),
        {setting: getattr(rule, setting) for setting in fields},
        {setting: getattr(training, setting) for setting in options},
        _evidence(evidence) if evidence else None,
    )


def _section(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{name} of a preset is a section, [{name}], and not {shown(section)}")
    return section


def _evidence(section: dict[str, Any]) -> Evidence:
    fields = dataclasses.fields(Evidence)
    _require_known(section, [field.name for field in fields], "[evidence]")
    missing = [one.name for one in fields if one.default is dataclasses.MISSING and one.name not in section]
    if missing:
        raise ConfigError(f"[evidence] needs {', '.join(missing)} too")
    return build(Evidence, section)


def _require_known(tree: Mapping[str, Any], known: tuple[str, ...] | list[str], what: str) -> None:
    for name in tree:
        if name not in known:
            hint = nearest(name[:80], known) or f" (it has {', '.join(known)})"
            raise ConfigError(f"{what} has no {shown(name)}{hint}")


def _environments(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) > MAX_ENVIRONMENTS or not all(isinstance(one, str) for one in names):
        raise ConfigError(f"environments = {shown(names)}: a list of names of environments is needed")
    for name in names:
        if canonical_name(name) != name:
            raise ConfigError(f"environments: {shown(name)} has no prefix; write {shown(canonical_name(name))}")
    return tuple(names)


def _default(cls: Any, name: str) -> Any:
    """The default of a field; `MISSING` where it has none."""
    field = next(one for one in dataclasses.fields(cls) if one.name == name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
