"""gSDE: one action has the stated Gaussian, successive actions share a matrix, and every collector holds it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import klimb
from klimb.collect.compiled import CompiledCollector
from klimb.collect.host.collector import VectorCollector
from klimb.environments.control.pendulum import Pendulum
from klimb.errors import ConfigError, UnsupportedSpace
from klimb.policies.action_spec import EXPLORATION_VARIANCE
from klimb.policies.actions import Box, Discrete
from klimb.policies.distributions import DiagGaussian, TanhGaussian
from klimb.policies.exploration import rollout_noise, sampled_action
from klimb.policies.networks import NetworkPolicy

BOX = Box((-1.0, 0.0), (3.0, 10.0))
FEATURES = 3
STYLES = {
    "plain": {},
    "tanh": {"tanh_squash": True},
    "bounded": {"log_std_bounds": (-0.9, -0.3)},
}
call = eqx.filter_jit(lambda model, x: model(x))
features = eqx.filter_jit(lambda policy, x: policy.network.hidden(policy.encoder(x)))
each_style = pytest.mark.parametrize("style", STYLES)


def make_policy(actions=BOX, size=4, activation="tanh", **options) -> NetworkPolicy:
    """A policy whose elements of log σ differ, and whose output depends on the observation."""
    policy = NetworkPolicy(
        size,
        actions,
        hidden=(6, FEATURES),
        activation=activation,
        initial_log_std=-0.5,
        exploration="gsde",
        key=jax.random.key(0),
        **options,
    )
    spread = jnp.asarray(np.random.default_rng(0).normal(0, 0.5, policy.log_std.shape), policy.log_std.dtype)
    weights = policy.network.weights
    return eqx.tree_at(
        lambda p: (p.log_std, p.network.weights[-1]), policy, (policy.log_std + spread, 50 * weights[-1])
    )


def observations(rows, size=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1.5, (rows, size)))


def features_of(policy, obs):
    """φ, in NumPy: the normaliser has seen nothing."""
    x = np.clip(np.asarray(obs, np.float64), -10, 10)
    for weight, bias in zip(policy.network.weights[:-1], policy.network.biases[:-1], strict=True):
        x = np.tanh(x @ np.asarray(weight, np.float64) + np.asarray(bias, np.float64))
    return x


def units(policy):
    return np.ones(2) if policy.style.tanh_squash else BOX.half_width


@each_style
def test_the_distribution_is_the_stated_gaussian(x64, style):
    """Variance Σ_j φ_j² σ_jd² + ε, in half-widths; the bounds are those of the action's own σ."""
    policy, obs = make_policy(**STYLES[style]), observations(50)
    distribution = call(policy, obs)
    features = features_of(policy, obs)
    log_std = 0.5 * np.log(np.square(features) @ np.exp(2 * np.asarray(policy.log_std)) + EXPLORATION_VARIANCE)
    if style == "bounded":
        low, high = STYLES[style]["log_std_bounds"]
        assert (log_std < low).any()
        assert (log_std > high).any()
        log_std = np.clip(log_std, low, high)
    output = features @ np.asarray(policy.network.weights[-1]) + np.asarray(policy.network.biases[-1])
    squash = policy.style.tanh_squash
    assert isinstance(distribution, TanhGaussian if squash else DiagGaussian)
    np.testing.assert_allclose(distribution.log_std, log_std + np.log(units(policy)), rtol=1e-9)
    np.testing.assert_allclose(distribution.mean, output if squash else BOX.center + BOX.half_width * output, rtol=1e-9)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("size", [3, 100])
def test_a_fresh_policy_has_the_initial_deviation(activation, size):
    """Of scaled observations, in the mean over states: whatever the width, the activation and the observations."""
    policy = NetworkPolicy(
        size, BOX, initial_log_std=-1.0, activation=activation, exploration="gsde", key=jax.random.key(2)
    )
    log_std = call(policy, observations(2000, size) / 1.5).log_std - np.log(BOX.half_width)
    assert 0.5 * float(jnp.log(jnp.mean(jnp.exp(2 * log_std)))) == pytest.approx(-1.0, abs=0.1)


@each_style
def test_one_action_given_its_state_has_the_distribution(style):
    """20 000 matrices in each of three states; in the last one all features are nearly zero, and ε is what is left."""
    policy = make_policy(**STYLES[style])
    obs = jnp.concatenate([observations(2), jnp.zeros((1, 4))]).astype(jnp.float32)
    draws = 20_000

    @jax.jit
    def sample(obs):
        held = jax.random.normal(jax.random.key(1), (draws, *policy.held_noise))
        distribution, action, _ = sampled_action(policy, jnp.broadcast_to(obs, (draws, 4)), held)
        return (action - distribution.mean) * jnp.exp(-distribution.log_std), distribution.log_std

    for number, row in enumerate(obs):
        standard, log_std = (np.asarray(x, np.float64) for x in sample(row))
        if number == 2 and style != "bounded":
            np.testing.assert_allclose(np.exp(2 * log_std[0]), EXPLORATION_VARIANCE * units(policy) ** 2, rtol=1e-4)
        for column in standard.T:
            assert scipy.stats.kstest(column, "norm").pvalue > 1e-4
        assert abs(np.corrcoef(standard.T)[0, 1]) < 4.5 / np.sqrt(draws)


def test_two_actions_with_one_matrix_are_correlated_as_their_features_are():
    """E[z z'] = (Σ_j φ_j φ'_j σ_jd² + ε) / (σ(s) σ(s'))."""
    policy, obs, draws = make_policy(), observations(2, seed=3).astype(jnp.float32), 40_000
    held = jax.random.normal(jax.random.key(1), (draws, *policy.held_noise))
    noise = jax.jit(jax.vmap(lambda held: jax.vmap(policy.explore, (0, None))(obs, held)[1]))(held)
    features, variance = features_of(policy, obs), np.exp(2 * np.asarray(policy.log_std, np.float64))
    shared = (features[0] * features[1]) @ variance + EXPLORATION_VARIANCE
    expected = shared / np.sqrt(np.prod(np.square(features) @ variance + EXPLORATION_VARIANCE, axis=0))
    assert np.abs(expected).min() > 0.1
    np.testing.assert_allclose(np.mean(noise[:, 0] * noise[:, 1], axis=0), expected, atol=4.5 / np.sqrt(draws))


def test_log_prob_and_its_gradient_are_those_of_the_density(x64):
    """The gradient flows through the features: it is that of the log-density, by finite differences."""
    policy, obs = make_policy(), observations(5)
    action = call(policy, obs).sample(jax.random.key(4))
    flat = klimb.flatten(policy)
    value = jax.jit(lambda theta: jnp.sum(flat.rebuild(theta)(obs).log_prob(action)))
    gradient, h = np.asarray(jax.jit(jax.grad(value))(flat.theta)), 1e-5
    for i in range(0, flat.theta.size, 7):
        step = jnp.zeros_like(flat.theta).at[i].set(h)
        slope = (value(flat.theta + step) - value(flat.theta - step)) / (2 * h)
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-5, atol=1e-6)


# --- collectors ----------------------------------------------------------------------------------------------------


def standard_residuals(policy, rollout):
    """The noise of every action in half-widths, `[T, N, D]`, and [φ, √ε], `[T, N, F + 1]`."""
    obs = np.asarray(rollout.obs)
    mean = np.asarray(call(policy, jnp.asarray(obs)).mean)
    half_width = 1 if policy.style.tanh_squash else policy.actions.half_width
    hidden = np.asarray(features(policy, jnp.asarray(obs)))
    floor = np.full((*hidden.shape[:-1], 1), EXPLORATION_VARIANCE**0.5)
    return (np.asarray(rollout.action) - mean) / half_width, np.concatenate([hidden, floor], axis=-1)


def require_held(residual, design, hold):
    """Noise of every column is linear in φ within `hold` steps, with another matrix in each of them and each column.

    residual: `[T, N, D]`. design: `[T, N, G]`.
    """
    num_steps, columns, _ = residual.shape
    matrices = []
    for column in range(columns):
        for start in range(0, num_steps, hold):
            x, y = design[start : start + hold, column], residual[start : start + hold, column]
            w = np.linalg.lstsq(x, y, rcond=None)[0]
            np.testing.assert_allclose(x @ w, y, atol=2e-4)
            matrices.append((x, y, w))
    misfit = [np.abs(x @ w - y).max() for x, y, _ in matrices for *_, w in matrices]
    assert (np.array(misfit) > 0.01).sum() == len(matrices) * (len(matrices) - 1)


TORQUE = Box((-2.0,), (2.0,))
HOLD, STEPS, ENVS = 20, 50, 3


@pytest.mark.parametrize("options", [{}, {"tanh_squash": True}], ids=["clipped", "tanh"])
@pytest.mark.parametrize("hold", [HOLD, None])
def test_the_compiled_collector_holds_a_matrix_per_environment(options, hold):
    policy = make_policy(TORQUE, size=3, **options)
    collector = CompiledCollector(Pendulum(), ENVS, STEPS, exploration_steps=hold)
    collect = jax.jit(lambda key, state: collector.collect(key, policy, state))
    state, first, _ = collect(jax.random.key(2), collector.init(jax.random.key(1)))
    _, second, _ = collect(jax.random.key(3), state)
    parts = [standard_residuals(policy, rollout) for rollout in (first, second)]
    # Side by side: a new rollout has new matrices.
    require_held(*(np.concatenate(both, axis=1) for both in zip(*parts, strict=True)), hold or STEPS)
    # What was recorded is the density of one action given its state.
    log_prob = call(policy, first.obs).log_prob(first.action)
    np.testing.assert_allclose(log_prob, first.log_prob, atol=2e-5)


def test_held_for_one_step_the_noise_is_independent():
    policy = make_policy(TORQUE, size=3)
    noise = rollout_noise(policy, jax.random.key(0), jnp.zeros((ENVS, 3)), 4000, 1)
    assert noise.shape == (4000, ENVS, *policy.held_noise)
    obs = observations(1, 3)
    _, action, _ = jax.jit(jax.vmap(lambda noise: sampled_action(policy, jnp.broadcast_to(obs, (ENVS, 3)), noise)))(
        noise
    )
    action = np.asarray(action)[..., 0]
    correlations = [np.corrcoef(action[1:, n], action[:-1, m])[0, 1] for n in range(ENVS) for m in range(ENVS)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(4000)


class Subclass(NetworkPolicy):
    """Has no NumPy twin: it is computed by JAX, in worker processes by an exported program."""


def host_rollouts(kind, workers, hold, seeds=2):
    """A policy per seed, and two rollouts `[K, T, N]` of Gymnasium's Pendulum under them."""
    env = klimb.make("gymnasium:Pendulum-v1")
    make = lambda key: kind(3, env.actions, hidden=(6, FEATURES), exploration="gsde", key=key)  # noqa: E731
    made = eqx.filter_jit(eqx.filter_vmap(make))(jax.random.split(jax.random.key(0), seeds))
    arrays, static = eqx.partition(made, eqx.is_array)
    one = jax.tree.map(lambda x: x[0], arrays)
    shape = {"num_seeds": seeds, "num_envs": ENVS, "num_steps": STEPS}
    collector = VectorCollector(env, static, one, **shape, exploration_steps=hold, workers=workers)
    try:
        collector.reset(np.arange(seeds * ENVS, dtype=np.uint32).reshape(seeds, ENVS))
        keys = [jax.random.split(jax.random.key(number), seeds) for number in (5, 6)]
        rollouts = [collector.collect(k, arrays)[0] for k in keys]
    finally:
        collector.close()
    policies = [eqx.combine(jax.tree.map(lambda x, k=k: x[k], arrays), static) for k in range(seeds)]
    return policies, rollouts


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        pytest.param(NetworkPolicy, 0, id="numpy"),
        pytest.param(NetworkPolicy, 2, id="numpy in workers", marks=pytest.mark.slow),
        pytest.param(Subclass, 0, id="jax", marks=pytest.mark.slow),
        pytest.param(Subclass, 2, id="exported", marks=pytest.mark.slow),
    ],
)
def test_host_collectors_hold_a_matrix_per_environment(kind, workers):
    policies, rollouts = host_rollouts(kind, workers, HOLD)
    parts = [
        standard_residuals(policy, jax.tree.map(lambda x, k=k: x[k], rollout))
        for rollout in rollouts
        for k, policy in enumerate(policies)
    ]
    require_held(*(np.concatenate(both, axis=1) for both in zip(*parts, strict=True)), HOLD)


@pytest.mark.slow
def test_all_ways_to_decide_take_the_same_actions():
    """The first actions, before the rounding of different programs has been amplified by the environment."""
    first = [np.asarray(host_rollouts(kind, workers, None)[1][0].action)[:, :5]
             for kind, workers in ((NetworkPolicy, 0), (NetworkPolicy, 2), (Subclass, 0), (Subclass, 2))]  # fmt: skip
    for other in first[1:]:
        np.testing.assert_allclose(other, first[0], atol=1e-4)


# --- single actions, trainings, refusals -----------------------------------------------------------------------------


def test_a_single_sampled_action_has_a_matrix_of_its_own():
    """`act` samples the marginal distribution: rows and calls are independent."""
    policy, rows = make_policy(), 4000
    obs, rng = np.asarray(observations(1, seed=5), np.float32)[0], np.random.default_rng(0)
    distribution = policy(jnp.asarray(obs))
    wide = eqx.tree_at(lambda p: p.log_std, policy, policy.log_std - 3)  # so that few are clipped
    distribution = wide(jnp.asarray(obs))
    batch = np.concatenate([wide.act(np.tile(obs, (rows, 1)), deterministic=False, rng=rng) for _ in range(2)])
    standard = (batch - np.asarray(distribution.mean)) / np.exp(np.asarray(distribution.log_std))
    inside = [d for d in range(2) if (batch[:, d] > BOX.low[d]).all() and (batch[:, d] < BOX.high[d]).all()]
    assert inside, "one dimension has to be away from its bounds"
    for d in inside:
        assert scipy.stats.kstest(standard[:, d], "norm").pvalue > 1e-4
        assert abs(np.corrcoef(standard[1:, d], standard[:-1, d])[0, 1]) < 4.5 / np.sqrt(2 * rows)
        assert abs(np.corrcoef(standard[:rows, d], standard[rows:, d])[0, 1]) < 4.5 / np.sqrt(rows)


SMALL = {"env_steps": 512, "num_envs": 4, "num_steps": 64, "hidden": (8,), "exploration": "gsde", "eval_episodes": 0}


@pytest.mark.slow
@pytest.mark.parametrize("rule", [klimb.TRPO(), klimb.PPO(), klimb.NaturalGradient()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("options", [{"exploration_steps": 8}, {"tanh_squash": True}], ids=str)
def test_it_trains(rule, options):
    run = klimb.train("Pendulum-v1", rule, **SMALL, **options)
    for record in run.history:
        assert record["status"] == "ACCEPTED"
        assert 0 < record["kl_old_new"] < 0.1
    returns = [klimb.evaluate(run.policy, "Pendulum-v1", episodes=2, deterministic=d).mean for d in (True, False)]
    assert np.isfinite(returns).all()
    demonstrations = klimb.record(run.policy, "Pendulum-v1", episodes=2)
    log_prob = call(run.policy, jnp.asarray(demonstrations.obs)).log_prob
    assert demonstrations.log_prob.shape == (400,)
    if "tanh_squash" not in options:
        np.testing.assert_allclose(log_prob(jnp.asarray(demonstrations.action)), demonstrations.log_prob, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Pendulum-v1", "gymnasium:Pendulum-v1"])
def test_a_resumed_training_is_bit_for_bit_the_whole_one(env, tmp_path):
    """Nothing of the noise is kept: it is drawn again at the start of every rollout."""
    options = {**SMALL, "exploration_steps": 24, "workers": 0}
    whole = klimb.train(env, klimb.TRPO(), **options, run_dir=tmp_path / "whole")
    klimb.train(env, klimb.TRPO(), **{**options, "env_steps": 256}, run_dir=tmp_path / "half")
    resumed = klimb.resume(tmp_path / "half", env_steps=512)
    assert eqx.tree_equal(resumed.policy, whole.policy)


@pytest.mark.slow
def test_whole_episodes_and_several_seeds():
    options = {**SMALL, "num_envs": 2, "num_steps": 200, "env_steps": 800, "num_seeds": 2}
    run = klimb.train("Pendulum-v1", klimb.Reinforce(), **options, batch="episodes")
    assert all(length == 200 for record in run.history for length in record["episode_length"])


@pytest.mark.slow
def test_guided_search_takes_the_marginal_distribution():
    rule = klimb.GuidedPolicySearch(method="mirror_descent")
    run = klimb.train("Pendulum-v1", rule, **{**SMALL, "env_steps": 1024})
    assert all(np.isfinite(record["kl_old_new"]) for record in run.history)
    assert run.history[-1]["kl_old_new"] > 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(UnsupportedSpace, match="exploration is for continuous actions, and these are 5 discrete ones"):
        NetworkPolicy(4, Discrete(5), exploration="gsde", key=jax.random.key(0))
    with pytest.raises(ConfigError, match="leave state_dependent_std off"):
        klimb.TrainOptions(exploration="gsde", state_dependent_std=True)
    with pytest.raises(ConfigError, match="the network has none: give hidden a layer"):
        klimb.TrainOptions(exploration="gsde", hidden=())
    with pytest.raises(ConfigError, match="exploration_steps = 8 is for exploration = gsde"):
        klimb.train("Pendulum-v1", klimb.TRPO(), env_steps=64, exploration_steps=8)
    with pytest.raises(ConfigError, match="exploration_steps = 65 is more than num_steps = 64"):
        klimb.train("Pendulum-v1", klimb.TRPO(), **SMALL, exploration_steps=65)
