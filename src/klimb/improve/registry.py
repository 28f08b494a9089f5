"""The rules by their command-line names."""

from __future__ import annotations

from klimb.improve.ppo import PPO
from klimb.improve.reinforce import Reinforce
from klimb.improve.rule import Rule
from klimb.improve.trpo import TRPO

RULES: dict[str, type] = {"reinforce": Reinforce, "trpo": TRPO, "ppo": PPO}


def rule_name(rule: Rule) -> str:
    """The command-line name of a rule; the class's own name for a rule that is not klimb's."""
    for name, cls in RULES.items():
        if type(rule) is cls:
            return name
    return type(rule).__name__
