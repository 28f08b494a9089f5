"""Demonstrations as first guides: which of them a plan starts from, what becomes of them, and who refuses them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import RunConfig, TrainOptions
from klimb.collect.demonstrations import Demonstrations
from klimb.environments.control.cartpole_swing_up import CartPoleSwingUp
from klimb.environments.control.linear_quadratic import LinearQuadratic
from klimb.environments.control.mountain_car_continuous import MountainCarContinuous
from klimb.environments.registry import make
from klimb.errors import ConfigError, DemonstrationError
from klimb.guided import guides as guides_module
from klimb.guided.first_guides import DemonstratedActions
from klimb.guided.guides import SEARCH, Guides
from klimb.guided.importance_sampled import ImportanceSampled
from klimb.guided.planning.ilqr import plan
from klimb.guided.search import GuidedPolicySearch
from klimb.improve.rule import traits_of
from klimb.policies.actions import Box, action_spec
from klimb.training.program import Program

HORIZON = 6
LENGTHS = (3, 8, 6, 1)
SAMPLED = GuidedPolicySearch(
    guiding_samples=1,
    restarts=2,
    supervised_iterations=2,
    supervised_steps=20,
    kept_iterations=2,
    subset=3,
    gradient_steps=3,
)
MIRROR = GuidedPolicySearch(method="mirror_descent", projection_epochs=2, minibatch_size=32)
SMALL = {"num_envs": 3, "num_steps": 16, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}


def recorded(environment: klimb.ClassicControl, lengths: tuple[int, ...], seed: int = 0) -> Demonstrations:
    """Episodes of random actions, some of them beyond the bounds, and of random observations."""
    rng = np.random.default_rng(seed)
    rows, actions = sum(lengths), environment.actions
    assert isinstance(actions, Box)
    width = np.where(np.isfinite(actions.high), actions.high, 1)
    ends = np.isin(np.arange(rows), np.cumsum(lengths) - 1)
    obs = rng.normal(size=(rows, *environment.observation_space.shape)).astype(np.float32)
    return Demonstrations(
        obs=obs,
        action=(width * rng.normal(size=(rows, len(actions.low)))).astype(np.float32),
        log_prob=np.full(rows, np.nan, np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        terminated=np.zeros(rows, bool),
        truncated=ends,
        next_obs=obs,
        actions=actions,
        environment=environment.id,
    )


# Which actions plans start from -------------------------------------------------------------------------------


def test_short_episodes_are_padded_and_long_ones_cut() -> None:
    pendulum = make("Pendulum-v1")
    demonstrations = recorded(pendulum, LENGTHS)
    taken = DemonstratedActions.of(demonstrations, pendulum.actions, HORIZON)
    assert taken.actions.shape == (len(LENGTHS), HORIZON, 1)
    assert (np.abs(demonstrations.action) > 2).any()
    row = 0
    for k, length in enumerate(LENGTHS):
        for t in range(HORIZON):
            expected = np.clip(demonstrations.action[row + t], -2, 2) if t < length else 0
            assert taken.actions[k, t] == expected, (k, t)
        np.testing.assert_array_equal(taken.first_obs[k], demonstrations.obs[row])
        row += length
    np.testing.assert_allclose(taken.scale, demonstrations.obs.std(axis=0))


def test_the_nearest_start_is_nearest_in_standard_deviations() -> None:
    """The second coordinate varies a hundred times as much as the first, and the third not at all."""
    pendulum = make("Pendulum-v1")
    demonstrations = recorded(pendulum, (5, 5, 5))
    obs = demonstrations.obs * np.array([0.1, 10.0, 0.0], np.float32)
    obs[[0, 5, 10]] = [[0.0, 0.0, 0.0], [0.02, 3.0, 0.0], [0.5, 0.1, 0.0]]
    taken = DemonstratedActions.of(dataclasses.replace(demonstrations, obs=obs), pendulum.actions, HORIZON)
    assert taken.scale[2] == 1
    start = jnp.array([0.03, 3.5, 0.0])
    by_hand = np.linalg.norm((obs[[0, 5, 10]] - np.asarray(start)) / np.maximum(obs.std(axis=0), 1e-9), axis=1)
    assert np.argsort(by_hand).tolist() == [1, 0, 2]
    # Without units it would be another one.
    assert np.argmin(np.linalg.norm(obs[[0, 5, 10]] - np.array([0.49, 3.5, 0.0]), axis=1)) == 1
    for count in (1, 2, 3, 8):
        np.testing.assert_array_equal(taken.nearest(start, count), taken.actions[[1, 0, 2][:count]])
    np.testing.assert_array_equal(taken.nearest(jnp.array([0.49, 3.5, 0.0]), 1), taken.actions[[2]])


# What becomes of them -----------------------------------------------------------------------------------------


def optimal_actions(environment: LinearQuadratic, state: np.ndarray, horizon: int) -> np.ndarray:
    """By the Riccati recursion, in float64."""
    a, b, q, r = (
        np.array(x)
        for x in (environment.transition, environment.control, environment.state_cost, environment.action_cost)
    )
    p, gains = np.zeros_like(q), []
    for _ in range(horizon):
        gains.append(-np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a))
        p = q + a.T @ p @ (a + b @ gains[-1])
    actions = []
    for gain in reversed(gains):
        actions.append(gain @ state)
        state = a @ state + b @ actions[-1]
    return np.array(actions)


def cost_of(environment: LinearQuadratic, state: np.ndarray, actions: np.ndarray) -> float:
    a, b, q, r = (
        np.array(x)
        for x in (environment.transition, environment.control, environment.state_cost, environment.action_cost)
    )
    total = 0.0
    for u in np.asarray(actions, float):
        total += state @ q @ state + u @ r @ u
        state = a @ state + b @ u
    return total


@pytest.mark.slow
def test_a_plan_starts_at_a_demonstration_and_ends_at_the_optimum(monkeypatch) -> None:
    environment = LinearQuadratic()
    horizon, start = 12, np.array([1.0, -0.5, 0.3, 0.2])
    near, far = start + 0.05, start - 2.0
    demonstrations = recorded(environment, (horizon, horizon))
    rng = np.random.default_rng(1)
    shown = [optimal_actions(environment, x, horizon) + 0.1 * rng.normal(size=(horizon, 2)) for x in (far, near)]
    obs = demonstrations.obs.copy()
    obs[0], obs[horizon] = far, near
    demonstrations = dataclasses.replace(demonstrations, obs=obs, action=np.concatenate(shown).astype(np.float32))
    box = action_spec(environment.action_space)
    assert isinstance(box, Box)
    taken = DemonstratedActions.of(demonstrations, box, horizon)
    guides = Guides(environment, box, horizon, restarts=1, temperature=0.01, demonstrated=taken)

    def planned(iterations: int) -> np.ndarray:
        """The search's first iterations alone; the number of them is data, so nothing is compiled again."""
        monkeypatch.setattr(guides_module, "SEARCH", SEARCH._replace(max_iterations=iterations))
        return np.asarray(guides.planned(jax.random.key(0), jnp.asarray(start, jnp.float32)))

    np.testing.assert_array_equal(planned(0), taken.actions[1])
    found, best = planned(50), optimal_actions(environment, start, horizon)
    np.testing.assert_allclose(found, best, atol=2e-4)
    assert cost_of(environment, start, found) < cost_of(environment, start, shown[1])
    assert cost_of(environment, start, found) == pytest.approx(cost_of(environment, start, best), rel=1e-6)


def return_of(guides: Guides, actions: jax.Array, start: jax.Array) -> float:
    return float(jnp.sum(guides.run(jax.random.key(0), lambda key, t, x: actions[t], start).reward))


def shown_once(guides: Guides, start: jax.Array, actions: jax.Array) -> Guides:
    """The same with one demonstration."""
    first = np.asarray(guides.environment.observe(start))[None]
    taken = DemonstratedActions(first, np.asarray(actions)[None], np.ones(first.shape[1], np.float32))
    return dataclasses.replace(guides, demonstrated=taken)


@pytest.mark.slow
def test_a_bonus_without_a_slope_is_found_where_a_demonstration_has_been() -> None:
    """Rocking with full force in the direction of motion brings the car to the goal after the first stage's steps."""
    car = MountainCarContinuous()
    without = Guides(car, action_spec(car.action_space), 150, restarts=4, temperature=0.01)
    there, here = jnp.array([-0.45, 0.0]), jnp.array([-0.47, 0.0])
    rocking = without.run(jax.random.key(0), lambda key, t, x: jnp.where(x[1:] >= 0, 1.0, -1.0), there)
    assert int(rocking.alive.sum()) > guides_module.FIRST_STAGE
    actions = jnp.where(rocking.alive[:, None], rocking.action, 0)
    replayed = return_of(without, actions, here)
    planned = [
        return_of(guides, guides.planned(jax.random.key(0), here), here)
        for guides in (shown_once(without, there, actions), without)
    ]
    assert planned[0] > replayed > 80
    assert planned[1] <= 0


@pytest.mark.slow
def test_a_swing_up_shown_from_one_start_is_found_from_another() -> None:
    """Though the actions that balanced the pole there, let alone the search from them, do not balance it here."""
    environment = CartPoleSwingUp()
    guides = Guides(environment, action_spec(environment.action_space), 150, restarts=4, temperature=0.01)
    there, here = (environment.initial(jax.random.key(seed)) for seed in (0, 1))
    actions = jax.jit(guides.planned)(jax.random.key(0), there)
    best = return_of(guides, actions, there)
    demonstrated = shown_once(guides, there, actions)
    found = return_of(guides, jax.jit(demonstrated.planned)(jax.random.key(0), here), here)
    searched = plan(guides._problem(), here, actions, settings=SEARCH).actions
    assert return_of(guides, searched, here) < best - 20
    assert found > best - 5


# Trainings ----------------------------------------------------------------------------------------------------


def train_pendulum(rule: GuidedPolicySearch, demonstrations: Demonstrations, **options: object) -> klimb.Run:
    return klimb.train("Pendulum-v1", rule, demonstrations=demonstrations, env_steps=1, **{**SMALL, **options})


def test_mirror_descent_has_no_use_for_them(tmp_path) -> None:
    demonstrations = recorded(make("Pendulum-v1"), (4,))
    with pytest.raises(ConfigError, match=r"mirror_descent .* --method importance_sampling, or clone .* --init-from"):
        train_pendulum(MIRROR, demonstrations, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rule", [SAMPLED, MIRROR], ids=["sampled", "mirror"])
def test_those_of_another_task_are_refused(rule: GuidedPolicySearch) -> None:
    with pytest.raises(DemonstrationError, match=r"observations of shape \(5,\); jax:Pendulum-v1 gives \(3,\)"):
        train_pendulum(rule, recorded(make("CartPoleSwingUp-v0"), (4,)))
    wider = dataclasses.replace(recorded(make("Pendulum-v1"), (4,)), actions=Box((-9.0,), (9.0,)))
    with pytest.raises(DemonstrationError, match=r"has the actions .* takes"):
        train_pendulum(rule, wider)


def test_nobody_has_to_be_cloned_for_them() -> None:
    with pytest.raises(
        ConfigError, match=r"guided does not use demonstrator, because it computes no importance weights"
    ):
        train_pendulum(SAMPLED, recorded(make("Pendulum-v1"), (4,)), demonstrator="cloned")


@pytest.mark.slow  # to bind the rule is to try the planner
def test_they_reach_the_guides_and_not_the_batch() -> None:
    pendulum = make("Pendulum-v1")
    options = TrainOptions(**SMALL, env_steps=144, demonstrations="them")
    config = RunConfig("Pendulum-v1", SAMPLED, options)
    config.check_demonstrations()
    program = Program(config, pendulum, demonstrations=recorded(pendulum, (20, 7, 9)))
    assert traits_of(SAMPLED).learns_from == "both"
    assert program.demonstrations is None
    rule = program.iteration.rule
    assert isinstance(rule, ImportanceSampled)
    assert rule.guides.demonstrated is not None
    assert rule.guides.demonstrated.actions.shape == (3, 16, 1)
