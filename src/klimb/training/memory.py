"""Policies with memory in a training: what is known of it, and what does not go with it."""

from __future__ import annotations

from klimb.errors import ConfigError
from klimb.improve.minibatches import require_sequences
from klimb.improve.rule import is_offline, traits_of
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
    if memory.size is None:
        if options.chunk_steps is not None:
            raise ConfigError("chunk_steps is for a policy with memory: give --memory gru or lstm, or leave it out")
        if networks.critic_template.carry_size is not None:
            raise ConfigError(
                "the critic has memory and the policy has none: give --no-critic-memory, or a policy with memory"
            )
        return memory
    chunk = options.chunk_steps
    if chunk is not None and options.num_steps % chunk and not is_offline(rule):
        raise ConfigError(
            f"num_steps = {options.num_steps} is not divisible by chunk_steps = {chunk}: choose chunk_steps = "
            f"{max(d for d in range(1, chunk + 1) if options.num_steps % d == 0)}, or num_steps = "
            f"{-(-options.num_steps // chunk) * chunk}"
        )
    counts = {"num_minibatches": traits_of(rule).num_minibatches}
    if options.uses_critic and networks.critic_template.carry_size is not None:
        counts["critic_num_minibatches"] = options.critic_num_minibatches
    for name, parts in counts.items() if not is_offline(rule) else ():
        try:
            require_sequences(options.num_envs * memory.parts(options.num_steps), parts, what=name)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    without = " of a policy without memory: leave --memory out"
    if traits_of(rule).binds:
        raise ConfigError(f"{rule_name(rule)} plans with states, and follows its plans with the help{without}")
    if demonstrations and not is_offline(rule):
        raise ConfigError(
            "demonstrations are cut into columns as long as a rollout, and what a policy with memory would remember at "
            "their start is not known: clone them first (klimb train behaviour-cloning, then --init-from), or leave "
            "--memory out"
        )
    if options.straggler_timeout is not None:
        raise ConfigError(
            "straggler_timeout leaves out the steps of late workers, and memory needs all of them: leave one of both "
            "out"
        )
    if spread:
        raise ConfigError(
            "a policy with memory learns from steps in their order, which are not spread over devices: leave "
            "--learn-on out, or train several seeds (--num-seeds), which are"
        )
    return memory
