"""What a policy is, and the one way in which distributions are computed from observations."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

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
