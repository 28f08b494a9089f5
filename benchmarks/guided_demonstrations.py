"""Demonstrations as first guides of guided policy search: `make bench-demonstrations`, or with tasks as words.

On each task TRPO becomes two demonstrators, a good one and one whose training was cut short, and `klimb record` keeps
20 episodes of each. Guided policy search then imitates plans from these demonstrations, and from random starting
points: environment steps until the most probable actions first average a threshold, and the time that plans take.
Trainings of demonstrators stay in `runs/guided-demonstrations`; delete the folder to measure anew.
"""

from __future__ import annotations

import dataclasses
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import klimb
from klimb.cli import compilation_cache
from klimb.collect.demonstrations import Demonstrations
from klimb.guided.guides import Guides
from klimb.guided.importance_sampled import ImportanceSampled
from klimb.guided.search import GuidedPolicySearch
from klimb.precision import full_precision
from klimb.runs.demonstration_file import load_demonstrations
from klimb.training.program import Program
from results_file import HERE, read_results, write_results

RUNS = HERE.parent / "runs" / "guided-demonstrations"
RULE = GuidedPolicySearch(guiding_samples=1, kept_iterations=4, supervised_iterations=50)
OPTIONS: dict[str, Any] = {"num_envs": 4, "num_steps": 200}
SEEDS, EPISODES, EVALUATION_KEY = range(20, 25), 50, 10_000


@dataclass(frozen=True)
class Task:
    """demonstrators: arguments of `klimb train`, by what the demonstrator is called. threshold: mean return that counts
    as solved. iterations: at most."""

    env: str
    demonstrators: dict[str, str]
    threshold: float
    iterations: int


SWING_UP = "trpo CartPoleSwingUp-v0 --max-kl 0.01 --num-envs 4 --num-steps 200"
TASKS = {
    "swing-up": Task(
        "CartPoleSwingUp-v0",
        {"good": f"{SWING_UP} --env-steps 150000", "mediocre": f"{SWING_UP} --env-steps 24000"},
        threshold=-80.0,
        iterations=10,
    ),
    "pendulum": Task(
        "Pendulum-v1",
        {"good": "trpo Pendulum-v1", "mediocre": "trpo Pendulum-v1 --env-steps 25000"},
        threshold=-200.0,
        iterations=6,
    ),
    "car": Task(
        "MountainCarContinuous-v0",
        {
            "good": "trpo MountainCarContinuous-v0 --seed 2",
            "mediocre": "trpo MountainCarContinuous-v0 --seed 2 --env-steps 26000",
        },
        threshold=90.0,
        iterations=8,
    ),
}


def klimb_command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "klimb", *words], check=True, stdout=subprocess.PIPE, timeout=1800)


def recorded(name: str, arguments: str) -> Demonstrations:
    """20 episodes of the policy that `klimb train ARGUMENTS` gives, made once."""
    directory = RUNS / name
    file = directory / "demonstrations.safetensors"
    if not file.exists():
        klimb_command("train", *shlex.split(arguments), "--eval-episodes", "0", "--run-dir", str(directory))
        klimb_command("record", str(directory))
    return load_demonstrations(file)


def mean_returns(environment: Any, policies: list[Any]) -> list[float]:
    """Of EPISODES whole episodes by the most probable actions, of each policy."""
    paths = Guides(environment, environment.actions, environment.max_episode_steps, restarts=1, temperature=1.0)
    starts = jax.vmap(environment.initial)(jax.random.split(jax.random.key(EVALUATION_KEY), EPISODES))

    @eqx.filter_jit
    def mean(policy: Any) -> jax.Array:
        return jnp.mean(jax.vmap(lambda start: jnp.sum(paths.by_mode(policy, start).reward))(starts))

    return [float(mean(policy)) for policy in policies]


def planning_seconds(program: Program) -> float:
    """Of the plans of one imitation iteration of one seed, without compilation: the median of three."""
    rule = program.iteration.rule
    assert isinstance(rule, ImportanceSampled)
    guides, seconds = rule.guides, []
    plans = jax.jit(full_precision(jax.vmap(guides.planned)))
    for number in range(4):
        keys = jax.random.split(jax.random.key(number), OPTIONS["num_envs"])
        starts = jax.vmap(guides.environment.initial)(keys)
        begun = time.perf_counter()
        jax.block_until_ready(plans(keys, starts))
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def learned(task: Task, demonstrations: Demonstrations | None) -> dict[str, Any]:
    """Steps of every seed until the threshold (None: not within the iterations), and the mean return at that point."""
    environment = klimb.make(task.env)
    each = RULE.traits.env_steps_per_row * OPTIONS["num_envs"] * OPTIONS["num_steps"]
    options = klimb.TrainOptions(
        env_steps=task.iterations * each,
        seed=SEEDS[0],
        num_seeds=len(SEEDS),
        certificate=False,
        demonstrations=None if demonstrations is None else demonstrations.source,
        **OPTIONS,
    )
    program = Program(klimb.RunConfig(task.env, RULE, options), environment, demonstrations=demonstrations)
    state = program.initial_state()
    curve: list[list[float]] = []
    seconds: list[float] = []
    while len(curve) < task.iterations:
        begun = time.perf_counter()
        state, _ = program.advance(state, 1)
        seconds.append(time.perf_counter() - begun)
        curve.append(mean_returns(environment, program.policies(state)))
        if (np.max(curve, axis=0) >= task.threshold).all():
            break
    solved = np.array(curve) >= task.threshold
    first = [int(column.argmax()) if column.any() else None for column in solved.T]
    return {
        "steps": [None if one is None else (one + 1) * each for one in first],
        "returns": [curve[-1 if one is None else one][k] for k, one in enumerate(first)],
        "planning_seconds": planning_seconds(program),
        "iteration_seconds": statistics.median(seconds[1:] or seconds) / len(SEEDS),
    }


def cloned(task: Task, demonstrations: Demonstrations) -> list[float]:
    """What behaviour cloning of the same episodes reaches, of every seed."""
    run = klimb.train(
        task.env, klimb.BehaviourCloning(), demonstrations=demonstrations, seed=SEEDS[0], num_seeds=len(SEEDS)
    )
    return mean_returns(klimb.make(task.env), run.policies)


def measure(name: str) -> dict[str, Any]:
    task, rows = TASKS[name], {}
    for kind in ("none", *task.demonstrators):
        begun = time.perf_counter()
        shown = None if kind == "none" else recorded(f"{name}-{kind}", task.demonstrators[kind])
        rows[kind] = learned(task, shown)
        if shown is not None:
            rows[kind] |= {"demonstrated": float(shown.returns.mean()), "command": task.demonstrators[kind]}
            rows[kind] |= {"cloned": cloned(task, shown)}
        print(f"{name} {kind}: {rows[kind]} ({time.perf_counter() - begun:.0f} s)", flush=True)
        keep(name, {"threshold": task.threshold, "rows": rows})
    return rows


def keep(name: str, found: dict[str, Any]) -> None:
    """One task's numbers; those of the others stay as they are."""
    others = {task: content for task, content in read_results("guided_demonstrations").items() if task in TASKS}
    settings = {"rule": dataclasses.asdict(RULE), "options": OPTIONS, "seeds": list(SEEDS), "episodes": EPISODES}
    write_results("guided_demonstrations", settings=settings, **{**others, name: found})


def main(words: list[str]) -> None:
    if unknown := [word for word in words if word not in TASKS]:
        raise SystemExit(f"there is no task {unknown[0]!r}; there are {', '.join(TASKS)}")
    compilation_cache.enable()
    for name in words or TASKS:
        measure(name)


if __name__ == "__main__":
    main(sys.argv[1:])
