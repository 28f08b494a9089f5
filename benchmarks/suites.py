"""Environments of other JAX libraries: returns, the share of the environment's own rate, and what a bank of first
states brings. `make bench-suites` writes the tables of docs/compiled-worlds.md.

What has been measured is not measured again: it can be stopped at any moment.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import klimb
from klimb.cli import compilation_cache, train
from klimb.cli.commands import load
from klimb.collect.compiled import CompiledCollector
from klimb.collect.first_states import first_states
from klimb.environments.base import CompiledEnvironment
from klimb.training.driver import start
from results_file import HERE, Line, read_results, write_results
from timing import environment_alone, seconds_of

PAGE = HERE.parent / "docs" / "compiled-worlds.md"
BEGIN, END = "<!-- begin {}: make bench-suites -->", "<!-- end {} -->"


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment, and the flags with which rules train in it.

    seeds: trained together. sampled: whether evaluations sample actions, because games could go on forever without.
    """

    env: str
    steps: int
    flags: dict[str, str]
    seeds: int
    sampled: bool = False

    def words(self, rule: str) -> list[str]:
        """What is typed after `klimb train`, without the seeds."""
        return [rule, self.env, "--env-steps", str(self.steps), *shlex.split(self.flags[rule])]


def both(flags: str, ppo: str = "--num-minibatches 8") -> dict[str, str]:
    """The same sizes for both rules."""
    return {"trpo": flags, "ppo": f"{flags} {ppo}"}


TASKS = (
    Task("playground:CartpoleBalance", 512_000, both("--num-envs 64 --num-steps 64", "--num-minibatches 16"), 10),
    Task("brax:inverted_pendulum(backend=spring)", 262_144, both("--num-envs 64 --num-steps 32"), 3),
    Task("navix:Navix-Empty-5x5-v0", 65_536, both("--num-envs 16 --num-steps 64"), 10),
    Task("pgx:2048", 262_144, both("--num-envs 64 --num-steps 64"), 3, sampled=True),
    Task("pgx:connect_four", 262_144, both("--num-envs 64 --num-steps 32"), 3),
    Task("craftax:Craftax-Classic-Symbolic-v1", 65_536, both("--num-envs 64 --num-steps 32"), 1, sampled=True),
    Task(
        "jumanji:Snake-v1",
        524_288,
        {
            "trpo": "--num-envs 64 --num-steps 64 --critic-epochs 4",
            "ppo": "--num-envs 64 --num-steps 64 --epochs 4 --num-minibatches 8 --learning-rate 0.001 "
            "--ent-coef 0.01 --critic-epochs 4",
        },
        1,
        sampled=True,
    ),
)
RATE_ITERATIONS = 24


def run_of(words: list[str]) -> Any:
    """A training as the command line makes it, without its files."""
    config, _ = train.configuration(load("train").parse(words))
    return start(config, klimb.make(config.env))


def returns(task: Task, rule: str) -> dict[str, Any]:
    """Final returns of all seeds, trained together, and the seconds of that."""
    began = time.perf_counter()
    run = run_of([*task.words(rule), "--num-seeds", str(task.seeds)])
    seconds = time.perf_counter() - began
    evaluated = [
        klimb.evaluate(policy, task.env, episodes=100, deterministic=not task.sampled) for policy in run.policies
    ]
    return Line(finals=[round(float(result.mean), 3) for result in evaluated], seconds=round(seconds, 1))


def rate(task: Task, rule: str) -> dict[str, Any]:
    """Steps per second of a training of one seed, learning included and compilation left out."""
    words = task.words(rule)
    sizes = {name: int(words[words.index(name) + 1]) for name in ("--num-envs", "--num-steps")}
    words[words.index("--env-steps") + 1] = str(RATE_ITERATIONS * math.prod(sizes.values()))
    run = run_of([*words, "--eval-episodes", "1"])
    # The first ones compile.
    found = [record["steps_per_second"] for record in run.history[-RATE_ITERATIONS // 3 :]]
    return Line(steps_per_second=round(statistics.median(found)))


def untrained(task: Task) -> dict[str, Any]:
    """The return of a policy before its training."""
    environment = compiled(task.env)
    policy = klimb.NetworkPolicy(environment.observations, environment.actions, key=jax.random.key(0))
    return Line(final=round(float(klimb.evaluate(policy, environment, episodes=100, deterministic=False).mean), 3))


def compiled(name: str) -> CompiledEnvironment:
    """The environment of a name."""
    environment = klimb.make(name)
    assert isinstance(environment, CompiledEnvironment)
    return environment


def quartile(values: list[float], number: int) -> float:
    return round(statistics.quantiles(values, n=4)[number], 2)


def alone(task: Task, num_envs: int, num_steps: int = 64) -> dict[str, Any]:
    """Steps per second of the environment alone."""
    program = environment_alone(compiled(task.env), num_envs, num_steps)
    return Line(steps_per_second=round(num_envs * num_steps / min(seconds_of(program))))


BANKS = ("playground:CartpoleBalance", "jumanji:Snake-v1", "navix:Navix-Empty-5x5-v0", "pgx:2048")
NUM_ENVS, NUM_STEPS = 64, 32


def collecting(environment: CompiledEnvironment) -> Callable[[], Any]:
    """A rollout with a policy of klimb's."""
    policy = klimb.NetworkPolicy(environment.observations, environment.actions, key=jax.random.key(0))
    collector = CompiledCollector(environment, NUM_ENVS, NUM_STEPS)
    state = jax.jit(collector.init)(jax.random.key(0))
    collect = jax.jit(lambda key, state: collector.collect(key, policy, state)[0])
    return partial(collect, jax.random.key(1), state)


def stepping(environment: CompiledEnvironment) -> Callable[[], Any]:
    """The same steps without a policy: actions that are known, and new episodes where some have ended."""
    actions, reset = environment.actions, jax.vmap(environment.reset)
    rows = jnp.zeros((NUM_ENVS, *actions.shape), actions.dtype)
    keys = jax.random.split(jax.random.key(0), (NUM_STEPS, NUM_ENVS))
    state = jax.jit(reset)(keys[0])[0]

    @jax.jit
    def steps(state: Any, keys: Any) -> Any:
        first = first_states(environment, reset, keys, None)

        def one(carry: tuple, now: tuple) -> tuple:
            (state, count), (keys, column) = carry, now
            after = jax.vmap(environment.step)(keys, state, actions.unflatten(rows))
            ended = after.terminated | after.truncated
            fresh, _ = first.at(column, count)
            restart = lambda new, old: jnp.where(jnp.reshape(ended, (-1,) + (1,) * (old.ndim - 1)), new, old)  # noqa: E731
            return (jax.tree.map(restart, fresh, after.state), first.after(count, ended)), after.reward

        return jax.lax.scan(one, (state, first.count), (keys, first.columns))

    return partial(steps, state, keys)


def bank(name: str, program: Callable[[CompiledEnvironment], Callable[[], Any]]) -> dict[str, Any]:
    """Without a bank of first states, in turns with it: medians of milliseconds a step, and of the ratios."""
    environment, programs = compiled(name), {}
    for kind, banked in (("every step", False), ("bank", True)):
        environment.bank_resets = banked
        programs[kind] = program(environment)
        jax.block_until_ready(programs[kind]())  # compiled while `bank_resets` is as it has to be
    environment.bank_resets = True
    turns: dict[str, list[float]] = {kind: [] for kind in programs}
    for _ in range(31):
        for kind, call in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            turns[kind].append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(turns["every step"], turns["bank"], strict=True)]
    milliseconds = {kind: round(1e3 * statistics.median(found) / NUM_STEPS, 4) for kind, found in turns.items()}
    return Line(
        milliseconds, ratio=round(statistics.median(ratios), 2), low=quartile(ratios, 0), high=quartile(ratios, 2)
    )


def returns_table(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| environment | steps | untrained | TRPO | PPO | seeds | seconds of all seeds, TRPO and PPO |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        found = [rows[key] for rule in task.flags if (key := f"{task.env} {rule}") in rows]
        if len(found) == len(task.flags):
            before = rows[f"{task.env} untrained"]["final"]
            cells = " | ".join(_cell(one["finals"]) for one in found)
            seconds = ", ".join(f"{one['seconds']:.0f}" for one in found)
            lines.append(f"| `{task.env}` | {task.steps:,} | {before:.4g} | {cells} | {task.seeds} | {seconds} |")
    return lines


def _cell(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.4g} ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else f"{mean:.4g}"


def speed_table(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| environment | alone, steps/s | TRPO, steps/s | share | PPO, steps/s | share |",
        "|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        names = [f"{task.env} alone", *(f"{task.env} {rule} rate" for rule in task.flags)]
        rates = [rows[name]["steps_per_second"] for name in names if name in rows]
        if len(rates) == len(names):
            cells = " | ".join(f"{rate:,} | {rate / rates[0]:.2g}" for rate in rates[1:])
            lines.append(f"| `{task.env}` | {rates[0]:,} | {cells} |")
    return lines


def bank_table(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| environment | stepping, ms: every step | bank | ratio | collecting, ms: every step | bank | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in BANKS:
        found = [rows[key] for kind in ("stepping", "bank") if (key := f"{name} {kind}") in rows]
        if len(found) == 2:
            cells = [f"{x['every step']} | {x['bank']} | {x['ratio']} ({x['low']}–{x['high']})" for x in found]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def commands(rows: dict[str, Any]) -> list[str]:
    lines = []
    for task in TASKS:
        for rule in task.flags:
            words = [f'"{word}"' if "(" in word else word for word in task.words(rule)]
            lines.append(f"klimb train {' '.join(words)} --num-seeds {task.seeds}")
    return ["```", *lines, "```"]


def write_page(rows: dict[str, Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    tables = {"returns": returns_table, "commands": commands, "speed": speed_table, "bank": bank_table}
    for name, table in tables.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, rest = text.split(begin)
        text = f"{before}{begin}\n" + "\n".join(table(rows)) + f"\n{end}" + rest.split(end)[1]
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="measure what has this in its name")
    only = parser.parse_args().only
    warnings.simplefilter("ignore")
    compilation_cache.enable()
    rows = read_results("suites").get("rows", {})
    work: dict[str, Callable[[], Any]] = {}
    for name in BANKS:
        work[f"{name} stepping"] = partial(bank, name, stepping)
        work[f"{name} bank"] = partial(bank, name, collecting)
    for task in TASKS:
        num_envs = int(task.words("trpo")[task.words("trpo").index("--num-envs") + 1])
        work[f"{task.env} alone"] = partial(alone, task, num_envs)
        work[f"{task.env} untrained"] = partial(untrained, task)
        for rule in task.flags:
            work[f"{task.env} {rule} rate"] = partial(rate, task, rule)
            work[f"{task.env} {rule}"] = partial(returns, task, rule)
    for name, measure in work.items():
        if name not in rows and only in name:
            rows[name] = measure()
            print(name, dict(rows[name]), flush=True)
            rows = {key: Line(rows[key]) for key in work if key in rows}
            write_results("suites", rows=rows)
    write_page(rows)


if __name__ == "__main__":
    main()
