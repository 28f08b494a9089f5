"""What rules share that improve controllers along the paths of a rollout: their traits, and the step of the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from klimb.guided.kl_constrained_lqr import KLConstrainedControllers
from klimb.guided.local_models import LocalModels, LocalProblem
from klimb.guided.projection import Targets, project, promised_gain
from klimb.improve.rule import Traits
from klimb.types import Metric

METRICS = {
    "epsilon": Metric("ε", "limit on KL(new‖old) of the controllers, in nats per step"),
    "local_kl": Metric("KL of the controllers", "mean KL(p‖π_θ), p the controllers, in nats per step"),
    "eta": Metric("η", "multiplier of the controllers' KL"),
    "dual_status": Metric(
        "Status of the search for η",
        "0: KL within 10 % of ε, 1: limit not active, 2: not positive definite, 3: not converged",
    ),
    "local_improvement": Metric(
        "Predicted gain of the controllers", "predicted by the local models, in reward per step"
    ),
    "promised_improvement": Metric("Predicted gain of the policy", "predicted by the local models, in reward per step"),
    "projection_kl": Metric("KL after the projection", "mean KL(π_θ‖p), p the controllers, in nats per step"),
}


def path_traits(models: LocalModels) -> Traits:
    """Of a rule that improves controllers along paths.

    models: of dynamics and costs.
    """
    simulated = models.dynamics == "simulator"
    return Traits(
        title="Guided policy search",
        uses_critic=models.look_ahead is not None,
        records_env_state=simulated and models.environment is not None,
        records_derivatives=simulated and models.environment is None,
        metrics={**METRICS, **models.metrics},
    )


class PolicyStep(NamedTuple):
    """A policy that has followed controllers. moments: Adam's. promised: its predicted gain in reward per step.

    metrics: `METRICS` without epsilon, and those of the local models.
    """

    policy: PyTree
    moments: optax.OptState
    promised: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class Following:
    """The S-step: the projection of controllers onto the policy.

    epochs: passes over the rows, at least 1. minibatch_size: rows per step. learning_rate: Adam's.
    """

    epochs: int = 20
    minibatch_size: int = 256
    learning_rate: float | Array = 1e-3

    def step(
        self,
        key: PRNGKeyArray,
        policy: PyTree,
        problem: LocalProblem,
        controllers: KLConstrainedControllers,
        moments: optax.OptState,
    ) -> PolicyStep:
        """θ ← argmin mean KL(π_θ‖p).

        key: for the order of the rows. policy: that the controllers improve on. problem, controllers: along the paths
        of its batch. moments: Adam's.
        """
        projected = project(
            key,
            policy,
            Targets.along(policy, controllers, problem.paths),
            moments,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            minibatch_size=self.minibatch_size,
        )
        promised = promised_gain(controllers, problem.paths, policy, projected.policy)
        metrics = {
            "local_kl": controllers.kl,
            "eta": controllers.eta,
            "dual_status": controllers.status,
            "local_improvement": controllers.previous_cost - controllers.predicted_cost,
            "promised_improvement": promised,
            "projection_kl": projected.kl,
            **problem.metrics,
        }
        return PolicyStep(projected.policy, projected.moments, promised, metrics)
