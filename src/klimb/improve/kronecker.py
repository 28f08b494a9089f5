"""A Kronecker-factored approximation of the Fisher matrix (K-FAC), as preconditioner of conjugate gradient.

The block of a dense layer x W + b is E[(x xᵀ) ⊗ (d dᵀ)], x the layer's input with a 1 behind it and d a derivative with
respect to its output. K-FAC (Martens & Grosse 2015) takes E[x xᵀ] ⊗ E[d dᵀ] for it, whose inverse is that of two small
matrices. It neglects what layers have in common, which conjugate gradient finds in a few products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from klimb.improve.natural_direction import Preconditioning
from klimb.policies.distributions import Distribution
from klimb.policies.networks import NetworkPolicy
from klimb.policies.parameters import flatten, trainable_filter
from klimb.types import Batch, Sequences

Vector = Float[Array, " P"]
STRIDE = 4.236
"""One row in as many is used: all of them make a step hardly better. Not a whole number, so that the rows are of all
environments."""
MIN_DAMPING = 1e-3
"""At least so much damping is in the factors, which have to be inverted."""


class Factors(NamedTuple):
    """The inverse of one dense layer's block: `inputs` ⊗ `outputs`, of E[x xᵀ] and E[d dᵀ] with their damping."""

    inputs: Float[Array, "I I"]
    outputs: Float[Array, "O O"]

    @classmethod
    def of(
        cls,
        inputs: Float[Array, "B _"],
        derivatives: Float[Array, "B O"],
        share: Float[Array, " B"],
        damping: float | Array,
    ) -> Factors:
        """From the rows of a batch.

        inputs: x, without the 1. derivatives: d. share: of every row in the mean. damping: η of the block. It is
        divided between the factors in the ratio of their mean eigenvalues (Martens & Grosse 2015, section 6.3).
        """
        rows = jnp.concatenate([inputs, jnp.ones_like(inputs[:, :1])], axis=1)
        a, d = (x.T @ (share[:, None] * x) for x in (rows, derivatives))
        tiny = jnp.finfo(a.dtype).tiny
        mean_a, mean_d = (jnp.maximum(jnp.trace(x) / len(x), tiny) for x in (a, d))
        ratio = jnp.sqrt(mean_a / mean_d)
        root = jnp.sqrt(damping)
        return cls(_inverse(a, ratio * root), _inverse(d, root / ratio))

    def apply(self, weight: Float[Array, "_ O"], bias: Float[Array, " O"]) -> tuple[Array, Array]:
        """The inverse times the part of a vector that belongs to the layer."""
        product = self.inputs @ jnp.concatenate([weight, bias[None]]) @ self.outputs
        return product[:-1], product[-1]


def preconditioned(
    kind: Preconditioning, policy: PyTree, batch: Batch, *, damping: float | Array
) -> Callable[[Vector], Vector] | None:
    """v ↦ M v with M ≈ (F + ηI)⁻¹; None for none, and for a policy with other parameters than those of dense layers.

    Of a `NetworkPolicy` without memory and without an encoder that is trained, all parameters are in blocks: one
    of every dense layer, and a diagonal one of the log standard deviations and the layer normalisation. d is the
    derivative of Σ ε_r root_r, root the square root of the distribution's Fisher matrix and ε random signs: E[d dᵀ] is
    that of all of them, for one backward pass.

    Rows and signs are the same in every step: the direction is a function of the batch alone.

    kind: as the option. policy, batch: of the step. damping: η ≥ 0 of the solve.
    """
    if kind == "none" or not _is_dense(policy):
        return None
    some = batch.take(jnp.asarray(np.arange(0, len(batch.weight), STRIDE), jnp.int32))
    inputs, derivatives, others = _rows(policy, some)
    share = some.weight / jnp.maximum(jnp.sum(some.weight), jnp.finfo(some.weight.dtype).tiny)
    eta = jnp.maximum(damping, MIN_DAMPING)
    factors = [Factors.of(x, d, share, eta) for x, d in zip(inputs, derivatives, strict=True)]
    diagonal = jax.tree.map(lambda d: 1 / (jnp.einsum("b,b...->...", share, jnp.square(d)) + eta), others)
    rebuild = flatten(policy).rebuild

    def apply(vector: Vector) -> Vector:
        whole = eqx.filter(rebuild(vector), trainable_filter(policy))
        layers = [f.apply(w, b) for f, w, b in zip(factors, whole.network.weights, whole.network.biases, strict=True)]
        scaled = jax.tree.map(jnp.multiply, _others(whole), diagonal)
        weights, biases = zip(*layers, strict=True)
        return ravel_pytree(eqx.tree_at(_layers, eqx.combine(scaled, whole), (weights, biases)))[0]

    return apply


def _rows(policy: NetworkPolicy, batch: Batch) -> tuple[list[Array], list[Array], PyTree]:
    """Of every row: what the dense layers read, d with respect to their outputs, and d with respect to the other
    parameters."""
    assert not isinstance(batch.obs, Sequences), "the policy has no memory"
    others = _others(eqx.filter(policy, trainable_filter(policy)))
    nudges = [jnp.zeros_like(bias) for bias in policy.network.biases]

    def root(distribution: Distribution) -> Array:
        return ravel_pytree(distribution.fisher_root(distribution))[0]

    def of_one(obs: Array, signs: Array) -> tuple[list[Array], list[Array], PyTree]:
        def probed(nudges: list[Array], others: PyTree) -> tuple[Distribution, list[Array]]:
            return eqx.combine(others, policy).probed(obs, nudges)

        now, pull_back, inputs = jax.vjp(probed, nudges, others, has_aux=True)
        # The root is a linear map, whose coefficients are those of the distribution as it is.
        value, pull_back_root = jax.vjp(now.fisher_root, now)
        _, unravel = ravel_pytree(value)
        return inputs, *pull_back(pull_back_root(unravel(signs))[0])

    size = jax.eval_shape(lambda obs: root(policy(obs)), batch.obs[0]).size
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (len(batch.weight), size))
    return jax.vmap(of_one)(batch.obs, jnp.asarray(signs, batch.weight.dtype))


def _is_dense(policy: PyTree) -> bool:
    """Whether nearly all parameters of a policy are those of dense layers."""
    if not isinstance(policy, NetworkPolicy) or policy.memory is not None:
        return False
    return not jax.tree.leaves(eqx.filter(policy.encoder, trainable_filter(policy.encoder)))


def _layers(policy: PyTree) -> tuple[Any, Any]:
    return policy.network.weights, policy.network.biases


def _others(policy: PyTree) -> PyTree:
    """The trainable arrays outside of weights and biases. policy: its trainable arrays."""
    nothing = tuple((None,) * len(part) for part in _layers(policy))
    return eqx.tree_at(_layers, policy, nothing)


def _inverse(matrix: Float[Array, "M M"], damping: Float[Array, ""]) -> Float[Array, "M M"]:
    """(matrix + damping·1)⁻¹; the diagonal's own inverse where rounding has made the matrix indefinite."""
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    damped = matrix + damping * identity
    inverse = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(damped), True), identity)
    return jnp.where(jnp.all(jnp.isfinite(inverse)), inverse, identity / jnp.diag(damped))
