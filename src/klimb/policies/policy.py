"""What a policy is, and the one way in which distributions are computed from observations."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array

from klimb.policies.distributions import Distribution


@runtime_checkable
class Policy(Protocol):
    """A pytree that is called with one observation and answers with a distribution over actions.

    Its arrays are its parameters; whatever else it holds is part of its structure. A user's own network is a policy by
    being a callable pytree.
    """

    def __call__(self, obs: Array) -> Distribution:
        """π(·|s) for one observation `[*obs]`."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A policy or critic that keeps statistics of what it observes."""

    def observe(self, obs: Array, weight: Array) -> Any:
        """The same with a batch of observations `[B, *obs]` taken in; rows of weight 0 are left out."""
        ...


def observe(network: Any, obs: Array, weight: Array) -> Any:
    """The same policy or critic with a batch of observations taken into its statistics, where it keeps any.

    network: a policy or critic. obs: `[B, *obs]`. weight: `[B]`; rows of weight 0 are left out.
    """
    return network.observe(obs, weight) if isinstance(network, Observing) else network


def action_distribution(policy: Policy, obs: Array, *, axes: int = 1) -> Distribution:
    """π(·|s) for many observations. The policy is called with one observation at a time, under vmap.

    policy: a callable pytree.
    obs: observations with `axes` leading axes: `[B, *obs]`, or `[T, N, *obs]` with `axes=2`.
    axes: how many leading axes there are; 0 for a single observation.

    Returns distributions with the same leading axes.
    """
    for _ in range(axes):
        policy = jax.vmap(policy)
    return policy(obs)
