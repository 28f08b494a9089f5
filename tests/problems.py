"""What tests of update rules share: softmax tables on small MDPs, where every expectation is exact."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from klimb import Categorical, TabularMDP, exact_batch

S, A, GAMMA = 5, 3, 0.9


class Table(eqx.Module):
    """A softmax table that reads state numbers. Adding a constant to a row changes nothing: its F is singular."""

    logits: Float[Array, "S A"]

    def __call__(self, state: Array) -> Categorical:
        return Categorical(logits=self.logits[state])


def make_mdp(seed: int) -> TabularMDP:
    rng = np.random.default_rng(seed)
    return TabularMDP(
        jnp.asarray(rng.dirichlet(np.full(S, 0.5), size=(S, A))),
        jnp.asarray(rng.normal(size=(S, A))),
        jnp.asarray(rng.dirichlet(np.ones(S))),
        GAMMA,
    )


def make_table(seed: int) -> Table:
    return Table(jax.random.normal(jax.random.key(seed), (S, A)))


def probabilities(policy: Table) -> Array:
    return jax.nn.softmax(policy.logits)


def mean_kl(p: Array, q: Array, d: Array) -> float:
    """E_d KL(p‖q), from the definition."""
    p, q, d = (np.asarray(x) for x in (p, q, d))
    return float(d @ np.sum(p * (np.log(p) - np.log(q)), axis=1))


def optimum(mdp: TabularMDP) -> float:
    """The best J, by value iteration."""
    transition, reward = np.asarray(mdp.transition), np.asarray(mdp.reward)
    value = np.zeros(S)
    for _ in range(500):
        value = (reward + GAMMA * transition @ value).max(axis=1)
    return float(mdp.initial @ value)


batch_on_table = eqx.filter_jit(exact_batch)


@eqx.filter_jit
def take(rule, policy, batch, state=None, key=0):
    """One step: (policy, state, info)."""
    return rule.step(jax.random.key(key), policy, rule.init(policy) if state is None else state, batch)
