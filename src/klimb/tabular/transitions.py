"""p(s'|s, a) as a table, or as a list of the few successors that a state has, and the linear systems made of it.

In all functions `transition` is p(s'|s, a) in one of the two forms.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
from jaxtyping import Array, Float, Int

BAND = 500
"""Half-width of the band, after reordering the states, up to which a sparse system is factorised without iterations."""


Numbers = Array | np.ndarray


class SparseTransition(eqx.Module):
    """K possible successors of every (s, a) with their probabilities; the same successor may be listed twice."""

    successor: Int[Numbers, "S A K"]
    probability: Float[Numbers, "S A K"]


Transition = Float[Numbers, "S A S"] | SparseTransition


def following(transition: Transition, value: Float[Array, " S"]) -> Float[Array, "S A"]:
    """E[f(s') | s, a].

    transition: p(s'|s, a). value: f.
    """
    if isinstance(transition, SparseTransition):
        return jnp.sum(transition.probability * value[transition.successor], axis=-1)
    return jnp.asarray(transition) @ value


def advance(transition: Transition, mass: Float[Array, "S A"]) -> Float[Array, " S"]:
    """The state distribution one step after a distribution over (s, a): Σ m(s, a) p(s'|s, a).

    transition: p(s'|s, a). mass: m, not negative.
    """
    if isinstance(transition, SparseTransition):
        spread = mass[..., None] * transition.probability
        return jnp.zeros(mass.shape[0], spread.dtype).at[transition.successor].add(spread)
    return jnp.einsum("sa,sat->t", mass, transition)


def state_transition(transition: Transition, pi: Float[Array, "S A"]) -> Float[Array, "S S"]:
    """p(s'|s) under π, as a table.

    transition: p(s'|s, a). pi: π(a|s).
    """
    if isinstance(transition, SparseTransition):
        num_states = pi.shape[0]
        row = jnp.broadcast_to(jnp.arange(num_states)[:, None, None], transition.successor.shape)
        spread = pi[..., None] * transition.probability
        return jnp.zeros((num_states, num_states), spread.dtype).at[row, transition.successor].add(spread)
    return jnp.einsum("sa,sat->st", pi, transition)


def solve(transition: Transition, choice: Float[Array, "S A"], right: Float[Array, " S"]) -> Float[Array, " S"]:
    """x = right + Σ_a choice(s, a) E[x(s') | s, a], the system of values. Differentiable.

    transition: p(s'|s, a). choice: γ π(a|s). right: the right-hand side, r_π(s).
    """
    if isinstance(transition, SparseTransition):
        return _solve_sparse(transition, choice, right, transposed=False)
    identity = jnp.eye(right.shape[0], dtype=right.dtype)
    return jnp.linalg.solve(identity - state_transition(transition, choice), right)


def solve_flow(transition: Transition, choice: Float[Array, "S A"], right: Float[Array, " S"]) -> Float[Array, " S"]:
    """x = right + (x · choice one step later), the system of occupancies: the transposed one. Differentiable.

    transition: p(s'|s, a). choice: γ π(a|s). right: the right-hand side, ρ(s).
    """
    if isinstance(transition, SparseTransition):
        return _solve_sparse(transition, choice, right, transposed=True)
    identity = jnp.eye(right.shape[0], dtype=right.dtype)
    return jnp.linalg.solve((identity - state_transition(transition, choice)).T, right)


def _solve_sparse(transition: SparseTransition, choice: Array, right: Array, *, transposed: bool) -> Array:
    """By SciPy on the host; derivatives solve the transposed system."""

    def value_product(x: Array) -> Array:
        return x - jnp.sum(choice * following(transition, x), axis=-1)

    def flow_product(x: Array) -> Array:
        return x - advance(transition, x[:, None] * choice)

    def solver(transposed: bool) -> Any:
        def on_host(_: Any, b: Array) -> Array:
            # As 32-bit words, because JAX would round float64 to float32 in a callback thread without x64 enabled.
            arrays = [jnp.asarray(x, b.dtype) for x in (transition.probability, choice, b)]
            words = [jax.lax.bitcast_convert_type(x[..., None], jnp.uint32) for x in arrays]

            def call(successor: Any, *words: Any) -> np.ndarray:
                """successor: of the transition. words: probability, choice and right-hand side as 32-bit words."""
                floats = [
                    np.ascontiguousarray(x).reshape(*x.shape[: array.ndim], -1).view(b.dtype)[..., 0]
                    for x, array in zip(words, arrays, strict=True)
                ]
                solution = _scipy_solve(np.asarray(successor), *floats, transposed=transposed)
                return np.ascontiguousarray(solution).view(np.uint32).reshape(words[-1].shape)

            shape = jax.ShapeDtypeStruct(words[-1].shape, jnp.uint32)
            solution = jax.pure_callback(call, shape, transition.successor, *words, vmap_method="sequential")
            return jax.lax.bitcast_convert_type(solution, b.dtype).reshape(b.shape)

        return on_host

    matvec = flow_product if transposed else value_product
    return jax.lax.custom_linear_solve(
        matvec, right, solve=solver(transposed), transpose_solve=solver(not transposed), symmetric=False
    )


def _scipy_solve(
    successor: np.ndarray, probability: np.ndarray, choice: np.ndarray, right: np.ndarray, *, transposed: bool
) -> np.ndarray:
    """In double precision: by a sparse factorisation; by GMRES first where the factors would be nearly dense."""
    num_states = len(right)
    row = np.broadcast_to(np.arange(num_states)[:, None, None], successor.shape)
    entries = (np.asarray(choice, float)[..., None] * probability).ravel()
    step = scipy.sparse.csc_array((entries, (row.ravel(), successor.ravel())), shape=(num_states, num_states))
    matrix = scipy.sparse.eye_array(num_states, format="csc") - step
    matrix = (matrix.T if transposed else matrix).tocsc()
    target = np.asarray(right, float)
    if _half_width(step) > BAND:
        # No order of states makes a random graph banded, but it mixes so fast that GMRES converges in a few steps.
        x, failed = scipy.sparse.linalg.gmres(matrix.tocsr(), target, rtol=1e-14, atol=0, restart=60, maxiter=5)
        if not failed:
            return x.astype(right.dtype)
    return scipy.sparse.linalg.splu(matrix).solve(target).astype(right.dtype)


def _half_width(step: scipy.sparse.csc_array) -> int:
    """The largest distance of an entry from the diagonal, in the order of Cuthill and McKee (1969)."""
    if step.shape[0] <= BAND:
        return 0
    order = scipy.sparse.csgraph.reverse_cuthill_mckee(step.tocsr(), symmetric_mode=False)
    place = np.argsort(order)
    row, column = step.nonzero()
    return int(np.max(np.abs(place[row] - place[column]), initial=0))
