"""Exact tables against brute force: long truncated sums, the lemmas of the theory, and hand-made bad inputs."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from klimb import Categorical, NetworkPolicy, TabularMDP, exact_batch
from klimb.improve.objectives import surrogate_gain
from klimb.policies.actions import Discrete
from klimb.policies.parameters import flatten
from klimb.tabular.table import SoftmaxTable
from problems import GAMMA, A, S, make_mdp

HORIZON = 400  # 0.9⁴⁰⁰ ≈ 5e-19


class Rows(eqx.Module):
    """A linear policy that reads one-hot rows and, like a normaliser, would broadcast a state number."""

    weight: Float[Array, "S A"]
    center: Float[Array, " S"]

    def __call__(self, row: Array) -> Categorical:
        return Categorical(logits=(row - self.center) @ self.weight)


def make_pi(seed: int, states: int = S, actions: int = A) -> np.ndarray:
    return np.random.default_rng(100 + seed).dirichlet(np.ones(actions), size=states)


def brute_force(mdp: TabularMDP, pi: np.ndarray) -> dict[str, np.ndarray]:
    """Everything from the definition: sums over time of γᵗ p(s_t) and of expected rewards, state by state."""
    transition, reward, gamma = np.asarray(mdp.transition), np.asarray(mdp.reward), mdp.gamma
    states, actions = reward.shape
    q = np.zeros((states, actions))
    for s in range(states):
        for a in range(actions):
            q[s, a] = reward[s, a]
            marginal = transition[s, a]
            for t in range(1, HORIZON):
                q[s, a] += gamma**t * np.sum(marginal[:, None] * pi * reward)
                marginal = np.einsum("s,sa,sap->p", marginal, pi, transition)
    marginals, marginal = [], np.asarray(mdp.initial)
    for _ in range(HORIZON):
        marginals.append(marginal)
        marginal = np.einsum("s,sa,sap->p", marginal, pi, transition)
    discount = gamma ** np.arange(HORIZON)
    v = np.sum(pi * q, axis=1)
    return {
        "V": v,
        "Q": q,
        "A": q - v[:, None],
        "d": (1 - gamma) * discount @ np.array(marginals),
        "J": np.sum(discount * [np.sum(m[:, None] * pi * reward) for m in marginals]),
        "marginals": np.array(marginals),
    }


@pytest.mark.parametrize(("seed", "gamma"), [(0, GAMMA), (1, 0.5), (2, 0.0)])
def test_everything_equals_long_truncated_sums(x64, seed, gamma):
    mdp, pi = make_mdp(seed, gamma=gamma), make_pi(seed)
    expected = brute_force(mdp, pi)
    table = jnp.asarray(pi)
    assert (mdp.num_states, mdp.num_actions) == (S, A)
    np.testing.assert_allclose(mdp.state_values(table), expected["V"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(mdp.action_values(table), expected["Q"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(mdp.advantages(table), expected["A"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(mdp.state_distribution(table), expected["d"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(mdp.objective(table), expected["J"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(mdp.state_marginals(table, 30), expected["marginals"][:30], rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_performance_difference_lemma(x64, seed):
    """J(π') − J(π) = Σ_s d^π'(s) Σ_a π'(a|s) A^π(s, a) / (1 − γ), for policies far apart."""
    mdp, old, new = make_mdp(seed), jnp.asarray(make_pi(seed)), jnp.asarray(make_pi(seed + 50))
    left = mdp.objective(new) - mdp.objective(old)
    right = jnp.sum(mdp.state_distribution(new)[:, None] * new * mdp.advantages(old)) / (1 - GAMMA)
    assert abs(left) > 1e-2
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-10)
    # With the old policy's states it is the surrogate, which is something else.
    surrogate = jnp.sum(mdp.state_distribution(old)[:, None] * new * mdp.advantages(old)) / (1 - GAMMA)
    assert abs(surrogate - left) > 1e-4


@pytest.mark.slow
def test_surrogate_has_the_gradient_of_the_objective(x64):
    """∇Ā(θ) = ∇J(θ) at the policy of the batch: (1 − γ)⁻¹ times the gradient of the batch's mean."""
    mdp, policy = make_mdp(), SoftmaxTable(jax.random.normal(jax.random.key(1), (S, A)))
    batch = exact_batch(mdp, policy)
    theta, rebuild = flatten(policy)
    objective = jax.jit(lambda v: mdp.objective(jax.nn.softmax(v.reshape(S, A))))
    surrogate = jax.jit(jax.grad(lambda v: surrogate_gain(jax.vmap(rebuild(v))(batch.obs), batch)))(theta)
    exact = jax.jit(jax.grad(objective))(theta)
    np.testing.assert_allclose(surrogate / (1 - GAMMA), exact, rtol=0, atol=1e-10)
    step = 1e-5
    for i in (0, 4, 14):
        difference = objective(theta.at[i].add(step)) - objective(theta.at[i].add(-step))
        assert float(exact[i]) == pytest.approx(float(difference) / (2 * step), abs=1e-8)


def test_exact_batch_means_are_exact_expectations(x64):
    mdp, policy = make_mdp(3), SoftmaxTable(jax.random.normal(jax.random.key(2), (S, A)))
    logits = np.asarray(policy.logits)
    pi = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    exact = brute_force(mdp, pi)
    batch = exact_batch(mdp, policy)

    assert batch.weight.shape == (S * A,)
    assert float(jnp.sum(batch.weight)) == pytest.approx(1, abs=1e-12)
    assert float(batch.mean(batch.advantage)) == pytest.approx(0, abs=1e-12)
    assert float(batch.mean(jnp.square(batch.advantage))) == pytest.approx(
        np.sum(exact["d"][:, None] * pi * exact["A"] ** 2), abs=1e-12
    )
    # E_d[V − γ E V'] = (1 − γ) J: the values, the states and the actions have to fit together.
    following = np.asarray(mdp.transition) @ exact["V"]
    residual = batch.value_target - GAMMA * following[np.asarray(batch.obs), np.asarray(batch.action)]
    assert float(batch.mean(residual)) == pytest.approx((1 - GAMMA) * exact["J"], abs=1e-12)
    rows = {(int(s), int(a)): k for k, (s, a) in enumerate(zip(batch.obs, batch.action, strict=True))}
    assert len(rows) == S * A
    for (s, a), k in rows.items():
        assert float(batch.log_prob[k]) == pytest.approx(np.log(pi[s, a]), abs=1e-12)
        assert float(batch.advantage[k]) == pytest.approx(exact["A"][s, a], abs=1e-11)
        assert float(batch.value_target[k]) == pytest.approx(exact["V"][s], abs=1e-11)
        assert float(batch.weight[k]) == pytest.approx(exact["d"][s] * pi[s, a], abs=1e-12)


def test_policies_that_read_one_hot_rows_get_rows(x64):
    """The same table twice, once reading numbers and once rows: the same batch but for the observations."""
    mdp = make_mdp(4)
    weight = jax.random.normal(jax.random.key(5), (S, A))
    center = jnp.linspace(-1.0, 1.0, S)
    by_row = exact_batch(mdp, Rows(weight, center))
    by_number = exact_batch(mdp, SoftmaxTable(weight - center @ weight))
    assert by_number.obs.dtype == jnp.int_
    np.testing.assert_array_equal(by_row.obs, np.eye(S)[np.asarray(by_number.obs)])
    for name in ("log_prob", "advantage", "value_target", "weight"):
        np.testing.assert_allclose(getattr(by_row, name), getattr(by_number, name), rtol=0, atol=1e-12)


def test_networks_read_one_hot_rows(x64):
    mdp = make_mdp(4)
    policy = NetworkPolicy(S, Discrete(A), hidden=(4,), key=jax.random.key(0))
    policy = eqx.tree_at(lambda p: p.network.weights[-1], policy, replace_fn=lambda w: 100 * w)
    logits = np.asarray(policy(jnp.eye(S)).logits)
    assert np.ptp(logits, axis=0).min() > 0.05  # the states differ, or the comparison would say nothing
    by_row, by_number = exact_batch(mdp, policy), exact_batch(mdp, SoftmaxTable(jnp.asarray(logits)))
    np.testing.assert_array_equal(by_row.obs, np.eye(S)[np.asarray(by_number.obs)])
    np.testing.assert_allclose(by_row.advantage, by_number.advantage, rtol=0, atol=1e-12)
    np.testing.assert_allclose(by_row.weight, by_number.weight, rtol=0, atol=1e-12)


def good_parts() -> dict:
    rng = np.random.default_rng(0)
    return {
        "transition": rng.dirichlet(np.ones(S), size=(S, A)),
        "reward": rng.normal(size=(S, A)),
        "initial": rng.dirichlet(np.ones(S)),
        "gamma": 0.9,
    }


def spoil(name: str, index: tuple, values) -> dict:
    parts = good_parts()
    parts[name][index] = values
    return parts


BAD = {
    "a row that sums to 0.9": (spoil("transition", (3, 1), np.full(S, 0.18)), r"transition\[3, 1\].*sum is 0\.9\b"),
    "a negative probability": (
        spoil("transition", (2, 0), [1.25, -0.25, 0, 0, 0]),
        r"transition\[2, 0\].*smallest entry -0\.25\b",
    ),
    "a NaN probability": (spoil("transition", (4, 2, 0), np.nan), r"transition\[4, 2\].*nan"),
    "an infinite probability": (spoil("transition", (0, 1, 2), np.inf), r"transition\[0, 1\].*inf"),
    "initial sums to 1.5": (spoil("initial", slice(None), 0.3), r"initial.*sum is 1\.5\b"),
    "initial negative": (spoil("initial", slice(None), [-0.5, 1.5, 0, 0, 0]), r"initial.*smallest entry -0\.5\b"),
    "reward NaN": (spoil("reward", (1, 2), np.nan), r"reward\[1, 2\] = nan"),
    "reward infinite": (spoil("reward", (0, 1), -np.inf), r"reward\[0, 1\] = -inf"),
    "gamma above 1": ({**good_parts(), "gamma": 1.01}, r"gamma = 1\.01 is outside \[0, 1\]"),
    "gamma 1 and no end": ({**good_parts(), "gamma": 1.0}, r"gamma = 1 needs an end, and from state 0 no policy"),
    "gamma negative": ({**good_parts(), "gamma": -0.1}, r"gamma = -0\.1 is outside \[0, 1\]"),
    "gamma NaN": ({**good_parts(), "gamma": float("nan")}, r"gamma = nan is outside \[0, 1\]"),
    "two action counts": ({**good_parts(), "reward": np.zeros((S, A + 1))}, r"\(5, 3, 5\).*\(5, 4\).*\[S, A, S\]"),
    "two state counts": ({**good_parts(), "initial": np.full(4, 0.25)}, r"initial \(4,\).*\[S\]"),
    "transposed": ({**good_parts(), "transition": np.full((A, S, S), 0.2)}, r"\(3, 5, 5\).*do not fit"),
    "flat reward": ({**good_parts(), "reward": np.zeros(S)}, r"reward \(5,\).*do not fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_mdp_is_refused_by_row_and_number(case):
    parts, message = BAD[case]
    arrays = {name: jnp.asarray(value) for name, value in parts.items() if name != "gamma"}
    with pytest.raises(ValueError, match=message):
        TabularMDP(**arrays, gamma=parts["gamma"])


def test_the_unspoilt_parts_are_an_mdp():
    parts = good_parts()
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in parts.items() if name != "gamma"}
    assert TabularMDP(**arrays, gamma=0.9).gamma == 0.9
