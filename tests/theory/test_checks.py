"""Every statement of the theory on hundreds of random and degenerate problems; and judges that can say no."""

from __future__ import annotations

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klimb.cli.main import main
from klimb.tabular.mdp import TabularMDP
from klimb.theory.checks import STATEMENTS, check, check_gaussians, judge
from klimb.theory.enumeration import Trajectories
from klimb.theory.statements.statement import Problem, Statement

S, A, HORIZON = 3, 2, 3
FORCED = 800.0
"""Logits this far apart make an action certain: the other's probability is 0 in double precision."""


def distributions(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    rows = rng.dirichlet(np.full(shape[-1], 0.5), size=shape[:-1])
    if kind == "certain":
        rows = np.eye(shape[-1])[rows.argmax(-1)]
    return rows / rows.sum(-1, keepdims=True)


def policy_logits(kind: str, rng: np.random.Generator) -> np.ndarray:
    logits = rng.normal(size=(S, A))
    if kind == "certain":
        return FORCED * np.eye(A)[logits.argmax(-1)]
    return np.zeros((S, A)) if kind == "even" else logits


KINDS = {
    "transitions": ("random", "certain"),
    "reward_scale": (1.0, 0.0, 1e3),
    "absorbing": (False, True),
    "unreachable": (False, True),
    "start": ("random", "certain"),
    "gamma": (0.0, 0.5, 0.9, 0.99, 0.9999),
    "policy": ("random", "certain", "even"),
    "step": (0.0, 1e-6, 0.1, 1.0, 10.0, FORCED),
}


def problem_of(seed: int, kinds: dict) -> Problem:
    """Random, or one of those that the theory's proofs have to survive."""
    rng = np.random.default_rng(seed)
    transition = distributions(kinds["transitions"], rng, (S, A, S))
    reward = rng.normal(size=(S, A)) * kinds["reward_scale"]
    if kinds["absorbing"]:
        transition[0], reward[0] = np.eye(S)[0], 0.0
    if kinds["unreachable"]:
        transition[..., 0] += transition[..., 2]
        transition[..., 2] = 0.0
    initial = distributions(kinds["start"], rng, (S,))
    logits = policy_logits(kinds["policy"], rng)
    with jax.enable_x64(True):
        mdp = TabularMDP(jnp.asarray(transition), jnp.asarray(reward), jnp.asarray(initial), kinds["gamma"])
        away, direction = jnp.asarray(rng.normal(size=(2, S, A)))
        paths = Trajectories.of(mdp, max_length=HORIZON, max_count=1024)
        return Problem(mdp, jnp.asarray(logits), jnp.asarray(logits) + kinds["step"] * away, direction, paths)


KIND = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in KINDS.items()})


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1), KIND)
def test_all_statements_hold_on_random_problems(seed, kinds):
    problem = problem_of(seed, kinds)
    with jax.enable_x64(True):
        checks = check(problem)
    assert len(checks) == len(STATEMENTS)
    assert [c for c in checks if not c.holds] == []
    # A bound is a bound: what it bounds is never more than all of it.
    assert [c for c in checks if c.tightness is not None and c.tightness > 1 + 1e-6] == []


def test_statements_about_gaussians_hold():
    checks = check_gaussians()
    assert len(checks) == 4
    assert [c for c in checks if not c.holds] == []


def statement(relation: str) -> Statement:
    return Statement("0", "made up", "left relation right", relation, lambda: None)


@pytest.mark.parametrize(
    ("relation", "left", "right", "holds"),
    [
        ("=", [1.0, 2.0], [1.0, 2.0 + 1e-9], True),
        ("=", [1.0, 2.0], [1.0, 2.0 + 1e-6], False),
        ("=", [1e6], [1e6 + 1e-3], True),
        ("=", [np.nan], [np.nan], False),
        ("=", [1.0], [np.inf], False),
        ("≤", [1.0, 2.0], [1.0, 3.0], True),
        ("≤", [1.0, 3.0], [5.0, 2.9], False),
        ("≤", [1.0], [np.inf], True),
        ("≤", [np.inf], [1.0], False),
        ("≤", [0.0], [np.nan], False),
    ],
)
def test_the_judge_says_no(relation, left, right, holds):
    assert judge(statement(relation), np.array(left), np.array(right)).holds is holds


def test_the_judge_shows_the_worst_place_and_the_tightest():
    verdict = judge(statement("≤"), np.array([1.0, 3.0, 0.9]), np.array([2.0, 2.9, 1.0]))
    assert (verdict.left, verdict.right) == (3.0, 2.9)
    assert verdict.tightness == pytest.approx(3 / 2.9)
    assert judge(statement("="), np.ones(2), np.ones(2)).tightness is None
    assert judge(statement("≤"), np.zeros(2), np.zeros(2)).tightness is None


@pytest.mark.slow
def test_trajectories_of_another_policy_make_statements_fail():
    """With every action taken for the other one, what is summed over trajectories no longer agrees with the tables."""
    problem = problem_of(0, {name: values[0] for name, values in KINDS.items()} | {"gamma": 0.9, "step": 1.0})
    with jax.enable_x64(True):
        spoilt = eqx.tree_at(lambda p: p.trajectories.action, problem, 1 - problem.trajectories.action)
        assert all(c.holds for c in check(problem))
        failed = {c.name for c in check(spoilt) if not c.holds}
    assert {"trajectories", "reward to go", "GAE", "per-decision gradient", "per-step gradient, exact"} <= failed


@pytest.mark.slow  # all statements once more
def test_the_command_prints_json_and_ends_with_zero(capsys):
    """Undiscounted: what needs γ < 1 is left out, and everything else is a number."""
    assert main(["verify", "--mdp", "FrozenLake-v1", "--gamma", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["holds"] is True
    (name, checks), (_, gaussians) = answer["problems"].items()
    assert name == "FrozenLake-v1: 16 states, 4 actions, γ = 1"
    assert len(checks) == len(STATEMENTS) - sum(s.needs_discount for s in STATEMENTS)
    assert {c["section"] for c in checks + gaussians} == {"1", "2", "3", "4", "5", "6"}
    assert all(c["left"] is not None and c["right"] is not None for c in checks if c["relation"] == "=")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mdp", "FrozenLake-v2"], "did you mean 'FrozenLake-v1'"),
        (["--mdp", "CartPole-v1"], "no table of transitions"),
        (["--gamma", "1.5"], "gamma = 1.5 is outside [0, 1]"),
        (["--gamma", "1"], "gamma = 1 needs an end, and from state 0"),
        (["--step", "-1"], "step = -1.0"),
        (["--mdps", "x"], "there is no flag --mdps; did you mean '--mdp'?"),
    ],
)
def test_mistakes_get_one_line(words, message, capsys):
    assert main(["verify", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_statement_that_fails_ends_with_one(capsys, monkeypatch):
    from klimb.cli import verify as command

    monkeypatch.setattr(command, "verify_on", lambda mdp, seed, step: [judge(statement("="), np.ones(1), np.zeros(1))])
    assert main(["verify", "--mdp", "FrozenLake-v1"]) == 1
    captured = capsys.readouterr()
    assert "FAILS" in captured.out
    assert "1 statements do not hold: made up" in captured.err
