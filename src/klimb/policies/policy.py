"""The protocol of a policy, and the function that computes all distributions from observations."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array

from klimb.policies.distributions import Distribution
from klimb.precision import full_precision


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

    def observe(self, obs: Array, weight: Array) -> Any:
        """The same policy or critic with its statistics updated by a batch.

        obs: `[B, *obs]`. weight: `[B]`; rows of weight 0 are left out.
        """
        ...


def observe(network: Any, obs: Array, weight: Array) -> Any:
    """The same policy or critic with its statistics, if it keeps any, updated by a batch of observations.

    network: a policy or critic. obs: `[B, *obs]`. weight: `[B]`; rows of weight 0 are left out.
    """
    return network.observe(obs, weight) if isinstance(network, Observing) else network


@full_precision
def action_distribution(policy: Policy, obs: Array, *, axes: int = 1) -> Distribution:
    """π(·|s) for many observations. The policy is called with one observation at a time, under vmap.

    policy: a callable pytree.
    obs: observations with `axes` leading axes: `[B, *obs]`, or `[T, N, *obs]` with `axes=2`.
    axes: number of leading axes; 0 for a single observation.

    Returns distributions with the same leading axes.
    """
    for _ in range(axes):
        policy = jax.vmap(policy)
    return policy(obs)
