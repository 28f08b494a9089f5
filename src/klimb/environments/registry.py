"""`make`: from a name to an environment; and the table of built-in environments."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from klimb import modules
from klimb.environments import mujoco_warnings
from klimb.environments.adapters.wrappers import NamedWrapper, split_name
from klimb.environments.base import CompiledEnvironment
from klimb.environments.faults import Trouble
from klimb.environments.host import HostEnvironment
from klimb.environments.suites.library import SUITES, make_suite
from klimb.errors import ConfigError, EnvironmentNotFound, KlimbError, MissingExtra, WrongObject, nearest, one_line

Environment = CompiledEnvironment | HostEnvironment

TOY_TEXT = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4")
"""Gymnasium's environments that have a transition table."""

BUILT_IN = {
    "CartPole-v1": ("klimb.environments.control.cartpole", "CartPole"),
    "Pendulum-v1": ("klimb.environments.control.pendulum", "Pendulum"),
    "MountainCarContinuous-v0": ("klimb.environments.control.mountain_car_continuous", "MountainCarContinuous"),
    "Acrobot-v1": ("klimb.environments.control.acrobot", "Acrobot"),
    "CartPoleSwingUp-v0": ("klimb.environments.control.cartpole_swing_up", "CartPoleSwingUp"),
    "PlanarReacher-v0": ("klimb.environments.control.reacher", "Reacher"),
    "LinearQuadratic-v0": ("klimb.environments.control.linear_quadratic", "LinearQuadratic"),
    **{name: ("klimb.environments.toy_text", "make_toy_text") for name in TOY_TEXT},
}
"""Compiled environments: (module, class or function). An id that Gymnasium has too is the same environment."""

PREFIXES = ("jax", "gymnasium", "envpool", *SUITES)
OF_NAMES = ("jax", "envpool", *SUITES)
"""Prefixes of environments that are made by name alone: no module of the user's is imported, and no wrapper fits."""

KNOWN_NAMESPACES = {"ALE": "ale_py"}
"""Gymnasium's namespaces and the packages that register their environments."""

GIVEN = "object"
"""Prefix of the recorded name of an environment object that `make` can't make from a name."""


def recorded_name(environment: str | Any) -> str:
    """The name of an environment in a run's configuration: one that makes the same environment, or `object:…`.

    environment: as `make` takes it.
    """
    if isinstance(environment, str):
        return environment
    if isinstance(environment, CompiledEnvironment) and _makes(environment.id, environment):
        return environment.id
    if isinstance(environment, HostEnvironment) and environment.env_spec is not None:
        return environment.id
    own = _own_name(environment)
    if own is not None:
        return own
    settings = ", ".join(
        f"{field.name}={getattr(environment, field.name)!r}"
        for field in (dataclasses.fields(environment) if dataclasses.is_dataclass(environment) else ())
        if field.repr and getattr(environment, field.name) != field.default
    )
    return f"{GIVEN}:{one_line(environment.id, 60)}" + (f"({one_line(settings, 100)})" if settings else "")


def canonical_name(name: str) -> str:
    """A name with its prefix: gymnasium:Hopper-v5 for Hopper-v5. Nothing is made or imported.

    name: as `make` takes it; whether there is such an environment is not looked up.
    """
    base, wrappers = split_name(name)
    if modules.module_of(base) is not None:
        return name
    return f"jax:{name}" if name in BUILT_IN else "+".join([f"gymnasium:{base}", *wrappers])


def _makes(name: str, environment: CompiledEnvironment) -> bool:
    """Whether a built-in name makes an environment equal to this one."""
    prefix, _, identifier = name.partition(":")
    if prefix in SUITES:
        return _makes_suite(name, environment)
    if prefix != "jax" or identifier not in BUILT_IN:
        return False
    made = _built_in(identifier)
    return type(made) is type(environment) and (made == environment or identifier in TOY_TEXT)


def _makes_suite(name: str, environment: CompiledEnvironment) -> bool:
    """Whether the name of a library's environment makes this one: with the same object of the library's class."""
    prefix, _, identifier = name.partition(":")
    try:
        return make_suite(prefix, identifier) is environment
    except KlimbError:
        return False


def _own_name(environment: Environment) -> str | None:
    """`module:Class` of an environment of the user's own that is what its class makes without arguments."""
    name = modules.name_of(type(environment))
    if name is None or name.startswith("klimb."):
        return None
    try:
        return name if type(environment)() == environment else None
    except TypeError:
        return None


def make(environment: str | Any) -> Environment:
    """The environment of a name; an environment object is returned as it is.

    environment: the object, or a name of one of these forms.

    jax:ID          built in, compiled: CartPole-v1, Pendulum-v1, MountainCarContinuous-v0, Acrobot-v1; klimb's own
                    CartPoleSwingUp-v0, PlanarReacher-v0, LinearQuadratic-v0; and from their tables FrozenLake-v1,
                    FrozenLake8x8-v1, CliffWalking-v1, Taxi-v4
    gymnax:ID       compiled, from gymnax; and in the same way brax:, playground:, jumanji:, craftax:, navix: and pgx:,
                    each with the extra of its name; some take options, brax:ant(backend=spring)
    gymnasium:ID    any Gymnasium id, stepped in Python
    envpool:ID      stepped in EnvPool's threads (extra `envpool`)
    module:NAME     a class or function of `module` that makes a klimb environment; else an id that `module` registers
                    with Gymnasium when it is imported (Gymnasium's own syntax)
    ID              the built-in one where id and version are the same, else Gymnasium's

    Behind the name of a Gymnasium environment may stand wrappers, innermost first: `ID+module:Wrapper+…`, each with
    arguments by keyword if it needs some: `gymnasium.wrappers:TimeLimit(max_episode_steps=50)`.

    Raises EnvironmentNotFound, with the nearest name, when there is none of this name, and MissingExtra, with the
    extra to install, when a package is missing; WrongObject for anything but a name or an environment.
    """
    if isinstance(environment, (CompiledEnvironment, HostEnvironment)):
        return environment
    if not isinstance(environment, str):
        raise WrongObject(_no_environment(environment))
    base, wrappers = split_name(environment)
    if wrappers:
        return _wrapped(environment, base, wrappers)
    prefix, separator, name = environment.partition(":")
    if prefix == GIVEN:
        raise EnvironmentNotFound(
            f"the run was trained in an environment object, {one_line(name)}, that can't be made from a name: give it "
            "with env= in Python, or another environment with --env"
        )
    if not separator:
        return _built_in(environment) if environment in BUILT_IN else _gymnasium(environment)
    if prefix == "jax":
        return _built_in(name)
    if prefix in SUITES:
        return make_suite(prefix, name)
    if prefix == "envpool":
        from klimb.environments.adapters.envpool import make_envpool

        return make_envpool(name)
    return _gymnasium(environment.removeprefix("gymnasium:"))


def _no_environment(given: Any) -> str:
    """What to write instead of an object that is no environment."""
    if isinstance(given, type) and issubclass(given, CompiledEnvironment | HostEnvironment):
        return f"the environment is the class {given.__name__} itself, not an instance of it: {given.__name__}()"
    return (
        f"an environment is a name or a klimb environment, not {type(given).__name__}; wrap a Gymnasium "
        "environment with klimb.GymnasiumEnvironment.from_maker(name, make)"
    )


def make_named_in(source: str | Path, name: str, *, trust: bool) -> Environment:
    """`make` for a name that stands in a file.

    source: the file. name: of the environment. trust: whether the name may import any module; without it
    `require_trust` decides.
    """
    if not trust:
        require_trust(name, source)
    return make(name)


def require_trust(name: str, source: str | Path) -> None:
    """UntrustedEnvironment when making an environment that a file names would import a module.

    name: of the environment. source: the file.
    """
    base, wrappers = split_name(name)
    if imported_module(base) is not None:
        modules.require_trust(base.removeprefix("gymnasium:"), source, "environment")
    # Gymnasium's own wrappers as well: RecordVideo writes files where it is told to.
    for text in wrappers:
        modules.require_trust(NamedWrapper.read(text).name, source, "wrapper")


def imported_module(name: str) -> str | None:
    """A module that an environment's name, or that of a wrapper, makes klimb import; None when there is none."""
    base, wrappers = split_name(name)
    if base.partition(":")[0] in (*OF_NAMES, GIVEN):
        return None
    own = [NamedWrapper.read(text).name for text in wrappers]
    return next(filter(None, map(modules.module_of, [base.removeprefix("gymnasium:"), *own])), None)


def _built_in(name: str) -> CompiledEnvironment:
    if name not in BUILT_IN:
        raise EnvironmentNotFound(f"there is no built-in environment {name[:80]!r}{nearest(name[:80], BUILT_IN)}")
    module, attribute = BUILT_IN[name]
    maker = getattr(importlib.import_module(module), attribute)
    return maker(name) if name in TOY_TEXT else maker()


def _made_by(maker: Any, name: str) -> Environment:
    """The environment that a class or function of the user's makes, without arguments; or the object itself."""
    try:
        made = maker() if callable(maker) else maker
    except KlimbError:
        raise
    except Exception as error:
        trouble = Trouble.of(error, "make")
        raise trouble.fault(f"{name[:80]} can't be made") from trouble.error
    if not isinstance(made, CompiledEnvironment | HostEnvironment):
        raise EnvironmentNotFound(
            f"{name[:80]!r} makes {type(made).__name__}, which is not a klimb environment: see "
            "docs/own-environment.md; a Gymnasium environment is registered with Gymnasium, and named by its id"
        )
    return made


def _namespace_hint(identifier: str) -> str:
    """How an id of a namespace becomes known, which a package registers when it is imported."""
    namespace, separator, _ = identifier.rpartition("/")
    module = KNOWN_NAMESPACES.get(namespace, "MODULE")
    return f"; name the module that registers it, {module}:{identifier}" if separator else ""


def _wrapped(name: str, base: str, wrappers: tuple[str, ...]) -> Environment:
    """A Gymnasium environment in wrappers. name: of all. base: of the environment. wrappers: innermost first."""
    prefix = base.partition(":")[0] if modules.module_of(base) is not None else ""
    if prefix in (*OF_NAMES, GIVEN):
        raise ConfigError(
            f"{one_line(name, 80)}: wrappers are Gymnasium's, and are for its environments: write gymnasium:ID"
        )
    return _gymnasium(base.removeprefix("gymnasium:"), wrappers)


def _gymnasium(name: str, wrappers: tuple[str, ...] = ()) -> Environment:
    import gymnasium as gym

    from klimb.environments.adapters.gymnasium import GymnasiumEnvironment

    module, separator, identifier = name.rpartition(":")
    if separator and not modules.is_importable(module):
        known = ", ".join(f"{prefix}:" for prefix in PREFIXES)
        raise EnvironmentNotFound(
            f"{name[:80]!r} names neither an importable module nor one of klimb's prefixes ({known})"
            f"{nearest(module[:80], PREFIXES)}"
        )
    if separator:
        own = getattr(modules.import_module(module), identifier, None)
        if own is not None and wrappers:
            raise ConfigError(
                f"{name[:80]} is no Gymnasium environment: wrappers are for those of Gymnasium's registry"
            )
        if own is not None:
            return _made_by(own, name)
    if identifier not in gym.registry:
        hint = nearest(identifier[:80], [*gym.registry, *BUILT_IN]) or _namespace_hint(identifier[:80])
        raise EnvironmentNotFound(f"there is no environment {identifier[:80]!r}{hint}")
    mujoco_warnings.log_warnings(gym.registry[identifier].entry_point)
    try:
        full = "+".join([f"gymnasium:{name}", *wrappers])
        return GymnasiumEnvironment.from_registry(full, identifier, module if separator else None, wrappers)
    # Gymnasium raises an error of its own for most missing packages, and a plain ImportError for a few.
    except (gym.error.DependencyNotInstalled, ImportError) as missing:
        raise MissingExtra(
            f"{name} needs a package that is not installed ({str(missing).splitlines()[0]}); for the MuJoCo "
            "environments: pip install 'klimb[mujoco]'"
        ) from missing
