"""The public names: this table is what `klimb` exports. `__init__.py` loads each of them when it is first used."""

from ._version import __version__ as __version__
from .collect.demonstrations import Demonstrations as Demonstrations
from .collect.evaluation import Evaluation as Evaluation
from .collect.evaluation import evaluate as evaluate
from .collect.recording import record as record
from .environments.adapters.gymnasium import GymnasiumEnvironment as GymnasiumEnvironment
from .environments.registry import make as make
from .errors import ConfigError as ConfigError
from .errors import DemonstrationError as DemonstrationError
from .errors import EnvironmentFault as EnvironmentFault
from .errors import EnvironmentNotFound as EnvironmentNotFound

# errors
from .errors import KlimbError as KlimbError
from .errors import MissingExtra as MissingExtra
from .errors import PolicyFileError as PolicyFileError
from .errors import RunError as RunError
from .errors import TrainingFailed as TrainingFailed
from .errors import UnsupportedSpace as UnsupportedSpace
from .errors import UntrustedEnvironment as UntrustedEnvironment

# estimators
from .estimate.advantages import gae as gae
from .estimate.importance import effective_sample_size as effective_sample_size
from .estimate.importance import per_decision_weights as per_decision_weights
from .estimate.importance import trajectory_weights as trajectory_weights
from .estimate.returns import rewards_to_go as rewards_to_go
from .guided.search import GuidedPolicySearch as GuidedPolicySearch

# divergences and geometry
from .improve.divergences import kl_divergence as kl_divergence
from .improve.divergences import total_variation as total_variation
from .improve.fisher import fisher_vector_product as fisher_vector_product
from .improve.rules.behaviour_cloning import BehaviourCloning as BehaviourCloning
from .improve.rules.dual_descent import DualDescent as DualDescent
from .improve.rules.kl_penalty import KLPenalty as KLPenalty
from .improve.rules.natural_gradient import NaturalGradient as NaturalGradient
from .improve.rules.off_policy_gradient import OffPolicyGradient as OffPolicyGradient
from .improve.rules.ppo import PPO as PPO

# rules
from .improve.rules.reinforce import Reinforce as Reinforce
from .improve.rules.trpo import TRPO as TRPO

# policies
from .policies.distributions import Categorical as Categorical
from .policies.distributions import DiagGaussian as DiagGaussian
from .policies.distributions import TanhGaussian as TanhGaussian
from .policies.networks import NetworkPolicy as NetworkPolicy
from .report.page import write_report as write_report
from .runs.config import RunConfig as RunConfig
from .runs.config import TrainOptions as TrainOptions
from .runs.demonstration_file import load_demonstrations as load_demonstrations
from .runs.demonstration_file import save_demonstrations as save_demonstrations
from .runs.policy_file import load_policy as load_policy
from .runs.policy_file import save_policy as save_policy

# theory
from .tabular.mdp import TabularMDP as TabularMDP
from .theory.checks import verify as verify
from .theory.exact_batch import exact_batch as exact_batch
from .training.devices import use_all_cores as use_all_cores
from .training.driver import Interrupted as Interrupted
from .training.driver import NotSaved as NotSaved
from .training.driver import resume as resume

# train and use
from .training.driver import train as train
from .training.run_writer import Run as Run
from .training.sweep import sweep as sweep

# types
from .types import Batch as Batch
from .types import Rollout as Rollout
from .types import Status as Status
from .types import TrainState as TrainState
from .types import UpdateInfo as UpdateInfo
