"""What a rule is: a small frozen object of hyperparameters with an `init` and a `step`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

from jaxtyping import Array, Bool, PRNGKeyArray, PyTree
from pydantic import ConfigDict, Field

from klimb.types import Batch, UpdateInfo

# Every rule is a pydantic dataclass: its fields are checked when it is made, print, compare, serialise and
# become the command line's flags. Misspelt fields and NaN are refused.
RULE = ConfigDict(extra="forbid", allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
# More is a slip, or a file that means harm.
Count = Annotated[int, Field(ge=1, le=2**20)]


@runtime_checkable
class Rule(Protocol):
    """An update rule. Both methods are pure and traceable: they run inside jit, scan and vmap over seeds."""

    def init(self, policy: PyTree) -> PyTree:
        """What the rule remembers from one step to the next: optimiser moments, multipliers; () for nothing."""
        ...

    def step(self, key: PRNGKeyArray, policy: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree, UpdateInfo]:
        """(policy, state, info): the improved policy, or the one given, bit for bit, when the step is rejected."""
        ...


class OfflineRule(Rule, Protocol):
    """A rule that learns from demonstrations alone: one pass over them a step, until it has had enough."""

    offline: bool
    max_epochs: int

    def finished(self, state: PyTree) -> Bool[Array, "..."]:
        """Whether the rule has had enough, for each seed."""
        ...


def is_offline(rule: Rule) -> TypeGuard[OfflineRule]:
    """Whether a rule learns from demonstrations alone."""
    return getattr(rule, "offline", False)


def in_environment(rule: Rule, environment: Any, options: Any) -> Rule:
    """The rule at work in an environment: one that takes samples of its own has a method of this name."""
    place = getattr(rule, "in_environment", None)
    return rule if place is None else place(environment, options)


def steps_a_row(rule: Rule) -> int:
    """Environment steps for each row of a rollout: more than one where the rule takes samples of its own."""
    return getattr(rule, "steps_a_row", 1)


def rows_remembered(rule: Rule) -> int:
    """Rows of samples that a rule keeps for each row of a rollout, beside the rollout itself."""
    return getattr(rule, "rows_remembered", 1)


def uses_critic(rule: Rule) -> bool:
    """Whether a rule's steps depend on advantages: one whose don't has no critic to wait for."""
    return getattr(rule, "uses_critic", True)


def with_values(rule: Any, values: Mapping[str, Any]) -> Any:
    """The same rule with other numbers in some fields, traced ones too: nothing is checked."""
    if not values:
        return rule
    varied = object.__new__(type(rule))
    varied.__dict__.update(rule.__dict__ | dict(values))
    return varied


class KLLimit(NamedTuple):
    """What a rule says of the KL of its steps: the limit (None for none), whether it is enforced, the direction."""

    limit: float | None
    enforced: bool
    direction: str


def kl_limit(fields: Mapping[str, Any]) -> KLLimit:
    """From a rule's fields: `max_kl` is enforced; `target_kl`, and the `epsilon` of a KL, are aimed at."""
    divergence = fields.get("divergence", "kl_" + str(fields.get("kl_direction", "old_new")))
    limit = fields.get("max_kl") or fields.get("target_kl")
    if limit in (None, "none") and divergence != "tv" and not fields.get("normalised"):
        limit = fields.get("epsilon")
    if "solver" in fields and fields.get("learning_rate") not in (None, "none"):
        limit = None  # a natural gradient with a fixed step aims at no KL
    if fields.get("penalty") == "kl" and limit in (None, "none"):
        limit = 0.01  # PPO's own aim
    numeric = isinstance(limit, int | float)
    direction = "new_old" if divergence == "kl_new_old" else "old_new"
    return KLLimit(limit if numeric else None, bool(fields.get("max_kl")), direction)
