"""The loop: collect → estimate → improve. Read this first.

One iteration of one seed is a pure function from `TrainState` to `TrainState`. Where the environment is
compiled, the whole iteration is one traced program, and many run in a single call; where it is not, rollouts
come from outside and the rest of the iteration is the same program.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from klimb.collect.compiled import CompiledCollector
from klimb.collect.episodes import EpisodeSummary
from klimb.estimate.advantages import discount_from_start, estimate_advantages, normalise
from klimb.estimate.critic import CriticFit, explained_variance, values
from klimb.estimate.improvement import MeanResidual, mean_residual, realised_improvement
from klimb.improve.rule import Rule
from klimb.policies.networks import Critic
from klimb.policies.normalizer import Normalizer
from klimb.runs.config import TrainOptions
from klimb.types import Batch, Rollout, TrainState, UpdateInfo

Metrics = dict[str, Array]


@dataclass(frozen=True)
class Iteration:
    """collect → estimate → improve, for one seed. `policy_static` is the part of the policy that is no array."""

    rule: Rule
    options: TrainOptions
    policy_static: PyTree
    collector: CompiledCollector | None

    def init(self, key: PRNGKeyArray, policy: PyTree, critic: Critic) -> TrainState:
        """The state before the first iteration, from a fresh policy and critic."""
        key, key_collect = jax.random.split(key)
        # Not a weakly typed NaN: the second call would be traced anew.
        unknown = jnp.zeros(()) * jnp.nan
        return TrainState(
            policy=eqx.filter(policy, eqx.is_array),
            critic=critic,
            rule_state=self.rule.init(policy),
            critic_state=self.critic_fit.init(critic),
            collector_state=() if self.collector is None else self.collector.init(key_collect),
            previous=MeanResidual(unknown, unknown),
            iteration=jnp.int32(0),
            env_steps=jnp.uint32(0),
            key=key,
        )

    def __call__(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One whole iteration on a compiled environment."""
        assert self.collector is not None
        key, key_collect = jax.random.split(state.key)
        policy = eqx.combine(state.policy, self.policy_static)
        collector_state, rollout, episodes = self.collector.collect(key_collect, policy, state.collector_state)
        state = eqx.tree_at(lambda s: (s.key, s.collector_state), state, (key, collector_state))
        return self.learn(state, rollout, episodes)

    def learn(self, state: TrainState, rollout: Rollout, episodes: EpisodeSummary) -> tuple[TrainState, Metrics]:
        """estimate → improve → fit the critic → update the normalisers, from a rollout of the current policy."""
        options = self.options
        key, key_step, key_fit = jax.random.split(state.key, 3)
        policy = eqx.combine(state.policy, self.policy_static)

        value, next_value = values(state.critic, rollout)
        batch, scale = self.estimate(rollout, value, next_value, progress=state.iteration / options.num_iterations)
        new_policy, rule_state, info = self.rule.step(key_step, policy, state.rule_state, batch)
        critic, critic_state, fit = self.critic_fit.step(key_fit, state.critic, state.critic_state, batch)

        metrics = {
            **_episode_metrics(episodes),
            **_step_metrics(info, scale),
            **realised_improvement(mean_residual(rollout, value, next_value, gamma=options.gamma), state.previous),
            "explained_variance": explained_variance(value.reshape(-1), batch.value_target, batch.weight),
            "value_loss": fit.value_loss,
        }
        if options.normalize_observations:
            new_policy, critic = (_observe(x, batch.obs, batch.weight) for x in (new_policy, critic))
        state = TrainState(
            policy=eqx.filter(new_policy, eqx.is_array),
            critic=critic,
            rule_state=rule_state,
            critic_state=critic_state,
            collector_state=state.collector_state,
            previous=mean_residual(rollout, *values(critic, rollout), gamma=options.gamma),
            iteration=state.iteration + 1,
            env_steps=state.env_steps + jnp.sum(rollout.valid, dtype=jnp.uint32),
            key=key,
        )
        return state, {"iteration": state.iteration, "env_steps": state.env_steps, **metrics}

    def estimate(
        self, rollout: Rollout, value: Float[Array, "T N"], next_value: Float[Array, "T N"], *, progress: Array
    ) -> tuple[Batch, Array]:
        """The batch of a rollout, and the deviation its advantages had."""
        options = self.options
        advantage, value_target = estimate_advantages(
            options.advantage,
            rollout,
            value,
            next_value,
            gamma=options.gamma,
            gae_lambda=options.gae_lambda,
            n_step=options.n_step,
        )
        if options.discount_states:
            advantage = advantage * discount_from_start(rollout, options.gamma)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
        weight = rows.valid.astype(rollout.reward.dtype)
        flat_advantage, scale = advantage.reshape(-1), jnp.ones(())
        if options.normalize_advantage:
            flat_advantage, scale = normalise(flat_advantage, weight)
        batch = Batch(
            obs=rows.obs,
            action=rows.action,
            log_prob=rows.log_prob,
            advantage=flat_advantage,
            value_target=value_target.reshape(-1),
            weight=weight,
            rollout=rollout,
            progress=progress,
        )
        return batch, scale

    @cached_property
    def critic_fit(self) -> CriticFit:
        options = self.options
        return CriticFit(options.critic_learning_rate, options.critic_epochs, options.critic_num_minibatches)


def _episode_metrics(episodes: EpisodeSummary) -> Metrics:
    return {
        "episode_return": episodes.mean_return,
        "episode_length": episodes.mean_length,
        "episodes": episodes.count,
    }


def _step_metrics(info: UpdateInfo, scale: Array) -> Metrics:
    """UpdateInfo by name, with the surrogate gain also in units of reward a step."""
    fields = {name: getattr(info, name) for name in UpdateInfo.__dataclass_fields__ if name != "extra"}
    extra = dict(info.extra)
    return {
        **fields,
        "predicted_improvement": info.surrogate_gain * scale,
        "predicted_improvement_se": extra.pop("surrogate_gain_se", jnp.nan) * scale,
        **extra,
    }


def _observe(owner: Any, obs: Array, weight: Array) -> Any:
    """The same policy or critic with the batch's observations taken into its normaliser, where it has one."""
    normalizer = getattr(owner, "normalizer", None)
    if not isinstance(normalizer, Normalizer):
        return owner
    return eqx.tree_at(lambda tree: tree.normalizer, owner, normalizer.update(obs, weight))
