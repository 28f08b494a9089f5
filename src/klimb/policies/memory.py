"""Policies with memory: what they are, one step of them, and their replay over whole sequences."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from klimb.policies.distributions import Distribution
from klimb.policies.few_at_once import over_rows
from klimb.types import Rollout, Sequences


@runtime_checkable
class Remembering(Protocol):
    """A policy that remembers numbers from one step to the next; all of them are 0 when an episode begins."""

    @property
    def carry_size(self) -> int | None:
        """C, how many they are: known without the policy's arrays. None where nothing is remembered."""
        ...

    def step(self, obs: Array, carry: Array) -> tuple[Distribution, Array]:
        """π(·|s, memory), and what is remembered after the step, `[C]`.

        obs: one observation. carry: what was remembered before the step, `[C]`.
        """
        ...


@runtime_checkable
class Unrolling(Remembering, Protocol):
    """A policy that computes many steps faster than one after the other; otherwise `step` is called for each."""

    def unroll(self, obs: Array, carry: Array, begins: Array) -> tuple[Distribution, Array]:
        """π(·|s, memory) of every step of sequences, `[L, S]`, and what is remembered after each, `[L, S, C]`.

        obs: `[L, S, *obs]`. carry: before the first step, `[S, C]`. begins: before which steps everything is forgotten,
        `[L, S]`.
        """
        ...


def carry_size(policy: Any) -> int | None:
    """How many numbers a policy remembers from step to step; None for one without memory.

    policy: of any class, with or without its arrays.
    """
    return policy.carry_size if isinstance(policy, Remembering) else None


def forget(carry: Array | None, where: Bool[Array | np.ndarray, " N"]) -> Array | None:
    """What is remembered where episodes go on. After an end, and of numbers that are not finite, it is nothing.

    A NaN that was seen once would stay in the memory for as long as the episode goes on, and make every batch useless.

    carry: `[N, C]`, or None. where: the copies whose episodes have ended.
    """
    if carry is None:
        return None
    usable = jnp.all(jnp.isfinite(carry), axis=-1) & ~jnp.asarray(where)
    return jnp.where(usable[:, None], carry, 0)


@dataclass(frozen=True)
class Memory:
    """How a policy's memory is handled in rollouts.

    size: C; None for a policy without memory. chunk_steps: L, steps of a rollout through which derivatives flow; None
    for all of them.
    """

    size: int | None = None
    chunk_steps: int | None = None

    def empty(self, count: int) -> Array | None:
        """What is remembered of episodes that begin, `[N, C]`; None without memory. count: N."""
        return None if self.size is None else jnp.zeros((count, self.size))

    def parts(self, num_steps: int) -> int:
        """M, into how many parts a rollout is cut. num_steps: its steps, a multiple of L."""
        return 1 if self.chunk_steps is None else num_steps // self.chunk_steps

    def replayed(self, policy: Any, rollout: Rollout, carry: Float[Array, "N C"]) -> Rollout:
        """A rollout with what was remembered at the start of each part, and the log-probs that its replay gives.

        They are those of the actions to rounding; computed as the rules will compute them, ratios to them are 1.

        policy: that collected it. rollout: `[T, N]`. carry: what was remembered at its start.
        """
        whole = dataclasses.replace(rollout, carry=carry[None])
        assert isinstance(whole.inputs, Sequences)
        distribution, carries = replay(policy, whole.inputs)
        num_steps, num_envs = rollout.reward.shape
        parts = self.parts(num_steps)
        if parts > 1:
            whole = dataclasses.replace(whole, carry=part_carries(carry, carries, parts))
            assert isinstance(whole.inputs, Sequences)
            distribution, _ = replay(policy, whole.inputs)
        action = rollout.action.reshape(-1, *rollout.action.shape[2:])
        return dataclasses.replace(whole, log_prob=distribution.log_prob(action).reshape(num_steps, num_envs))


NO_MEMORY = Memory()


def part_carries(carry: Float[Array, "N C"], carries: Float[Array, "T N C"], parts: int) -> Float[Array, "M N C"]:
    """What is remembered at the start of each part of a rollout. An episode that begins there forgets it then.

    carry: at the start of the first. carries: after every step. parts: M.
    """
    each = len(carries) // parts
    return jnp.concatenate([carry[None], carries[each - 1 : -1 : each]])


def step(policy: Any, obs: Array, carry: Array | None) -> tuple[Distribution, Array | None]:
    """π(·|s) for N observations, and what is remembered after the step.

    policy: a callable pytree. obs: `[N, *obs]`. carry: what was remembered before it, `[N, C]`; None for a policy
    without memory.
    """
    if carry is None:
        return over_rows(policy, obs, 1), None
    return jax.vmap(policy.step)(obs, carry)


def replay(policy: Any, sequences: Sequences) -> tuple[Distribution, Array]:
    """π(·|s, memory) of every row, `[B]`, and what is remembered after each step of the sequences, `[L, S, C]`.

    policy: with memory. sequences: what it reads.
    """
    obs, begins = sequences.in_order(sequences.obs), sequences.in_order(sequences.begins)
    carry = sequences.carry.reshape(sequences.count, -1)
    distribution, carries = _unroll(policy, obs, carry, begins)
    return jax.tree.map(sequences.in_rows, distribution), carries


def _unroll(policy: Any, obs: Array, carry: Array, begins: Array) -> tuple[PyTree, Array]:
    if isinstance(policy, Unrolling):
        return policy.unroll(obs, carry, begins)

    def one(carry: Array, row: tuple[Array, Array]) -> tuple[Array, tuple[PyTree, Array]]:
        """carry: before the step. row: observations, and where everything is forgotten."""
        obs, begin = row
        distribution, after = jax.vmap(policy.step)(obs, jnp.where(begin[:, None], 0, carry))
        return after, (distribution, after)

    return jax.lax.scan(one, carry, (obs, begins))[1]
