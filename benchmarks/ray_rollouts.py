"""What does a Ray cluster cost? `make bench-ray` writes the tables of docs/scaling.md.

On this machine alone: rollouts of HalfCheetah-v5 by processes here and by as many actors in a Ray cluster, in turns;
the time of a rollout whose actor was killed; and a simulator that takes 5 ms per step, on 2 to 16 actors, which need no
core while they wait.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium as gym
import jax
import numpy as np

# Read when Ray is imported: without, it would write a token into the home directory.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", os.urandom(16).hex())
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

import ray

import klimb
from klimb import NetworkPolicy
from klimb.collect.host.collector import VectorCollector
from klimb.collect.host.ray_cluster import OWN, quiet
from results_file import HERE, write_results

PAGE = HERE.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- ray: written by make bench-ray -->\n", "<!-- end of ray -->\n"
WORKERS, NUM_ENVS, NUM_STEPS = 2, 16, 128
TURNS, ROLLOUTS = 61, 2
LONG_STEPS, LONG_TURNS = 512, 31
"""Steps per environment of a longer rollout: what a rollout costs in the cluster does not grow with them."""
STEP = 0.005
"""Seconds of a step of the slow simulator."""
ACTORS = (2, 4, 8, 16)


class Sleeping(gym.Env):
    """A simulator that takes its time."""

    observation_space = gym.spaces.Box(-1, 1, (8,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.observation_space.low, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(STEP)
        return self.np_random.uniform(-1, 1, 8).astype(np.float32), 0.0, False, False, {}


gym.register("Sleeping-v0", "ray_rollouts:Sleeping", max_episode_steps=100)


class Rollouts:
    """Rollouts of one policy. cluster: of Ray, or None for processes here."""

    def __init__(self, env: str, workers: int, cluster: str | None, num_steps: int = NUM_STEPS) -> None:
        environment = klimb.make(env)
        policy = NetworkPolicy(environment.observations, environment.actions, hidden=(64, 64), key=jax.random.key(0))
        arrays, static = eqx.partition(policy, eqx.is_array)
        self._policy = jax.tree.map(lambda x: np.asarray(x)[None], arrays)
        self.collector = VectorCollector(
            environment, static, arrays, num_seeds=1, num_envs=NUM_ENVS, num_steps=num_steps, workers=workers,
            restart=True, timeout=120.0, cluster=cluster,
        )  # fmt: skip
        self.collector.reset(np.arange(NUM_ENVS, dtype=np.uint32)[None])
        self._noise = np.asarray(self.collector.draw(jax.random.split(jax.random.key(0), 1), self._policy))
        self._steps = NUM_ENVS * num_steps
        self.rate(1)

    def rate(self, count: int) -> float:
        """Environment steps per second over some rollouts."""
        start = time.perf_counter()
        for _ in range(count):
            self.collector.begin(self._noise, self._policy)
            self.collector.finish()
        return count * self._steps / (time.perf_counter() - start)

    @property
    def actors(self) -> Any:
        """What steps in the cluster."""
        return self.collector._stepping

    def bytes_sent(self) -> dict[str, int]:
        """What travels per rollout, to all actors together and back."""
        layout = self.collector._layout
        columns = sum(spec.num_bytes for spec in layout)
        captured = len(json.dumps(self.collector.capture() or {}))
        parameters = self.actors._pack(self._policy).nbytes
        return {"noise": self._noise.nbytes, "parameters": parameters, "rollout": columns, "states": captured}


def throughput() -> dict[str, Any]:
    """Processes here and actors of the cluster, in turns."""
    here, there = (Rollouts("gymnasium:HalfCheetah-v5", WORKERS, cluster) for cluster in (None, "auto"))
    rates = in_turns(here, there, TURNS)
    usual = statistics.median(NUM_ENVS * NUM_STEPS / rate for _, rate in rates)
    lost = []
    for _ in range(3):
        pid = there.actors.places()[0].process
        there.collector.begin(there._noise, there._policy)
        os.kill(pid, 9)
        start = time.perf_counter()
        there.collector.finish()
        lost.append(time.perf_counter() - start)
    result = {
        "local": statistics.median(rate for rate, _ in rates),
        "ray": statistics.median(rate for _, rate in rates),
        "ratio": statistics.median(ray / local for local, ray in rates),
        "ratios": [round(ray / local, 3) for local, ray in rates],
        "rollout_seconds": usual,
        "rollout_seconds_actor_killed": statistics.median(lost),
        "bytes": there.bytes_sent(),
    }
    here.collector.close()
    there.collector.close()
    here, there = (Rollouts("gymnasium:HalfCheetah-v5", WORKERS, cluster, LONG_STEPS) for cluster in (None, "auto"))
    rates = in_turns(here, there, LONG_TURNS)
    result["long_ratios"] = [round(ray / local, 3) for local, ray in rates]
    result["long_ratio"] = statistics.median(ray / local for local, ray in rates)
    here.collector.close()
    there.collector.close()
    return result


def in_turns(here: Rollouts, there: Rollouts, count: int) -> list[tuple[float, float]]:
    """Steps per second of both. count: number of turns."""
    return [(here.rate(ROLLOUTS), there.rate(ROLLOUTS)) for _ in range(count)]


class Echo:
    """Answers with as many bytes as it is asked for."""

    def say(self, count: int) -> np.ndarray:
        return np.zeros(count, np.uint8)


def messages() -> dict[str, float]:
    """Seconds of a call with its answer, and of a byte of a large answer."""
    echo: Any = ray.remote(num_cpus=0)(Echo).remote()

    def seconds(size: int, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            ray.get(echo.say.remote(size))
        return (time.perf_counter() - start) / count

    seconds(8, 10)
    call = statistics.median(seconds(8, 50) for _ in range(5))
    large = 8 * 2**20
    return {
        "call_seconds": call,
        "byte_seconds": (statistics.median(seconds(large, 5) for _ in range(5)) - call) / large,
    }


def slow_simulator() -> list[dict[str, Any]]:
    """Steps per second of a simulator of 5 ms per step, beside what its waiting allows."""
    rows = []
    for actors in ACTORS:
        rollouts = Rollouts("ray_rollouts:Sleeping-v0", actors, "auto", num_steps=64)
        rate = statistics.median(rollouts.rate(2) for _ in range(3))
        rows.append({"actors": actors, "steps_per_second": rate, "efficiency": rate * STEP / actors})
        rollouts.collector.close()
    return rows


def page(fast: dict[str, Any], slow: list[dict[str, Any]], message: dict[str, float]) -> str:
    """The tables."""
    sent = fast["bytes"]
    lines = [
        "| HalfCheetah-v5, 16 environments, 2 workers | |",
        "|---|---|",
        f"| steps per second, processes on this machine | {fast['local']:,.0f} |",
        f"| steps per second, actors of a Ray cluster on this machine | {fast['ray']:,.0f} |",
        f"| ratio of the two, rollouts of {NUM_ENVS * NUM_STEPS} steps, median of {len(fast['ratios'])} turns "
        f"| {fast['ratio']:.2f} |",
        f"| the same for rollouts of {NUM_ENVS * LONG_STEPS} steps, median of {len(fast['long_ratios'])} turns "
        f"| {fast['long_ratio']:.2f} |",
        f"| a rollout of {NUM_ENVS * NUM_STEPS} steps | {fast['rollout_seconds']:.3f} s |",
        f"| the same, one of the two actors killed under way | {fast['rollout_seconds_actor_killed']:.2f} s |",
        f"| sent to the actors per rollout: parameters, noise | {_kib(sent['parameters'])}, {_kib(sent['noise'])} |",
        f"| sent back per rollout: rows, states of the simulators | {_kib(sent['rollout'])}, {_kib(sent['states'])} |",
        f"| a message to an actor and its answer | {1000 * message['call_seconds']:.2f} ms |",
        f"| transport of large answers | {1 / message['byte_seconds'] / 1e6:,.0f} MB/s |",
        "",
        "| actors, simulator of 5 ms per step | steps per second | efficiency |",
        "|---|---|---|",
        *(f"| {row['actors']} | {row['steps_per_second']:,.0f} | {row['efficiency']:.2f} |" for row in slow),
    ]
    return "\n".join(lines) + "\n"


def _kib(number: int) -> str:
    return f"{number / 1024:,.0f} KiB"


def main() -> None:
    """Measure, and write the page."""
    logging.getLogger("klimb").setLevel(logging.ERROR)
    with quiet():
        ray.init(address="local", num_cpus=max(ACTORS), log_to_driver=False, **OWN)
        fast, slow, message = throughput(), slow_simulator(), messages()
        ray.shutdown()
    write_results("ray_rollouts", environments=NUM_ENVS, fast=fast, slow=slow, message=message)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + page(fast, slow, message) + END + rest.split(END)[1], encoding="utf-8")
    print(page(fast, slow, message))


if __name__ == "__main__":
    main()
