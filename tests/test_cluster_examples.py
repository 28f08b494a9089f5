"""The example files for clusters: what Ray and Kubernetes ask of them, as far as it is known without a cluster."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="an extra of klimb")
import yaml

ROOT = Path(__file__).parent.parent
UP, KUBERNETES = (ROOT / "examples" / name for name in ("ray-up.yaml", "ray-kubernetes.yaml"))


def pinned_ray() -> str:
    (version,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return version


@pytest.fixture(scope="module")
def up() -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(UP.read_text()))
    validate_config(prepared)
    return prepared


def test_ray_up_takes_the_file(up):
    (kind,) = up["available_node_types"].values()
    assert kind["max_workers"] == len(up["provider"]["worker_ips"]) == 2


def test_its_commands_are_commands(up):
    """Shell that can be parsed, and options that `ray start` has; with the token on every machine."""
    from ray.scripts.scripts import cli

    lists = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    for line in (line for name in lists for line in up[name]):
        subprocess.run(["bash", "-n", "-c", line], check=True)
    starts = {}
    for name in lists[1:]:
        (words,) = [shlex.split(line) for line in up[name] if " start " in line]
        assert words[:2] == ["RAY_AUTH_MODE=token", "RAY_worker_niceness=0"]
        assert words[2].endswith("/bin/ray")
        starts[name] = cli.commands["start"].make_context("start", words[4:]).params
    head, worker = starts.values()
    assert head["head"]
    assert head["num_cpus"] == 0
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert list(up["file_mounts"]) == ["~/.ray/auth_token"]
    assert f"'ray=={pinned_ray()}'" in UP.read_text()


def test_kubernetes_gets_what_it_asks_for():
    """The fields that the custom resource of KubeRay requires, and volumes that exist."""
    manifest = yaml.safe_load(KUBERNETES.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    spec = manifest["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == pinned_ray()
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    images = set()
    for group in (spec["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert len(images) == 1
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    # The command in the comment asks for as many workers as there are CPUs.
    cpus = workers["replicas"] * int(container["resources"]["limits"]["cpu"])
    assert f"--workers {cpus} " in KUBERNETES.read_text()
    assert f"service/{manifest['metadata']['name']}-head-svc" in KUBERNETES.read_text()


@pytest.mark.parametrize("file", [UP, KUBERNETES], ids=lambda file: file.name)
def test_the_docs_name_the_file(file):
    assert f"(../examples/{file.name})" in (ROOT / "docs" / "scaling.md").read_text()
