"""A training as a program: every seed and every value of what is varied, on the devices, fed by a source."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.collect.compiled import CompiledCollector
from klimb.collect.demonstrations import Demonstrations
from klimb.collect.history import action_log_prob
from klimb.environments.base import CompiledEnvironment
from klimb.environments.host import Fault, HostEnvironment
from klimb.environments.registry import Environment
from klimb.errors import ConfigError
from klimb.estimate.estimator import Estimator
from klimb.improve.critic_fit import CriticFit
from klimb.improve.rule import (
    Rule,
    Setting,
    bind,
    is_offline,
    keeps_best,
    resulting_policy,
    traits_of,
    with_values,
)
from klimb.policies.exploration import held_noise
from klimb.policies.policy import keeps_statistics, observe
from klimb.precision import full_precision
from klimb.runs.config import RunConfig
from klimb.training import peers
from klimb.training.copies import Copies
from klimb.training.devices import available, cores, limited, own
from klimb.training.diagnostics import Diagnostics
from klimb.training.iteration import Iteration
from klimb.training.jax_settings import require_trainable
from klimb.training.length import length_of
from klimb.training.memory import memory_of
from klimb.training.networks import Networks, is_array
from klimb.training.normalizers import NormalizerUpdates
from klimb.training.replay import Replay
from klimb.training.sources import CompiledSource, DemonstrationSource, HostSource, Learner, Source
from klimb.training.spread import Spread, spread_of
from klimb.types import Demonstrated, Rollout, TrainState

logger = logging.getLogger("klimb")

VARIED_OPTIONS = frozenset({"gamma", "gae_lambda"})
"""Training options whose values can be data of a program: numbers that advantages are only calculated with."""


class Program:
    """The training of `config` on an environment: `initial_state`, then `advance` until done.

    config: the rule and all options. environment: where it trains. policy: to start from; None for a fresh network.
    demonstrations: recorded episodes, for the rules that learn from them. critic: to start from; None for a fresh one.
    demonstrator: the policy that counts as the one that made the demonstrations; None for their recorded log-probs.
    variations: values of some of the rule's fields, or of the options in `VARIED_OPTIONS`, `[V]` each: every seed is
    trained once with each of them, all in one program. Copy v·S + s is seed s under the v-th values.

    cluster: of Ray, whose actors step a host environment: `auto`, `local` or HOST:PORT; None for processes here.

    States and metrics have a leading axis of K seeds (V·S with variations). On a compiled environment a call runs
    many iterations without coming back to the host; on a host environment, and on demonstrations alone, it runs one.
    """

    def __init__(
        self,
        config: RunConfig,
        environment: Environment,
        policy: PyTree | None = None,
        demonstrations: Demonstrations | None = None,
        variations: Mapping[str, Sequence[float]] | None = None,
        critic: Any = None,
        demonstrator: PyTree | None = None,
        cluster: str | None = None,
    ) -> None:
        require_trainable()
        options = config.options
        if not environment.observations.is_scaled:
            options = dataclasses.replace(options, normalize_observations=False)
        self.config, self._options, self._environment = config, options, environment
        self._cluster = cluster
        if cluster is not None and not isinstance(environment, HostEnvironment):
            raise ConfigError(f"{environment.id} is compiled: nothing of it runs in a Ray cluster; leave --ray off")
        if cluster is not None and peers.count() > 1:
            raise ConfigError("the processes of a training step the environments themselves: leave --ray off")
        self._networks = Networks(environment, options, policy, critic)
        self._policy_shapes, self.policy_static = eqx.partition(self._networks.template, is_array)
        self._demonstrator_static = eqx.partition(demonstrator, eqx.is_array)[1]
        self._recorded = demonstrations
        if options.cores is not None and peers.count() > 1:
            raise ConfigError(
                f"cores = {options.cores}: a training in several processes uses all devices; leave it out"
            )
        devices = limited(available(), options.cores)
        if options.precision != "float32" and devices[0].platform == "cpu":
            logger.warning("precision = %s has no effect on a CPU, which multiplies in float32", options.precision)
        self._require_exploration()
        self._warn_of_short_episodes()
        self._networks.warn_of_images()
        self._networks.warn_of_actions()
        spread = self._spread(len(devices))
        in_batch = demonstrations is not None and traits_of(config.rule).demonstrations_in_batch
        self._memory = memory_of(self._networks, config, demonstrations=in_batch, spread=spread is not None)
        self.demonstrations: Demonstrated | None = None
        if demonstrations is not None and in_batch:
            self.demonstrations = self._demonstrated(demonstrations, demonstrator)
        # A rule that learns from demonstrations alone fits no critic: there is one role only.
        self._copies = Copies(
            options.seed,
            options.num_seeds,
            variations,
            own(devices)[:1] if is_offline(config.rule) else devices,
            spread,
            options.precision,
            one_at_once=isinstance(environment, CompiledEnvironment) and environment.one_seed_at_once,
        )
        self._bound = self._bind(config.rule)
        self._uses_critic = options.part(Estimator).uses_critic
        self.length = length_of(config)
        self.iteration = self._make_iteration(self._compiled_collector())
        self.source = self._make_source()
        self._init = jax.jit(full_precision(self._copies.vmapped(self._initial_state)))
        self._results = jax.jit(jax.vmap(self._result))

    @property
    def environment(self) -> Environment:
        """Where it trains."""
        return self._environment

    @property
    def seeds(self) -> list[int]:
        """The seed of every copy."""
        return self._copies.seeds

    @property
    def num_copies(self) -> int:
        """Copies that are trained together: seeds times values."""
        return self._copies.count

    def initial_state(self) -> TrainState:
        """Fresh policies and critics; seed k of K is the run that `seed + k` alone would be."""
        return self.place(self._init(self._copies.keys(), self._copies.values))

    def place(self, state: TrainState) -> TrainState:
        """A state, from wherever it comes, on the devices that go on with it."""
        return self._copies.layout.place(state)

    def state_template(self) -> TrainState:
        """The shapes of a state, without computing one: what checkpoints are read into."""
        return jax.eval_shape(self._init, self._copies.keys(), self._copies.values)

    def rule_shapes(self, rule: Rule) -> list[tuple[Any, ...]]:
        """What a rule keeps from one iteration to the next: path, shape and dtype of every array, and sizes of history.

        rule: of the class of the run's, with other values; two rules whose lists are equal can go on from each
        other's states.
        """
        bound = self._bind(rule)
        state = eqx.filter_eval_shape(bound.init, self._networks.template)
        leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(state, is_array))
        traits = traits_of(bound)
        kept = ("history", traits.history, traits.keeps_policies, traits.env_steps_per_row, traits.owns_normalizer)
        return [kept, *((jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in leaves)]

    def start(self, *, iteration: int, host_states: dict[str, Any] | None = None) -> None:
        """Put the host environments where they were, or start new episodes.

        iteration: the one that the training goes on from; with a copy's seed it gives the seeds of new episodes.
        host_states: what `host_states()` said there, or None.
        """
        self.source.start(iteration, host_states)

    def host_states(self) -> dict[str, Any] | None:
        """Where the host environments stand after the last rollout, as plain data for `start`.

        None where there are none, or where their simulator's state can't be saved.
        """
        return self.source.capture()

    def take_faults(self) -> list[Fault]:
        """The faults of host environments since the last call; copies are counted over seeds, then environments."""
        return self.source.take_faults()

    def advance(self, state: TrainState, iterations: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Run `iterations` (at most `max_iterations_per_call`): the new state, and metrics `[iterations, K]`.

        `state` is given up: its buffers are used again for the new one.
        """
        return self.source.advance(state, iterations)

    @property
    def max_iterations_per_call(self) -> int:
        """The most that `advance` takes."""
        return self.source.max_iterations_per_call

    def certain_iterations(self, state: TrainState, iteration: int) -> int:
        """How many iterations are still to be made, whatever happens in them; 0 when the training is over.

        state: after the last iteration. iteration: its number.
        """
        rule = self.config.rule
        if is_offline(rule) and bool(jnp.all(rule.finished(state.rule_state))):
            return 0
        return self.length.certain(iteration, np.asarray(state.env_steps))

    def rows_used(self, metrics: dict[str, np.ndarray], before: int) -> int:
        """Environment steps of all copies in the iterations of a call; of demonstrations alone, their rows.

        metrics: `[iterations, K]`, of the call. before: environment steps of all copies before it.
        """
        if is_offline(self.config.rule):
            return len(metrics["env_steps"]) * self.source.rows_per_iteration * self.num_copies
        return int(metrics["env_steps"][-1].sum(dtype=np.int64)) - before

    def policies(self, state: TrainState) -> list[Any]:
        """The policy that the training of every copy results in, if it ends with this state."""
        arrays = state.policy
        if keeps_best(self._bound):
            arrays = self._results(state.policy, state.rule_state, self._copies.values)
        # By way of the host: wherever the training was, these are on one device.
        arrays = jax.tree.map(np.asarray, arrays)
        return [
            eqx.combine(jax.tree.map(lambda x, k=k: jnp.asarray(x[k]), arrays), self.policy_static)
            for k in range(self.num_copies)
        ]

    def close(self) -> None:
        """Release the host environments."""
        self.source.close()

    def _bind(self, rule: Rule) -> Rule:
        """The rule at work in the environment."""
        options, fresh = self._options, self._options.init_from is None
        learns_scale = options.normalize_observations and fresh
        setting = Setting(options.num_envs, options.num_steps, learns_scale, fresh, options.overlap, self._recorded)
        return bind(rule, self._environment, setting)

    def _spread(self, devices: int) -> Spread | None:
        """How one copy is spread over devices, of as many."""
        options = self._options
        if is_offline(self.config.rule):
            if options.learn_on not in (None, 1):
                raise ConfigError(f"learn_on = {options.learn_on}: a clone learns on one device; leave it out")
            return None
        networks = (self._policy_shapes, self._networks.critic_template)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(networks) if is_array(leaf))
        return spread_of(
            options.learn_on,
            options.spread,
            devices=devices,
            seeds=options.num_seeds,
            processes=peers.count(),
            num_envs=options.num_envs,
            compiled=isinstance(self._environment, CompiledEnvironment),
            work=parameters * options.batch_size,
        )

    def _require_exploration(self) -> None:
        """ConfigError when exploration_steps is given for a policy that it says nothing about."""
        steps = self._options.exploration_steps
        if steps is not None and held_noise(self._networks.template) is None:
            raise ConfigError(
                f"exploration_steps = {steps} is for exploration = gsde, and this policy's actions have independent "
                "noise: leave it out, or give --exploration gsde"
            )

    def _warn_of_short_episodes(self) -> None:
        options, limit = self._options, self._environment.max_episode_steps
        collects = options.batch == "episodes" and not is_offline(self.config.rule)
        if collects and limit is not None and limit > options.num_steps:
            logger.warning(
                "episodes of %s have up to %d steps and are truncated after num_steps = %d: --num-steps %d collects "
                "whole episodes",
                self._environment.id,
                limit,
                options.num_steps,
                limit,
            )

    def _make_iteration(self, collector: CompiledCollector | None) -> Iteration:
        options, traits = self._options, traits_of(self._bound)
        estimator = options.part(Estimator)
        return Iteration(
            rule=self._bound,
            policy_static=self.policy_static,
            critic_static=eqx.partition(self._networks.critic_template, is_array)[1],
            collector=collector,
            estimator=estimator,
            replay=Replay(
                traits.history, traits.keeps_policies, self.policy_static, estimator, self._demonstrator_static
            ),
            critic_fit=options.part(CriticFit),
            normalizers=self._normalizers(),
            diagnostics=Diagnostics(options.certificate, options.gamma, self._uses_critic),
            length=self.length,
            warmup=options.warmup,
            role_axis=self._copies.layout.role_axis,
        )

    def _normalizers(self) -> NormalizerUpdates:
        options, traits, observations = self._options, traits_of(self._bound), self._environment.observations
        obs = jax.ShapeDtypeStruct(observations.shape, observations.dtype)
        # A policy that was trained before keeps its statistics: what it clips is part of what it has learned.
        policy = options.normalize_observations and options.init_from is None and not traits.owns_normalizer
        critic = options.normalize_observations and self._uses_critic
        kept = (policy and keeps_statistics(self._networks.template, obs)) or (
            critic and keeps_statistics(self._networks.critic_template, obs)
        )
        return NormalizerUpdates(policy, critic, start_with_rollout=kept and not traits.owns_normalizer)

    def _iteration_under(self, values: dict[str, Any]) -> Iteration:
        """One copy's iteration, under its own values of what is varied."""
        if not values:
            return self.iteration
        iteration = self.iteration
        of_estimator = {name: value for name, value in values.items() if name in VARIED_OPTIONS}
        if of_estimator:
            estimator = with_values(iteration.estimator, of_estimator)
            iteration = dataclasses.replace(
                iteration,
                estimator=estimator,
                replay=dataclasses.replace(iteration.replay, estimator=estimator),
                diagnostics=dataclasses.replace(iteration.diagnostics, gamma=estimator.gamma),
            )
        of_rule = {name: value for name, value in values.items() if name not in VARIED_OPTIONS}
        return dataclasses.replace(iteration, rule=self._bind(with_values(self.config.rule, of_rule)))

    def _make_source(self) -> Source:
        rule, options = self.config.rule, self._options
        learner = Learner(
            self._copies,
            self._iteration_under,
            self.policy_static,
            self._policy_shapes,
            self.demonstrations,
            options.check_finite,
        )
        if is_offline(rule):
            return DemonstrationSource(learner, rule)
        rows = options.batch_size * traits_of(rule).env_steps_per_row
        if self.iteration.collector is not None:
            return CompiledSource(learner, self.iteration.collector, rows)
        assert isinstance(self._environment, HostEnvironment)
        derivatives = traits_of(self._bound).records_derivatives
        of_memory = self._memory.chunk_steps
        return HostSource(learner, self._environment, options, cores(), rows, derivatives, self._cluster, of_memory)

    def _compiled_collector(self) -> CompiledCollector | None:
        """What collects inside the program; None where experience comes from outside."""
        options, environment = self._options, self._environment
        if is_offline(self.config.rule) or not isinstance(environment, CompiledEnvironment):
            return None
        if options.overlap:
            raise ConfigError(
                f"{environment.id} is compiled: collecting and learning are one program, and there is nothing to "
                "overlap; leave --overlap off"
            )
        if options.straggler_timeout is not None:
            raise ConfigError(f"{environment.id} is compiled: no worker can be late; leave --straggler-timeout off")
        return CompiledCollector(
            environment,
            options.num_envs,
            options.num_steps,
            options.batch == "episodes",
            traits_of(self._bound).records_env_state,
            options.exploration_steps,
            self._memory,
        )

    def _initial_state(self, key: PRNGKeyArray, values: dict[str, Array]) -> TrainState:
        options = self._options
        key, key_policy, key_critic = jax.random.split(key, 3)
        critic, policy = self._networks.critic(key_critic), self._networks.policy(key_policy)
        learns_scale = options.normalize_observations and options.init_from is None
        if is_offline(self.config.rule) and learns_scale:
            assert self.demonstrations is not None
            rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self.demonstrations.rollout)
            policy, _ = observe(policy, rows.obs, rows.valid.astype(rows.reward.dtype))
        rollout = None if traits_of(self._bound).history == 1 else self.source.rollout_shapes(policy)
        return self._iteration_under(values).init(key, policy, critic, rollout, num_envs=options.num_envs)

    def _result(self, policy: PyTree, rule_state: PyTree, values: dict[str, Array]) -> PyTree:
        """The arrays of the policy that one copy's training results in. policy: the arrays of the last one."""
        rule = self._iteration_under(values).rule
        return eqx.filter(resulting_policy(rule, eqx.combine(policy, self.policy_static), rule_state), eqx.is_array)

    def _demonstrated(self, demonstrations: Demonstrations, demonstrator: PyTree | None) -> Demonstrated:
        """Demonstrations as a training gets them, with the demonstrator's log-probs if there is one."""
        rollout = self._arrange(demonstrations)
        if demonstrator is None:
            return Demonstrated(rollout)
        arrays = eqx.filter(demonstrator, eqx.is_array)
        of_actions = jax.jit(full_precision(partial(action_log_prob, static=self._demonstrator_static)))
        log_prob = jnp.where(rollout.valid, of_actions(arrays, rollout=rollout), 0)
        rollout = dataclasses.replace(rollout, log_prob=log_prob)
        return Demonstrated(rollout, arrays if traits_of(self.config.rule).keeps_policies else None)

    def _arrange(self, demonstrations: Demonstrations) -> Rollout:
        """Demonstrations as the rule gets them: actions as the policy has them, columns as long as a rollout's."""
        options, offline = self._options, is_offline(self.config.rule)
        whole = options.batch == "episodes" and not offline
        if whole and demonstrations.lengths.max() > options.num_steps:
            raise ConfigError(
                f"{demonstrations.source} has episodes of up to {demonstrations.lengths.max()} steps, and batch = "
                f"episodes needs whole episodes: give --num-steps {demonstrations.lengths.max()} or more"
            )
        # An episode is a sequence that a policy with memory reads from its start.
        by_episode = whole or self._memory.size is not None
        rollout = demonstrations.rollout(demonstrations.num_episodes) if by_episode else demonstrations.rollout()
        # Only the kind of distribution matters here, not its numbers.
        distribution = eqx.filter_eval_shape(
            lambda policy, obs: policy(obs), self._networks.template, rollout.obs[0, 0]
        )
        rollout = eqx.tree_at(lambda r: r.action, rollout, distribution.from_environment(rollout.action))
        if offline:
            remembered = self._memory.empty(rollout.reward.shape[1])
            return rollout if remembered is None else dataclasses.replace(rollout, carry=remembered[None])
        num_steps = options.num_steps

        def cut(x: Array) -> Array:
            x = jnp.pad(x, [(0, -len(x) % num_steps)] + [(0, 0)] * (x.ndim - 1))
            x = jnp.moveaxis(x.reshape(-1, num_steps, *x.shape[1:]), 0, 1)
            return x.reshape(num_steps, -1, *x.shape[3:])

        return dataclasses.replace(jax.tree.map(cut, rollout), whole_episodes=whole)
