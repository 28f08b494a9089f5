"""Collecting from compiled environments: one scan, traced into the caller's program. Resets happen here, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, PRNGKeyArray, PyTree

from klimb.collect.episodes import EpisodeSummary, summarise
from klimb.collect.first_states import first_states
from klimb.environments.base import CompiledEnvironment, where_copies
from klimb.environments.faults import traced
from klimb.mesh import spread_environments
from klimb.policies.exploration import held_noise, noise_steps, rollout_noise, sampled_action
from klimb.policies.memory import NO_MEMORY, Memory, forget
from klimb.types import Rollout


class CollectorState(NamedTuple):
    """Where N running episodes stand: the environments' states, what was last seen, and the tally so far.

    carry: what the policy remembers of them; None for one without memory.
    """

    env_state: PyTree
    obs: Num[Array, " N *obs"]
    time: Int[Array, " N"]
    episode_return: Float[Array, " N"]
    carry: Float[Array, "N C"] | None = None


class _Step(NamedTuple):
    """One step of N environments: a row of the scan."""

    obs: Array
    action: Array
    log_prob: Array
    reward: Array
    terminated: Array
    truncated: Array
    successor: Array
    time: Array
    env_state: Array | None
    episode_return: Array


@dataclass(frozen=True)
class CompiledCollector:
    """`num_envs` copies of a compiled environment, `num_steps` steps of each a rollout.

    With `whole_episodes` a rollout is one episode of each copy, from its first step on; what still runs after
    `num_steps` is truncated there.
    """

    environment: CompiledEnvironment
    num_envs: int
    num_steps: int
    whole_episodes: bool = False
    records_env_state: bool = False
    """Whether rollouts hold the simulator's states too, of an environment of classic control."""
    exploration_steps: int | None = None
    """Steps for which a policy that explores with gSDE holds its noise; None for a whole rollout."""
    memory: Memory = NO_MEMORY
    """Of the policy."""

    def init(self, key: PRNGKeyArray) -> CollectorState:
        """All environments at the start of an episode."""
        with traced(self.environment.id):
            env_state, obs = self.environment.reset_all(jax.random.split(key, self.num_envs))
        nothing = jnp.zeros(self.num_envs, obs.dtype if jnp.issubdtype(obs.dtype, jnp.inexact) else float)
        time = jnp.zeros(self.num_envs, jnp.int32)
        return CollectorState(env_state, obs, time, nothing, self.memory.empty(self.num_envs))

    def collect(
        self, key: PRNGKeyArray, policy: PyTree, state: CollectorState
    ) -> tuple[CollectorState, Rollout, EpisodeSummary]:
        """One rollout under a frozen policy. Episodes go on from where the last rollout left them, or begin with it.

        key: for all draws of the rollout. policy: a callable pytree. state: where the episodes stand.
        """
        if self.whole_episodes:
            key, key_start = jax.random.split(key)
            state = self.init(key_start)
        environment = self.environment
        reset = traced(environment.id)(environment.reset_all)
        held, noise, step_keys, reset_keys = self._draws(key, policy, state)
        state = spread_environments(state)
        remembered = state.carry
        begun = (state.env_state, state.obs) if self.whole_episodes else None
        first = first_states(environment, reset, reset_keys, begun)

        def step(carries: tuple[CollectorState, PyTree], drawn: tuple) -> tuple[tuple, _Step]:
            (carry, count), (noise, key_step, column) = carries, drawn
            noise = noise if held is None else held[noise]
            distribution, action, remembered = sampled_action(policy, carry.obs, noise, carry.carry)
            actions = environment.actions
            taken = actions.unflatten(actions.clip(distribution.to_environment(action)))
            with traced(environment.id):
                after = environment.step_all(key_step, carry.env_state, taken)
            reward = after.reward.astype(carry.episode_return.dtype)
            ended = after.terminated | after.truncated
            episode_return = carry.episode_return + reward
            row = _Step(
                obs=carry.obs,
                action=action,
                log_prob=distribution.log_prob(action),
                reward=reward,
                terminated=after.terminated,
                # An episode that terminates on the clock's last tick has terminated: its value is zero.
                truncated=after.truncated & ~after.terminated,
                successor=after.obs,
                time=carry.time,
                env_state=carry.env_state.physics if self.records_env_state else None,
                episode_return=episode_return,
            )
            fresh_state, fresh_obs = first.at(column, count)

            carry = CollectorState(
                env_state=environment.restarted(ended, fresh_state, after.state),
                obs=where_copies(ended, fresh_obs, after.obs),
                time=jnp.where(ended, 0, carry.time + 1),
                episode_return=jnp.where(ended, 0, episode_return),
                carry=forget(remembered, ended),
            )
            return (carry, first.after(count, ended)), row

        start, draws = (state, first.count), (noise, step_keys, first.columns)
        if self.whole_episodes:
            (state, _), rows, valid = _until_all_have_ended(step, start, draws)
        else:
            # Twice a turn: 4 % of an iteration less, and more than that brings nothing.
            (state, _), rows = jax.lax.scan(step, start, draws, unroll=2)
            # A constant, not a column of the scan: XLA then knows that every weight is 1.
            valid = jnp.ones((self.num_steps, self.num_envs), bool)
        state, rows = spread_environments(state), spread_environments(rows, axis=1)
        columns = {name: column for name, column in rows._asdict().items() if name != "episode_return"}
        rollout = Rollout(**columns, valid=valid, whole_episodes=self.whole_episodes)
        if remembered is not None:
            rollout = self.memory.replayed(policy, rollout, remembered)
        ended = valid & (rows.terminated | rows.truncated)
        return state, rollout, summarise(ended, rows.episode_return, rows.time + 1)

    def _draws(
        self, key: PRNGKeyArray, policy: PyTree, state: CollectorState
    ) -> tuple[Array | None, Array, Key[Array, "T N"], Key[Array, "T N"]]:
        """The noise that is held for several steps, None where each has its own; and `[T, ...]` of each step: its
        noise, or which of the held one; the keys of the copies' steps, and of their resets.

        key, policy, state: as for `collect`.
        """
        shape = (self.num_steps, self.num_envs)
        key_act, key_step, key_reset = jax.random.split(key, 3)
        noise = rollout_noise(policy, key_act, state.obs, self.num_steps, self.exploration_steps)
        # What is held for several steps is looked up at each of them, not repeated.
        held = None if held_noise(policy) is None else noise
        if held is not None:
            noise = jnp.arange(self.num_steps) // noise_steps(policy, self.num_steps, self.exploration_steps)
        step_keys, reset_keys = jax.random.split(key_step, shape), jax.random.split(key_reset, shape)
        return held, noise, *spread_environments((step_keys, reset_keys), axis=1)


def _until_all_have_ended(
    step: Callable[[tuple, Any], tuple[tuple, _Step]], start: tuple[CollectorState, PyTree], draws: PyTree
) -> tuple[tuple[CollectorState, PyTree], _Step, Bool[Array, "T N"]]:
    """The first episode of every copy: (what the step carries, rows, which rows are part of it).

    step: of all copies, which begins a new episode where one has ended. start: what it carries, at the start of an
    episode everywhere. draws: what each step gets, `[T, ...]`. When no episode is left nothing is computed any more.
    """
    shapes = jax.eval_shape(step, start, jax.tree.map(lambda x: x[0], draws))[1]
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def turn(carry: tuple[tuple, Array], drawn: PyTree) -> tuple[tuple[tuple, Array], tuple[_Step, Array]]:
        """carry: the copies, and which of them are in their first episode. drawn: what the step gets."""
        copies, running = carry
        copies, row = jax.lax.cond(jnp.any(running), step, lambda copies, _: (copies, blank), copies, drawn)
        return (copies, running & ~(row.terminated | row.truncated)), (row, running)

    (copies, running), (rows, valid) = jax.lax.scan(turn, (start, jnp.ones(start[0].time.shape, bool)), draws)
    return copies, rows._replace(truncated=rows.truncated.at[-1].set(rows.truncated[-1] | running)), valid
