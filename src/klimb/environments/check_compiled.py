"""Checks of environments that are compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from klimb.environments.base import CompiledEnvironment, Transition
from klimb.environments.check_host import compared, episodes, numbers
from klimb.environments.faults import traceback_text
from klimb.environments.findings import Finding
from klimb.environments.trial import Trial, random_actions
from klimb.errors import one_line
from klimb.policies.action_spec import GaussianStyle
from klimb.policies.picture_observations import PictureObservations

COPIES, SPEED_STEPS = 64, 64
SLOW = 0.1
"""Seconds of a step of all copies from which on a single one is timed."""
DEAR = 0.2
"""A reset that costs more than this share of a step is worth a bank of first states."""
KINDS = {"float": jnp.inexact, "uint8": jnp.uint8, "a number": jnp.number, "bool": jnp.bool_}


def compiled_findings(environment: CompiledEnvironment, steps: int, seed: int) -> Iterator[Finding]:
    """All findings but those about the spaces.

    environment: to check. steps, seed: as for `check_env`.
    """
    actions = jnp.asarray(random_actions(environment.action_space, environment.actions, steps, seed))
    try:
        wrong = _wrong_shapes(environment, environment.actions.unflatten(actions[0]))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        text = one_line(f"{type(error).__name__}: {lines[0]}")
        yield Finding(
            "reset and step",
            "fails",
            f"they can't be traced: {text}",
            "write them in jax.numpy, with jnp.where instead of `if`, and no state outside the one they return",
            traceback=traceback_text(error),
        )
        return
    yield from wrong
    if wrong:
        return
    trial = _run(environment, actions, seed)
    ended = int((trial.terminated | trial.truncated).sum())
    yield Finding("reset and step", "ok", f"{steps} steps with random actions, {ended} episodes ended")
    yield from numbers(trial)
    # Traced again: whatever Python-side state or NumPy's random numbers have put into the program shows.
    yield compared(trial, _run(environment, actions, seed).digests, "a second program")
    yield episodes(trial, environment.max_episode_steps)
    yield _first_states(environment, seed)
    yield from _weak_types(environment, environment.actions.unflatten(actions[0]))
    yield _speed(environment, actions, seed)
    if len(environment.observations.shape) != 1 and not isinstance(environment.observations, PictureObservations):
        yield Finding(
            "images",
            "note",
            f"klimb's own networks can't read observations of shape {list(environment.observations.shape)}: pictures "
            "are boxes of bytes from 0 to 255, or of floats from 0 to 1 with channels",
            "use a network of your own: --network, docs/own-network.md",
        )
    yield Finding("state of the simulator", "ok", "is part of the checkpoint: a resumed run continues exactly")


def _wrong_shapes(environment: CompiledEnvironment, action: PyTree) -> list[Finding]:
    """What `reset` and `step` return in a wrong shape, dtype or structure."""
    key = jax.random.key(0)
    state, first = jax.eval_shape(environment.reset, key)
    after = jax.eval_shape(environment.step, key, state, action)
    if not isinstance(after, Transition):
        text = f"step must return a klimb.Transition; it returned {type(after).__name__}"
        return [Finding("reset and step", "fails", text)]
    shape, scalar = environment.observations.shape, ()
    observed = "float" if jnp.issubdtype(environment.observations.dtype, jnp.inexact) else "uint8"
    wanted = [
        ("the observation of reset", first, shape, observed),
        ("obs of step", after.obs, shape, observed),
        ("reward of step", after.reward, scalar, "a number"),
        ("terminated of step", after.terminated, scalar, "bool"),
        ("truncated of step", after.truncated, scalar, "bool"),
    ]
    found = [
        f"{name} must be {kind} of shape {wanted_shape}; it is {x.dtype} of shape {x.shape}"
        for name, value, wanted_shape, kind in wanted
        for x in [jax.eval_shape(jnp.asarray, value)]
        if x.shape != wanted_shape or not jnp.issubdtype(x.dtype, KINDS[kind])
    ]
    if _kinds(state) != _kinds(after.state):
        found.append("step must return a state of the same structure, shapes and dtypes as reset does")
    return [Finding("reset and step", "fails", text) for text in found]


def _weak_types(environment: CompiledEnvironment, action: PyTree) -> Iterator[Finding]:
    """Numbers of a state that are Python's in `reset` and an array's in `step`, or the reverse."""
    key = jax.random.key(0)
    state, _ = jax.eval_shape(environment.reset, key)
    after = jax.eval_shape(environment.step, key, state, action)
    both = zip(jax.tree.leaves_with_path(state), jax.tree.leaves(after.state), strict=True)
    names = [jax.tree_util.keystr(path) for (path, one), other in both if one.weak_type != other.weak_type]
    if names:
        yield Finding(
            "types of the state",
            "note",
            f"{one_line(', '.join(names), 80)}: Python's number in reset or step and an array in the other, so that "
            "programs are compiled twice",
            "start with jnp.int32(0) or jnp.float32(0) instead of 0",
        )


def _first_states(environment: CompiledEnvironment, seed: int) -> Finding:
    """Whether the first observation depends on the key."""
    first = jax.jit(jax.vmap(lambda key: environment.reset(key)[1]))(jax.random.split(jax.random.key(seed), 8))
    rows = np.asarray(first).reshape(8, -1)
    different = len(np.unique(rows, axis=0))
    text = "the same in every episode" if different == 1 else f"drawn: {different} different ones of 8"
    return Finding("first observations", "ok", text)


def _speed(environment: CompiledEnvironment, actions: Array, seed: int) -> Finding:
    """Steps per second of COPIES copies alone, with actions that are known, and what a reset costs."""
    reset, step = environment.reset_all, environment.step_all

    def measured(count: int) -> tuple[float, float]:
        """Seconds of a step and of a reset of all copies, in programs of `count` of them."""
        keys = jax.random.split(jax.random.key(seed), (count, COPIES))
        rows = jnp.resize(actions, (count, COPIES, *actions.shape[1:]))
        start, _ = jax.jit(reset)(keys[0])

        @jax.jit
        def steps(state: PyTree) -> PyTree:
            def one(state: PyTree, now: tuple) -> tuple[PyTree, Array]:
                key, action = now
                after = step(key, state, environment.actions.unflatten(action))
                return after.state, after.reward

            return jax.lax.scan(one, state, (keys, rows))

        resets = jax.jit(lambda keys: jax.lax.map(reset, keys))
        return _seconds(steps, start) / count, _seconds(resets, keys) / count

    a_step, a_reset = measured(1)
    if max(a_step, a_reset) < SLOW:  # else a robot with contacts on a CPU, of which one step says enough
        a_step, a_reset = measured(SPEED_STEPS)
    cost = a_reset / a_step
    text = f"{COPIES / a_step:,.0f} steps/s alone with {COPIES} copies; a reset costs {cost:.1f} × a step"
    if cost > DEAR and not (environment.bank_resets or environment.prefetch_resets):
        return Finding("speed", "note", text, "set bank_resets = True on the class: first states are then drawn ahead")
    return Finding("speed", "ok", text)


def _seconds(program: Callable[[Any], PyTree], given: Any) -> float:
    """Of a call, after one that compiles: the shortest of three, or one if that takes long."""
    found: list[float] = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(program(given))
        found.append(time.perf_counter() - began)
        if len(found) > 1 and found[-1] > SLOW:
            break
    return min(found[1:])


def _allowed(environment: CompiledEnvironment, key: Array, mask: Array) -> Array:
    """A random action that a mask allows. key: of the draw."""
    actions, style = environment.actions, GaussianStyle()
    outputs, log_std = jnp.zeros(actions.num_outputs(style)), jnp.zeros(actions.num_log_std)
    return actions.clip(actions.distribution(outputs, log_std, style, mask).sample(key))


def _kinds(state: PyTree) -> tuple:
    leaves, structure = jax.tree.flatten(state)
    return structure, [(x.shape, x.dtype) for x in leaves]


def random_steps(environment: CompiledEnvironment, actions: Array, seed: int) -> tuple:
    """Steps of one environment in a program of its own, with a reset after every end: of each the state before it, the
    action, the observation after it, reward, terminated and truncated; and the observation before it.

    environment: compiled. actions: `[T, *act]`; where there are action masks, others are drawn. seed: of all draws.
    """

    @jax.jit
    def steps(key: Array, actions: Array) -> tuple:
        def step(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
            state, obs = carry
            key, action = now
            key_step, key_reset = jax.random.split(key)
            mask = environment.observations.mask(obs)
            if mask is not None:
                action = _allowed(environment, jax.random.fold_in(key, 2), mask)
            after = environment.step(key_step, state, environment.actions.unflatten(action))
            ended = after.terminated | after.truncated
            fresh = environment.reset(key_reset)
            following = jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, (after.state, after.obs))
            return following, (state, action, after.obs, after.reward, after.terminated, after.truncated, obs)

        key_first, key_rest = jax.random.split(key)
        first = environment.reset(key_first)
        return jax.lax.scan(step, first, (jax.random.split(key_rest, len(actions)), actions))[1]

    return steps(jax.random.key(seed), actions)


def _run(environment: CompiledEnvironment, actions: Array, seed: int) -> Trial:
    """The same as a trial of a host environment."""
    _, action, next_obs, reward, terminated, truncated, obs = random_steps(environment, actions, seed)
    as_float = [np.asarray(x, np.float32) for x in (obs, next_obs, reward)]
    ended = np.asarray(terminated)
    return Trial(as_float[0], np.asarray(action), as_float[1], as_float[2], ended, np.asarray(truncated) & ~ended)
