"""A Ray cluster of two nodes on this machine, for tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import slow_environment
from klimb.collect.host import ray_cluster
from klimb.environments.seeds import environment_seeds

# Ray reads both when it is imported: without, it would write a token into the home directory.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
pytest.importorskip("ray", reason="an extra of klimb")
OWN_ENVIRONMENTS = '''
import os
import pathlib
import gymnasium as gym
import numpy as np


class Counting(gym.Env):
    """Its state can't be captured: it is no environment of Gymnasium's own."""
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, False, False, {}


class Ending(Counting):
    """Ends its process, once for every file that says so."""
    def step(self, action):
        for file in pathlib.Path(os.environ["ENDINGS"]).glob("*"):
            file.unlink(missing_ok=True)
            os._exit(3)
        return super().step(action)


for cls in (Counting, Ending):
    gym.register(f"{cls.__name__}-v0", f"own_for_ray:{cls.__name__}", max_episode_steps=20)
'''


class TwoNodes:
    """A cluster of a head without CPUs, and nodes of one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": 10**8, "include_dashboard": False}
        with ray_cluster.quiet():
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
            self.nodes = [self.add(), self.add()]
        self.address = self._cluster.address

    def add(self, num_cpus: int = 1) -> Any:
        return self._cluster.add_node(num_cpus=num_cpus, object_store_memory=10**8)

    def kill(self, number: int) -> None:
        """A node dies, and another takes its place."""
        with ray_cluster.quiet():
            self._cluster.remove_node(self.nodes[number], allow_graceful=False)
            self.nodes[number] = self.add()

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(name="cluster", scope="module")
def two_nodes(tmp_path_factory) -> Iterator[TwoNodes]:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "own_for_ray.py").write_text(OWN_ENVIRONMENTS)
    (folder / "slow_for_tests.py").write_text(slow_environment.MODULE)
    (folder / "endings").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENDINGS", str(folder / "endings"))
        patch.setenv(slow_environment.SLOW_SEED, str(environment_seeds(0, 0, 4)[3]))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
        patch.syspath_prepend(folder)
        two = TwoNodes()
        yield two
        with ray_cluster.quiet():
            two.shutdown()
