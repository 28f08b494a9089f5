"""The states of a new policy, split by whether it has made a mistake yet: an action that the old one would not take.

If π'(a|s) ≥ (1 − ε) π(a|s) everywhere, an action of π' can be drawn in two stages: with probability 1 − ε from π, else
from the remainder (π' − (1 − ε) π)/ε. Before the first draw from the remainder the states are those of π:

    p_π'^t = (1 − ε)ᵗ p_π^t + (1 − (1 − ε)ᵗ) p_mistake^t,      with p_mistake^t a distribution.

For a deterministic π the condition says that π' takes another action with probability at most ε, which is its total
variation. For a stochastic π it is more than TV ≤ ε, and under TV ≤ ε alone the p_mistake of the equation may have
negative entries, although the bound TV(p_π'^t, p_π^t) ≤ 1 − (1 − ε)ᵗ holds.

In all functions pi is π(a|s) and new is π'(a|s), `[S, A]`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from klimb.tabular.mdp import TabularMDP
from klimb.tabular.transitions import advance
from klimb.theory.surrogate import Table


def mistake_probability(pi: Table, new: Table) -> Float[Array, ""]:
    """The smallest ε with π'(a|s) ≥ (1 − ε) π(a|s) for all s and a, in [0, 1].

    For a deterministic π it is max_s TV(π'(·|s), π(·|s)); in general it is at least that.
    """
    ratio = jnp.where(pi > 0, new / jnp.where(pi > 0, pi, 1), 1)
    return jnp.clip(1 - jnp.min(ratio), 0, 1)


def mistaken_marginals(
    mdp: TabularMDP, pi: Table, new: Table, epsilon: Float[Array, ""] | float, horizon: int
) -> Float[Array, "H S"]:
    """(1 − (1 − ε)ᵗ) p_mistake^t for t = 0 … horizon − 1: the probability of s_t = s after at least one mistake.

    Summed up forwards in time: a mistake is made now, π' − (1 − ε) π, or there has been one before.

    mdp: the problem. epsilon: ε ≥ `mistake_probability`, in [0, 1]. horizon: steps, at least 1.

    Returns rows that sum to 1 − (1 − ε)ᵗ. No entry is negative if ε is large enough.
    """
    rest = new - (1 - epsilon) * pi

    def step(carry: tuple[Array, Array], marginal: Array) -> tuple[tuple[Array, Array], Array]:
        mistaken, kept = carry
        first = kept * marginal[:, None] * rest
        return (advance(mdp.transition, first + mistaken[:, None] * new), kept * (1 - epsilon)), mistaken

    start = (jnp.zeros_like(mdp.initial), jnp.ones((), mdp.initial.dtype))
    return jax.lax.scan(step, start, mdp.state_marginals(pi, horizon))[1]
