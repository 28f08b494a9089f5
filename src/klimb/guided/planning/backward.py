"""The backward pass of differential dynamic programming: from derivatives along a path to feedback gains."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from klimb.guided.planning.box_qp import free_block, solve_box_qp
from klimb.guided.planning.expansion import Expansion
from klimb.guided.planning.small_matrices import cholesky, cholesky_solve

Limits = tuple[Float[Array, " A"], Float[Array, " A"]]


class Backward(eqx.Module):
    """The step u_t ← u_t + α k_t + K_t (x_t − x̂_t) and the reduction of the cost that the quadratic model predicts.

    gains: K. feedforward: k. q_uu: the model's curvature in the actions, without the regularisation.
    gradient: of the total cost, exact whatever the regularisation. linear, quadratic: the model's change of the cost is
    α linear + α² quadratic. failed_step: the latest time step at which q_uu + μI is not positive definite, −1 if there
    is none; the gains before it are then meaningless. curved: whether q_uu itself is positive definite, among the
    actions that are not at a limit.
    """

    gains: Float[Array, "T A D"]
    feedforward: Float[Array, "T A"]
    q_uu: Float[Array, "T A A"]
    gradient: Float[Array, "T A"]
    linear: Float[Array, ""]
    quadratic: Float[Array, ""]
    failed_step: Int[Array, ""]
    curved: Bool[Array, " T"]

    def predicted_reduction(self, alpha: Float[Array, "*tries"]) -> Float[Array, "*tries"]:
        """The reduction of the cost that the model predicts; positive for 0 < α ≤ 1. alpha: step length α."""
        return -(alpha * self.linear + jnp.square(alpha) * self.quadratic)


@jax.jit  # traced once for the three calls in a plan
def backward_pass(
    expansion: Expansion, actions: Float[Array, "T A"], limits: Limits, regularisation: Float[Array, ""]
) -> Backward:
    """Minimises the quadratic model, from the last step to the first, over actions within their limits.

    Levenberg-Marquardt regularisation of the actions, Q_uu + μI: whatever the dynamics, a large enough μ makes it
    positive definite and every step short. Regularising the states, V_xx + μI (Tassa et al. 2012), has no effect on an
    action that does not move the state within one step. The value function is that of the regularised gains under the
    unregularised model (Tassa et al. 2012, eq. 11), so that the predicted reduction is the model's.

    expansion: derivatives along the path. actions: of the path, within the limits. limits: (low, high).
    regularisation: μ ≥ 0, in cost per action².
    """
    size = expansion.end_x.shape[0]

    def step_back(carry: tuple, row: tuple) -> tuple[tuple, tuple]:
        """carry: derivatives of the cost to go, adjoint, failed step. row: time step, action and derivatives there."""
        value_x, value_xx, adjoint, failed = carry
        t, action, cost_z, cost_zz, dynamics_z, dynamics_zz = row
        q_z = cost_z + dynamics_z.T @ value_x
        q_zz = cost_zz + dynamics_z.T @ value_xx @ dynamics_z
        if dynamics_zz is not None:
            q_zz = q_zz + jnp.tensordot(value_x, dynamics_zz, 1)
        q_zz = 0.5 * (q_zz + q_zz.T)
        box = (limits[0] - action, limits[1] - action)
        k, gain, positive, curved = _step_gains(q_z[size:], q_zz[size:], box, regularisation)
        # Inserting z = (x, gain x) turns the quadratic in (x, u) into one in x alone.
        closed_loop = jnp.concatenate([jnp.eye(size, dtype=gain.dtype), gain])
        k_z = jnp.concatenate([jnp.zeros_like(value_x), k])
        value_x, value_xx = closed_loop.T @ (q_z + q_zz @ k_z), closed_loop.T @ q_zz @ closed_loop
        gradient_z = cost_z + dynamics_z.T @ adjoint
        failed = jnp.where((failed < 0) & ~positive, t, failed)
        changes = (k_z @ q_z, 0.5 * k_z @ q_zz @ k_z)
        carry = (value_x, 0.5 * (value_xx + value_xx.T), gradient_z[:size], failed)
        return carry, (gain, k, q_zz[size:, size:], gradient_z[size:], *changes, curved)

    start = (expansion.end_x, expansion.end_xx, expansion.end_x, jnp.int32(-1))
    times = jnp.arange(len(actions), dtype=jnp.int32)
    derivatives = (expansion.cost_z, expansion.cost_zz, expansion.dynamics_z, expansion.dynamics_zz)
    (_, _, _, failed), rows = jax.lax.scan(step_back, start, (times, actions, *derivatives), reverse=True)
    gains, feedforward, q_uu, gradient, linear, quadratic, curved = rows
    return Backward(gains, feedforward, q_uu, gradient, jnp.sum(linear), jnp.sum(quadratic), failed, curved)


def _step_gains(
    q_u: Float[Array, " A"], q_uz: Float[Array, "A Z"], box: Limits, regularisation: Float[Array, ""]
) -> tuple[Float[Array, " A"], Float[Array, "A D"], Bool[Array, ""], Bool[Array, ""]]:
    """k and K, 0 unless Q_uu + μI is positive definite; whether it is; and whether Q_uu is, among the free actions."""
    size = q_uz.shape[1] - q_u.shape[0]
    q_ux, q_uu = q_uz[:, :size], q_uz[:, size:]
    regular = q_uu + regularisation * jnp.eye(len(q_u), dtype=q_uu.dtype)
    factor, positive = cholesky(regular)
    newton = -cholesky_solve(factor, q_u[:, None])[:, 0]
    solution = solve_box_qp(regular, q_u, *box, jnp.where(positive, newton, 0))
    # An action at its limit stays there whatever the state: its row of the gains is zero.
    free_factor, _ = cholesky(free_block(regular, solution.free))
    gain = -cholesky_solve(free_factor, jnp.where(solution.free[:, None], q_ux, 0))
    _, curved = cholesky(free_block(q_uu, solution.free))
    return jnp.where(positive, solution.x, 0), jnp.where(positive, gain, 0), positive, curved & positive
