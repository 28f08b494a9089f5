"""Extras: a package that is missing is named together with the extra that brings it, and every extra is in messages."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import klimb
from klimb.collect.host.ray_cluster import load_ray
from klimb.environments.suites.library import SUITES
from klimb.export.onnx_file import _runtime
from klimb.export.onnx_graph import onnx_package
from klimb.runs.hub import hub_package
from klimb.runs.tracker_name import KNOWN
from klimb.tracking.registry import sinks_of
from klimb.training.optuna_study import load_optuna

ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
PINNED = {
    re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
}
OF_OTHERS = {"suites", "all"}
"""Extras that consist of others."""
FOR_DEVELOPERS = {"docs", "dev"}
"""Extras that no part of klimb asks for."""

PACKAGES = {"playground": "mujoco_playground"}
"""What is imported where that has not the name of its extra."""
ENVIRONMENTS = {suite: f"{suite}:nothing" for suite in SUITES} | {"craftax": "craftax:Craftax-Symbolic-v1"}
"""A name for each library of compiled environments; Craftax is imported for names that it has."""


@pytest.mark.parametrize(
    ("extra", "package", "use"),
    [
        ("envpool", "envpool", lambda: klimb.make("envpool:CartPole-v1")),
        ("hub", "huggingface_hub", hub_package),
        ("mujoco", "mujoco", lambda: klimb.make("Hopper-v5")),
        ("offline", "minari", lambda: klimb.load_demonstrations("minari:D4RL/pointmaze/umaze-v2")),
        ("onnx", "onnx", onnx_package),
        ("onnx", "onnxruntime", _runtime),
        ("ray", "ray", load_ray),
        ("tune", "optuna", load_optuna),
        ("mlflow", "mlflow", lambda: sinks_of(["mlflow"])),
        ("wandb", "wandb", lambda: sinks_of(["wandb"])),
        *((suite, PACKAGES.get(suite, suite), partial(klimb.make, ENVIRONMENTS[suite])) for suite in SUITES),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, extra: str, package: str, use: Callable[[], Any]
) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(klimb.MissingExtra, match=re.escape(f"pip install 'klimb[{extra}]'")) as raised:
        use()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - OF_OTHERS - FOR_DEVELOPERS))
def test_every_extra_is_named_where_it_is_missing(extra: str) -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "klimb").rglob("*.py"))
    hint = rf"klimb\[{extra}\]"
    if extra in {*SUITES, "stoa"}:
        hint = r"klimb\[(\{extra\}|SUITE)\]"
    elif extra in KNOWN:  # trackers
        hint = r"klimb\[\{kind\}\]"
    assert re.search(hint, source), f"no message of klimb says pip install 'klimb[{extra}]'"


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_package_of_an_extra_has_a_pin(extra: str) -> None:
    names = {re.split(r"[\[<>=!~; ]", one, maxsplit=1)[0] for one in EXTRAS[extra]}
    missing = {name for name in names if re.sub(r"[-_.]+", "-", name).lower() not in {*PINNED, "klimb"}}
    assert not missing, f"constraints.txt does not pin {missing}"


@pytest.mark.parametrize("extra", sorted(OF_OTHERS))
def test_extras_of_others_name_extras_that_there_are(extra: str) -> None:
    named = re.fullmatch(r"klimb\[(.*)\]", EXTRAS[extra][0])
    assert named is not None
    assert set(named[1].split(",")) <= EXTRAS.keys() - OF_OTHERS
