"""What the step certificate costs: `make bench-certificate`.

The same training with and without it, a few iterations of each in turn, many times over; the ratio of their medians.
"""

from __future__ import annotations

import statistics
import time

import jax

import klimb
from klimb import PPO, TRPO, RunConfig, TrainOptions
from klimb.training.program import Program
from results_file import write_results

REPETITIONS = 25
WORK = {
    "CartPole-v1, TRPO, 16 × 128": ("CartPole-v1", TRPO(), {}, 20),
    "CartPole-v1, PPO, 16 × 128": ("CartPole-v1", PPO(), {}, 20),
    "Pendulum-v1, TRPO, 16 × 128": ("Pendulum-v1", TRPO(), {}, 20),
    "CartPole-v1, TRPO, 16 × 128, 8 seeds": ("CartPole-v1", TRPO(), {"num_seeds": 8}, 4),
    "HalfCheetah-v5, TRPO, 8 × 256": ("gymnasium:HalfCheetah-v5", TRPO(), {"num_envs": 8, "num_steps": 256}, 1),
}


def seconds(name: str, rule, sizes: dict, iterations: int) -> dict[bool, list[float]]:
    """Seconds per iteration, with and without, in turn."""
    programs, states, times = {}, {}, {True: [], False: []}
    for switch in times:
        options = TrainOptions(env_steps=10**8, certificate=switch, **sizes)
        program = programs[switch] = Program(RunConfig(name, rule, options), klimb.make(name))
        program.start(iteration=0)
        states[switch], _ = program.advance(program.initial_state(), 1)
    for _ in range(REPETITIONS):
        for switch, program in programs.items():
            start = time.perf_counter()
            for _ in range(iterations if program.max_iterations_per_call == 1 else 1):
                count = iterations if program.max_iterations_per_call > 1 else 1
                states[switch], _ = program.advance(states[switch], count)
            jax.block_until_ready(states[switch])
            times[switch].append((time.perf_counter() - start) / iterations)
    for program in programs.values():
        program.close()
    return times


def main() -> None:
    """Print the table and keep it."""
    rows = {}
    for title, (name, rule, sizes, iterations) in WORK.items():
        times = seconds(name, rule, sizes, iterations)
        on, off = (statistics.median(times[switch]) for switch in (True, False))
        # Neighbours in time share the machine's moods: the median of their ratios is the steadier number.
        paired = statistics.median(a / b for a, b in zip(times[True], times[False], strict=True))
        rows[title] = {"seconds_with": on, "seconds_without": off, "ratio": paired}
        print(f"{title:<40} {off * 1e3:8.2f} ms without, {on * 1e3:8.2f} ms with: {paired - 1:+.1%}", flush=True)
    write_results("certificate", repetitions=REPETITIONS, work=rows)


if __name__ == "__main__":
    main()
