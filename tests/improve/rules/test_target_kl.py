"""`target_kl` in every rule that makes passes over a batch: the pass that exceeds it is the last."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from klimb import AWR, REPS, VMPO, ConservativePolicyIteration, DualDescent, KLPenalty, OffPolicyGradient
from klimb.improve.rule import traits_of
from problems import batch_on_table, make_mdp, make_table, mean_kl, probabilities, slow_except, take

FULL = {"num_minibatches": 1, "max_grad_norm": None, "learning_rate": 0.02}
EXACT = {"damping": 0.0, "projection_steps": 6, "cg_iterations": 30}
PASSES = [
    (KLPenalty(kl_coef=0.1, **FULL), "old_new"),
    (KLPenalty(kl_coef=0.1, kl_direction="new_old", **FULL), "new_old"),
    (DualDescent(max_overshoot=1e6, **FULL), "old_new"),
    (DualDescent(max_overshoot=1e6, divergence="kl_new_old", **FULL), "new_old"),
    (DualDescent(max_overshoot=1e6, divergence="tv", initial_multiplier=0.0, **FULL), "old_new"),
    (OffPolicyGradient(min_ess=0.0, max_grad_norm=None, learning_rate=0.02), "old_new"),
    (VMPO(**FULL), "old_new"),
    (REPS(**FULL), "new_old"),
    (AWR(**FULL), "new_old"),
    (ConservativePolicyIteration(mixture=0.5, **EXACT, **FULL), "old_new"),
]
QUICK = [PASSES[1], PASSES[-2]]


@pytest.mark.parametrize("case", slow_except(QUICK, PASSES), ids=lambda case: f"{type(case[0]).__name__} {case[1]}")
def test_the_pass_that_exceeds_the_target_is_the_last(x64, case):
    """In the rule's direction of the KL: after one pass less it was not above the target."""
    (rule, direction), mdp, policy = case, make_mdp(0), make_table(1)
    batch, pi = batch_on_table(mdp, policy), np.asarray(probabilities(policy))
    d = np.asarray(mdp.state_distribution(jnp.asarray(pi)))
    passes = "gradient_steps" if isinstance(rule, OffPolicyGradient) else "epochs"

    def after(number: int) -> tuple[np.ndarray, float, float]:
        """The policy that so many passes lead to (the better one of a mixture), and its KL in both directions."""
        new = np.asarray(probabilities(take(rule, policy, batch, **{passes: number})[0]))
        if isinstance(rule, ConservativePolicyIteration):
            new = 2 * new - pi
        kls = mean_kl(pi, new, d), mean_kl(new, pi, d)
        return new, *(kls if direction == "old_new" else kls[::-1])

    _, before, other_before = after(6)
    expected, last, other_last = after(7)
    # The KL of the other direction is above the target a pass earlier, or not yet above it here.
    target = 1.001 * before if other_before > before else 0.999 * last
    assert before < target < last
    assert other_before > target or other_last <= target
    limited = dataclasses.replace(rule, target_kl=1.0, **{passes: 30})
    new, _, info = take(limited, policy, batch, target_kl=target)
    done = info.extra["gradient_steps" if passes == "gradient_steps" else "epochs_done"]
    assert done == 7
    reached = np.asarray(probabilities(new))
    if isinstance(rule, ConservativePolicyIteration):
        reached = 2 * reached - pi
    np.testing.assert_allclose(reached, expected, rtol=0, atol=1e-7)
    assert take(limited, policy, batch, target_kl=10.0)[2].extra.get("epochs_done", 30) == 30
    if passes == "epochs":
        assert "epochs_done" in traits_of(limited).metrics
        assert "epochs_done" not in traits_of(rule).metrics
