"""One iteration: collect → estimate → improve → fit. Read this first.

One iteration of one seed is a pure function from `TrainState` to `TrainState`. Where the environment is
compiled, the whole iteration is one traced program, and many run in a single call; where it is not, rollouts
come from outside and the rest of the iteration is the same program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.collect.compiled import CompiledCollector
from klimb.collect.episodes import EpisodeSummary
from klimb.estimate.estimator import Estimator
from klimb.estimate.values import remember
from klimb.improve.acceptance import choose
from klimb.improve.critic_fit import CriticFit, CriticInfo
from klimb.improve.returned import require_state
from klimb.improve.rule import Rule, traits_of
from klimb.improve.warm_up import step_unless
from klimb.mesh import gather_environments, spread_rows
from klimb.policies.critic import Critic
from klimb.training.devices import run_concurrently
from klimb.training.diagnostics import Diagnostics, Metrics
from klimb.training.length import Length
from klimb.training.normalizers import Learned, NormalizerUpdates
from klimb.training.replay import Replay
from klimb.types import Batch, Demonstrated, Rollout, Status, TrainState, UpdateInfo


@dataclass(frozen=True)
class Iteration:
    """collect → estimate → improve → fit, for one seed.

    policy_static, critic_static: the parts of policy and critic that are no arrays. length: of the whole run, for
    schedules. Where the estimator needs no critic, none is fitted.
    warmup: iterations in which only the critic learns. With a `role_axis` of two devices the rule's step is taken on
    one of them while the critic is fitted on the other.
    """

    rule: Rule
    policy_static: PyTree
    critic_static: PyTree
    collector: CompiledCollector | None
    estimator: Estimator
    replay: Replay
    critic_fit: CriticFit
    normalizers: NormalizerUpdates
    diagnostics: Diagnostics
    length: Length
    warmup: int = 0
    role_axis: str | None = None

    def __call__(self, state: TrainState, demonstrations: Demonstrated | None = None) -> tuple[TrainState, Metrics]:
        """One whole iteration on a compiled environment: (state, metrics).

        demonstrations: that the rule learns from besides.
        """
        state, rollout, episodes = self.collect(state)
        return self.learn(state, rollout, episodes, demonstrations)

    def collect(self, state: TrainState) -> tuple[TrainState, Rollout, EpisodeSummary]:
        """A rollout of the current policy on a compiled environment: (state, rollout, the episodes that ended in it).

        state: before the iteration.
        """
        assert self.collector is not None
        key, key_collect = jax.random.split(state.key)
        policy = eqx.combine(state.policy, self.policy_static)
        collector_state, rollout, episodes = self.collector.collect(key_collect, policy, state.collector_state)
        return eqx.tree_at(lambda s: (s.key, s.collector_state), state, (key, collector_state)), rollout, episodes

    def learn(
        self,
        state: TrainState,
        rollout: Rollout,
        episodes: EpisodeSummary,
        demonstrations: Demonstrated | None = None,
        behaviour: PyTree | None = None,
    ) -> tuple[TrainState, Metrics]:
        """estimate → improve and fit → update the normalisers, from a rollout.

        state: before the iteration. rollout: `[T, N]`. episodes: those that ended in it. demonstrations: as in a call.
        behaviour: the arrays of the policy that collected the rollout; None if it is the current one.
        """
        key, key_step, key_fit = jax.random.split(state.key, 3)
        policy = eqx.combine(state.policy, self.policy_static)
        critic = eqx.combine(state.critic, self.critic_static)
        rollout = gather_environments(spread_rows(rollout, axis=1))
        rollout, critic_carry = remember(critic, rollout, state.critic_carry)
        value, next_value = self.estimator.values(critic, rollout)
        fraction_done = self.length.fraction_done(state.iteration, state.env_steps)

        batch = self.estimator.estimate(rollout, value, next_value, fraction_done=fraction_done).spread()
        history, data = self.replay.training_batch(state, critic, batch, demonstrations, behaviour)
        data = data.spread()
        if self._advantage_epochs > 0:
            fitted, critic_state, fit, data = self.fit_in_rounds(key_fit, critic, state, batch)
            improved, rule_state, info = self.improve(key_step, policy, state, data)
        else:
            (improved, rule_state, info), (fitted, critic_state, fit) = run_concurrently(
                lambda: self.improve(key_step, policy, state, data),
                lambda: self.fit(key_fit, critic, state, batch),
                self.role_axis,
            )
        improved = eqx.combine(improved, self.policy_static)
        learned = Learned(improved, eqx.combine(fitted, self.critic_static), rule_state, critic_state)
        learned, exact = self.normalizers.update(learned, batch.obs_rows, batch.weight)
        metrics = {
            **self.diagnostics.measure(state, batch, data, value, next_value, info, fit, episodes),
            **self.diagnostics.normalizer_move(improved, learned.policy, batch, exact),
        }

        state = TrainState(
            policy=eqx.filter(learned.policy, eqx.is_array),
            critic=eqx.filter(learned.critic, eqx.is_array),
            rule_state=learned.rule_state,
            critic_state=learned.critic_state,
            collector_state=state.collector_state,
            history=history,
            previous=self.diagnostics.remember(state, learned.critic, rollout),
            iteration=state.iteration + 1,
            env_steps=self._env_steps_after(state, rollout),
            key=key,
            critic_carry=critic_carry,
        )
        return state, {"iteration": state.iteration, "env_steps": state.env_steps, **metrics}

    def unless_over(
        self, state: TrainState, go_on: Callable[[], tuple[TrainState, Metrics]]
    ) -> tuple[TrainState, Metrics]:
        """What `go_on` gives; for a seed that has made its steps the same state, and a record of nothing.

        state: before the iteration. go_on: the iteration.
        """
        if self.length.iterations is not None:
            return go_on()
        # Computed in any case: products of matrices are several times as slow inside of a conditional on CPUs.
        after, metrics = go_on()
        nothing: Metrics = {
            name: jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0)
            for name, x in metrics.items()
        }
        nothing |= {"iteration": state.iteration, "env_steps": state.env_steps}
        nothing["status"] = jnp.full_like(nothing["status"], Status.FINISHED)
        return choose(self.length.is_over(state.iteration, state.env_steps), (state, nothing), (after, metrics))

    def is_unprepared(self, state: TrainState) -> Array:
        """Whether the state is to go through `prepare` with a rollout before the first iteration, `[]`.

        state: any.
        """
        return jnp.bool_(self.normalizers.start_with_rollout) & (state.iteration == 0) & (state.env_steps == 0)

    def prepare(self, state: TrainState, rollout: Rollout) -> TrainState:
        """The state before the first iteration with the normalisers' first statistics.

        state: of fresh networks. rollout: `[T, N]`, of its policy; nothing else is learned from it.
        """
        learned = Learned(
            eqx.combine(state.policy, self.policy_static),
            eqx.combine(state.critic, self.critic_static),
            state.rule_state,
            state.critic_state,
        )
        _, critic_carry = remember(learned.critic, rollout, state.critic_carry)
        obs = rollout.obs.reshape(-1, *rollout.obs.shape[2:])
        learned, _ = self.normalizers.update(learned, obs, rollout.valid.reshape(-1).astype(rollout.reward.dtype))
        return eqx.tree_at(
            lambda s: (s.policy, s.critic, s.rule_state, s.critic_state, s.env_steps, s.critic_carry),
            state,
            (
                eqx.filter(learned.policy, eqx.is_array),
                eqx.filter(learned.critic, eqx.is_array),
                learned.rule_state,
                learned.critic_state,
                self._env_steps_after(state, rollout),
                critic_carry,
            ),
        )

    def _env_steps_after(self, state: TrainState, rollout: Rollout) -> Array:
        """Environment steps so far, with those of a rollout."""
        return state.env_steps + traits_of(self.rule).env_steps_per_row * jnp.sum(rollout.valid, dtype=jnp.uint32)

    def improve(
        self, key: PRNGKeyArray, policy: PyTree, state: TrainState, batch: Batch
    ) -> tuple[PyTree, PyTree, UpdateInfo]:
        """The rule's step, of the policy its arrays; while the critic warms up, none.

        key: for the rule. policy: the one that collected the batch. state: before the step.
        """
        waiting: Array | bool = False
        if self.warmup > 0 and self.estimator.uses_critic and traits_of(self.rule).uses_critic:
            waiting = state.iteration < self.warmup
        policy, rule_state, info = step_unless(waiting, self.rule, key, policy, state.rule_state, batch)
        return eqx.filter(policy, eqx.is_array), rule_state, info

    def fit(
        self, key: PRNGKeyArray, critic: Critic, state: TrainState, batch: Batch
    ) -> tuple[PyTree, PyTree, CriticInfo]:
        """The critic's fit on the value targets, of the critic its arrays.

        key: for the order of the rows. critic: before the fit. state: before the step. batch: the newest rows.
        """
        if not self.estimator.uses_critic:
            return eqx.filter(critic, eqx.is_array), state.critic_state, CriticInfo(jnp.zeros(()) * jnp.nan)
        critic, critic_state, info = self.critic_fit.fit(key, critic, state.critic_state, batch)
        return eqx.filter(critic, eqx.is_array), critic_state, info

    def fit_in_rounds(
        self, key: PRNGKeyArray, critic: Critic, state: TrainState, batch: Batch
    ) -> tuple[PyTree, PyTree, CriticInfo, Batch]:
        """The critic's fit in as many rounds as the rule makes epochs, and the batch with the advantages of each.

        key, critic, state, batch: as for `fit`.
        """
        assert batch.trajectory is not None
        rollout = batch.trajectory.rollout

        def estimate(critic: Critic) -> Batch:
            values = self.estimator.values(critic, rollout)
            return self.estimator.estimate(rollout, *values, fraction_done=batch.fraction_done)

        critic, critic_state, info, advantage = self.critic_fit.fit_in_rounds(
            key, critic, state.critic_state, batch, self._advantage_epochs, estimate
        )
        return eqx.filter(critic, eqx.is_array), critic_state, info, replace(batch, epoch_advantage=advantage)

    @property
    def _advantage_epochs(self) -> int:
        return traits_of(self.rule).advantage_epochs

    def init(
        self, key: PRNGKeyArray, policy: PyTree, critic: Critic, rollout: Rollout | None = None, *, num_envs: int = 1
    ) -> TrainState:
        """The state before the first iteration.

        key: of the whole run. policy, critic: to start from. rollout: the shapes of one, for a rule that learns from
        the last several. num_envs: in parallel.
        """
        critic_carry = () if critic.carry_size is None else jnp.zeros((num_envs, critic.carry_size))
        if rollout is not None and critic.carry_size is not None:
            assert rollout.carry is not None, "the policy has no memory"
            rollout = replace(rollout, critic_carry=jnp.zeros((*rollout.carry.shape[:2], critic.carry_size)))
        key, key_collect = jax.random.split(key)
        arrays = eqx.filter(policy, eqx.is_array)
        return TrainState(
            policy=arrays,
            critic=eqx.filter(critic, eqx.is_array),
            rule_state=require_state(self.rule, self.rule.init(policy)),
            critic_state=self.critic_fit.start(critic),
            collector_state=() if self.collector is None else self.collector.init(key_collect),
            history=() if rollout is None else self.replay.empty(rollout, arrays),
            previous=self.diagnostics.init(),
            iteration=jnp.int32(0),
            env_steps=jnp.uint32(0),
            key=key,
            critic_carry=critic_carry,
        )
