"""Guides: where importance-sampled guided policy search takes its samples from, beside the policy itself."""

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
from klimb.guided.planning.growing import plan_growing
from klimb.guided.planning.ilqr import Settings, plan
from klimb.guided.planning.linear_gaussian import LinearGaussian
from klimb.guided.planning.problem import Problem, Time
from klimb.guided.planning.small_matrices import cholesky
from klimb.guided.planning.trajectory import Plan, PlanStatus
from klimb.policies.actions import Box
from klimb.policies.distributions import DiagGaussian, Distribution
from klimb.policies.policy import action_distribution

# A planned path takes a few dozen iterations; a search that needs more has met a kink, and another start is better.
SEARCH = Settings(max_iterations=50, cost_tolerance=1e-4)
# Steps: about what a swing-up takes, and the stages by which the rest of the horizon follows.
FIRST, GROWTH = 60, 30
CHECKED = 4  # starting points before a problem counts as hopeless


class ModelRollout(eqx.Module):
    """Steps in the model. Leading axes: starts, samples, time; D physics, O observation, A action.

    action: as drawn, before the bounds. alive: False from the end of the task on; rewards are zero there.
    """

    physics: Float[Array, "*runs D"]
    obs: Float[Array, "*runs O"]
    action: Float[Array, "*runs A"]
    reward: Float[Array, "*runs"]
    alive: Bool[Array, "*runs"]


class Guide(LinearGaussian):
    """A controller whose means keep to the bounds of the actions: far from its path the feedback would ask for more."""

    low: Float[Array, " A"]
    high: Float[Array, " A"]
    sound: Bool[Array, ""]
    """Whether the plan had one; else actions are drawn around 0, as wide as the bounds."""

    def mean(self, t: Time, state: Float[Array, " D"]) -> Float[Array, " A"]:
        return jnp.clip(super().mean(t, state), self.low, self.high)


class _Adapted(eqx.Module):
    """The model's cost, and −weight · log π_θ(u|x): what a policy has against an action."""

    model: ClassicControl = eqx.field(static=True)
    policy: PyTree
    weight: Float[Array, ""]

    def __call__(self, physics: Float[Array, " D"], action: Float[Array, " A"]) -> Float[Array, ""]:
        said = action_distribution(self.policy, self.model.observe(physics), axes=0).log_prob(action)
        return self.model.cost(physics, action) - self.weight * said


@dataclass(frozen=True)
class Guides:
    """Plans and paths through the dynamics of an environment, of `horizon` steps from physics states.

    restarts: random starting points of a plan. temperature: of the controllers around plans, in units of the reward.
    """

    environment: ClassicControl
    actions: Box
    horizon: int
    restarts: int
    temperature: float | Array

    def check(self) -> None:
        """Plan once from a few starting points. ConfigError, with the time step, where the cost allows none of them."""
        _require_plannable(self.environment, self.actions, self.horizon)

    def planned(self, key: PRNGKeyArray, start: Float[Array, " D"]) -> Float[Array, "T A"]:
        """The actions of the cheapest plan from random starting points, over a growing horizon."""
        problem, drawn = self._problem(), self._drawn(key, self.restarts, start.dtype)
        return plan_growing(problem, start, drawn, first=FIRST, growth=GROWTH, settings=SEARCH).actions

    def _drawn(self, key: PRNGKeyArray, count: int, dtype: jnp.dtype) -> Float[Array, "R T A"]:
        """Starting points: between the bounds, or within 2 of the only one, or 1 of zero."""
        low, high = self.bounds(dtype)
        low = jnp.where(jnp.isfinite(low), low, jnp.where(jnp.isfinite(high), high - 2, -1))
        high = jnp.where(jnp.isfinite(high), high, low + 2)
        return dataclasses.replace(self._problem(), limits=(low, high)).random_actions(key, count)

    def refined(
        self, policy: PyTree, adaptation: float | Array, start: Float[Array, " D"], candidates: Float[Array, "R T A"]
    ) -> Guide:
        """The controller around the best plan for r̃ = r + α κ log π_θ, from several starting points.

        With α the temperature and κ the adaptation. It keeps to what the policy is able to do, so that its samples
        weigh something there. Its covariance is α Q_uu⁻¹ without the curvature of α κ log π_θ in the action, with
        which a policy that imitates its guides would grow narrower with every turn.
        """
        weight = jnp.asarray(adaptation * self.temperature, start.dtype)
        cost = _Adapted(self.environment.unbounded(), policy, weight)
        found = plan(self._problem(cost), start, candidates, settings=SEARCH)
        obs = jax.vmap(self.environment.observe)(found.states[:-1])
        distribution = action_distribution(policy, obs)
        assert isinstance(distribution, DiagGaussian)
        precision = jnp.exp(-2 * distribution.log_std)
        return self._controller(found, weight * jax.vmap(jnp.diag)(precision))

    def run(
        self,
        key: PRNGKeyArray,
        act: Callable[[PRNGKeyArray, Array, Array], Array],
        start: Float[Array, " D"],
    ) -> ModelRollout:
        """The path of the actions `act(key, t, physics)`. The environment gets them within its bounds."""
        environment = self.environment

        def advance(carry: tuple, at: tuple) -> tuple[tuple, ModelRollout]:
            physics, alive = carry
            t, key = at
            action = act(key, t, physics)
            taken = self.clipped(action)
            successor = environment.dynamics(physics, taken)
            reward = jnp.where(alive, environment.reward(physics, taken, successor), 0)
            row = ModelRollout(physics, environment.observe(physics), action, reward, alive)
            return (jnp.where(alive, successor, physics), alive & ~environment.terminal(successor)), row

        times = jnp.arange(self.horizon)
        begin = (start, jnp.ones((), bool))
        return jax.lax.scan(advance, begin, (times, jax.random.split(key, self.horizon)))[1]

    def by_policy(self, key: PRNGKeyArray, policy: PyTree, start: Float[Array, " D"]) -> ModelRollout:
        """A path of the policy's own samples."""
        return self.run(
            key, lambda key, t, x: action_distribution(policy, self.environment.observe(x), axes=0).sample(key), start
        )

    def by_mode(self, policy: PyTree, start: Float[Array, " D"]) -> ModelRollout:
        """The path of the policy's most probable actions."""
        return self.run(
            jax.random.key(0),
            lambda key, t, x: action_distribution(policy, self.environment.observe(x), axes=0).mode(),
            start,
        )

    def _acts(self, policy: PyTree, physics: Float[Array, " D"]) -> Distribution:
        return action_distribution(policy, self.environment.observe(physics), axes=0)

    def clipped(self, action: Float[Array, "*steps A"]) -> Float[Array, "*steps A"]:
        """What the environment gets of an action."""
        return jnp.clip(action, *self.bounds(action.dtype))

    def bounds(self, dtype: jnp.dtype) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
        """(low, high) of the actions."""
        return jnp.asarray(self.actions.low, dtype), jnp.asarray(self.actions.high, dtype)

    def _problem(self, cost: Callable | None = None) -> Problem:
        model, limits = self.environment.unbounded(), self.bounds(jnp.dtype(jnp.float32))
        return Problem(model.dynamics, cost or model.cost, self.horizon, len(self.actions.low), limits=limits)

    def _controller(self, found: Plan, reluctance: Float[Array, "T A A"]) -> Guide:
        """Around a plan, no wider than half of the actions' range where the cost to go does not say how wide."""
        width = jnp.asarray(self.actions.half_width, found.q_uu.dtype)
        least = self.temperature * jnp.diag(1 / jnp.square(width))
        of_reward = found.q_uu - reluctance + least
        curved = cholesky(of_reward).positive[:, None, None]
        held = eqx.tree_at(lambda p: p.q_uu, found, jnp.where(curved, of_reward, found.q_uu + least))
        around = LinearGaussian.around(held, self.temperature)
        sound = jnp.all(jnp.isfinite(around.cholesky)) & jnp.all(jnp.isfinite(around.gains))
        low, high = self.bounds(width.dtype)
        return Guide(
            states=jnp.where(sound, around.states, 0),
            actions=jnp.where(sound, around.actions, 0),
            gains=jnp.where(sound, around.gains, 0),
            cholesky=jnp.where(sound, around.cholesky, jnp.diag(width)),
            low=low,
            high=high,
            sound=sound,
        )


@functools.cache  # a sweep asks again in every trace
def _require_plannable(environment: ClassicControl, actions: Box, horizon: int) -> None:
    guides = Guides(environment, actions, horizon, restarts=CHECKED, temperature=1.0)
    with jax.ensure_compile_time_eval():
        key_start, key_actions = jax.random.split(jax.random.key(0))
        start = environment.initial(key_start)
        drawn = guides._drawn(key_actions, CHECKED, start.dtype)
        plans = jax.vmap(lambda actions: plan(guides._problem(), start, actions, settings=SEARCH))(drawn)
        hopeless = (plans.status == PlanStatus.NOT_POSITIVE_DEFINITE) | (plans.status == PlanStatus.NONFINITE)
        if jnp.all(hopeless):
            jax.tree.map(lambda x: x[0], plans).require_usable()
