"""Driving a training: `train` and `resume`, with records, checkpoints and a clean stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from klimb.collect.demonstrations import Demonstrations
from klimb.environments.registry import Environment, make
from klimb.improve.rule import Rule, is_offline
from klimb.runs.config import RunConfig, TrainOptions, build
from klimb.runs.demonstration_file import load_demonstrations
from klimb.runs.directory import RunDirectory
from klimb.runs.evaluate import require_fit
from klimb.runs.metrics import Record, to_records
from klimb.runs.policy_file import load_policy, policy_name
from klimb.runs.program import Program
from klimb.types import TrainState

OnRecords = Callable[[list[Record]], None]
SECONDS_A_CALL = 0.5


@dataclass(frozen=True)
class Run:
    """A training that has ended: the policies (one a seed), the records of all iterations, and the last state."""

    policies: list[Any]
    history: list[Record]
    config: RunConfig
    state: TrainState
    directory: Path | None

    @property
    def policy(self) -> Any:
        """The policy of the (first) seed."""
        return self.policies[0]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a training; the checkpoint has been saved. `signal` is the number received."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal = signal_number


def train(
    env: str | Any,
    rule: Rule,
    *,
    policy: PyTree | None = None,
    demonstrations: Demonstrations | str | Path | None = None,
    run_dir: str | Path | None = None,
    on_records: OnRecords | None = None,
    **options: Any,
) -> Run:
    """Train a policy in an environment with an update rule.

    env: a name (see `klimb.make`) or an environment object.
    rule: e.g. `TRPO(max_kl=0.01)`.
    policy: a callable pytree `policy(obs) -> Distribution` to start from; None for a fresh network, or for the
        policy of `init_from`.
    demonstrations: recorded episodes (`klimb.record`), or where they are, for the rules that learn from them.
    run_dir: a directory to make and write the run into; None keeps the run in memory.
    on_records: called with the new records (one an iteration) after every call to the device.
    options: the fields of `klimb.TrainOptions` by name: env_steps, seed, num_seeds, num_envs, num_steps,
        gamma, gae_lambda, advantage, …

    Raises ConfigError for an option that is unknown or out of range, EnvironmentNotFound or UnsupportedSpace
    for an environment that klimb can't train in, PolicyFileError for an `init_from` and DemonstrationError for
    demonstrations that can't be used or are from another environment, RunError when `run_dir` exists. Ctrl-C and
    SIGTERM save a checkpoint (when there is a run directory) and raise `Interrupted`.
    """
    environment = make(env)
    name = env if isinstance(env, str) else environment.id
    if demonstrations is not None:
        source = demonstrations.source if isinstance(demonstrations, Demonstrations) else str(demonstrations)
        options["demonstrations"] = source
    config = RunConfig(name, rule, build(TrainOptions, options))
    policy = policy_for(environment, config) if policy is None else policy
    program = Program(config, environment, policy, demonstrations_for(environment, config, demonstrations))
    state = program.initial_state()
    output = Output.create(config, run_dir)
    (run,) = drive(program, state, [output], on_records, iteration=0, wall_time=0.0)
    return run


def resume(
    run_dir: str | Path,
    *,
    env: Any | None = None,
    rule: Rule | None = None,
    policy: PyTree | None = None,
    demonstrations: Demonstrations | None = None,
    on_records: OnRecords | None = None,
) -> Run:
    """Go on with a run from its newest checkpoint, to the `env_steps` of its configuration.

    On a compiled environment the result is the same, byte for byte, as that of a run never interrupted. On a
    host environment running episodes start anew. `env`, `rule`, `policy` and `demonstrations` are needed only for
    a run that was started from Python with objects that a configuration file can't name.

    Raises RunError when the directory is no run or has no usable checkpoint.
    """
    directory = RunDirectory.open(run_dir)
    config = directory.config
    if rule is not None:
        config = RunConfig(config.env, rule, config.options)
    first_seed = config.options.seed if config.options.num_seeds > 1 else None
    if policy is None and (directory.path / f"{policy_name(first_seed)}.json").is_file():
        policy = load_policy(directory.path, seed=first_seed)
    environment = make(config.env if env is None else env)
    program = Program(config, environment, policy, demonstrations_for(environment, config, demonstrations))
    state, iteration, wall_time = directory.load(program.state_template())
    directory.start_log(keep_until=iteration)
    output = Output(config, slice(None), directory, directory.history())
    (run,) = drive(program, program.place(state), [output], on_records, iteration=iteration, wall_time=wall_time)
    return run


def policy_for(environment: Environment, config: RunConfig) -> PyTree | None:
    """The policy of another run that a run starts from, if it has any and it fits the environment."""
    if config.options.init_from is None:
        return None
    policy = load_policy(config.options.init_from)
    require_fit(policy, environment)
    return policy


def demonstrations_for(
    environment: Environment, config: RunConfig, given: Demonstrations | str | Path | None
) -> Demonstrations | None:
    """The demonstrations of a run, if it has any and they fit the environment and the rule."""
    config.check_demonstrations()
    source = config.options.demonstrations
    if source is None:
        return None
    demonstrations = given if isinstance(given, Demonstrations) else load_demonstrations(source)
    demonstrations.check_fit(environment)
    if not is_offline(config.rule):
        demonstrations.check_log_probs()
    return demonstrations


@dataclass(frozen=True)
class Output:
    """Where the records and checkpoints of some (`part`) of a program's copies go: one run."""

    config: RunConfig
    part: slice
    directory: RunDirectory | None
    history: list[Record]

    @classmethod
    def create(cls, config: RunConfig, run_dir: str | Path | None, part: slice = slice(None)) -> Output:
        """A new run, in a new directory unless it stays in memory."""
        directory = None if run_dir is None else RunDirectory.create(run_dir, config)
        if directory is not None:
            directory.start_log()
        return cls(config, part, directory, [])

    def append(self, metrics: dict[str, np.ndarray], times: list[float], speed: float) -> None:
        """The metrics of a call, `[iterations, copies]`."""
        own = {name: values[:, self.part] for name, values in metrics.items()}
        records = to_records(own, wall_time=times, steps_per_second=speed)
        self.history.extend(records)
        if self.directory is not None:
            self.directory.append(records)

    def save(self, program: Program, state: TrainState, *, iteration: int, wall_time: float) -> None:
        """A checkpoint, with the policies as files of their own."""
        if self.directory is not None:
            own = self._own(program, state)
            policies = program.policies(state)[self.part]
            self.directory.save(own, policies, iteration=iteration, wall_time=wall_time)

    def run(self, program: Program, state: TrainState) -> Run:
        """What has come of it."""
        path = None if self.directory is None else self.directory.path
        policies = program.policies(state)[self.part]
        return Run(policies, self.history, self.config, self._own(program, state), path)

    def _own(self, program: Program, state: TrainState) -> TrainState:
        everything = range(program.num_copies)
        return state if everything[self.part] == everything else jax.tree.map(lambda x: x[self.part], state)


def drive(
    program: Program,
    state: TrainState,
    outputs: list[Output],
    on_records: OnRecords | None,
    *,
    iteration: int,
    wall_time: float,
) -> list[Run]:
    """Advance to the last iteration: records after every call, a checkpoint when one is due and at the end."""
    options, num_iterations = program.config.options, program.config.num_iterations
    clock = _Clock(wall_time)
    size = _CallSize(program.max_iterations_a_call)
    try:
        with _StopSignals() as stop:
            program.start(iteration=iteration)
            while iteration < num_iterations and not program.finished(state):
                until_checkpoint = options.checkpoint_every - iteration % options.checkpoint_every
                count = min(size.iterations, num_iterations - iteration, until_checkpoint)
                state, metrics = program.advance(state, count)
                times, seconds = clock.lap(count)
                size.adapt(count, seconds)
                iteration += count
                speed = count * program.rows_an_iteration * program.num_copies / seconds
                for output in outputs:
                    output.append(metrics, times, speed)
                if on_records is not None:
                    on_records(to_records(metrics, wall_time=times, steps_per_second=speed))
                finished = iteration == num_iterations or program.finished(state)
                if finished or stop.received is not None or iteration % options.checkpoint_every == 0:
                    for output in outputs:
                        output.save(program, state, iteration=iteration, wall_time=clock.now)
                if stop.received is not None and not finished:
                    raise Interrupted(_interrupted_message(iteration, outputs), stop.received)
    finally:
        program.close()
        for output in outputs:
            if output.directory is not None:
                output.directory.close()
    return [output.run(program, state) for output in outputs]


def _interrupted_message(iteration: int, outputs: list[Output]) -> str:
    paths = [output.directory.path for output in outputs if output.directory is not None]
    if not paths:
        return f"stopped after iteration {iteration}; nothing was saved (no run directory)"
    ways = " and ".join(f"klimb resume {path}" for path in paths)
    return f"stopped after iteration {iteration}, checkpoint saved; go on with: {ways}"


class _Clock:
    """Seconds of training so far, over all the parts of a resumed run."""

    def __init__(self, before: float) -> None:
        self.now, self._last = before, time.perf_counter()

    def lap(self, iterations: int) -> tuple[list[float], float]:
        """The wall time at the end of each iteration of a call (spread evenly), and the call's seconds."""
        current = time.perf_counter()
        seconds, start = current - self._last, self.now
        self._last, self.now = current, start + seconds
        return [start + seconds * (i + 1) / iterations for i in range(iterations)], seconds


class _CallSize:
    """Iterations for the next call: as many as take about half a second, so that progress stays live."""

    def __init__(self, most: int) -> None:
        self.iterations, self._most, self._calls = 1, most, 0

    def adapt(self, iterations: int, seconds: float) -> None:
        # The first call compiles: its time says nothing.
        self._calls += 1
        if self._calls > 1:
            fitting = int(SECONDS_A_CALL * iterations / max(seconds, 1e-9))
            self.iterations = max(1, min(fitting, 4 * self.iterations, self._most))


class _StopSignals:
    """SIGINT and SIGTERM ask for a stop after the current call; a second one stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        # Python delivers signals to the main thread only; elsewhere they are left alone.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for asked, handler in self._before.items():
            signal.signal(asked, handler)
