"""PPO against its own definition written out by hand, in NumPy, on a softmax table."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, Batch, RunConfig, Status, TrainOptions
from klimb.errors import ConfigError
from klimb.improve.minibatches import shuffled
from klimb.improve.rule import KLLimit
from klimb.improve.warm_up import take_step
from klimb.tabular.table import SoftmaxTable
from klimb.training.program import Program
from problems import make_table, take

S, A, ROWS = 4, 3, 24
ONE = {"epochs": 1, "num_minibatches": 1}
PLAIN = PPO(learning_rate=0.1, epochs=1, num_minibatches=1, max_grad_norm=None)


def make_batch(policy: SoftmaxTable, *, scale: float = 1.0, log_ratio: float = 0.0) -> Batch:
    """Samples in every state, two of them padding. `log_ratio` says how far the policy has moved since."""
    rng = np.random.default_rng(0)
    state, action = jnp.asarray(np.arange(ROWS) % S), jnp.asarray(rng.integers(A, size=ROWS))
    return Batch(
        obs=state,
        action=action,
        log_prob=jax.vmap(policy)(state).log_prob(action) - log_ratio,
        advantage=jnp.asarray(scale * rng.normal(size=ROWS)),
        value_target=jnp.zeros(ROWS),
        weight=jnp.ones(ROWS).at[5:7].set(0),
    )


@pytest.fixture
def policy(x64):
    return make_table(1, S, A)


def softmax(logits: np.ndarray) -> np.ndarray:
    z = np.exp(logits - logits.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def log_prob(logits: np.ndarray, batch: Batch) -> np.ndarray:
    return np.log(softmax(logits)[np.asarray(batch.obs), np.asarray(batch.action)])


def policy_gradient(logits: np.ndarray, batch: Batch, coefficient: np.ndarray) -> np.ndarray:
    """Σ w c ∇log π / Σ w, with ∇log π(a|s) = e_a − π(·|s) in row s."""
    gradient, pi = np.zeros((S, A)), softmax(logits)
    for s, a, w, c in zip(batch.obs, batch.action, batch.weight, coefficient, strict=True):
        gradient[int(s)] += float(w * c) * (np.eye(A)[int(a)] - pi[int(s)])
    return gradient / float(batch.weight.sum())


def clipped_gradient(logits: np.ndarray, batch: Batch, clip_eps: float) -> np.ndarray:
    """ρ Â ∇log π, of the rows where moving further still pays."""
    ratio, advantage = np.exp(log_prob(logits, batch) - np.asarray(batch.log_prob)), np.asarray(batch.advantage)
    pays = np.where(advantage > 0, ratio < 1 + clip_eps, ratio > 1 - clip_eps)
    return policy_gradient(logits, batch, pays * ratio * advantage)


def adam_by_hand(logits: np.ndarray, gradients, learning_rate: float):
    """Kingma & Ba 2015, Algorithm 1, uphill, ε = 1e-5; `gradients` is asked at every new point."""
    m, v = np.zeros_like(logits), np.zeros_like(logits)
    for k, gradient_at in enumerate(gradients, start=1):
        g = gradient_at(logits)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        logits = logits + learning_rate * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-5)
    return logits


def test_first_gradient_is_the_policy_gradient(policy):
    """At the old parameters every ratio is 1: the surrogate's gradient is mean Â ∇log π."""
    # Advantages of 1e-4 bring the gradient down to Adam's ε, where the first step shows its size.
    batch = make_batch(policy, scale=1e-4)
    new, _, info = take(PLAIN, policy, batch, epochs=1, clip_eps=0.2)
    g = policy_gradient(np.asarray(policy.logits), batch, np.asarray(batch.advantage))
    np.testing.assert_allclose(new.logits - policy.logits, 0.1 * g / (np.abs(g) + 1e-5), rtol=0, atol=1e-9)
    assert float(info.extra["grad_norm"]) == pytest.approx(np.linalg.norm(g), rel=1e-9)


def test_all_epochs_follow_the_definition(policy):
    """Six epochs with a clip that bites, step by step the same as Adam on the clipped surrogate by hand."""
    batch, epochs = make_batch(policy), 6
    new, _, info = take(PLAIN, policy, batch, epochs=epochs, clip_eps=0.15)
    by_hand = [lambda logits: clipped_gradient(logits, batch, 0.15)] * epochs
    expected = adam_by_hand(np.asarray(policy.logits), by_hand, 0.1)
    np.testing.assert_allclose(new.logits, expected, rtol=0, atol=1e-9)
    without_clip = [
        lambda logits: policy_gradient(
            logits, batch, np.exp(log_prob(logits, batch) - np.asarray(batch.log_prob)) * np.asarray(batch.advantage)
        )
    ] * epochs
    assert np.abs(adam_by_hand(np.asarray(policy.logits), without_clip, 0.1) - expected).max() > 1e-2

    ratio = np.exp(log_prob(expected, batch) - np.asarray(batch.log_prob))
    counted = np.asarray(batch.weight) > 0
    outside = np.mean(np.abs(ratio - 1)[counted] > 0.15)
    assert 0 < outside < 1
    assert float(info.extra["clip_fraction"]) == pytest.approx(outside, abs=1e-12)
    assert info.extra["epochs_done"] == epochs


@pytest.mark.parametrize(
    ("advantage", "log_ratio", "moves"),
    [(1.0, 0.5, False), (1.0, -0.5, True), (-1.0, 0.5, True), (-1.0, -0.5, False)],
    ids=["good and likelier already", "good and rarer", "bad and likelier", "bad and rarer already"],
)
def test_the_clip_stops_only_what_has_gone_far_enough(policy, advantage, log_ratio, moves):
    batch = make_batch(policy, log_ratio=log_ratio)
    batch = eqx.tree_at(lambda b: b.advantage, batch, jnp.full(ROWS, advantage, float))
    new, _, info = take(PLAIN, policy, batch, epochs=1, clip_eps=0.2)
    assert info.status == Status.ACCEPTED
    assert (np.asarray(new.logits) != np.asarray(policy.logits)).any() == moves
    assert info.extra["clip_fraction"] == 1


def test_minibatches_visit_every_row(policy):
    """Whichever single row has something to say, one epoch of minibatches hears it; padding it does not."""
    order = np.asarray(shuffled(jax.random.key(3), ROWS, 4))
    assert order.shape == (4, 6)
    assert sorted(order.reshape(-1)) == list(range(ROWS))
    assert (order.reshape(-1) != np.arange(ROWS)).any()

    batch, rule = make_batch(policy), PPO(epochs=1, num_minibatches=4)

    @jax.jit
    @jax.vmap
    def move(key, advantage):
        only = eqx.tree_at(lambda b: b.advantage, batch, advantage)
        return take_step(rule, key, policy, rule.init(policy), only)[0].logits - policy.logits

    moved = np.asarray(move(jax.random.split(jax.random.key(0), ROWS), jnp.eye(ROWS)))
    np.testing.assert_array_equal(np.any(moved != 0, axis=(1, 2)), np.asarray(batch.weight) > 0)


def test_target_kl_ends_the_epochs(policy):
    """The epoch that passes the target is the last; the one before it was still below."""
    batch = make_batch(policy)
    stopped, _, info = take(dataclasses.replace(PLAIN, epochs=20, target_kl=0.03), policy, batch)
    done = int(info.extra["epochs_done"])
    assert 1 < done < 20

    def kl(logits) -> float:
        p, q = softmax(np.asarray(policy.logits)), softmax(np.asarray(logits))
        rows = np.sum(p * np.log(p / q), axis=1)[np.asarray(batch.obs)]
        return float(np.average(rows, weights=np.asarray(batch.weight)))

    by_hand = lambda logits: clipped_gradient(logits, batch, 0.2)  # noqa: E731
    before = adam_by_hand(np.asarray(policy.logits), [by_hand] * (done - 1), 0.1)
    np.testing.assert_allclose(
        stopped.logits, adam_by_hand(np.asarray(policy.logits), [by_hand] * done, 0.1), rtol=0, atol=1e-9
    )
    assert kl(before) <= 0.03 < kl(stopped.logits)
    assert float(info.kl_old_new) == pytest.approx(kl(stopped.logits), rel=1e-9)
    *_, info = take(PLAIN, policy, batch, epochs=20, clip_eps=0.2)
    assert info.extra["epochs_done"] == 20


def kls(old: np.ndarray, new: np.ndarray, batch: Batch) -> dict[str, np.ndarray]:
    """Both KLs by direction, for every row of positive weight."""
    p, q = (np.log(softmax(np.asarray(logits)))[np.asarray(batch.obs)] for logits in (old, new))
    counted = np.asarray(batch.weight) > 0
    rows = {"old_new": np.sum(np.exp(p) * (p - q), axis=1), "new_old": np.sum(np.exp(q) * (q - p), axis=1)}
    return {direction: kl[counted] for direction, kl in rows.items()}


DIRECTIONS = ["old_new", "new_old"]


def test_the_early_stop_measures_the_kl_of_its_direction(policy):
    batch, target, logits = make_batch(policy), 0.3, np.asarray(policy.logits)
    by_hand = [lambda logits: clipped_gradient(logits, batch, 0.9)] * 20
    after = [kls(logits, adam_by_hand(logits, by_hand[:epochs], 0.1), batch) for epochs in range(1, 21)]
    passes = {d: next(k for k, kl in enumerate(after, 1) if kl[d].mean() > target) for d in DIRECTIONS}
    assert passes["old_new"] != passes["new_old"]
    for direction in DIRECTIONS:
        rule = dataclasses.replace(PLAIN, epochs=20, clip_eps=0.9, target_kl=target, kl_direction=direction)
        *_, info = take(rule, policy, batch)
        assert info.extra["epochs_done"] == passes[direction]


@pytest.mark.slow
def test_the_penalty_adapts_to_the_kl_of_its_direction(policy):
    """With a target whose 1.5-fold is between the two KLs, λ doubles in the direction of the larger one only."""
    batch = make_batch(policy)
    rules = {d: dataclasses.replace(PLAIN, learning_rate=1.0, penalty="kl", kl_direction=d) for d in DIRECTIONS}
    # At the first gradient the penalty's is 0, so one epoch leads to the same policy in both directions.
    reached = kls(policy.logits, take(rules["old_new"], policy, batch)[0].logits, batch)
    smaller, larger = sorted(DIRECTIONS, key=lambda direction: reached[direction].mean())
    target = float(np.sqrt(reached[smaller].mean() * reached[larger].mean())) / 1.5
    for direction, factor in ((smaller, 1), (larger, 2)):
        rule = dataclasses.replace(rules[direction], target_kl=target)
        _, state, info = take(rule, policy, batch)
        assert state.multiplier == factor
        assert float(info.kl_max) == pytest.approx(reached[direction].max(), rel=1e-9)
        assert rule.traits.kl == KLLimit(target, enforced=False, direction=direction)


def test_max_grad_norm_limits_the_norm_of_the_whole_gradient(policy):
    """‖g‖ is brought down to the limit before Adam, direction kept; limiting elements would give another step."""
    batch, limit = make_batch(policy), 2e-5
    new, _, info = take(PPO(learning_rate=0.1, max_grad_norm=limit, **ONE), policy, batch)
    g = policy_gradient(np.asarray(policy.logits), batch, np.asarray(batch.advantage))
    assert np.linalg.norm(g) > 100 * limit
    limited = g * limit / np.linalg.norm(g)
    moved = np.asarray(new.logits - policy.logits)
    np.testing.assert_allclose(moved, 0.1 * limited / (np.abs(limited) + 1e-5), rtol=0, atol=1e-9)
    by_element = np.clip(g, -limit, limit)
    assert np.abs(moved - 0.1 * by_element / (np.abs(by_element) + 1e-5)).max() > 1e-3
    assert float(info.extra["grad_norm"]) == pytest.approx(np.linalg.norm(g), rel=1e-9)


@pytest.mark.parametrize(("schedule", "share"), [("linear", 0.5), ("constant", 1.0)])
def test_a_linear_schedule_halves_the_step_in_the_middle_of_the_run(policy, schedule, share):
    rule, batch = PPO(learning_rate_schedule=schedule, **ONE), make_batch(policy)
    first, middle = (
        take(rule, policy, eqx.tree_at(lambda b: b.fraction_done, batch, jnp.array(done)))[0].logits - policy.logits
        for done in (0.0, 0.5)
    )
    np.testing.assert_allclose(middle, share * first, rtol=1e-9)
    assert np.abs(first).max() == pytest.approx(3e-4, rel=1e-2)


def test_entropy_bonus_adds_its_own_gradient(policy):
    batch = make_batch(policy, scale=1e-4)
    new, *_ = take(PPO(learning_rate=0.1, ent_coef=1e-4, max_grad_norm=None, **ONE), policy, batch)
    pi = softmax(np.asarray(policy.logits))
    entropy = -np.sum(pi * np.log(pi), axis=1, keepdims=True)
    visits = np.bincount(np.asarray(batch.obs), weights=np.asarray(batch.weight), minlength=S)[:, None]
    bonus = visits / visits.sum() * -pi * (np.log(pi) + entropy)
    g = policy_gradient(np.asarray(policy.logits), batch, np.asarray(batch.advantage)) + 1e-4 * bonus
    np.testing.assert_allclose(new.logits - policy.logits, 0.1 * g / (np.abs(g) + 1e-5), rtol=0, atol=1e-9)


def test_rows_that_do_not_divide_are_refused_with_the_numbers(policy):
    rule = PPO(num_minibatches=5)
    with pytest.raises(ValueError, match=r"= 24 is not divisible by num_minibatches = 5; choose num_steps = 25"):
        rule.step(jax.random.key(0), policy, rule.init(policy), make_batch(policy))
    with pytest.raises(ValueError, match=r"= 24 is not divisible by num_minibatches = 48"):
        PPO(num_minibatches=48).step(jax.random.key(0), policy, rule.init(policy), make_batch(policy))


def test_the_remedy_offered_by_a_run_works():
    """It is refused before anything is collected, and the number of steps that is offered is accepted."""
    options = {"num_envs": 3, "critic_num_minibatches": 1}
    with pytest.raises(
        ConfigError,
        match=r"num_steps × num_envs = 129 is not divisible by num_minibatches = 4; choose num_steps = 44 .*envs = 3",
    ):
        RunConfig("CartPole-v1", PPO(), TrainOptions(num_steps=43, **options))
    RunConfig("CartPole-v1", PPO(), TrainOptions(num_steps=44, **options))


def test_every_epoch_has_its_own_advantages(policy):
    """Two epochs on advantages a and b are an epoch on a, then one on b: ratios are to the same behaviour policy."""
    batch, rule = make_batch(policy), dataclasses.replace(PLAIN, recompute_advantages=True)
    other = jnp.flip(batch.advantage)
    both = dataclasses.replace(batch, epoch_advantage=jnp.stack([batch.advantage, other]))
    key = jax.random.key(0)
    together, _, _ = take_step(dataclasses.replace(rule, epochs=2), key, policy, rule.init(policy), both)
    first, state, _ = take_step(rule, key, policy, rule.init(policy), batch)
    second, _, _ = take_step(rule, key, first, state, dataclasses.replace(batch, advantage=other))
    np.testing.assert_allclose(together.logits, second.logits, rtol=1e-12)
    unchanged, _, _ = take_step(dataclasses.replace(rule, epochs=2), key, policy, rule.init(policy), batch)
    assert float(jnp.max(jnp.abs(unchanged.logits - together.logits))) > 1e-3


@pytest.mark.slow
def test_advantages_are_computed_anew_with_the_critic_of_every_epoch():
    """A whole iteration, against the estimator's advantages of a critic that has been fitted one epoch at a time."""
    options = {"num_envs": 2, "num_steps": 16, "critic_epochs": 2, "critic_num_minibatches": 1, "hidden": (8,)}
    options["critic_learning_rate"] = 1.0
    rule = dataclasses.replace(PPO(), epochs=2, num_minibatches=1, recompute_advantages=True)
    config = RunConfig("Pendulum-v1", rule, TrainOptions(**options, normalize_value_targets=False, env_steps=64))
    program = Program(config, klimb.make("Pendulum-v1"))
    iteration = program.iteration
    state = jax.tree.map(lambda x: x[0], program.initial_state())
    state, rollout, _ = iteration.collect(state)
    critic = eqx.combine(state.critic, iteration.critic_static)

    def estimate(critic):
        return iteration.estimator.estimate(rollout, *iteration.estimator.values(critic, rollout), fraction_done=0.0)

    key, batch = jax.random.key(3), estimate(critic)
    _, _, _, data = iteration.fit_in_rounds(key, critic, state, batch)
    one = dataclasses.replace(iteration.critic_fit, critic_epochs=1)
    fitted, _, _ = one.fit(jax.random.split(key, 2)[0], critic, state.critic_state, batch)
    np.testing.assert_allclose(data.epoch_advantage[0], batch.advantage, atol=1e-5)
    np.testing.assert_allclose(data.epoch_advantage[1], estimate(fitted).advantage, atol=1e-4)
    assert float(jnp.max(jnp.abs(data.epoch_advantage[1] - data.epoch_advantage[0]))) > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"critic_epochs": 15}, r"critic_epochs = 15 is not divisible by epochs = 10, .* choose critic_epochs = 20"),
        ({"advantage": "reward_to_go", "bootstrap": None}, "with advantage = reward_to_go they don't depend on it"),
    ],
)
def test_what_recomputed_advantages_need(options, said):
    with pytest.raises(ConfigError, match=said):
        RunConfig("CartPole-v1", PPO(recompute_advantages=True), TrainOptions(**options))
