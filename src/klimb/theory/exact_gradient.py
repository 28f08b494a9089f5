"""∇J and the Fisher matrix of a policy on a tabular problem, exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from klimb.improve.fisher import fisher_vector_product
from klimb.improve.objectives import log_likelihood
from klimb.policies.parameters import flatten
from klimb.tabular.mdp import TabularMDP
from klimb.theory.exact_batch import exact_batch


def policy_gradient(mdp: TabularMDP, policy: PyTree) -> Float[Array, " P"]:
    """∇J(θ) = Σ_s Σ_t γᵗ p(s_t = s) Σ_a π(a|s) ∇log π_θ(a|s) A^π(s, a) (Sutton et al. 2000).

    mdp: the problem. policy: reads one-hot rows or state numbers, as for `exact_batch`.

    Returns a flat vector, in the order of `jax.flatten_util.ravel_pytree` of the policy's trainable arrays.
    """
    batch = exact_batch(mdp, policy)
    theta, rebuild = flatten(policy)
    total = jnp.sum(mdp.occupancy(_table(batch.log_prob, mdp)))
    return total * jax.grad(lambda vector: log_likelihood(rebuild(vector), batch))(theta)


def fisher_matrix(mdp: TabularMDP, policy: PyTree) -> Float[Array, "P P"]:
    """F = E_{s∼d^π, a∼π}[∇log π ∇log πᵀ], d^π discounted and normalised: P × P numbers, for small policies.

    mdp: the problem. policy: reads one-hot rows or state numbers, as for `exact_batch`.
    """
    batch = exact_batch(mdp, policy)
    product = fisher_vector_product(policy, batch.obs, batch.weight)
    size = flatten(policy).theta.size
    return jax.vmap(product)(jnp.eye(size, dtype=batch.weight.dtype))


def _table(log_prob: Array, mdp: TabularMDP) -> Array:
    return jnp.exp(log_prob).reshape(mdp.num_states, mdp.num_actions)
