"""Names of things in modules of the user's own, `module:name`, when a file may have them imported, and versions."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from klimb.errors import ConfigError, UntrustedEnvironment, nearest, one_line

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
"""How paths begin on Windows that name their drive."""


def module_of(name: str) -> str | None:
    """The module of `module:name`; None for a name without one, such as a path, also one on a drive of Windows."""
    module, separator, _ = name.rpartition(":")
    return module if separator and not _DRIVE.match(name) else None


def is_importable(module: str) -> bool:
    """Whether there is a module of this name.

    Of a module in a package, finding it imports the package: ConfigError when the package's own code fails.
    """
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    package = module.rpartition(".")[0]
    if package:
        if not is_importable(package):
            return False
        import_module(package)
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # its package is none; a module that was made by hand
        return False


def import_module(module: str) -> ModuleType:
    """A module of the user's, imported. ConfigError, with error, file and line, when its own code fails.

    module: a name for which `is_importable` is true.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        file, line = frame.filename, frame.lineno
        if isinstance(error, SyntaxError) and error.filename is not None:
            file, line = error.filename, error.lineno
        raise ConfigError(
            f"importing {one_line(module, 80)} failed: {type(error).__name__}: {one_line(error)} "
            f"({one_line(file)}, line {line})"
        ) from error


def load(name: str, what: str) -> Any:
    """What `module:name` names; the module is imported, which runs its code.

    name: of a module, a colon, and an attribute of it (dots lead further inside). what: what it is used as, for
    messages. Raises ConfigError when there is no such module or attribute, or when the module's own code fails.
    """
    module, _, attribute = name.rpartition(":")
    if not is_importable(module):
        raise ConfigError(f"{what} {one_line(name, 80)!r}: there is no module {one_line(module, 80)!r} to import")
    value: Any = import_module(module)
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ConfigError(
                f"{what} {one_line(name, 80)!r}: {module} has no {one_line(part, 80)!r}{nearest(part, vars(value))}"
            )
        value = getattr(value, part)
    return value


def name_of(value: Any) -> str | None:
    """`module:name` of a class or function, by which another process finds the same one; None where none would."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module in (None, "__main__", "builtins") or "<" in name:
        return None
    found: Any = importlib.sys.modules.get(module)  # type: ignore[attr-defined]
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is value else None


def require_trust(name: str, source: str | Path, what: str) -> None:
    """UntrustedEnvironment when `name`, which stands in the file `source`, would import a module.

    A file is data until it names a module: what that runs when it is imported is up to whoever wrote it.
    what: what the name is used as.
    """
    module = module_of(name)
    if module is not None:
        raise UntrustedEnvironment(
            f"{str(source)!r} names the {what} {one_line(name, 80)!r}, which imports the module "
            f"{one_line(module, 80)!r} and so runs its code: if you trust it, give --trust-environment "
            "(trust_environment=True in Python)"
        )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed, by name.

    packages: names as they are installed or imported.
    """
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except (importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: an empty name
            continue
    return found
