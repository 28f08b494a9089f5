"""Teaching the policy what its local controllers do: the S-step of mirror-descent guided policy search."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from klimb.errors import ConfigError
from klimb.guided.planning.small_matrices import solve_lower
from klimb.improve.minibatches import shuffled
from klimb.improve.optimizer import Optimizer
from klimb.policies.distributions import DiagGaussian, Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import take_rows, weighted_mean

OPTIMIZER = Optimizer.make("adam", None)


def require_gaussian(policy: PyTree, obs: Any) -> None:
    """ConfigError unless the policy's actions in a state (an array, or its shape) are Gaussian, and not squashed."""
    kind = type(eqx.filter_eval_shape(partial(action_distribution, axes=0), policy, obs))
    if kind is not DiagGaussian:
        raise ConfigError(
            f"guided policy search is for continuous actions of Gaussian policies, and this policy is a {kind.__name__}"
        )


class Targets(eqx.Module):
    """p(·|s) = N(mean, L Lᵀ) for every row. whitening: L⁻¹, whose WᵀW is the precision.

    Axes: B rows, A actions. A row of weight 0 plays no part.
    """

    obs: Float[Array, " B *obs"]
    mean: Float[Array, "B A"]
    whitening: Float[Array, "B A A"]
    weight: Float[Array, " B"]

    @classmethod
    def of(
        cls, obs: Float[Array, " B *obs"], mean: Float[Array, "B A"], lower: Float[Array, "B A A"], weight: Array
    ) -> Targets:
        """From the Cholesky factors of the covariances."""
        identity = jnp.broadcast_to(jnp.eye(lower.shape[-1], dtype=lower.dtype), lower.shape)
        return cls(obs, mean, solve_lower(lower, identity), weight)

    def kl(self, policy: Distribution) -> Float[Array, " B"]:
        """KL(π‖p) in nats, of a diagonal Gaussian π.

        ½ (Σ_j σ_j² P_jj + ‖W (μ_π − μ_p)‖² − A) − Σ_j log σ_j − log det W, with the precision P = WᵀW.
        """
        assert isinstance(policy, DiagGaussian)
        # Each dimension as e^d − 1 − d, with d = 2 log(σ W_jj), and what is beside the diagonal.
        diagonal = jnp.diagonal(self.whitening, axis1=-2, axis2=-1)
        beside = jnp.sum(jnp.square(self.whitening), axis=-2) - jnp.square(diagonal)
        log_ratio = 2 * (policy.log_std + jnp.log(diagonal))
        spread = jnp.sum(jnp.expm1(log_ratio) - log_ratio + jnp.exp(2 * policy.log_std) * beside, axis=-1)
        apart = jnp.sum(self.whitening * (policy.mean - self.mean)[..., None, :], axis=-1)
        return 0.5 * (spread + jnp.sum(jnp.square(apart), axis=-1))


class Projected(NamedTuple):
    """The policy, Adam's moments, and the mean KL(π‖p) that is left."""

    policy: PyTree
    moments: optax.OptState
    kl: Float[Array, ""]


def project(
    key: PRNGKeyArray,
    policy: PyTree,
    targets: Targets,
    moments: optax.OptState,
    *,
    learning_rate: float | Array,
    epochs: int,
    minibatch_size: int,
) -> Projected:
    """θ ← argmin mean KL(π_θ(·|s)‖p(·|s)) by Adam over shuffled minibatches (Montgomery and Levine 2016, eq. 4).

    In this direction the means are weighted by the precision of the targets: what matters to the cost counts.
    moments: `OPTIMIZER.init(θ)` at first.
    """
    theta, rebuild = flatten(policy)
    rows = len(targets.weight)

    def loss(vector: Array, minibatch: Targets) -> Array:
        kl = minibatch.kl(action_distribution(rebuild(vector), minibatch.obs))
        return weighted_mean(kl, minibatch.weight)

    def descend(carry: tuple, chosen: Array) -> tuple[tuple, None]:
        gradient = jax.grad(loss)(carry[0], take_rows(targets, chosen))
        return OPTIMIZER.apply_gradient(carry[0], -gradient, carry[1], learning_rate), None

    def epoch(carry: tuple, key: Array) -> tuple[tuple, None]:
        return jax.lax.scan(descend, carry, shuffled(key, rows, max(1, rows // minibatch_size)))

    (theta, moments), _ = jax.lax.scan(epoch, (theta, moments), jax.random.split(key, epochs))
    return Projected(rebuild(theta), moments, loss(theta, targets))
