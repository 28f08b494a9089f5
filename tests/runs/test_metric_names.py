"""The table of metrics in docs/runs.md says what `METRICS` and the rules' traits say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import klimb
from klimb import PPO, NaturalGradient
from klimb.guided.search import GuidedPolicySearch
from klimb.improve.rule import traits_of
from klimb.improve.schedules import SCHEDULES
from klimb.rules import RULES
from klimb.runs.metrics import METRICS
from klimb.types import Metric

DOCS = Path(__file__).parents[2] / "docs" / "runs.md"


def metrics_of_rules() -> dict[tuple[str, Metric], list[str]]:
    """(name, title and meaning) ↦ names of the rules that record it with this meaning."""
    rules = {name: cls() for name, cls in RULES.items()}
    rules["guided"] = GuidedPolicySearch(method="importance_sampling")
    rules["guided (controllers)"] = GuidedPolicySearch(method="mirror_descent")
    names: dict[tuple[str, Metric], list[str]] = {}
    for rule_name, rule in rules.items():
        for metric_name, metric in traits_of(rule).metrics.items():
            names.setdefault((metric_name, metric), []).append(rule_name)
    # What the options of controllers add.
    for option, value in {"look_ahead": 5, "dynamics": "simulator"}.items():
        rule = GuidedPolicySearch(method="mirror_descent", **{option: value})
        for metric_name, metric in traits_of(rule).metrics.items():
            names.setdefault((metric_name, metric), [f"guided ({option.replace('_', ' ')})"])
    # What schedules, and a target for the passes over a batch, add.
    for rule_name, cls in RULES.items():
        fields = {field.name for field in dataclasses.fields(cls)}
        schedules = [dict.fromkeys(fields & set(SCHEDULES.values()), "linear")]
        if cls is NaturalGradient:
            schedules = [{"epsilon_schedule": "linear", "ent_schedule": "linear"}]
            schedules.append({"learning_rate": 0.1, "learning_rate_schedule": "linear"})
        for options in schedules:
            for metric_name, metric in traits_of(cls(**options)).metrics.items():
                if metric_name in SCHEDULES and rule_name != "guided":
                    names.setdefault((metric_name, metric), []).append(rule_name)
        if "target_kl" in fields and cls is not PPO:
            for metric_name, metric in traits_of(cls(target_kl=0.01)).metrics.items():
                if metric_name == "epochs_done":
                    names[metric_name, metric].append(f"{rule_name} (target kl)")
    return names


def rows() -> list[str]:
    """The lines of the two tables."""
    common = [f"| `{name}` | {metric.title} | {metric.meaning} |" for name, metric in METRICS.items()]
    own = [
        f"| `{name}` | {metric.title} | {metric.meaning} | {', '.join(rules)} |"
        for (name, metric), rules in metrics_of_rules().items()
    ]
    return common + own


def test_the_docs_list_every_metric_with_its_meaning():
    section = DOCS.read_text().partition("## Metrics\n")[2]
    written = [line for line in section.splitlines() if line.startswith("| `")]
    assert written == rows(), "docs/runs.md has to say:\n" + "\n".join(rows())


def test_no_rule_has_a_metric_of_a_common_name():
    assert not METRICS.keys() & {name for name, _ in metrics_of_rules()}


@pytest.mark.slow
def test_a_run_records_the_common_metrics_and_the_rules_own():
    rule = klimb.TRPO()
    run = klimb.train("CartPole-v1", rule, env_steps=64, num_envs=4, num_steps=8, hidden=(4,))
    evaluations = {name for name in METRICS if name.startswith("eval_")}
    assert (
        run.history[-1].keys()
        == (METRICS.keys() - {"env_faults", "late_rows"} - evaluations) | traits_of(rule).metrics.keys()
    )
