"""`klimb.estimate_return`: log-probs of every kind of policy, refusals, and agreement with the formulas."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import ConfigError, DemonstrationError, Demonstrations, NetworkPolicy
from klimb.estimate.recorded_decisions import decisions
from klimb.policies.actions import Box, Discrete, action_spec
from klimb.policies.observations import BoxObservations, MaskedObservations

CARTPOLE = (BoxObservations((4,)), Discrete(2))


def make_policy(observations, actions, seed: int = 0, spread: float = 1.0, **options) -> NetworkPolicy:
    """spread: factor of the last layer, which makes policies of different seeds differ more."""
    policy = NetworkPolicy(observations, actions, hidden=(8,), key=jax.random.key(seed), **options)
    return eqx.tree_at(lambda p: p.network.weights[-1], policy, spread * policy.network.weights[-1])


@pytest.fixture(scope="module")
def behaviour() -> NetworkPolicy:
    return make_policy(*CARTPOLE, seed=1, spread=10.0)


@pytest.fixture(scope="module")
def recorded(behaviour) -> Demonstrations:
    return klimb.record(behaviour, "CartPole-v1", episodes=60, seed=1)


def test_of_the_policy_itself_every_estimate_is_the_mean_return(behaviour, recorded):
    made = klimb.estimate_return(behaviour, recorded, gamma=1.0, resamples=100)
    mean = recorded.returns.mean()
    assert made.behaviour.value == pytest.approx(mean)
    for name, interval in made.estimates.items():
        close = 0.2 if "robust" in name else 1e-4
        assert interval.value == pytest.approx(mean, rel=close), name
        assert interval.low <= interval.value <= interval.high
    assert made.ess == pytest.approx(60, rel=1e-6)
    np.testing.assert_allclose(made.ess_by_step, 60, rtol=1e-6)
    assert made.largest_weight == pytest.approx(1 / 60, rel=1e-3)
    assert (made.episodes, made.steps, made.truncated) == (60, len(recorded.reward), 0)


def test_a_policy_nearby_gets_the_weights_that_are_written_out(recorded):
    policy = make_policy(*CARTPOLE, seed=1, spread=12.0)
    made = klimb.estimate_return(policy, recorded, gamma=0.9, resamples=50)
    log_prob = policy(jnp.asarray(recorded.obs)).log_prob(jnp.asarray(recorded.action))
    ratio = np.exp(np.asarray(log_prob, np.float64) - recorded.log_prob)
    weights, returns, causal = [], [], []
    for rows in np.split(np.arange(len(ratio)), np.flatnonzero(recorded.ended)[:-1] + 1):
        discounted = 0.9 ** np.arange(len(rows)) * recorded.reward[rows]
        weights.append(ratio[rows].prod())
        returns.append(discounted.sum())
        causal.append((np.cumprod(ratio[rows]) * discounted).sum())
    weights, returns = np.array(weights), np.array(returns)
    assert made.estimates["importance_sampling"].value == pytest.approx(np.mean(weights * returns), rel=1e-5)
    expected = np.sum(weights * returns) / weights.sum()
    assert made.estimates["weighted_importance_sampling"].value == pytest.approx(expected, rel=1e-5)
    assert made.estimates["per_decision"].value == pytest.approx(np.mean(causal), rel=1e-5)
    assert made.ess == pytest.approx(weights.sum() ** 2 / np.square(weights).sum(), rel=1e-5)
    again = klimb.estimate_return(policy, recorded, gamma=0.9, resamples=50)
    assert again.estimates == made.estimates


def test_values_that_are_known_take_the_place_of_the_model(recorded):
    policy, rows = make_policy(*CARTPOLE, seed=1, spread=12.0), len(recorded.reward)
    zero = np.zeros(rows)
    made = klimb.estimate_return(policy, recorded, gamma=1.0, resamples=10, values=(zero, zero))
    assert made.estimates["doubly_robust"] == made.estimates["per_decision"]
    assert made.estimates["weighted_doubly_robust"] == made.estimates["weighted_per_decision"]


MASKED = MaskedObservations(BoxObservations((3,)), 5)
PRODUCT = action_spec(
    gymnasium.spaces.Dict({"gear": gymnasium.spaces.Discrete(3), "force": gymnasium.spaces.Box(-2.0, 2.0, (2,))})
)
KINDS = {
    "continuous": (BoxObservations((3,)), Box((-2.0,), (2.0,)), {}),
    "squashed": (BoxObservations((3,)), Box((-2.0,), (2.0,)), {"tanh_squash": True}),
    "several parts": (BoxObservations((3,)), PRODUCT, {}),
    "masked": (MASKED, Discrete(5), {}),
    "memory": (BoxObservations((3,)), Discrete(3), {"memory": "gru", "memory_size": 4}),
    "memory, continuous": (BoxObservations((3,)), Box((-2.0,), (2.0,)), {"memory": "lstm", "memory_size": 4}),
}


def made_up(observations, actions, lengths=(3, 5, 2)) -> tuple[np.ndarray, np.ndarray]:
    """(observations, which rows end an episode) of R rows; a mask allows the first choice and some others."""
    rng, rows = np.random.default_rng(0), sum(lengths)
    obs = rng.normal(size=(rows, *observations.shape)).astype(np.float32)
    if isinstance(observations, MaskedObservations):
        obs[:, -actions.num_choices :] = rng.random((rows, actions.num_choices)) < 0.6
        obs[:, -actions.num_choices] = 1
    ended = np.zeros(rows, bool)
    ended[np.cumsum(lengths) - 1] = True
    return obs, ended


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_policy_has_the_log_probs_of_acting_step_by_step(kind):
    """Episodes of made-up observations, acted in one step after the other, and then read as a whole."""
    observations, actions, options = KINDS[kind]
    policy = make_policy(observations, actions, **options)
    obs, ended = made_up(observations, actions)
    action, log_prob, carry = [], [], None
    size = options.get("memory_size", 0) * (2 if options.get("memory") == "lstm" else 1)
    for row, key in enumerate(jax.random.split(jax.random.key(3), len(obs))):
        if size:
            carry = jnp.zeros(policy.carry_size) if carry is None else carry
            distribution, carry = policy.step(jnp.asarray(obs[row]), carry)
            carry = None if ended[row] else carry
        else:
            distribution = policy(jnp.asarray(obs[row]))
        sample = distribution.sample(key)
        action.append(distribution.to_environment(sample))
        log_prob.append(distribution.log_prob(sample))
    demonstrations = Demonstrations(
        obs=obs,
        action=np.stack(action).astype(actions.dtype),
        log_prob=np.array(log_prob, np.float32),
        reward=np.ones(len(obs), np.float32),
        terminated=ended,
        truncated=np.zeros(len(obs), bool),
        next_obs=obs,
        actions=actions,
        environment="made up",
    )
    made = decisions(policy, demonstrations)
    np.testing.assert_allclose(made.log_prob, demonstrations.log_prob, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made.weight.sum(0), 1, rtol=1e-5)
    result = klimb.estimate_return(policy, demonstrations, gamma=1.0, min_ess=0.0, resamples=10)
    assert result.ess == pytest.approx(3, rel=1e-3)
    assert result.estimates["per_decision"].value == pytest.approx(10 / 3, rel=1e-3)


def test_the_policys_own_actions_give_its_expectations():
    """Of a discrete space exactly; of a box by samples, of the mean of the action here."""
    obs, ended = made_up(BoxObservations((3,)), Box((-2.0,), (2.0,)), lengths=(200, 200))
    policy = make_policy(BoxObservations((3,)), Box((-2.0,), (2.0,)))
    blank = np.zeros(len(obs), np.float32)
    fields = {"obs": obs, "log_prob": blank, "reward": blank, "terminated": ended, "truncated": ended & False}
    rest = {"next_obs": obs, "environment": "made up"}
    box = Demonstrations(action=blank[:, None], actions=policy.actions, **fields, **rest)
    made = decisions(policy, box)
    difference = (made.own[..., 0] * made.weight).sum(0) - np.asarray(policy(jnp.asarray(obs)).mean[:, 0])
    assert abs(difference.mean()) < 4 * 2.0 / np.sqrt(made.weight.size)
    choices = make_policy(BoxObservations((3,)), Discrete(3))
    discrete = Demonstrations(action=blank.astype(np.int32), actions=Discrete(3), **fields, **rest)
    made = decisions(choices, discrete)
    np.testing.assert_allclose(made.weight.T, choices(jnp.asarray(obs)).probs, rtol=1e-5)
    np.testing.assert_array_equal(made.own[:, 0], np.eye(3))


def test_truncated_episodes_count_with_their_return_up_to_there(behaviour, recorded):
    cut = dataclasses.replace(recorded, terminated=recorded.terminated & False, truncated=recorded.ended)
    made = klimb.estimate_return(behaviour, cut, gamma=1.0, resamples=10)
    assert made.truncated == 60
    assert made.estimates["per_decision"].value == pytest.approx(recorded.returns.mean(), rel=1e-4)


def test_below_the_stated_sample_size_nothing_is_estimated(recorded):
    far = make_policy(*CARTPOLE, seed=2, spread=3000.0)
    line = r"leave an effective sample size of [\d.]+ of 60 episodes, below min_ess = 10: record more episodes"
    with pytest.raises(ConfigError, match=line):
        klimb.estimate_return(far, recorded, gamma=1.0)
    with pytest.raises(ConfigError, match=r"effective sample size of 60\.0 of 60 episodes, below min_ess = 61"):
        klimb.estimate_return(make_policy(*CARTPOLE, seed=1, spread=10.0), recorded, gamma=1.0, min_ess=61.0)


def test_weights_beyond_all_numbers_are_refused_whatever_is_asked_for(recorded):
    beyond = dataclasses.replace(recorded, log_prob=np.full_like(recorded.log_prob, -1000.0))
    with pytest.raises(ConfigError, match="from which nothing can be estimated"):
        klimb.estimate_return(make_policy(*CARTPOLE), beyond, gamma=1.0, min_ess=0.0)


def test_what_can_not_be_weighted_gets_one_line(behaviour, recorded):
    modes = dataclasses.replace(recorded, log_prob=np.full_like(recorded.log_prob, np.nan))
    other = make_policy(BoxObservations((3,)), Discrete(2))
    wrong: dict[str, tuple[type[Exception], object, object, dict]] = {
        "log-probs are missing in": (DemonstrationError, behaviour, modes, {}),
        r"has observations of shape \(4,\); the policy reads \(3,\)": (DemonstrationError, other, recorded, {}),
        "the policy has": (DemonstrationError, make_policy(CARTPOLE[0], Discrete(3)), recorded, {}),
        "gamma = 1.5 is outside": (ConfigError, behaviour, recorded, {"gamma": 1.5}),
        "min_ess = -1": (ConfigError, behaviour, recorded, {"min_ess": -1.0}),
        "resamples = 0": (ConfigError, behaviour, recorded, {"resamples": 0}),
        "is not a policy": (klimb.WrongObject, klimb.TRPO(), recorded, {}),
        "'runs/early' are no demonstrations": (klimb.WrongObject, behaviour, "runs/early", {}),
        r"v has the shape \(3,\); it needs one number": (
            ConfigError,
            behaviour,
            recorded,
            {"values": (recorded.reward, np.zeros(3))},
        ),
    }
    for line, (kind, policy, demonstrations, options) in wrong.items():
        with pytest.raises(kind, match=line) as error:
            klimb.estimate_return(policy, demonstrations, **{"gamma": 1.0} | options)
        assert str(error.value).isprintable()
    broken = eqx.tree_at(lambda p: p.network.biases[-1], behaviour, jnp.full(2, jnp.nan))
    with pytest.raises(DemonstrationError, match="log-probs are not numbers in"):
        klimb.estimate_return(broken, recorded, gamma=1.0)


def test_one_episode_has_no_model(behaviour):
    alone = klimb.record(behaviour, "CartPole-v1", episodes=1)
    made = klimb.estimate_return(behaviour, alone, gamma=1.0, min_ess=1.0 - 1e-6, resamples=5)
    assert set(made.estimates) == {
        "importance_sampling",
        "weighted_importance_sampling",
        "per_decision",
        "weighted_per_decision",
    }
