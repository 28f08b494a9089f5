"""What a rule is: a small frozen object of hyperparameters with an `init` and a `step`, and what it says of itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeGuard, runtime_checkable

from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from klimb.errors import ConfigError
from klimb.types import Batch, Metric, UpdateInfo

KLDirection = Literal["old_new", "new_old"]


@runtime_checkable
class Rule(Protocol):
    """An update rule. Both methods are pure and traceable: they run inside jit, scan and vmap over seeds.

    A rule may have an attribute `traits`, a `Traits`; without it those are the defaults.
    """

    def init(self, policy: PyTree) -> PyTree:
        """What the rule remembers from one step to the next: optimiser moments, multipliers; () for nothing."""
        ...

    def step(self, key: PRNGKeyArray, policy: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree, UpdateInfo]:
        """(policy, state, info): the improved policy, or the one given, bit for bit, when the step is rejected.

        key: for whatever the step draws. policy: the one that collected the batch. state: what `init` or the last step
        returned. batch: its rows of weight 0 are blank.
        """
        ...


class KLLimit(NamedTuple):
    """What a rule says of the KL of its steps.

    limit: nats, on the mean over states; None for none. enforced: whether every accepted step keeps it, or steps only
    aim at it. direction: old_new is KL(π_old‖π_new), new_old is KL(π_new‖π_old).
    """

    limit: float | None = None
    enforced: bool = False
    direction: KLDirection = "old_new"


NO_KL_LIMIT = KLLimit()


@dataclass(frozen=True)
class Traits:
    """What the training loop, the report and the progress panel have to know of a rule, said by the rule itself."""

    title: str = ""
    """How the rule is called in headings; by default the name of its class."""
    kl: KLLimit = NO_KL_LIMIT
    """The limit on the KL of a step."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """The rule's own metrics: what stands in `UpdateInfo.extra`, with titles and meanings."""
    watched: tuple[str, ...] = ()
    """Metrics that the progress panel shows in place of return and KL."""
    learns_from: Literal["environment", "demonstrations", "both"] = "environment"
    """Rollouts; demonstrations alone (an `OfflineRule`); or rollouts, and demonstrations where a run has some."""
    history: int = 1
    """Rollouts that one step learns from: the last one, or the last K."""
    keeps_policies: bool = False
    """Whether the history holds the policies too, for `Trajectory.mixture`."""
    num_minibatches: int = 1
    """Minibatches per pass over the batch, which has to be divisible by it."""
    uses_critic: bool = True
    """Whether steps depend on advantages. A rule whose steps do not has no critic to wait for."""
    owns_normalizer: bool = False
    """Whether the rule updates the policy's observation statistics itself, instead of the loop."""
    records_env_state: bool = False
    """Whether rollouts hold the simulator's states (`Rollout.env_state`), of classic control."""
    binds: bool = False
    """Whether the rule has to be bound to an environment before it is used (`EnvironmentRule.bind`)."""
    env_steps_per_row: int = 1
    """Environment steps taken for each row of a rollout: more than one where the rule takes samples of its own."""
    rows_kept: int = 1
    """Rows that the rule keeps for each row of a rollout, for the bound on memory."""


def traits_of(rule: Rule) -> Traits:
    """What a rule says of itself; for one that says nothing, the defaults. ConfigError for anything else."""
    traits = getattr(rule, "traits", Traits())
    if not isinstance(traits, Traits):
        raise ConfigError(
            f"{type(rule).__name__}.traits is of type {type(traits).__name__}, and has to be a klimb.Traits: give a "
            "hyperparameter another name"
        )
    return traits


def rule_title(rule: Rule) -> str:
    """How a rule is called in headings."""
    return traits_of(rule).title or type(rule).__name__


class OfflineRule(Rule, Protocol):
    """A rule that learns from demonstrations alone: one pass over them per step, until it is finished."""

    max_epochs: int
    """Largest number of passes."""

    def finished(self, state: PyTree) -> Bool[Array, "..."]:
        """Whether the training is over, for each seed."""
        ...


def is_offline(rule: Rule) -> TypeGuard[OfflineRule]:
    """Whether a rule learns from demonstrations alone."""
    return traits_of(rule).learns_from == "demonstrations"


class Setting(NamedTuple):
    """Where a rule is used. learns_scale: whether the policy's observation statistics are still being estimated.

    fresh: whether the policy starts from random parameters.
    """

    num_envs: int
    num_steps: int
    learns_scale: bool
    fresh: bool


class EnvironmentRule(Rule, Protocol):
    """A rule that takes samples of its own, and has to know the environment: `Traits.binds`."""

    def bind(self, environment: Any, setting: Setting) -> Rule:
        """The rule at work in an environment. ConfigError where it can't be."""
        ...


def bind(rule: Rule, environment: Any, setting: Setting) -> Rule:
    """The rule at work in an environment: most are the same in every one."""
    return rule.bind(environment, setting) if _binds(rule) else rule


def _binds(rule: Rule) -> TypeGuard[EnvironmentRule]:
    return traits_of(rule).binds


def with_values(rule: Any, values: Mapping[str, Any]) -> Any:
    """The same rule with other numbers in some fields, past its checks: traced numbers have no size to check."""
    if not values:
        return rule
    varied = copy.copy(rule)
    for name, value in values.items():
        object.__setattr__(varied, name, value)
    return varied
