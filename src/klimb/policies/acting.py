"""From a policy and an observation to an action that the environment can be stepped with."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from klimb.errors import ConfigError, shown
from klimb.policies.action_spec import ActionSpec
from klimb.policies.distributions import Distribution
from klimb.policies.observations import MaskedObservations, ObservationSpec
from klimb.policies.policy import Policy, action_distribution
from klimb.precision import full_precision

FLATTENED = (
    "; klimb flattens observations that are no vectors, so wrap such an environment with "
    "gymnasium.wrappers.FlattenObservation"
)


@runtime_checkable
class Placed(Protocol):
    """A policy that holds the spaces it was made for."""

    observations: ObservationSpec
    actions: ActionSpec


def act(
    policy: Policy,
    obs: Any,
    *,
    deterministic: bool = True,
    rng: np.random.Generator | None = None,
    action_mask: Any = None,
    observations: ObservationSpec | None = None,
    actions: ActionSpec | None = None,
) -> Any:
    """The action for the environment: in its units, squashed or clipped into its bounds, in NumPy.

    policy: a `klimb.NetworkPolicy`, or any callable pytree.
    obs: one observation `[*obs]`, or any number of leading axes, such as a batch `[B, *obs]`.
    deterministic: the distribution's mode (the most probable action; for a Gaussian its mean; for one that is squashed
    by tanh, the squashed mean) instead of a sample.
    rng: where samples draw their random numbers from; every call advances it, so make it once, before the loop. None:
    fresh randomness of the operating system in every call. A deterministic action uses none.
    action_mask: which choices are allowed, for a policy that was trained with such a mask: flags, one for each choice,
    with the leading axes of `obs`. None where `obs` has the mask at its end already, or the policy knows none.
    observations, actions: the spaces that the policy is for. None: those in the policy's own fields of these names.

    Returns the action as the space has it: an array with the leading axes of `obs` (a NumPy scalar for one of a
    Discrete space), or a dictionary or tuple of these.
    Raises ConfigError when the observation has another shape than the policy reads, or is no array of numbers; and for
    a policy that does not hold its spaces, where they are not given.
    """
    observations, actions = _spaces(policy, observations, actions)
    rows = _with_mask(obs, action_mask, observations)
    axes = rows.ndim - len(observations.shape)
    words = np.zeros(2, np.uint32) if deterministic else _words(rng)
    taken = np.asarray(_decide(policy, rows, words, axes, deterministic))
    if taken.shape != (*rows.shape[:axes], *actions.shape):
        raise ConfigError(
            f"the policy {type(policy).__name__} returns an action of shape {taken.shape[axes:]} for one observation, "
            f"but the actions {actions} have the shape {actions.shape}: it was made for other actions"
        )
    # The index turns an array without axes into a scalar, which environments can use as a key or an index.
    return actions.unflatten(actions.clip(taken).astype(actions.dtype, copy=False)[()])


@eqx.filter_jit
@full_precision
def _decide(policy: Policy, obs: Any, words: Any, axes: int, deterministic: bool) -> Array:
    """Actions in the environment's units, not clipped yet. words: `[2]`, uint32, for the random numbers."""
    distribution = action_distribution(policy, obs, axes=axes)
    if not isinstance(distribution, Distribution):
        answer = "an array" if isinstance(distribution, jax.Array) else type(distribution).__name__
        raise ConfigError(
            f"the policy {type(policy).__name__} returns {answer} for an observation; it has to return a "
            "klimb.Distribution, such as klimb.Categorical or klimb.DiagGaussian"
        )
    if deterministic:
        return distribution.to_environment(distribution.mode())
    key = jax.random.fold_in(jax.random.key(words[0]), words[1])
    return distribution.to_environment(distribution.sample(key))


def _words(rng: np.random.Generator | None) -> np.ndarray:
    """64 random bits."""
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise ConfigError(
            f"rng = {shown(rng)} is not a numpy.random.Generator: make one before the loop, "
            "rng = numpy.random.default_rng(0), and give it to every call; a seed would repeat the same random numbers "
            "at every step"
        )
    return (np.random.default_rng() if rng is None else rng).integers(0, 2**32, 2, np.uint32)


def _spaces(
    policy: Policy, observations: ObservationSpec | None, actions: ActionSpec | None
) -> tuple[ObservationSpec, ActionSpec]:
    if isinstance(policy, Placed):
        observations = policy.observations if observations is None else observations
        actions = policy.actions if actions is None else actions
    if not isinstance(observations, ObservationSpec) or not isinstance(actions, ActionSpec):
        raise ConfigError(
            f"a policy of the class {type(policy).__name__} does not contain its observation and action spaces: give "
            "observations= and actions= (of klimb.make(env), or klimb.observation_spec(env.observation_space) and "
            "klimb.action_spec(env.action_space))"
        )
    return observations, actions


def _with_mask(obs: Any, mask: Any, observations: ObservationSpec) -> np.ndarray:
    """Observations as an array, with the action mask at their end where the policy reads one."""
    if not isinstance(observations, MaskedObservations):
        if mask is not None:
            raise ConfigError("the policy was trained without an action mask: leave action_mask out")
        return _rows(obs, observations)
    if mask is None:
        shape = np.shape(obs)
        if shape and shape[-1] == observations.observed.size:
            raise ConfigError(
                "the policy was trained with an action mask, and needs it: give action_mask=, for example "
                'info["action_mask"] as reset and step return it'
            )
        return _rows(obs, observations)
    rows, flags = _rows(obs, observations.observed), np.asarray(mask, np.float32)
    if flags.shape != (*rows.shape[:-1], observations.choices):
        raise ConfigError(
            f"the action mask has the shape {flags.shape}, and {(*rows.shape[:-1], observations.choices)} is expected: "
            "a flag for each choice, for every observation"
        )
    return np.concatenate([rows, flags], axis=-1)


def _rows(obs: Any, observations: ObservationSpec) -> np.ndarray:
    """Observations as an array with any leading axes. ConfigError where they are none."""
    expected = observations.shape
    try:
        rows = np.asarray(obs).astype(observations.dtype, copy=False)
    except jax.errors.TracerArrayConversionError:
        raise ConfigError(
            "act returns NumPy arrays and can't be called inside of a function that JAX transforms: use "
            "klimb.action_distribution there"
        ) from None
    except (TypeError, ValueError):
        raise ConfigError(f"the observation is {_described(obs, expected)}") from None
    if rows.shape[max(rows.ndim - len(expected), 0) :] != expected:
        batch = ", ".join(["...", *map(str, expected)])
        raise ConfigError(
            f"the observation has the shape {rows.shape}, and the policy reads the shape {expected}, or ({batch}) for "
            f"a batch: step the environment that it was trained in{FLATTENED}"
        )
    return rows


def _described(obs: Any, expected: tuple[int, ...]) -> str:
    """What is given instead of an array, and what to do about it."""
    if isinstance(obs, tuple) and len(obs) == 2 and isinstance(obs[1], dict):
        return "a tuple of two, as env.reset() returns it: write obs, info = env.reset()"
    return (
        f"of the type {type(obs).__name__}, and the policy reads arrays of numbers of shape {expected}: step the "
        f"environment that it was trained in{FLATTENED}"
    )
