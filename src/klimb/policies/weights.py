"""Initial weights of layers, by the name of their distribution."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from klimb.policies.layers import Initialization
from klimb.precision import full_precision


@full_precision
def orthogonal(key: PRNGKeyArray, fan_in: int, fan_out: int) -> Float[Array, "fan_in fan_out"]:
    """A uniformly random matrix with orthonormal columns (rows, if there are fewer of them).

    The Q of a Gaussian matrix's QR factorisation, by Gram-Schmidt, applied twice against accumulated rounding. Plain
    operations, because LAPACK's QR under vmap can deadlock on the CPU with JAX 0.10: a batched factorisation
    waits, on XLA's worker threads, for work that is queued to the same threads.

    key: for the random numbers. fan_in: rows. fan_out: columns.
    """
    long, short = max(fan_in, fan_out), min(fan_in, fan_out)
    columns = jax.random.normal(key, (short, long))

    def orthonormalise(j: Array, basis: Array) -> Array:
        """Set row `j` of `basis`, which has j orthonormal rows."""
        # The other rows of `basis` are still zero, so they do not change the projection.
        vector = columns[j]
        for _ in range(2):
            vector = vector - (basis @ vector) @ basis
        return basis.at[j].set(vector / jnp.linalg.norm(vector))

    basis = jax.lax.fori_loop(0, short, orthonormalise, jnp.zeros_like(columns))
    return basis if fan_in <= fan_out else basis.T


def _normal(variance: Callable[[int, int], float]) -> Callable[[PRNGKeyArray, int, int], Array]:
    """Independent normal weights. variance: from fan_in and fan_out; that of a gain of 1."""
    return lambda key, fan_in, fan_out: variance(fan_in, fan_out) ** 0.5 * jax.random.normal(key, (fan_in, fan_out))


INITIALIZATIONS: dict[Initialization, Callable[[PRNGKeyArray, int, int], Array]] = {
    "orthogonal": orthogonal,
    # The gain √2 of hidden layers is that of He et al.; it is part of all of them, so 1/fan_in is 2/fan_in with it.
    "glorot": _normal(lambda fan_in, fan_out: 1 / (fan_in + fan_out)),
    "he": _normal(lambda fan_in, _: 1 / fan_in),
    "lecun": _normal(lambda fan_in, _: 0.5 / fan_in),
}
