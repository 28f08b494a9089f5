"""Policies with memory in a training: what is known of it, and what does not go with it."""

from __future__ import annotations

from klimb.errors import ConfigError
from klimb.improve.rule import is_offline, traits_of
from klimb.policies.exploration import held_noise
from klimb.policies.memory import Memory, carry_size
from klimb.rules import rule_name
from klimb.runs.config import RunConfig
from klimb.training.networks import Networks


def memory_of(networks: Networks, config: RunConfig, *, demonstrations: bool, spread: bool) -> Memory:
    """How the memory of a training's policy is handled; ConfigError for what does not go with it.

    networks: policy and critic. config: of the training. demonstrations: whether rows of them are part of the batch.
    spread: whether one seed is spread over several devices.
    """
    options, rule = config.options, config.rule
    memory = Memory(carry_size(networks.template), options.chunk_steps)
    critic = networks.critic_template.carry_size is not None
    if memory.size is None:
        if options.chunk_steps is not None:
            raise ConfigError("chunk_steps is for a policy with memory: give --memory gru or lstm, or leave it out")
        if critic:
            raise ConfigError(
                "the critic has memory and the policy has none: give --no-critic-memory, or a policy with memory"
            )
        return memory
    if is_offline(rule):
        if options.chunk_steps is not None:
            raise ConfigError("chunk_steps is for rollouts: a clone learns from whole episodes; leave it out")
        return memory
    config.check_sequences(critic=critic)
    if held_noise(networks.template) is not None:
        raise ConfigError("the policy has memory and holds noise for several steps, which do not go together")
    if traits_of(rule).binds:
        raise ConfigError(
            f"{rule_name(rule)} plans with states, and follows its plans with the help of a policy without memory: "
            "leave --memory out"
        )
    if demonstrations:
        raise demonstrations_need_no_memory()
    if options.straggler_timeout is not None:
        raise ConfigError(
            "straggler_timeout leaves out the steps of late workers, and memory needs all of them: leave one of both "
            "out"
        )
    if spread:
        remedy = "leave --learn-on out" if options.learn_on is not None else "train at least as many seeds as devices"
        raise ConfigError(
            "a policy with memory learns from steps in their order, and one seed of it is not spread over devices: "
            f"{remedy} (--num-seeds)"
        )
    return memory


def demonstrations_need_no_memory() -> ConfigError:
    """The error for demonstrations in the batches of a policy with memory."""
    return ConfigError(
        "demonstrations are cut into columns as long as a rollout, and what a policy with memory would remember at "
        "their start is not known: clone them first (klimb train behaviour-cloning ENV --memory KIND, then --init-from "
        "and --memory), or leave --memory out"
    )
