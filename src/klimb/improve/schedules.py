"""Schedules: hyperparameters that change over a training, with the part of it that is over or with the KL of steps.

The value of a field changes by the field beside it that names its schedule: `learning_rate` by
`learning_rate_schedule`, and so on (`SCHEDULES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
import optax
from jaxtyping import Array

from klimb.improve.optimizer import rate_factor
from klimb.improve.rule import with_values
from klimb.types import Batch, Metric

R = TypeVar("R")
Schedule = Literal["constant", "linear", "cosine"]
LearningRateSchedule = Literal["constant", "linear", "cosine", "kl"]

SCHEDULES: Mapping[str, str] = {
    "learning_rate": "learning_rate_schedule",
    "clip_eps": "clip_schedule",
    "max_kl": "max_kl_schedule",
    "epsilon": "epsilon_schedule",
    "ent_coef": "ent_schedule",
}
"""Fields of rules that can change over a training, and the fields that name their schedules."""

_METRICS: Mapping[str, Metric] = {
    "learning_rate": Metric("Learning rate", "learning rate of this step, where it has a schedule"),
    "clip_eps": Metric("Clip range", "ε of the clip range in this step, where it has a schedule"),
    "max_kl": Metric("Maximum KL", "limit on the KL of this step, in nats, where it has a schedule"),
    "epsilon": Metric("ε", "ε of this step, where it has a schedule"),
    "ent_coef": Metric("Entropy coefficient", "coefficient of the entropy bonus in this step, where it has a schedule"),
}


def scheduled(value: float | Array, schedule: str, fraction_done: float | Array) -> float | Array:
    """The current value: value · (1 − f) for linear, value · ½ (1 + cos πf) for cosine, else the value itself.

    value: at the start of the training. schedule: a `LearningRateSchedule`. fraction_done: f, the part of the training
    that is over, in [0, 1].
    """
    if schedule == "linear":
        return value * (1 - fraction_done)
    if schedule == "cosine":
        return value * (0.5 * (1 + jnp.cos(jnp.pi * fraction_done)))
    return value


def current(rule: R, batch: Batch, moments: optax.OptState | None = None) -> tuple[R, dict[str, Any]]:
    """(rule, metrics): the rule with the values that its schedules give in this step, and those values by name.

    Where `ent_coef` is 0 it is None in the rule that is returned: then no entropy is computed.

    rule: with the values of the start. batch: knows how much of the training is over. moments: of the rule's
    optimiser, for a learning rate that follows the KL.
    """
    values: dict[str, Any] = {}
    for name in _varying(rule):
        schedule = getattr(rule, SCHEDULES[name])
        values[name] = scheduled(getattr(rule, name), schedule, batch.fraction_done)
        if schedule == "kl":
            values[name] = values[name] * rate_factor(moments)
    without = {"ent_coef": None} if getattr(rule, "ent_coef", 1) == 0 else {}
    return with_values(rule, values | without), values


def anneals(rule: Any) -> bool:
    """Whether a value of a rule depends on the part of the training that is over, for `Traits.anneals`.

    rule: of any class.
    """
    return any(getattr(rule, SCHEDULES[name]) != "kl" for name in _varying(rule))


def schedule_metrics(rule: Any) -> dict[str, Metric]:
    """The metrics of the values that change, for `Traits.metrics`.

    rule: of any class.
    """
    return {name: _METRICS[name] for name in _varying(rule)}


def _varying(rule: Any) -> list[str]:
    """The fields of a rule whose schedule is not constant."""
    return [name for name, schedule in SCHEDULES.items() if getattr(rule, schedule, "constant") != "constant"]
