"""Whole episodes under a policy: the loop that evaluation and recording share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray, PyTree

from klimb.environments.base import CompiledEnvironment
from klimb.environments.faults import traced
from klimb.environments.host import HostEnvironment, HostVector
from klimb.environments.registry import Environment
from klimb.errors import EnvironmentFault, PolicyFileError
from klimb.policies.memory import Memory, carry_size, forget
from klimb.policies.memory import step as remembering_step
from klimb.policies.networks import NetworkPolicy
from klimb.precision import full_precision

MAX_HOST_COPIES = 16
STEPS_PER_CALL = 64
MAX_STEPS = 100_000
"""Steps after which an episode is taken for one that never ends."""


class EpisodeStep(NamedTuple):
    """One step of E episodes side by side. action: in the environment's units, before its bounds.

    state: of a compiled environment before the step; None of a host environment.
    """

    obs: Num[Array | np.ndarray, " E *obs"]
    action: Any
    log_prob: Float[Array | np.ndarray, " E"]
    reward: Float[Array | np.ndarray, " E"]
    terminated: Bool[Array | np.ndarray, " E"]
    truncated: Bool[Array | np.ndarray, " E"]
    next_obs: Num[Array | np.ndarray, " E *obs"]
    state: PyTree = None


Keep = Callable[[EpisodeStep], tuple]
"""Which columns of a step are kept."""
OnEpisodes = Callable[[int, int], None]
"""Called at the start, and whenever episodes have ended: with the number of those that have, and of all."""


def whole_episodes(
    policy: PyTree,
    environment: Environment,
    keep: Keep,
    *,
    episodes: int,
    seed: int,
    deterministic: bool,
    max_steps: int = MAX_STEPS,
    on_episodes: OnEpisodes | None = None,
) -> tuple[np.ndarray, ...]:
    """The rows of `episodes` whole episodes, one episode after the other: the columns that are kept, `[R, ...]` each.

    policy, seed, on_episodes: as for a call of `WholeEpisodes`; the others: as for `WholeEpisodes` itself.

    Raises PolicyFileError when the policy does not fit the environment, and EnvironmentFault when an episode never
    ends, or the environment fails.
    """
    run = WholeEpisodes(environment, keep, episodes=episodes, deterministic=deterministic, max_steps=max_steps)
    return run(policy, seed, on_episodes)


class WholeEpisodes:
    """Runs whole episodes under one policy after the other; programs are compiled once for policies of one structure.

    environment: where they run, in copies of their own. keep: from a step to the columns wanted of it.
    episodes: of each call. deterministic: the mode at every step, instead of samples.
    max_steps: steps after which an episode is taken for one that never ends.
    """

    def __init__(
        self,
        environment: Environment,
        keep: Keep,
        *,
        episodes: int,
        deterministic: bool,
        max_steps: int = MAX_STEPS,
    ) -> None:
        self._environment, self._keep = environment, keep
        self._episodes, self._max_steps = episodes, max_steps
        if isinstance(environment, CompiledEnvironment):
            self._start, self._advance = compiled_episodes(environment, keep, episodes, deterministic)
        else:
            self._act = eqx.filter_jit(partial(decide, deterministic=deterministic))

    def __call__(self, policy: PyTree, seed: int, on_episodes: OnEpisodes | None = None) -> tuple[np.ndarray, ...]:
        """The rows of all episodes, one episode after the other: the columns that are kept, `[R, ...]` each.

        policy: a callable pytree that fits the environment. seed: of the environments and of the policy's draws; a
        host environment's copies get the numbers of `numpy.random.SeedSequence(seed)` as seeds.
        on_episodes: sees them end.

        Raises PolicyFileError when the policy does not fit the environment, and EnvironmentFault when an episode never
        ends, or the environment fails.
        """
        environment = self._environment
        require_fit(policy, environment)
        ended = _Ended(self._episodes, on_episodes)
        if isinstance(environment, CompiledEnvironment):
            return self._side_by_side(policy, seed, ended)
        share = _shares(self._episodes, min(self._episodes, MAX_HOST_COPIES))
        # New copies every time: nothing that an environment keeps from one episode to the next can count.
        vector = environment.vector(len(share))
        try:
            return self._shared_out(policy, vector, environment, share, seed, ended)
        finally:
            vector.close()

    def _side_by_side(self, policy: PyTree, seed: int, ended: _Ended) -> tuple[np.ndarray, ...]:
        """All episodes of a compiled environment, each in a copy of its own, until the last of them has ended."""
        carry, chunks = self._start(jax.random.key(seed), Memory(carry_size(policy))), []
        while (running := int(carry[-1].sum())) > 0:
            ended.tell(self._episodes - running)
            carry, rows = self._advance(policy, carry)
            chunks.append([np.asarray(column) for column in rows])
            steps = len(chunks) * STEPS_PER_CALL
            if steps > self._max_steps and sum(chunk[-1].sum(0) for chunk in chunks).max() > self._max_steps:
                raise endless(self._environment.id, self._max_steps)
        ended.tell(self._episodes)
        *columns, alive = (np.concatenate(column) for column in zip(*chunks, strict=True))
        if alive.sum(0).max() > self._max_steps:
            raise endless(self._environment.id, self._max_steps)
        # One episode after the other.
        order = np.argwhere(alive.T)
        return tuple(column[order[:, 1], order[:, 0]] for column in columns)

    def _shared_out(
        self,
        policy: PyTree,
        vector: HostVector,
        environment: HostEnvironment,
        share: np.ndarray,
        seed: int,
        ended: _Ended,
    ) -> tuple[np.ndarray, ...]:
        """Each copy of a host environment runs its share of the episodes, so that short ones don't count more often."""
        running: list[list[tuple]] = [[] for _ in share]
        finished: list[tuple] = []
        key, obs = jax.random.key(seed), vector.reset(np.random.SeedSequence(seed).generate_state(len(share)))
        carry = Memory(carry_size(policy)).empty(len(share))
        while share.any():
            key, key_act = jax.random.split(key)
            *made, carry = self._act(key_act, policy, obs, carry)
            action, log_prob = (np.asarray(x) for x in made)
            step = vector.step(environment.actions.clip(action))
            row = EpisodeStep(obs, action, log_prob, step.reward, step.terminated, step.truncated, step.next_obs)
            columns = self._keep(row)
            for copy in np.flatnonzero(step.valid):
                # Copied: the environment may write its next observations into the same memory.
                running[copy].append(tuple(np.array(column[copy]) for column in columns))
            for copy in np.flatnonzero(step.terminated | step.truncated):
                if share[copy] > 0:
                    finished += running[copy]
                    share[copy] -= 1
                running[copy] = []
            ended.tell(ended.total - int(share.sum()))
            # Copies that have run their share go on, and count no more.
            remaining = zip(running, share, strict=True)
            if any(len(rows) > self._max_steps for rows, left in remaining if left > 0):
                raise endless(environment.id, self._max_steps)
            obs, carry = step.obs, forget(carry, step.terminated | step.truncated | ~step.valid)
        return tuple(np.stack(column) for column in zip(*finished, strict=True))


class _Ended:
    """Tells of episodes that have ended. total: how many there will be. on_episodes: whom, if anybody."""

    def __init__(self, total: int, on_episodes: OnEpisodes | None) -> None:
        self.total, self._on_episodes, self._told = total, on_episodes, -1
        self.tell(0)

    def tell(self, number: int) -> None:
        """number: of those that have ended."""
        if self._on_episodes is not None and number > self._told:
            self._told = number
            self._on_episodes(number, self.total)


def require_fit(policy: PyTree, environment: Environment) -> None:
    """PolicyFileError when a policy was made for other observations or actions than the environment's.

    policy: only of klimb's own networks it is known what they were made for.
    """
    if not isinstance(policy, NetworkPolicy):
        return
    expected, shape = policy.observations.shape, environment.observations.shape
    if expected != shape:
        raise PolicyFileError(
            f"the policy reads observations of shape {expected}, {environment.id} gives {shape}: "
            "it was trained on another environment"
        )
    if not policy.actions.fits(environment.actions):
        raise PolicyFileError(
            f"the policy has the actions {policy.actions}, {environment.id} takes {environment.actions}: "
            "it was trained on another environment"
        )


@full_precision
def decide(
    key: PRNGKeyArray, policy: PyTree, obs: Array, carry: Array | None, deterministic: bool
) -> tuple[Array, Array, Array | None]:
    """Actions in the environment's units, their log-probs, and what the policy remembers.

    A policy that takes its mode has no density: NaN. key: of the draws. policy: a callable pytree. obs: of E
    environments. carry: what it remembers before the step. deterministic: the mode instead of samples.
    """
    distribution, carry = remembering_step(policy, obs, carry)
    action = distribution.mode() if deterministic else distribution.sample(key)
    log_prob = jnp.where(deterministic, jnp.nan, distribution.log_prob(action))
    return distribution.to_environment(action), log_prob, carry


def compiled_episodes(
    environment: CompiledEnvironment, keep: Keep, episodes: int, deterministic: bool
) -> tuple[Callable[[PRNGKeyArray, Memory], tuple], Callable[[PyTree, tuple], tuple[tuple, tuple]]]:
    """Two programs: the start of all episodes, and `STEPS_PER_CALL` steps of them under a policy.

    environment: where. keep: from a step to the columns wanted of it. episodes: E, side by side. deterministic: the
    mode at every step, instead of samples. The carry of both is (key, states, observations, what the policy remembers,
    which episodes go on); the columns that are kept, and which episodes went on before each step, are
    `[STEPS_PER_CALL, E, …]`.
    """
    actions = environment.actions

    @eqx.filter_jit
    @full_precision
    def advance(policy: PyTree, carry: tuple) -> tuple[tuple, tuple]:
        def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
            key, state, obs, remembered, alive = carry
            key, key_act, key_step = jax.random.split(key, 3)
            action, log_prob, remembered = decide(key_act, policy, obs, remembered, deterministic)
            with traced(environment.id):
                taken = actions.unflatten(actions.clip(action))
                after = environment.step_all(jax.random.split(key_step, episodes), state, taken)
            ends = after.terminated, after.truncated
            row = EpisodeStep(obs, action, log_prob, after.reward, *ends, after.obs, state)
            goes_on = alive & ~(after.terminated | after.truncated)
            return (key, after.state, after.obs, remembered, goes_on), (*keep(row), alive)

        return jax.lax.scan(step, carry, None, STEPS_PER_CALL)

    @partial(jax.jit, static_argnums=1)
    @full_precision
    def start(key: PRNGKeyArray, memory: Memory) -> tuple:
        key, key_reset = jax.random.split(key)
        with traced(environment.id):
            state, obs = environment.reset_all(jax.random.split(key_reset, episodes))
        return key, state, obs, memory.empty(episodes), jnp.ones(episodes, bool)

    return start, advance


def endless(name: str, steps: int) -> EnvironmentFault:
    """The error for an episode that never ends. name: the environment's. steps: after which it had not ended."""
    return EnvironmentFault(
        f"an episode of {name} has not ended after {steps} steps: give it an end (in Gymnasium, max_episode_steps when "
        "it is registered)"
    )


def _shares(episodes: int, copies: int) -> np.ndarray:
    """How many of the episodes each copy runs."""
    share = np.full(copies, episodes // copies)
    share[: episodes % copies] += 1
    return share
