"""First-order steps uphill on the flat parameter vector, for the rules that climb by gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from klimb.minibatches import shuffled
from klimb.types import Batch

Optimizer = Literal["adam", "sgd"]
Vector = Float[Array, " P"]


class Ascent(NamedTuple):
    """θ ← θ + learning_rate · direction(gradient), with the gradient's global norm limited first."""

    transform: optax.GradientTransformation

    @classmethod
    def make(cls, optimizer: Optimizer, max_grad_norm: float | None) -> Ascent:
        """`max_grad_norm` limits the norm of the whole gradient, not of its elements; None leaves it alone."""
        clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
        # ε = 1e-5 keeps Adam from turning gradients near rounding noise into full steps.
        direction = optax.scale_by_adam(eps=1e-5) if optimizer == "adam" else optax.identity()
        return cls(optax.chain(clip, direction))

    def init(self, theta: Vector) -> optax.OptState:
        return self.transform.init(theta)

    def climb(
        self, theta: Vector, gradient: Vector, state: optax.OptState, learning_rate: float | Array
    ) -> tuple[Vector, optax.OptState]:
        """One step up the gradient: (θ, state)."""
        direction, state = self.transform.update(gradient, state)
        assert isinstance(direction, jnp.ndarray)
        return theta + learning_rate * direction, state


def annealed(learning_rate: float, progress: float | Array, anneal: bool) -> float | Array:
    """The learning rate now: falling linearly to 0 over the run, or constant."""
    return learning_rate * (1 - progress) if anneal else learning_rate


class Climbed(NamedTuple):
    """Where the epochs have led: parameters, the optimiser's state, epochs done, norm of the last gradient."""

    theta: Vector
    moments: optax.OptState
    epochs: Int[Array, ""]
    grad_norm: Float[Array, ""]


def climb_epochs(
    ascent: Ascent,
    objective: Callable[[Vector, Batch], Array],
    key: PRNGKeyArray,
    theta: Vector,
    moments: optax.OptState,
    batch: Batch,
    *,
    learning_rate: float | Array,
    epochs: int | Array,
    num_minibatches: int,
    go_on: Callable[[Vector], Array] | None = None,
) -> Climbed:
    """Passes over shuffled minibatches, one gradient step each, while `go_on(θ)` says so after a pass.

    `objective(θ, minibatch)` is a scalar to climb. One minibatch is the whole batch, as it is, with its rollout.
    """

    def ascend(carry: tuple, minibatch: Batch) -> tuple[tuple, Array]:
        vector, moments = carry
        gradient = jax.grad(objective)(vector, minibatch)
        vector, moments = ascent.climb(vector, gradient, moments, learning_rate)
        return (vector, moments), jnp.linalg.norm(gradient)

    def one_pass(key: PRNGKeyArray, carry: tuple) -> tuple[tuple, Array]:
        if num_minibatches == 1:
            return ascend(carry, batch)
        order = shuffled(key, batch.log_prob.shape[0], num_minibatches)
        carry, norms = jax.lax.scan(lambda carry, rows: ascend(carry, batch.take(rows)), carry, order)
        return carry, norms[-1]

    def epoch(carry: tuple) -> tuple:
        k, key, vector, moments, _, _ = carry
        key, key_shuffle = jax.random.split(key)
        (vector, moments), norm = one_pass(key_shuffle, (vector, moments))
        return k + 1, key, vector, moments, jnp.bool_(True) if go_on is None else go_on(vector), norm

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < epochs) & carry[4]

    start = (jnp.int32(0), key, theta, moments, jnp.bool_(True), jnp.zeros((), theta.dtype))
    done, _, theta, moments, _, norm = jax.lax.while_loop(unfinished, epoch, start)
    return Climbed(theta, moments, done, norm)
