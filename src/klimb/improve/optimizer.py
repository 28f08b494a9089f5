"""First-order gradient ascent on the flat parameter vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from klimb.improve.minibatches import random_minibatches
from klimb.policies.normalizer import Rescaling
from klimb.policies.parameters import flatten
from klimb.policies.policy import Observing
from klimb.types import Batch

OptimizerKind = Literal["adam", "sgd"]
Vector = Float[Array, " P"]


class Optimizer(NamedTuple):
    """θ ← θ + learning_rate · direction(gradient), the gradient clipped by its global norm first.

    transform: from gradients to directions, of Optax.
    """

    transform: optax.GradientTransformation

    @classmethod
    def make(cls, kind: OptimizerKind, max_grad_norm: float | Array | None, *, rate_factor: bool = False) -> Optimizer:
        """Gradient ascent of a kind.

        kind: adam, or sgd for the plain gradient.
        max_grad_norm: maximum global norm of the gradient, not of its elements; None does not clip.
        rate_factor: whether its state holds a `RateFactor`, for a learning rate that follows the KL.
        """
        clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
        # ε = 1e-5 keeps Adam from turning gradients near rounding noise into full steps.
        direction = optax.scale_by_adam(eps=1e-5) if kind == "adam" else optax.identity()
        return cls(optax.chain(clip, direction, *((_HOLDS_FACTOR,) if rate_factor else ())))

    def init(self, theta: Vector) -> optax.OptState:
        """The moments before the first step.

        theta: the parameters that will be optimised.
        """
        return self.transform.init(theta)

    def apply_gradient(
        self, theta: Vector, gradient: Vector, moments: optax.OptState, learning_rate: float | Array
    ) -> tuple[Vector, optax.OptState]:
        """One ascent step: (θ, moments).

        theta: the parameters. gradient: of the objective that is maximised, at theta. moments: of the last step.
        learning_rate: step size, ≥ 0.
        """
        direction, moments = self.transform.update(gradient, moments)
        assert isinstance(direction, jnp.ndarray)
        return theta + learning_rate * direction, moments


def moments_after(rescaling: Rescaling | None, network: PyTree, state: PyTree) -> PyTree:
    """A rule's state after the network's layers have absorbed a rescaling of its features: θ' = A θ.

    Gradients with respect to θ' are A⁻ᵀ times those with respect to θ, and so is Adam's mean of gradients. Its mean of
    squared gradients is multiplied by the squared elements of A⁻ᵀ: Adam does not know how gradients of different
    parameters are correlated, which matters to the second order of the change of the statistics' mean.

    rescaling: what was absorbed; None for nothing. network: the policy or critic afterwards. state: a pytree; moments
    are found wherever it has an `optax.ScaleByAdamState` of the flat θ (`klimb.flatten`).
    """
    if rescaling is None or not isinstance(network, Observing):
        return state
    theta, rebuild = flatten(network)
    inverse = rescaling.inverse()

    def transposed(change: Rescaling, vector: Vector) -> Vector:
        """The transpose of the map θ ↦ `absorb(change)`, applied to a vector."""
        _, transpose = jax.vjp(lambda theta: flatten(rebuild(theta).absorb(change)).theta, theta)
        return transpose(vector)[0]

    def transform(node: Any) -> Any:
        if not _has_moments_of(node, theta):
            return node
        # A⁻¹ = absorb(inverse) has the elements 1, scale and shift only, each in a place of its own.
        squared = Rescaling(jnp.square(inverse.scale), jnp.square(inverse.shift), inverse.exact)
        return node._replace(mu=transposed(inverse, node.mu), nu=transposed(squared, node.nu))

    return jax.tree.map(transform, state, is_leaf=lambda node: _has_moments_of(node, theta))


def _has_moments_of(node: Any, theta: Vector) -> bool:
    return isinstance(node, optax.ScaleByAdamState) and eqx.is_array(node.mu) and node.mu.shape == theta.shape


class RateFactor(NamedTuple):
    """The last part of the optimiser's state where the learning rate follows the KL: what its initial value is times.

    The optimiser only holds it; whoever calls `apply_gradient` multiplies.
    """

    factor: Float[Array, ""]


_HOLDS_FACTOR = optax.GradientTransformation(
    lambda theta: RateFactor(jnp.ones((), jnp.asarray(theta).dtype)), lambda updates, state, _=None: (updates, state)
)


def rate_factor(moments: Any) -> Float[Array, ""]:
    """The factor in the state of an optimiser that was made with `rate_factor`.

    moments: its state.
    """
    return moments[-1].factor


def with_rate_factor(moments: Any, factor: Float[Array, ""]) -> Any:
    """The state of an optimiser with another factor.

    moments: the state, of one that was made with `rate_factor`. factor: > 0.
    """
    return (*moments[:-1], RateFactor(factor))


class FitResult(NamedTuple):
    """The result of `fit_epochs`: parameters, the optimiser's moments, epochs done, norm of the last gradient."""

    theta: Vector
    moments: optax.OptState
    epochs: Int[Array, ""]
    grad_norm: Float[Array, ""]


class _Progress(NamedTuple):
    """The carry of the loop over epochs."""

    epochs: Int[Array, ""]
    key: PRNGKeyArray
    theta: Vector
    moments: optax.OptState
    continues: Bool[Array, ""]
    grad_norm: Float[Array, ""]


def fit_epochs(
    optimizer: Optimizer,
    objective: Callable[[Vector, Batch], Array],
    key: PRNGKeyArray,
    theta: Vector,
    moments: optax.OptState,
    batch: Batch,
    *,
    learning_rate: float | Array,
    epochs: int | Array,
    num_minibatches: int,
    keep_going: Callable[[Vector], Array] | None = None,
) -> FitResult:
    """Passes over shuffled minibatches, with one gradient step per minibatch.

    optimizer: computes the steps from the gradients.
    objective: `objective(θ, minibatch)` is the scalar that is maximised.
    key: for the order of the rows.
    theta, moments: the parameters and the optimiser's moments to start from.
    batch: the rows; every pass has its own advantages if they are there (`Batch.epoch_advantage`, of that many epochs).
    With one minibatch the objective gets the batch itself, with its trajectory.
    learning_rate: step size, ≥ 0.
    epochs: maximum number of passes.
    num_minibatches: minibatches per pass; rows that do not fill the last one are left out of the pass.
    keep_going: called with θ after every pass; False ends the fit. None: all passes.
    """

    def ascend(theta: Vector, moments: optax.OptState, minibatch: Batch) -> tuple[Vector, optax.OptState, Array]:
        """One step from `theta` and `moments` on one minibatch; also the gradient's norm before clipping."""
        gradient = jax.grad(objective)(theta, minibatch)
        theta, moments = optimizer.apply_gradient(theta, gradient, moments, learning_rate)
        return theta, moments, jnp.linalg.norm(gradient)

    if num_minibatches > 1:
        batch = batch.gathered()

    def one_pass(now: _Progress, key: PRNGKeyArray) -> tuple[Vector, optax.OptState, Array]:
        """One pass; key: for the order of the rows. Also the last gradient's norm."""
        theta, moments, rows_of = now.theta, now.moments, batch.at_epoch(now.epochs)
        if num_minibatches == 1:
            return ascend(theta, moments, rows_of)

        def body(carry: tuple, rows: Array) -> tuple[tuple, Array]:
            """carry: parameters and moments. rows: the row numbers of one minibatch."""
            theta, moments = carry
            theta, moments, norm = ascend(theta, moments, rows_of.take(rows))
            return (theta, moments), norm

        order = random_minibatches(key, batch.obs, num_minibatches)
        (theta, moments), norms = jax.lax.scan(body, (theta, moments), order)
        return theta, moments, norms[-1]

    def epoch(now: _Progress) -> _Progress:
        key, key_shuffle = jax.random.split(now.key)
        theta, moments, norm = one_pass(now, key_shuffle)
        continues = jnp.bool_(True) if keep_going is None else keep_going(theta)
        return _Progress(now.epochs + 1, key, theta, moments, continues, norm)

    start = _Progress(jnp.int32(0), key, theta, moments, jnp.bool_(True), jnp.zeros((), theta.dtype))
    end = jax.lax.while_loop(lambda now: (now.epochs < epochs) & now.continues, epoch, start)
    return FitResult(end.theta, end.moments, end.epochs, end.grad_norm)
