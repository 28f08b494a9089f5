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
from klimb.policies.observation_parts import MaskedObservations
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.policy import Policy, action_distribution
from klimb.precision import full_precision


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
    obs: one observation as the environment gives it (of a Dict, a dictionary) or as klimb's arrays hold it, `[*obs]`;
    or any number of leading axes, such as a batch `[B, *obs]`.
    deterministic: the distribution's mode (the most probable action; for a Gaussian its mean; for one that is squashed
    by tanh, the squashed mean) instead of a sample.
    rng: where samples draw their random numbers from; every call advances it, so make it once, before the loop. None:
    fresh randomness of the operating system in every call. A deterministic action uses none.
    action_mask: which choices are allowed, for a policy that was trained with such a mask: flags, one for each choice,
    with the leading axes of `obs`. None where `obs` contains the mask, or the policy knows none.
    observations, actions: the spaces that the policy is for. None: those in the policy's own fields of these names.

    Returns the action as the space has it: an array with the leading axes of `obs` (a NumPy scalar for one of a
    Discrete space), or a dictionary or tuple of these.
    Raises ConfigError when the observation has another shape than the policy reads, or is no array of numbers; and for
    a policy that does not hold its spaces, where they are not given.
    """
    observations, actions = _spaces(policy, observations, actions)
    rows = _rows(obs, action_mask, observations)
    flags = observations.mask(rows)
    if flags is not None and actions.blocked(flags) is not None:
        raise ConfigError(
            "the action mask allows no choice at all"
            + _of_part(actions.blocked(flags), actions)
            + ": it needs a 1 for at least one, in every observation"
        )
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


def _of_part(part: int | None, actions: ActionSpec) -> str:
    """Which part of an action is meant, where there are several."""
    return "" if len(actions.choices) == 1 else f" for number {part} of the action"


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


def _rows(obs: Any, mask: Any, observations: ObservationSpec) -> np.ndarray:
    """Observations as an array with any leading axes, with their action mask. ConfigError where they are none."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((obs, mask))):
        raise ConfigError(
            "act returns NumPy arrays and can't be called inside of a function that JAX transforms: use "
            "klimb.action_distribution there"
        )
    if isinstance(obs, tuple) and len(obs) == 2 and isinstance(obs[1], dict) and observations.kind != "parts":
        raise ConfigError("the observation is a tuple of two, as env.reset() returns it: write obs, info = env.reset()")
    if mask is None:
        return observations.flatten(obs)
    if not isinstance(observations, MaskedObservations):
        raise ConfigError("the policy was trained without an action mask: leave action_mask out")
    return observations.with_mask(obs, mask)
