"""What every rule keeps to, for actions of several parts, masks, pictures and memory, as test_contract.py has it."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from gymnasium import spaces
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

import klimb
from klimb import PPO, TRPO, VMPO, Batch, BehaviourCloning, DualDescent, Sequences, Status
from klimb.improve.fisher import fisher_rows, fisher_vector_product
from klimb.improve.warm_up import take_step
from klimb.policies.architectures import encoder_of
from klimb.policies.distributions import Categorical
from klimb.policies.layers import MemoryKind
from klimb.policies.observations import MaskedObservations
from klimb.policies.parameters import flatten
from klimb.policies.picture_observations import pictures_in
from klimb.policies.pictures import PictureEncoder, Window, chain
from klimb.policies.policy import action_distribution
from klimb.policies.products import MultiCategorical, Product
from problems import assert_same_bits, slow_except
from test_contract import RULES, direction, given, rule_id

ROWS, PADDING, OBSERVED = 64, 4, 3
PARTS, COLUMNS = 2, 4
"""Of a batch of sequences: its padding is the last step of every column."""
HYBRID = spaces.Dict(gate=spaces.Discrete(3), force=spaces.Box(-2, 2, (2,)), lamps=spaces.MultiBinary(2))
PICTURE = spaces.Box(0, 255, (7, 8, 2), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (OBSERVED,))
BOTH = spaces.Dict(camera=PICTURE, speed=VECTOR)


class Kind(NamedTuple):
    actions: spaces.Space
    masked: bool = False
    observations: spaces.Space = VECTOR
    memory: MemoryKind | None = None


KINDS = {
    "product": Kind(spaces.MultiDiscrete([3, 2, 4])),
    "hybrid": Kind(HYBRID),
    "masked": Kind(spaces.Discrete(5), True),
    "masked product": Kind(spaces.MultiDiscrete([3, 2, 4]), True),
    "masked hybrid": Kind(HYBRID, True),
    "picture": Kind(spaces.Box(-1, 1, (2,)), observations=PICTURE),
    "memory": Kind(spaces.Box(-1, 1, (2,)), memory="gru"),
    "masked hybrid, dictionary, memory": Kind(HYBRID, True, BOTH, "lstm"),
}
EVERYTHING = "masked hybrid, dictionary, memory"
QUICK = {(EVERYTHING, TRPO()), (EVERYTHING, PPO())}


class Case(NamedTuple):
    policy: PyTree
    batch: Batch


def random_masks(choices, rows, rng):
    """Flags of every part's choices, at least one of each."""
    masks = (rng.random((rows, sum(choices))) < 0.6).astype(np.float32)
    start = 0
    for count in choices:
        masks[np.arange(rows), start + rng.integers(count, size=rows)] = 1
        start += count
    return masks


def random_observations(space, rng):
    """Rows as the space has them."""
    if isinstance(space, spaces.Dict):
        return {name: random_observations(part, rng) for name, part in space.spaces.items()}
    if space.dtype == np.uint8:
        return rng.integers(0, 256, (ROWS, *space.shape), np.uint8)
    return rng.normal(size=(ROWS, *space.shape)).astype(np.float32)


def small_encoder(observations, key):
    """One that is small enough for dense Fisher matrices; None where there are no pictures."""
    encoder = encoder_of(observations, key)
    found = [picture for _, picture in pictures_in(observations)]
    if not found:
        return None
    small = chain((Window(2, 3, 2),), 4)(found[0], key, "orthogonal", "minatar")
    if isinstance(encoder, PictureEncoder):
        return small
    return dataclasses.replace(encoder, pictures=(small,))


@functools.cache
def make_case(kind: str, seed: int = 0) -> Case:
    """An on-policy batch of a policy away from its symmetric start; its last rows are padding."""
    space, masked, observed, _ = KINDS[kind]
    actions, rng = klimb.action_spec(space), np.random.default_rng(seed)
    observations = klimb.observation_spec(observed)
    obs = random_observations(observed, rng)
    if masked:
        observations = MaskedObservations(observations, actions.num_choices)
        obs = observations.with_mask(obs, random_masks(actions.choices, ROWS, rng))
    obs = observations.flatten(obs)  # of dictionaries, one vector
    encoder = small_encoder(observations, jax.random.key(seed + 2))
    policy = klimb.NetworkPolicy(
        observations,
        actions,
        hidden=(8,),
        encoder=encoder,
        memory=KINDS[kind].memory,
        memory_size=5,
        key=jax.random.key(seed),
    )
    theta, rebuild = flatten(policy)
    policy = rebuild(theta + jnp.asarray(0.3 * rng.normal(size=theta.shape), theta.dtype))
    inputs = jnp.asarray(obs)
    if policy.carry_size is not None:
        carry = rng.normal(size=(PARTS, COLUMNS, policy.carry_size))
        inputs = Sequences(inputs, jnp.asarray(rng.random(ROWS) < 0.2), jnp.asarray(carry, theta.dtype))
    distribution = action_distribution(policy, inputs)
    action = distribution.sample(jax.random.key(seed + 1))
    batch = Batch(
        obs=inputs,
        action=action,
        log_prob=distribution.log_prob(action),
        advantage=jnp.asarray(rng.normal(size=ROWS), theta.dtype),
        value_target=jnp.zeros(ROWS),
        weight=jnp.ones(ROWS).at[-PADDING:].set(0),
        fraction_done=jnp.zeros(()),
        gamma=0.9,
    )
    return Case(policy, batch)


def parts_of(distribution, action):
    """Every part by itself, in NumPy: probabilities `[B, n]`, or mean and σ; and its actions."""
    action = np.asarray(action, float)
    match distribution:
        case Product():
            parts, start = [], 0
            for part, columns in zip(distribution.parts, distribution.columns, strict=True):
                width = columns.width or 1
                own = action[:, start : start + width]
                parts += parts_of(part, own if columns.width else own[:, 0])
                start += width
            return parts
        case MultiCategorical():
            heads = [Categorical(logits=distribution.logits[:, h]) for h in range(distribution.logits.shape[1])]
            return [one for h, head in enumerate(heads) for one in parts_of(head, action[:, h])]
        case Categorical():
            return [(scipy.special.softmax(np.asarray(distribution.logits, float), axis=1), action.astype(int))]
    return [(np.asarray(distribution.mean, float), np.exp(np.asarray(distribution.log_std, float)), action)]


def by_definition(case: Case, new: PyTree, direction: str) -> dict[str, float]:
    """The fields of UpdateInfo, part by part."""
    batch = case.batch
    counted = np.asarray(batch.weight) > 0
    old_parts, new_parts = (
        parts_of(action_distribution(policy, batch.obs), batch.action) for policy in (case.policy, new)
    )
    forward, backward, entropy, log_prob = (np.zeros(ROWS) for _ in range(4))
    for old, now in zip(old_parts, new_parts, strict=True):
        if len(old) == 2:
            (p, _), (q, action) = old, now
            forward += scipy.stats.entropy(p, q, axis=1)
            backward += scipy.stats.entropy(q, p, axis=1)
            entropy += scipy.stats.entropy(q, axis=1)
            log_prob += np.log(q[np.arange(ROWS), action])
        else:
            (m, s, _), (n, r, action) = old, now
            forward += np.sum(np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5, axis=1)
            backward += np.sum(np.log(s / r) + (r**2 + (m - n) ** 2) / (2 * s**2) - 0.5, axis=1)
            entropy += scipy.stats.norm.entropy(n, r).sum(axis=1)
            log_prob += scipy.stats.norm.logpdf(action, n, r).sum(axis=1)
    ratio = np.exp(log_prob - np.asarray(batch.log_prob, float))

    def mean(x):
        return np.average(x[counted], weights=np.asarray(batch.weight, float)[counted])

    return {
        "surrogate_gain": mean((ratio - 1) * np.asarray(batch.advantage, float)),
        "kl_old_new": mean(forward),
        "kl_new_old": mean(backward),
        "kl_max": (forward if direction == "old_new" else backward)[counted].max(),
        "entropy": mean(entropy),
        "ess": mean(ratio) ** 2 / mean(ratio**2),
    }


# Every rule for the kind that has everything. For the others those that differ in what they ask of a distribution.
CASES = [
    pytest.param(kind, rule, id=f"{kind}-{rule_id(rule)}", marks=[] if (kind, rule) in QUICK else pytest.mark.slow)
    for kind in KINDS
    for rule in RULES
    if kind == EVERYTHING or isinstance(rule, TRPO | PPO | DualDescent | VMPO)
]


def with_junk(column):
    return column.at[-PADDING:].set(7 if jnp.issubdtype(column.dtype, jnp.integer) else jnp.nan)


def observed_rows(batch):
    return batch.obs.obs if isinstance(batch.obs, Sequences) else batch.obs


@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_rules_keep_to_the_contract(kind, rule):
    case, traces = make_case(kind), Counter()

    @eqx.filter_jit
    def compiled(key, policy, state, batch):
        traces["step"] += 1
        return take_step(rule, key, policy, state, batch)

    def take(policy, state, batch):
        return compiled(jax.random.key(0), policy, state, given(rule, batch))

    new, state, info = take(case.policy, rule.init(case.policy), case.batch)
    assert Status(int(info.status)) is Status.ACCEPTED
    weighted = Case(case.policy, given(rule, case.batch))
    for field, value in by_definition(weighted, new, direction(rule)).items():
        np.testing.assert_allclose(getattr(info, field), value, rtol=1e-3, atol=2e-6, err_msg=field)
    assert float(jnp.abs(flatten(new).theta - flatten(case.policy).theta).max()) > 1e-5
    # Padding has no say, whatever it holds; in integers as well.
    names = ("action", "log_prob", "advantage", "value_target")
    spoilt = dataclasses.replace(case.batch, **{name: with_junk(getattr(case.batch, name)) for name in names})
    spoilt = eqx.tree_at(observed_rows, spoilt, with_junk(case.batch.obs_rows))
    assert_same_bits(take(case.policy, rule.init(case.policy), spoilt), (new, state, info))
    # What is not finite is rejected whole.
    broken = eqx.tree_at(lambda b: b.advantage, case.batch, case.batch.advantage.at[7].set(jnp.nan))
    kept, kept_state, info = take(new, state, broken)
    assert Status(int(info.status)) is Status.NONFINITE
    assert_same_bits((kept, kept_state), (new, state))
    assert traces["step"] == 1
    assert isinstance(rule, BehaviourCloning) or info.kl_old_new == 0


@pytest.mark.parametrize("kind", slow_except({"masked hybrid"}, KINDS))
def test_ratios_are_one_and_divergences_zero_at_the_old_policy(kind):
    policy, batch = make_case(kind)
    distribution = action_distribution(policy, batch.obs)
    np.testing.assert_allclose(np.exp(distribution.log_prob(batch.action) - batch.log_prob), 1, rtol=0, atol=2e-6)
    assert not np.any(klimb.kl_divergence(distribution, distribution))
    sampled = klimb.total_variation(distribution, distribution, key=jax.random.key(0), num_samples=4)
    assert not np.any(sampled.value)


@pytest.mark.parametrize("kind", slow_except({"memory"}, ["product", "picture", "memory", EVERYTHING]))
def test_fisher_products_are_those_of_the_matrix_and_of_the_kls_hessian(kind, x64):
    policy, batch = jax.tree.map(
        lambda x: jnp.asarray(x, float) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x, make_case(kind)
    )
    theta, rebuild = flatten(policy)
    rows = jax.jit(lambda: fisher_rows(policy, batch, "exact"))()
    matrix = rows.T @ rows
    old = action_distribution(policy, batch.obs)

    def mean_kl(vector):
        return batch.mean(old.kl_to(action_distribution(rebuild(vector), batch.obs)))

    product = fisher_vector_product(policy, batch.obs, batch.weight)
    pushed = jax.jit(lambda v: jax.jvp(jax.grad(mean_kl), (theta,), (v,))[1])
    for seed in range(3):
        vector = jax.random.normal(jax.random.key(seed), theta.shape)
        np.testing.assert_allclose(product(vector), matrix @ vector, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(product(vector), pushed(vector), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.masked])
def test_no_forbidden_choice_is_ever_sampled(kind):
    """10⁵ samples in JAX; tests/collect/host/test_numpy_products.py has them in NumPy."""
    policy, batch = make_case(kind)
    actions = policy.actions
    masks = np.asarray(batch.obs_rows[:, policy.observations.observed.size :])
    distribution = action_distribution(policy, batch.obs)
    draws = 100_000 // ROWS + 1
    sampled = jax.jit(lambda d, key: jax.vmap(d.sample_from)(d.noise(key, (draws,))))(distribution, jax.random.key(0))
    assert allowed_everywhere(actions, np.asarray(sampled), masks)
    assert allowed_everywhere(actions, np.asarray(distribution.mode())[None], masks)
    # A policy that wants what is forbidden above all else.
    wants = ravel_pytree(policy.network.weights[-1])[0]
    keen = eqx.tree_at(
        lambda p: p.network.weights, policy, (policy.network.weights[0], 1e4 * policy.network.weights[1])
    )
    assert np.isfinite(wants).all()
    sampled = jax.vmap(action_distribution(keen, batch.obs).sample)(jax.random.split(jax.random.key(1), 50))
    assert allowed_everywhere(actions, np.asarray(sampled), masks)


def allowed_everywhere(actions, sampled, masks):
    """Whether all choices are allowed. sampled: `[draws, rows, *act]`. masks: `[rows, num_choices]`."""
    columns = np.reshape(sampled, (*sampled.shape[:2], -1))
    discrete = choice_columns(actions)
    assert len(discrete) == len(actions.choices)
    start = 0
    for column, count in zip(discrete, actions.choices, strict=True):
        taken = columns[..., column].astype(int)
        if not masks[np.arange(len(masks)), start + taken].all():
            return False
        start += count
    return True


def choice_columns(actions) -> list[int]:
    """Which numbers of a flat action are choices."""
    found, start = [], 0
    for part in getattr(actions, "parts", [actions]):
        if part.is_integer:
            found += range(start, start + part.size)
        start += part.size
    return found
