"""Observations to try a policy with, and the comparison of what an export computes with what the policy does."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from klimb.errors import ExportError
from klimb.export.interface import CARRY, MASK, OBS, Head, Inputs, heads_of
from klimb.policies.action_spec import ActionSpec
from klimb.policies.box_actions import Box
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
MOST = 1e-3
"""The largest tolerance, whatever the policy rounds."""
SPREAD = 2.0
"""Standard deviations of the observations, in those of the policy's normaliser: some are clipped, most are not."""
Arrays = dict[str, Any]


class Agreement(NamedTuple):
    """How an export agrees with its policy.

    rows: observations that were compared. difference: the largest one, relative to half the width of a box, or to the
    largest number of its array, if that is larger. ties: rows in which another of two choices that are equally good, up
    to rounding, is taken.
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
    scales, whole = _scales(expected, actions), _whole_numbers(actions)
    return float(np.max([_difference(expected[x], exact[x], scales[x]) for x in set(expected) - set(whole)], initial=0))


def compare(exported: Arrays, expected: Arrays, actions: ActionSpec, what: str, *, rounding: float = 0.0) -> Agreement:
    """How two results agree. ExportError where they do not, up to rounding.

    exported, expected: by name. actions: of the policy. what: is exported, for the message. rounding: of the policy.
    """
    rows = len(next(iter(expected.values())))
    tolerance = max(TOLERANCE, min(ROUNDINGS * rounding, MOST)) if np.isfinite(rounding) else TOLERANCE
    if set(exported) != set(expected):
        raise ExportError(f"{what} returns {sorted(exported)}, and the policy {sorted(expected)}")
    largest, tied = 0.0, np.zeros(rows, bool)
    scales, whole = _scales(expected, actions), _whole_numbers(actions)
    for name, value in expected.items():
        own = np.asarray(exported[name])
        if own.shape != value.shape or own.dtype.kind != value.dtype.kind:
            raise ExportError(
                f"{what} returns {name} as {own.dtype} of the shape {own.shape}, and the policy as {value.dtype} of "
                f"{value.shape}"
            )
        if name in whole:
            other, excused = _other_choices(own, value, expected, whole[name], tolerance)
            if (other & ~excused).any():
                count = int((other & ~excused).any(-1).sum())
                raise ExportError(
                    f"{what} takes another {name} than the policy for {count} of {rows:,} observations: nothing was "
                    "written"
                )
            tied |= other.any(-1)
        else:
            largest = float(np.maximum(largest, _difference(own, value, scales[name])))  # NaN stays NaN
    if not largest <= tolerance:
        raise ExportError(
            f"{what} differs from the policy by {largest:.1e} in {rows:,} observations, and rounding explains at most "
            f"{tolerance:.1e}: nothing was written"
        )
    return Agreement(rows, largest, int(tied.sum()), rounding)


def _whole_numbers(actions: ActionSpec) -> dict[str, Head]:
    """The heads whose actions are choices, by the names of their actions."""
    return {head.named("action"): head for head in heads_of(actions) if head.actions.is_integer}


def _scales(expected: Arrays, actions: ActionSpec) -> dict[str, Any]:
    """What differences are relative to, by name: the largest number of an array, or 1; of a box, per dimension, the
    largest distance from its middle, or half its width."""
    scales = {name: np.maximum(1, _largest(value)) for name, value in expected.items()}
    for head in heads_of(actions):
        box = head.actions
        if not isinstance(box, Box):
            continue
        for name in (head.named("action"), head.named("mean")):
            if name in expected:
                shape = expected[name].shape[1:]
                middle, width = box.center.reshape(shape), box.half_width.reshape(shape)
                scales[name] = np.maximum(width, _largest(expected[name] - middle, axis=0))
    return scales


def _largest(array: np.ndarray, axis: int | None = None) -> Any:
    """The largest finite absolute number; 0 where there is none."""
    return np.max(np.abs(array), axis=axis, where=np.isfinite(array), initial=0)


def _difference(own: np.ndarray, expected: np.ndarray, scale: Any) -> float:
    """The largest difference relative to a scale; infinities have to be equal.

    Rounding is as large as the numbers that are added, and not as their sum, which may be near 0.
    """
    same = (own == expected) | (np.isnan(own) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        # NaN, of an infinity beside a number, stays: no comparison with it is true.
        return float(np.max(np.where(same, 0, np.abs(own.astype(float) - expected) / scale), initial=0))


def _other_choices(
    own: np.ndarray, expected: np.ndarray, arrays: Arrays, head: Head, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which numbers `[rows, H]` are other ones than expected, and which of those are as good, up to rounding.

    own, expected: actions of the head. arrays: the policy's, with the logits.
    """
    taken, right = _choices(own, head), _choices(expected, head)
    other, excused = taken != right, np.zeros(taken.shape, bool)
    for number, logits in enumerate(_logits(arrays.get(head.named("logits")), head)):
        within = (taken[:, number] >= 0) & (taken[:, number] < logits.shape[-1])
        rows, safe = np.arange(len(logits)), np.where(within, taken[:, number], 0)
        best = logits[rows, right[:, number]]
        with np.errstate(invalid="ignore"):
            lost = best - logits[rows, safe]
        excused[:, number] = within & (lost <= tolerance * np.maximum(1, np.abs(best)))
    return other, excused


def _choices(action: np.ndarray, head: Head) -> np.ndarray:
    """The choices that actions are, `[rows, H]`, from 0 on."""
    rows = action.reshape(len(action), -1).astype(np.int64)
    return rows - np.asarray(getattr(head.actions, "start", 0))


def _logits(logits: np.ndarray | None, head: Head) -> list[np.ndarray]:
    """The logits of every number, `[rows, n]` each; none where they are not known."""
    if logits is None:
        return []
    if isinstance(head.actions, MultiBinary):
        return [np.stack([np.zeros_like(own), own], axis=-1) for own in logits.T]
    return np.split(logits, np.cumsum(head.actions.choices)[:-1], axis=-1)
