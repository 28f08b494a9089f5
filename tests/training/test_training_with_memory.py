"""Policies with memory in trainings: in every kind of environment, resumed, evaluated, and better than without."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hidden_velocities import HiddenVelocities
from t_maze import TMaze

import klimb
from klimb import (
    PPO,
    TRPO,
    BehaviourCloning,
    Categorical,
    GuidedPolicySearch,
    OffPolicyGradient,
    RunConfig,
    TrainOptions,
)
from klimb.collect.compiled import CompiledCollector
from klimb.errors import ConfigError
from klimb.policies.memory import Memory
from klimb.policies.policy import action_distribution
from klimb.training.program import Program
from memory_tasks import Counting
from problems import assert_same_bits, without_timing

HOST = "gymnasium:CartPole-v1"
SMALL = {"num_envs": 4, "num_steps": 16, "hidden": (8,), "memory_size": 6, "critic_epochs": 1}
SMALL |= {"critic_num_minibatches": 2, "eval_episodes": 0}


class ShortMaze(TMaze):
    length = 8
    max_episode_steps = 40


def stopped(name, rule, directory, **options):
    klimb.train(
        name, rule, run_dir=directory, callback=lambda run: run.stop() if run.iteration == 2 else None, **options
    )


@pytest.mark.parametrize("chunk_steps", [None, 4])
def test_ratios_to_the_policy_that_collected_are_exactly_one(chunk_steps):
    """The replay of a compiled rollout has the log-probs that stepping had, and the memory at each part's start."""
    env = TMaze()
    policy = klimb.NetworkPolicy(
        env.observations, env.actions, hidden=(8,), memory="lstm", memory_size=6, key=jax.random.key(0)
    )
    memory = Memory(policy.carry_size, chunk_steps)
    collector = CompiledCollector(env, 3, 100, memory=memory)
    collect = jax.jit(collector.collect)
    state, first, _ = collect(jax.random.key(1), policy, collector.init(jax.random.key(2)))
    _, rollout, _ = collect(jax.random.key(3), policy, state)
    assert rollout.carry.shape == (memory.parts(100), 3, 12)
    np.testing.assert_array_equal(rollout.carry[0], state.carry)
    assert not first.carry[0].any()
    assert state.carry.any()
    assert (rollout.terminated | rollout.truncated).any()
    replayed = jax.jit(lambda r: action_distribution(policy, r.inputs).log_prob(r.action.reshape(-1)))(rollout)
    np.testing.assert_array_equal(replayed, rollout.log_prob.reshape(-1))
    carry = state.carry
    for t in range(100):
        carry = jnp.where(rollout.begins[t][:, None], 0, carry)
        distribution, carry = policy.step(rollout.obs[t], carry)
        log_prob = distribution.log_prob(rollout.action[t])
        np.testing.assert_allclose(log_prob, rollout.log_prob[t], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CartPole-v1", HOST])
@pytest.mark.parametrize(("rule", "batch"), [(TRPO(), "steps"), (PPO(num_minibatches=2), "episodes")])
def test_an_interrupted_run_resumes_to_the_same_bytes(name, rule, batch, tmp_path):
    """What is remembered is part of the checkpoint. The policy is read back from its file."""
    options = {**SMALL, "memory": "gru", "chunk_steps": 8, "batch": batch, "env_steps": 256, "workers": 0}
    whole = klimb.train(name, rule, run_dir=tmp_path / "whole", **options)
    stopped(name, rule, tmp_path / "cut", **options)
    resumed = klimb.resume(tmp_path / "cut")
    assert_same_bits(resumed.policy, whole.policy)
    assert without_timing(resumed.history) == without_timing(whole.history)
    assert_same_bits(klimb.load_policy(tmp_path / "cut"), whole.policy)


@pytest.mark.slow
def test_workers_remember_as_this_process():
    """In NumPy, and for a class of one's own by its program."""
    for given in ({"memory": "lstm"}, {"policy": Counting(jnp.asarray(0.5), 2), "critic_epochs": 2}):
        runs = [klimb.train(HOST, TRPO(), **{**SMALL, "env_steps": 256, "workers": n, **given}) for n in (0, 2)]
        one, other = ([record["episode_return"] for record in run.history] for run in runs)
        np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.slow
def test_a_seed_among_others_is_that_seed_alone():
    options = {**SMALL, "memory": "gru", "env_steps": 192}
    runs = [klimb.train("CartPole-v1", TRPO(), seed=s, num_seeds=n, **options) for s, n in ((0, 2), (1, 1))]
    for one, other in zip(jax.tree.leaves(runs[0].policies[1]), jax.tree.leaves(runs[1].policy), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_old_rollouts_are_learned_from_again():
    """A history keeps what was remembered at the start of each of them."""
    run = klimb.train(HOST, OffPolicyGradient(history=2), env_steps=256, workers=0, memory="gru", **SMALL)
    assert np.isfinite([record["kl_old_new"] for record in run.history]).all()


def test_evaluations_remember_within_an_episode_and_not_beyond():
    """The log-probs of a policy that counts its steps."""
    for env, actions in ((TMaze(), 3), (klimb.make(HOST), 2)):
        recorded = klimb.record(Counting(jnp.asarray(0.1), actions), env, episodes=4)
        starts = np.cumsum(recorded.lengths) - recorded.lengths
        count = 1 + np.arange(len(recorded.reward)) - np.repeat(starts, recorded.lengths)
        logits = 0.1 * np.stack([recorded.obs[:, 0], count, np.zeros(len(count))], axis=1)[:, :actions]
        expected = np.take_along_axis(scipy.special.log_softmax(logits, axis=1), recorded.action[:, None], axis=1)
        np.testing.assert_allclose(recorded.log_prob, expected[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_was_recorded_is_cloned(tmp_path):
    """Episodes of a policy with memory, by one with another: the signal of the first step decides the last."""
    env = ShortMaze()
    options = {"hidden": (16,), "eval_episodes": 0, "demonstrations": perfect_demonstrations(env, 64)}
    rule = BehaviourCloning(max_epochs=100, holdout_patience=100, learning_rate=1e-2, minibatch_size=128)
    with_memory = klimb.train(env, rule, memory="lstm", memory_size=16, **options)
    without = klimb.train(env, rule, **options)
    assert klimb.evaluate(with_memory.policy, env, episodes=50).mean > 0.9
    assert klimb.evaluate(without.policy, env, episodes=50).mean < 0.5


def perfect_demonstrations(env, episodes):
    """Episodes that turn as the first step says."""
    rows = {name: [] for name in ("obs", "action", "reward", "terminated", "next_obs")}
    step = jax.jit(env.step)
    for seed in range(episodes):
        place, obs = env.reset(jax.random.key(seed))
        for t in range(env.length + 1):
            action = 0 if t < env.length else 1 if bool(place.left) else 2
            after = step(jax.random.key(0), place, jnp.int32(action))
            for name, value in zip(rows, (obs, action, after.reward, after.terminated, after.obs), strict=True):
                rows[name].append(np.asarray(value))
            place, obs = after.state, after.obs
        assert float(after.reward) == 1.0
    columns = {name: np.stack(values) for name, values in rows.items()}
    return klimb.Demonstrations(
        **{**columns, "action": columns["action"].astype(np.int32)},
        truncated=np.zeros(len(columns["reward"]), bool),
        log_prob=np.zeros(len(columns["reward"]), np.float32),
        actions=env.actions,
        environment=env.id,
        source="by hand",
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rule", [TRPO(), pytest.param(PPO(), marks=pytest.mark.long)])
def test_the_t_maze_is_learned_with_memory_alone(rule):
    """Without memory no policy gets more than 0 on average; an untrained one gets less."""
    env = ShortMaze()
    options = {"env_steps": 60_000, "num_envs": 32, "num_steps": 48, "hidden": (16,), "eval_episodes": 0}
    options |= {"memory_size": 16}

    def score(run):
        return klimb.evaluate(run.policy, env, episodes=200, deterministic=False).mean

    assert score(klimb.train(env, rule, memory="gru", **{**options, "env_steps": 1})) < -1
    assert score(klimb.train(env, rule, memory="gru", **options)) > 0.9
    assert score(klimb.train(env, rule, **options)) < 0.3


def test_velocities_are_hidden():
    env = klimb.make(f"{HOST}+hidden_velocities:HiddenVelocities").make()
    full, _ = env.unwrapped.reset(seed=0)
    seen, _ = env.reset(seed=0)
    assert isinstance(env, HiddenVelocities)
    np.testing.assert_array_equal(seen, full[[0, 2]])


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (TRPO(), {"chunk_steps": 5, "memory": "gru"}, "not divisible by chunk_steps = 5: choose chunk_steps = 4"),
        (TRPO(), {"chunk_steps": 4}, "chunk_steps is for a policy with memory"),
        (PPO(num_minibatches=8), {"memory": "gru"}, "4 of them .* are not divisible by num_minibatches = 8"),
        (PPO(num_minibatches=8), {"policy": Counting(jnp.asarray(1.0), 2)}, "4 of them .* by num_minibatches = 8"),
        (TRPO(), {"policy": Counting(jnp.asarray(1.0), 2), "critic_num_minibatches": 16}, None),
        (TRPO(), {"memory": "gru", "critic_num_minibatches": 16}, "by critic_num_minibatches = 16"),
        (TRPO(), {"memory": "gru", "straggler_timeout": 1.0, "workers": 1}, "memory needs all of them"),
        (TRPO(), {"memory": "gru", "critic_memory": False, "policy": Counting(jnp.asarray(1.0), 2)}, None),
        (TRPO(), {"memory": "gru", "exploration": "gsde"}, "exploration = gsde makes noise from what the policy sees"),
    ],
)
def test_what_does_not_go_with_memory_is_said(rule, options, message):
    env = "gymnasium:CartPole-v1" if "workers" in options else "CartPole-v1"
    arguments = {**SMALL, "env_steps": 64, **options}
    if message is None:
        klimb.train(env, rule, **arguments)
        return
    with pytest.raises(ConfigError, match=message):
        klimb.train(env, rule, **arguments)


class Growing(Counting):
    """Its carry is longer after a step than before it."""

    def step(self, obs, carry):
        distribution, _ = super().step(obs, carry)
        return distribution, jnp.zeros(2)


class Holding(Counting):
    """It holds its noise, too."""

    held_noise = (3, 1)

    def explore(self, obs, held):
        return self(obs), held[0]


class Unknown(eqx.Module):
    """How much it remembers stands in an array."""

    weight: jax.Array

    @property
    def carry_size(self):
        return self.weight.shape[0]

    def step(self, obs, carry):
        return Categorical(logits=self.weight[:2]), carry

    def __call__(self, obs):
        return self.step(obs, jnp.zeros(self.carry_size))[0]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Growing(jnp.asarray(1.0), 2), r"returns a carry of shape \[2\].*has to return 1 numbers"),
        (Holding(jnp.asarray(1.0), 2), "has memory and holds noise for several steps"),
        (Unknown(jnp.zeros(3)), "carry_size that depends on its arrays"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, eqx.Module) else "",
)
def test_what_is_wrong_with_a_class_of_ones_own_is_said(policy, message):
    with pytest.raises(ConfigError, match=message):
        klimb.train("CartPole-v1", TRPO(), policy=policy, **{**SMALL, "env_steps": 64})


def test_a_critic_remembers_as_the_policy_that_a_training_starts_from(tmp_path):
    env = klimb.make("CartPole-v1")
    policy = klimb.NetworkPolicy(
        env.observations, env.actions, hidden=(8,), memory="lstm", memory_size=3, key=jax.random.key(0)
    )
    klimb.save_policy(policy, tmp_path / "policy")
    for options, size in (({}, 6), ({"memory": "gru"}, 6), ({"critic_memory": False}, None)):
        config = RunConfig("CartPole-v1", TRPO(), TrainOptions(**SMALL, env_steps=64, init_from="there", **options))
        assert Program(config, env, policy).iteration.critic_static.carry_size == size


def test_values_that_can_not_be_trained_are_refused_before_a_sweep_begins():
    """4 environments of one sequence each are no 8 minibatches."""
    options = {**SMALL, "memory": "gru", "env_steps": 64}
    with pytest.raises(ConfigError, match="num_minibatches = 8"):
        klimb.sweep("CartPole-v1", PPO(epochs=1), {"num_minibatches": [8, 4]}, **options)


def test_planning_rules_take_no_memory():
    with pytest.raises(ConfigError, match="plans with states"):
        klimb.train("Pendulum-v1", GuidedPolicySearch(), memory="gru", env_steps=10_000)


def test_demonstrations_are_cloned_first():
    demonstrations = perfect_demonstrations(TMaze(), 2)
    with pytest.raises(ConfigError, match="clone them first"):
        klimb.train(
            TMaze(), OffPolicyGradient(), memory="gru", demonstrations=demonstrations, **{**SMALL, "env_steps": 64}
        )
