"""The trust region holds for the policies that act: what a step reports is how far apart two rollouts' policies are."""

from __future__ import annotations

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from acting_policy import watched_run
from klimb import (
    AWR,
    PPO,
    REPS,
    TRPO,
    VMPO,
    ConservativePolicyIteration,
    DualDescent,
    GuidedPolicySearch,
    KLPenalty,
    NaturalGradient,
    OffPolicyGradient,
    Reinforce,
)
from klimb.improve.rule import traits_of

SMALL = dict(num_envs=4, num_steps=64, env_steps=4 * 64 * 8, hidden=(8,), critic_epochs=2, critic_num_minibatches=2)


RULES = {
    "trpo": TRPO(),
    "natural_gradient": NaturalGradient(),
    "ppo": PPO(learning_rate=3e-3, epochs=2),
    "reinforce": Reinforce(),
    "off_policy_gradient": OffPolicyGradient(),
    "kl_penalty": KLPenalty(learning_rate=3e-3),
    "dual_descent": DualDescent(learning_rate=3e-3),
    "conservative_policy_iteration": ConservativePolicyIteration(learning_rate=3e-3),
    "reps": REPS(learning_rate=3e-3),
    "v_mpo": VMPO(learning_rate=3e-3),
    "awr": AWR(learning_rate=3e-3),
    "mirror_descent": GuidedPolicySearch(method="mirror_descent"),
}
ENVIRONMENTS = [
    "jax:CartPole-v1",
    "jax:Pendulum-v1",
    "jax:MountainCarContinuous-v0",
    "jax:LinearQuadratic-v0",
    "jax:FrozenLake-v1",
    "gymnasium:HalfCheetah-v5",
    "gymnasium:Ant-v5",
]
QUICK = {("trpo", "jax:Pendulum-v1")}
CASES = [("trpo", env) for env in ENVIRONMENTS] + [
    (rule, env)
    for rule in RULES
    if rule != "trpo"
    for env in ("jax:Pendulum-v1", "gymnasium:HalfCheetah-v5")
    if env.startswith("jax:") or rule in ("ppo", "natural_gradient", "v_mpo")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "env"), [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_the_step_reported_is_the_one_between_the_policies_that_act(rule, env):
    """And an enforced limit holds for them from the first iteration on, but for what clipped observations add."""
    history = watched_run(env, RULES[rule], **SMALL)
    limit = traits_of(RULES[rule]).kl
    assert len(history) >= 3
    for reported, following in itertools.pairwise(history):
        # √KL is a distance to second order: what clipping adds, it adds there.
        root = np.sqrt(reported["kl_old_new"])
        clipped = (root + np.sqrt(max(reported["kl_normalizer"], 0))) ** 2 - root**2
        assert following["acting_old_new"] <= reported["kl_old_new"] * 1.001 + clipped + 1e-6
        if clipped < 1e-3 * reported["kl_old_new"]:
            assert following["acting_old_new"] == pytest.approx(reported["kl_old_new"], rel=1e-2, abs=1e-6)
        if limit.enforced:
            assert following[f"acting_{limit.direction}"] <= limit.limit * 1.001 + clipped + 1e-6
    # The steps are no trifle: what is compared is not rounding.
    assert max(record["kl_old_new"] for record in history) > 1e-4


@pytest.mark.slow
def test_statistics_come_from_a_rollout_before_the_first_iteration():
    """Its steps are counted; the first step is taken by a network that sees scaled observations."""
    rows = 4 * 64
    history = klimb.train("CartPole-v1", Reinforce(), **SMALL).history
    assert [record["env_steps"] for record in history] == [rows * (k + 2) for k in range(8)]
    plain = klimb.train("CartPole-v1", Reinforce(), normalize_observations=False, **SMALL).history
    assert [record["env_steps"] for record in plain] == [rows * (k + 1) for k in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("env", ["jax:Pendulum-v1", pytest.param("gymnasium:Pendulum-v1", marks=pytest.mark.slow)])
def test_the_first_statistics_are_those_of_the_first_policys_observations(env):
    """Before the first step the network has its fresh weights, and mean and deviation of one rollout."""
    run = klimb.train(env, klimb.TRPO(max_kl=1e-12), **{**SMALL, "env_steps": 1})
    normalizer = run.policy.encoder.normalizer
    assert normalizer.count == 2 * 4 * 64
    fresh = klimb.NetworkPolicy(3, run.policy.actions, hidden=(8,), key=jax.random.key(0))
    # The statistics of the second rollout have been absorbed: the same function of the scaled observations.
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(50, 3)), jnp.float32)
    mean = np.asarray(run.policy(obs).mean)
    assert np.abs(mean - np.asarray(fresh(obs).mean)).max() < 0.1
    assert float(normalizer.scale[2]) > 0.5


@pytest.mark.slow
def test_a_policy_that_was_trained_before_keeps_its_statistics(tmp_path):
    first = klimb.train("Pendulum-v1", TRPO(), run_dir=tmp_path / "first", **SMALL)
    again = klimb.train("Pendulum-v1", TRPO(), init_from=str(tmp_path / "first"), **SMALL)
    assert eqx.tree_equal(again.policy.encoder, first.policy.encoder)
    assert again.history[0]["kl_normalizer"] == 0
