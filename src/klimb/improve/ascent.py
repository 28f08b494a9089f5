"""First-order steps uphill on the flat parameter vector, for the rules that climb by gradient."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Optimizer = Literal["adam", "sgd"]


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

    def init(self, theta: Float[Array, " P"]) -> optax.OptState:
        return self.transform.init(theta)

    def climb(
        self,
        theta: Float[Array, " P"],
        gradient: Float[Array, " P"],
        state: optax.OptState,
        learning_rate: float | Array,
    ) -> tuple[Float[Array, " P"], optax.OptState]:
        """One step up the gradient: (θ, state)."""
        direction, state = self.transform.update(gradient, state)
        assert isinstance(direction, jnp.ndarray)
        return theta + learning_rate * direction, state


def annealed(learning_rate: float, progress: float | Array, anneal: bool) -> float | Array:
    """The learning rate now: falling linearly to 0 over the run, or constant."""
    return learning_rate * (1 - progress) if anneal else learning_rate
