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
from klimb.improve.warm_up import take_step
from klimb.policies.action_spec import GaussianStyle
from klimb.policies.actions import Box, Discrete, action_spec
from klimb.policies.critic import Critic
from klimb.policies.distributions import Categorical, DiagGaussian, TanhGaussian
from klimb.policies.encoders import FlatEncoder
from klimb.policies.mlp import MLP
from klimb.policies.networks import NetworkPolicy
from klimb.policies.normalizer import Normalizer
from klimb.policies.observations import BoxObservations, observation_spec
from klimb.policies.weights import orthogonal
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


def test_images_need_a_network_of_their_own():
    with pytest.raises(UnsupportedSpace, match="FlattenObservation"):
        FlatEncoder.of(observation_spec(gymnasium.spaces.Box(0, 1, (4, 4))))


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
    assert run.policy.style == GaussianStyle(**options)


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


# --- bounds on the standard deviation ------------------------------------------------------------------------------

LOW, HIGH = -0.75, -0.25


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids="+".join)
def test_the_log_deviation_is_clipped_to_its_bounds(x64, options):
    """In half-widths; with tanh, those of the Gaussian before it."""
    obs = observations(200, 4).astype(float)
    free, bounded = (
        eqx.tree_at(lambda p: p.log_std, box_policy(**options, log_std_bounds=bounds), jnp.array([-0.5, -1.0]))
        for bounds in (None, (LOW, HIGH))
    )
    unit = np.zeros(2) if options.get("tanh_squash") else np.log(BOX.half_width)
    before, after = (np.asarray(call(policy, obs).log_std) - unit for policy in (free, bounded))
    np.testing.assert_allclose(after, np.clip(before, LOW, HIGH), rtol=1e-12)
    np.testing.assert_array_equal(call(bounded, obs).mean, call(free, obs).mean)
    assert (before < LOW).any()
    assert ((before > LOW) & (before < HIGH)).any()
    if options.get("state_dependent_std"):
        assert (before > HIGH).any()


def test_the_gradient_beyond_a_bound_is_zero_and_that_at_a_bound_the_one_inside():
    policy = box_policy(log_std_bounds=(LOW, HIGH))
    obs, action = observations(1, 4)[0], jnp.array([0.4, 3.0])

    def slope(log_std):
        at = eqx.tree_at(lambda p: p.log_std, policy, log_std)
        return jax.grad(lambda x: eqx.tree_at(lambda p: p.log_std, at, x)(obs).log_prob(action))(log_std)

    free = box_policy()
    for value in (LOW, HIGH, -0.5):
        log_std = jnp.full(2, value)
        expected = jax.grad(lambda x: eqx.tree_at(lambda p: p.log_std, free, x)(obs).log_prob(action))(log_std)
        np.testing.assert_allclose(slope(log_std), expected, rtol=1e-6)
        assert (np.abs(expected) > 0.1).all()
    np.testing.assert_array_equal(slope(jnp.array([LOW - 0.01, HIGH + 0.01])), 0)


def stepper(rule, policy):
    """A step of the rule on a made-up batch, whose advantage favours actions far from the mean, or (−1) near to it."""
    static = eqx.partition(policy, eqx.is_array)[1]

    @jax.jit
    def step(key, direction, arrays, state):
        policy = eqx.combine(arrays, static)
        obs = jax.random.normal(key, (256, 4))
        distribution = policy(obs)
        action = distribution.sample(key)
        far = jnp.sum(jnp.square((action - distribution.mean) * jnp.exp(-distribution.log_std)), axis=-1)
        batch = Batch(obs, action, distribution.log_prob(action), direction * (far - 2), far, jnp.ones(256))
        policy, state, info = take_step(rule, key, policy, state, batch)
        kl = jnp.mean(klimb.kl_divergence(distribution, policy(obs)))
        return eqx.filter(policy, eqx.is_array), state, (info.status, info.kl_old_new, kl)

    def steps(direction, arrays, state, count=6):
        reports = []
        for number in range(count):
            arrays, state, report = step(jax.random.key(number), direction, arrays, state)
            reports.append([float(x) for x in report])
        return arrays, state, np.array(reports)

    return steps


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [pytest.param(klimb.TRPO(), id="trpo"), pytest.param(klimb.PPO(learning_rate=0.02, num_minibatches=1), id="ppo")],
)
def test_a_deviation_pressed_against_a_bound_stays_there_and_comes_back(rule):
    """Without bounds the same steps leave the interval. The KL that a step reports is that of what is clipped."""
    start = {"hidden": (8,), "initial_log_std": -0.5, "key": jax.random.key(0)}
    free, bounded = NetworkPolicy(4, BOX, **start), NetworkPolicy(4, BOX, **start, log_std_bounds=(LOW, HIGH))
    unbounded_steps, steps = stepper(rule, free), stepper(rule, bounded)
    arrays, state = eqx.filter(bounded, eqx.is_array), rule.init(bounded)
    for direction, bound in ((1, HIGH), (-1, LOW)):
        left, _, _ = unbounded_steps(direction, eqx.filter(free, eqx.is_array), rule.init(free))
        assert (direction * (left.log_std - bound) > 0.05).all()
        at_bound, later, reports = steps(direction, arrays, state)
        np.testing.assert_allclose(at_bound.log_std, bound, rtol=1e-6)
        np.testing.assert_allclose(reports[:, 1], reports[:, 2], atol=1e-7)
        if isinstance(rule, klimb.TRPO):
            assert (reports[:, 0] == klimb.Status.ACCEPTED).any()
            assert (reports[:, 1] <= 1.01 * rule.max_kl).all()
        back, _, _ = steps(-direction, at_bound, later)
        assert (direction * (bound - back.log_std) > 0.05).all(), "the gradient at a bound is not zero"


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"state_dependent_std": True}], ids="+".join)
def test_a_training_stays_within_the_bounds(options):
    """The entropy of a Gaussian is Σ log σ + const: that of every record says where the mean log σ was."""
    common = {"env_steps": 768, "num_envs": 4, "num_steps": 64, "hidden": (8,), "certificate": False, **options}
    rule, unit, low, high = klimb.PPO(learning_rate=0.05), 0.5 + 0.5 * np.log(2 * np.pi) + np.log(2), -0.01, 0.02
    free = klimb.train("Pendulum-v1", rule, **common)
    bounded = klimb.train("Pendulum-v1", rule, **common, log_std_bounds=(low, high))
    outside = lambda run: [x for r in run.history if not low - 1e-5 <= (x := r["entropy"] - unit) <= high + 1e-5]  # noqa: E731
    assert len(outside(free)) > 0
    assert outside(bounded) == []
    assert bounded.policy.style.log_std_bounds == (low, high)


def test_bounds_that_make_no_sense_are_refused():
    for bounds in ((0.0, 0.0), (1.0, -1.0)):
        with pytest.raises(klimb.ConfigError, match="the first is the minimum log standard deviation"):
            klimb.TrainOptions(log_std_bounds=bounds)
    with pytest.raises(klimb.ConfigError, match=r"initial_log_std = 0.0 is outside log_std_bounds = \(-3.0, -1.0\)"):
        klimb.TrainOptions(log_std_bounds=(-3.0, -1.0))
    with pytest.raises(klimb.ConfigError, match="initial_log_std = 2"):
        NetworkPolicy(4, BOX, initial_log_std=2.0, log_std_bounds=(-1.0, 1.0), key=jax.random.key(0))
    with pytest.raises(UnsupportedSpace, match="log_std_bounds is for continuous actions, and these are 5 discrete"):
        NetworkPolicy(4, Discrete(5), log_std_bounds=(-1.0, 1.0), key=jax.random.key(0))
