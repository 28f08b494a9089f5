"""The presets that come with klimb, by rule and environment: `RULE/NAME.toml` beside this file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from klimb import modules
from klimb.environments.registry import canonical_name, make, recorded_name
from klimb.errors import ConfigError, WrongObject, nearest, shown
from klimb.fields import MAX_NAME
from klimb.presets.preset import SUFFIX, Preset, read_preset
from klimb.rules import RULES, rule_class

FOLDER = Path(__file__).parent


def preset(rule: str, env: str | Any) -> Preset | None:
    """klimb's preset for a rule in an environment; None where it has none.

    rule: its name, e.g. "trpo". env: a name, or an environment object; of a name nothing is made or imported.

    Raises ConfigError, with the nearest name, when there is no such rule; WrongObject when the rule is not a name.
    """
    name = canonical_name(env if isinstance(env, str) else recorded_name(make(env)))
    return next((one for one in presets_of(rule) if name in one.environments), None)


def load_preset(rule: str, name: str | Path) -> Preset:
    """A preset by its name, or from a file.

    rule: the name of the rule. name: one of `klimb list presets`, with the rule (trpo/swimmer) or without; or a file,
    whose name ends in .toml.

    Raises ConfigError, with the nearest name, when there is none of this name, and when a file can't be read or has
    something unknown or wrong in it.
    """
    word = str(name)
    if word.endswith(SUFFIX):
        _require_name(rule)
        return read_preset(Path(name), rule)
    known = {one.name: one for one in presets_of(rule)}
    word = word.removeprefix(f"{rule}/")
    if word in known:
        return known[word]
    own = f"FILE{SUFFIX} for one of your own"
    hint = nearest(word[:MAX_NAME], known)
    listed = f"presets of {rule}: {', '.join(known)}; {own}" if known else f"{rule} has no presets; {own}"
    raise ConfigError(
        f"there is no preset {shown(word)} of {rule}{hint} ({'see klimb list presets' if hint else listed})"
    )


def presets_of(rule: str) -> list[Preset]:
    """klimb's presets of a rule, in the order of their names; none for a rule of the user's own. rule: its name."""
    _require_name(rule)
    files = sorted((FOLDER / rule).glob(f"*{SUFFIX}")) if rule in RULES else []
    return [dataclasses.replace(read_preset(file, rule), name=file.stem) for file in files]


def all_presets() -> list[Preset]:
    """All of klimb's presets, by rule."""
    return [one for rule in RULES for one in presets_of(rule)]


def _require_name(rule: Any) -> None:
    if not isinstance(rule, str):
        kind = rule.__name__ if isinstance(rule, type) else type(rule).__name__
        raise WrongObject(f"presets are found by the name of a rule, such as 'trpo', and not by the rule ({kind})")
    if modules.module_of(rule) is None:
        rule_class(rule)  # or ConfigError, with the nearest name
