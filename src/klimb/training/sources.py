"""Where the experience of a training comes from: a compiled environment, one that runs in Python, or demonstrations."""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from klimb import processes
from klimb.collect.compiled import CompiledCollector
from klimb.collect.episodes import EpisodeSummary
from klimb.collect.host.collector import HostRollout, VectorCollector
from klimb.collect.host.pipeline import RolloutPipeline
from klimb.collect.host.stepping import Columns
from klimb.collect.options import Collection
from klimb.environments.host import Fault, HostEnvironment
from klimb.environments.seeds import environment_seeds
from klimb.improve.rule import OfflineRule
from klimb.training import peers
from klimb.training.copies import Copies
from klimb.training.diagnose.first_nan import explain_first_nan
from klimb.training.diagnostics import Metrics
from klimb.training.iteration import Iteration
from klimb.training.offline import offline_iteration
from klimb.training.packed_metrics import PackedMetrics
from klimb.training.peer_collector import PeerCollector
from klimb.types import Demonstrated, Rollout, TrainState

logger = logging.getLogger("klimb")

MAX_ITERATIONS_PER_CALL = 256

Records = dict[str, np.ndarray]
"""Metrics `[iterations, K]` by name."""


@dataclass(frozen=True)
class Learner:
    """What every source advances.

    policy_static, policy_shapes: the part of the policy that is no array, and the shapes of its arrays, of one copy.
    iteration: from one copy's values of what is varied to its iteration. demonstrations: those of the run, or None.
    keeps_inputs: whether what an iteration was computed from is kept, for `Source.first_nan`.
    """

    copies: Copies
    iteration: Callable[[dict[str, Any]], Iteration]
    policy_static: PyTree
    policy_shapes: PyTree
    demonstrations: Demonstrated | None
    keeps_inputs: bool


class Source(abc.ABC):
    """Advances a training with experience of one kind. States and metrics have a leading axis of K copies."""

    rows_per_iteration: int
    """Environment steps of one copy in one iteration; of demonstrations their rows."""
    max_iterations_per_call: int = 1

    @abc.abstractmethod
    def advance(self, state: TrainState, iterations: int) -> tuple[TrainState, Records]:
        """Run some iterations: (state, metrics).

        state: before them; it is given up, and its buffers are used again. iterations: at most
        `max_iterations_per_call`.
        """

    @abc.abstractmethod
    def trace(self, state: TrainState) -> None:
        """Trace what `advance` runs, and compute nothing: whatever can't be compiled is raised here."""

    @abc.abstractmethod
    def first_nan(self, copy: int) -> str:
        """What made the first NaN of a copy's last iteration, in one line."""

    def rollout_shapes(self, policy: PyTree) -> Rollout:
        """The shapes of one copy's rollout under a policy."""
        raise NotImplementedError

    def start(self, iteration: int, host_states: dict[str, Any] | None) -> None:  # noqa: B027
        """Put host environments where they were, or start new episodes.

        iteration: the number of those that are done. host_states: what `capture` returned, or None for new episodes.
        """

    def capture(self) -> dict[str, Any] | None:
        """Where host environments stand, as plain data; None where there are none, or that can't be saved."""
        return None

    def take_faults(self) -> list[Fault]:
        """The faults of host environments since the last call; copies are counted over seeds, then environments."""
        return []

    def close(self) -> None:  # noqa: B027
        """Release the host environments."""


class CompiledSource(Source):
    """A compiled environment: many iterations run in one call, without coming back to the host."""

    max_iterations_per_call = MAX_ITERATIONS_PER_CALL

    def __init__(self, learner: Learner, collector: CompiledCollector, rows_per_iteration: int) -> None:
        self._learner, self._collector = learner, collector
        self.rows_per_iteration = rows_per_iteration
        self._run = learner.copies.layout.compile(self._many, by_seed=(True, True, False, False))
        self._before: TrainState | None = None

    def advance(self, state: TrainState, iterations: int) -> tuple[TrainState, Records]:
        learner = self._learner
        if learner.keeps_inputs:
            self._before = jax.tree.map(jnp.copy, state)
        state, log = self._run(state, learner.copies.values, iterations, learner.demonstrations)
        # Row 0 is that of the rollout before the first iteration.
        rows = slice(1, iterations + 1)
        return state, {name: np.asarray(values)[:, rows].swapaxes(0, 1) for name, values in log.items()}

    def trace(self, state: TrainState) -> None:
        self.metric_shapes(state)

    def metric_shapes(self, state: TrainState) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of an iteration's metrics, `[K, iterations]` each."""
        return jax.eval_shape(self._run, state, self._learner.copies.values, 1, self._learner.demonstrations)[1]

    def first_nan(self, copy: int) -> str:
        learner = self._learner
        iteration = replace(learner.iteration(learner.copies.values_of(copy)), role_axis=None)
        state = jax.tree.map(lambda x: x[copy], self._before)
        if iteration.is_unprepared(state):
            state = jax.jit(lambda state: iteration.prepare(*iteration.collect(state)[:2]))(state)
        return explain_first_nan(lambda state: iteration(state, learner.demonstrations), state)

    def rollout_shapes(self, policy: PyTree) -> Rollout:
        collector = self._collector
        return eqx.filter_eval_shape(
            lambda key, policy: collector.collect(key, policy, collector.init(key))[1], jax.random.key(0), policy
        )

    def _many(
        self, state: TrainState, values: dict[str, Array], iterations: Array, demonstrations: Demonstrated | None
    ) -> tuple[TrainState, Metrics]:
        # The number of iterations is data, not a constant: one program whatever the host asks for, so that
        # results do not depend on how a run is cut into calls.
        def one_copy(state: TrainState, values: dict[str, Array]) -> tuple[TrainState, Metrics]:
            iteration = self._learner.iteration(values)
            shapes = jax.eval_shape(iteration, state, demonstrations)[1]
            log = jax.tree.map(lambda x: jnp.zeros((1 + MAX_ITERATIONS_PER_CALL, *x.shape), x.dtype), shapes)

            def turn(i: Array, state: TrainState) -> tuple[TrainState, Metrics]:
                if not iteration.normalizers.start_with_rollout:
                    return iteration(state, demonstrations)
                # One more turn of the same loop instead of a loop of its own: collecting is compiled once. What is
                # learned in it is dropped afterwards: inside of a conditional XLA's CPU programs multiply matrices
                # several times as slowly (layers of 256 units: three times).
                state, rollout, episodes = iteration.collect(state)
                learned, metrics = iteration.learn(state, rollout, episodes, demonstrations)
                prepared = jax.lax.cond(i == 0, lambda: iteration.prepare(state, rollout), lambda: state)
                return jax.tree.map(lambda *now: jnp.where(i == 0, *now), prepared, learned), metrics

            def body(i: Array, carry: tuple) -> tuple:
                state, log = carry
                state, metrics = iteration.unless_over(state, lambda: turn(i, state))
                return state, jax.tree.map(lambda rows, row: rows.at[i].set(row), log, metrics)

            first = jnp.where(iteration.is_unprepared(state), 0, 1)
            return jax.lax.fori_loop(first, 1 + iterations, body, (state, log))

        return self._learner.copies.over_copies(one_copy)(state, values)


class HostSource(Source):
    """An environment that runs in Python: one rollout and one update per call."""

    def __init__(
        self,
        learner: Learner,
        environment: HostEnvironment,
        options: Collection,
        cores: int,
        rows_per_iteration: int,
        derivatives: bool,
        cluster: str | None = None,
        chunk_steps: int | None = None,
    ) -> None:
        """cores: worker processes where the options leave their number open. derivatives: whether to record them.
        cluster: of Ray, whose actors are the workers; None for processes here. chunk_steps: of a policy with memory."""
        self._learner = learner
        self.rows_per_iteration = rows_per_iteration
        self._num_envs = options.num_envs
        copies = learner.copies
        collector = VectorCollector if peers.count() == 1 else PeerCollector
        self._collector = collector(
            environment,
            learner.policy_static,
            learner.policy_shapes,
            num_seeds=copies.count,
            num_envs=options.num_envs,
            num_steps=options.num_steps,
            whole_episodes=options.batch == "episodes",
            exploration_steps=options.exploration_steps,
            derivatives=derivatives,
            workers=_workers(options, cores) if cluster is None else options.workers,
            cluster=cluster,
            restart=options.env_fault == "restart",
            timeout=options.env_timeout,
            straggler_timeout=options.straggler_timeout,
            chunk_steps=chunk_steps,
        )
        self._may_be_late = options.straggler_timeout is not None
        self._complete = self._collector.completion
        keys = jax.jit(lambda number: jax.vmap(jax.random.fold_in, (0, None))(copies.keys(), number))
        self._rollouts = RolloutPipeline(self._collector, keys, self._seeds, overlap=options.overlap)
        self._run = copies.layout.compile(self._learn, by_seed=(True, True, True, True, True, False))
        self._prepare = copies.layout.compile(self._prepare_copies, by_seed=(True, True, True))
        self._may_be_unprepared = False
        self._before: tuple[TrainState | None, HostRollout, PyTree | None, EpisodeSummary] | None = None

    def advance(self, state: TrainState, iterations: int) -> tuple[TrainState, Records]:
        learner = self._learner
        if self._may_be_unprepared:
            state = self._prepared(state)
        before = jax.tree.map(jnp.copy, state) if learner.keeps_inputs else None
        rollout, behaviour, episodes = self._rollouts.next(state.policy)
        self._before = None if before is None else (before, rollout, behaviour, episodes)
        state, metrics = self._run(state, learner.copies.values, behaviour, rollout, episodes, learner.demonstrations)
        # Overlaps with the update, which runs asynchronously.
        self._rollouts.prepare()
        return state, {name: values[None] for name, values in metrics.unpack().items()}

    def trace(self, state: TrainState) -> None:
        learner, count = self._learner, self._learner.copies.count
        rollout = self._collector.blank()
        number = jnp.zeros(count)
        none = number.astype(jnp.int32)
        episodes = EpisodeSummary(none, number, number, none, none if self._may_be_late else None)
        jax.eval_shape(self._run, state, learner.copies.values, None, rollout, episodes, learner.demonstrations)

    def first_nan(self, copy: int) -> str:
        learner = self._learner
        state, rollout, behaviour, episodes = jax.tree.map(lambda x: jnp.asarray(x)[copy], self._before)
        cause = _nonfinite_input(rollout.columns)
        if cause is not None:
            return cause
        iteration = replace(learner.iteration(learner.copies.values_of(copy)), role_axis=None)

        def learn(state: TrainState) -> PyTree:
            rows = self._complete(state.policy if behaviour is None else behaviour, rollout)
            return iteration.learn(state, rows, episodes, learner.demonstrations, behaviour)

        return explain_first_nan(learn, state)

    def rollout_shapes(self, policy: PyTree) -> Rollout:
        return self._collector.rollout_shapes(policy)

    def start(self, iteration: int, host_states: dict[str, Any] | None) -> None:
        self._may_be_unprepared = iteration == 0
        if self._may_be_late:
            logger.warning(
                "with straggler_timeout the time that steps take decides which rows there are: this training can't be "
                "repeated exactly, and one that is resumed goes on without equalling one that never stopped"
            )
        self._rollouts.start(iteration, host_states)

    def capture(self) -> dict[str, Any] | None:
        return self._rollouts.capture()

    def take_faults(self) -> list[Fault]:
        return self._collector.take_faults()

    def close(self) -> None:
        self._collector.close()

    def _seeds(self, iteration: int) -> np.ndarray:
        """Of the environments of all copies, `[K, N]`. iteration: the one that their episodes begin in."""
        return np.stack([environment_seeds(seed, iteration, self._num_envs) for seed in self._learner.copies.seeds])

    def _learn(
        self,
        state: TrainState,
        values: dict[str, Array],
        behaviour: PyTree | None,
        rollout: HostRollout,
        episodes: EpisodeSummary,
        demonstrations: Demonstrated | None,
    ) -> tuple[TrainState, PackedMetrics]:
        def one_copy(
            state: TrainState, values: Any, behaviour: PyTree | None, rollout: HostRollout, episodes: Any
        ) -> tuple[TrainState, PackedMetrics]:
            acted = state.policy if behaviour is None else behaviour
            rows = self._complete(acted, rollout)
            iteration = self._learner.iteration(values)
            state, metrics = iteration.unless_over(
                state, lambda: iteration.learn(state, rows, episodes, demonstrations, behaviour)
            )
            return state, PackedMetrics.of(metrics)

        return self._learner.copies.over_copies(one_copy)(state, values, behaviour, rollout, episodes)

    def _prepared(self, state: TrainState) -> TrainState:
        """The state before the first iteration, with the normalisers' first statistics from a rollout of its policy."""
        self._may_be_unprepared = False
        values = self._learner.copies.values
        if not self._learner.iteration(self._learner.copies.values_of(0)).is_unprepared(state).all():
            return state
        return self._prepare(state, values, self._rollouts.first(state.policy))

    def _prepare_copies(self, state: TrainState, values: dict[str, Array], rollout: HostRollout) -> TrainState:
        def one_copy(state: TrainState, values: Any, rollout: HostRollout) -> TrainState:
            rows = self._complete(state.policy, rollout)
            return self._learner.iteration(values).prepare(state, rows)

        return self._learner.copies.over_copies(one_copy)(state, values, rollout)


class DemonstrationSource(Source):
    """Demonstrations alone: one pass over them per call, and no environment."""

    def __init__(self, learner: Learner, rule: OfflineRule) -> None:
        assert learner.demonstrations is not None
        self._learner, self._rule, self._rows = learner, rule, learner.demonstrations.rollout
        self.rows_per_iteration = int(self._rows.valid.sum())
        self._run = learner.copies.layout.compile(self._study, by_seed=(True, False))
        self._before: TrainState | None = None

    def advance(self, state: TrainState, iterations: int) -> tuple[TrainState, Records]:
        if self._learner.keeps_inputs:
            self._before = jax.tree.map(jnp.copy, state)
        state, metrics = self._run(state, self._rows)
        return state, {name: np.asarray(values)[None] for name, values in metrics.items()}

    def trace(self, state: TrainState) -> None:
        self.metric_shapes(state)

    def metric_shapes(self, state: TrainState) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of an iteration's metrics, `[K]` each."""
        return jax.eval_shape(self._run, state, self._rows)[1]

    def first_nan(self, copy: int) -> str:
        state = jax.tree.map(lambda x: x[copy], self._before)
        return explain_first_nan(self._one_pass(self._rows), state)

    def _study(self, state: TrainState, demonstrations: Rollout) -> tuple[TrainState, Metrics]:
        return self._learner.copies.over_copies(self._one_pass(demonstrations))(state)

    def _one_pass(self, demonstrations: Rollout) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        static = self._learner.policy_static
        return partial(offline_iteration, rule=self._rule, policy_static=static, demonstrations=demonstrations)


def _workers(options: Collection, cores: int) -> int:
    """How many worker processes are started here: where it is left open one per core, or none if that is impossible."""
    if options.workers is not None:
        return options.workers
    return cores if processes.can_serve() else 0


def _nonfinite_input(columns: Columns) -> str | None:
    """The first number of a copy's rollout, `[T, N]`, that is not finite, in one line; None where there is none."""
    if not columns.valid.any():
        return "no row of the rollout is valid"
    for name, column in columns._asdict().items():
        if not jnp.issubdtype(column.dtype, jnp.inexact):
            continue
        of_rows = name != "successor"
        counts = columns.valid if of_rows else columns.successor_step < len(columns.valid)
        bad = ~np.isfinite(column).all(axis=tuple(range(2, column.ndim))) & np.asarray(counts)
        if bad.any():
            step, number = map(int, np.argwhere(bad)[0])
            if not of_rows:
                name, step = "observation", int(columns.successor_step[step, number])
            return f"environment {number} gave a non-finite {name} at step {step} of the rollout"
    return None
