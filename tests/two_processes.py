"""Two processes on this machine that train one policy together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
