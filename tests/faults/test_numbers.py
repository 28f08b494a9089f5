"""NaN and infinity: the step is rejected and the run continues from finite parameters, or stops with the cause."""

from __future__ import annotations

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import (
    PPO,
    TRPO,
    Batch,
    KLPenalty,
    NaturalGradient,
    NetworkPolicy,
    Reinforce,
    Status,
    TrainingFailed,
    Transition,
)
from klimb.environments.base import CompiledEnvironment
from klimb.environments.control.cartpole import CartPole
from klimb.improve.warm_up import take_step
from klimb.policies.actions import Box, Discrete
from problems import slow_except

SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}
fault = pytest.mark.fault


class Spoiled(CompiledEnvironment):
    """CartPole with one step in a hundred, or all of them, not as it should be."""

    id = "test:Spoiled"

    @property
    def observation_space(self):
        return CartPole().observation_space

    @property
    def action_space(self):
        return CartPole().action_space

    def __init__(self, what: str, value: float, often: float = 0.01) -> None:
        self.what, self.value, self.often = what, value, often

    def reset(self, key):
        return CartPole().reset(key)

    def step(self, key, state, action):
        after = CartPole().step(key, state, action)
        bad = jax.random.bernoulli(jax.random.fold_in(key, 7), self.often)
        spoiled = jnp.where(bad, self.value, getattr(after, self.what))
        return after._replace(**{self.what: spoiled})


def finite(tree) -> bool:
    arrays = [x for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return all(bool(jnp.isfinite(x).all()) for x in arrays)


@pytest.mark.parametrize(
    ("what", "value", "rejected"),
    [
        pytest.param(
            "reward",
            jnp.nan,
            True,
            marks=[
                pytest.mark.slow,
                fault("a reward is NaN", "the step is rejected as NONFINITE and counted; the next one is taken"),
            ],
        ),
        pytest.param(
            "reward",
            -jnp.inf,
            True,
            marks=[
                pytest.mark.slow,
                fault("a reward is infinite", "the step is rejected as NONFINITE and counted; the next one is taken"),
            ],
        ),
        pytest.param(
            "reward",
            1e30,
            False,
            marks=[
                pytest.mark.slow,
                fault("a reward is 1e30", "steps continue; the critic skips that batch and stays finite"),
            ],
        ),
        pytest.param(
            "obs",
            jnp.nan,
            True,
            marks=[
                pytest.mark.slow,
                fault("an observation is NaN", "the step is rejected; the observation normaliser ignores the row"),
            ],
        ),
        pytest.param(
            "obs",
            jnp.inf,
            True,
            marks=[
                pytest.mark.slow,
                fault("an observation is infinite", "the step is rejected; the normaliser ignores the row"),
            ],
        ),
        pytest.param(
            "obs",
            1e25,
            False,
            marks=[
                pytest.mark.slow,
                fault("an observation is 1e25", "the normaliser ignores a batch whose variance overflows"),
            ],
        ),
    ],
)
def test_a_spoiled_step_costs_one_batch(what, value, rejected, tmp_path):
    path = tmp_path / "run"
    run = klimb.train(Spoiled(what, value), TRPO(), run_dir=path, **SMALL, env_steps=16 * 128)
    statuses = [record["status"] for record in run.history]
    assert ("NONFINITE" in statuses) == rejected, statuses
    assert "ACCEPTED" in statuses[statuses.index("NONFINITE") if rejected else 0 :]
    state = run.state
    assert finite((state.policy, state.critic, state.rule_state, state.critic_state))
    assert all(np.isfinite(record["kl_old_new"]) for record in run.history if record["status"] == "ACCEPTED")
    if rejected:
        page = klimb.write_report(path).read_text()
        assert "NONFINITE" in page


@pytest.mark.slow
@fault(
    "every reward is NaN",
    "after max_rejections steps in a row the run stops with the cause, the remedy and a checkpoint",
)
def test_a_run_that_only_fails_is_stopped(tmp_path):
    path = tmp_path / "run"
    options = {**SMALL, "env_steps": 30 * 128, "max_rejections": 6}
    with pytest.raises(TrainingFailed, match=r"6 steps in a row .* NONFINITE: .*rewards.*; go on with: klimb resume"):
        klimb.train(Spoiled("reward", jnp.nan, 1.0), TRPO(), run_dir=path, **options)
    assert finite(klimb.load_policy(path))
    resumed = klimb.resume(path, env=CartPole())
    assert resumed.history[-1]["status"] == "ACCEPTED"


@pytest.mark.slow
@fault("a run is resumed after some failed steps in a row", "these steps still count, whatever checkpoint_every is")
def test_failed_steps_count_exactly(tmp_path):
    spoiled = Spoiled("reward", jnp.nan, 1.0)
    stops = []
    for every in (4, 100):
        path = tmp_path / str(every)
        options = {**SMALL, "env_steps": 40 * 128, "max_rejections": 10, "checkpoint_every": every}
        with pytest.raises(TrainingFailed, match="stopped after iteration 10: 10 steps in a row"):
            klimb.train(spoiled, TRPO(), run_dir=path, **options)
        stops.append(path)
    # As if it had been killed after its eighth iteration.
    (stops[0] / "checkpoints" / "000000010.safetensors").unlink()
    with pytest.raises(TrainingFailed, match="stopped after iteration 10: 10 steps in a row"):
        klimb.resume(stops[0], env=spoiled)


@pytest.mark.slow
@fault("one of several seeds fails permanently", "the other seeds are trained to the end")
def test_one_hopeless_seed_does_not_stop_the_others():
    from klimb.training.rejections import Rejections

    rejections = Rejections(3)
    bad, good = int(Status.NONFINITE), int(Status.ACCEPTED)
    rejections.count(np.array([[bad, good]] * 10))
    assert not rejections.limit_reached
    rejections.count(np.array([[bad, bad]] * 3))
    assert rejections.limit_reached
    assert rejections.message.startswith("3 steps in a row were rejected as NONFINITE")


@pytest.mark.slow
@fault("a line search finds no improving step, many times in a row", "the run continues: this is normal at convergence")
def test_a_policy_that_has_arrived_is_no_failure():
    from klimb.training.rejections import Rejections

    rejections = Rejections(3)
    rejections.count(np.full((50, 1), int(Status.NO_IMPROVEMENT)))
    assert not rejections.limit_reached


@pytest.mark.slow
@pytest.mark.parametrize(
    "log_std",
    [
        pytest.param(200.0, marks=fault("the log σ of a policy diverges upwards", "NONFINITE; the run stops, finite")),
        pytest.param(-200.0, marks=fault("the log σ of a policy diverges downwards", "NONFINITE; the run stops")),
    ],
)
def test_a_runaway_deviation_is_rejected(log_std):
    with pytest.raises(TrainingFailed, match="NONFINITE"):
        klimb.train("Pendulum-v1", TRPO(), **SMALL, env_steps=128 * 10, initial_log_std=log_std, max_rejections=4)


RULES = [TRPO(), PPO(num_minibatches=2, epochs=1), NaturalGradient(), KLPenalty(), Reinforce()]


def batch(policy, advantage, obs=None):
    obs = jax.random.normal(jax.random.key(1), (16, 3)) if obs is None else obs
    distribution = policy(obs)
    action = distribution.sample(jax.random.key(2))
    return Batch(
        obs=obs,
        action=action,
        log_prob=distribution.log_prob(action),
        advantage=advantage,
        value_target=jnp.zeros(16),
        weight=jnp.ones(16),
    )


def stepped(rule, policy, spoiled):
    step = jax.jit(lambda b: take_step(rule, jax.random.key(0), policy, rule.init(policy), b))
    policy_after, state, info = step(spoiled)
    return policy_after, state, Status(int(info.status)), info


@pytest.mark.parametrize(
    "rule",
    slow_except({TRPO()}, RULES),
    ids=lambda rule: type(rule).__name__,
)
@fault("every advantage of a batch is equal", "the policy stays finite, and hardly moves")
def test_equal_advantages_move_nothing(rule):
    policy = NetworkPolicy(3, Discrete(2), hidden=(4,), key=jax.random.key(0))
    after, state, _, info = stepped(rule, policy, batch(policy, jnp.zeros(16)))
    assert finite((after, state))
    # PPO's and REINFORCE's entropy or Adam moves are bounded by a learning rate.
    assert float(info.kl_old_new) < 1e-3


@pytest.mark.parametrize("damping", [0.0, 0.1])
@fault("the Fisher matrix is singular", "the step is taken in the directions that have a curvature, or rejected")
def test_a_singular_fisher_matrix(damping):
    policy = NetworkPolicy(3, Box((-1.0, -1.0), (1.0, 1.0)), hidden=(4,), key=jax.random.key(0))
    # Of a constant observation of zeros only the biases of the last layer and log σ are seen.
    spoiled = batch(policy, jax.random.normal(jax.random.key(3), (16,)), obs=jnp.zeros((16, 3)))
    after, _, status, info = stepped(TRPO(damping=damping), policy, spoiled)
    assert finite(after)
    assert status in (Status.ACCEPTED, Status.NO_IMPROVEMENT, Status.KL_TOO_LARGE, Status.CG_BREAKDOWN)
    assert float(info.kl_old_new) <= 0.01


@fault("conjugate gradient meets a direction of zero curvature", "CG_BREAKDOWN; the old policy is returned bit for bit")
def test_a_breakdown_of_conjugate_gradient_returns_the_old_policy(monkeypatch):
    import klimb.improve.rules.trpo as module

    monkeypatch.setattr(
        module, "linearise", lambda *a, original=module.linearise, **k: original(*a, **k)._replace(product=lambda v: -v)
    )
    policy = NetworkPolicy(3, Discrete(2), hidden=(4,), key=jax.random.key(0))
    after, _, status, _ = stepped(TRPO(damping=0.0), policy, batch(policy, jnp.arange(16.0)))
    assert status == Status.CG_BREAKDOWN
    assert eqx.tree_equal(after, policy)


@fault("a batch has no valid row", "NONFINITE; the old policy is returned bit for bit")
def test_a_batch_of_nothing_is_rejected():
    policy = NetworkPolicy(3, Discrete(2), hidden=(4,), key=jax.random.key(0))
    empty = eqx.tree_at(lambda b: b.weight, batch(policy, jnp.arange(16.0)), jnp.zeros(16))
    after, _, status, _ = stepped(TRPO(), policy, empty)
    assert status == Status.NONFINITE
    assert eqx.tree_equal(after, policy)


class Rooted(Spoiled):
    """Its reward is a root of something that turns negative."""

    def step(self, key, state, action):
        after = super().step(key, state, action)
        return after._replace(reward=jnp.sqrt(0.999 - after.reward))


@pytest.mark.slow
@fault("an operation produces a NaN, with --check-finite", "the run stops with the operation, its line and its inputs")
def test_the_first_nan_is_found():
    with pytest.raises(TrainingFailed, match=r"iteration 1: the first NaN was made by sqrt at .*test_numbers\.py:\d+"):
        klimb.train(Rooted("reward", 1.0, 0.0), TRPO(), **SMALL, env_steps=10 * 128, check_finite=True)


@pytest.mark.slow
@fault("a host environment returns a NaN, with --check-finite", "the run stops with the environment and the step")
def test_a_nan_of_a_host_environment_is_named():
    from gymnasium.envs.classic_control import PendulumEnv

    class Broken(PendulumEnv):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, float("nan"), *rest

    environment = klimb.GymnasiumEnvironment.from_maker("broken", Broken)
    with pytest.raises(TrainingFailed, match="environment 0 gave a non-finite reward at step 0 of the rollout"):
        klimb.train(environment, TRPO(), **SMALL, env_steps=10 * 128, check_finite=True)


@pytest.mark.slow
@fault("nothing is wrong, with --check-finite", "the results equal those without it, bit for bit")
def test_checking_changes_nothing():
    runs = [klimb.train("CartPole-v1", TRPO(), **SMALL, env_steps=4 * 128, check_finite=on) for on in (False, True)]
    assert eqx.tree_equal(runs[0].policy, runs[1].policy)


class Endless(CompiledEnvironment):
    """Noise without an end, and a NaN in one observation. Its state is the time."""

    id = "test:Endless"
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    bad_step = 40

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(2)

    def step(self, key, state, action):
        obs = jnp.where(state == self.bad_step, jnp.nan, jax.random.normal(key, (2,)))
        never = jnp.bool_(False)
        return Transition(state + 1, obs, action.astype(float), never, never)


class EndlessInPython(gymnasium.Env):
    """The same."""

    observation_space, action_space = Endless.observation_space, Endless.action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        obs = np.full(2, np.nan) if self.time == Endless.bad_step else self.np_random.normal(size=2)
        return obs.astype(np.float32), float(action), False, False, {}


@fault(
    "a policy with memory sees a NaN, in an episode without an end",
    "one step is rejected; what was remembered is forgotten, and the next one is taken",
)
@pytest.mark.parametrize("kind", ["compiled", "host"])
def test_a_nan_is_not_remembered(kind):
    env = Endless() if kind == "compiled" else klimb.GymnasiumEnvironment.from_maker("endless", EndlessInPython)
    options = {**SMALL, "num_envs": 2, "num_steps": 16, "env_steps": 2 * 16 * 7, "memory": "gru", "memory_size": 4}
    run = klimb.train(env, TRPO(), eval_episodes=0, normalize_observations=False, **options)
    status = [record["status"] for record in run.history]
    assert status.count("NONFINITE") == 1
    assert status.index("NONFINITE") == 2
    assert set(status[3:]) == {"ACCEPTED"}
    assert np.isfinite([record["value_loss"] for record in run.history[3:]]).all()
    assert finite(run.state)
