"""The surrogate Ā, the worst gain C and the total variation between two policies of a tabular problem."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.tabular.mdp import TabularMDP

Table = Float[Array, "S A"]


def surrogate(mdp: TabularMDP, pi: Table, new: Table) -> Float[Array, ""]:
    """Ā(π') = Σ_t γᵗ E_{s∼p_π^t} E_{a∼π'}[A^π(s, a)]: 0 at π, with the gradient of J there.

    mdp: the problem. pi: π(a|s). new: π'(a|s).
    """
    return jnp.sum(mdp.occupancy(pi) * gains(mdp, pi, new))


def gains(mdp: TabularMDP, pi: Table, new: Table) -> Float[Array, " S"]:
    """E_{a∼π'}[A^π(s, a)], the gain of one action from π' followed by π over π alone. Exactly 0 where π' = π.

    mdp: the problem. pi: π(a|s). new: π'(a|s).
    """
    # Σ_a π A = 0 up to rounding: subtracting it removes the rounding error of A too.
    return jnp.sum((new - pi) * mdp.advantages(pi), axis=1)


def worst_gain(mdp: TabularMDP, pi: Table, new: Table) -> Float[Array, ""]:
    """C = max_s |E_{a∼π'} A^π(s, a)|, over the states that are not absorbing.

    mdp: the problem. pi: π(a|s). new: π'(a|s).
    """
    return jnp.max(jnp.where(mdp.absorbing, 0, jnp.abs(gains(mdp, pi, new))))


def state_variation(pi: Table, new: Table) -> Float[Array, " S"]:
    """TV(π'(·|s), π(·|s)).

    pi: π(a|s). new: π'(a|s).
    """
    return 0.5 * jnp.sum(jnp.abs(new - pi), axis=1)
