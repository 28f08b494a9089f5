"""Guided policy search: the policy learns from optimised trajectories that are kept close to it in KL."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from jaxtyping import PRNGKeyArray, PyTree
from pydantic import Field

from klimb.environments.base import ClassicControl
from klimb.errors import ConfigError
from klimb.fields import Count, NonNegative, Positive, checked
from klimb.guided.along_paths import path_traits
from klimb.guided.constrained import ConstrainedSearch
from klimb.guided.first_guides import DemonstratedActions
from klimb.guided.guides import Guides
from klimb.guided.importance_sampled import SAMPLED_TRAITS, ImportanceSampled
from klimb.guided.local_models import DynamicsSource, LocalModels
from klimb.guided.mirror_descent import MirrorDescent
from klimb.improve.rule import AT_START, Rule, Setting, Traits
from klimb.policies.actions import Box
from klimb.types import Batch, UpdateInfo

FIXED = {
    "regularisation": AT_START,
    "supervised_iterations": "they are the first iterations of a run",
}
"""Fields that can't change when a run is resumed, each with the reason."""


@checked
class GuidedPolicySearch:
    """The policy learns from optimised trajectories (Levine and Koltun 2013; Montgomery and Levine 2016).

    - importance_sampling: plans through known dynamics, from the states in which the policy starts. The policy first
    imitates the plans, then maximises Φ(θ) = Σ_t [E_w r_t + w_r log Z_t] on samples of policy and guides.
    - mirror_descent: improves linear-Gaussian controllers around the policy's episodes under KL(new‖old) ≤ ε, and
    projects them onto the policy. How well gains are predicted determines the next ε.
    - constrained: the same with a fixed ε, by dual gradient descent with one step of the multiplier per iteration.

    For continuous actions. importance_sampling is for environments with `dynamics` and `cost` (`ClassicControl`), the
    other two for any, with dynamics that are fitted or the simulator's. All methods use learning_rate; the options
    from guiding_samples to climb_kl are for importance_sampling, those from dynamics on for the other two.
    """

    method: Literal["importance_sampling", "mirror_descent", "constrained"] = "importance_sampling"
    """importance_sampling: with known dynamics; mirror_descent, constrained: with fitted ones or the simulator's."""
    learning_rate: Positive = 1e-3
    """Adam's step size, for the ascent on Φ and for the projection."""
    guiding_samples: Annotated[int, Field(ge=1, le=2**10)] = 4
    """Runs per guide, in addition to one of the policy and one of the best policy so far (at first of the guide)."""
    temperature: Positive = 0.01
    """α of the guides: coefficient of their entropy in the objective, in units of reward per nat."""
    adaptation: NonNegative = 10.0
    """κ: weight of log π_θ in the reward that guides are planned for, in units of α; 0 for guides that do not adapt."""
    restarts: Annotated[int, Field(ge=1, le=2**10)] = 8
    """Starting points per plan (random, or demonstrations) in the supervised iterations; the best result is kept."""
    supervised_iterations: Annotated[int, Field(ge=0, le=2**20)] = 6
    """Iterations at the start in which the policy imitates the guides instead of maximising Φ."""
    supervised_steps: Count = 4000
    """Gradient steps on KL(guide‖π_θ) in each of these iterations."""
    supervised_learning_rate: Positive = 3e-3
    """Adam's step size at the first of these steps; it falls linearly to 0 at the last."""
    kept_iterations: Annotated[int, Field(ge=1, le=2**10)] = 6
    """Number of iterations whose samples are kept: the last ones."""
    subset: Count = 64
    """Number of start states whose samples Φ uses: the newest, then those most probable under the policy."""
    regularisation: Positive = 0.01
    """Initial w_r, in standard deviations of the rewards; divided by 10 after a gain, multiplied by 10 after a loss."""
    gradient_steps: Count = 50
    """Maximum number of ascent steps on Φ per iteration."""
    climb_kl: Positive = 0.02
    """Limit on the mean KL(old‖new) of one iteration, in nats; a step that would exceed it is halved."""
    dynamics: DynamicsSource = "fitted"
    """fitted: to episodes; simulator: derivatives of its steps (classic control; MuJoCo without free bodies)."""
    regions: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of regions that get a linear model each, added to the fitted quadratic one; 0 for none."""
    look_ahead: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Horizon of the controllers in steps, with a fitted value at its end; none: the whole rollout, no value."""
    initial_epsilon: Positive = 0.1
    """ε: limit on KL(new‖old) of the controllers, in nats per step; mirror_descent adapts it, up to ten times this."""
    dual_learning_rate: Positive = 0.5
    """α of constrained: step size of log η per unit of log KL − log ε."""
    projection_epochs: Count = 20
    """Passes over the samples in the projection of the controllers onto the policy."""
    minibatch_size: Count = 256
    """Samples per gradient step of the projection."""

    @property
    def traits(self) -> Traits:
        # The other methods refuse demonstrations when they are bound, where there is this one to name.
        demonstrations: dict[str, Any] = {"learns_from": "both", "demonstrations_in_batch": False, "fixed": FIXED}
        if self.method != "importance_sampling":
            return replace(path_traits(self._models(None)), binds=True, **demonstrations)
        # Runs of the guides and of the best policy take environment steps in addition to the rollout's.
        steps = 2 + self.guiding_samples
        return replace(
            SAMPLED_TRAITS, env_steps_per_row=steps, rows_kept=self.kept_iterations * steps, **demonstrations
        )

    def bind(self, environment: Any, setting: Setting) -> Rule:
        """The rule of the chosen method for an environment.

        environment: with continuous actions. setting: what the rule has to know of the training.

        Raises ConfigError for discrete actions, for importance_sampling without known dynamics and cost, for the other
        methods with demonstrations, and for dynamics = simulator without derivatives.
        """
        if not isinstance(environment.actions, Box):
            raise ConfigError(
                f"guided policy search is for continuous actions, and those of {environment.id} are discrete: "
                "use trpo or ppo"
            )
        if self.method == "importance_sampling":
            return self._sampled(environment, setting)
        if setting.demonstrations is not None:
            raise ConfigError(
                f"--method {self.method} improves controllers around the policy's own episodes and can't use "
                "demonstrations: use --method importance_sampling, or clone them first (klimb train behaviour-cloning) "
                "and start from the clone with --init-from"
            )
        classic = isinstance(environment, ClassicControl)
        if self.dynamics == "simulator" and not (classic or getattr(environment, "derivatives", None)):
            raise ConfigError(
                f"{environment.id} has no derivatives for dynamics = simulator, which classic control has, and "
                "Gymnasium's MuJoCo environments without free bodies: use --dynamics fitted"
            )
        return self._along_paths(environment if classic else None, setting.overlap)

    def init(self, policy: PyTree) -> PyTree:
        """The rule's state, of a method that needs no environment. policy: Gaussian."""
        return self._without_environment().init(policy)

    def step(self, key: PRNGKeyArray, policy: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree, UpdateInfo]:
        """One step of mirror_descent or constrained, which need no environment.

        key: of the step's randomness. policy: Gaussian. state: of the last step. batch: with a trajectory.

        Raises ConfigError for importance_sampling, and as `MirrorDescent.step`.
        """
        return self._without_environment().step(key, policy, state, batch)

    def _without_environment(self) -> Rule:
        if self.method == "importance_sampling":
            raise ConfigError("importance_sampling plans in an environment: use the rule that bind returns")
        return self._along_paths(None, overlap=False)

    def _models(self, environment: ClassicControl | None) -> LocalModels:
        differentiated = environment if self.dynamics == "simulator" else None
        return LocalModels(self.dynamics, self.regions, self.look_ahead, differentiated)

    def _along_paths(self, environment: ClassicControl | None, overlap: bool) -> Rule:
        models = self._models(environment)
        projection: Any = {
            "epochs": self.projection_epochs,
            "minibatch_size": self.minibatch_size,
            "learning_rate": self.learning_rate,
        }
        if self.method == "constrained":
            return ConstrainedSearch(models, self.initial_epsilon, self.dual_learning_rate, **projection)
        return MirrorDescent(models, self.initial_epsilon, **projection, overlap=overlap)

    def _sampled(self, environment: Any, setting: Setting) -> Rule:
        if not isinstance(environment, ClassicControl):
            raise ConfigError(
                f"--method importance_sampling needs known dynamics and cost, and {environment.id} has none: "
                "use --method mirror_descent, which fits its own"
            )
        actions = environment.actions
        assert isinstance(actions, Box)
        horizon, recorded = setting.num_steps, setting.demonstrations
        demonstrated = None if recorded is None else DemonstratedActions.of(recorded, actions, horizon)
        guides = Guides(environment, actions, horizon, self.restarts, self.temperature, demonstrated)
        guides.check()
        return ImportanceSampled(
            guides=guides,
            starts=setting.num_envs,
            learns_scale=setting.learns_scale,
            fresh=setting.fresh,
            guiding_samples=self.guiding_samples,
            adaptation=self.adaptation,
            supervised_iterations=self.supervised_iterations,
            supervised_steps=self.supervised_steps,
            supervised_learning_rate=self.supervised_learning_rate,
            kept_iterations=self.kept_iterations,
            subset=self.subset,
            regularisation=self.regularisation,
            gradient_steps=self.gradient_steps,
            climb_kl=self.climb_kl,
            learning_rate=self.learning_rate,
        )
