"""The page about a policy: a model card as the Hugging Face Hub has them, readable by people and by machines."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

from klimb._version import __version__
from klimb.improve.rule import rule_title
from klimb.rules import rule_name
from klimb.runs.config import RunConfig

KIND = "reinforcement-learning"
ACTIVE = "<>|`[]*!\\&\n\r"
"""What Markdown and HTML could take for more than text."""


class Facts(NamedTuple):
    """What the page is made of.

    name: of the repository, USER/NAME. config: of the training. iteration: that the policy is after; None where that is
    not known. evaluation: as `evaluation.json` has it. film: name of a file; None where there is none. has_onnx:
    whether there is a `policy.onnx`.
    """

    name: str
    config: RunConfig
    iteration: int | None
    evaluation: dict[str, Any]
    film: str | None
    has_onnx: bool


def card(facts: Facts) -> str:
    """The text of README.md. facts: of the policy."""
    return "\n".join([_metadata(facts), _page(facts)])


def _metadata(facts: Facts) -> str:
    """What machines read, between two lines of dashes. JSON is YAML: its strings are quoted, whatever they contain."""
    rule, env, evaluation = rule_name(facts.config.rule), _short(facts.config.env), facts.evaluation
    result = {
        "task": {"type": KIND, "name": KIND},
        "dataset": {"type": env, "name": env},
        "metrics": [
            {
                "type": "mean_reward",
                "name": f"mean return of {evaluation['episodes']} episodes",
                "value": evaluation["mean"],
            }
        ],
    }
    fields = {
        "library_name": "klimb",
        "pipeline_tag": KIND,
        "tags": [KIND, "klimb", env, rule],
        "model-index": [{"name": f"{rule_title(facts.config.rule)} on {env}", "results": [result]}],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---", ""])


def _short(env: str) -> str:
    """An environment without its ecosystem. env: such as gymnasium:Hopper-v5."""
    return env.rpartition(":")[2]


def _page(facts: Facts) -> str:
    """What people read."""
    config = facts.config
    rule, steps = _inert(rule_title(config.rule)), f"{config.options.env_steps:,}"
    where = "" if facts.iteration is None else f" The policy is that after iteration {facts.iteration:,}."
    lines = [
        f"# {rule} on {_inert(_short(config.env))}",
        "",
        f"A control policy for `{_inert(config.env)}`, trained with {rule} for {steps} environment steps.{where} "
        f"Written by klimb {__version__}.",
        "",
        *_film(facts.film),
        "## Evaluation",
        "",
        *_evaluation(facts.evaluation),
        "## Use",
        "",
        *_use(facts),
        "## Training",
        "",
        "All settings are in `config.toml`. Those of the rule, and those that differ from klimb's defaults:",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {_inert(name)} | {_inert(value)} |" for name, value in _settings(config)),
        "",
    ]
    return "\n".join(lines)


def _film(film: str | None) -> list[str]:
    """film: name of a file, or None."""
    if film is None:
        return []
    title = "An episode of the policy"
    return [f"![{title}]({film})" if film.endswith(".webp") else f"{title}: [{film}]({film}).", ""]


def _evaluation(evaluation: dict[str, Any]) -> list[str]:
    low, high = evaluation["interval"]
    lowest, highest = min(evaluation["returns"]), max(evaluation["returns"])
    return [
        "| | |",
        "|---|---|",
        f"| mean return | {evaluation['mean']:.6g} |",
        f"| {evaluation['confidence']:.0%} interval of the mean | {low:.6g} to {high:.6g} |",
        f"| episodes | {evaluation['episodes']}, with the mode of the policy, from seed {evaluation['seed']} on |",
        f"| lowest and highest return | {lowest:.6g}, {highest:.6g} |",
        "",
        "The interval is Student's, over episodes of this one policy: it says nothing of other seeds of the training. "
        "`evaluation.json` has all returns.",
        "",
    ]


def _use(facts: Facts) -> list[str]:
    trust = " --trust-environment" if facts.config.options.own_policy is not None else ""
    lines = [
        "```",
        f"klimb evaluate hf://{facts.name}{trust}",
        f"klimb watch hf://{facts.name}{trust}",
        "```",
        "",
        "```python",
        "import klimb",
        "",
        f'policy = klimb.load_policy("hf://{facts.name}")',
        "action = policy.act(obs)",
        "```",
        "",
    ]
    if facts.has_onnx:
        lines += ["`policy.onnx` is the same policy for programs without klimb.", ""]
    return lines


def _settings(config: RunConfig) -> list[tuple[str, str]]:
    """Names and values: all of the rule, and those of the options that are not the defaults."""
    rule = [(name, str(value)) for name, value in config.to_dict()["rule"].items() if name != "name"]
    options = [
        (field.name, str(getattr(config.options, field.name)))
        for field in dataclasses.fields(config.options)
        if getattr(config.options, field.name) != _default(field)
    ]
    return rule + options


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _inert(text: str) -> str:
    """Text that stays text in a page of Markdown: names of environments may hold any character."""
    return "".join(f"&#{ord(char)};" if char in ACTIVE else char for char in text)
