"""The loop: collect → estimate → improve. Read this first.

One iteration of one seed is a pure function from `TrainState` to `TrainState`. Where the environment is
compiled, the whole iteration is one traced program, and many run in a single call; where it is not, rollouts
come from outside and the rest of the iteration is the same program.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.collect.compiled import CompiledCollector
from klimb.collect.episodes import EpisodeSummary
from klimb.collect.history import History
from klimb.devices import side_by_side
from klimb.estimate.batch import make_batch
from klimb.estimate.certificate import STEP, certificate
from klimb.estimate.critic import CriticFit, explained_variance, values
from klimb.estimate.improvement import MeanResidual, mean_residual, realised_improvement
from klimb.improve.rule import Rule, steps_a_row, uses_critic
from klimb.improve.warm_up import step_unless
from klimb.policies.networks import Critic
from klimb.policies.normalizer import observe
from klimb.runs.config import TrainOptions, num_iterations
from klimb.types import Batch, Rollout, TrainState, UpdateInfo

Metrics = dict[str, Array]


@dataclass(frozen=True)
class Iteration:
    """collect → estimate → improve, for one seed. `policy_static` is the part of the policy that is no array.

    With a `role_axis` of two devices the rule's step is taken on one while the critic is fitted on the other.
    """

    rule: Rule
    options: TrainOptions
    policy_static: PyTree
    collector: CompiledCollector | None
    role_axis: str | None = None

    def init(self, key: PRNGKeyArray, policy: PyTree, critic: Critic, rollout: Rollout | None = None) -> TrainState:
        """The state before the first iteration, from a fresh policy and critic.

        `rollout` gives the shapes of one, for a rule that learns from the last several.
        """
        key, key_collect = jax.random.split(key)
        arrays = eqx.filter(policy, eqx.is_array)
        # Not a weakly typed NaN: the second call would be traced anew.
        unknown = jnp.zeros(()) * jnp.nan
        return TrainState(
            policy=arrays,
            critic=critic,
            rule_state=self.rule.init(policy),
            critic_state=self.critic_fit.init(critic),
            collector_state=() if self.collector is None else self.collector.init(key_collect),
            history=() if rollout is None else self._empty_history(rollout, arrays),
            previous=MeanResidual(unknown, unknown),
            iteration=jnp.int32(0),
            env_steps=jnp.uint32(0),
            key=key,
        )

    def __call__(self, state: TrainState, demonstrations: Rollout | None = None) -> tuple[TrainState, Metrics]:
        """One whole iteration on a compiled environment."""
        assert self.collector is not None
        key, key_collect = jax.random.split(state.key)
        policy = eqx.combine(state.policy, self.policy_static)
        collector_state, rollout, episodes = self.collector.collect(key_collect, policy, state.collector_state)
        state = eqx.tree_at(lambda s: (s.key, s.collector_state), state, (key, collector_state))
        return self.learn(state, rollout, episodes, demonstrations)

    def learn(
        self, state: TrainState, rollout: Rollout, episodes: EpisodeSummary, demonstrations: Rollout | None = None
    ) -> tuple[TrainState, Metrics]:
        """estimate → improve → fit the critic → update the normalisers, from a rollout of the current policy."""
        options, gamma = self.options, self.options.gamma
        key, key_step, key_fit = jax.random.split(state.key, 3)
        policy = eqx.combine(state.policy, self.policy_static)

        value, next_value = values(state.critic, rollout)
        batch, scale = make_batch(rollout, value, next_value, options, progress=state.iteration / self.num_iterations)
        history, batch_of_all, scale = self.recall(state, rollout, batch, scale, demonstrations)
        (improved, rule_state, info), (critic, critic_state, fit) = side_by_side(
            lambda: self.improve(key_step, policy, state, batch_of_all),
            lambda: self.critic_fit.step(key_fit, state.critic, state.critic_state, batch),
            self.role_axis,
        )
        new_policy = eqx.combine(improved, self.policy_static)

        metrics = {
            **_episode_metrics(episodes),
            **step_metrics(info),
            "explained_variance": explained_variance(value.reshape(-1), batch.value_target, batch.weight),
            "value_loss": fit.value_loss,
        }
        previous = state.previous
        if options.certificate:
            now = mean_residual(rollout, value, next_value, gamma=gamma)
            metrics |= {**certificate(info, batch_of_all, scale, gamma), **realised_improvement(now, previous)}
        if options.normalize_observations:
            critic = observe(critic, batch.obs, batch.weight)
            # What a policy that was cloned or trained before makes of the world is part of what it can do: new
            # statistics would move it, outside every trust region.
            if options.init_from is None and not getattr(self.rule, "sets_normalizer", False):
                new_policy = observe(new_policy, batch.obs, batch.weight)
        if options.certificate:
            previous = mean_residual(rollout, *values(critic, rollout), gamma=gamma)
        state = TrainState(
            policy=eqx.filter(new_policy, eqx.is_array),
            critic=critic,
            rule_state=rule_state,
            critic_state=critic_state,
            collector_state=state.collector_state,
            history=history,
            previous=previous,
            iteration=state.iteration + 1,
            env_steps=state.env_steps + steps_a_row(self.rule) * jnp.sum(rollout.valid, dtype=jnp.uint32),
            key=key,
        )
        return state, {"iteration": state.iteration, "env_steps": state.env_steps, **metrics}

    def recall(
        self, state: TrainState, rollout: Rollout, batch: Batch, scale: Array, demonstrations: Rollout | None
    ) -> tuple[PyTree, Batch, Array]:
        """What the rule learns from: the newest batch, or with it the last several rollouts and demonstrations.

        Values and advantages of old rollouts are those of the critic as it is now.
        """
        history, rollouts, mixture = state.history, [rollout], None
        if self.history > 1:
            history = history.push(rollout, state.policy, self.policy_static)
            rollouts, mixture = [history.merged()], history.mixture()
        if demonstrations is not None:
            rollouts.append(demonstrations)
        if len(rollouts) == 1 and rollouts[0] is rollout:
            return history, batch, scale
        joint = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *rollouts)
        batch, scale = make_batch(
            joint, *values(state.critic, joint), self.options, progress=jnp.asarray(batch.progress)
        )
        return history, dataclasses.replace(batch, mixture=mixture), scale

    def improve(
        self, key: PRNGKeyArray, policy: PyTree, state: TrainState, batch: Batch
    ) -> tuple[PyTree, PyTree, UpdateInfo]:
        """The rule's step, of the policy its arrays; while the critic warms up, none."""
        if self.options.warmup == 0 or not uses_critic(self.rule):
            policy, rule_state, info = self.rule.step(key, policy, state.rule_state, batch)
        else:
            waiting = state.iteration < self.options.warmup
            policy, rule_state, info = step_unless(waiting, self.rule, key, policy, state.rule_state, batch)
        return eqx.filter(policy, eqx.is_array), rule_state, info

    def _empty_history(self, rollout: Rollout, policy: PyTree) -> History:
        keeps_policies = getattr(self.rule, "keeps_policies", False)
        return History.empty(self.history, rollout, policy, keeps_policies=keeps_policies)

    @property
    def history(self) -> int:
        """How many rollouts the rule learns from."""
        return getattr(self.rule, "history", 1)

    @property
    def num_iterations(self) -> int:
        """Iterations of the whole run, for what is annealed."""
        return num_iterations(self.rule, self.options)

    @cached_property
    def critic_fit(self) -> CriticFit:
        options = self.options
        return CriticFit(options.critic_learning_rate, options.critic_epochs, options.critic_num_minibatches)


def _episode_metrics(episodes: EpisodeSummary) -> Metrics:
    faults = {} if episodes.faults is None else {"env_faults": jnp.asarray(episodes.faults)}
    return {
        **faults,
        "episode_return": jnp.asarray(episodes.mean_return),
        "episode_length": jnp.asarray(episodes.mean_length),
        "episodes": jnp.asarray(episodes.count),
    }


def step_metrics(info: UpdateInfo) -> Metrics:
    """UpdateInfo by name, with the rule's own scalars; the certificate's part of them stays with the certificate."""
    fields = {name: getattr(info, name) for name in UpdateInfo.__dataclass_fields__ if name != "extra"}
    return {**fields, **{name: value for name, value in info.extra.items() if name not in STEP}}
