"""Guides: the controllers around plans that importance-sampled guided policy search samples from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from klimb.environments.base import ClassicControl
from klimb.guided.first_guides import DemonstratedActions
from klimb.guided.planning.growing import plan_growing
from klimb.guided.planning.ilqr import Settings, plan
from klimb.guided.planning.linear_gaussian import LinearGaussian
from klimb.guided.planning.problem import Problem, Time
from klimb.guided.planning.small_matrices import cholesky
from klimb.guided.planning.trajectory import Plan, PlanStatus, best_of
from klimb.policies.actions import Box
from klimb.policies.distributions import DiagGaussian, Distribution
from klimb.policies.policy import action_distribution

# A plan takes a few dozen iterations; a search that needs more has met a kink, and another start is better.
SEARCH = Settings(max_iterations=50, cost_tolerance=1e-4)
# Steps of the first stage, about what a swing-up takes, and those that each later stage adds.
FIRST_STAGE, STAGE_GROWTH = 60, 30
CHECKED_STARTS = 4
"""Starting points tried before a problem is refused."""


class ModelRollout(eqx.Module):
    """Steps in the model. Leading axes: starts, samples, time; D simulator state, O observation, A action.

    action: as sampled, before the bounds. alive: False from the end of the task on; rewards are zero there.
    """

    env_state: Float[Array, "*runs D"]
    obs: Float[Array, "*runs O"]
    action: Float[Array, "*runs A"]
    reward: Float[Array, "*runs"]
    alive: Bool[Array, "*runs"]


class Guide(LinearGaussian):
    """A controller whose means are clipped to the bounds of the actions, which the feedback far from its path exceeds.

    low, high: the bounds. usable: whether the plan had a controller; else actions are sampled around 0, with half the
    range as standard deviation.
    """

    low: Float[Array, " A"]
    high: Float[Array, " A"]
    usable: Bool[Array, ""]

    def mean(self, t: Time, state: Float[Array, " D"]) -> Float[Array, " A"]:
        """The most probable action, within the bounds. t: time step, 0 to T − 1. state: x_t."""
        return jnp.clip(super().mean(t, state), self.low, self.high)


class _AdaptedCost(eqx.Module):
    """The model's cost minus weight · log π_θ(u|x): improbable actions of the policy cost more."""

    model: ClassicControl = eqx.field(static=True)
    policy: PyTree
    weight: Float[Array, ""]

    def __call__(self, env_state: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, ""]:
        log_prob = action_distribution(self.policy, self.model.observe(env_state), axes=0).log_prob(action)
        return self.model.cost(env_state, action) - self.weight * log_prob


@dataclass(frozen=True)
class Guides:
    """Plans and paths through the dynamics of an environment, from its simulator states.

    environment: with known dynamics and cost. actions: its action space. horizon: steps of every path, at least 1.
    restarts: random starting points of a plan, at least 1. temperature: of the controllers around plans, positive, in
    units of the reward. demonstrated: what plans start from instead of random actions; None without demonstrations.
    """

    environment: ClassicControl
    actions: Box
    horizon: int
    restarts: int
    temperature: float | Array
    demonstrated: DemonstratedActions | None = None

    def check(self) -> None:
        """Plans once from a few starting points. ConfigError, with the time step, if no plan has a controller."""
        _require_plannable(self.environment, self.actions, self.horizon)

    def planned(self, key: PRNGKeyArray, start: Float[Array, " D"]) -> Float[Array, "T A"]:
        """The actions of the cheapest plan from random starting points, over a growing horizon.

        With demonstrations, of the plans from those that began nearest, at most `restarts` of them: over a growing
        horizon, and over the whole of it.

        key: of random starting points. start: the first simulator state.
        """
        problem = self._problem()
        if self.demonstrated is None:
            candidates = self._random_actions(key, self.restarts, start.dtype)
            return self._grown(problem, start, candidates).actions
        candidates = self.demonstrated.nearest(self.environment.observe(start), self.restarts)
        # From another start the late actions of a demonstration lead elsewhere, if the system is unstable: a growing
        # horizon does without them. What a demonstration reaches late, and only then is rewarded for, needs them.
        grown, whole = self._grown(problem, start, candidates), plan(problem, start, candidates, settings=SEARCH)
        return best_of(jax.tree.map(lambda *x: jnp.stack(x), grown, whole)).actions

    @staticmethod
    def _grown(problem: Problem, start: Float[Array, " D"], candidates: Float[Array, "R T A"]) -> Plan:
        return plan_growing(problem, start, candidates, first=FIRST_STAGE, growth=STAGE_GROWTH, settings=SEARCH)

    def _random_actions(self, key: PRNGKeyArray, count: int, dtype: jnp.dtype) -> Float[Array, "R T A"]:
        """Starting points of plans: between the bounds; within 2 of the only bound; without bounds in [−1, 1]."""
        low, high = self.bounds(dtype)
        low = jnp.where(jnp.isfinite(low), low, jnp.where(jnp.isfinite(high), high - 2, -1))
        high = jnp.where(jnp.isfinite(high), high, low + 2)
        return dataclasses.replace(self._problem(), limits=(low, high)).random_actions(key, count)

    def refined(
        self, policy: PyTree, adaptation: float | Array, start: Float[Array, " D"], candidates: Float[Array, "R T A"]
    ) -> Guide:
        """The controller around the best plan for r̃ = r + α κ log π_θ, with the temperature α and the adaptation κ.

        The second term keeps it near the policy, under which its samples would else have negligible probability. Its
        covariance is α Q_uu⁻¹ without the curvature of α κ log π_θ in the action. With that curvature a policy that
        imitates its guides would have a smaller variance after every iteration.

        policy: π_θ, Gaussian. adaptation: κ, not negative. start: the first simulator state. candidates: actions that
        the search starts from.
        """
        weight = jnp.asarray(adaptation * self.temperature, start.dtype)
        cost = _AdaptedCost(self.environment.unbounded(), policy, weight)
        best = plan(self._problem(cost), start, candidates, settings=SEARCH)
        obs = jax.vmap(self.environment.observe)(best.states[:-1])
        distribution = action_distribution(policy, obs)
        assert isinstance(distribution, DiagGaussian)
        precision = jnp.exp(-2 * distribution.log_std)
        return self._controller(best, weight * jax.vmap(jnp.diag)(precision))

    def run(
        self,
        key: PRNGKeyArray,
        act: Callable[[PRNGKeyArray, Array, Array], Array],
        start: Float[Array, " D"],
    ) -> ModelRollout:
        """The path of the actions act(key, t, env_state), clipped to the bounds for the environment.

        key: split into one for every step. act: the controller. start: the first simulator state.
        """
        environment = self.environment

        def advance(carry: tuple, row: tuple) -> tuple[tuple, ModelRollout]:
            """carry: simulator state, and whether the task has not ended. row: time step and key."""
            env_state, alive = carry
            t, key = row
            action = act(key, t, env_state)
            clipped = self.clipped(action)
            successor = environment.dynamics(env_state, clipped)
            reward = jnp.where(alive, environment.reward(env_state, clipped, successor), 0)
            step = ModelRollout(env_state, environment.observe(env_state), action, reward, alive)
            return (jnp.where(alive, successor, env_state), alive & ~environment.terminal(successor)), step

        times = jnp.arange(self.horizon)
        first = (start, jnp.ones((), bool))
        return jax.lax.scan(advance, first, (times, jax.random.split(key, self.horizon)))[1]

    def by_policy(self, key: PRNGKeyArray, policy: PyTree, start: Float[Array, " D"]) -> ModelRollout:
        """A path of the policy's samples. key: of the noise. policy: π_θ. start: the first simulator state."""
        return self.run(key, lambda key, t, x: self._distribution(policy, x).sample(key), start)

    def by_mode(self, policy: PyTree, start: Float[Array, " D"]) -> ModelRollout:
        """The path of the policy's most probable actions. policy: π_θ. start: the first simulator state."""
        return self.run(jax.random.key(0), lambda key, t, x: self._distribution(policy, x).mode(), start)

    def _distribution(self, policy: PyTree, env_state: Float[Array, " D"]) -> Distribution:
        return action_distribution(policy, self.environment.observe(env_state), axes=0)

    def clipped(self, action: Float[Array, "*steps A"]) -> Float[Array, "*steps A"]:
        """The action within the bounds, as the environment takes it. action: as sampled."""
        return jnp.clip(action, *self.bounds(action.dtype))

    def bounds(self, dtype: jnp.dtype) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
        """(low, high) of the actions, as arrays of a dtype."""
        return jnp.asarray(self.actions.low, dtype), jnp.asarray(self.actions.high, dtype)

    def _problem(self, cost: Callable | None = None) -> Problem:
        model, limits = self.environment.unbounded(), self.bounds(jnp.dtype(jnp.float32))
        return Problem(model.dynamics, cost or model.cost, self.horizon, len(self.actions.low), limits=limits)

    def _controller(self, planned: Plan, policy_curvature: Float[Array, "T A A"]) -> Guide:
        """The controller around a plan, with a standard deviation of at most about half the actions' range.

        policy_curvature: the part of the plan's q_uu that comes from log π_θ. It is left out of the covariance, except
        where the rest is not positive definite.
        """
        half_width = jnp.asarray(self.actions.half_width, planned.q_uu.dtype)
        min_curvature = self.temperature * jnp.diag(1 / jnp.square(half_width))
        cost_curvature = planned.q_uu - policy_curvature + min_curvature
        curved = cholesky(cost_curvature).positive[:, None, None]
        curvature = jnp.where(curved, cost_curvature, planned.q_uu + min_curvature)
        around = LinearGaussian.around(eqx.tree_at(lambda p: p.q_uu, planned, curvature), self.temperature)
        usable = jnp.all(jnp.isfinite(around.cholesky)) & jnp.all(jnp.isfinite(around.gains))
        low, high = self.bounds(half_width.dtype)
        return Guide(
            states=jnp.where(usable, around.states, 0),
            actions=jnp.where(usable, around.actions, 0),
            gains=jnp.where(usable, around.gains, 0),
            cholesky=jnp.where(usable, around.cholesky, jnp.diag(half_width)),
            low=low,
            high=high,
            usable=usable,
        )


@functools.cache  # a sweep calls this again in every trace
def _require_plannable(environment: ClassicControl, actions: Box, horizon: int) -> None:
    guides = Guides(environment, actions, horizon, restarts=CHECKED_STARTS, temperature=1.0)
    with jax.ensure_compile_time_eval():
        key_start, key_actions = jax.random.split(jax.random.key(0))
        start = environment.initial(key_start)
        candidates = guides._random_actions(key_actions, CHECKED_STARTS, start.dtype)
        plans = jax.vmap(lambda actions: plan(guides._problem(), start, actions, settings=SEARCH))(candidates)
        failed = (plans.status == PlanStatus.NOT_POSITIVE_DEFINITE) | (plans.status == PlanStatus.NONFINITE)
        if jnp.all(failed):
            jax.tree.map(lambda x: x[0], plans).require_usable()
