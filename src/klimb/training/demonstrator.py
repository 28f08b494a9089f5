"""Who made the demonstrations: a policy estimated by behaviour cloning of the same file, for importance weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.environments.registry import Environment
from klimb.improve.rules.behaviour_cloning import BehaviourCloning
from klimb.precision import full_precision
from klimb.runs.config import RunConfig
from klimb.training.offline import demonstration_batch
from klimb.training.program import Program

# A file of few episodes has few minibatches: early stopping, not the number of passes, is to end the fit.
CLONING = BehaviourCloning(minibatch_size=64, max_epochs=1000)


@dataclass(frozen=True)
class Demonstrator:
    """π_β of the demonstrations, as it was cloned.

    policy: the clone, of the structure of the run's own policies.
    figures: log_likelihood on the episodes that it was fitted to and held_out_log_likelihood on the others, in nats per
        action; both of the policy before the first pass too, as untrained_…; passes; episodes; steps; source.
    """

    policy: PyTree
    figures: dict[str, Any]

    @property
    def line(self) -> str:
        """The figures in one line."""
        return (
            "demonstrator cloned from {source}: held-out log-likelihood {held_out_log_likelihood:.3f} nats per action "
            "(untrained {untrained_held_out_log_likelihood:.3f}, on the episodes trained on {log_likelihood:.3f}); "
            "{episodes} episodes, {steps} steps, {passes} passes"
        ).format_map(self.figures)


def clone(
    config: RunConfig, environment: Environment, policy: PyTree | None, demonstrations: Demonstrations
) -> Demonstrator:
    """The demonstrator by maximum likelihood, with `BehaviourCloning` until the held-out episodes gain no more.

    The same for every seed of a run: everything random comes from the first one.

    config, environment: of the run. policy: that it starts from, and the clone too; None for a fresh network.
    demonstrations: whole episodes; their log-probs are not used.
    """
    options = dataclasses.replace(config.options, num_seeds=1, demonstrator="recorded", check_finite=False)
    program = Program(RunConfig(config.env, CLONING, options), environment, policy, demonstrations)
    assert program.demonstrations is not None
    rollout = program.demonstrations.rollout

    @eqx.filter_jit
    @full_precision
    def log_likelihoods(policy: PyTree) -> tuple[Any, Any]:
        return CLONING.log_likelihoods(policy, demonstration_batch(policy, rollout))

    state, passes = program.initial_state(), 0
    untrained = log_likelihoods(program.policies(state)[0])
    while program.certain_iterations(state, passes) > 0:
        state, _ = program.advance(state, 1)
        passes += 1
    (cloned,) = program.policies(state)
    fitted = log_likelihoods(cloned)
    figures = {
        "log_likelihood": float(fitted[0]),
        "held_out_log_likelihood": float(fitted[1]),
        "untrained_log_likelihood": float(untrained[0]),
        "untrained_held_out_log_likelihood": float(untrained[1]),
        "passes": passes,
        "episodes": demonstrations.num_episodes,
        "steps": len(demonstrations.reward),
        "source": demonstrations.source,
    }
    return Demonstrator(cloned, figures)
