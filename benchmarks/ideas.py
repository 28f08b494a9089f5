"""What each idea from REINFORCE to TRPO brings, and what the lectures claim beside it: `make bench-ideas`.

    ladder      a rule with one idea more than the rule before, on three tasks
    scale       rewards times 0.01, 1 and 100
    batch       many small batches or few large ones
    sparse      rewards where they are earned, or at the end of the episode
    multiplier  where dual descent's λ goes from several starts
    natural     plain and natural gradient in three units of the same task
    network     the plain gradient of a network, at several lengths of the step

Parts can be named, to run them alone: `python benchmarks/ideas.py scale batch`. Ten seeds train in one program. Returns
are those of a trained policy's most probable actions, averaged over 20 episodes; of ten seeds the interquartile mean
and its 95 % bootstrap interval. What is measured stays in the results file, from which the page is written.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import ideas_page
import klimb
import units
from klimb.cli import compilation_cache, train
from klimb.cli.commands import load
from klimb.report.statistics import median_time, stratified_bootstrap, time_to_threshold
from klimb.training.driver import start
from results_file import read_results, write_results
from rewards import OtherRewards

SEEDS, EPISODES, EVALUATION_SEED = 10, 20, 1000


@dataclass(frozen=True)
class Task:
    """An environment with its budget. longest: steps of an episode. reached: the return in training to wait for."""

    env: str
    env_steps: int
    longest: int
    reached: float


CARTPOLE = Task("CartPole-v1", 100_000, 500, 475)
ACROBOT = Task("Acrobot-v1", 100_000, 500, -100)
PENDULUM = Task("Pendulum-v1", 200_000, 200, -250)
TASKS = (CARTPOLE, ACROBOT, PENDULUM)


@dataclass(frozen=True)
class Rung:
    """A rule with one idea more than the rung before. flags: of `klimb train`; EPISODE stands for `longest`."""

    idea: str
    flags: str

    def command(self, task: Task) -> str:
        rule, _, flags = self.flags.replace("EPISODE", str(task.longest)).partition(" ")
        return f"klimb train {rule} {task.env} --env-steps {task.env_steps} --num-seeds {SEEDS} {flags}".rstrip()


WHOLE = "--batch episodes --num-envs 8 --num-steps EPISODE --bootstrap none"
"""Eight whole episodes a batch, and no critic."""
LADDER = (
    Rung("total return of the episode", f"reinforce {WHOLE} --advantage total_return"),
    Rung("causality: only rewards from t on", f"reinforce {WHOLE} --advantage reward_to_go"),
    Rung("baseline: average of the other episodes", f"reinforce {WHOLE} --advantage leave_one_out"),
    Rung("baseline: their average at step t", f"reinforce {WHOLE} --advantage time_baseline"),
    Rung("critic: GAE, on batches of 2048 steps", "reinforce"),
    Rung("several steps per batch, importance weights", "off-policy-gradient"),
    Rung("KL penalty with a fixed λ", "kl-penalty"),
    Rung("KL limit, λ by dual descent", "dual-descent"),
    Rung("plain gradient, limit on ‖θ′ − θ‖²", "natural-gradient --normalised --epsilon 0.003"),
    Rung("natural gradient, limit on the KL", "natural-gradient"),
    Rung("line search on the real KL: TRPO", "trpo"),
    Rung("clipped ratios instead of a limit: PPO", "ppo"),
)

ENDS: dict[str, klimb.Rule] = {"REINFORCE": klimb.Reinforce(), "TRPO": klimb.TRPO()}


def measured(env: Any, rule: klimb.Rule, *, on: str | None = None, **options: Any) -> dict[str, Any]:
    """What the policies of all seeds are worth after a training.

    env: to train in. on: to evaluate in, where that is another task. options: of the training.
    """
    run = klimb.train(env, rule, num_seeds=SEEDS, certificate=False, **options)
    return worth(run, env if on is None else on)


def worth(run: klimb.Run, env: Any) -> dict[str, Any]:
    """The returns of a run's policies, one per seed, with their interquartile mean and its interval."""
    each = [klimb.evaluate(one, env, episodes=EPISODES, seed=EVALUATION_SEED).mean for one in run.policies]
    estimate = stratified_bootstrap([np.array(each)])
    return {"iqm": estimate.value, "low": estimate.low, "high": estimate.high, "seeds": each}


def say(result: dict[str, Any], label: str) -> dict[str, Any]:
    print(f"{result['iqm']:9.1f}  [{result['low']:.1f}, {result['high']:.1f}]  {label}", flush=True)
    return result


def per_seed(run: klimb.Run, metric: str) -> np.ndarray:
    """A metric of the whole run, `[iterations, seeds]`."""
    return np.array([np.broadcast_to(record[metric], (SEEDS,)) for record in run.history], float)


def first_reached(run: klimb.Run, threshold: float) -> dict[str, Any]:
    """Environment steps until the returns in training reach the threshold: their median, and how many seeds do."""
    returns, steps = per_seed(run, "episode_return"), per_seed(run, "env_steps")
    times = [time_to_threshold(returns[:, k], steps[:, k], steps[:, k], threshold).env_steps for k in range(SEEDS)]
    count = int(np.isfinite(times).sum())
    return {"threshold": threshold, "steps": median_time(np.array(times)), "seeds_that_did": count}


def run_of(command: str) -> klimb.Run:
    """The training that a command line starts, in memory, and without the certificate, which changes no step."""
    config, _ = train.configuration(load("train").parse(shlex.split(command)[2:]))
    options = dataclasses.replace(config.options, certificate=False)
    return start(dataclasses.replace(config, options=options), klimb.make(config.env))


def ladder() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for task in TASKS:
        for rung in LADDER:
            command = rung.command(task)
            run = run_of(command)
            result = {**worth(run, task.env), "command": command, "reached": first_reached(run, task.reached)}
            found.setdefault(task.env, {})[rung.idea] = say(result, f"{task.env}: {rung.idea}")
    return found


def scale() -> dict[str, Any]:
    """CartPole with its rewards times a number, and advantages that are not normalised unless it is said."""
    as_they_are = {"normalize_advantage": False}
    # A step size at which plain gradient ascent learns the task with its own rewards.
    plain = klimb.Reinforce(optimizer="sgd", learning_rate=0.3)
    contenders: dict[str, tuple[klimb.Rule, dict[str, Any]]] = {
        "gradient ascent (`reinforce --optimizer sgd --learning-rate 0.3`)": (plain, as_they_are),
        "gradient ascent, advantages normalised": (plain, {}),
        "Adam (`reinforce`)": (klimb.Reinforce(), as_they_are),
        "`kl-penalty`, λ = 1": (klimb.KLPenalty(), as_they_are),
        "`dual-descent --log-multiplier`": (klimb.DualDescent(log_multiplier=True), as_they_are),
        "`trpo`": (klimb.TRPO(), as_they_are),
    }
    found: dict[str, Any] = {}
    for name, (rule, options) in contenders.items():
        for factor in (0.01, 1.0, 100.0):
            task = OtherRewards(klimb.make(CARTPOLE.env), factor)
            result = measured(task, rule, on=CARTPOLE.env, env_steps=CARTPOLE.env_steps, **options)
            found.setdefault(name, {})[f"× {factor:g}"] = say(result, f"{name}, × {factor:g}")
    return found


ROWS = (512, 2048, 8192)
UPDATES = 98
"""Of 2048 rows each, the budget of the task."""


def batch() -> dict[str, Any]:
    """Pendulum with one budget cut into batches of several sizes; for REINFORCE also one number of batches."""
    found: dict[str, Any] = {}
    budgets = [(name, rule, dict.fromkeys(ROWS, PENDULUM.env_steps)) for name, rule in ENDS.items()]
    as_many = (f"REINFORCE, {UPDATES} batches", klimb.Reinforce(), {rows: UPDATES * rows for rows in ROWS})
    for name, rule, budget in (*budgets, as_many):
        for rows, env_steps in budget.items():
            result = measured(PENDULUM.env, rule, env_steps=env_steps, num_envs=rows // 128, num_steps=128)
            found.setdefault(name, {})[f"{rows}"] = say(result, f"{name}, {rows} rows")
    return found


def sparse() -> dict[str, Any]:
    """The rewards of an episode where they are earned, or all of them with its last step."""
    found: dict[str, Any] = {}
    for task in (CARTPOLE, PENDULUM):
        for name, rule in ENDS.items():
            for paid in ("at every step", "at the end"):
                other = OtherRewards(klimb.make(task.env), sparse=paid == "at the end")
                result = measured(other, rule, on=task.env, env_steps=task.env_steps)
                found.setdefault(f"{name}, {task.env}", {})[paid] = say(result, f"{name}, {task.env}, {paid}")
    return found


STARTS = (0.1, 100.0)
MARKS = (10, 30, 60, 120)


def multiplier() -> dict[str, Any]:
    """λ, and the KL over its limit, from several first λ: medians over seeds and over ten iterations up to a mark."""
    found: dict[str, Any] = {}
    for log_multiplier in (False, True):
        for first in STARTS:
            rule = klimb.DualDescent(initial_multiplier=first, log_multiplier=log_multiplier)
            options = klimb.TrainOptions()
            run = klimb.train(
                PENDULUM.env, rule, env_steps=MARKS[-1] * options.batch_size, num_seeds=SEEDS, certificate=False
            )
            series = {"multiplier": per_seed(run, "multiplier"), "kl": per_seed(run, "kl_old_new") / rule.epsilon}
            name = f"λ = {first:g}, " + ("steps of log λ" if log_multiplier else "steps of λ")
            found[name] = {
                what: {f"{mark}": float(np.median(values[mark - 10 : mark])) for mark in MARKS}
                for what, values in series.items()
            }
            print(name, found[name], flush=True)
    return found


PER_METRE = {"metres": 1.0, "decametres": 0.1, "hectometres": 0.01}
"""Not centimetres: the policy's normaliser clips observations at ±10."""
NATURAL_OPTIONS = {
    # Twenty whole episodes and no critic, whose network would not be the same in other units.
    "batch": "episodes",
    "num_envs": 20,
    "num_steps": 100,
    "bootstrap": None,
    "advantage": "time_baseline",
    "policy": "units:at_rest",
    "normalize_observations": False,
    "env_steps": 60 * 2000,
}
KL_LIMITS, SQUARED_LENGTHS = (0.003, 0.01, 0.03), (0.01, 0.03, 0.1, 0.3, 1.0)


def natural() -> dict[str, Any]:
    """Steps of a fixed length, plain and natural, by a linear policy, with positions in three units.

    Of every contender: the returns at the length that is best in metres, and at the one that is best in each unit.
    """
    contenders: dict[str, tuple[klimb.Rule, tuple[float, ...]]] = {
        "plain gradient, ‖θ′ − θ‖² = ε": (klimb.NaturalGradient(normalised=True), SQUARED_LENGTHS),
        "natural gradient, KL = ε, damping 10⁻⁶": (klimb.NaturalGradient(solver="dense", damping=1e-6), KL_LIMITS),
        "natural gradient, damping 0.1 (the default)": (klimb.NaturalGradient(solver="dense"), KL_LIMITS),
    }
    found: dict[str, Any] = {"best": units.best_return(units.InUnits()), "contenders": {}}
    for name, (rule, limits) in contenders.items():
        by_unit = {
            unit: tried(units.InUnits(per_metre=factor), rule, limits, **NATURAL_OPTIONS)
            for unit, factor in PER_METRE.items()
        }
        chosen = max(by_unit["metres"], key=lambda one: one["iqm"])["epsilon"]
        found["contenders"][name] = {
            unit: {
                "chosen": next(one for one in results if one["epsilon"] == chosen),
                "best": max(results, key=lambda one: one["iqm"]),
            }
            for unit, results in by_unit.items()
        }
        for unit, one in found["contenders"][name].items():
            say(one["chosen"], f"{name}, {unit}, ε = {chosen:g}; at best {one['best']['iqm']:.1f}")
    return found


def network() -> dict[str, Any]:
    """The plain gradient of the ladder on Pendulum, at other lengths of the step."""
    rule, lengths = klimb.NaturalGradient(normalised=True), (0.01, 0.03, 0.1)
    found = tried(PENDULUM.env, rule, lengths, env_steps=PENDULUM.env_steps)
    return {f"ε = {one['epsilon']:g}": say(one, f"plain gradient, ε = {one['epsilon']:g}") for one in found}


def tried(task: Any, rule: klimb.Rule, limits: tuple[float, ...], **options: Any) -> list[dict[str, Any]]:
    """What the policies are worth after steps of each length, all of them trained in one program."""
    runs = klimb.sweep(task, rule, {"epsilon": limits}, num_seeds=SEEDS, certificate=False, **options)
    return [{"epsilon": limit, **worth(run, task)} for limit, run in zip(limits, runs, strict=True)]


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "ladder": ladder,
    "scale": scale,
    "batch": batch,
    "sparse": sparse,
    "multiplier": multiplier,
    "natural": natural,
    "network": network,
}


def main(names: list[str]) -> None:
    """Measures parts and writes the page. names: of the parts; none for all of them."""
    if unknown := set(names) - set(PARTS):
        sys.exit(f"there is no part {', '.join(sorted(unknown))} here; there are {', '.join(PARTS)}")
    klimb.use_all_cores()
    compilation_cache.enable()
    results = {name: part for name, part in read_results("ideas").items() if name in PARTS}
    for name in names or PARTS:
        print("---", name, flush=True)
        began = time.perf_counter()
        results[name] = PARTS[name]()
        print(f"{time.perf_counter() - began:.0f} s", flush=True)
        write_results("ideas", **results)
    ideas_page.write(results)


if __name__ == "__main__":
    main(sys.argv[1:])
