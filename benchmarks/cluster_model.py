"""How far does a cluster scale? `make bench-cluster-model` writes a table of docs/scaling.md.

An iteration of N actors, on paper and simulated. On paper: the slowest of N actors takes its expected steps and
√(2 ln N) standard deviations more; this machine sends to and fetches from one actor after the other. The simulation
draws every step's time, and follows every message. Made-up numbers are in `Costs`; those of messages are what
`make bench-ray` measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from results_file import HERE, Line, read_results, write_results

PAGE = HERE.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- model: written by make bench-cluster-model -->\n", "<!-- end of model -->\n"
ACTORS = (10, 100, 128, 1000, 1024)
ENVIRONMENTS, STEPS = 1, 128
"""Of one actor, and of a rollout."""
ROLLOUTS = 20
BYTE = 1 / 1.25e9
"""Seconds of a byte in a network of 10 Gbit/s: in one machine, where messages are measured, memory is shared."""


@dataclass(frozen=True)
class Costs:
    """Seconds of everything in an iteration.

    step, deviation: of a simulator, mean and standard deviation (log-normal). call: of a message to an actor and of its
    answer. byte: of transport. sent, received: bytes per actor and rollout. learn: of the update.
    """

    step: float
    deviation: float
    call: float
    byte: float
    sent: int
    received: int
    learn: float


def costs(step: float, deviation: float, measured: dict) -> Costs:
    """Those of a simulator, with the messages that have been measured."""
    sizes, share = measured["fast"]["bytes"], ENVIRONMENTS / measured["environments"]
    sent = sizes["parameters"] + sizes["noise"] * share
    received = (sizes["rollout"] + sizes["states"]) * share
    return Costs(step, deviation, measured["message"]["call_seconds"], BYTE, round(sent), round(received), learn=0.1)


def on_paper(actors: int, cost: Costs) -> float:
    """Seconds of an iteration."""
    count = ENVIRONMENTS * STEPS
    slowest = count * cost.step + cost.deviation * math.sqrt(count) * math.sqrt(2 * math.log(actors))
    send = actors * (cost.call / 2 + cost.sent * cost.byte)
    fetch = actors * (cost.call / 2 + cost.received * cost.byte)
    # The slowest is anywhere among those that are sent to. Results are fetched as they come, after all are sent to.
    return max(send / 2 + slowest + fetch / actors, send + fetch) + cost.learn


def simulated(actors: int, cost: Costs, rng: np.random.Generator) -> float:
    """Seconds of an iteration, in the mean over some rollouts."""
    variance = math.log(1 + (cost.deviation / cost.step) ** 2)
    times = []
    for _ in range(ROLLOUTS):
        sent = (np.arange(actors) + 1) * (cost.call / 2 + cost.sent * cost.byte)
        steps = rng.lognormal(math.log(cost.step) - variance / 2, math.sqrt(variance), (actors, ENVIRONMENTS * STEPS))
        now = sent[-1]
        for ready in np.sort(sent + steps.sum(axis=1)):
            now = max(now, ready) + cost.call / 2 + cost.received * cost.byte
        times.append(now + cost.learn)
    return float(np.mean(times))


def main() -> None:
    """Compute, and write the page."""
    measured, rng, rows = read_results("ray_rollouts"), np.random.default_rng(0), []
    for step, deviation in ((0.005, 0.0005), (0.005, 0.005), (0.05, 0.05)):
        cost = costs(step, deviation, measured)
        for actors in ACTORS:
            seconds = simulated(actors, cost, rng)
            ideal = ENVIRONMENTS * STEPS * step
            rows.append(
                {
                    "step": step,
                    "deviation": deviation,
                    "actors": actors,
                    "simulated": seconds,
                    "on_paper": on_paper(actors, cost),
                    "steps_per_second": actors * ENVIRONMENTS * STEPS / seconds,
                    "efficiency": ideal / seconds,
                }
            )
    write_results("cluster_model", rows=[Line(row) for row in rows])
    text = page(rows)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + text + END + rest.split(END)[1], encoding="utf-8")
    print(text)


def page(rows: list[dict]) -> str:
    """The table."""
    lines = [
        "| step of the simulator | actors | iteration, simulated | on paper | steps per second | efficiency |",
        "|---|---|---|---|---|---|",
        *(
            f"| {1000 * row['step']:g} ± {1000 * row['deviation']:g} ms | {row['actors']:,} | "
            f"{row['simulated']:.2f} s | {row['on_paper']:.2f} s | {row['steps_per_second']:,.0f} | "
            f"{row['efficiency']:.2f} |"
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
