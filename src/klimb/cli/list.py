"""klimb list: rules and environments."""

from __future__ import annotations

import sys

from klimb.environments.registry import BUILT_IN
from klimb.errors import ConfigError, nearest
from klimb.rules import RULES


def list_(arguments: list[str]) -> None:
    """klimb list [rules|environments]"""
    sections = {"rules": _list_rules, "environments": _list_environments}
    wanted = arguments[0] if arguments else None
    if wanted is not None and wanted not in sections:
        raise ConfigError(f"klimb lists {' or '.join(sections)}, not {wanted!r}{nearest(wanted, sections)}")
    for name, show in sections.items():
        if wanted in (None, name):
            show()


def _list_rules() -> None:
    print("rules (klimb train RULE ENV):")
    for name, rule in RULES.items():
        summary = sys.modules[rule.__module__].__doc__ or ""
        print(f"  {name:<20} {summary.splitlines()[0]}")


def _list_environments() -> None:
    print("environments, compiled and built in:")
    for name in BUILT_IN:
        print(f"  {name}")
    print("others, by prefix:")
    print("  gymnasium:ID   any environment registered with Gymnasium, stepped in Python")
    print("  gymnax:ID      compiled, from gymnax (pip install 'klimb[gymnax]')")
    print("  envpool:ID     stepped in EnvPool's threads (pip install 'klimb[envpool]')")
    print("  MODULE:ID      imports MODULE, which registers ID with Gymnasium")
