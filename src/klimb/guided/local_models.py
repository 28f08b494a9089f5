"""Linear dynamics and quadratic costs along the paths of a batch: fitted to them, or from the simulator itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from klimb.environments.base import ClassicControl
from klimb.errors import ConfigError
from klimb.guided.fitting import Dynamics, QuadraticModel
from klimb.guided.kl_constrained_lqr import LinearPolicy, TimeVaryingModel
from klimb.guided.paths import Paths
from klimb.guided.planning.small_matrices import LARGEST
from klimb.guided.projection import require_gaussian
from klimb.policies.actions import Box
from klimb.policies.distributions import DiagGaussian
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Derivatives, Metric, Rollout

MAX_COORDINATES = 44
"""Largest D + A, whose products, about a thousand, are fitted."""

DynamicsSource = Literal["fitted", "simulator"]

FITTED_METRICS = {
    "model_r2": Metric("R² of the dynamics", "share of the variance of the changes of state that is explained"),
    "reward_r2": Metric("R² of the reward", "share of the variance of the reward that is explained"),
}
SIMULATOR_METRICS = {
    "simulator_steps": Metric("Steps of the simulator", "taken for the derivatives of this iteration's steps"),
    "reward_r2": FITTED_METRICS["reward_r2"],
}
VALUE_METRICS = {
    "value_r2": Metric("R² of the value", "share of the variance of the value targets that is explained"),
}


class LocalProblem(NamedTuple):
    """What controllers along the paths are improved in: all in differences from what occurred.

    paths: the batch. model: dynamics and costs, in the state of the simulator or, where it is fitted, the observation.
    policy: π_θ in the same coordinates. metrics: how good the fits are.
    """

    paths: Paths
    model: TimeVaryingModel
    policy: LinearPolicy
    metrics: dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class LocalModels:
    """How dynamics and costs along paths are found.

    dynamics: fitted to the batch; or the derivatives of the simulator, of which the rollout has a record
    (`Rollout.derivatives`), or which `environment` gives exactly. regions: local linear models on the fitted quadratic
    one. look_ahead: steps, after which the value counts; None for the whole rollout. environment: classic control that
    is differentiated; else None.
    """

    dynamics: DynamicsSource = "fitted"
    regions: int = 0
    look_ahead: int | None = None
    environment: ClassicControl | None = None

    @property
    def metrics(self) -> dict[str, Metric]:
        """Those of `LocalProblem.metrics`."""
        own = FITTED_METRICS if self.dynamics == "fitted" else SIMULATOR_METRICS
        return own if self.look_ahead is None else own | VALUE_METRICS

    def problem(self, policy: PyTree, batch: Batch) -> LocalProblem:
        """Dynamics, costs and policy along every column of the batch.

        policy: Gaussian. batch: with a trajectory.

        Raises ConfigError for a batch without a trajectory or the derivatives that are needed, policies that are not
        Gaussian, and too many coordinates.
        """
        rollout = _require_usable(policy, batch)
        if self.dynamics == "simulator" and self.environment is None and rollout.derivatives is None:
            raise ConfigError(
                "dynamics = simulator takes the derivatives of the steps from the rollout, and this one has none "
                "(derivatives=None): use the rule that bind returns, or dynamics = fitted"
            )
        paths = Paths.of(rollout, self.look_ahead)
        fitted = Dynamics.fit(paths, self.regions if self.dynamics == "fitted" else 0)
        metrics = {"reward_r2": fitted.r2[-1]}
        if self.dynamics == "fitted":
            derivatives = _derivatives_of(fitted, paths)
            metrics["model_r2"] = fitted.dynamics_r2
        else:
            derivatives, steps = self._simulated(rollout)
            metrics["simulator_steps"] = steps * jnp.sum(rollout.valid)
        value = None
        if self.look_ahead is not None:
            value = _fitted_value(batch)
            metrics["value_r2"] = value.r2[0]
        model = expand(paths, derivatives, fitted.quadratic.convex_cost(), value)
        return LocalProblem(paths, model, linearise_policy(policy, paths, derivatives.obs), metrics)

    def _simulated(self, rollout: Rollout) -> tuple[Derivatives, int]:
        """The simulator's derivatives `[N, T, ...]`, and how many of its steps those of one step took."""
        if self.environment is not None:
            derivatives, steps = differentiate(self.environment, rollout), 0
        else:
            assert rollout.derivatives is not None
            derivatives = rollout.derivatives
            steps = 1 + derivatives.reward.shape[-1]
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), derivatives), steps


def differentiate(environment: ClassicControl, rollout: Rollout) -> Derivatives:
    """The exact derivatives of every step `[T, N, ...]`; an action beyond its bounds changes nothing.

    environment: whose rollout it is. rollout: with `env_state`.
    """
    assert rollout.env_state is not None
    actions, model = environment.actions, environment.unbounded()
    assert isinstance(actions, Box)

    def step(z: Array, size: int) -> tuple[Array, Array, Array]:
        x, u = z[:size], jnp.clip(z[size:], jnp.asarray(actions.low, z.dtype), jnp.asarray(actions.high, z.dtype))
        successor = model.dynamics(x, u)
        return successor, environment.observe(successor), model.reward(x, u, successor)

    def of_row(x: Array, u: Array) -> Derivatives:
        dynamics, next_obs, reward = jax.jacfwd(partial(step, size=len(x)))(jnp.concatenate([x, u]))
        return Derivatives(dynamics, jax.jacfwd(environment.observe)(x), next_obs, reward)

    return jax.vmap(jax.vmap(of_row))(rollout.env_state, rollout.action)


def expand(
    paths: Paths,
    derivatives: Derivatives,
    curvature: Float[Array, "Z Z"],
    value: QuadraticModel | None,
) -> TimeVaryingModel:
    """N problems of T steps each, in differences from the states and actions of the paths.

    Dynamics to first order; the cost, the negative reward, to second. Where a path does not continue, the next
    difference is zero: a column may contain several episodes. Where it has an `outlook`, minus the value of the
    successor is a cost, to second order too, of which the convex part is kept. Invalid rows have cost 0.

    paths: where to expand. derivatives: there, `[N, T, ...]`. curvature: of the cost, in observation and action,
    convex. value: of an observation; None where nothing has an outlook.
    """
    sees = _seen(derivatives.obs, paths.action.shape[-1])
    cost_z = -derivatives.reward
    cost_zz = jnp.swapaxes(sees, -1, -2) @ curvature @ sees
    if value is not None:
        slope = jax.vmap(jax.vmap(value.slope))(paths.successor)
        onward = jnp.where(paths.outlook[..., None, None], derivatives.next_obs, 0)
        cost_z = cost_z - (slope @ onward)[..., 0, :]
        cost_zz = cost_zz + jnp.swapaxes(onward, -1, -2) @ value.convex_cost() @ onward
    continues, valid = paths.continues[..., None, None], paths.valid[..., None, None]
    return TimeVaryingModel(
        dynamics=jnp.where(continues, derivatives.dynamics, 0),
        cost_zz=jnp.where(valid, cost_zz, 0),
        cost_z=jnp.where(valid[..., 0], cost_z, 0),
        cost=-paths.reward,
        occupied=paths.valid,
    )


def linearise_policy(policy: PyTree, paths: Paths, sees: Float[Array, "N T O S"]) -> LinearPolicy:
    """π_θ to first order in the state, in differences from the states and actions of the paths.

    policy: Gaussian. paths: where to linearise. sees: derivative of the observation in the state.
    """

    def linearise(obs: Array, sees: Array) -> tuple[Array, Array]:
        gain = jax.jacfwd(lambda o: _gaussian(policy, o).mean)(obs)
        return gain @ sees, jnp.diag(jnp.exp(2 * _gaussian(policy, obs).log_std))

    return LinearPolicy(*jax.vmap(jax.vmap(linearise))(paths.state, sees))


def _derivatives_of(fitted: Dynamics, paths: Paths) -> Derivatives:
    """The derivatives of a fitted model, whose state is the observation."""
    slope = jax.vmap(jax.vmap(fitted.slope))(paths.coordinates)
    size, coordinates = paths.state.shape[-1], slope.shape[-1]
    dynamics = jnp.eye(size, coordinates, dtype=slope.dtype) + slope[..., :size, :]
    identity = jnp.broadcast_to(jnp.eye(size, dtype=slope.dtype), (*slope.shape[:2], size, size))
    return Derivatives(dynamics, identity, dynamics, slope[..., size, :])


def _fitted_value(batch: Batch) -> QuadraticModel:
    """A quadratic model of the value targets in the observation."""
    return QuadraticModel.fit(batch.obs_rows, batch.value_target[:, None], batch.weight)


def _require_usable(policy: PyTree, batch: Batch) -> Rollout:
    if batch.trajectory is None:
        raise ConfigError("guided policy search fits a model to rollouts, and this batch has none (trajectory=None)")
    obs = batch.obs_rows
    require_gaussian(policy, obs[0])
    states, actions = obs.shape[1:], batch.action.shape[-1]
    if len(states) != 1 or actions > LARGEST or states[0] + actions > MAX_COORDINATES:
        raise ConfigError(
            f"guided policy search fits products of at most {MAX_COORDINATES} coordinates, {LARGEST} of them actions, "
            f"and here observations are {list(states)} and actions [{actions}]"
        )
    return batch.trajectory.rollout


def _seen(sees: Float[Array, "N T O S"], actions: int) -> Float[Array, "N T OA Z"]:
    """d(observation, action)/d(state, action)."""
    corner = jnp.broadcast_to(jnp.eye(actions, dtype=sees.dtype), (*sees.shape[:2], actions, actions))
    top = jnp.concatenate([sees, jnp.zeros((*sees.shape[:3], actions), sees.dtype)], axis=-1)
    bottom = jnp.concatenate([jnp.zeros((*sees.shape[:2], actions, sees.shape[3]), sees.dtype), corner], axis=-1)
    return jnp.concatenate([top, bottom], axis=-2)


def _gaussian(policy: PyTree, obs: Float[Array, " O"]) -> DiagGaussian:
    """The policy's distribution after one observation."""
    distribution = action_distribution(policy, obs, axes=0)
    assert isinstance(distribution, DiagGaussian)
    return distribution
