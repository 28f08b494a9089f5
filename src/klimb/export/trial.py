"""Observations to try a policy with, and the comparison of what an export computes with what the policy does."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from klimb.errors import ExportError
from klimb.export.interface import CARRY, MASK, OBS, Head, Inputs, heads_of
from klimb.policies.action_spec import ActionSpec
from klimb.policies.multi_binary_actions import MultiBinary
from klimb.policies.networks import NetworkPolicy
from klimb.policies.observation_kinds import MultiOneHotObservations, OneHotObservations
from klimb.policies.observation_parts import PartsObservations
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.picture_observations import PictureObservations
from klimb.policies.policy import Policy
from klimb.runs.policy_file import numbers_of

ROWS = 1_000
TOLERANCE = 1e-5
"""Of numbers up to 1, and of arrays with larger ones relative to these. Programs add the products of a layer in
different orders, of which float32 makes differences of about 1e-7 per layer."""
ROUNDINGS = 10
"""A deep network may round more than that: then the tolerance is this many times the difference between the policy in
float32 and in float64."""
SPREAD = 2.0
"""Standard deviations of the observations, in those of the policy's normaliser: some are clipped, most are not."""
Arrays = dict[str, Any]


class Agreement(NamedTuple):
    """How an export agrees with its policy.

    rows: observations that were compared. difference: the largest one, relative to the largest number of its array if
    that is above 1. ties: rows in which another of two choices that are equally good, up to rounding, is taken.
    rounding: the largest difference of the policy from what it computes in float64, relative in the same way.
    """

    rows: int
    difference: float
    ties: int
    rounding: float


def trial(policy: Policy, inputs: Inputs, actions: ActionSpec, rng: np.random.Generator, rows: int = ROWS) -> Arrays:
    """Inputs of an exported policy, `[rows, …]` by name. What is remembered is drawn from a uniform distribution.

    policy: whose normaliser says how large observations are. inputs: of the export. actions: of the policy. rng: for
    the random numbers. rows: how many.
    """
    obs = sample(inputs.seen, rng, rows)
    scale = _scale(policy, inputs)
    if scale is not None:
        mean, deviation = scale
        obs = (mean + deviation * obs).astype(obs.dtype)
    found: Arrays = {OBS: obs}
    if inputs.num_choices:
        found[MASK] = _masks(actions, rng, rows)
    if inputs.remembered is not None:
        found[CARRY] = rng.uniform(-1, 1, (rows, inputs.remembered)).astype(np.float32)
    return found


def sample(observations: ObservationSpec, rng: np.random.Generator, rows: int) -> np.ndarray:
    """Random observations as arrays hold them, `[rows, *obs]`: of a box normal ones.

    observations: without a mask. rng, rows: as for `trial`.
    """
    match observations:
        case PartsObservations(parts=parts):
            drawn = [sample(part, rng, rows).reshape(rows, -1) for part in parts]
            return np.concatenate(drawn, axis=-1, dtype=observations.dtype)
        case PictureObservations(brightest=brightest, dtype=dtype, shape=shape):
            return (rng.uniform(0, brightest, (rows, *shape))).astype(dtype)
        case OneHotObservations(n=n):
            return np.eye(n, dtype=np.float32)[rng.integers(0, n, rows)]
        case MultiOneHotObservations(n=n):
            hot = [np.eye(size, dtype=np.float32)[rng.integers(0, size, rows)] for size in n]
            return np.concatenate(hot, axis=-1)
    return (SPREAD * rng.normal(size=(rows, *observations.shape))).astype(np.float32)


def _scale(policy: Policy, inputs: Inputs) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation of every number that is seen, `[O]`: 0 and 1 of those that are not scaled."""
    numbers = numbers_of(policy.encoder) if isinstance(policy, NetworkPolicy) else None
    if numbers is None:
        return None
    whole = inputs.observations.encoded
    mean, deviation = np.zeros(whole.size, np.float32), np.ones(whole.size, np.float32)
    columns = np.arange(numbers.num_features) if numbers.columns is None else np.array(numbers.columns)
    mean[columns], deviation[columns] = numbers.normalizer.mean, numbers.normalizer.scale
    seen = slice(None) if inputs.columns is None else inputs.columns
    return mean[seen], deviation[seen]


def _masks(actions: ActionSpec, rng: np.random.Generator, rows: int) -> np.ndarray:
    """Flags of the choices, `[rows, num_choices]`, of which at least one of each number is set."""
    flags = []
    for size in actions.choices:
        own = rng.random((rows, size)) < 0.5
        own[np.arange(rows), rng.integers(0, size, rows)] = True
        flags.append(own)
    return np.concatenate(flags, axis=-1)


def rounding_of(expected: Arrays, exact: Arrays, actions: ActionSpec) -> float:
    """The largest difference of a policy in float32 from itself in float64, relative as in `Agreement`.

    expected: in float32, by name. exact: in float64. actions: of the policy.
    """
    numbers = set(expected) - {head.named("action") for head in heads_of(actions) if head.actions.is_integer}
    return float(np.max([_difference(expected[name], exact[name]) for name in numbers]))


def compare(exported: Arrays, expected: Arrays, actions: ActionSpec, what: str, *, rounding: float = 0.0) -> Agreement:
    """How two results agree. ExportError where they do not, up to rounding.

    exported, expected: by name. actions: of the policy. what: is exported, for the message. rounding: of the policy.
    """
    rows = len(next(iter(expected.values())))
    tolerance = max(TOLERANCE, ROUNDINGS * rounding)
    if set(exported) != set(expected):
        raise ExportError(f"{what} returns {sorted(exported)}, and the policy {sorted(expected)}")
    largest, tied = 0.0, np.zeros(rows, bool)
    integer = {head.named("action"): head for head in heads_of(actions) if head.actions.is_integer}
    for name, value in expected.items():
        own = np.asarray(exported[name])
        if own.shape != value.shape:
            raise ExportError(f"{what} returns {name} of the shape {own.shape}, and the policy {value.shape}")
        if name in integer:
            other = (own != value).reshape(rows, -1).any(-1)
            tied |= other & _nearly_tied(expected, integer[name], tolerance)
            if (other & ~tied).any():
                raise ExportError(_other_action(what, name, int((other & ~tied).sum()), rows))
        else:
            largest = float(np.maximum(largest, _difference(own, value)))  # NaN stays NaN
    if not largest <= tolerance:
        raise ExportError(
            f"{what} differs from the policy by {largest:.1e} in {rows:,} observations, and rounding explains at most "
            f"{tolerance:.1e}: nothing was written"
        )
    return Agreement(rows, largest, int(tied.sum()), rounding)


def _other_action(what: str, name: str, count: int, rows: int) -> str:
    return f"{what} takes another {name} than the policy for {count} of {rows:,} observations: nothing was written"


def _difference(own: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest number if that is above 1; infinities have to be equal.

    Rounding is as large as the numbers that are added, and not as their sum, which may be near 0.
    """
    same = (own == expected) | (np.isnan(own) & np.isnan(expected))
    scale = np.max(np.abs(expected), where=np.isfinite(expected), initial=1)
    with np.errstate(invalid="ignore"):
        # NaN, of an infinity beside a number, stays: no comparison with it is true.
        return float(np.max(np.where(same, 0, np.abs(own.astype(float) - expected) / scale), initial=0))


def _nearly_tied(expected: Arrays, head: Head, tolerance: float) -> np.ndarray:
    """In which rows two choices of a number differ by no more than rounding, `[rows]`."""
    logits, sizes = expected.get(head.named("logits")), head.actions.choices
    if logits is None:
        return np.zeros(len(next(iter(expected.values()))), bool)
    if isinstance(head.actions, MultiBinary):
        return (np.abs(logits) <= tolerance).any(-1)
    close = []
    for own in np.split(logits, np.cumsum(sizes)[:-1], axis=-1):
        best = np.sort(own, axis=-1)[:, -2:]
        close.append(best[:, -1] - best[:, 0] <= tolerance * np.maximum(1, np.abs(best[:, -1])))
    return np.any(close, axis=0)
