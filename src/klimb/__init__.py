"""klimb: policy gradients that climb inside a trust region.

Every algorithm collects a batch, estimates advantages, and improves the policy; they differ only in *improve*.

Names are loaded when they are first used, so that `import klimb` and `klimb --help` answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from klimb.collect.demonstrations import Demonstrations as Demonstrations
    from klimb.collect.recording import record as record
    from klimb.devices import use_all_cores as use_all_cores
    from klimb.environments.gymnasium_adapter import GymnasiumEnvironment as GymnasiumEnvironment
    from klimb.environments.registry import make as make
    from klimb.errors import ConfigError as ConfigError
    from klimb.errors import DemonstrationError as DemonstrationError
    from klimb.errors import EnvironmentFault as EnvironmentFault
    from klimb.errors import EnvironmentNotFound as EnvironmentNotFound
    from klimb.errors import KlimbError as KlimbError
    from klimb.errors import MissingExtra as MissingExtra
    from klimb.errors import PolicyFileError as PolicyFileError
    from klimb.errors import RunError as RunError
    from klimb.errors import TrainingFailed as TrainingFailed
    from klimb.errors import UnsupportedSpace as UnsupportedSpace
    from klimb.errors import UntrustedEnvironment as UntrustedEnvironment
    from klimb.estimate.advantages import gae as gae
    from klimb.estimate.importance import effective_sample_size as effective_sample_size
    from klimb.estimate.importance import per_decision_weights as per_decision_weights
    from klimb.estimate.importance import trajectory_weights as trajectory_weights
    from klimb.estimate.returns import rewards_to_go as rewards_to_go
    from klimb.guided.search import GuidedPolicySearch as GuidedPolicySearch
    from klimb.improve.behaviour_cloning import BehaviourCloning as BehaviourCloning
    from klimb.improve.divergences import kl_divergence as kl_divergence
    from klimb.improve.divergences import total_variation as total_variation
    from klimb.improve.dual_descent import DualDescent as DualDescent
    from klimb.improve.fisher import fisher_vector_product as fisher_vector_product
    from klimb.improve.kl_penalty import KLPenalty as KLPenalty
    from klimb.improve.natural_gradient import NaturalGradient as NaturalGradient
    from klimb.improve.off_policy import OffPolicyGradient as OffPolicyGradient
    from klimb.improve.ppo import PPO as PPO
    from klimb.improve.reinforce import Reinforce as Reinforce
    from klimb.improve.trpo import TRPO as TRPO
    from klimb.policies.distributions import Categorical as Categorical
    from klimb.policies.distributions import DiagGaussian as DiagGaussian
    from klimb.policies.distributions import TanhGaussian as TanhGaussian
    from klimb.policies.networks import NetworkPolicy as NetworkPolicy
    from klimb.runs.config import RunConfig as RunConfig
    from klimb.runs.config import TrainOptions as TrainOptions
    from klimb.runs.demonstration_file import load_demonstrations as load_demonstrations
    from klimb.runs.demonstration_file import save_demonstrations as save_demonstrations
    from klimb.runs.driver import Interrupted as Interrupted
    from klimb.runs.driver import NotSaved as NotSaved
    from klimb.runs.driver import resume as resume
    from klimb.runs.driver import train as train
    from klimb.runs.evaluate import Evaluation as Evaluation
    from klimb.runs.evaluate import evaluate as evaluate
    from klimb.runs.output import Run as Run
    from klimb.runs.policy_file import load_policy as load_policy
    from klimb.runs.policy_file import save_policy as save_policy
    from klimb.runs.report import write_report as write_report
    from klimb.runs.sweep import sweep as sweep
    from klimb.tabular.checks import verify as verify
    from klimb.tabular.exact_batch import exact_batch as exact_batch
    from klimb.tabular.mdp import TabularMDP as TabularMDP
    from klimb.types import Batch as Batch
    from klimb.types import Rollout as Rollout
    from klimb.types import Status as Status
    from klimb.types import TrainState as TrainState
    from klimb.types import UpdateInfo as UpdateInfo

_HOME = {
    # train and use
    "train": "runs.driver",
    "sweep": "runs.sweep",
    "resume": "runs.driver",
    "Run": "runs.output",
    "Interrupted": "runs.driver",
    "NotSaved": "runs.driver",
    "evaluate": "runs.evaluate",
    "Evaluation": "runs.evaluate",
    "load_policy": "runs.policy_file",
    "save_policy": "runs.policy_file",
    "record": "collect.recording",
    "Demonstrations": "collect.demonstrations",
    "load_demonstrations": "runs.demonstration_file",
    "save_demonstrations": "runs.demonstration_file",
    "write_report": "runs.report",
    "RunConfig": "runs.config",
    "TrainOptions": "runs.config",
    "make": "environments.registry",
    "GymnasiumEnvironment": "environments.gymnasium_adapter",
    "use_all_cores": "devices",
    # rules
    "Reinforce": "improve.reinforce",
    "OffPolicyGradient": "improve.off_policy",
    "KLPenalty": "improve.kl_penalty",
    "DualDescent": "improve.dual_descent",
    "NaturalGradient": "improve.natural_gradient",
    "TRPO": "improve.trpo",
    "PPO": "improve.ppo",
    "BehaviourCloning": "improve.behaviour_cloning",
    "GuidedPolicySearch": "guided.search",
    # estimators
    "gae": "estimate.advantages",
    "rewards_to_go": "estimate.returns",
    "trajectory_weights": "estimate.importance",
    "per_decision_weights": "estimate.importance",
    "effective_sample_size": "estimate.importance",
    # divergences and geometry
    "kl_divergence": "improve.divergences",
    "total_variation": "improve.divergences",
    "fisher_vector_product": "improve.fisher",
    # policies
    "Categorical": "policies.distributions",
    "DiagGaussian": "policies.distributions",
    "TanhGaussian": "policies.distributions",
    "NetworkPolicy": "policies.networks",
    # theory
    "TabularMDP": "tabular.mdp",
    "exact_batch": "tabular.exact_batch",
    "verify": "tabular.checks",
    # types
    "Batch": "types",
    "Rollout": "types",
    "Status": "types",
    "TrainState": "types",
    "UpdateInfo": "types",
    # errors
    "KlimbError": "errors",
    "ConfigError": "errors",
    "EnvironmentNotFound": "errors",
    "MissingExtra": "errors",
    "UnsupportedSpace": "errors",
    "UntrustedEnvironment": "errors",
    "EnvironmentFault": "errors",
    "PolicyFileError": "errors",
    "DemonstrationError": "errors",
    "RunError": "errors",
    "TrainingFailed": "errors",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'klimb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"klimb.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
