"""The rules by their names on the command line and in files: klimb's own, or `module:Class`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxtyping import PRNGKeyArray, PyTree

from klimb import modules
from klimb.errors import ConfigError, nearest, shown
from klimb.fields import MAX_NAME
from klimb.guided.search import GuidedPolicySearch
from klimb.improve.rule import Rule, Traits
from klimb.improve.rules.awr import AWR
from klimb.improve.rules.behaviour_cloning import BehaviourCloning
from klimb.improve.rules.conservative_policy_iteration import ConservativePolicyIteration
from klimb.improve.rules.dual_descent import DualDescent
from klimb.improve.rules.kl_penalty import KLPenalty
from klimb.improve.rules.natural_gradient import NaturalGradient
from klimb.improve.rules.off_policy_gradient import OffPolicyGradient
from klimb.improve.rules.ppo import PPO
from klimb.improve.rules.reinforce import Reinforce
from klimb.improve.rules.reps import REPS
from klimb.improve.rules.trpo import TRPO
from klimb.improve.rules.v_mpo import VMPO
from klimb.types import Batch, UpdateInfo

RULES: dict[str, type] = {
    "reinforce": Reinforce,
    "off-policy-gradient": OffPolicyGradient,
    "kl-penalty": KLPenalty,
    "dual-descent": DualDescent,
    "natural-gradient": NaturalGradient,
    "trpo": TRPO,
    "ppo": PPO,
    "conservative-policy-iteration": ConservativePolicyIteration,
    "reps": REPS,
    "v-mpo": VMPO,
    "awr": AWR,
    "behaviour-cloning": BehaviourCloning,
    "guided": GuidedPolicySearch,
}


def rule_class(name: str) -> type:
    """The class of a rule. Of `module:Class` the module is imported.

    Raises ConfigError, with the nearest name, when there is none, and when a class of the user's own is no rule.
    """
    if name in RULES:
        return RULES[name]
    if modules.module_of(name) is None:
        hint = nearest(name[:MAX_NAME], RULES)
        listed = "see klimb list rules" if hint else f"rules: {', '.join(RULES)}; module:Class for one of your own"
        raise ConfigError(f"there is no rule {shown(name)}{hint} ({listed})")
    found = modules.load(name, "rule")
    missing = [method for method in ("init", "step") if not callable(getattr(found, method, None))]
    if not isinstance(found, type) or missing or not hasattr(found, "__dataclass_fields__"):
        lacks = f"it has no {' and no '.join(missing)}" if missing else "it is not a dataclass"
        raise ConfigError(f"{name[:MAX_NAME]} is not a rule: {lacks}; see docs/own-rule.md")
    return found


def rule_name(rule: Rule) -> str:
    """The name of a rule: klimb's own, `module:Class`, or the class's name where no module can be named."""
    if isinstance(rule, UnknownRule):
        return rule.name
    for name, cls in RULES.items():
        if type(rule) is cls:
            return name
    return modules.name_of(type(rule)) or type(rule).__name__


@dataclass(frozen=True)
class UnknownRule:
    """A rule that a configuration names and that is not at hand: its settings as they stand in the file.

    Such a run can be evaluated, reported and compared; to train on, the rule itself is needed.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def traits(self) -> Traits:
        return Traits(title=self.name.rpartition(":")[2])

    def init(self, policy: PyTree) -> NoReturn:
        """ConfigError: the rule is not at hand."""
        self.refuse()

    def step(self, key: PRNGKeyArray, policy: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree, UpdateInfo]:
        """ConfigError: the rule is not at hand."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """ConfigError, with what to do about it."""
        if modules.module_of(self.name) is None:
            rule_class(self.name)
        raise ConfigError(f"the rule {self.name} has not been imported: give rule= in Python, or --trust-environment")
