"""The rules by their command-line names."""

from __future__ import annotations

from klimb.guided.search import GuidedPolicySearch
from klimb.improve.behaviour_cloning import BehaviourCloning
from klimb.improve.dual_descent import DualDescent
from klimb.improve.kl_penalty import KLPenalty
from klimb.improve.natural_gradient import NaturalGradient
from klimb.improve.off_policy import OffPolicyGradient
from klimb.improve.ppo import PPO
from klimb.improve.reinforce import Reinforce
from klimb.improve.rule import Rule
from klimb.improve.trpo import TRPO

RULES: dict[str, type] = {
    "reinforce": Reinforce,
    "off-policy-gradient": OffPolicyGradient,
    "kl-penalty": KLPenalty,
    "dual-descent": DualDescent,
    "natural-gradient": NaturalGradient,
    "trpo": TRPO,
    "ppo": PPO,
    "behaviour-cloning": BehaviourCloning,
    "guided": GuidedPolicySearch,
}


def rule_name(rule: Rule) -> str:
    """The command-line name of a rule; the class's own name for a rule that is not klimb's."""
    for name, cls in RULES.items():
        if type(rule) is cls:
            return name
    return type(rule).__name__
