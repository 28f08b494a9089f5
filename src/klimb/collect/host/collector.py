"""Collecting from host environments: decisions in NumPy, whole rollouts into arrays allocated beforehand.

Where the environment can be made in another process, worker processes step it and decide locally; else it is stepped
here. Either way JAX is asked for a rollout's noise once before it and for its log-probs once after.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Key, PyTree

from klimb import processes
from klimb.collect.episodes import EpisodeSummary, EpisodeTally
from klimb.collect.host.decisions import Decide, PolicySpec
from klimb.collect.host.exported_policy import ExportedPolicySpec
from klimb.collect.host.in_process import InProcess
from klimb.collect.host.numpy_policy import NumpyPolicySpec
from klimb.collect.host.stepping import Columns, NoiseLayout, Stepped, parts
from klimb.collect.host.workers import Workers
from klimb.environments.host import DerivativeSizes, Fault, HostEnvironment
from klimb.errors import ConfigError, RunError
from klimb.policies.action_spec import ActionSpec
from klimb.policies.encoders import FlatEncoder
from klimb.policies.exploration import held_noise, noise_steps, rollout_noise, sampled_action
from klimb.policies.memory import NO_MEMORY, Memory, carry_size
from klimb.policies.networks import NetworkPolicy
from klimb.policies.observations import ObservationSpec
from klimb.policies.policy import action_distribution
from klimb.policies.recurrent import kind_of
from klimb.types import Derivatives, Rollout

logger = logging.getLogger("klimb")

EPISODE_STEPS = 8
"""What a rollout has room for at first: episodes of so many steps, one after the other in every column."""
STANDS = ("states", "obs", "carry")
"""What is saved of every copy; `carry` of a policy with memory only."""


class HostRollout(NamedTuple):
    """A rollout as the environments return it, `[K, T, N, ...]`, without log-probs. time: since the episode began."""

    columns: Columns
    time: np.ndarray


@runtime_checkable
class Stepping(Protocol):
    """Who steps the environments: this process (`InProcess`), worker processes (`Workers`) or actors (`RayWorkers`)."""

    def reset(self, seeds: Integer[np.ndarray, "K N"]) -> None: ...
    def begin(self, policy: PyTree, noise: np.ndarray, *, at_once: bool) -> None: ...
    def finish(self) -> Stepped: ...
    def capture(self) -> dict[str, list] | None: ...
    def restore(self, captured: dict[str, list]) -> None: ...
    def close(self) -> None: ...


class VectorCollector:
    """`num_envs` copies of a host environment for each of K seeds, `num_steps` steps of each per rollout.

    Everything it returns has the leading axis of seeds: Rollout leaves are `[K, T, N, ...]`.

    policy_static: the part of the policy that is no array. policy_shapes: its arrays, or their shapes, of one seed.
    whole_episodes: whether a rollout is one episode of every copy, which a reset has to come before; what still runs
    after `num_steps` is truncated there. exploration_steps: for which a policy that explores with gSDE holds its noise;
    None for a whole rollout. derivatives: whether rollouts hold those of their steps, which the environment
    has to give (`HostEnvironment.derivatives`).
    workers: processes to step the copies in, where the environment can be made in another process (a registered
    Gymnasium environment); 0 for this process. Workers decide in NumPy for a `NetworkPolicy` on flat observations, and
    by a compiled program for any other policy.
    cluster: the Ray cluster whose actors are the workers, `auto`, `local` or HOST:PORT; None for processes here. There
    `workers` may be None: one for each of its CPUs.
    restart: make an environment that fails again, its rows not valid; else that is an EnvironmentFault.
    timeout: seconds that a worker process may take for a rollout. straggler_timeout: seconds from the start of its own
    work on, after which it hands over the steps that it has made: the other rows are not valid, and its environments
    go on from where they are in the next rollout. None: every worker makes all steps.
    chunk_steps: of a policy with memory, as in `klimb.policies.memory.Memory`.
    """

    def __init__(
        self,
        environment: HostEnvironment,
        policy_static: PyTree,
        policy_shapes: PyTree,
        *,
        num_seeds: int,
        num_envs: int,
        num_steps: int,
        whole_episodes: bool = False,
        exploration_steps: int | None = None,
        derivatives: bool = False,
        workers: int | None = 0,
        restart: bool = False,
        timeout: float = 300.0,
        cluster: str | None = None,
        straggler_timeout: float | None = None,
        chunk_steps: int | None = None,
    ) -> None:
        self.shape, self.whole_episodes = (num_steps, num_seeds, num_envs), whole_episodes
        self._actions, self._observations = environment.actions, environment.observations
        self._static = policy_static
        self._draw = jax.jit(partial(_draw, policy_static, self.shape, self._observations, exploration_steps))
        steps = noise_steps(policy_static, num_steps, exploration_steps)
        self._noise = NoiseLayout.of(num_steps, steps, held_noise(policy_static) or self._actions.shape)
        self._act = jax.jit(partial(_act, policy_static, self._actions))
        self._sizes = environment.derivatives if derivatives else None
        self._memory = Memory(carry_size(policy_static), chunk_steps)
        remembered = self._memory.size or 0
        self._layout = Columns.layout(
            self.shape,
            self._observations,
            self._actions,
            0 if self._sizes is None else self._sizes.numbers,
            remembered,
        )
        self._complete = jax.jit(jax.vmap(self.completion))
        self._tally = EpisodeTally(num_seeds, num_envs)
        episodes = 1 if whole_episodes else -(-num_steps // EPISODE_STEPS)
        self._room = min(num_steps, 1 + episodes)
        self._numpy_spec = numpy_policy_spec(policy_static)
        self._stepping: Stepping | None = None
        self._open: Callable[[], Stepping]
        env_spec = environment.env_spec
        options: dict[str, Any] = {
            "whole_episodes": whole_episodes,
            "noise": self._noise,
            "derivatives": self._layout.derivatives.shape[-1],
            "remembered": remembered,
            "restart": restart,
            "timeout": timeout,
        }

        def worked(workers: int, make: Callable[..., Stepping], **more: Any) -> Stepping:
            """Workers of some kind. make: from the arguments of `Workers`."""
            spec: PolicySpec = self._numpy_spec or self._export(policy_shapes, workers)
            pack = self._parameters if isinstance(spec, NumpyPolicySpec) else partial(_pack, spec)
            more["straggler_timeout"] = straggler_timeout
            return make(env_spec, spec, self.shape, self._observations, self._actions, workers, pack, **options, **more)

        if cluster is not None and workers != 0:
            if env_spec is None:
                raise ConfigError(
                    f"{environment.id} can't be made in another process, and so not in a Ray cluster: --ray is for "
                    "environments of Gymnasium's registry"
                )
            self._open = lambda: self._in_cluster(cluster, workers, worked, environment.packages)
        elif workers != 0 and env_spec is not None:
            assert workers is not None, "the number of processes here is known"
            if not processes.can_serve():
                raise ConfigError(
                    f"workers = {workers}: klimb has no worker processes on Windows; give --workers 0, which steps the "
                    "environments in this process"
                )
            self._open = lambda: worked(workers, Workers)
        elif straggler_timeout is not None:
            remedy = "give --workers 1 or more" if env_spec is not None else "it can't be made in another; leave it out"
            remedy = remedy if processes.can_serve() else "klimb has none on Windows; leave it out"
            raise ConfigError(
                f"straggler_timeout is for worker processes, and {environment.id} is stepped in this one: {remedy}"
            )
        else:
            self._open = lambda: InProcess(
                environment.vector(num_seeds * num_envs, restart=restart),
                num_seeds,
                lambda: Columns.empty(self._layout),
                self._decider,
                noise_steps=self._noise.steps,
                whole_episodes=whole_episodes,
                remembered=remembered,
            )
        self._under_way = False
        self._state_known = True
        self._faults: list[Fault] = []
        self._straggler_timeout, self._told_late = straggler_timeout, False

    def reset(self, seeds: Integer[np.ndarray, "K N"]) -> None:
        """Start all episodes again. Episodes that were running are not counted as finished.

        seeds: one per copy (`environment_seeds`).
        """
        if self.under_way:  # its rollout is not wanted any more
            self.finish()
        if self._stepping is None:
            self._stepping = self._open()
        self._tally.reset()
        self._stepping.reset(seeds)

    def capture(self) -> dict[str, Any] | None:
        """Where all copies stand, as plain data; None where that can't be saved. Not while a rollout is under way."""
        captured = self._stepping.capture() if self._stepping is not None and self._state_known else None
        if captured is None:
            return None
        return {**captured, "tally": self._tally.capture(), "room": [self._room] * self.shape[1]}

    def restore(self, seeds: Integer[np.ndarray, "K N"], captured: dict[str, Any]) -> None:
        """Put all copies where `capture` found them. RunError when they can't be.

        seeds: one per copy; those of copies that are restarted later on derive from them. captured: what `capture`
        returned.
        """
        self.reset(seeds)
        assert self._stepping is not None
        try:
            # A checkpoint of an older version has none.
            self._room = self._room_for(max(captured.get("room", [0])))
            self._tally.restore(captured["tally"])
            self._stepping.restore({name: captured[name] for name in STANDS if name in captured})
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise RunError(
                f"the checkpoint does not contain the state of the environments ({type(error).__name__})"
            ) from None

    def collect(self, keys: Key[Array, " K"], policy: PyTree) -> tuple[Rollout, EpisodeSummary]:
        """One rollout of every seed under its frozen policy.

        keys: for the noise. policy: arrays `[K, …]`.
        """
        policy = jax.tree.map(np.array, policy)
        self.begin(self.draw(keys, policy), policy, at_once=True)
        rollout, episodes = self.finish()
        return self._complete(policy, rollout), episodes

    def draw(self, keys: Key[Array, " K"], policy: PyTree) -> Array:
        """The noise of a rollout, as `NoiseLayout` says. keys: what it is drawn from. policy: only its kind matters."""
        return self._draw(policy, keys)

    def begin(self, noise: Array, policy: PyTree, *, at_once: bool = False) -> None:
        """Begin a rollout, which runs beside this thread until `finish`.

        noise: as `draw` returns it. policy: arrays `[K, …]` in NumPy, since those of a state are given up to the next
        one. at_once: step it now instead, where this process steps.
        """
        assert self._stepping is not None, "reset comes before begin"
        assert not self._under_way, "finish comes before the next begin"
        # Where the environments stand is known again when this has ended well.
        self._state_known, self._under_way = False, True
        self._stepping.begin(policy, np.asarray(noise), at_once=at_once)

    def finish(self) -> tuple[HostRollout, EpisodeSummary]:
        """The rollout that was begun: `complete` makes a `Rollout` of it."""
        assert self._stepping is not None
        assert self._under_way, "begin comes before finish"
        self._under_way = False
        columns, faults, made = self._stepping.finish()
        self._state_known = True
        self._room = self._room_for(columns.used)
        time, summary = self._tally.count(columns.reward, columns.terminated | columns.truncated, columns.valid, made)
        counts = self._count(faults), None if made is None else self._count_late(made)
        summary = eqx.tree_at(lambda s: (s.faults, s.late_rows), summary, counts, is_leaf=lambda x: x is None)
        return self._with_room(columns, time), summary

    def with_room(self, rollout: HostRollout, room: int) -> HostRollout:
        """The same rollout with room for more successors, as those after it. room: for so many."""
        self._room = self._room_for(room)
        columns, time = jax.tree.map(lambda column: np.swapaxes(column, 0, 1), rollout)
        return self._with_room(columns, time)

    def _with_room(self, columns: Columns, time: np.ndarray) -> HostRollout:
        """`[T, K, N, ...]` as `[K, T, N, ...]`, with as much room for successors as all rollouts have now."""
        columns = columns.with_room(self._room)
        return HostRollout(*jax.tree.map(lambda column: np.swapaxes(column, 0, 1), (columns, time)))

    def _room_for(self, used: int) -> int:
        """How many successors a rollout has room for. It decides the shapes of the program that learns, so it grows
        seldom: it is doubled until it is enough. used: how many it must be."""
        room, num_steps = self._room, self.shape[0]
        while room < min(used, num_steps):
            room = min(2 * room, num_steps)
        return room

    def take_faults(self) -> list[Fault]:
        """The faults since the last call. Copies are counted over seeds, then environments."""
        faults, self._faults = self._faults, []
        return faults

    @property
    def under_way(self) -> bool:
        """Whether a rollout has been begun and not finished."""
        return self._under_way

    @property
    def completion(self) -> Callable[[PyTree, HostRollout], Rollout]:
        """From a policy's arrays and a host rollout of one seed to a `Rollout`: `complete`, for this collector."""
        return partial(
            complete, self._static, whole_episodes=self.whole_episodes, sizes=self._sizes, memory=self._memory
        )

    def blank(self) -> HostRollout:
        """A rollout of nothing, `[K, T, N, ...]`, with the shapes and dtypes of every other."""
        columns = Columns(*(np.zeros(*spec) for spec in self._layout))
        columns.blank()
        return self._with_room(columns, np.zeros(self.shape, np.int32))

    def rollout_shapes(self, policy: PyTree) -> Rollout:
        """A rollout of nothing, of the shapes of one seed's under a policy."""
        blank = jax.tree.map(lambda x: jnp.asarray(x[0]), self.blank())
        return self.completion(eqx.filter(policy, eqx.is_array), blank)

    def close(self) -> None:
        """Release the environments."""
        if self._stepping is not None:
            self._stepping.close()

    def _in_cluster(
        self, address: str, workers: int | None, worked: Callable[..., Stepping], packages: Sequence[str]
    ) -> Stepping:
        """Actors of a Ray cluster. workers: their number; None for one for each of its CPUs."""
        # Imported here because it needs an extra package.
        from klimb.collect.host.ray_cluster import RayCluster
        from klimb.collect.host.ray_workers import RayWorkers

        cluster = RayCluster(address)
        try:
            count = max(1, cluster.cpus) if workers is None else workers
            return worked(count, RayWorkers, cluster=cluster, packages=tuple(packages))
        except BaseException:
            cluster.close()
            raise

    def _count(self, faults: list[Fault]) -> np.ndarray:
        """Faults of each seed's copies, `[K]`; the first of them is logged."""
        _, num_seeds, num_envs = self.shape
        self._faults += faults
        if faults:
            more = f" ({len(faults)} in this rollout)" if len(faults) > 1 else ""
            logger.warning("environment %d: %s; it is restarted%s", faults[0].copy, faults[0].cause, more)
        return np.bincount([fault.copy // num_envs for fault in faults], minlength=num_seeds).astype(np.int32)

    def _count_late(self, made: np.ndarray) -> np.ndarray:
        """Rows of each seed that late workers have not made, `[K]`; the first rollout with such is logged."""
        num_steps, num_seeds, _ = self.shape
        late = num_steps - made
        if late.any() and not self._told_late:
            self._told_late = True
            logger.warning(
                "a worker was late: after %g s environment %d had made %d of %d steps, and the rows of the others are "
                "left out; the metric late_rows counts them from here on",
                self._straggler_timeout,
                late.argmax(),
                made.min(),
                num_steps,
            )
        return np.full(num_seeds, late.sum(), np.int32)

    def _parameters(self, policy: PyTree) -> np.ndarray:
        """A network policy's arrays `[K, …]`, in the order of `NumpyPolicySpec.shapes`: `[K, spec.size]`."""
        own = eqx.combine(policy, self._static)
        normalizer, network = own.encoder.normalizer, own.network
        memory = jax.tree.leaves(own.memory)
        layers = [x for pair in zip(network.weights, network.biases, strict=True) for x in pair]
        layers += [x for norm in network.norms for x in (norm.scale, norm.offset)]
        log_std = [] if own.log_std is None else [own.log_std]
        # In NumPy, as `Normalizer.scale` has it.
        scale = np.where(normalizer.variance > normalizer.variance_floor, np.sqrt(normalizer.variance), 1)
        arrays = [normalizer.mean, scale, *memory, *layers, *log_std]
        return np.concatenate([np.reshape(x, (len(x), -1)) for x in arrays], axis=1).astype(np.float32)

    def _decider(self, policy: PyTree) -> Decide:
        if self._numpy_spec is not None:
            return self._numpy_spec.decider(self._parameters(policy))

        def decide(obs: np.ndarray, noise: np.ndarray, carry: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            action, taken, carry = (np.asarray(x) for x in self._act(policy, obs, noise, carry))
            return action, taken, carry

        return decide

    def _export(self, policy_shapes: PyTree, workers: int) -> ExportedPolicySpec:
        """The policy's program, for worker processes: one for each number of environments that a worker may have."""
        _, num_seeds, num_envs = self.shape
        one = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.tree.leaves(policy_shapes)]
        structure = jax.tree.structure(policy_shapes)
        every = [jax.ShapeDtypeStruct((num_seeds, *x.shape), x.dtype) for x in one]

        def act(*arguments: Array) -> tuple[Array, Array, Array]:
            *arrays, obs, noise, carry = arguments
            return _act(self._static, self._actions, jax.tree.unflatten(structure, arrays), obs, noise, carry)

        programs = {}
        for width in {part.stop - part.start for part in parts(num_envs, workers)}:
            obs = jax.ShapeDtypeStruct((num_seeds, width, *self._observations.shape), self._observations.dtype)
            noise = jax.ShapeDtypeStruct((num_seeds, width, *self._noise.shape), jnp.float32)
            carry = jax.ShapeDtypeStruct((num_seeds, width, self._memory.size or 0), jnp.float32)
            exported = jax.export.export(jax.jit(act), platforms=["cpu"])(*every, obs, noise, carry)
            programs[width] = bytes(exported.serialize())
        return ExportedPolicySpec(tuple((x.shape, str(x.dtype)) for x in one), programs)


def numpy_policy_spec(policy_static: PyTree) -> NumpyPolicySpec | None:
    """What NumPy has to know of a policy; None where it is not the one kind that has been written for NumPy."""
    # A subclass may be called otherwise.
    if type(policy_static) is not NetworkPolicy or type(policy_static.encoder) is not FlatEncoder:
        return None
    observations, layer = policy_static.observations, policy_static.memory
    memory = kind_of(layer)
    if layer is not None and memory is None:
        return None
    return NumpyPolicySpec(
        sizes=policy_static.network.sizes,
        activation=policy_static.network.activation,
        clip=policy_static.encoder.normalizer.clip,
        actions=policy_static.actions,
        style=policy_static.style,
        columns=policy_static.encoder.columns,
        layer_norm=bool(policy_static.network.norms),
        residual=policy_static.network.residual,
        mask_start=None if observations.encoded is observations else observations.encoded.size,
        inputs=None if layer is None else layer.inputs,
        memory=memory,
    )


def _pack(spec: ExportedPolicySpec, policy: PyTree) -> np.ndarray:
    return spec.pack([np.asarray(x) for x in jax.tree.leaves(policy)])


def _draw(
    static: PyTree,
    shape: tuple[int, int, int],
    observations: ObservationSpec,
    exploration_steps: int | None,
    policy: PyTree,
    keys: Array,
) -> Array:
    """The noise of a whole rollout: `[rows, K, N, ...]`, as `NoiseLayout` says."""
    num_steps, _, num_envs = shape

    def one_seed(arrays: PyTree, key: Array) -> Array:
        # Its shape depends on the kind of distribution alone.
        obs = jnp.zeros((num_envs, *observations.shape), observations.dtype)
        return rollout_noise(eqx.combine(arrays, static), key, obs, num_steps, exploration_steps)

    return jnp.swapaxes(jax.vmap(one_seed)(policy, keys), 0, 1)


def _act(
    static: PyTree, actions: ActionSpec, policy: PyTree, obs: Array, noise: Array, carry: Array
) -> tuple[Array, Array, Array]:
    """Actions of every seed, as the environment gets them, and what is remembered.

    obs: `[K, n, O]`. noise: `[K, n, ...]`. carry: what was remembered, `[K, n, C]`.
    """
    remembers = carry_size(static) is not None

    def one_seed(arrays: PyTree, rows: Array, draws: Array, carry: Array) -> tuple[Array, Array, Array]:
        made = sampled_action(eqx.combine(arrays, static), rows, draws, carry if remembers else None)
        taken = actions.clip(made.distribution.to_environment(made.action))
        return made.action, taken, carry if made.carry is None else made.carry

    return jax.vmap(one_seed)(policy, obs, noise, carry)


def complete(
    static: PyTree,
    policy: PyTree,
    rollout: HostRollout,
    *,
    whole_episodes: bool = False,
    sizes: DerivativeSizes | None = None,
    memory: Memory = NO_MEMORY,
) -> Rollout:
    """One seed's rollout, with the log-probs of the policy that acted.

    static, policy: the part of it that is no array, and its arrays. rollout: `[T, N]`. whole_episodes: whether every
    column of it is one episode. sizes: of the derivatives, where there are some. memory: of the policy.
    """
    columns, whole = rollout.columns, eqx.combine(policy, static)
    # A restart cuts off the episode that came before; the row of a reset comes after an end anyway.
    breaks = jnp.concatenate([~jnp.asarray(columns.valid[1:]), jnp.zeros_like(columns.valid[:1])])
    truncated = columns.truncated | (breaks & ~columns.terminated)
    derivatives = None if sizes is None else _unpacked(jnp.asarray(columns.derivatives), sizes)
    fields = {**columns._asdict(), "truncated": truncated, "time": rollout.time, "derivatives": derivatives}
    carry = fields.pop("carry")
    made = Rollout(log_prob=jnp.zeros_like(columns.reward), **fields, whole_episodes=whole_episodes)
    if memory.size is not None:
        return memory.replayed(whole, made, jnp.asarray(carry[0]))
    # In one row, as the rules will see them: the same program then computes the same numbers once.
    obs, action = (jnp.reshape(x, (-1, *x.shape[2:])) for x in (columns.obs, columns.action))
    log_prob = action_distribution(whole, obs).log_prob(action)
    return dataclasses.replace(made, log_prob=log_prob.reshape(columns.reward.shape))


def _unpacked(numbers: Array, sizes: DerivativeSizes) -> Derivatives:
    """The derivatives of every step, `[T, N, ...]`, from their numbers one after the other."""
    edges = np.cumsum([math.prod(shape) for shape in sizes.shapes])[:-1]
    parts = jnp.split(numbers, edges, axis=-1)
    return Derivatives(
        *(part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, sizes.shapes, strict=True))
    )
