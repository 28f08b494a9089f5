"""Guided policy search: optimised trajectories show the way, and a KL keeps them and the policy together."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from jaxtyping import PRNGKeyArray, PyTree
from pydantic import Field
from pydantic.dataclasses import dataclass

from klimb.environments.base import ClassicControl
from klimb.errors import ConfigError
from klimb.fields import STRICT, Count, NonNegative, Positive
from klimb.guided.guides import Guides
from klimb.guided.importance_sampled import SAMPLED_TRAITS, ImportanceSampled
from klimb.guided.mirror_descent import MIRROR_TRAITS, MirrorDescent
from klimb.improve.rule import Rule, Setting, Traits
from klimb.policies.actions import Box
from klimb.types import Batch, UpdateInfo


@dataclass(frozen=True, config=STRICT)
class GuidedPolicySearch:
    """Let optimised trajectories show the policy where reward is (Levine and Koltun 2013; Montgomery and Levine 2016).

    importance_sampling  plans through known dynamics from the states that the policy starts from; first imitates the
                         plans, then climbs Φ(θ) = Σ_t [E_w r_t + w_r log Z_t] on samples of policy and guides
    mirror_descent       fits dynamics and rewards to the policy's episodes, improves linear-Gaussian controllers around
                         them under KL(new‖old) ≤ ε, and projects these onto the policy

    For continuous actions. The first is for environments with `dynamics` and `cost` (`ClassicControl`), the second for
    any. Options are of both, of importance_sampling (down to climb_kl), and of mirror_descent.
    """

    method: Literal["importance_sampling", "mirror_descent"] = "importance_sampling"
    """importance_sampling, with known dynamics, or mirror_descent, with fitted ones."""
    learning_rate: Positive = 1e-3
    """Adam's step size, for climbing Φ and for the projection."""
    guiding_samples: Annotated[int, Field(ge=1, le=2**10)] = 4
    """Runs of a guide from its start; of the policy there is one, and of the best so far (of the guide, at first)."""
    temperature: Positive = 0.01
    """α: of the guides, in units of reward: how much reward a nat of their entropy is worth."""
    adaptation: NonNegative = 10.0
    """κ: how much log π_θ counts in what guides are planned for, in units of α; 0 for guides that do not adapt."""
    restarts: Annotated[int, Field(ge=1, le=2**10)] = 8
    """Random starting points of each plan, while the policy imitates."""
    supervised_iterations: Annotated[int, Field(ge=0, le=2**20)] = 6
    """Iterations in which the policy imitates guides, before it climbs Φ."""
    supervised_steps: Count = 4000
    """Gradient steps on KL(guide‖π_θ) in each of them."""
    supervised_learning_rate: Positive = 3e-3
    """Adam's step size at the first of these; it falls to 0 at the last."""
    memory: Annotated[int, Field(ge=1, le=2**10)] = 6
    """Iterations whose samples are kept."""
    subset: Count = 64
    """Starts whose samples Φ is fitted on: the newest, then those that the policy explains best."""
    regularisation: Positive = 0.01
    """w_r at first, in units of the rewards' deviation; a tenth of it after a gain, ten times it after a loss."""
    gradient_steps: Count = 50
    """Most steps up Φ in one iteration."""
    climb_kl: Positive = 0.02
    """A step that would take the mean KL(old‖new) of all of them together beyond this, in nats, is halved."""
    initial_epsilon: Positive = 0.1
    """ε at first: KL(new‖old) of the controllers, nats a step; up to ten times that where gains are as predicted."""
    projection_epochs: Count = 20
    """Passes over the rows when the controllers are projected onto the policy."""
    minibatch_size: Count = 256
    """Rows of one step of the projection."""

    @property
    def traits(self) -> Traits:
        if self.method == "mirror_descent":
            return MIRROR_TRAITS
        # The guides and the best policy take steps of their own beside the rollout's.
        steps = 2 + self.guiding_samples
        return replace(SAMPLED_TRAITS, env_steps_per_row=steps, rows_kept=self.memory * steps)

    def bind(self, environment: Any, setting: Setting) -> Rule:
        """The method, at work in an environment. ConfigError where it can't be."""
        if not isinstance(environment.actions, Box):
            raise ConfigError(
                f"guided policy search is for continuous actions, and those of {environment.id} are discrete: "
                "use trpo or ppo"
            )
        return self._mirror_descent() if self.method == "mirror_descent" else self._sampled(environment, setting)

    def init(self, policy: PyTree) -> PyTree:
        """What the method remembers, where it needs no environment (mirror_descent)."""
        return self._on_its_own().init(policy)

    def step(self, key: PRNGKeyArray, policy: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree, UpdateInfo]:
        """One step of the method, where it needs no environment (mirror_descent)."""
        return self._on_its_own().step(key, policy, state, batch)

    def _on_its_own(self) -> Rule:
        if self.method == "importance_sampling":
            raise ConfigError("importance_sampling plans in an environment: put the rule there with bind")
        return self._mirror_descent()

    def _mirror_descent(self) -> Rule:
        return MirrorDescent(
            initial_epsilon=self.initial_epsilon,
            epochs=self.projection_epochs,
            minibatch_size=self.minibatch_size,
            learning_rate=self.learning_rate,
        )

    def _sampled(self, environment: Any, setting: Setting) -> Rule:
        if not isinstance(environment, ClassicControl):
            raise ConfigError(
                f"{environment.id} does not tell its dynamics and cost, and --method importance_sampling plans with "
                "them: use --method mirror_descent, which fits them to episodes"
            )
        actions = environment.actions
        assert isinstance(actions, Box)
        guides = Guides(environment, actions, setting.num_steps, self.restarts, self.temperature)
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
            memory=self.memory,
            subset=self.subset,
            regularisation=self.regularisation,
            gradient_steps=self.gradient_steps,
            climb_kl=self.climb_kl,
            learning_rate=self.learning_rate,
        )
