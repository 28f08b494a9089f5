"""The protocol of a policy, and the function that computes all distributions from observations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from klimb.errors import WrongObject, shown
from klimb.policies.distributions import Distribution
from klimb.policies.few_at_once import over_rows
from klimb.policies.memory import carry_size, replay
from klimb.policies.normalizer import Rescaling
from klimb.precision import full_precision
from klimb.types import Sequences


@runtime_checkable
class Policy(Protocol):
    """A pytree that is called with one observation and returns a distribution over actions.

    Its inexact arrays, except a normaliser's statistics, are its parameters. Any callable pytree with this signature
    is a policy.
    """

    def __call__(self, obs: Array) -> Distribution:
        """π(·|s) for one observation `[*obs]`.

        obs: the observation.
        """
        ...


@runtime_checkable
class Observing(Protocol):
    """A policy or critic that keeps running statistics of its observations."""

    def observe(self, obs: Array, weight: Array) -> tuple[Any, Rescaling | None]:
        """The same function with its statistics updated by a batch, and how its features were rescaled by that.

        The rescaling has been absorbed already, except by a network that had no statistics before. It is None if no
        statistics are kept.

        obs: `[B, *obs]`. weight: `[B]`; rows of weight 0 are left out.
        """
        ...

    def absorb(self, rescaling: Rescaling) -> Any:
        """The network whose layers read features that were rescaled: a linear map of its parameters.

        rescaling: of the features.
        """
        ...


@runtime_checkable
class Bounded(Protocol):
    """A policy with parameters that have no effect, and no gradient, beyond bounds."""

    def within_bounds(self) -> Any:
        """The same function with each of these parameters within its bounds."""
        ...


@runtime_checkable
class Trained(Protocol):
    """The result of a training, which holds the policy of each seed: a `klimb.Run`."""

    policies: list[Any]


def policy_of(given: Any) -> Any:
    """The policy that is given: itself, or that of a run of one seed.

    given: what a function that takes a policy was called with. WrongObject for anything else, with what to write.
    """
    if isinstance(given, str | Path):
        raise WrongObject(
            f"{shown(str(given))} is a path, not a policy: klimb.load_policy({shown(str(given))}) reads it"
        )
    if isinstance(given, type):
        raise WrongObject(f"the policy is the class {given.__name__} itself, not an instance of it")
    if isinstance(given, Trained):
        if len(given.policies) != 1:
            raise WrongObject(
                f"the run has the policies of {len(given.policies)} seeds: give one of them, run.policies[0] to "
                f"run.policies[{len(given.policies) - 1}]"
            )
        return given.policies[0]
    if not callable(given):
        raise WrongObject(
            f"{shown(given)} is not a policy: a policy is a pytree that is called, policy(obs) -> distribution"
        )
    return given


def observe(network: Any, obs: Array, weight: Array) -> tuple[Any, Rescaling | None]:
    """The same policy or critic with its statistics, if it keeps any, updated by a batch of observations.

    The function does not change, except where observations are clipped and where there were no statistics before.

    network: a policy or critic. obs: `[B, *obs]`. weight: `[B]`; rows of weight 0 are left out.

    Returns the network, and the rescaling of its features that its layers have absorbed; None without statistics.
    """
    return network.observe(obs, weight) if isinstance(network, Observing) else (network, None)


def within_bounds(policy: Any) -> Any:
    """The same function with its parameters within their bounds, of a policy that has such.

    policy: of any class.
    """
    return policy.within_bounds() if isinstance(policy, Bounded) else policy


def keeps_statistics(network: Any, obs: jax.ShapeDtypeStruct) -> bool:
    """Whether `observe` changes anything.

    network: a policy or critic, or its shapes. obs: shape and dtype of one observation.
    """
    rows = jax.ShapeDtypeStruct((1, *obs.shape), obs.dtype)
    weight = jax.ShapeDtypeStruct((1,), jnp.float32)
    return eqx.filter_eval_shape(observe, network, rows, weight)[1] is not None


@full_precision
def action_distribution(policy: Policy, obs: Array | Sequences, *, axes: int = 1) -> Distribution:
    """π(·|s) for many observations. The policy is called with one observation at a time, under vmap.

    policy: a callable pytree.
    obs: observations with `axes` leading axes: `[B, *obs]`, or `[T, N, *obs]` with `axes=2`; or `Sequences`, which a
    policy with memory reads in order.
    axes: number of leading axes; 0 for a single observation.

    Returns distributions with the same leading axes; of sequences `[B]`. Raises WrongObject for a policy with memory
    and observations without one.
    """
    remembers = carry_size(policy) is not None
    if isinstance(obs, Sequences):
        return replay(policy, obs)[0] if remembers else over_rows(policy, obs.obs, 1)
    if remembers:
        raise WrongObject(
            f"{type(policy).__name__} has memory, and single observations do not say what it remembers: give "
            "klimb.Sequences, or call policy.step(obs, carry) for one step after the other"
        )
    return over_rows(policy, obs, axes)
