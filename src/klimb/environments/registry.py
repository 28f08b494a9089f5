"""From a name to an environment: `make`, and the list of what is built in."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from klimb.environments.base import CompiledEnvironment
from klimb.environments.host import HostEnvironment
from klimb.errors import EnvironmentNotFound, MissingExtra, nearest

Environment = CompiledEnvironment | HostEnvironment

TOY_TEXT = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4")
"""Gymnasium's problems that come with a table."""

BUILT_IN = {
    "CartPole-v1": ("klimb.environments.cartpole", "CartPole"),
    "Pendulum-v1": ("klimb.environments.pendulum", "Pendulum"),
    "MountainCarContinuous-v0": ("klimb.environments.mountain_car_continuous", "MountainCarContinuous"),
    "Acrobot-v1": ("klimb.environments.acrobot", "Acrobot"),
    **{name: ("klimb.environments.toy_text", "make_toy_text") for name in TOY_TEXT},
}
"""Compiled environments by the id they share with Gymnasium: (module, what makes one; of a table, by its id)."""

PREFIXES = ("jax", "gymnasium", "gymnax", "envpool")


def make(environment: str | Any) -> Environment:
    """The environment of a name, or the object itself when it is one already.

    jax:ID          built in, compiled: CartPole-v1, Pendulum-v1, MountainCarContinuous-v0, Acrobot-v1, and from
                    their tables FrozenLake-v1, FrozenLake8x8-v1, CliffWalking-v1, Taxi-v4
    gymnax:ID       compiled, from gymnax (extra `gymnax`)
    gymnasium:ID    any Gymnasium id, stepped in Python
    envpool:ID      stepped in EnvPool's threads (extra `envpool`)
    module:ID       imports `module`, which registers ID with Gymnasium (Gymnasium's own syntax)
    ID              the built-in one where id and version are the same, else Gymnasium's

    Raises EnvironmentNotFound, with the nearest name, when there is none, and MissingExtra, with the extra to
    install, when what it needs is absent.
    """
    if isinstance(environment, (CompiledEnvironment, HostEnvironment)):
        return environment
    if not isinstance(environment, str):
        raise TypeError(
            f"an environment is a name or a klimb environment, not {type(environment).__name__}; wrap a Gymnasium "
            "environment with klimb.GymnasiumEnvironment.from_maker(name, make)"
        )
    prefix, separator, name = environment.partition(":")
    if not separator:
        return _built_in(environment) if environment in BUILT_IN else _gymnasium(environment)
    if prefix == "jax":
        return _built_in(name)
    if prefix == "gymnasium":
        return _gymnasium(name)
    if prefix == "gymnax":
        from klimb.environments.gymnax_adapter import make_gymnax

        return make_gymnax(name)
    if prefix == "envpool":
        from klimb.environments.envpool_adapter import make_envpool

        return make_envpool(name)
    return _gymnasium(environment)


def _built_in(name: str) -> CompiledEnvironment:
    if name not in BUILT_IN:
        raise EnvironmentNotFound(f"there is no built-in environment {name!r}{nearest(name, BUILT_IN)}")
    module, attribute = BUILT_IN[name]
    maker = getattr(importlib.import_module(module), attribute)
    return maker(name) if name in TOY_TEXT else maker()


def _gymnasium(name: str) -> HostEnvironment:
    import gymnasium as gym

    from klimb.environments.gymnasium_adapter import GymnasiumEnvironment

    module, separator, identifier = name.partition(":")
    if separator and importlib.util.find_spec(module) is None:
        known = ", ".join(f"{prefix}:" for prefix in PREFIXES)
        raise EnvironmentNotFound(
            f"{name!r} names neither an importable module nor one of klimb's prefixes ({known})"
            f"{nearest(module, PREFIXES)}"
        )
    if separator:
        importlib.import_module(module)
    identifier = identifier or name
    if identifier not in gym.registry:
        raise EnvironmentNotFound(
            f"there is no environment {identifier!r}{nearest(identifier, [*gym.registry, *BUILT_IN])}"
        )
    try:
        return GymnasiumEnvironment.from_registry(f"gymnasium:{name}", identifier, module if separator else None)
    # Gymnasium's own error for most packages; a plain ImportError for those that it imports unguarded.
    except (gym.error.DependencyNotInstalled, ImportError) as missing:
        raise MissingExtra(
            f"{name} needs a package that is not installed ({str(missing).splitlines()[0]}); for the MuJoCo "
            "environments: pip install 'klimb[mujoco]'"
        ) from missing
