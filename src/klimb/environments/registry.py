"""From a name to an environment: `make`, and the list of what is built in."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from klimb.environments.base import CompiledEnvironment
from klimb.environments.host import HostEnvironment
from klimb.errors import EnvironmentNotFound, MissingExtra, UntrustedEnvironment, nearest

Environment = CompiledEnvironment | HostEnvironment

TOY_TEXT = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4")
"""Gymnasium's problems that come with a table."""

BUILT_IN = {
    "CartPole-v1": ("klimb.environments.cartpole", "CartPole"),
    "Pendulum-v1": ("klimb.environments.pendulum", "Pendulum"),
    "MountainCarContinuous-v0": ("klimb.environments.mountain_car_continuous", "MountainCarContinuous"),
    "Acrobot-v1": ("klimb.environments.acrobot", "Acrobot"),
    "CartPoleSwingUp-v0": ("klimb.environments.cartpole_swing_up", "CartPoleSwingUp"),
    "PlanarReacher-v0": ("klimb.environments.reacher", "Reacher"),
    "LinearQuadratic-v0": ("klimb.environments.linear_quadratic", "LinearQuadratic"),
    **{name: ("klimb.environments.toy_text", "make_toy_text") for name in TOY_TEXT},
}
"""Compiled environments: (module, what makes one; of a table, by its id). An id that Gymnasium has too is the same."""

PREFIXES = ("jax", "gymnasium", "gymnax", "envpool")


def make(environment: str | Any) -> Environment:
    """The environment of a name, or the object itself when it is one already.

    jax:ID          built in, compiled: CartPole-v1, Pendulum-v1, MountainCarContinuous-v0, Acrobot-v1; klimb's own
                    CartPoleSwingUp-v0, PlanarReacher-v0, LinearQuadratic-v0; and from their tables FrozenLake-v1,
                    FrozenLake8x8-v1, CliffWalking-v1, Taxi-v4
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
    if prefix == "gymnax":
        from klimb.environments.gymnax_adapter import make_gymnax

        return make_gymnax(name)
    if prefix == "envpool":
        from klimb.environments.envpool_adapter import make_envpool

        return make_envpool(name)
    return _gymnasium(environment.removeprefix("gymnasium:"))


def make_named_in(source: str | Path, name: str, *, trust: bool) -> Environment:
    """`make` for a name that stands in the file `source`: as `require_trust` allows, or whatever it is with `trust`."""
    if not trust:
        require_trust(name, source)
    return make(name)


def require_trust(name: str, source: str | Path) -> None:
    """UntrustedEnvironment when to make the environment `name`, which stands in the file `source`, imports a module.

    A file is data until it names a module: what that runs when it is imported is up to whoever wrote it.
    """
    module = imported_module(name)
    if module is not None:
        raise UntrustedEnvironment(
            f"{str(source)!r} names the environment {name[:80]!r}, which imports the module {module[:80]!r} and "
            "so runs its code: if you trust it, give --trust-environment (trust_environment=True in Python)"
        )


def imported_module(name: str) -> str | None:
    """The module that the name of an environment asks to import; None when it asks for none."""
    if name.partition(":")[0] in ("jax", "gymnax", "envpool"):
        return None
    module, separator, _ = name.removeprefix("gymnasium:").rpartition(":")
    return module if separator else None


def _built_in(name: str) -> CompiledEnvironment:
    if name not in BUILT_IN:
        raise EnvironmentNotFound(f"there is no built-in environment {name[:80]!r}{nearest(name[:80], BUILT_IN)}")
    module, attribute = BUILT_IN[name]
    maker = getattr(importlib.import_module(module), attribute)
    return maker(name) if name in TOY_TEXT else maker()


def _gymnasium(name: str) -> HostEnvironment:
    import gymnasium as gym

    from klimb.environments.gymnasium_adapter import GymnasiumEnvironment

    module, separator, identifier = name.rpartition(":")
    if separator and not _is_importable(module):
        known = ", ".join(f"{prefix}:" for prefix in PREFIXES)
        raise EnvironmentNotFound(
            f"{name[:80]!r} names neither an importable module nor one of klimb's prefixes ({known})"
            f"{nearest(module[:80], PREFIXES)}"
        )
    if separator:
        importlib.import_module(module)
    if identifier not in gym.registry:
        raise EnvironmentNotFound(
            f"there is no environment {identifier[:80]!r}{nearest(identifier[:80], [*gym.registry, *BUILT_IN])}"
        )
    try:
        return GymnasiumEnvironment.from_registry(f"gymnasium:{name}", identifier, module if separator else None)
    # Gymnasium's own error for most packages; a plain ImportError for those that it imports unguarded.
    except (gym.error.DependencyNotInstalled, ImportError) as missing:
        raise MissingExtra(
            f"{name} needs a package that is not installed ({str(missing).splitlines()[0]}); for the MuJoCo "
            "environments: pip install 'klimb[mujoco]'"
        ) from missing


def _is_importable(module: str) -> bool:
    """Whether there is a module of this name. Of a module in a package, finding it imports the package."""
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # its package is none; a module that was made by hand
        return False
