"""Projecting the local controllers onto the policy: the S-step of mirror-descent guided policy search."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from klimb.errors import ConfigError
from klimb.guided.kl_constrained_lqr import MAX_ROW, KLConstrainedControllers
from klimb.guided.paths import Paths
from klimb.guided.planning.small_matrices import solve_lower
from klimb.improve.minibatches import shuffled
from klimb.improve.optimizer import Optimizer
from klimb.policies.distributions import DiagGaussian, Distribution
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import take_rows, weighted_mean

OPTIMIZER = Optimizer.make("adam", None)


def require_gaussian(policy: PyTree, obs: Any) -> None:
    """ConfigError unless the policy's actions are Gaussian and not squashed.

    policy: a policy. obs: one observation, an array or its shape.
    """
    kind = type(eqx.filter_eval_shape(partial(action_distribution, axes=0), policy, obs))
    if kind is not DiagGaussian:
        raise ConfigError(
            f"guided policy search is for continuous actions of Gaussian policies, and this policy is a {kind.__name__}"
        )


class Targets(eqx.Module):
    """p(·|s) = N(mean, L Lᵀ) for every row. whitening: L⁻¹, whose WᵀW is the precision.

    Axes: B rows, A actions. A row of weight 0 is ignored.
    """

    obs: Float[Array, " B *obs"]
    mean: Float[Array, "B A"]
    whitening: Float[Array, "B A A"]
    weight: Float[Array, " B"]

    @classmethod
    def of(
        cls, obs: Float[Array, " B *obs"], mean: Float[Array, "B A"], lower: Float[Array, "B A A"], weight: Array
    ) -> Targets:
        """Targets from the Cholesky factors of the covariances.

        obs: s. mean: of p. lower: L. weight: of each row, not negative.
        """
        identity = jnp.broadcast_to(jnp.eye(lower.shape[-1], dtype=lower.dtype), lower.shape)
        return cls(obs, mean, solve_lower(lower, identity), weight)

    @classmethod
    def along(cls, policy: PyTree, controllers: KLConstrainedControllers, paths: Paths) -> Targets:
        """p at the states of the paths: the policy's mean action there plus the controllers' change of it.

        With the linearised policy's mean instead, the S-step would flatten the policy even where there is nothing to
        gain.

        policy: that the controllers improve on. controllers: along the paths. paths: of the batch.
        """
        columns = (paths.state, controllers.actions, controllers.cholesky, paths.valid)
        obs, change, lower, valid = [x.reshape(-1, *x.shape[2:]) for x in columns]
        before = action_distribution(policy, obs)
        assert isinstance(before, DiagGaussian)
        targets = cls.of(obs, before.mean + change, lower, valid.astype(obs.dtype))
        # Weighted so that no row pulls harder than the constraint lets it count (`kl_constrained_lqr.MAX_ROW`): where
        # the linear model has exploded, a single row would outweigh all others, and Adam would remember it for long.
        pull = targets.kl(before) / jnp.maximum(MAX_ROW * controllers.kl, jnp.finfo(obs.dtype).tiny)
        return dataclasses.replace(targets, weight=targets.weight * jnp.where(pull > 1, 1 / pull, 1))

    def kl(self, policy: Distribution) -> Float[Array, " B"]:
        """KL(π‖p) in nats, of a diagonal Gaussian π.

        ½ (Σ_j σ_j² P_jj + ‖W (μ_π − μ_p)‖² − A) − Σ_j log σ_j − log det W, with the precision P = WᵀW.

        policy: π at the rows' states.
        """
        assert isinstance(policy, DiagGaussian)
        # Without cancellation: e^d − 1 − d for each diagonal entry, with d = 2 log(σ W_jj), and the other entries.
        diagonal = jnp.diagonal(self.whitening, axis1=-2, axis2=-1)
        off_diagonal = jnp.sum(jnp.square(self.whitening), axis=-2) - jnp.square(diagonal)
        log_ratio = 2 * (policy.log_std + jnp.log(diagonal))
        of_variances = jnp.sum(jnp.expm1(log_ratio) - log_ratio + jnp.exp(2 * policy.log_std) * off_diagonal, axis=-1)
        distance = jnp.sum(self.whitening * (policy.mean - self.mean)[..., None, :], axis=-1)
        return 0.5 * (of_variances + jnp.sum(jnp.square(distance), axis=-1))


class Projected(NamedTuple):
    """The policy, Adam's moments, and the remaining mean KL(π‖p) in nats."""

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

    In this direction of the KL the means are weighted by the precision of the targets, so that the actions that matter
    most to the cost are fitted best.

    key: for the order of the rows. policy: where to start. targets: p in every row. moments: Adam's, at first
    `OPTIMIZER.init(θ)`. learning_rate: step size. epochs: passes over the rows, at least 1. minibatch_size: rows per
    step.
    """
    theta, rebuild = flatten(policy)
    rows = len(targets.weight)

    def loss(vector: Array, minibatch: Targets) -> Array:
        """vector: θ. minibatch: some rows."""
        kl = minibatch.kl(action_distribution(rebuild(vector), minibatch.obs))
        return weighted_mean(kl, minibatch.weight)

    def descend(carry: tuple, chosen: Array) -> tuple[tuple, None]:
        """carry: θ and Adam's moments. chosen: numbers of the rows of a minibatch."""
        theta, moments = carry
        gradient = jax.grad(loss)(theta, take_rows(targets, chosen))
        return OPTIMIZER.apply_gradient(theta, -gradient, moments, learning_rate), None

    def epoch(carry: tuple, key: Array) -> tuple[tuple, None]:
        """carry: θ and Adam's moments. key: for the order of the rows."""
        return jax.lax.scan(descend, carry, shuffled(key, rows, max(1, rows // minibatch_size)))

    (theta, moments), _ = jax.lax.scan(epoch, (theta, moments), jax.random.split(key, epochs))
    return Projected(rebuild(theta), moments, loss(theta, targets))


def promised_gain(controllers: KLConstrainedControllers, paths: Paths, old: PyTree, new: PyTree) -> Float[Array, ""]:
    """The gain in reward per step that the model predicts for a policy near the old one.

    controllers: that know the cost to go along the paths. paths: of the batch. old, new: policies, Gaussian.
    """
    flat = paths.state.reshape(-1, paths.state.shape[-1])
    before, after = action_distribution(old, flat), action_distribution(new, flat)
    assert isinstance(before, DiagGaussian)
    assert isinstance(after, DiagGaussian)
    variance = jnp.exp(2 * after.log_std) - jnp.exp(2 * before.log_std)
    shape = paths.action.shape
    shift, change = (after.mean - before.mean).reshape(shape), jax.vmap(jnp.diag)(variance)
    return controllers.previous_cost - controllers.cost_of(shift, change.reshape(*shape, shape[-1]))
