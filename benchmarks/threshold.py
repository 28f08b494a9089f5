"""How long until CartPole-v1 is solved: klimb beside its peers as they tuned themselves, `make bench-threshold`.

Seconds of training, compilation and evaluations left out, until 20 episodes by the most probable actions first
average 475; every contender with the same ten seeds, one after the other.
"""

from __future__ import annotations

import json
import statistics

from results_file import write_results
from speed import OURS, Contender, Worker, install_peers, peer

SEEDS = range(10)
# The best of twenty settings of TRPO, natural gradient and PPO, tried on other seeds than these.
OWN = {
    "rule": "ppo",
    "rule_options": {"learning_rate": 0.003, "epochs": 4, "num_minibatches": 8},
    "options": {
        "num_envs": 8,
        "num_steps": 64,
        "hidden": [32, 32],
        "critic_epochs": 4,
        "critic_num_minibatches": 8,
        "critic_learning_rate": 0.003,
    },
    "every": 4,
}


class Solver(Worker):
    """A contender that is told a seed and answers with JSON."""

    def solve(self, seed: int) -> dict:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        return json.loads(self._answer())


def main() -> None:
    """Measure, print and keep."""
    install_peers()
    contenders = [
        Contender("klimb", OURS, "to_threshold_klimb.py", (json.dumps(OWN),)),
        peer("rejax PPO", "to_threshold_rejax.py"),
        peer("SBX PPO", "to_threshold_sb3.py", "sbx"),
        peer("SB3 PPO", "to_threshold_sb3.py", "sb3"),
    ]
    found = {}
    for contender in contenders:
        worker = Solver(contender)
        results = [worker.solve(seed) for seed in SEEDS]
        worker.stop()
        solved = [one for one in results if one["seconds"] is not None]
        # A seed that never gets there counts as the slowest.
        middle = statistics.median(one["seconds"] or float("inf") for one in results)
        steps = statistics.median(one["steps"] or float("inf") for one in results)
        found[contender.name] = {
            "median_seconds": middle,
            "median_steps": steps,
            "solved": len(solved),
            "seeds": results,
        }
        print(
            f"{contender.name:<12} {middle:8.3f} s, {steps:>8,.0f} steps, {len(solved)} of {len(results)}", flush=True
        )
    fastest = min(one["median_seconds"] for name, one in found.items() if name != "klimb")
    print(f"klimb / fastest peer: {found['klimb']['median_seconds'] / fastest:.2f}")
    write_results("threshold", own=OWN, results=found)


if __name__ == "__main__":
    main()
