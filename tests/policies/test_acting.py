"""Actions for the environment, against the forward pass that docs/use-a-policy.md computes from the files alone."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.special

import klimb
from klimb import Categorical, ConfigError, DiagGaussian, NetworkPolicy, load_policy, save_policy
from klimb.policies.action_spec import GaussianStyle
from klimb.policies.actions import Box, Discrete
from klimb.policies.encoders import FlatEncoder
from klimb.policies.observations import BoxObservations

PAGE = Path(__file__).parents[2] / "docs" / "use-a-policy.md"
SIZE, ROWS = 4, 60
UNEVEN = Box((-0.5, -2.0, 1.0), (0.25, 0.1, 4.0))
PARTLY = Box((-0.5, -np.inf, 0.0, -np.inf), (0.25, np.inf, np.inf, 3.0))
KINDS = {
    "discrete": (Discrete(5), {}),
    "clipped": (UNEVEN, {"activation": "relu"}),
    "partly unbounded": (PARTLY, {"activation": "silu"}),
    "state-dependent std": (PARTLY, {"state_dependent_std": True, "activation": "gelu"}),
    "bounded std": (UNEVEN, {"log_std_bounds": (-0.2, 0.1)}),
    "bounded, state-dependent std": (PARTLY, {"log_std_bounds": (-0.5, 0.5), "state_dependent_std": True}),
    "gsde": (UNEVEN, {"exploration": "gsde"}),
    "squashed": (UNEVEN, {"tanh_squash": True}),
    "squashed, state-dependent std": (UNEVEN, {"tanh_squash": True, "state_dependent_std": True}),
    "without hidden layers": (Discrete(3), {"hidden": ()}),
    "layer norm": (UNEVEN, {"layer_norm": True}),
    "residual": (Discrete(4), {"residual": True, "hidden": (SIZE, 6, 6), "layer_norm": True}),
}


def observations(rng, rows=ROWS):
    """Spread 2, 0.1 and 1; the third coordinate is constant but in every fourth row, every eighth is far from all."""
    obs = rng.normal([3.0, -1.0, 3.0, 0.0], [2.0, 0.1, 0.0, 1.0], (rows, SIZE))
    obs[::4, 2] += 0.5
    obs[::8, 3] += 1000.0
    return obs.astype(np.float32)


def make_policy(actions, *, limits=None, hidden=(8, 6), **options) -> NetworkPolicy:
    """A policy that differs from a fresh one in every number. limits: of its normaliser."""
    policy = NetworkPolicy(SIZE, actions, hidden=hidden, key=jax.random.key(0), **options)
    rng = np.random.default_rng(0)
    like = lambda x, scale: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    seen = rng.normal([3.0, -1.0, 3.0, 0.0], [2.0, 0.1, 0.0, 1.0], (64, SIZE)).astype(np.float32)
    normalizer = policy.encoder.normalizer.update(jnp.asarray(seen), jnp.ones(64))
    if limits is not None:
        normalizer = klimb.Normalizer(normalizer.mean, normalizer.variance, normalizer.count, **limits)
    network = jax.tree.map(lambda x: like(x, 0.6), policy.network)
    policy = eqx.tree_at(lambda p: (p.encoder, p.network), policy, (FlatEncoder(normalizer), network))
    return policy if policy.log_std is None else eqx.tree_at(lambda p: p.log_std, policy, like(policy.log_std, 0.3))


@pytest.fixture(scope="module")
def numpy_port() -> SimpleNamespace:
    """What the page defines before it imports klimb."""
    (code,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
        if "def network(" in block
    )
    ported = code.split("\nimport klimb\n")[0]
    assert "klimb" not in ported
    assert "jax" not in ported
    assert ported.partition("def features(")[2].partition("def action(")[0].strip().count("\n") <= 15
    names: dict = {}
    exec(compile(ported, str(PAGE), "exec"), names)
    return SimpleNamespace(**{name: names[name] for name in ("read", "features", "network", "action")})


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_alone_give_the_actions_in_numpy(kind, numpy_port, tmp_path):
    actions, options = KINDS[kind]
    policy = make_policy(actions, **options)
    obs = observations(np.random.default_rng(1))
    about, arrays = numpy_port.read(save_policy(policy, tmp_path))
    output = numpy_port.network(about, arrays, obs)
    expected, taken = numpy_port.action(about, output), policy.act(obs)
    np.testing.assert_allclose(taken, expected, rtol=1e-5, atol=1e-5)
    assert taken.dtype == actions.dtype
    if isinstance(actions, Discrete):
        assert len(np.unique(taken)) > 1
        return
    assert (taken >= np.float32(actions.low)).all()
    assert (taken <= np.float32(actions.high)).all()
    # Each of these, left out, would be seen: the clip of observations, the variance floor, and the clip of actions.
    for changed in ({"clip": 1e6}, {"variance_floor": -1.0}):
        other = {**about, "normalizer": {**about["normalizer"], **changed}}
        with np.errstate(divide="ignore", invalid="ignore"):
            assert not np.allclose(numpy_port.network(other, arrays, obs), output, atol=0.1)
    if not policy.style.tanh_squash:
        mean = np.asarray(eqx.filter_jit(policy)(obs).mode())
        assert np.abs(mean - taken).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_alone_give_the_distribution(kind, numpy_port, tmp_path):
    """As the page says below the forward pass."""
    actions, options = KINDS[kind]
    policy = make_policy(actions, **options)
    obs = observations(np.random.default_rng(1))
    about, arrays = numpy_port.read(save_policy(policy, tmp_path))
    output, distribution = numpy_port.network(about, arrays, obs), eqx.filter_jit(policy)(obs)
    if isinstance(actions, Discrete):
        probs = np.exp(output) / np.exp(output).sum(-1, keepdims=True)
        np.testing.assert_allclose(distribution.probs, probs, atol=1e-6)
        return
    log_std = arrays["log_std"]
    if about["state_dependent_std"]:
        log_std = log_std + output[..., len(actions.low) :]
    if about.get("exploration") == "gsde":
        features = numpy_port.features(about, arrays, obs)
        log_std = 0.5 * np.log(features**2 @ np.exp(2 * log_std) + 1e-6)
    if about.get("log_std_bounds"):
        assert not np.allclose(log_std, np.clip(log_std, *about["log_std_bounds"])), "bounds that are not reached"
        log_std = np.clip(log_std, *about["log_std_bounds"])
    half_width = 1 if about["tanh_squash"] else actions.half_width
    std = np.broadcast_to(half_width * np.exp(log_std), (ROWS, len(actions.low)))
    np.testing.assert_allclose(np.exp(distribution.log_std), std, rtol=1e-5)


def test_limits_other_than_the_defaults_are_in_the_file(numpy_port, tmp_path):
    limits = {"clip": 1.5, "variance_floor": 0.3}
    policy = make_policy(UNEVEN, limits=limits)
    about, arrays = numpy_port.read(save_policy(policy, tmp_path))
    assert about["normalizer"] == limits
    obs = observations(np.random.default_rng(1))
    expected = numpy_port.action(about, numpy_port.network(about, arrays, obs))
    np.testing.assert_allclose(policy.act(obs), expected, atol=1e-5)
    assert np.abs(expected - make_policy(UNEVEN).act(obs)).max() > 0.1
    loaded = load_policy(tmp_path)
    assert eqx.tree_equal(loaded, policy)
    np.testing.assert_array_equal(loaded.act(obs), policy.act(obs))


def test_any_leading_axes():
    for actions in (Discrete(5), UNEVEN):
        policy = make_policy(actions)
        obs = observations(np.random.default_rng(1), rows=6)
        batch = policy.act(obs)
        assert batch.shape == (6, *actions.shape)
        one = policy.act(obs[1])
        assert one.shape == actions.shape
        np.testing.assert_allclose(one, batch[1], rtol=1e-5)
        np.testing.assert_array_equal(policy.act(obs.reshape(2, 3, SIZE)), batch.reshape(2, 3, *actions.shape))
        np.testing.assert_array_equal(policy.act(obs.tolist()), batch)
    discrete = make_policy(Discrete(5)).act(obs[0])
    assert isinstance(discrete, np.integer)
    assert {int(discrete): "of a table"}[discrete] == "of a table"


def test_a_fresh_squashed_policy_acts_in_the_middle_of_its_box():
    policy = NetworkPolicy(SIZE, Box((0.0,), (10.0,)), tanh_squash=True, key=jax.random.key(0))
    np.testing.assert_allclose(policy.act(np.zeros(SIZE)), [5.0], atol=0.1)


@pytest.mark.parametrize("kind", ["clipped", "squashed"])
def test_actions_are_in_the_environments_space(kind):
    actions, options = KINDS[kind]
    space = gymnasium.spaces.Box(np.array(actions.low, np.float32), np.array(actions.high, np.float32))
    policy = make_policy(actions, **options)
    for obs in 100 * observations(np.random.default_rng(1), rows=4):
        assert space.contains(policy.act(obs))
        assert space.contains(policy.act(obs, deterministic=False))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_are_kept_where_float32_rounds_them_outwards(dtype):
    low, high = np.array([-0.1, 0.1]), np.array([0.1, 0.3])
    space = gymnasium.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
    actions = klimb.action_spec(space)
    far = np.array([[-9.0, -9.0], [9.0, 9.0]], np.float32)
    _, sampled = actions.numpy_sampler(np.zeros(2, np.float32), GaussianStyle())(
        far[None], np.zeros_like(far)[None], None
    )
    for taken in (klimb.act(Own(jnp.array(1e3)), far, observations=BoxObservations((2,)), actions=actions), sampled[0]):
        assert taken.dtype == np.float32
        assert all(space.contains(action) for action in taken)
        np.testing.assert_allclose(taken, [low, high], rtol=1e-6)


def test_the_loop_gives_the_returns_of_an_evaluation():
    policy = NetworkPolicy(SIZE, Discrete(2), hidden=(4,), key=jax.random.key(1))
    last = jnp.array([[-1.0, 1.0], [2.0, -1.0], [0.5, 1.0], [1.0, -2.0]])
    policy = eqx.tree_at(lambda p: p.network.weights[1], policy, last)
    expected = klimb.evaluate(policy, "gymnasium:CartPole-v1", episodes=1, seed=3)
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=int(np.random.SeedSequence(3).generate_state(1)[0]))
    steps, ended, taken = 0, False, set()
    while not ended:
        action = policy.act(obs)
        assert env.action_space.contains(action)
        taken.add(int(action))
        obs, _, terminated, truncated, _ = env.step(action)
        steps, ended = steps + 1, terminated or truncated
    env.close()
    assert taken == {0, 1}
    assert steps == expected.returns[0]


def test_samples_have_the_distribution_of_the_policy():
    obs, n = observations(np.random.default_rng(1), rows=2)[1], 20_000
    rows = np.broadcast_to(obs, (n, SIZE))
    discrete = make_policy(Discrete(5))
    probs = scipy.special.softmax(np.asarray(discrete(jnp.asarray(obs)).logits, np.float64))
    counts = np.bincount(discrete.act(rows, deterministic=False, rng=np.random.default_rng(0)), minlength=5)
    np.testing.assert_allclose(counts / n, probs, atol=5 * np.sqrt(0.25 / n))
    unbounded = make_policy(Box((-np.inf,) * 2, (np.inf,) * 2))
    sample = unbounded.act(rows, deterministic=False, rng=np.random.default_rng(0))
    std = np.exp(np.asarray(unbounded.log_std))
    np.testing.assert_array_less(np.abs(sample.mean(0) - unbounded.act(obs)), 5 * std / np.sqrt(n))
    np.testing.assert_allclose(sample.std(0), std, rtol=5 / np.sqrt(2 * n))


def test_where_the_randomness_comes_from():
    policy = make_policy(PARTLY)
    obs = observations(np.random.default_rng(1), rows=3)
    first, again = (np.random.default_rng(7) for _ in range(2))
    drawn = [policy.act(obs, deterministic=False, rng=first) for _ in range(2)]
    assert not np.array_equal(*drawn)
    for action in drawn:
        np.testing.assert_array_equal(policy.act(obs, deterministic=False, rng=again), action)
    assert not np.array_equal(policy.act(obs, deterministic=False), policy.act(obs, deterministic=False))
    before = first.bit_generator.state
    np.testing.assert_array_equal(policy.act(obs, rng=first), policy.act(obs))
    assert first.bit_generator.state == before


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(3), r"has the shape \(3,\), and the policy reads the shape \(4,\), or \(\.\.\., 4\) for a batch"),
        (np.zeros((5, 2)), r"has the shape \(5, 2\), and the policy reads"),
        (7, r"has the shape \(\), "),
        ({"position": np.zeros(4)}, r"of the type dict, .* of shape \(4,\)"),
        ("left", "of the type str"),
        ((np.zeros(4), {}), r"a tuple of two, as env\.reset\(\) returns it: write obs, info = env\.reset\(\)"),
    ],
)
def test_wrong_observations_get_a_line(obs, message):
    policy = NetworkPolicy(SIZE, Discrete(2), hidden=(4,), key=jax.random.key(0))
    with pytest.raises(ConfigError, match=message) as error:
        policy.act(obs)
    assert "\n" not in str(error.value)


def test_other_misuses_get_a_line(monkeypatch):
    # Users' calls are not checked by types.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    policy = NetworkPolicy(SIZE, Discrete(2), hidden=(4,), key=jax.random.key(0))
    obs = np.zeros(SIZE)
    with pytest.raises(ConfigError, match=r"rng = 3 is not a numpy\.random\.Generator: make one before the loop"):
        policy.act(obs, deterministic=False, rng=3)
    with pytest.raises(ConfigError, match=r"use klimb\.action_distribution there"):
        jax.jit(lambda x: policy.act(x))(obs)
    with pytest.raises(ConfigError, match=r"returns an array for an observation; it has to return a klimb\.Distribut"):
        klimb.act(lambda x: x, obs, observations=policy.observations, actions=policy.actions)
    with pytest.raises(
        ConfigError, match=r"action of shape \(\) for one observation, but the actions Box.* have the shape \(3,\)"
    ):
        klimb.act(policy, obs, actions=UNEVEN)


class Own(eqx.Module):
    gain: jax.Array

    def __call__(self, obs):
        return DiagGaussian(mean=self.gain * obs[:2], log_std=jnp.zeros(2))


class OwnWithSpaces(Own):
    observations: BoxObservations = eqx.field(static=True, default=BoxObservations((SIZE,)))
    actions: Box = eqx.field(static=True, default=Box((-1.0, -1.0), (1.0, 1.0)))


def test_a_policy_of_the_users_own_class():
    obs = np.array([[0.1, -0.2, 5.0, 5.0], [7.0, 0.25, 0.0, 0.0]])
    expected = np.clip(3 * obs[:, :2], -1, 1)
    spaces = {"observations": BoxObservations((SIZE,)), "actions": Box((-1.0, -1.0), (1.0, 1.0))}
    np.testing.assert_allclose(klimb.act(Own(jnp.array(3.0)), obs, **spaces), expected, rtol=1e-6)
    np.testing.assert_allclose(klimb.act(OwnWithSpaces(jnp.array(3.0)), obs), expected, rtol=1e-6)
    for given in ({}, {"actions": spaces["actions"]}, {"observations": spaces["observations"]}):
        with pytest.raises(
            ConfigError, match=r"class Own does not contain its observation and action spaces: give observations= and"
        ):
            klimb.act(Own(jnp.array(3.0)), obs, **given)


def test_the_method_is_the_function():
    policy = make_policy(UNEVEN)
    obs = observations(np.random.default_rng(1))
    np.testing.assert_array_equal(policy.act(obs), klimb.act(policy, obs))
    sampled = [
        call(obs, deterministic=False, rng=np.random.default_rng(2))
        for call in (policy.act, lambda *args, **options: klimb.act(policy, *args, **options))
    ]
    np.testing.assert_array_equal(*sampled)


def test_several_actions_for_one_observation_are_refused():
    with pytest.raises(ConfigError, match="it was made for other actions"):
        klimb.act(
            lambda x: Categorical(logits=jnp.zeros((3, 2))),
            np.zeros(SIZE),
            observations=BoxObservations((SIZE,)),
            actions=Discrete(2),
        )
