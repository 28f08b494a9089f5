"""What tests share: softmax tables on small MDPs, where every expectation is exact, and what runs are compared by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, PyTree

import klimb
from klimb import Batch, NetworkPolicy, OngoingRun, TabularMDP, exact_batch
from klimb.improve.rule import with_values
from klimb.improve.warm_up import take_step
from klimb.tabular.table import SoftmaxTable

S, A, GAMMA = 5, 3, 0.9
TIMING = {"wall_time", "steps_per_second"}
"""What two records of the same iteration may differ in."""


def slow_except(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases of `parametrize`: those in `quick` run with every `make test`, the others with the slow tests."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def make_mdp(
    seed: int | np.random.Generator = 0,
    states: int = S,
    actions: int = A,
    *,
    gamma: float = GAMMA,
    concentration: float = 0.5,
) -> TabularMDP:
    """Random rewards and transitions. concentration: of the successors' Dirichlet; 1 is uniform over the simplex."""
    rng = np.random.default_rng(seed)
    return TabularMDP(
        jnp.asarray(rng.dirichlet(np.full(states, concentration), size=(states, actions))),
        jnp.asarray(rng.normal(size=(states, actions))),
        jnp.asarray(rng.dirichlet(np.ones(states))),
        gamma,
    )


def make_table(seed: int, states: int = S, actions: int = A) -> SoftmaxTable:
    """Random logits. Adding a constant to a row changes nothing: the Fisher matrix of a table is singular."""
    return SoftmaxTable(jax.random.normal(jax.random.key(seed), (states, actions)))


def probabilities(policy: SoftmaxTable) -> Array:
    return jax.nn.softmax(policy.logits)


def mean_kl(p: Array, q: Array, d: Array) -> float:
    """E_d KL(p‖q), from the definition."""
    p, q, d = (np.asarray(x) for x in (p, q, d))
    return float(d @ np.sum(p * (np.log(p) - np.log(q)), axis=1))


def optimum(mdp: TabularMDP) -> float:
    """The best J, by value iteration."""
    transition, reward = np.asarray(mdp.transition), np.asarray(mdp.reward)
    value = np.zeros(len(reward))
    for _ in range(500):
        value = (reward + mdp.gamma * transition @ value).max(axis=1)
    return float(mdp.initial @ value)


batch_on_table = eqx.filter_jit(exact_batch)


def take(rule: Any, policy: PyTree, batch: Batch, state: PyTree = None, key: int = 0, **fields: float):
    """One step: (policy, state, info). `fields` of the rule are data: one compilation serves all their values."""
    return _take(rule, jax.tree.map(jnp.asarray, fields), policy, batch, state, jnp.uint32(key))


@eqx.filter_jit
def _take(rule: Any, fields: dict[str, Array], policy: PyTree, batch: Batch, state: PyTree, key: Array):
    rule = with_values(rule, fields)
    return take_step(rule, jax.random.key(key), policy, rule.init(policy) if state is None else state, batch)


def arrays_of(tree: PyTree) -> PyTree:
    """The arrays of a tree, in NumPy; of keys, their data."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    arrays = eqx.filter(tree, lambda x: eqx.is_array(x) or isinstance(x, np.ndarray | np.generic))
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), arrays)


def assert_same_bits(a: PyTree, b: PyTree) -> None:
    """The same tree, and equal to the bit: a not-a-number with the same payload, a zero with the same sign."""
    a, b = arrays_of(a), arrays_of(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.tobytes() == y.tobytes()


def same_bits(a: PyTree, b: PyTree) -> bool:
    """Whether two trees of the same structure are equal to the bit."""
    pairs = zip(jax.tree.leaves(arrays_of(a)), jax.tree.leaves(arrays_of(b)), strict=True)
    return all((x.dtype, x.tobytes()) == (y.dtype, y.tobytes()) for x, y in pairs)


def trained_apart(folder: Path, *words: str) -> NetworkPolicy:
    """The policy that `klimb train` results in, in a process whose programs are optimised: for long trainings.

    folder: for the run, which does not exist. words: of the command.
    """
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "klimb", "train", *words, "--run-dir", str(folder)]
    options = ["--eval-episodes", "0", "--cores", "1", "--workers", "0", "--quiet"]
    subprocess.run([*command, *options], env=environment, check=True, stdout=subprocess.DEVNULL)
    return klimb.load_policy(folder)


def without_timing(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name not in TIMING} for record in history]


class Stopper:
    """Sends this process SIGTERM once `after` iterations have been recorded."""

    def __init__(self, after: int) -> None:
        self.after, self.sent = after, False

    def __call__(self, run: OngoingRun) -> None:
        if run.iteration >= self.after and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


def column_of(rollout, name):
    """A column of a rollout of K seeds, `[K, T, N, ...]`. name: of a field, or `next_obs`."""
    return np.asarray(jax.vmap(lambda one: getattr(one, name))(rollout))
