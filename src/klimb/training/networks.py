"""The networks that a training starts from: klimb's own, given objects, or made by a function of the user's."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from klimb import modules
from klimb.environments.host import HostEnvironment
from klimb.environments.registry import Environment
from klimb.errors import ConfigError
from klimb.policies.actions import remarks
from klimb.policies.critic import Critic, as_critic
from klimb.policies.distributions import Distribution
from klimb.policies.encoders import DEFAULT_HIDDEN
from klimb.policies.memory import carry_size
from klimb.policies.network_options import NetworkOptions
from klimb.policies.networks import NetworkPolicy
from klimb.policies.recurrent import kind_of
from klimb.runs.config import RunConfig
from klimb.runs.policy_file import load_policy, policy_iteration

TRIES = 20
SECONDS_BETWEEN_TRIES = 0.1
"""How often the policies of several seeds are read again while a training writes them, one file after the other."""

logger = logging.getLogger("klimb")


class Networks:
    """Makes the policy and the critic of a seed.

    environment: what they are for. options: of klimb's own networks, and the names of the user's functions.
    policy, critic: objects to start from, the same for every seed; None for fresh ones.
    """

    def __init__(
        self, environment: Environment, options: NetworkOptions, policy: PyTree | None = None, critic: Any = None
    ) -> None:
        self._environment, self._options = environment, options
        self._given_policy, self._given_critic = policy, None if critic is None else as_critic(critic)
        self._make_policy = None if options.policy is None else modules.load(options.policy, "policy")
        self._make_critic = None if options.critic is None else modules.load(options.critic, "critic")
        self.template = eqx.filter_eval_shape(self.policy, jax.random.key(0)) if policy is None else policy
        self.critic_template = eqx.filter_eval_shape(self.critic, jax.random.key(0))
        self._require_policy()
        if options.critic_observes is not None and not isinstance(self.template, NetworkPolicy):
            raise ConfigError(
                "critic_observes is for klimb's own network: your own policy reads what it wants; leave it out"
            )

    def policy(self, key: PRNGKeyArray) -> PyTree:
        """The policy that a seed starts from. key: for its weights."""
        environment, options = self._environment, self._options
        if self._given_policy is not None:
            return self._given_policy
        if self._make_policy is not None:
            return self._make_policy(environment.observations, environment.actions, key)
        named = options.critic_observes
        unseen = environment.critic_only if named is None else named
        return NetworkPolicy(
            environment.observations.hiding(unseen) if unseen else environment.observations,
            environment.actions,
            hidden=options.hidden,
            activation=options.activation,
            initial_log_std=options.initial_log_std,
            state_dependent_std=options.state_dependent_std,
            tanh_squash=options.tanh_squash,
            log_std_bounds=options.log_std_bounds,
            exploration=options.exploration,
            **options.layers._asdict(),
            network=options.network,
            memory=options.memory,
            memory_size=options.memory_size,
            key=key,
        )

    def critic(self, key: PRNGKeyArray) -> Critic:
        """The critic that a seed starts from. key: for its weights."""
        options = self._options
        if self._given_critic is not None:
            return self._given_critic
        if self._make_critic is not None:
            return as_critic(self._make_critic(self._environment.observations, key))
        hidden = options.hidden if options.critic_hidden is None else options.critic_hidden
        return Critic(
            self._environment.observations,
            hidden=hidden,
            activation=options.activation,
            **options.layers._asdict(),
            network=options.network if options.critic_network is None else options.critic_network,
            **self._critic_memory,
            key=key,
        )

    @property
    def _critic_memory(self) -> dict[str, Any]:
        """Arguments of the critic: as the options say, or as a policy of klimb's that the training starts from."""
        options, given = self._options, self._given_policy
        if not options.critic_memory:
            return {}
        if options.memory is None and isinstance(given, NetworkPolicy) and given.memory is not None:
            return {"memory": kind_of(given.memory), "memory_size": given.memory.size}
        return {"memory": options.memory, "memory_size": options.memory_size}

    def warn_of_images(self) -> None:
        """A warning when klimb's own network gets images as flat vectors."""
        environment, options = self._environment, self._options
        image = environment.image_shape if isinstance(environment, HostEnvironment) else None
        if image is None or self._given_policy is not None or self._make_policy is not None:
            return
        hidden = DEFAULT_HIDDEN if options.hidden is None else options.hidden
        inputs, units = environment.observations.size, next(iter(hidden), None)
        weights = f" × {units} units" if units is not None else ""
        logger.warning(
            "%s: observations of shape %s look like images and are flattened: the first layer has %d inputs%s, and "
            "such networks seldom learn from images. klimb's convolutional networks read bytes from 0 to 255, and "
            "floats from 0 to 1 with channels: give their space these bounds, or a network of your own (--network, "
            "docs/own-network.md)",
            environment.id,
            image,
            inputs,
            weights,
        )

    def warn_of_actions(self) -> None:
        """A warning for each thing about the actions that klimb's own network can't learn, or takes otherwise."""
        if isinstance(self.template, NetworkPolicy):
            for remark in remarks(self._environment.action_space):
                logger.warning("%s: %s", self._environment.id, remark)

    def _require_policy(self) -> None:
        """ConfigError unless the policy answers an observation with a distribution."""
        observations = self._environment.observations
        obs = jax.ShapeDtypeStruct(observations.shape, observations.dtype)
        name = self._options.policy or type(self.template).__name__
        if not callable(self.template):
            raise ConfigError(f"the policy {name} can't be called: a policy is a pytree policy(obs) -> distribution")
        try:
            answer = eqx.filter_eval_shape(lambda policy, obs: policy(obs), self.template, obs)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the policy {name} fails for an observation of shape {list(observations.shape)} of "
                f"{self._environment.id}: {str(error).splitlines()[0]}"
            ) from error
        self._require_step(name, obs, answer)
        if not isinstance(answer, Distribution):
            kind = "an array" if isinstance(answer, jax.ShapeDtypeStruct) else type(answer).__name__
            raise ConfigError(
                f"the policy {name} returns {kind} for an observation; it has to return a "
                "klimb.Distribution, such as klimb.Categorical or klimb.DiagGaussian"
            )

    def _require_step(self, name: str, obs: jax.ShapeDtypeStruct, alone: Any) -> None:
        """ConfigError unless a policy with memory steps from what it remembers to as much.

        name: of the policy. obs: of one observation. alone: what the policy returns for an observation alone.
        """
        size, static = carry_size(self.template), eqx.filter(self.template, lambda x: not is_array(x))
        if size != carry_size(static):
            raise ConfigError(
                f"the policy {name} has a carry_size that depends on its arrays: it has to be known without them, as a "
                "static field or a constant (docs/memory.md)"
            )
        if size is None:
            return
        carry = jax.ShapeDtypeStruct((size,), jnp.result_type(float))
        try:
            answer, after = eqx.filter_eval_shape(lambda policy, *x: policy.step(*x), self.template, obs, carry)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the step of the policy {name} fails for an observation of shape {list(obs.shape)} and a carry of "
                f"{size} numbers: {str(error).splitlines()[0]}"
            ) from error
        if type(answer) is not type(alone):
            raise ConfigError(f"the step of the policy {name} returns another distribution than a call of the policy")
        if (getattr(after, "shape", None), getattr(after, "dtype", None)) != (carry.shape, carry.dtype):
            raise ConfigError(
                f"the step of the policy {name} returns a carry of shape {list(getattr(after, 'shape', ()))} and type "
                f"{getattr(after, 'dtype', type(after).__name__)}, and has to return {size} numbers of type "
                f"{carry.dtype}, as its carry_size says"
            )


def is_array(leaf: Any) -> bool:
    """Whether a leaf of a policy, or of its shapes, is an array."""
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def load_policies_of_one_iteration(
    directory: Path, config: RunConfig, environment: Environment
) -> tuple[list[PyTree], int | None]:
    """The policies of all seeds of a run that may be written meanwhile, and the iteration that all of them are after.

    directory, config, environment: as for `load_policies`. The iteration is None where the files do not say.
    """
    options = config.options
    seeds = [None] if options.num_seeds == 1 else [options.seed + k for k in range(options.num_seeds)]
    for _ in range(TRIES):
        before = {policy_iteration(directory, seed=seed) for seed in seeds}
        policies = load_policies(directory, config, environment)
        after = {policy_iteration(directory, seed=seed) for seed in seeds}
        if len(before | after) == 1:
            return policies, before.pop()
        time.sleep(SECONDS_BETWEEN_TRIES)
    return policies, None


def load_policies(directory: Path, config: RunConfig, environment: Environment) -> list[PyTree]:
    """The policies of all seeds of a run.

    directory: the run's, or a folder of it with policies. config: the run's; where it names a function of the user's
    for the policy, its module is imported. environment: what they are for.
    """
    options = config.options
    like = None if options.own_policy is None else Networks(environment, options).template
    if options.num_seeds == 1:
        return [load_policy(directory, like=like)]
    return [load_policy(directory, seed=options.seed + k, like=like) for k in range(options.num_seeds)]
