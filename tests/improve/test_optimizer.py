"""Every rule with a trust region climbs a tabular MDP to its optimum, on exact expectations, without a step back."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klimb import (
    AWR,
    PPO,
    REPS,
    TRPO,
    VMPO,
    ConservativePolicyIteration,
    DualDescent,
    KLPenalty,
    NaturalGradient,
    exact_batch,
)
from klimb.tabular.table import SoftmaxTable
from problems import A, S, make_mdp, optimum, probabilities, slow_except

FULL = {"num_minibatches": 1, "max_grad_norm": None}
CLIMBERS = {
    "trpo": TRPO(max_kl=0.1, damping=1e-4, cg_iterations=20),
    "trpo new_old": TRPO(max_kl=0.1, damping=1e-4, cg_iterations=20, kl_direction="new_old"),
    "trpo growing": TRPO(max_kl=0.1, damping=1e-4, cg_iterations=20, line_search="growing"),
    "trpo empirical": TRPO(max_kl=0.1, damping=1e-4, cg_iterations=20, fisher="empirical"),
    "natural gradient cg": NaturalGradient(epsilon=0.05, damping=1e-4, cg_iterations=20),
    "natural gradient woodbury": NaturalGradient(epsilon=0.05, damping=1e-4, solver="woodbury", fisher="empirical"),
    "natural gradient dense": NaturalGradient(epsilon=0.05, damping=1e-4, solver="dense"),
    "dual descent": DualDescent(epsilon=0.1, learning_rate=0.03, epochs=60, **FULL),
    "dual descent new_old": DualDescent(
        epsilon=0.1, divergence="kl_new_old", learning_rate=0.03, epochs=60, log_multiplier=True, **FULL
    ),
    "dual descent tv": DualDescent(
        epsilon=0.1, divergence="tv", learning_rate=0.03, epochs=60, multiplier_learning_rate=2.0, **FULL
    ),
    "kl penalty": KLPenalty(kl_coef=0.5, learning_rate=0.03, epochs=60, **FULL),
    "ppo with kl penalty": PPO(penalty="kl", target_kl=0.1, learning_rate=0.03, epochs=60, **FULL),
    "conservative policy iteration": ConservativePolicyIteration(
        temperature=0.5, learning_rate=0.03, epochs=60, damping=1e-4, cg_iterations=20, **FULL
    ),
    "reps": REPS(epsilon=0.2, learning_rate=0.03, epochs=60, **FULL),
    "v-mpo": VMPO(epsilon=0.1, top_fraction=1.0, learning_rate=0.03, epochs=60, **FULL),
    "awr": AWR(temperature=0.5, learning_rate=0.03, epochs=60, **FULL),
}


QUICK = {"trpo", "natural gradient cg", "dual descent", "kl penalty", "ppo with kl penalty"}


@eqx.filter_jit
def climb(rule, mdp, policy):
    """J and the KL in both directions, after each of 50 steps."""

    def body(carry, _):
        policy, state = carry
        new, state, info = rule.step(jax.random.key(0), policy, state, exact_batch(mdp, policy))
        row = mdp.objective(probabilities(new)), info.kl_old_new, info.kl_new_old
        return (new, state), row

    return jax.lax.scan(body, (policy, rule.init(policy)), length=50)[1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", slow_except(QUICK, CLIMBERS))
def test_climbs_to_the_optimum_without_a_step_back(x64, name, seed):
    """50 exact steps: J never falls and ends within 1 % of value iteration's optimum."""
    rule, mdp, policy = CLIMBERS[name], make_mdp(seed), SoftmaxTable(jnp.zeros((S, A)))
    objective, *kl = (np.asarray(x) for x in climb(rule, mdp, policy))
    best, start = optimum(mdp), float(mdp.objective(probabilities(policy)))
    assert best - start > 1
    assert (np.diff(np.append(start, objective)) >= -1e-12 * abs(best)).all()
    assert best - objective[-1] < 0.01 * (best - start)
    early = 4 if getattr(rule, "line_search", None) == "backtracking" else 2  # the others get there sooner
    assert best - objective[early] > 0.01 * (best - start)  # it had to be fitted to
    if isinstance(rule, TRPO):
        assert kl[rule.kl_direction == "new_old"].max() <= 0.1
