"""The protocol of a rule, a frozen object of hyperparameters with `init` and `step`, and its `Traits`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeGuard, runtime_checkable

from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.errors import ConfigError
from klimb.types import Batch, Metric, UpdateInfo

KLDirection = Literal["old_new", "new_old"]


@runtime_checkable
class Rule(Protocol):
    """An update rule. Both methods are pure and traceable: they run inside jit, scan and vmap over seeds.

    A rule may have an attribute `traits`, a `Traits`; without it the defaults hold.
    """

    def init(self, policy: PyTree) -> PyTree:
        """The state before the first step: optimiser moments, multipliers; () if the rule keeps none.

        policy: the one that the first step will get.
        """
        ...

    def step(self, key: PRNGKeyArray, policy: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree, UpdateInfo]:
        """(policy, state, info): the improved policy, or the one given, bit for bit, if the step is rejected.

        key: for random numbers. policy: the current one; it collected the batch, or its newest part.
        state: returned by `init` or the last step. batch: the rows; those of weight 0 are zeros.
        """
        ...


class KLLimit(NamedTuple):
    """The limit that a rule sets on the KL of its steps.

    limit: on the mean over states, in nats; None for no limit. enforced: whether every accepted step keeps it; else
    steps only aim at it. direction: old_new is KL(π_old‖π_new), new_old is KL(π_new‖π_old).
    """

    limit: float | None = None
    enforced: bool = False
    direction: KLDirection = "old_new"


NO_KL_LIMIT = KLLimit()
AT_START = "it is used at the start of a run only"
"""Why a field can't change later, for `Traits.fixed`."""


@dataclass(frozen=True)
class Traits:
    """A rule's description of itself for the training loop, the report and the progress panel."""

    title: str = ""
    """The rule's name in headings; by default the name of its class."""
    kl: KLLimit = NO_KL_LIMIT
    """The limit on the KL of a step."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """The rule's own metrics, the keys of `UpdateInfo.extra`, with titles and meanings."""
    watched: tuple[str, ...] = ()
    """Metrics that the progress panel shows besides."""
    learns_from: Literal["environment", "demonstrations", "both"] = "environment"
    """Rollouts; demonstrations alone (an `OfflineRule`); or rollouts, and demonstrations if the run has some."""
    demonstrations_in_batch: bool = True
    """Whether demonstrations are rows of the batch; else the rule gets them when it is bound, in `Setting`."""
    history: int = 1
    """Rollouts that one step learns from: the last one, or the last K."""
    keeps_policies: bool = False
    """Whether the policies that collected them are kept too, and that of demonstrations, for `Trajectory.mixture`."""
    num_minibatches: int = 1
    """Minibatches per pass over the batch; it has to divide the number of rows."""
    advantage_epochs: int = 0
    """Epochs for each of which the batch has advantages of its own (`Batch.epoch_advantage`): those that the critic
    gives when it has made as large a part of its fit. 0: one estimate for all, with the critic before its fit."""
    uses_critic: bool = True
    """Whether steps depend on advantages. Only then does a step wait for the critic's warm-up."""
    owns_normalizer: bool = False
    """Whether the rule, not the loop, updates the policy's observation statistics."""
    records_env_state: bool = False
    """Whether rollouts hold the simulator's states (`Rollout.env_state`); classic control only."""
    records_derivatives: bool = False
    """Whether rollouts on host environments hold the derivatives of their steps (`Rollout.derivatives`)."""
    binds: bool = False
    """Whether the rule has to be bound to an environment before it is used (`EnvironmentRule.bind`)."""
    env_steps_per_row: int = 1
    """Environment steps per row of a rollout: more than one if the rule collects samples of its own."""
    rows_kept: int = 1
    """Rows that the rule keeps per row of a rollout, for the bound on memory."""
    keeps_best: bool = False
    """Whether a training results in a policy that the rule keeps (a `BestPolicyRule`), not in that of the last step."""
    anneals: bool = False
    """Whether steps depend on `Batch.fraction_done`, and so on the length of the whole run."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Fields that can't change when a run is resumed, each with the reason. Not those that change the shape of the
    rule's state or of what is kept: they are refused without being named here."""


def traits_of(rule: Rule) -> Traits:
    """A rule's `traits`, or the defaults if it has none.

    rule: of any class. Raises ConfigError if its attribute `traits` is not a `Traits`.
    """
    traits = getattr(rule, "traits", Traits())
    if not isinstance(traits, Traits):
        raise ConfigError(
            f"{type(rule).__name__}.traits is of type {type(traits).__name__}, and has to be a klimb.Traits: give a "
            "hyperparameter another name"
        )
    return traits


def rule_title(rule: Rule) -> str:
    """The name of a rule in headings.

    rule: of any class.
    """
    return traits_of(rule).title or type(rule).__name__


class OfflineRule(Rule, Protocol):
    """A rule that learns from demonstrations alone: one pass over them per step, until it is finished."""

    max_epochs: int
    """Maximum number of passes."""

    def finished(self, state: PyTree) -> Bool[Array, "..."]:
        """Whether the training is over, per seed.

        state: returned by `init` or the last step, with a leading axis of seeds or without.
        """
        ...


def is_offline(rule: Rule) -> TypeGuard[OfflineRule]:
    """Whether a rule learns from demonstrations alone.

    rule: of any class.
    """
    return traits_of(rule).learns_from == "demonstrations"


class BestPolicyRule(Rule, Protocol):
    """A rule whose steps may lead to a worse policy, and which keeps the best one in its state: `Traits.keeps_best`."""

    def best_policy(self, policy: PyTree, state: PyTree) -> PyTree:
        """The policy that the training results in if it ends here. Traceable, like `step`.

        policy: of the last step. state: returned by `init` or the last step.
        """
        ...


def resulting_policy(rule: Rule, policy: PyTree, state: PyTree) -> PyTree:
    """The policy that a training by a rule results in: the one of the last step, unless the rule keeps a best one.

    rule: of any class, bound to the environment. policy: of the last step. state: returned by `init` or the last step.
    """
    return rule.best_policy(policy, state) if keeps_best(rule) else policy


def keeps_best(rule: Rule) -> TypeGuard[BestPolicyRule]:
    """Whether a training by a rule results in the best policy that the rule keeps.

    rule: of any class, bound to the environment.
    """
    return traits_of(rule).keeps_best


class Setting(NamedTuple):
    """How a rule is used.

    num_envs: environments in parallel. num_steps: steps per environment and iteration.
    learns_scale: whether the policy's observation statistics are updated during the run.
    fresh: whether the policy starts from random parameters.
    overlap: whether every batch after the first is collected by the policy before the one that the step is given.
    demonstrations: recorded episodes that the run learns from, or None.
    """

    num_envs: int
    num_steps: int
    learns_scale: bool
    fresh: bool
    overlap: bool
    demonstrations: Demonstrations | None = None


class EnvironmentRule(Rule, Protocol):
    """A rule that has to know the environment, because it collects samples of its own: `Traits.binds`."""

    def bind(self, environment: Any, setting: Setting) -> Rule:
        """The rule for one environment.

        environment: the one of the run. setting: how the rule is used. Raises ConfigError if it does not support them.
        """
        ...


def bind(rule: Rule, environment: Any, setting: Setting) -> Rule:
    """The rule for one environment; a rule without `Traits.binds` is returned as it is.

    rule: of any class. environment: the one of the run. setting: how the rule is used.

    Raises ConfigError if the rule does not support them.
    """
    return rule.bind(environment, setting) if _binds(rule) else rule


def _binds(rule: Rule) -> TypeGuard[EnvironmentRule]:
    return traits_of(rule).binds


def with_values(rule: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a rule with other values in some fields. They are not validated: they may be traced.

    rule: of any class. values: by field name.
    """
    if not values:
        return rule
    varied = copy.copy(rule)
    for name, value in values.items():
        object.__setattr__(varied, name, value)
    return varied
