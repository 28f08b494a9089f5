"""The complete simulator state of Gymnasium's own environments as plain data, and back, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from klimb.errors import RunError

State = dict[str, Any]

_MUJOCO = re.compile(r"gymnasium\.envs\.mujoco\.\w+_v[45]\.\w+Env")
_SUITS = ("C", "D", "H", "S")
_TOP_CARDS = ("A", "J", "Q", "K", *map(str, range(2, 10)))


def supported(env: gym.Env) -> bool:
    """Whether the state of an environment can be captured.

    It can for Gymnasium's classic control, toy text and MuJoCo (v4, v5) environments under the wrappers that
    `gymnasium.make` adds, `FlattenObservation` and klimb's own, with Gymnasium's own random number generator.
    Subclasses are not supported, because they may have further state.
    """
    *wrappers, inner = _layers(env)
    known = all(_kind(layer) in _WRAPPERS for layer in wrappers)
    generator = inner._np_random
    known &= generator is None or type(generator.bit_generator) is np.random.PCG64
    if not _MUJOCO.fullmatch(_kind(inner)):
        return known and _kind(inner) in _INNER
    # Plugins and MuJoCo's optional features (sleeping bodies) may have state that the integration state lacks.
    model = inner.model  # type: ignore[attr-defined]
    return known and model.opt.enableflags == 0 and model.nplugin == 0


def capture(env: gym.Env) -> State:
    """The complete state of an environment after a reset or a step, as plain data for JSON.

    Numbers are exact; they may be NaN or infinite where the simulation is, and integers may have 128 bits.

    Raises:
        RunError: the environment is not a supported one.
    """
    _require_support(env)
    *wrappers, inner = _layers(env)
    return {
        "kind": _kind(inner),
        "wrappers": [{"kind": _kind(layer), "values": _values(layer, _WRAPPERS[_kind(layer)])} for layer in wrappers],
        "random": _random_numbers(inner),
        "values": _physics(inner) if _is_mujoco(inner) else _values(inner, _INNER[_kind(inner)]),
    }


def restore(env: gym.Env, state: State) -> None:
    """Put a fresh copy of an environment into a captured state. Nothing is changed when this raises.

    env: of the same kind as the one that was captured; it need not have been reset. state: as `capture` returned it.
    Every later step and reset is then bit for bit what it would have been.

    Raises:
        RunError: the environment is not a supported one, or `state` is not a state of it.
    """
    _require_support(env)
    try:
        changes = list(_changes(env, state))
    except ValueError as error:
        raise RunError(f"the saved state does not fit the environment {env.unwrapped}: {error}") from error
    for change in changes:
        change()


@dataclass(frozen=True)
class _Attribute:
    """An attribute of a wrapper or an environment, and its form as plain data.

    plain: attribute ↦ plain data. value: (plain data, layer, name) ↦ attribute; raises ValueError for wrong data.
    """

    name: str
    plain: Callable[[Any], Any]
    value: Callable[[Any, gym.Env, str], Any]


def _layers(env: gym.Env) -> list[gym.Env]:
    """The wrappers, outermost first, and the innermost environment."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _kind(layer: gym.Env) -> str:
    # Comparing names instead of classes avoids imports. A subclass has another name.
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _is_mujoco(inner: gym.Env) -> bool:
    return _MUJOCO.fullmatch(_kind(inner)) is not None


def _require_support(env: gym.Env) -> None:
    if not supported(env):
        raise RunError(f"the simulator state of the environment {env} can't be saved or restored")


def _values(layer: gym.Env, attributes: tuple[_Attribute, ...]) -> State:
    return {attribute.name: attribute.plain(getattr(layer, attribute.name)) for attribute in attributes}


def _random_numbers(inner: gym.Env) -> State:
    state: Any = inner.np_random.bit_generator.state
    return {
        "seed": int(inner.np_random_seed),
        "state": state["state"]["state"],
        "increment": state["state"]["inc"],
        "has_uint32": state["has_uint32"],
        "uinteger": state["uinteger"],
    }


def is_mujoco(env: gym.Env) -> bool:
    """Whether an environment is one of Gymnasium's MuJoCo environments, under wrappers that `supported` knows.

    env: any, with its wrappers.
    """
    return supported(env) and _is_mujoco(_layers(env)[-1])


def physics_state(env: gym.Env) -> np.ndarray:
    """MuJoCo's integration state, which begins with the time, positions and velocities: `[S]`, in double precision.

    env: one that `is_mujoco`.
    """
    import mujoco

    inner: Any = env.unwrapped
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(inner.model, spec))
    mujoco.mj_getState(inner.model, inner.data, integration, spec)
    return integration


def set_physics_state(env: gym.Env, integration: np.ndarray) -> None:
    """Put MuJoCo into a state, with the poses and forces that follow from it.

    env: one that `is_mujoco`. integration: as `physics_state` returned it.
    """
    import mujoco

    inner: Any = env.unwrapped
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(inner.model, inner.data, integration, spec)
    # Computes what depends on the state, such as poses, for code that reads it before the next step. This also
    # overwrites the solver's warm start, so the state is set again.
    mujoco.mj_forward(inner.model, inner.data)
    mujoco.mj_setState(inner.model, inner.data, integration, spec)


def _physics(inner: Any) -> State:
    # After a step MuJoCo's poses of the bodies are those before its last integration. The environments read two of
    # them, `xpos` and `xipos`, before they simulate the next step; the simulation itself needs the integration state
    # alone. So these two are saved as well. Saving the state before each step and replaying the step would cost time
    # in every step, and fails after MuJoCo has reset a diverged simulation, which clears the controls.
    data = inner.data
    return {
        "integration": physics_state(inner).tolist(),
        "xpos": data.xpos.ravel().tolist(),
        "xipos": data.xipos.ravel().tolist(),
    }


def _changes(env: gym.Env, state: State) -> Iterator[Callable[[], None]]:
    """The changes that put `env` into `state`, one after the other. ValueError for data that is not a state of it."""
    *wrappers, inner = _layers(env)
    top = _record(state, ("kind", "wrappers", "random", "values"), "the state")
    if top["kind"] != _kind(inner):
        raise ValueError("it was saved from another kind of environment")
    saved = top["wrappers"]
    if not isinstance(saved, list) or len(saved) != len(wrappers):
        raise ValueError(f"`wrappers` must be a list of {len(wrappers)}")
    for layer, entry in zip(wrappers, saved, strict=True):
        record = _record(entry, ("kind", "values"), "a wrapper")
        if record["kind"] != _kind(layer):
            raise ValueError(f"it was saved under another wrapper than {type(layer).__name__}")
        yield from _set_values(layer, _WRAPPERS[_kind(layer)], record["values"])
    yield _set_random_numbers(inner, top["random"])
    if _is_mujoco(inner):
        yield _set_physics(inner, top["values"])
    else:
        yield from _set_values(inner, _INNER[_kind(inner)], top["values"])


def _set_values(layer: gym.Env, attributes: tuple[_Attribute, ...], saved: Any) -> Iterator[Callable[[], None]]:
    record = _record(saved, tuple(attribute.name for attribute in attributes), f"`values` of {type(layer).__name__}")
    for attribute in attributes:
        value = attribute.value(record[attribute.name], layer, attribute.name)
        yield partial(setattr, layer, attribute.name, value)


def _set_random_numbers(inner: gym.Env, saved: Any) -> Callable[[], None]:
    record = _record(saved, ("seed", "state", "increment", "has_uint32", "uinteger"), "`random`")
    limits = {"state": 2**128, "increment": 2**128, "has_uint32": 2, "uinteger": 2**32}
    number = {name: _integer(record[name], 0, limit, name) for name, limit in limits.items()}
    if number["increment"] % 2 == 0:
        raise ValueError("`increment` must be odd")
    seed = _integer(record["seed"], -1, None, "seed")
    bits = np.random.PCG64(0)
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": number["state"], "inc": number["increment"]},
        "has_uint32": number["has_uint32"],
        "uinteger": number["uinteger"],
    }

    def change() -> None:
        inner._np_random = np.random.Generator(bits)
        inner._np_random_seed = seed

    return change


def _set_physics(inner: Any, saved: Any) -> Callable[[], None]:
    import mujoco

    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    model, data = inner.model, inner.data
    record = _record(saved, ("integration", "xpos", "xipos"), "`values`")
    integration = _floats(record["integration"], mujoco.mj_stateSize(model, spec), "integration")
    poses = {name: _floats(record[name], getattr(data, name).size, name) for name in ("xpos", "xipos")}

    def change() -> None:
        mujoco.mj_resetData(model, data)
        set_physics_state(inner, integration)
        for name, pose in poses.items():
            getattr(data, name)[:] = pose.reshape(-1, 3)

    return change


def _record(value: Any, keys: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"{what} must hold exactly {', '.join(keys) or 'nothing'}")
    return value


def _integer(value: Any, low: int, limit: int | None, name: str) -> int:
    if type(value) is not int or value < low or (limit is not None and value >= limit):
        below = "" if limit is None else f" and below {limit}"
        raise ValueError(f"`{name}` must be a whole number from {low}{below}")
    return value


def _floats(value: Any, length: int, name: str, dtype: str = "float64") -> np.ndarray:
    if not isinstance(value, list) or len(value) != length or not all(type(x) in (int, float) for x in value):
        raise ValueError(f"`{name}` must be a list of {length} numbers")
    try:
        with np.errstate(over="ignore"):
            return np.array([float(x) for x in value], dtype)
    except OverflowError:
        raise ValueError(f"`{name}` holds a number that is too large") from None


def _flag(name: str) -> _Attribute:
    return _Attribute(name, bool, _read_flag)


def _read_flag(saved: Any, layer: gym.Env, name: str) -> bool:
    if type(saved) is not bool:
        raise ValueError(f"`{name}` must be true or false")
    return saved


def _count(name: str, limit: Callable[[Any], int] | None = None, optional: bool = False) -> _Attribute:
    """An integer from 0 to below `limit(layer)`; or None too where it is `optional`."""
    return _Attribute(name, _plain_count, partial(_read_count, limit=limit, optional=optional))


def _plain_count(value: Any) -> int | None:
    return None if value is None else int(value)


def _read_count(
    saved: Any, layer: gym.Env, name: str, *, limit: Callable[[Any], int] | None, optional: bool
) -> int | None:
    if optional and saved is None:
        return None
    return _integer(saved, 0, None if limit is None else int(limit(layer)), name)


def _vector(name: str, length: int) -> _Attribute:
    """An array of `length` numbers, in single or double precision."""
    return _Attribute(name, _plain_vector, partial(_read_vector, length=length))


def _plain_vector(value: Any) -> State:
    array = np.asarray(value)
    return {"dtype": array.dtype.name, "numbers": array.tolist()}


def _read_vector(saved: Any, layer: gym.Env, name: str, *, length: int) -> np.ndarray:
    record = _record(saved, ("dtype", "numbers"), f"`{name}`")
    dtype = record["dtype"]
    if not isinstance(dtype, str) or dtype not in ("float32", "float64"):
        raise ValueError(f"`{name}` must be of dtype float32 or float64")
    return _floats(record["numbers"], length, name, dtype)


def _optional_float(name: str) -> _Attribute:
    return _Attribute(name, lambda value: None if value is None else float(value), _read_optional_float)


def _read_optional_float(saved: Any, layer: gym.Env, name: str) -> float | None:
    return None if saved is None else float(_floats([saved], 1, name)[0])


def _hand(name: str) -> _Attribute:
    """Blackjack cards: integers from 1 to 10."""
    return _Attribute(name, lambda cards: [int(card) for card in cards], _read_hand)


def _read_hand(saved: Any, layer: gym.Env, name: str) -> list[int]:
    if not isinstance(saved, list) or not 2 <= len(saved) <= 32:
        raise ValueError(f"`{name}` must be a list of 2 to 32 cards")
    return [_integer(card, 1, 11, name) for card in saved]


def _word(name: str, known: tuple[str, ...]) -> _Attribute:
    """One of the strings `known`."""
    return _Attribute(name, str, partial(_read_word, known=known))


def _read_word(saved: Any, layer: gym.Env, name: str, *, known: tuple[str, ...]) -> str:
    if not isinstance(saved, str) or saved not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}")
    return saved


def _table_state() -> tuple[_Attribute, ...]:
    """The state of an environment with a transition table."""
    return (
        _count("s", lambda layer: layer.observation_space.n),
        _count("lastaction", lambda layer: layer.action_space.n, optional=True),
    )


_WRAPPERS: dict[str, tuple[_Attribute, ...]] = {
    "gymnasium.wrappers.common.TimeLimit": (_count("_elapsed_steps", optional=True),),
    "gymnasium.wrappers.common.OrderEnforcing": (_flag("_has_reset"),),
    # Not `close_called`, which belongs to the copy, not to its state.
    "gymnasium.wrappers.common.PassiveEnvChecker": tuple(
        _flag(f"checked_{call}") for call in ("reset", "step", "render")
    ),
    "gymnasium.wrappers.transform_observation.FlattenObservation": (),
    "klimb.environments.adapters.action_masks.ActionMask": (_count("_time"),),
}

_CLASSIC, _TOY = "gymnasium.envs.classic_control", "gymnasium.envs.toy_text"
_INNER: dict[str, tuple[_Attribute, ...]] = {
    f"{_CLASSIC}.cartpole.CartPoleEnv": (_vector("state", 4), _count("steps_beyond_terminated", optional=True)),
    f"{_CLASSIC}.pendulum.PendulumEnv": (_vector("state", 2), _optional_float("last_u")),
    # A tuple after a step and an array after a reset; Gymnasium reads its numbers only.
    f"{_CLASSIC}.mountain_car.MountainCarEnv": (_vector("state", 2),),
    f"{_CLASSIC}.continuous_mountain_car.Continuous_MountainCarEnv": (_vector("state", 2),),
    f"{_CLASSIC}.acrobot.AcrobotEnv": (_vector("state", 4),),
    f"{_TOY}.frozen_lake.FrozenLakeEnv": _table_state(),
    f"{_TOY}.cliffwalking.CliffWalkingEnv": _table_state(),
    f"{_TOY}.taxi.TaxiEnv": (
        *_table_state(),
        _flag("fickle_step"),
        _count("taxi_orientation", lambda layer: layer.action_space.n),
    ),
    f"{_TOY}.blackjack.BlackjackEnv": (
        _hand("dealer"),
        _hand("player"),
        _word("dealer_top_card_suit", _SUITS),
        _word("dealer_top_card_value_str", _TOP_CARDS),
    ),
}
