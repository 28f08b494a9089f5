"""From a policy and an observation to an action that the environment can be stepped with."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from klimb.errors import ConfigError, WrongObject, shown
from klimb.policies.action_spec import ActionSpec
from klimb.policies.distributions import Distribution
from klimb.policies.memory import carry_size
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
    a policy that does not hold its spaces, where they are not given. WrongObject for a policy with memory, which
    `act_with_memory` is for.
    """
    if carry_size(policy) is not None:
        raise WrongObject(
            f"{type(policy).__name__} has memory: action, carry = klimb.act_with_memory(policy, obs, carry), and start "
            "every episode with carry = None"
        )
    return _act(policy, obs, None, deterministic, rng, action_mask, observations, actions)[0]


def act_with_memory(
    policy: Any,
    obs: Any,
    carry: Any,
    *,
    deterministic: bool = True,
    rng: np.random.Generator | None = None,
    action_mask: Any = None,
    observations: ObservationSpec | None = None,
    actions: ActionSpec | None = None,
) -> tuple[Any, np.ndarray]:
    """The action for the environment, as `act` gives it, and what the policy remembers after the step.

    policy: with memory. carry: what it remembers before the step, `[C]` with the leading axes of `obs`; None for
    episodes that begin. obs, deterministic, rng, action_mask, observations, actions: as for `act`.

    Raises ConfigError as `act` does, and for a carry of another shape; WrongObject for a policy without memory.
    """
    size = carry_size(policy)
    if size is None:
        raise WrongObject(f"{type(policy).__name__} has no memory: klimb.act(policy, obs) is for it")
    return _act(policy, obs, _Carry(size, carry), deterministic, rng, action_mask, observations, actions)


class _Carry(NamedTuple):
    """What a policy remembers before a step. size: C. given: `[..., C]`, or None where episodes begin."""

    size: int
    given: Any

    def of(self, lead: tuple[int, ...]) -> np.ndarray:
        """For observations with these leading axes. ConfigError where it is of others."""
        if self.given is None:
            return np.zeros((*lead, self.size), np.float32)
        carry = np.asarray(self.given)
        if carry.shape != (*lead, self.size):
            raise ConfigError(
                f"the carry has the shape {carry.shape}, and the policy remembers {self.size} numbers for each of "
                f"observations of shape {lead}: give what the last call returned, and None for the first step of "
                "episodes"
            )
        return carry


def _act(
    policy: Any,
    obs: Any,
    carry: _Carry | None,
    deterministic: bool,
    rng: np.random.Generator | None,
    action_mask: Any,
    observations: ObservationSpec | None,
    actions: ActionSpec | None,
) -> tuple[Any, Any]:
    """The action and the carry after it. All arguments are those of `act_with_memory`; carry: None without memory."""
    observations, actions = spaces_of(policy, observations, actions)
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
    before = None if carry is None else carry.of(rows.shape[:axes])
    decided, remembered = _decide(policy, rows, before, words, axes, deterministic)
    taken = np.asarray(decided)
    if taken.shape != (*rows.shape[:axes], *actions.shape):
        raise ConfigError(
            f"the policy {type(policy).__name__} returns an action of shape {taken.shape[axes:]} for one observation, "
            f"but the actions {actions} have the shape {actions.shape}: it was made for other actions"
        )
    # The index turns an array without axes into a scalar, which environments can use as a key or an index.
    action = actions.unflatten(actions.clip(taken).astype(actions.dtype, copy=False)[()])
    return action, None if remembered is None else np.asarray(remembered)


def _of_part(part: int | None, actions: ActionSpec) -> str:
    """Which part of an action is meant, where there are several."""
    return "" if len(actions.choices) == 1 else f" for number {part} of the action"


@eqx.filter_jit
@full_precision
def _decide(
    policy: Any, obs: Any, carry: Any, words: Any, axes: int, deterministic: bool
) -> tuple[Array, Array | None]:
    """Actions in the environment's units, not clipped yet, and what is remembered.

    words: `[2]`, uint32, for the random numbers. carry: None without memory.
    """
    if carry is None:
        distribution = action_distribution(policy, obs, axes=axes)
    else:
        step = policy.step
        for _ in range(axes):
            step = jax.vmap(step)
        distribution, carry = step(obs, carry)
    if not isinstance(distribution, Distribution):
        answer = "an array" if isinstance(distribution, jax.Array) else type(distribution).__name__
        raise ConfigError(
            f"the policy {type(policy).__name__} returns {answer} for an observation; it has to return a "
            "klimb.Distribution, such as klimb.Categorical or klimb.DiagGaussian"
        )
    if deterministic:
        return distribution.to_environment(distribution.mode()), carry
    key = jax.random.fold_in(jax.random.key(words[0]), words[1])
    return distribution.to_environment(distribution.sample(key)), carry


def _words(rng: np.random.Generator | None) -> np.ndarray:
    """64 random bits."""
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise ConfigError(
            f"rng = {shown(rng)} is not a numpy.random.Generator: make one before the loop, "
            "rng = numpy.random.default_rng(0), and give it to every call; a seed would repeat the same random numbers "
            "at every step"
        )
    return (np.random.default_rng() if rng is None else rng).integers(0, 2**32, 2, np.uint32)


def spaces_of(
    policy: Policy, observations: ObservationSpec | None, actions: ActionSpec | None
) -> tuple[ObservationSpec, ActionSpec]:
    """The spaces of a policy. ConfigError where neither the policy nor the arguments name them.

    policy: any. observations, actions: as given; None for the policy's own.
    """
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
