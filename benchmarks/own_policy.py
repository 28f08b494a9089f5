"""What a policy class of one's own costs on Gymnasium environments: `make bench-own-policy`.

Three ways to step 16 copies of CartPole-v1: klimb's network in worker processes (NumPy), a policy of another class in
worker processes (its compiled program), and that policy in this process. A rollout of each in turn, many times over.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

import klimb
from klimb.training.program import Program
from results_file import write_results

ENV, STEPS, REPETITIONS = "gymnasium:CartPole-v1", 128, 15
WORKERS = 2


class OwnPolicy(eqx.Module):
    """klimb's network in a class that the worker processes do not know."""

    network: klimb.NetworkPolicy

    def __call__(self, obs: jax.Array) -> klimb.Categorical:
        return self.network(obs)


def child_memory() -> float:
    """MiB of the largest child process."""
    sizes = [0.0]
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            sizes += [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")]
    return max(sizes)


class Way:
    """A training that is run one iteration at a time. Only its rollouts are timed."""

    def __init__(self, own: bool, workers: int) -> None:
        environment = klimb.make(ENV)
        network = klimb.NetworkPolicy(4, environment.actions, key=jax.random.key(0))
        options = klimb.TrainOptions(env_steps=10**8, num_envs=16, num_steps=STEPS, workers=workers)
        config = klimb.RunConfig(ENV, klimb.TRPO(), options)
        start = time.perf_counter()
        self._program = Program(config, environment, OwnPolicy(network) if own else network)
        self._program.start(iteration=0)
        self._state = self._program.initial_state()
        self._rollouts = self._program.source._rollouts  # type: ignore[attr-defined]  # a part that is not for users
        self.roll()
        self.first = time.perf_counter() - start
        self.memory = child_memory() if workers else 0.0
        self.times: list[float] = []

    def roll(self) -> float:
        """Seconds of a rollout."""
        start = time.perf_counter()
        jax.block_until_ready(self._rollouts.next(self._state.policy)[0])
        seconds = time.perf_counter() - start
        # A training draws the next noise while it learns.
        self._rollouts.prepare()
        return seconds

    def close(self) -> None:
        self._program.close()


def main() -> None:
    """Print the table and keep it."""
    rows: dict[str, Any] = {}
    ways: dict[str, Way] = {}
    # One after the other, so that the largest child is one of the way's own.
    ways["own policy, this process"] = Way(True, 0)
    ways["klimb's network, workers"] = Way(False, WORKERS)
    ways["own policy, workers"] = Way(True, WORKERS)
    for _ in range(REPETITIONS):
        for way in ways.values():
            way.times.append(way.roll())
    base = ways["klimb's network, workers"]
    for name, way in ways.items():
        ratio = statistics.median(a / b for a, b in zip(way.times, base.times, strict=True))
        milliseconds = 1e3 * statistics.median(way.times)
        rows[name] = {
            "milliseconds": milliseconds,
            "ratio": ratio,
            "seconds_to_first_rollout": way.first,
            "mebibytes_per_worker": way.memory,
        }
        print(
            f"{name:<28} {milliseconds:8.1f} ms a rollout, {ratio:5.2f} times klimb's network in workers; "
            f"first rollout after {way.first:4.1f} s, {way.memory:4.0f} MiB a worker",
            flush=True,
        )
        way.close()
    write_results("own_policy", env=ENV, steps=STEPS, workers=WORKERS, repetitions=REPETITIONS, ways=rows)


if __name__ == "__main__":
    main()
