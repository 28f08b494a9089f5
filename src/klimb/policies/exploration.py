"""The noise of actions in rollouts: independent at every step, or from a matrix that is held for some steps (gSDE).

Generalised state-dependent exploration (Raffin et al. 2021): the action in the state s is μ(s) + Wᵀ φ(s), with φ the
last hidden features of the policy's network and W_jd ~ N(0, σ_jd²) drawn once for several steps. Neighbouring states
get similar noise, and a trajectory is smooth.

Given its state, one action has the distribution N(μ_d, Σ_j φ_j² σ_jd² + ε): a diagonal Gaussian whose σ depends on the
state. It is the distribution that the policy returns; log-probs, KL, entropy and the Fisher matrix are its own. That
successive actions share W is not part of it: an importance ratio is one of these marginal densities.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from klimb.policies.action_spec import EXPLORATION_VARIANCE
from klimb.policies.distributions import Distribution
from klimb.policies.few_at_once import over_rows
from klimb.policies.memory import step
from klimb.precision import full_precision


@runtime_checkable
class Exploring(Protocol):
    """A policy that can make the noise of successive actions from random numbers that are held for several steps."""

    @property
    def held_noise(self) -> tuple[int, ...] | None:
        """The shape of the standard normal numbers that are held; None where actions have independent noise."""
        ...

    def explore(self, obs: Array, held: Array) -> tuple[Distribution, Array]:
        """π(·|s), and the noise for `Distribution.sample_from` that makes the action; given s it is standard normal.

        obs: one observation. held: standard normal numbers of the shape `held_noise`.
        """
        ...


@full_precision
def marginal_log_std(features: Float[Array, "*batch F"], log_std: Float[Array, "F D"]) -> Float[Array, "*batch D"]:
    """½ log(Σ_j φ_j² σ_jd² + ε): of one action, given its state. Its gradient flows through φ too.

    features: φ. log_std: log σ of the elements of W.
    """
    variance = jnp.square(features) @ jnp.exp(2 * log_std) + EXPLORATION_VARIANCE
    return 0.5 * jnp.log(variance)


def standard_noise(
    features: Float[Array, " F"], log_std: Float[Array, "F D"], held: Float[Array, "G D"]
) -> Float[Array, " D"]:
    """(Wᵀ φ + √ε z) / σ(s), with W = σ ⊙ Z: standard normal given the state.

    features: φ. log_std: log σ of the elements of W. held: Z, and z in its last row, G = F + 1.
    """
    total = jnp.sum(features[:, None] * jnp.exp(log_std) * held[:-1], axis=0) + EXPLORATION_VARIANCE**0.5 * held[-1]
    return total * jnp.exp(-marginal_log_std(features, log_std))


def held_noise(policy: Any) -> tuple[int, ...] | None:
    """The shape of what a policy holds for several steps; None for one whose actions have independent noise.

    policy: of any class, with or without its arrays.
    """
    return policy.held_noise if isinstance(policy, Exploring) else None


def rollout_noise(
    policy: Any, key: PRNGKeyArray, obs: Num[Array, " N *obs"], num_steps: int, exploration_steps: int | None
) -> Array:
    """The noise of a rollout: `[T, N, ...]`; of an exploring policy `[⌈T / exploration_steps⌉, N, *held_noise]`.

    Row `t // noise_steps` is that of step t. policy: only its kind matters. key: for the random numbers. obs: one
    observation of each environment; only its shape matters. num_steps: T. exploration_steps: as in `noise_steps`.
    """
    shape = held_noise(policy)
    if shape is None:
        return over_rows(policy, obs, 1).noise(key, (num_steps,))
    rows = -(-num_steps // noise_steps(policy, num_steps, exploration_steps))
    return jax.random.normal(key, (rows, len(obs), *shape))


def noise_steps(policy: Any, num_steps: int, exploration_steps: int | None) -> int:
    """Steps of a rollout for which one draw of noise is used: 1 for independent noise.

    policy: of any class, with or without its arrays. num_steps: of a rollout. exploration_steps: for which an exploring
    policy holds its draw; None for the whole rollout.
    """
    return 1 if held_noise(policy) is None else min(exploration_steps or num_steps, num_steps)


class Decision(NamedTuple):
    """One step of N copies: π(·|s), actions `[N, *act]` as the policy has them, and what it remembers afterwards."""

    distribution: Distribution
    action: Array
    carry: Array | None


@full_precision
def sampled_action(
    policy: Any, obs: Num[Array, " N *obs"], noise: Array, carry: Float[Array, "N C"] | None = None
) -> Decision:
    """The actions that noise makes of π(·|s).

    policy: a callable pytree. obs: of N environments. noise: their row of `rollout_noise`. carry: what the policy
    remembers; None for one without memory.
    """
    if held_noise(policy) is None:
        distribution, carry = step(policy, obs, carry)
    else:
        distribution, noise = jax.vmap(policy.explore)(obs, noise)
    return Decision(distribution, distribution.sample_from(noise), carry)
