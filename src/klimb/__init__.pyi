"""The public names: this table is what `klimb` exports. `__init__.py` loads each of them when it is first used."""
# ruff: noqa: I001

from ._version import __version__ as __version__

# train and use
from .training.driver import train as train
from .training.sweep import sweep as sweep
from .training.sweep import resume_sweep as resume_sweep
from .training.tune import tune as tune
from .training.tune import resume_tune as resume_tune
from .training.tune import TuneResult as TuneResult
from .runs.tune_file import Trial as Trial
from .training.driver import resume as resume
from .training.run_writer import Run as Run
from .training.ongoing_run import OngoingRun as OngoingRun
from .training.loop import Interrupted as Interrupted
from .training.loop import NotSaved as NotSaved
from .collect.evaluation import evaluate as evaluate
from .collect.evaluation import Evaluation as Evaluation
from .export.write import export_policy as export_policy
from .export.write import Exported as Exported
from .filming.clip import film as film
from .filming.clip import Clip as Clip
from .policies.acting import act as act
from .policies.acting import act_with_memory as act_with_memory
from .runs.policy_file import load_policy as load_policy
from .runs.policy_file import save_policy as save_policy
from .collect.recording import record as record
from .collect.demonstrations import Demonstrations as Demonstrations
from .runs.demonstration_file import load_demonstrations as load_demonstrations
from .runs.demonstration_file import save_demonstrations as save_demonstrations
from .report.page import write_report as write_report
from .runs.config import RunConfig as RunConfig
from .runs.config import TrainOptions as TrainOptions
from .runs.typed_options import TrainOptionsDict as TrainOptionsDict
from .presets.shipped import preset as preset
from .presets.shipped import load_preset as load_preset
from .presets.preset import Preset as Preset
from .environments.registry import make as make
from .environments.adapters.gymnasium import GymnasiumEnvironment as GymnasiumEnvironment
from .training.devices import use_all_cores as use_all_cores
from .training.peers import use_all_processes as use_all_processes

# rules
from .improve.rules.reinforce import Reinforce as Reinforce
from .improve.rules.off_policy_gradient import OffPolicyGradient as OffPolicyGradient
from .improve.rules.kl_penalty import KLPenalty as KLPenalty
from .improve.rules.dual_descent import DualDescent as DualDescent
from .improve.rules.natural_gradient import NaturalGradient as NaturalGradient
from .improve.rules.trpo import TRPO as TRPO
from .improve.rules.ppo import PPO as PPO
from .improve.rules.conservative_policy_iteration import ConservativePolicyIteration as ConservativePolicyIteration
from .improve.rules.reps import REPS as REPS
from .improve.rules.v_mpo import VMPO as VMPO
from .improve.rules.awr import AWR as AWR
from .improve.rules.behaviour_cloning import BehaviourCloning as BehaviourCloning
from .guided.search import GuidedPolicySearch as GuidedPolicySearch

# rules of one's own
from .improve.rule import Rule as Rule
from .improve.rule import OfflineRule as OfflineRule
from .improve.rule import Traits as Traits
from .improve.rule import KLLimit as KLLimit
from .types import Metric as Metric
from .improve.acceptance import accept_or_reject as accept_or_reject
from .improve.acceptance import update_info as update_info
from .improve.objectives import surrogate_gain as surrogate_gain
from .improve.objectives import log_likelihood as log_likelihood
from .improve.objectives import log_ratio as log_ratio
from .improve.optimizer import Optimizer as Optimizer
from .improve.optimizer import fit_epochs as fit_epochs
from .policies.parameters import flatten as flatten
from .policies.policy import action_distribution as action_distribution

# networks of one's own
from .policies.policy import Policy as Policy
from .policies.networks import NetworkPolicy as NetworkPolicy
from .policies.critic import Critic as Critic
from .policies.encoders import Encoder as Encoder
from .policies.encoders import FlatEncoder as FlatEncoder
from .policies.normalizer import Normalizer as Normalizer
from .policies.normalizer import Rescaling as Rescaling
from .policies.action_spec import ActionSpec as ActionSpec
from .policies.actions import action_spec as action_spec
from .policies.observations import ObservationSpec as ObservationSpec
from .policies.observations import observation_spec as observation_spec
from .policies.distributions import Distribution as Distribution
from .policies.distributions import Categorical as Categorical
from .policies.distributions import DiagGaussian as DiagGaussian
from .policies.distributions import TanhGaussian as TanhGaussian
from .policies.products import MultiCategorical as MultiCategorical
from .policies.products import Product as Product

# environments of one's own
from .environments.base import CompiledEnvironment as CompiledEnvironment
from .environments.base import ClassicControl as ClassicControl
from .environments.base import Transition as Transition
from .environments.host import HostEnvironment as HostEnvironment
from .environments.host import HostVector as HostVector
from .environments.host import HostStep as HostStep
from .environments.check import check_env as check_env
from .environments.findings import EnvironmentCheck as EnvironmentCheck
from .environments.findings import Finding as Finding

# estimators
from .estimate.estimator import Estimator as Estimator
from .estimate.advantages import gae as gae
from .estimate.returns import rewards_to_go as rewards_to_go
from .estimate.importance import trajectory_weights as trajectory_weights
from .estimate.importance import per_decision_weights as per_decision_weights
from .estimate.importance import effective_sample_size as effective_sample_size
from .estimate.off_policy_evaluation import estimate_return as estimate_return
from .estimate.off_policy_evaluation import ReturnEstimate as ReturnEstimate

# divergences and geometry
from .improve.divergences import kl_divergence as kl_divergence
from .improve.divergences import total_variation as total_variation
from .improve.fisher import fisher_vector_product as fisher_vector_product

# theory
from .tabular.mdp import TabularMDP as TabularMDP
from .theory.exact_batch import exact_batch as exact_batch
from .theory.checks import verify as verify

# types
from .types import Batch as Batch
from .types import Rollout as Rollout
from .types import Sequences as Sequences
from .types import Trajectory as Trajectory
from .types import Status as Status
from .types import StepErrors as StepErrors
from .types import TrainState as TrainState
from .types import UpdateInfo as UpdateInfo

# errors
from .errors import KlimbError as KlimbError
from .errors import ConfigError as ConfigError
from .errors import WrongObject as WrongObject
from .errors import EnvironmentNotFound as EnvironmentNotFound
from .errors import MissingExtra as MissingExtra
from .errors import NameTaken as NameTaken
from .errors import UnsupportedSpace as UnsupportedSpace
from .errors import UntrustedEnvironment as UntrustedEnvironment
from .errors import EnvironmentFault as EnvironmentFault
from .errors import PolicyFileError as PolicyFileError
from .errors import ExportError as ExportError
from .errors import DemonstrationError as DemonstrationError
from .errors import RunError as RunError
from .errors import TrainingFailed as TrainingFailed
from .errors import PeerLost as PeerLost
