"""The table of a run's configuration, and the command that repeats the run."""

from __future__ import annotations

import dataclasses
import shlex
from html import escape
from typing import Any

from klimb.errors import one_line
from klimb.presets.shipped import preset
from klimb.report.data import RunData, Spec
from klimb.report.text import setting
from klimb.rules import RULES
from klimb.runs.config import TrainOptions


def configuration_html(run: RunData) -> str:
    """The rule and how to repeat the run on the left, the training's options on the right."""
    rule, options = run.config["rule"], run.config["options"]
    settings = {key: value for key, value in rule.items() if key != "name"}
    changes = _changes(run)
    left = _settings_html(run.rule_title, settings, _defaults(rule["name"]), changes)
    right = _settings_html("Training", options, _defaults("options"), changes)
    note = (
        '<p class="quiet">Settings were changed when this run was resumed; the command trains with the last ones from '
        "its start.</p>"
        if changes
        else ""
    )
    if options.get("straggler_timeout") is not None:
        note += (
            '<p class="quiet">With straggler_timeout the time that steps take decides which rows there are: the '
            "command trains in the same way, but not with the same numbers.</p>"
        )
    repeat = f'<div class="panel"><h3>To repeat this run</h3>{_command_html(run)}{note}</div>'
    return f"<div>{left}{repeat}</div>\n<div>{right}</div>"


def _changes(run: RunData) -> dict[str, list[str]]:
    """What each setting has been before it was changed, and until which iteration."""
    changes: dict[str, list[str]] = {}
    for entry in run.provenance:
        for change in entry.changes:
            words = f"{setting(change.name, change.before)} up to iteration {entry.iteration:,}"
            changes.setdefault(change.name, []).append(one_line(words, 200))
    return changes


def _settings_html(title: str, values: Spec, defaults: Spec, changes: dict[str, list[str]]) -> str:
    rows = "".join(
        _setting_html(key, value, defaults.get(key, value), changes.get(key, [])) for key, value in values.items()
    )
    return f'<div class="panel"><h3>{escape(title)}</h3><table><tbody>{rows}</tbody></table></div>'


def _setting_html(name: str, value: Any, default: Any, before: list[str]) -> str:
    changed = _listed(value) != _listed(default)
    notes = [f"default {setting(name, default)}"] if changed else []
    return (
        f"<tr{' class=changed' if changed or before else ''}><th>{escape(name)}</th>"
        f"<td>{escape(setting(name, value))}</td><td>{escape('; '.join(notes + before))}</td></tr>"
    )


def _command_html(run: RunData) -> str:
    if run.config["rule"]["name"] not in RULES:
        return '<p class="quiet">The rule is not one of klimb’s own: repeat this run from Python.</p>'
    words = " ".join(f"<span>{escape(group)}</span>" for group in command(run.config))
    return f'<pre class="command"><code>{words}</code></pre>'


def command(config: Spec) -> list[str]:
    """The command line that repeats a run, quoted, one item per flag: all settings that differ from their defaults.

    The number of environment steps is always given. Where there is a preset it is left out, because it is another than
    the defaults.
    """
    rule = config["rule"]
    groups = [["klimb", "train", rule["name"], config["env"]]]
    if rule["name"] in RULES and preset(rule["name"], config["env"]) is not None:
        groups.append(["--preset", "none"])
    for values, defaults in ((config["options"], _defaults("options")), (rule, _defaults(rule["name"]))):
        for key, value in values.items():
            changed = _listed(value) != _listed(defaults.get(key, value))
            if key != "name" and (changed or key == "env_steps"):
                groups.append(_flag(key, value))
    return [shlex.join(group) for group in groups]


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    match value:
        case bool():
            return [f"--{flag}" if value else f"--no-{flag}"]
        case list() | tuple():
            return [f"--{flag}", *map(str, value)]
        case None:
            return [f"--{flag}", "none"]
    return [f"--{flag}", str(value)]


def _defaults(name: str) -> Spec:
    """Defaults by field, of the rule `name`, or of the training options for the name `options`."""
    cls = TrainOptions if name == "options" else RULES.get(name)
    if cls is None:
        return {}
    fields = dataclasses.fields(cls)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
