"""The mixture of the last policies and of the one that made the demonstrations: its log-probs, shares and gradient."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from klimb import Categorical, Estimator, NetworkPolicy, OffPolicyGradient, Rollout, TabularMDP
from klimb.collect.compiled import CompiledCollector
from klimb.collect.history import History
from klimb.environments.control.cartpole import CartPole
from klimb.estimate.importance import mixture_by_shares
from klimb.policies.actions import Discrete
from klimb.policies.critic import as_critic
from klimb.training.replay import Replay
from klimb.types import Batch, Demonstrated, Mixture, TrainState
from problems import make_mdp

# Log-probs: every policy is asked about every action again.


def sharp(seed: int) -> NetworkPolicy:
    """Away from the symmetric start, where all policies say the same."""
    policy = NetworkPolicy(4, Discrete(2), hidden=(3,), key=jax.random.key(seed))
    return eqx.tree_at(lambda p: p.network.weights[-1], policy, 50 * policy.network.weights[-1])


def collected(policy: NetworkPolicy, seed: int, num_envs: int) -> Rollout:
    collector = CompiledCollector(CartPole(), num_envs=num_envs, num_steps=5)
    key = jax.random.key(seed)
    return eqx.filter_jit(lambda policy: collector.collect(key, policy, collector.init(key))[1])(policy)


def state_of(policy, history=()) -> TrainState:
    """A state of which only the policy and the history are looked at."""
    arrays = eqx.filter(policy, eqx.is_array)
    return TrainState(arrays, (), (), (), (), history, (), jnp.int32(0), jnp.uint32(0), jax.random.key(0))


def no_values(obs: Array) -> Array:
    return jnp.zeros(())


ESTIMATOR = Estimator(advantage="reward_to_go", bootstrap=None, normalize_advantage=False)


@pytest.fixture(scope="module")
def networks():
    """Three policies, and the one that made demonstrations; what each has collected: 2 and 3 columns of 5 rows."""
    policies = [sharp(k) for k in range(4)]
    rollouts = [collected(policy, 9 + k, 2) for k, policy in enumerate(policies[:3])]
    demonstrated = collected(policies[3], 20, 3)
    # The last column is cut after three rows.
    valid = demonstrated.valid.at[3:, 2].set(False)
    return policies, rollouts, dataclasses.replace(demonstrated, valid=valid)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "pushed"), [(1, 1), (2, 3), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_every_policy_is_asked_about_every_action(networks, length, pushed):
    """All four blocks: rollouts and demonstrations, under the policies of the history and under the demonstrator."""
    policies, rollouts, demonstrations = networks
    arrays, statics = zip(*(eqx.partition(policy, eqx.is_array) for policy in policies), strict=True)
    replay = Replay(length, True, statics[0], ESTIMATOR, statics[3])
    state = state_of(policies[0], History.empty(length, rollouts[0], arrays[0], keeps_policies=True))
    if length == 1:
        state = state_of(policies[0])

    @eqx.filter_jit
    def replayed(state: TrainState, rollout: Rollout, behaviour) -> tuple:
        batch = ESTIMATOR.estimate(rollout, *[jnp.zeros_like(rollout.reward)] * 2, fraction_done=0.0)
        given = Demonstrated(demonstrations, arrays[3])
        return replay.training_batch(state, as_critic(no_values), batch, given, behaviour)

    for k in range(pushed):
        history, batch = replayed(state, rollouts[k], arrays[k])
        state = state_of(policies[k], history)
    rollout, mixture = batch.trajectory.rollout, batch.trajectory.mixture
    collectors = {slot: max(k for k in range(pushed) if k % length == slot) for slot in range(min(length, pushed))}
    collectors[length] = 3
    assert mixture.log_prob.shape == (length + 1, 5, 2 * length + 3)
    for slot, number in collectors.items():
        expected = policies[number](rollout.obs).log_prob(rollout.action)
        # Were the blocks mixed up, this would not hold for another policy either.
        others = [policies[k](rollout.obs).log_prob(rollout.action) for k in range(4) if k != number]
        for columns in (slice(0, 2 * length), slice(2 * length, None)):
            rows = rollout.valid[:, columns]
            at = lambda x, columns=columns, rows=rows: np.asarray(x[:, columns])[rows]  # noqa: E731
            np.testing.assert_allclose(at(mixture.log_prob[slot]), at(expected), rtol=1e-5, atol=1e-6)
            assert all(np.abs(at(mixture.log_prob[slot]) - at(other)).max() > 1e-3 for other in others)
    # A slot that is empty has no share; 10 rows of each rollout, 13 of the demonstrations.
    rows = np.array([10.0 if slot in collectors else 0.0 for slot in range(length)] + [13.0])
    np.testing.assert_allclose(np.exp(mixture.log_row_share), rows / rows.sum(), rtol=1e-6)
    np.testing.assert_array_equal(batch.trajectory.demonstrated, np.arange(2 * length + 3) >= 2 * length)


def test_shares_are_of_trajectories_and_of_rows():
    """Policy 0 has three trajectories in five rows, policy 1 one in three; policy 2 has nothing, and says NaN."""
    valid = jnp.array([[1, 1, 1], [1, 1, 1], [1, 0, 1]], bool)
    ended = jnp.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], bool)
    log_prob = jnp.zeros((3, 3, 3)).at[2].set(jnp.nan)
    mixture = mixture_by_shares(log_prob, jnp.array([0, 0, 1]), valid, ended)
    np.testing.assert_allclose(np.exp(mixture.log_share), [3 / 4, 1 / 4, 0], rtol=1e-6)
    np.testing.assert_allclose(np.exp(mixture.log_row_share), [5 / 8, 3 / 8, 0], rtol=1e-6)
    assert np.isfinite(mixture.log_prob).all()


# The gradient, by enumeration of every batch that there can be: trajectories of two steps in two states.

S, A, T, GAMMA = 2, 2, 2, 0.8
COLUMNS = np.array(list(itertools.product(*[range(S), range(A)] * T)))
STATES, ACTIONS = COLUMNS[:, 0::2].T, COLUMNS[:, 1::2].T  # [T, 16]


class Table(eqx.Module):
    """A softmax table of states that are real numbers, as critics want them."""

    logits: Array

    def __call__(self, obs: Array) -> Categorical:
        return Categorical(self.logits[obs.astype(int)])


class World(NamedTuple):
    """policies: of the history. demonstrator: who made the demonstrations. other: a wrong estimate of that."""

    mdp: TabularMDP
    target: Table
    policies: list[Table]
    demonstrator: Table
    other: Table


@pytest.fixture
def world(x64) -> World:
    rng = np.random.default_rng(5)
    mdp = make_mdp(rng, S, A, gamma=GAMMA, concentration=1.0)
    target, first, second, demonstrator, other = (Table(jnp.asarray(rng.normal(size=(S, A)))) for _ in range(5))
    return World(mdp, target, [first, second], demonstrator, other)


def exact_gradient(world: World) -> np.ndarray:
    """∇J by autodiff of J = Σ_t γᵗ Σ p(s_t) π(a|s) r(s, a), which knows nothing of trajectories."""

    def objective(logits: Array) -> Array:
        pi = jax.nn.softmax(logits)
        marginals = world.mdp.state_marginals(pi, T)
        return jnp.einsum("t,ts,sa,sa->", GAMMA ** jnp.arange(T), marginals, pi, world.mdp.reward)

    return np.asarray(jax.grad(objective)(world.target.logits))


def chance(mdp: TabularMDP, table: Table) -> np.ndarray:
    """p_π(τ) of all 16 trajectories."""
    p = np.asarray(mdp.initial)[STATES[0]] * np.exp(np.asarray(log_probs(table, STATES, ACTIONS))).prod(0)
    for t in range(T - 1):
        p = p * np.asarray(mdp.transition)[STATES[t], ACTIONS[t], STATES[t + 1]]
    return p


def log_probs(table: Table, states: Array, actions: Array) -> Array:
    return jax.nn.log_softmax(table.logits)[states, actions]


def columns_of(world: World, numbers: list[Array], table: Table) -> Rollout:
    """Trajectories by their numbers, side by side, with the log-probs of a table as the behaviour's."""
    states, actions = (jnp.asarray(x)[:, jnp.stack(numbers)] for x in (STATES, ACTIONS))
    flags = jnp.zeros(states.shape, bool)
    return Rollout(
        obs=states.astype(float),
        action=actions,
        log_prob=log_probs(table, states, actions),
        reward=world.mdp.reward[states, actions],
        terminated=flags.at[-1].set(True),
        truncated=flags,
        successor=states.astype(float),
        valid=~flags,
        time=jnp.broadcast_to(jnp.arange(T)[:, None], states.shape),
    )


def expected_gradient(
    world: World, weighting: str, history: int, clone: Table, change: Callable[[Mixture], Mixture] = lambda m: m
) -> np.ndarray:
    """The mean of the estimate over every batch of a trajectory of each policy and two of the demonstrator.

    clone: what is taken for the demonstrator. change: of the mixture, before it is used.
    """
    estimator = dataclasses.replace(ESTIMATOR, gamma=GAMMA, gae_lambda=1.0, discount_states=True)
    static = eqx.partition(clone, eqx.is_array)[1]
    replay = Replay(history, True, static, estimator, static)
    rule = OffPolicyGradient(weighting=weighting, behaviour="mixture", history=history)
    policies = world.policies[:history]

    def estimate(*numbers: Array) -> Array:
        """The gradient of one batch: two trajectories of the demonstrator, then one of each policy."""
        demonstrations = Demonstrated(columns_of(world, list(numbers[:2]), clone), eqx.filter(clone, eqx.is_array))
        rollouts = [columns_of(world, [n], p) for n, p in zip(numbers[2:], policies, strict=True)]
        past = () if history == 1 else History.empty(history, rollouts[0], policies[0], keeps_policies=True)
        for policy, rollout in zip(policies[:-1], rollouts[:-1], strict=True):
            past = past.push(rollout, policy, static)
        newest = estimator.estimate(rollouts[-1], *[jnp.zeros((T, 1))] * 2, fraction_done=0.0)
        state = state_of(policies[-1], past)
        _, batch = replay.training_batch(state, as_critic(no_values), newest, demonstrations)
        batch = eqx.tree_at(lambda b: b.trajectory.mixture, batch, replace_fn=change)

        def objective(logits: Array, batch: Batch) -> Array:
            return rule._objective(jax.vmap(Table(logits))(batch.obs), batch)

        return T * jax.grad(objective)(world.target.logits, batch)

    count = 2 + history
    numbers = np.indices((len(COLUMNS),) * count).reshape(count, -1)
    collectors = [world.demonstrator] * 2 + policies
    chances = np.prod([chance(world.mdp, table)[n] for table, n in zip(collectors, numbers, strict=True)], axis=0)
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    gradients = jax.jit(jax.vmap(estimate))(*map(jnp.asarray, numbers))
    return np.einsum("b,bsa->sa", chances, np.asarray(gradients))


@pytest.mark.parametrize(
    ("weighting", "history"),
    [
        ("trajectory", 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("per_decision", 1), ("trajectory", 2))),
        pytest.param("per_decision", 2, marks=pytest.mark.slow),
    ],
)
def test_the_mixture_with_the_demonstrator_is_unbiased(world, weighting, history):
    exact = exact_gradient(world)
    estimate = expected_gradient(world, weighting, history, world.demonstrator)
    np.testing.assert_allclose(estimate, exact, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["trajectory", "per_decision"])
def test_the_mixture_with_a_wrong_clone_or_wrong_shares_is_biased(world, weighting):
    exact = exact_gradient(world)
    wrong = expected_gradient(world, weighting, 1, world.other)
    assert np.abs(wrong - exact).max() > 1e-3
    equal = expected_gradient(
        world,
        weighting,
        1,
        world.demonstrator,
        lambda mixture: dataclasses.replace(mixture, log_share=jnp.full(2, -np.log(2.0))),
    )
    assert np.abs(equal - exact).max() > 1e-3
