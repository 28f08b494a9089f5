"""Two processes on this machine that train one policy together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np


class FailsInTheSecond(gym.Env[np.ndarray, int]):
    """A simulator that raises in its 200th step, in the second of several processes."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space: Any = gym.spaces.Discrete(2)
    _steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._steps == 200 and os.environ["JAX_PROCESS_ID"] == "1":
            raise RuntimeError("the simulator has failed")
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, False, self._steps % 20 == 0, {}


if "FailsInTheSecond-v0" not in gym.registry:
    gym.register("FailsInTheSecond-v0", "two_processes:FailsInTheSecond")

SMALL = ["--num-envs", "4", "--num-steps", "32", "--hidden", "8", "--critic-epochs", "2", "--eval-episodes", "1"]
SAME = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "eval_episodes": 1}


def start(words: Sequence[Any], directory: Path, count: int = 2) -> list[subprocess.Popen[bytes]]:
    """`klimb WORDS --distributed` in each of the processes; what process i says is in `said-i`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    directory.mkdir(parents=True, exist_ok=True)
    processes = []
    for number in range(count):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
        with (directory / f"said-{number}").open("wb") as said:
            command = [sys.executable, "-m", "klimb", *map(str, words), "--distributed"]
            processes.append(subprocess.Popen(command, stdout=said, stderr=said, env=environment))
    return processes


def finish(processes: list[subprocess.Popen[bytes]], timeout: float = 120) -> list[int]:
    """Wait for all; their exit statuses. None is left running."""
    try:
        return [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def said(directory: Path, number: int) -> list[str]:
    """The lines of klimb's that a process has printed; JAX and Gloo print lines of their own."""
    return [line for line in (directory / f"said-{number}").read_text().splitlines() if line.startswith("klimb:")]
