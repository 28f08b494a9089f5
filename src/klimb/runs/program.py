"""A training as a program: how many iterations of how many seeds are run in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from klimb.collect.compiled import CompiledCollector
from klimb.collect.demonstrations import Demonstrations
from klimb.collect.episodes import EpisodeSummary
from klimb.collect.in_turn import RolloutsInTurn
from klimb.collect.stepping import Columns
from klimb.collect.vectorized import Seen, VectorCollector, complete
from klimb.devices import Layout, available
from klimb.environments.base import CompiledEnvironment
from klimb.environments.host import HostEnvironment
from klimb.environments.registry import Environment
from klimb.errors import ConfigError
from klimb.first_nan import first_nan
from klimb.improve.rule import in_environment, is_offline, steps_a_row, with_values
from klimb.policies.actions import action_spec
from klimb.policies.networks import Critic, NetworkPolicy, flat_observation_size
from klimb.runs.config import RunConfig
from klimb.runs.packed import Packed
from klimb.studying import study
from klimb.training import Iteration
from klimb.types import Rollout, TrainState

MAX_ITERATIONS_A_CALL = 256


class Program:
    """The training of `config` on an environment: `initial_state`, then `advance` until done.

    With `variations` (values of some of the rule's fields, `[V]` each) every seed is trained once with each of them,
    all in one program: copy v·S + s is seed s under the v-th values.

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
    ) -> None:
        options = config.options
        each = options.num_seeds
        self._variations = {
            name: np.repeat(np.asarray(values, np.float32), each) for name, values in (variations or {}).items()
        }
        self.num_copies = next((len(values) for values in self._variations.values()), each)
        if environment.one_hot:
            options = dataclasses.replace(options, normalize_observations=False)
        self.config, self._options, self._environment = config, options, environment
        rule = in_environment(config.rule, environment, options)
        self.max_iterations_a_call = 1
        self._policy = policy
        self._observation_size = flat_observation_size(environment.observation_space)
        self._actions = action_spec(environment.action_space)
        template = eqx.filter_eval_shape(self._first_policy, jax.random.key(0)) if policy is None else policy
        is_array = lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
        self.policy_static = eqx.partition(template, is_array)[1]
        self._demonstrations = None if demonstrations is None else self._arrange(demonstrations, template)
        self._host: RolloutsInTurn | None = None
        collector = None
        if not is_offline(config.rule):
            if isinstance(environment, CompiledEnvironment):
                collector = self._compiled_collector(environment, getattr(rule, "records_physics", False))
            else:
                self._host = self._host_rollouts(environment)
        devices = available()[: options.cores]
        # A rule that studies demonstrations fits no critic: there is one role only.
        self._layout = Layout(self.num_copies, devices[:1] if is_offline(config.rule) else devices)
        self.iteration = Iteration(rule, options, self.policy_static, collector, self._layout.role_axis)
        # What the last iteration was computed of, where it may have to be looked into.
        self._before: tuple = (None, None, None, None)
        self._init = jax.jit(jax.vmap(self._initial_state))
        self._many = self._layout.compile(self._run_many, by_seed=(True, True, False, False))
        self._learn = self._layout.compile(self._learn_once, by_seed=(True, True, True, True, True, False))
        self._study = self._layout.compile(self._study_once, by_seed=(True, False))

    def initial_state(self) -> TrainState:
        """Fresh policies and critics; seed k of K is the run that `seed + k` alone would be."""
        return self.place(self._init(self._seed_keys(), self._variations))

    def place(self, state: TrainState) -> TrainState:
        """A state, from wherever it comes, on the devices that go on with it."""
        return self._layout.place(state)

    def state_template(self) -> TrainState:
        """The shapes of a state, without computing one: what checkpoints are read into."""
        return jax.eval_shape(self._init, self._seed_keys(), self._variations)

    def start(self, *, iteration: int, environments: dict[str, Any] | None = None) -> None:
        """Put the host environments where they were (`environments`), or start their episodes anew.

        Anew they are seeded by the run's seed and the iteration it goes on from.
        """
        if self._host is not None:
            seed = np.random.SeedSequence([self.config.options.seed, iteration]).generate_state(1)[0]
            self._host.start(iteration, int(seed), environments)

    def environments(self) -> dict[str, Any] | None:
        """Where the host environments stand after the last rollout, as plain data for `start`.

        None where there are none, or where their simulator's state can't be saved.
        """
        return None if self._host is None else self._host.capture()

    def advance(self, state: TrainState, iterations: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Run `iterations` (at most `max_iterations_a_call`): the new state, and metrics `[iterations, K]`.

        `state` is given up: its buffers are used again for the new one.
        """
        if self._options.check_finite:
            self._before = jax.tree.map(jnp.copy, state), None, None, None
        if is_offline(self.config.rule):
            state, metrics = self._study(state, self._demonstrations)
        elif self._host is None:
            state, log = self._many(state, self._variations, iterations, self._demonstrations)
            return state, {name: np.asarray(values)[:, :iterations].swapaxes(0, 1) for name, values in log.items()}
        else:
            seen, behaviour, episodes = self._host.next(state.policy)
            if self._options.check_finite:
                self._before = self._before[0], seen, behaviour, episodes
            learned = self._learn(state, self._variations, behaviour, seen, episodes, self._demonstrations)
            # In the shadow of the learning, which has only been begun.
            self._host.prepare()
            state, metrics = learned[0], learned[1].unpack()
        return state, {name: np.asarray(values)[None] for name, values in metrics.items()}

    def trace(self, state: TrainState) -> None:
        """Trace what `advance` runs, and compute nothing: whatever can't be compiled is raised here."""
        if self._host is None:
            jax.eval_shape(self._many, state, self._variations, 1, self._demonstrations)
            return
        rollout = self._host.collector.rollout_shapes(self.policies(state)[0])
        rollout = jax.tree.map(lambda x: np.stack([x] * self.num_copies), rollout)
        seen = Seen(Columns(*(getattr(rollout, name) for name in Columns._fields)), rollout.time)
        number = jnp.zeros(self.num_copies)
        count = number.astype(jnp.int32)
        episodes = EpisodeSummary(count, number, number, count)
        jax.eval_shape(self._learn, state, self._variations, None, seen, episodes, self._demonstrations)

    def first_nan(self, copy: int) -> str:
        """What made the first NaN of a copy's last iteration (with `check_finite`), in one line."""
        state, seen, behaviour, episodes = jax.tree.map(lambda x: jnp.asarray(x)[copy], self._before)
        iteration = dataclasses.replace(
            self._iteration({name: values[copy] for name, values in self._variations.items()}), role_axis=None
        )
        if seen is not None:
            if not seen.columns.valid.any():
                return "no row of the rollout is valid"
            for name, column in seen.columns._asdict().items():
                if not jnp.issubdtype(column.dtype, jnp.inexact):
                    continue
                bad = ~np.isfinite(column).all(axis=tuple(range(2, column.ndim))) & np.asarray(seen.columns.valid)
                if bad.any():
                    step, number = map(int, np.argwhere(bad)[0])
                    return f"environment {number} gave a non-finite {name} at step {step} of the rollout"

        def one_iteration(state: TrainState) -> PyTree:
            if seen is None:
                return iteration(state, self._demonstrations)
            rollout = complete(self.policy_static, state.policy if behaviour is None else behaviour, seen)
            return iteration.learn(state, rollout, episodes, self._demonstrations)

        origin = first_nan(one_iteration, state)
        if origin is None:
            return "no operation of it made a NaN of numbers: look for infinities"
        return f"the first NaN was made by {origin}"

    @property
    def rows_an_iteration(self) -> int:
        """Environment steps of one seed in one iteration, or the demonstrations' rows."""
        if is_offline(self.config.rule):
            assert self._demonstrations is not None
            return int(self._demonstrations.valid.sum())
        return self.config.options.batch_size * steps_a_row(self.config.rule)

    def finished(self, state: TrainState) -> bool:
        """Whether the rule has ended the training of every seed before the last iteration."""
        rule = self.config.rule
        return is_offline(rule) and bool(jnp.all(rule.finished(state.rule_state)))

    def policies(self, state: TrainState) -> list[Any]:
        """The policy of every seed."""
        # By way of the host: wherever the training was, these are on one device.
        arrays = jax.tree.map(np.asarray, state.policy)
        return [
            eqx.combine(jax.tree.map(lambda x, k=k: jnp.asarray(x[k]), arrays), self.policy_static)
            for k in range(self.num_copies)
        ]

    def close(self) -> None:
        """Release the host environments."""
        if self._host is not None:
            self._host.collector.close()

    def _compiled_collector(self, environment: CompiledEnvironment, records_physics: bool) -> CompiledCollector:
        options = self._options
        if options.overlap:
            raise ConfigError(
                f"{environment.id} is compiled: collecting and learning are one program, and there is nothing to "
                "overlap; leave --overlap off"
            )
        self.max_iterations_a_call = MAX_ITERATIONS_A_CALL
        return CompiledCollector(environment, options.num_envs, options.num_steps, records_physics)

    def _host_rollouts(self, environment: HostEnvironment) -> RolloutsInTurn:
        options = self._options
        vector = VectorCollector(
            environment,
            self.policy_static,
            num_seeds=self.num_copies,
            num_envs=options.num_envs,
            num_steps=options.num_steps,
            workers=options.workers,
            restart=options.env_fault == "restart",
            timeout=options.env_timeout,
        )
        keys = jax.jit(lambda number: jax.vmap(jax.random.fold_in, (0, None))(self._seed_keys(), number))
        return RolloutsInTurn(vector, keys, overlap=options.overlap)

    def _seed_keys(self) -> Key[Array, " K"]:
        options = self.config.options
        seeds = jnp.tile(jnp.arange(options.num_seeds, dtype=jnp.uint32), self.num_copies // options.num_seeds)
        return jax.vmap(jax.random.key)(options.seed + seeds)

    def _first_policy(self, key: PRNGKeyArray) -> PyTree:
        if self._policy is not None:
            return self._policy
        options = self.config.options
        return NetworkPolicy(
            self._observation_size,
            self._actions,
            hidden=options.hidden,
            activation=options.activation,
            initial_log_std=options.initial_log_std,
            state_dependent_std=options.state_dependent_std,
            tanh_squash=options.tanh_squash,
            key=key,
        )

    def _initial_state(self, key: PRNGKeyArray, values: dict[str, Array]) -> TrainState:
        options = self._options
        key, key_policy, key_critic = jax.random.split(key, 3)
        critic = Critic(self._observation_size, hidden=options.hidden, activation=options.activation, key=key_critic)
        policy = self._first_policy(key_policy)
        learns_scale = options.normalize_observations and options.init_from is None
        if is_offline(self.config.rule) and learns_scale and isinstance(policy, NetworkPolicy):
            assert self._demonstrations is not None
            rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self._demonstrations)
            normalizer = policy.normalizer.update(rows.obs, rows.valid.astype(rows.obs.dtype))
            policy = eqx.tree_at(lambda p: p.normalizer, policy, normalizer)
        return self._iteration(values).init(key, policy, critic, self._rollout_shapes(policy))

    def _iteration(self, values: dict[str, Array]) -> Iteration:
        """One seed's iteration, under its own values of what is varied."""
        if not values:
            return self.iteration
        rule = in_environment(with_values(self.config.rule, values), self._environment, self._options)
        return dataclasses.replace(self.iteration, rule=rule)

    def _rollout_shapes(self, policy: PyTree) -> Rollout | None:
        """The shapes of one rollout, where the rule's history needs them."""
        collector = self.iteration.collector
        if self.iteration.history == 1:
            return None
        if self._host is not None:
            return self._host.collector.rollout_shapes(policy)
        assert collector is not None
        return eqx.filter_eval_shape(
            lambda key, policy: collector.collect(key, policy, collector.init(key))[1], jax.random.key(0), policy
        )

    def _arrange(self, demonstrations: Demonstrations, template: PyTree) -> Rollout:
        """Demonstrations as the rule gets them: actions as the policy has them, columns as long as a rollout's."""
        rollout = demonstrations.rollout()
        # Only the kind of distribution matters here, not its numbers.
        distribution = eqx.filter_eval_shape(lambda policy, obs: policy(obs), template, rollout.obs[0, 0])
        rollout = eqx.tree_at(lambda r: r.action, rollout, distribution.from_environment(rollout.action))
        if is_offline(self.config.rule):
            return rollout
        num_steps = self.config.options.num_steps

        def cut(x: Array) -> Array:
            x = jnp.pad(x, [(0, -len(x) % num_steps)] + [(0, 0)] * (x.ndim - 1))
            x = jnp.moveaxis(x.reshape(-1, num_steps, *x.shape[1:]), 0, 1)
            return x.reshape(num_steps, -1, *x.shape[3:])

        return jax.tree.map(cut, rollout)

    def _learn_once(
        self,
        state: TrainState,
        values: dict[str, Array],
        behaviour: PyTree | None,
        seen: Seen,
        episodes: EpisodeSummary,
        demonstrations: Rollout | None,
    ) -> tuple[TrainState, Packed]:
        def learn(state: TrainState, values: Any, behaviour: PyTree | None, seen: Seen, episodes: Any) -> Any:
            acted = state.policy if behaviour is None else behaviour
            rollout = complete(self.policy_static, acted, seen)
            state, metrics = self._iteration(values).learn(state, rollout, episodes, demonstrations)
            return state, Packed.of(metrics)

        return self._over_seeds(learn)(state, values, behaviour, seen, episodes)

    def _study_once(self, state: TrainState, demonstrations: Rollout) -> tuple[TrainState, dict[str, Array]]:
        rule = self.config.rule
        assert is_offline(rule)
        one_pass = partial(study, rule=rule, policy_static=self.policy_static, demonstrations=demonstrations)
        return self._over_seeds(one_pass)(state)

    def _over_seeds(self, one_seed: Any) -> Any:
        """The same for every seed of a device.

        One after the other on a CPU: a seed keeps its own branches and loops, and stays in the cache; a core gains
        nothing from several at once. An accelerator does: there they are vmapped.
        """

        def seeds(state: TrainState, *others: PyTree) -> PyTree:
            if state.iteration.shape[0] > 1 and jax.default_backend() != "cpu":
                return jax.vmap(one_seed)(state, *others)
            if state.iteration.shape[0] > 1:
                return jax.lax.map(lambda arguments: one_seed(*arguments), (state, *others))
            result = one_seed(*jax.tree.map(lambda x: x[0], (state, *others)))
            return jax.tree.map(lambda x: x[None], result)

        return seeds

    def _run_many(
        self, state: TrainState, values: dict[str, Array], iterations: Array, demonstrations: Rollout | None
    ) -> tuple[TrainState, dict[str, Array]]:
        # The number of iterations is data, not a constant: one program whatever the host asks for, so that
        # results do not depend on how a run is cut into calls.
        def one_seed(state: TrainState, values: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
            iteration = self._iteration(values)
            shapes = jax.eval_shape(iteration, state, demonstrations)[1]
            log = jax.tree.map(lambda x: jnp.zeros((MAX_ITERATIONS_A_CALL, *x.shape), x.dtype), shapes)

            def body(i: Array, carry: tuple) -> tuple:
                state, log = carry
                state, metrics = iteration(state, demonstrations)
                return state, jax.tree.map(lambda rows, row: rows.at[i].set(row), log, metrics)

            return jax.lax.fori_loop(0, iterations, body, (state, log))

        return self._over_seeds(one_seed)(state, values)
