"""What is given to `klimb.train` and its like from Python: objects of the right kinds, and options by their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from klimb.collect.whole_episodes import require_fit
from klimb.environments.base import CompiledEnvironment
from klimb.environments.host import HostEnvironment
from klimb.environments.registry import Environment
from klimb.errors import ConfigError, WrongObject, nearest, shown
from klimb.fields import MAX_NAME, build
from klimb.improve.rule import Rule, traits_of
from klimb.modules import module_of
from klimb.other_names import OTHER_NAMES
from klimb.policies.policy import policy_of
from klimb.rules import RULES, rule_class
from klimb.runs.config import TrainOptions

ARGUMENTS = ("policy", "critic", "demonstrations", "run_dir", "callback", "progress")
"""What `klimb.train` takes besides its options."""


def require_rule(rule: Any, env: Any, function: str = "klimb.train") -> None:
    """WrongObject unless a rule is one, and with its class, its name, or the environment, what to write instead.

    rule, env: as they were given. function: the name of the one that they were given to.
    """
    if _is_rule(env) and (isinstance(rule, str | CompiledEnvironment | HostEnvironment)):
        first = shown(rule) if isinstance(rule, str) else "env"
        raise WrongObject(f"the environment comes before the rule: {function}({first}, {_written(env)})")
    if isinstance(rule, str):
        written = _written(rule_class(rule))  # or ConfigError, with the nearest name
        raise WrongObject(f"the rule is the name {rule!r}, and {function} takes the rule itself; write {written}")
    if isinstance(rule, type) and _is_rule(rule):
        written = _written(rule)
        raise WrongObject(f"the rule is the class {rule.__name__} itself, not an instance of it; write {written}")
    missing = [method for method in ("init", "step") if not callable(getattr(rule, method, None))]
    if missing:
        raise WrongObject(
            f"{shown(rule)} is not a rule: it has no {' and no '.join(missing)}; give for example klimb.TRPO(), or "
            "write one (docs/own-rule.md)"
        )
    traits_of(rule)


def _is_rule(value: Any) -> bool:
    """Whether it is a rule, the class of one, or klimb's name of one."""
    if isinstance(value, str):
        return value in RULES
    return isinstance(value, Rule)  # which a class is, too: it has the methods


def _written(rule: Any) -> str:
    """How a rule is written, given as one, as its class or by its name."""
    cls = RULES[rule] if isinstance(rule, str) else rule if isinstance(rule, type) else type(rule)
    return f"klimb.{cls.__name__}()" if cls in RULES.values() else f"{cls.__name__}()"


def options_of(rule: Rule, options: Mapping[str, Any], function: str = "klimb.train") -> TrainOptions:
    """The options of a training, by their names. ConfigError for one that there is not, or that the rule has.

    rule: of the training. options: as they were given. function: the name of the one that they were given to.
    """
    known = [field.name for field in dataclasses.fields(TrainOptions)]
    own: list[str] = [field.name for field in dataclasses.fields(rule)] if dataclasses.is_dataclass(rule) else []
    for name in options:
        if name in known:
            continue
        field = next((one for one in (name, *OTHER_NAMES.get(name, ())) if one in own), None)
        if field is not None:
            renamed = "" if field == name else f"{name} is {field} here; "
            raise ConfigError(
                f"{renamed}{field} is a hyperparameter of the rule: {_written(rule).removesuffix(')')}{field}=…)"
            )
        hint = nearest(name[:MAX_NAME], [*known, *ARGUMENTS]) or " (see help(klimb.TrainOptions))"
        raise ConfigError(f"{function} has no option {shown(name)}{hint}")
    return build(TrainOptions, dict(options))


def given_policy(policy: PyTree | None, environment: Environment) -> PyTree | None:
    """The policy that a training starts from, if it is given one as an object; None for none, or for a name.

    policy: as it was given. environment: that it has to fit.

    Raises WrongObject for a path, a class and the like, and PolicyFileError for a policy of another environment.
    """
    if policy is None or (isinstance(policy, str) and module_of(policy) is not None):
        return None
    if isinstance(policy, str | Path):
        raise WrongObject(
            f"policy = {shown(str(policy))} is neither a policy nor module:name; to start from the policy of a run, "
            f"write init_from={shown(str(policy))}"
        )
    policy = policy_of(policy)
    require_fit(policy, environment)
    return policy
