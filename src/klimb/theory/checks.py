"""Numerical checks of every statement of the theory on a problem: both sides, margin, tightness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from klimb.tabular.mdp import TabularMDP
from klimb.tabular.transitions import Numbers, SparseTransition
from klimb.theory.statements.constrained import CONSTRAINED
from klimb.theory.statements.divergences import DIVERGENCES, GAUSSIANS, Gaussians
from klimb.theory.statements.importance import IMPORTANCE
from klimb.theory.statements.improvement import IMPROVEMENT
from klimb.theory.statements.mismatch import MISMATCH
from klimb.theory.statements.objective import OBJECTIVE
from klimb.theory.statements.policy_iteration import POLICY_ITERATION
from klimb.theory.statements.statement import Problem, Sides, Statement

STATEMENTS: tuple[Statement, ...] = (
    *OBJECTIVE,
    *IMPORTANCE,
    *IMPROVEMENT,
    *MISMATCH,
    *DIVERGENCES,
    *CONSTRAINED,
    *POLICY_ITERATION,
)
"""The statements about a tabular problem; those of `GAUSSIANS` are about distributions alone."""
TOLERANCE = 1e-8
"""Rounding error that a statement may have, relative to the larger side (at least 1)."""
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}


@dataclass(frozen=True)
class Check:
    """One statement on one problem. Of arrays, the elements with the smallest margin.

    margin: right − left of an inequality, −|left − right| of an equality, in units of the larger side (at least 1).
    holds: margin ≥ −1e-8. tightness: the largest left/right of an inequality between numbers ≥ 0, 1 where the bound
    is attained; None for equalities, and where no element has both sides ≥ 0.
    """

    section: str
    name: str
    statement: str
    relation: str
    left: float
    right: float
    margin: float
    holds: bool
    tightness: float | None


def verify(mdp: TabularMDP, seed: int = 0, *, step: float = 0.5) -> list[Check]:
    """All statements about a tabular problem, with two random policies. Always in double precision.

    mdp: the problem. seed: of the policies. step: distance of the new policy from the old one, in standard deviations
    of the logits, not negative.

    Raises ConfigError when even the trajectories of one step are too many to enumerate.
    """
    with jax.enable_x64(True):
        return check(Problem.random(_double(mdp), seed, step=step))


def check(problem: Problem) -> list[Check]:
    """All statements about one problem, in the precision of its arrays."""
    return _judge_all(_applicable(problem), compute(problem))


def check_gaussians() -> list[Check]:
    """The statements about Gaussians, which need no problem."""
    with jax.enable_x64(True):
        return _judge_all(GAUSSIANS, _compute_gaussians(Gaussians.examples()))


def _applicable(problem: Problem) -> list[Statement]:
    undiscounted = float(problem.mdp.gamma) == 1
    return [statement for statement in STATEMENTS if not (undiscounted and statement.needs_discount)]


def compute(problem: Problem) -> list[Sides]:
    """Both sides of every statement that applies to a problem: one compiled program for all problems of one shape."""
    return _compute(problem, float(problem.mdp.gamma) == 1)


def _sides(problem: Problem, undiscounted: bool) -> list[Sides]:
    return [s.sides(problem) for s in STATEMENTS if not (undiscounted and s.needs_discount)]


def _sides_of_gaussians(gaussians: Gaussians) -> list[Sides]:
    return [s.sides(gaussians) for s in GAUSSIANS]


# Hundreds of small operations that run once or a few times: optimised compilation costs more than it saves.
_compute = jax.jit(_sides, static_argnums=1, compiler_options=QUICK_COMPILATION)
_compute_gaussians = jax.jit(_sides_of_gaussians, compiler_options=QUICK_COMPILATION)


def _judge_all(statements: Sequence[Statement], sides: Sequence[Any]) -> list[Check]:
    return [judge(statement, *map(np.asarray, both)) for statement, both in zip(statements, sides, strict=True)]


def judge(statement: Statement, left: np.ndarray, right: np.ndarray) -> Check:
    """Whether a statement holds between two arrays, element by element.

    statement: what is claimed. left, right: its sides, of shapes that broadcast against each other.
    """
    left, right = (np.ravel(side).astype(float) for side in np.broadcast_arrays(left, right))
    size = np.maximum(1, np.maximum(np.abs(left), np.where(np.isfinite(right), np.abs(right), 0)))
    with np.errstate(invalid="ignore"):
        difference = (right - left) / size
    margins = -np.abs(difference) if statement.relation == "=" else difference
    # NaN on either side counts as a violation.
    worst = int(np.argmin(np.where(np.isnan(margins), -np.inf, margins)))
    tightness = None
    if statement.relation == "≤":
        # The quotient of two numbers of the size of rounding errors has no meaning.
        bounded = (left >= 0) & (right > TOLERANCE)
        tightness = float(np.max(left[bounded] / right[bounded])) if bounded.any() else None
    margin = float(margins[worst])
    return Check(
        statement.section,
        statement.name,
        statement.text,
        statement.relation,
        float(left[worst]),
        float(right[worst]),
        margin,
        bool(margin >= -TOLERANCE),
        tightness,
    )


def _double(mdp: TabularMDP) -> TabularMDP:
    """The same problem in double precision, with probabilities that sum to 1 in that precision."""

    def distribution(x: Numbers) -> Array:
        double = np.asarray(x, float)
        return jnp.asarray(double / double.sum(axis=-1, keepdims=True))

    transition = mdp.transition
    if isinstance(transition, SparseTransition):
        transition = SparseTransition(transition.successor, distribution(transition.probability))
    else:
        transition = distribution(transition)
    return TabularMDP(transition, jnp.asarray(np.asarray(mdp.reward, float)), distribution(mdp.initial), mdp.gamma)
