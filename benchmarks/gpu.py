"""Compiled trainings on a GPU: the environment alone, with the policy, and with learning; seeds together; precision;
memory. `make bench-gpu` writes the tables of docs/gpu.md.

Every row is measured in a process of its own, so that its memory is its own. Rows that have been measured on the same
kind of device are not measured again. On a CPU nothing is written, unless it is only to see that everything runs:
`python benchmarks/gpu.py --check`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

import klimb
import speed
from klimb.collect.compiled import CompiledCollector
from klimb.environments.base import CompiledEnvironment
from klimb.training.program import Program
from klimb.training.resources import peak_memory
from results_file import HERE, Line, read_results, write_results
from timing import environment_alone, seconds_of

PAGE = HERE.parent / "docs" / "gpu.md"
BEGIN, END = "<!-- begin {}: make bench-gpu -->", "<!-- end {} -->"
NOTHING = "Not measured yet: `make bench-gpu` on a machine with a GPU writes the table here."
NEEDS = {"playground": "mujoco_playground", "brax": "brax", "gymnax": "gymnax"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One training. steps: of each environment in an iteration. iterations: of a call of the program, which are timed
    together; and calls of what is measured without learning."""

    env: str
    rule: str
    num_envs: int
    steps: int
    iterations: int = 20
    num_seeds: int = 1
    precision: str = "float32"
    hidden: tuple[int, ...] = (64, 64)

    @property
    def name(self) -> str:
        seeds = "" if self.num_seeds == 1 else f", {self.num_seeds} seeds"
        wide = "" if self.hidden == (64, 64) else f", layers of {self.hidden[0]}"
        return f"{self.env}, {self.rule}, {self.num_envs} × {self.steps}{seeds}{wide}, {self.precision}"

    def small(self) -> Row:
        """The same with sizes that a CPU makes in seconds."""
        return dataclasses.replace(self, num_envs=8, steps=4, iterations=2, num_seeds=min(2, self.num_seeds))


TASKS = ("jax:CartPole-v1", "jax:PlanarReacher-v0", "gymnax:Breakout-MinAtar", "playground:CartpoleBalance")
BATCHES = ((512, 64), (4096, 16), (32768, 4))
COLUMNS = tuple(
    Row(env, rule, num_envs, steps) for env in TASKS for num_envs, steps in BATCHES for rule in ("trpo", "ppo")
)
SEEDS = tuple(
    Row("jax:CartPole-v1", rule, 64, 64, num_seeds=seeds) for rule in ("trpo", "ppo") for seeds in (1, 8, 64, 256)
)
PRECISIONS = tuple(
    Row("jax:PlanarReacher-v0", rule, 4096, 16, precision=precision, hidden=(1024, 1024))
    for rule in ("trpo", "ppo")
    for precision in ("float32", "tensorfloat32")
)
CALLS = 9
"""That are timed of each training, each of as many iterations."""
PEER = "rejax PPO, CartPole-v1"


def rate(program: Callable[[], Any], row: Row) -> float:
    """Steps per second of a program that makes the steps of one iteration: the median of some calls."""
    return row.num_envs * row.steps / statistics.median(seconds_of(program, row.iterations))


def acting(environment: CompiledEnvironment, row: Row) -> float:
    """Steps per second with the policy, sampling, and resets: rollouts as a training makes them."""
    policy = klimb.NetworkPolicy(
        environment.observations, environment.actions, hidden=row.hidden, key=jax.random.key(0)
    )
    collector = CompiledCollector(environment, row.num_envs, row.steps)
    state = jax.jit(collector.init)(jax.random.key(0))
    collect = jax.jit(lambda key, state: collector.collect(key, policy, state)[1])
    return rate(partial(collect, jax.random.key(1), state), row)


def training(environment: CompiledEnvironment, row: Row) -> dict[str, float]:
    """Steps per second of all seeds with learning, seconds of compilation, and the KL of steps.

    A call of the program runs `iterations` iterations; the rate is the median over CALLS of them, after the first.
    """
    rule = klimb.TRPO() if row.rule == "trpo" else klimb.PPO(epochs=4, num_minibatches=4)
    began = time.perf_counter()
    config = klimb.RunConfig(
        row.env,
        rule,
        klimb.TrainOptions(
            env_steps=(1 + CALLS) * row.iterations * row.num_envs * row.steps,
            num_envs=row.num_envs,
            num_steps=row.steps,
            num_seeds=row.num_seeds,
            hidden=row.hidden,
            critic_hidden=row.hidden,
            precision=row.precision,
            critic_epochs=4,
        ),
    )
    program = Program(config, environment)
    state = program.initial_state()
    state, _ = program.advance(state, row.iterations)
    jax.block_until_ready(state)
    first = time.perf_counter() - began
    seconds, kl = [], []
    for _ in range(CALLS):
        began = time.perf_counter()
        state, metrics = program.advance(state, row.iterations)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
        kl.append(float(metrics["kl_old_new"].mean()))
    program.close()
    steps = row.iterations * row.num_envs * row.steps * row.num_seeds
    return {
        "training": round(steps / statistics.median(seconds)),
        "compile_seconds": round(max(0.0, first - statistics.median(seconds)), 1),
        "mean_kl": round(statistics.mean(kl), 6),
    }


def measured(row: Row) -> dict[str, Any]:
    """All about a row; to be called in a process of its own."""
    environment = klimb.make(row.env)
    assert isinstance(environment, CompiledEnvironment)
    found: dict[str, Any] = {}
    if row.num_seeds == 1:
        steps = environment_alone(environment, row.num_envs, row.steps)
        found = {"alone": round(rate(steps, row)), "acting": round(acting(environment, row))}
    found |= training(environment, row)
    peaks = peak_memory()
    on_device = [count for name, count in peaks.items() if name != "this process"]
    found["peak_mib"] = round(max(on_device or peaks.values()) / 2**20)
    return found


def in_a_process(row: Row) -> dict[str, Any]:
    """`measured`, in a process of its own."""
    command = [sys.executable, __file__, "--row", json.dumps(dataclasses.asdict(row))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def peers() -> Iterator[tuple[int, float]]:
    """Steps per second of rejax's PPO by number of seeds; none where it is not installed."""
    if not speed.THEIRS.exists():
        return
    for row in SEEDS:
        if row.rule == "ppo":
            worker = speed.Worker(
                speed.peer(PEER, "rejax_many.py", row.num_seeds, row.iterations, row.num_envs, row.steps)
            )
            try:
                yield row.num_seeds, statistics.median(worker.turn() for _ in range(3))
            finally:
                worker.stop()


def is_installed(row: Row) -> bool:
    """Whether the library of a row's environment is there."""
    package = NEEDS.get(row.env.partition(":")[0])
    return package is None or importlib.util.find_spec(package) is not None


def columns_table(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| environment, rule, environments × steps | alone | + policy | + learning | memory | compilation |",
        "|---|---|---|---|---|---|",
    ]
    for row in COLUMNS:
        if "training" in (found := rows.get(row.name, {})):
            cells = " | ".join(f"{found[name]:,}" for name in ("alone", "acting", "training"))
            lines.append(
                f"| `{row.env}`, {row.rule}, {row.num_envs:,} × {row.steps} | {cells} | {found['peak_mib']:,} MiB | "
                f"{found['compile_seconds']} s |"
            )
    return lines if len(lines) > 2 else [NOTHING]


def seeds_table(rows: dict[str, Any]) -> list[str]:
    lines = ["| rule | seeds | steps/s of all | memory | rejax, steps/s of all |", "|---|---|---|---|---|"]
    for row in SEEDS:
        if "training" in (found := rows.get(row.name, {})):
            other = rows.get(f"{PEER}, {row.num_seeds} seeds", {}).get("training") if row.rule == "ppo" else None
            theirs = "" if other is None else f"{other:,}"
            lines.append(
                f"| {row.rule} | {row.num_seeds} | {found['training']:,} | {found['peak_mib']:,} MiB | {theirs} |"
            )
    return lines if len(lines) > 2 else [NOTHING]


def precision_table(rows: dict[str, Any]) -> list[str]:
    lines = ["| rule | precision | steps/s | mean KL of a step |", "|---|---|---|---|"]
    for row in PRECISIONS:
        if "training" in (found := rows.get(row.name, {})):
            lines.append(f"| {row.rule} | {row.precision} | {found['training']:,} | {found['mean_kl']} |")
    return lines if len(lines) > 2 else [NOTHING]


def page_with(text: str, rows: dict[str, Any], device: str | None) -> str:
    """The page with its tables. device: the kind that they were measured on; None where nothing was."""
    tables = {"columns": columns_table, "seeds": seeds_table, "precision": precision_table}
    for name, table in tables.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, rest = text.split(begin)
        lines = table(rows)
        if device is not None and lines != [NOTHING]:
            lines = [f"Measured on {device}:", "", *lines]
        text = f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}" + rest.split(end)[1]
    return text


def check(rows: list[Row]) -> None:
    """Measure and print them; SystemExit when one fails."""
    failed = []
    for row in rows:
        found = in_a_process(row)
        print(row.name, found, flush=True)
        failed += [row.name] if "failed" in found else []
    if failed:
        raise SystemExit(f"{len(failed)} rows failed: {', '.join(failed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="small sizes, on any device; nothing is written")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        fields = json.loads(arguments.row)
        print(json.dumps(measured(Row(**{**fields, "hidden": tuple(fields["hidden"])}))))
        return
    platform, kind = device_here()
    if platform == "cpu" and not arguments.check:
        raise SystemExit("JAX has no GPU here, and docs/gpu.md is about GPUs; --check sees that everything runs")
    every = [row for row in (*COLUMNS, *SEEDS, *PRECISIONS) if is_installed(row)]
    if arguments.check:
        check(list(dict.fromkeys(row.small() for row in every)))
        return
    devices = read_results("gpu").get("devices", {})
    rows = devices.setdefault(kind, {})
    for row in every:
        if "training" not in rows.get(row.name, {}):
            rows[row.name] = in_a_process(row)
            print(row.name, rows[row.name], flush=True)
            save(devices)
    for seeds, rate in peers():
        rows[f"{PEER}, {seeds} seeds"] = {"training": round(rate)}
    save(devices)
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), rows, kind), encoding="utf-8")


def save(devices: dict[str, dict[str, Any]]) -> None:
    """Write the rows of all kinds of devices."""
    lines = {kind: {name: Line(found) for name, found in rows.items()} for kind, rows in devices.items()}
    write_results("gpu", devices=lines)


def device_here() -> tuple[str, str]:
    """(platform, kind) of JAX's device, asked in a process of its own: one that has a GPU keeps most of its memory."""
    asked = "import jax; device = jax.devices()[0]; print(device.platform, device.device_kind, sep='|')"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    platform, _, kind = done.stdout.strip().splitlines()[-1].partition("|")
    return platform, kind


if __name__ == "__main__":
    main()
