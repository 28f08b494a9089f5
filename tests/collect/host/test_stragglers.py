"""Workers that are late hand over what they have: the rest is not valid, and nothing of an episode is lost."""

from __future__ import annotations

import itertools
from typing import get_args

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, ConfigError
from klimb.collect.host import stepping
from klimb.collect.host.collector import HostRollout, complete
from klimb.collect.host.stepping import Columns, Stepper
from klimb.environments.adapters.gymnasium import GymnasiumVector
from klimb.environments.seeds import environment_seeds
from klimb.estimate.advantages import AdvantageKind, normalise
from klimb.estimate.estimator import Estimator
from klimb.policies.actions import action_spec
from klimb.policies.critic import Critic
from klimb.policies.networks import NetworkPolicy
from klimb.report.page import write_report
from klimb.types import Rollout
from slow_environment import EPISODE, MODULE, SLOW_SEED

STEPS, ENVS = 6, 4
MADE = np.array([6, 3, 1, 3])


class Clock:
    """A second passes with every step."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def test_cut_rollouts_are_one_long_rollout_in_parts(monkeypatch):
    """The copies go on from where they are: the rows that were made are those of a rollout without a limit."""
    clock = Clock()
    monkeypatch.setattr(stepping, "time", clock)
    cartpole = klimb.make("gymnasium:CartPole-v1")

    def rolled(limits, steps):
        stepper = Stepper(GymnasiumVector(lambda: gymnasium.make("CartPole-v1"), 4), slice(None), 2)
        stepper.start_from(stepper.vector.reset(np.arange(4)))
        columns = Columns.empty(Columns.layout((steps, 2, 2), cartpole.observations, cartpole.actions))
        parts = []

        def decide(t, obs, carry):
            clock.now += 1.0
            action = (obs[..., 2] > 0).astype(np.int32)
            return action, action, carry

        for seconds in limits:
            for column in columns:
                column[:] = 1  # of the last rollout
            made = stepper.roll(decide, columns, seconds)
            assert made == (steps if seconds is None else max(1, min(seconds, steps)))
            assert all((column[made:] == 0).all() for column in columns.rows)
            assert columns.valid[:made].all()
            own = [np.array(column[:made]) for column in columns.rows]
            parts.append([*own, next_obs_of(columns)[:made]])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    limits = [5.0, 16.0, 0.5, 40.0, 3.0, 16.0, 1.0]
    total = 5 + 16 + 1 + 16 + 3 + 16 + 1
    expected, actual = rolled([None], total), rolled(limits, 16)
    assert expected[3].any(), "no episode ends in the rollout"
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def next_obs_of(columns):
    """The true successors of all rows, `[T, K, N, ...]`."""
    names = {name: column for name, column in columns._asdict().items() if name not in ("derivatives", "carry")}
    of_a_seed = jax.vmap(lambda x: Rollout(**x, log_prob=x["reward"]).next_obs, in_axes=1, out_axes=1)
    return np.asarray(of_a_seed(names))


@pytest.fixture(scope="module")
def networks():
    policy = NetworkPolicy(3, action_spec(gymnasium.spaces.Discrete(2)), hidden=(4,), key=jax.random.key(0))
    return policy, Critic(3, hidden=(4,), key=jax.random.key(1))


def rollout_of(networks, columns, time):
    policy, static = eqx.partition(networks[0], eqx.is_array)
    return complete(static, policy, jax.tree.map(jnp.asarray, HostRollout(columns, time)))


def rows_made(rows, next_obs, made):
    """The first steps of every column, `[T, N]`; those that were not made are blank.

    rows: the other columns of all steps. next_obs: the true successors. made: steps of each of the N columns.
    """
    steps = len(next_obs)
    blank = [np.zeros_like(row) for row in rows]
    is_made = np.arange(steps)[:, None] < made
    own = [np.where(is_made.reshape(steps, -1, *(1,) * (x.ndim - 2)), x, y) for x, y in zip(rows, blank, strict=True)]
    step, successor = np.full((steps, len(made)), steps, np.int32), np.zeros_like(next_obs)
    for n, count in enumerate(made):
        ends = np.flatnonzero((own[3] | own[4])[: steps - 1, n])
        kept = np.concatenate([[count - 1], ends[: steps - 1]])
        step[: len(kept), n], successor[: len(kept), n] = kept, next_obs[kept, n]
    return Columns(*own, np.zeros((1, len(made), 0), np.float32), step, successor)


@pytest.fixture(scope="module")
def columns():
    """From the steps that each column has made to its columns: random, and some of the steps end an episode."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(STEPS + 1, ENVS, 3)).astype(np.float32)
    terminated, truncated = rng.random((2, STEPS, ENVS)) < 0.15
    ended = terminated | truncated
    next_obs = np.where(ended[..., None], rng.normal(size=(STEPS, ENVS, 3)), obs[1:]).astype(np.float32)
    valid = np.ones((STEPS, ENVS), bool)
    valid[1, 0] = False  # a fault, in a column that is not late
    rows = (
        obs[:-1], rng.integers(0, 2, (STEPS, ENVS)), rng.normal(size=(STEPS, ENVS)).astype(np.float32), terminated,
        truncated & ~terminated, valid, np.zeros((STEPS, ENVS, 0), np.float32),
    )  # fmt: skip

    def alone(n):
        made = MADE[n]
        return rows_made([row[:made, n : n + 1] for row in rows], next_obs[:made, n : n + 1], [made])

    return rows_made(rows, next_obs, MADE), alone


BY_COLUMN = ("gae", "n_step", "value_baseline", "reward_to_go", "total_return")
KINDS = list(itertools.product(BY_COLUMN, ["value", None]))


@pytest.mark.parametrize(
    ("advantage", "bootstrap"),
    [pytest.param(a, b, marks=() if (a, b) == ("gae", "value") else pytest.mark.slow) for a, b in KINDS],
)
def test_a_column_that_is_cut_off_equals_that_of_a_shorter_rollout(networks, columns, advantage, bootstrap):
    """Advantages and targets of every late column, against those of a rollout that has only its steps."""
    assert set(BY_COLUMN) < set(get_args(AdvantageKind))
    cut, alone = columns
    time = np.broadcast_to(np.arange(STEPS, dtype=np.int32)[:, None], (STEPS, ENVS))
    critic = networks[1]

    def batch(rollout, normalize=False):
        estimator = Estimator(
            advantage=advantage, bootstrap=bootstrap, gamma=0.9, n_step=3, normalize_advantage=normalize
        )
        return estimator.estimate(rollout, *estimator.values(critic, rollout), fraction_done=0.0)

    late = batch(rollout_of(networks, cut, time))
    np.testing.assert_array_equal(late.weight.reshape(STEPS, ENVS), cut.valid)
    short = []
    for n, made in enumerate(MADE):
        own = batch(rollout_of(networks, alone(n), time[:made, n : n + 1]))
        short.append(own)
        for name in ("advantage", "value_target", "log_prob", "obs", "action"):
            column = getattr(late, name).reshape(STEPS, ENVS, *getattr(late, name).shape[1:])[:made, n]
            np.testing.assert_allclose(column, getattr(own, name), rtol=1e-5, atol=1e-6, err_msg=name)
    # Normalised over the steps that were made, and over nothing else.
    advantages, weights = (jnp.concatenate([getattr(own, x) for own in short]) for x in ("advantage", "weight"))
    centre = advantage not in ("reward_to_go", "total_return")
    expected = normalise(advantages, weights, centre=centre).advantage
    actual = batch(rollout_of(networks, cut, time), normalize=True).advantage.reshape(STEPS, ENVS)
    edges = itertools.pairwise(np.concatenate([[0], np.cumsum(MADE)]))
    for n, (begin, end) in enumerate(edges):
        where = np.asarray(cut.valid[: MADE[n], n])
        np.testing.assert_allclose(actual[: MADE[n], n][where], expected[begin:end][where], rtol=1e-4, atol=1e-5)


OPTIONS = {
    "num_envs": 4, "num_steps": 16, "hidden": (4,), "critic_hidden": (4,), "critic_epochs": 1,
    "critic_num_minibatches": 1, "workers": 2, "straggler_timeout": 0.15, "env_steps": 160,
}  # fmt: skip


@pytest.fixture
def slow_one(tmp_path, monkeypatch):
    (tmp_path / "slow_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(SLOW_SEED, str(environment_seeds(0, 0, 4)[3]))
    return "slow_for_tests:Slow-v0"


def require_late(run):
    """One of two workers is late in every iteration; nothing of an episode is lost."""
    assert run.ended.reason == "complete"
    late, steps = ([record[name] for record in run.history] for name in ("late_rows", "env_steps"))
    # The first rollout of a training sets the observation statistics.
    assert all(made == 64 - missing for made, missing in zip(np.diff(steps), late[1:], strict=True))
    assert all(0 < missing <= 2 * 15 for missing in late), late
    assert steps[-1] >= 160 > steps[-2]
    # Episodes that are cut by the ends of rollouts are counted with all their steps and rewards.
    ended = [record for record in run.history if record["episodes"] > 0]
    assert ended
    assert all(record["episode_return"] == record["episode_length"] == EPISODE for record in ended)


def test_a_late_worker(slow_one, tmp_path, caplog):
    rule = PPO(epochs=1, num_minibatches=2)
    run = klimb.train(slow_one, rule, run_dir=tmp_path / "run", **OPTIONS)
    require_late(run)
    assert caplog.text.count("a worker was late: after 0.15 s environment 2 had made") == 1
    assert "this training can't be repeated exactly" in caplog.text
    assert "their rows are excluded from the training" in write_report(tmp_path / "run").read_text()


@pytest.mark.slow
def test_a_late_worker_beside_the_update_and_after_a_resume(slow_one, tmp_path):
    rule = PPO(epochs=1, num_minibatches=2)
    require_late(klimb.train(slow_one, rule, run_dir=tmp_path / "run", overlap=True, **OPTIONS))
    run = klimb.resume(tmp_path / "run", env_steps=320, trust_environment=True)
    assert run.history[-1]["env_steps"] >= 320
    run = klimb.resume(tmp_path / "run", env_steps=480, straggler_timeout=0.3, trust_environment=True)
    assert run.history[-1]["env_steps"] >= 480
    with pytest.raises(ConfigError, match=r"straggler_timeout can't be left out again: .* give one that no worker"):
        klimb.resume(tmp_path / "run", env_steps=640, straggler_timeout=None, trust_environment=True)


@pytest.mark.slow
def test_without_it_nothing_is_recorded():
    options = {**OPTIONS, "straggler_timeout": None, "env_steps": 64, "workers": 1}
    assert (
        "late_rows" not in klimb.train("gymnasium:CartPole-v1", PPO(epochs=1, num_minibatches=1), **options).history[-1]
    )


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("jax:CartPole-v1", {}, "is compiled: no worker can be late; leave --straggler-timeout off"),
        ("gymnasium:CartPole-v1", {"workers": 0}, "is stepped in this one: give --workers 1 or more"),
        ("gymnasium:CartPole-v1", {"batch": "episodes"}, "needs whole episodes"),
        ("gymnasium:CartPole-v1", {"env_timeout": 0.1}, r"0\.15 is not less than env_timeout = 0\.1"),
        ("gymnasium:CartPole-v1", {"straggler_timeout": 0.0}, "greater than 0"),
    ],
)
def test_where_no_worker_can_be_late(env, options, message):
    with pytest.raises(ConfigError, match=message):
        klimb.train(env, PPO(), **{**OPTIONS, **options})
