"""Collecting from host environments: decisions in NumPy, whole rollouts into arrays made beforehand.

Where the environment can be made elsewhere, worker processes step it and decide for themselves; else it is stepped
here. Either way JAX is asked for a rollout's noise once before it and for its log-probs once after.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from klimb.collect.episodes import EpisodeSummary, EpisodeTally
from klimb.collect.host.numpy_policy import HostPolicy, HostPolicySpec
from klimb.collect.host.stepping import Columns, Decide, Stepper
from klimb.collect.host.workers import Workers
from klimb.environments.adapters.gymnasium import copy_seeds
from klimb.environments.host import Fault, HostEnvironment
from klimb.errors import RunError
from klimb.policies.networks import NetworkPolicy
from klimb.policies.policy import action_distribution
from klimb.types import Rollout

logger = logging.getLogger("klimb")


class HostRollout(NamedTuple):
    """What the environments have to say of a rollout: a `Rollout` but for the log-probs. `[K, T, N, ...]`."""

    columns: Columns
    time: np.ndarray


class VectorCollector:
    """`num_envs` copies of a host environment for each of K seeds, `num_steps` steps of each a rollout.

    Everything it returns has the leading axis of seeds: Rollout leaves are `[K, T, N, ...]`.

    workers: processes to step the copies in, where the environment and the policy allow it (a registered Gymnasium
    environment, a `NetworkPolicy`); 0 for this process.
    restart: start an environment with a fault anew, its rows not valid; else that is an EnvironmentFault.
    timeout: seconds that a worker process may take for a rollout.
    """

    def __init__(
        self,
        environment: HostEnvironment,
        policy_static: PyTree,
        *,
        num_seeds: int,
        num_envs: int,
        num_steps: int,
        workers: int = 0,
        restart: bool = False,
        timeout: float = 300.0,
    ) -> None:
        self.shape = (num_steps, num_seeds, num_envs)
        self.action_space = environment.action_space
        self._observation_shape = environment.observation_space.shape
        self._static = policy_static
        self._spec = host_policy_spec(policy_static)
        self._draw = jax.jit(partial(_draw, policy_static, self.shape, self._observation_shape))
        self._act = jax.jit(partial(_act, policy_static))
        self._complete = jax.jit(jax.vmap(partial(complete, policy_static)))
        self._tally = EpisodeTally(num_seeds, num_envs)
        self._workers: Workers | None = None
        self._stepper: Stepper | None = None
        discrete = isinstance(self.action_space, gymnasium.spaces.Discrete)
        self._layout = Columns.layout(self.shape, self._observation_shape, self.action_space.shape or (), discrete)
        self._start_workers: Callable[[], Workers] | None = None
        if workers > 0 and environment.env_spec is not None and self._spec is not None:
            self._start_workers = partial(
                Workers,
                environment.env_spec,
                self._spec,
                self.shape,
                self._layout,
                workers,
                restart=restart,
                timeout=timeout,
            )
        self._make_vector = partial(environment.vector, num_seeds * num_envs, restart=restart)
        self._thread = ThreadPoolExecutor(1, "klimb-collect")
        self._begun: Callable[[], tuple[Columns, list[Fault]]] | None = None
        self._state_known = True

    def reset(self, seed: int) -> None:
        """Start all episodes anew. Episodes that were running are not counted as finished."""
        _, num_seeds, num_envs = self.shape
        if self.under_way:  # nobody wants it any more
            self.finish()
        self._open()
        self._tally.reset()
        if self._workers is not None:
            self._workers.reset(copy_seeds(seed, num_seeds * num_envs).reshape(num_seeds, num_envs))
        else:
            assert self._stepper is not None
            self._stepper.start_from(self._stepper.vector.reset(seed))

    def capture(self) -> dict[str, Any] | None:
        """Where all copies stand, as plain data; None where that can't be saved. Not while a rollout is under way."""
        source = self._workers or self._stepper
        captured = source.capture() if source is not None and self._state_known else None
        return None if captured is None else {**captured, "tally": self._tally.capture()}

    def restore(self, seed: int, captured: dict[str, Any]) -> None:
        """Put all copies where `capture` found them. RunError when they can't be.

        seed: of those that have to be started anew later on.
        """
        self.reset(seed)
        source = self._workers or self._stepper
        assert source is not None
        try:
            self._tally.restore(captured["tally"])
            source.restore({name: captured[name] for name in ("states", "obs")})
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise RunError(
                f"the checkpoint does not say where the environments stood ({type(error).__name__})"
            ) from None

    def _open(self) -> None:
        """Make the environments, the first time that they are needed."""
        if self._workers is not None or self._stepper is not None:
            return
        if self._start_workers is not None:
            self._workers = self._start_workers()
        else:
            self._stepper = Stepper(self._make_vector(), slice(None), self.shape[1])

    def collect(self, keys: Key[Array, " K"], policy: PyTree) -> tuple[Rollout, EpisodeSummary]:
        """One rollout of every seed under its frozen policy (array leaves `[K, ...]`); `keys` is `[K]`."""
        policy = jax.tree.map(np.array, policy)
        self.begin(self.draw(keys, policy), policy, at_once=True)
        seen, episodes = self.finish()
        return self._complete(policy, seen), episodes

    def draw(self, keys: Key[Array, " K"], policy: PyTree) -> Array:
        """The noise of a rollout, `[T, K, N, ...]`: of the policy only the kind of distribution matters."""
        return self._draw(policy, keys)

    def begin(self, noise: Array, policy: PyTree, *, at_once: bool = False) -> None:
        """Begin a rollout, which goes on beside whatever this thread does next (unless `at_once`) until `finish`.

        `policy` is in NumPy: the arrays of a state are given up to the next one.
        """
        drawn = np.asarray(noise)
        assert self._begun is None, "finish comes before the next begin"
        # Where the environments stand is known again when this has ended well.
        self._state_known = False
        if self._workers is not None:
            self._workers.begin(_numbers(policy, self._static), drawn)
            self._begun = self._workers.finish
        elif at_once:
            rolled = self._roll(policy, drawn)
            self._begun = lambda: rolled
        else:
            self._begun = self._thread.submit(self._roll, policy, drawn).result

    def finish(self) -> tuple[HostRollout, EpisodeSummary]:
        """The rollout that was begun: `complete` makes a `Rollout` of it."""
        assert self._begun is not None, "begin comes before finish"
        begun, self._begun = self._begun, None
        columns, faults = begun()
        self._state_known = True
        time, summary = self._tally.count(columns.reward, columns.terminated | columns.truncated, columns.valid)
        summary = eqx.tree_at(lambda s: s.faults, summary, self._count(faults), is_leaf=lambda x: x is None)
        return HostRollout(*jax.tree.map(lambda column: np.swapaxes(column, 0, 1), (columns, time))), summary

    @property
    def under_way(self) -> bool:
        """Whether a rollout has been begun and not finished."""
        return self._begun is not None

    def rollout_shapes(self, policy: PyTree) -> Rollout:
        """A rollout of nothing, of the shapes of one seed's under a policy."""
        num_steps, _, num_envs = self.shape
        obs = jnp.zeros((num_envs, *self._observation_shape))
        action = jax.eval_shape(lambda o: action_distribution(policy, o).sample(jax.random.key(0)), obs)

        def rows(shape: tuple[int, ...], dtype: Any) -> Array:
            return jnp.zeros((num_steps, num_envs, *shape), dtype)

        flag, number = rows((), bool), rows((), jnp.float32)
        seen, acted = rows(obs.shape[1:], jnp.float32), rows(action.shape[1:], action.dtype)
        return Rollout(seen, acted, number, number, flag, flag, seen, flag, rows((), jnp.int32))

    def close(self) -> None:
        """Release the environments."""
        self._thread.shutdown()
        if self._workers is not None:
            self._workers.close()
        if self._stepper is not None:
            self._stepper.vector.close()

    def _count(self, faults: list[Fault]) -> np.ndarray:
        """Faults of each seed's copies, `[K]`; they are told in a line."""
        _, num_seeds, num_envs = self.shape
        if faults:
            more = f" ({len(faults)} in this rollout)" if len(faults) > 1 else ""
            logger.warning("environment %d: %s; it is started anew%s", faults[0].copy, faults[0].cause, more)
        return np.bincount([fault.copy // num_envs for fault in faults], minlength=num_seeds).astype(np.int32)

    def _roll(self, policy: PyTree, noise: np.ndarray) -> tuple[Columns, list[Fault]]:
        assert self._stepper is not None
        columns = Columns.empty(self._layout)
        self._stepper.roll(self._decide(policy, noise), columns)
        return columns, self._stepper.vector.take_faults()

    def _decide(self, policy: PyTree, noise: np.ndarray) -> Decide:
        if self._spec is not None:
            in_numpy = HostPolicy(self._spec, _numbers(policy, self._static))
            return lambda t, obs: in_numpy(obs, noise[t])

        def decide(t: int, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            action, taken = (np.asarray(x) for x in self._act(policy, obs, noise[t]))
            if isinstance(self.action_space, gymnasium.spaces.Box):
                taken = np.clip(taken, self.action_space.low, self.action_space.high)
            return action, taken

        return decide


def host_policy_spec(policy_static: PyTree) -> HostPolicySpec | None:
    """What NumPy has to know of a policy; None where it is not the one kind that has been written for NumPy."""
    # A subclass may be called otherwise.
    if type(policy_static) is not NetworkPolicy:
        return None
    return HostPolicySpec(
        sizes=policy_static.network.sizes,
        activation=policy_static.network.activation,
        clip=policy_static.normalizer.clip,
        actions=policy_static.actions,
        state_dependent_std=policy_static.state_dependent_std,
        tanh_squash=policy_static.tanh_squash,
    )


def _numbers(policy: PyTree, static: PyTree) -> np.ndarray:
    """A network policy's arrays, `[K, ...]`, in the order of `HostPolicySpec.shapes`: `[K, spec.size]`."""
    own = eqx.combine(policy, static)
    normalizer, network = own.normalizer, own.network
    layers = [x for pair in zip(network.weights, network.biases, strict=True) for x in pair]
    log_std = [] if own.log_std is None else [own.log_std]
    scale = np.sqrt(np.maximum(normalizer.variance, 1e-8))
    every = [normalizer.mean, scale, *layers, *log_std]
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in every], axis=1).astype(np.float32)


def _draw(
    static: PyTree, shape: tuple[int, int, int], observation: tuple[int, ...], policy: PyTree, keys: Array
) -> Array:
    """The noise of a whole rollout: `[T, K, N, ...]`."""
    num_steps, _, num_envs = shape

    def one_seed(arrays: PyTree, key: Array) -> Array:
        # Its shape depends on the kind of distribution alone.
        distribution = action_distribution(eqx.combine(arrays, static), jnp.zeros((num_envs, *observation)))
        return distribution.noise(key, (num_steps,))

    return jnp.swapaxes(jax.vmap(one_seed)(policy, keys), 0, 1)


def _act(static: PyTree, policy: PyTree, obs: Array, noise: Array) -> tuple[Array, Array]:
    """Actions of every seed, and as the environment gets them: obs `[K, n, O]`, noise `[K, n, ...]`."""

    def one_seed(arrays: PyTree, rows: Array, draws: Array) -> tuple[Array, Array]:
        distribution = action_distribution(eqx.combine(arrays, static), rows)
        action = distribution.sample_from(draws)
        return action, distribution.to_environment(action)

    return jax.vmap(one_seed)(policy, obs, noise)


def complete(static: PyTree, policy: PyTree, seen: HostRollout) -> Rollout:
    """One seed's rollout, with the log-probs of the policy that acted."""
    # In one row, as the rules will see them: the same program then computes the same numbers once.
    told = seen.columns
    obs, action = (jnp.reshape(x, (-1, *x.shape[2:])) for x in (told.obs, told.action))
    log_prob = action_distribution(eqx.combine(policy, static), obs).log_prob(action)
    # An environment that was started anew cuts off what came before; a reset's own row comes after an end anyway.
    breaks = jnp.concatenate([~jnp.asarray(told.valid[1:]), jnp.zeros_like(told.valid[:1])])
    truncated = told.truncated | (breaks & ~told.terminated)
    fields = {**told._asdict(), "truncated": truncated, "time": seen.time}
    return Rollout(log_prob=log_prob.reshape(told.reward.shape), **fields)
