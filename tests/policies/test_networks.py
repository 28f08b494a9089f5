"""Networks: their initialisation, their units, and the spaces they are made for."""

from __future__ import annotations

import equinox as eqx
import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import klimb
from klimb.collect.compiled import CompiledCollector
from klimb.environments.control.pendulum import Pendulum
from klimb.errors import UnsupportedSpace
from klimb.improve.critic_fit import rescale
from klimb.policies.actions import Box, Discrete, action_spec
from klimb.policies.distributions import Categorical, DiagGaussian, TanhGaussian
from klimb.policies.encoders import FlatEncoder
from klimb.policies.networks import MLP, Critic, NetworkPolicy, orthogonal
from klimb.policies.normalizer import Normalizer
from klimb.policies.observations import BoxObservations, observation_spec
from klimb.types import Batch

INF = np.inf
SHAPES = [(1, 1), (64, 64), (4, 64), (64, 2), (1, 7)]
ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * scipy.special.expit(x),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


call = eqx.filter_jit(lambda model, x: model(x))


def observations(rows, size, seed=0):
    return jax.random.normal(jax.random.key(seed), (rows, size)) * 3 + 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonal_is_orthonormal_and_the_same_under_vmap(shape):
    keys = jax.random.split(jax.random.key(0), 16)
    together = np.asarray(jax.jit(jax.vmap(lambda key: orthogonal(key, *shape)))(keys))
    assert together.shape == (16, *shape)
    short = together if shape[0] <= shape[1] else together.swapaxes(1, 2)
    gram = short @ short.swapaxes(1, 2)
    assert np.abs(gram - np.eye(min(shape))).max() < 1e-5
    alone = jax.jit(lambda key: orthogonal(key, *shape))
    for row in (0, 15):
        np.testing.assert_allclose(together[row], alone(keys[row]), atol=1e-6)


def test_orthogonal_is_uniformly_random():
    """Every row is uniform on the sphere in R⁵: entries have mean 0, and their squares are Beta(½, 2)."""
    draws = 4000
    keys = jax.random.split(jax.random.key(1), draws)
    matrices = np.asarray(jax.jit(jax.vmap(lambda key: orthogonal(key, 3, 5)))(keys), np.float64)
    # A QR factorisation without fixed signs would fail here: its diagonal is always of one sign.
    assert np.abs(matrices.mean(0)).max() < 4.5 * np.sqrt(1 / 5 / draws)
    for row, column in ((0, 0), (1, 1), (2, 4), (2, 0)):
        entry = matrices[:, row, column]
        assert scipy.stats.kstest(entry**2, scipy.stats.beta(0.5, 2).cdf).pvalue > 1e-4
    # Uniform over rotations: a fixed rotation of the columns changes no distribution.
    rotation = scipy.stats.ortho_group.rvs(5, random_state=0)
    rotated = (matrices @ rotation)[:, 2, 3]
    assert scipy.stats.kstest(rotated**2, scipy.stats.beta(0.5, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_equals_numpy_and_starts_with_the_stated_gains(x64, activation):
    network = MLP([3, 8, 6, 2], activation=activation, output_gain=0.01, key=jax.random.key(0))
    network = eqx.tree_at(lambda n: n.biases, network, tuple(b + 0.1 * i for i, b in enumerate(network.biases)))
    x = np.asarray(observations(5, 3), np.float64)
    expected = x
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        expected = expected @ np.asarray(weight) + np.asarray(bias)
        if layer < 2:
            expected = ACTIVATIONS[activation](expected)
    np.testing.assert_allclose(call(network, jnp.asarray(x)), expected, rtol=1e-12)
    for weight, gain in zip(network.weights, (2**0.5, 2**0.5, 0.01), strict=True):
        np.testing.assert_allclose(np.linalg.svd(weight, compute_uv=False), gain, rtol=1e-10)


@pytest.fixture(scope="module")
def policies():
    box = Box(low=(-1.0, 0.0), high=(3.0, 10.0))
    keys = jax.random.split(jax.random.key(0), 2)
    return (
        NetworkPolicy(4, Discrete(5), hidden=(8,), key=keys[0]),
        NetworkPolicy(4, box, hidden=(8,), initial_log_std=-0.5, key=keys[1]),
    )


def test_the_first_policy_prefers_nothing(policies):
    """Near uniform, or near the middle of the box, for every observation.

    The head has orthonormal columns times 0.01 and its eight inputs are within ±1: no output exceeds 0.01 √8.
    """
    obs, largest = observations(500, 4), 0.01 * 8**0.5
    discrete, continuous = (jax.jit(jax.vmap(policy))(obs) for policy in policies)
    assert isinstance(discrete, Categorical)
    np.testing.assert_allclose(np.log(discrete.probs * 5), 0, atol=2 * largest)
    assert np.ptp(discrete.probs, axis=0).max() > 1e-4  # and yet it looks at the observation
    assert isinstance(continuous, DiagGaussian)
    half_width = np.array([2.0, 5.0])
    assert (np.abs(continuous.mean - np.array([1.0, 5.0])) < largest * half_width).all()
    np.testing.assert_allclose(np.exp(continuous.log_std), np.tile(half_width * np.exp(-0.5), (500, 1)), rtol=1e-5)


def test_leading_axes_equal_vmap(policies):
    obs = observations(6, 4).reshape(2, 3, 4)
    for model in (*policies, Critic(4, hidden=(8,), key=jax.random.key(2))):
        whole, mapped, one = jax.jit(lambda x, f=model: (f(x), jax.vmap(jax.vmap(f))(x), f(x[1, 2])))(obs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, mapped)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1, 2], b, atol=1e-5), whole, one)


@pytest.mark.parametrize("output", [-1.0, 0.0, 1.0])
def test_gaussian_is_in_the_units_of_the_environment(output):
    """Network output −1, 0, 1 is low, middle, high of a bounded dimension, and itself where a bound is missing."""
    low, high = (-1.0, 0.0, -INF, 0.0, -INF), (3.0, 10.0, INF, INF, 2.0)
    policy = NetworkPolicy(2, Box(low, high), hidden=(4,), initial_log_std=-1.0, key=jax.random.key(0))
    constant = (jnp.zeros((4, 5)), jnp.full(5, output))
    policy = eqx.tree_at(lambda p: (p.network.weights[-1], p.network.biases[-1]), policy, constant)
    distribution = call(policy, jnp.ones(2))
    expected = {-1.0: [-1, 0, -1, -1, -1], 0.0: [1, 5, 0, 0, 0], 1.0: [3, 10, 1, 1, 1]}
    np.testing.assert_allclose(distribution.mean, expected[output], atol=1e-6)
    np.testing.assert_allclose(np.exp(distribution.log_std), np.exp(-1) * np.array([2, 5, 1, 1, 1]), rtol=1e-6)


def test_the_policy_sees_normalised_observations(policies):
    obs = observations(100, 4)
    for policy in policies:
        normalizer = jax.jit(Normalizer.update)(policy.encoder.normalizer, obs, jnp.ones(100))
        seen = (np.asarray(obs) - np.mean(obs, 0)) / np.std(obs, 0)
        expected = call(policy, jnp.asarray(seen))
        actual = call(eqx.tree_at(lambda p: p.encoder.normalizer, policy, normalizer), obs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, expected)


def test_spaces_that_are_supported():
    spaces = gymnasium.spaces
    assert action_spec(spaces.Discrete(5)) == Discrete(5)
    box = spaces.Box(np.array([-1, -INF], np.float32), np.array([2, INF], np.float32))
    assert action_spec(box) == Box((-1.0, -INF), (2.0, INF))
    assert observation_spec(box) == BoxObservations((2,))
    assert FlatEncoder.of(observation_spec(box)).num_features == 2


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gymnasium.spaces.Discrete(3, start=1), "starts at 1"),
        (gymnasium.spaces.MultiDiscrete([2, 3]), "MultiDiscrete"),
        (gymnasium.spaces.Box(-1, 1, (2, 2)), "not supported"),
        (gymnasium.spaces.Box(-1, 1, ()), "not supported"),
        (gymnasium.spaces.Box(0, 255, (3,), np.uint8), "not supported"),
        (gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(2)), "ActionWrapper"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:24],
)
def test_action_spaces_that_are_not(space, message):
    with pytest.raises(UnsupportedSpace, match=message):
        action_spec(space)


@pytest.mark.parametrize(
    "space",
    [gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(0, 1, (4, 4)), gymnasium.spaces.Box(0, 1, ())],
    ids=str,
)
def test_observation_spaces_that_are_not(space):
    with pytest.raises(UnsupportedSpace, match="FlattenObservation"):
        FlatEncoder.of(observation_spec(space))


def test_rescaling_the_critic_leaves_its_values_as_they_were(x64):
    """PopArt: the scale follows the targets of all batches, and V(s) does not move.

    Only a critic that has seen no target yet takes their units for its own.
    """
    critic, obs = Critic(3, hidden=(8,), key=jax.random.key(0)), observations(40, 3).astype(float)
    rng, seen, before = np.random.default_rng(0), [], call(critic, obs)
    for batch_number, (offset, spread) in enumerate(((100.0, 50.0), (-3000.0, 1e-2), (0.0, 1e4))):
        target, zeros = rng.normal(offset, spread, 40), jnp.zeros(40)
        batch = Batch(obs, jnp.zeros(40, int), zeros, zeros, jnp.asarray(target), jnp.ones(40))
        critic = eqx.filter_jit(rescale)(critic, batch)
        seen.append(target)
        expected = before if batch_number else before * np.std(target) + np.mean(target)
        np.testing.assert_allclose(call(critic, obs), expected, rtol=1e-9)
        np.testing.assert_allclose(critic.target.scale, np.std(seen), rtol=1e-9)
        np.testing.assert_allclose(critic.target.mean, np.mean(seen), rtol=1e-9)
        before = call(critic, obs)


# --- the standard deviation from the network, and the squash into the box -----------------------------------------

BOX = Box(low=(-1.0, 0.0), high=(3.0, 10.0))
OPTIONS = [{"state_dependent_std": True}, {"tanh_squash": True}, {"state_dependent_std": True, "tanh_squash": True}]
each_option = pytest.mark.parametrize("options", OPTIONS, ids="+".join)


def box_policy(actions=BOX, **options):
    """A policy away from its start, with a normaliser that has seen observations."""
    policy = NetworkPolicy(4, actions, hidden=(8,), initial_log_std=-0.5, key=jax.random.key(0), **options)
    weights = policy.network.weights
    policy = eqx.tree_at(lambda p: p.network.weights, policy, (*weights[:-1], 50 * weights[-1]))
    return eqx.tree_at(
        lambda p: p.encoder.normalizer, policy, policy.encoder.normalizer.update(observations(50, 4), jnp.ones(50))
    )


@each_option
def test_options_start_at_the_initial_deviation_and_the_middle(options):
    policy, obs = (
        NetworkPolicy(4, BOX, hidden=(8,), initial_log_std=-0.5, key=jax.random.key(0), **options),
        0.01 * 8**0.5,
    )
    distribution = call(policy, observations(500, 4))
    squash = options.get("tanh_squash", False)
    assert isinstance(distribution, TanhGaussian if squash else DiagGaussian)
    assert distribution.log_std.shape == distribution.mean.shape == (500, 2)
    center, unit = (np.zeros(2), np.ones(2)) if squash else (BOX.center, BOX.half_width)
    assert (np.abs(distribution.mean - center) <= obs * unit).all()
    np.testing.assert_allclose(distribution.log_std - np.log(unit), -0.5, atol=obs)
    varies = np.ptp(distribution.log_std, axis=0)
    assert (varies > 1e-4).all() if options.get("state_dependent_std") else (varies == 0).all()


@each_option
def test_options_make_of_the_network_what_they_say(x64, options):
    """Mean from the first half of the outputs, log σ from the parameter and the second; units of the half-width."""
    policy, obs = box_policy(**options), observations(30, 4).astype(float)
    output = np.asarray(call(policy.network, call(policy.encoder.normalizer, obs)))
    deviations = output[:, 2:] if options.get("state_dependent_std") else np.zeros((30, 2))
    assert output.shape == (30, 4 if options.get("state_dependent_std") else 2)
    distribution = call(policy, obs)
    if options.get("tanh_squash"):
        assert (distribution.low, distribution.high) == (BOX.low, BOX.high)
        mean, log_std = output[:, :2], policy.log_std + deviations
    else:
        mean = BOX.center + BOX.half_width * output[:, :2]
        log_std = policy.log_std + deviations + np.log(BOX.half_width)
    np.testing.assert_allclose(distribution.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(distribution.log_std, log_std, rtol=1e-12)


@each_option
def test_options_hold_for_leading_axes_and_vmap(options):
    policy, obs = box_policy(**options), observations(6, 4).reshape(2, 3, 4)
    whole, mapped = jax.jit(lambda x: (policy(x), jax.vmap(jax.vmap(policy))(x)))(obs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, mapped)
    for distribution in (whole, mapped):
        assert distribution.log_prob(distribution.mode()).shape == distribution.entropy().shape == (2, 3)


@each_option
def test_options_are_for_boxes(options):
    with pytest.raises(
        UnsupportedSpace, match=f"{next(iter(options))} is for continuous actions, and these are 5 discrete"
    ):
        NetworkPolicy(4, Discrete(5), key=jax.random.key(0), **options)


@pytest.mark.parametrize("high", [INF, 0.0])
def test_squashing_needs_bounds(high):
    actions = Box((-1.0, 0.0), (3.0, high))
    with pytest.raises(UnsupportedSpace, match=f"tanh_squash needs .* dimension 1 is from 0.0 to {high}: leave it off"):
        NetworkPolicy(4, actions, tanh_squash=True, key=jax.random.key(0))


@pytest.mark.slow
@each_option
def test_ratios_are_one_on_what_was_just_collected(options):
    """And the environment gets the squashed action: the reward is Pendulum's own for it."""
    env = Pendulum()
    policy = NetworkPolicy(3, action_spec(env.action_space), hidden=(8,), key=jax.random.key(0), **options)
    weights = policy.network.weights
    policy = eqx.tree_at(lambda p: p.network.weights, policy, (weights[0], 50 * weights[1]))
    collector = CompiledCollector(env, num_envs=4, num_steps=32)
    _, rollout, _ = eqx.filter_jit(lambda key: collector.collect(key, policy, collector.init(key)))(jax.random.key(3))
    distribution = policy(rollout.obs)
    np.testing.assert_allclose(np.exp(distribution.log_prob(rollout.action) - rollout.log_prob), 1, rtol=0, atol=2e-6)
    u = np.asarray(rollout.action[..., 0])
    torque = 2 * np.tanh(u) if options.get("tanh_squash") else np.clip(u, -2, 2)
    cos, sin, speed = np.moveaxis(np.asarray(rollout.obs), -1, 0)
    np.testing.assert_allclose(
        rollout.reward, -(np.arctan2(sin, cos) ** 2 + 0.1 * speed**2 + 1e-3 * torque**2), atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        pytest.param(options, rule, marks=[] if len(options) == 2 else pytest.mark.slow)
        for options, rule in zip(OPTIONS, (klimb.PPO(), klimb.TRPO(), klimb.Reinforce()), strict=True)
    ],
    ids=lambda x: "+".join(x) if isinstance(x, dict) else type(x).__name__,
)
def test_options_train(options, rule):
    run = klimb.train("Pendulum-v1", rule, env_steps=256, num_envs=4, num_steps=64, hidden=(8,), **options)
    (record,) = run.history
    for name, value in record.items():
        # No episode of 200 steps ends, and there is no batch before the first.
        if value is not None and isinstance(value, float) and not name.startswith(("episode_", "realised_")):
            assert np.isfinite(value), name
    assert record["status"] == "ACCEPTED"
    assert record["kl_old_new"] > 0
    assert run.policy.style == tuple(options.get(name, False) for name in ("state_dependent_std", "tanh_squash"))


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Pendulum-v1", "gymnasium:Pendulum-v1"])
def test_a_squashed_policy_is_evaluated_by_what_the_environment_gets(env):
    """A policy of constant u evaluated under tanh is the one of constant torque evaluated without."""
    actions = Box((-2.0,), (2.0,))
    returns = []
    for squash, output in ((True, 0.5), (False, np.tanh(0.5)), (False, 0.5)):
        policy = NetworkPolicy(3, actions, hidden=(4,), tanh_squash=squash, key=jax.random.key(0))
        constant = (jnp.zeros((4, 1)), jnp.full(1, output))
        policy = eqx.tree_at(lambda p: (p.network.weights[-1], p.network.biases[-1]), policy, constant)
        returns.append(klimb.evaluate(policy, env, episodes=2).returns)
    np.testing.assert_allclose(returns[0], returns[1], rtol=1e-3)
    assert np.abs(returns[0] / returns[2] - 1).max() > 1e-3


def test_options_of_continuous_actions_are_refused_for_discrete_ones(tmp_path):
    with pytest.raises(
        UnsupportedSpace, match="tanh_squash is for continuous actions, and these are 2 discrete"
    ) as error:
        klimb.train("CartPole-v1", klimb.TRPO(), env_steps=64, tanh_squash=True, run_dir=tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
