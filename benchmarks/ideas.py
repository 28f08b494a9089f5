"""What each idea buys, from REINFORCE to TRPO, and what else the lectures claim: `make bench-ideas`.

Ten seeds each, in one program. A return is that of the trained policy's most probable actions over 20 episodes; of ten
seeds the interquartile mean, with a 95 % bootstrap interval. Parts (ladder, scale, batch, sparse, multiplier, natural)
can be named, to run them alone; what they find stays in the results file, from which the page is written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

import klimb
from klimb.report.statistics import stratified_bootstrap
from results_file import HERE, read_results, write_results
from rewards import OtherRewards

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = HERE.parent / "docs"
PAGE, FIGURE = DOCS / "ideas.md", DOCS / "figures" / "ideas.png"
SEEDS, EPISODES = 10, 20


@dataclass(frozen=True)
class Task:
    """An environment, its budget, and the longest episode. solved: the return in training that counts as reached."""

    env: str
    env_steps: int
    longest: int
    solved: float


TASKS = (
    Task("CartPole-v1", 100_000, 500, 475),
    Task("Acrobot-v1", 200_000, 500, -100),
    Task("Pendulum-v1", 300_000, 200, -250),
)


@dataclass(frozen=True)
class Rung:
    """A rule with one idea more than the rung before. whole: of whole episodes, without a critic."""

    idea: str
    name: str
    rule: klimb.Rule
    advantage: str = "gae"
    whole: bool = False

    def options(self, task: Task) -> dict[str, Any]:
        if not self.whole:
            return {}
        return {
            "batch": "episodes",
            "num_envs": 8,
            "num_steps": task.longest,
            "bootstrap": None,
            "advantage": self.advantage,
        }

    def command(self, task: Task) -> str:
        flags = "".join(
            f" --{name.replace('_', '-')} {'none' if value is None else value}"
            for name, value in self.options(task).items()
        )
        return f"klimb train {self.name} {task.env} --env-steps {task.env_steps} --num-seeds {SEEDS}{flags}"


LADDER = (
    Rung("the return of the episode, for each of its steps", "reinforce", klimb.Reinforce(), "total_return", True),
    Rung("causality: rewards from t on", "reinforce", klimb.Reinforce(), "reward_to_go", True),
    Rung("a baseline: the other episodes' average", "reinforce", klimb.Reinforce(), "leave_one_out", True),
    Rung("a baseline that knows the time", "reinforce", klimb.Reinforce(), "time_baseline", True),
    Rung("a critic: GAE, and batches of steps", "reinforce", klimb.Reinforce()),
    Rung("several steps a batch: importance weights", "off-policy-gradient", klimb.OffPolicyGradient()),
    Rung("a price on the KL", "kl-penalty", klimb.KLPenalty()),
    Rung("a limit on the KL, its price found by a dual step", "dual-descent", klimb.DualDescent()),
    Rung("the natural gradient, its length from the limit", "natural-gradient", klimb.NaturalGradient()),
    Rung("a line search that keeps the limit", "trpo", klimb.TRPO()),
    Rung("clipped ratios instead of a limit", "ppo", klimb.PPO()),
)


def trained(env: Any, rule: klimb.Rule, *, on: Any = None, seeds: int = SEEDS, **options: Any) -> dict[str, Any]:
    """The returns of ten policies after a training in `env`, evaluated in `on` (None for the same)."""
    run = klimb.train(env, rule, num_seeds=seeds, **options)
    policies = run.policies
    returns = [
        klimb.evaluate(policy, env if on is None else on, episodes=EPISODES, seed=1000).mean for policy in policies
    ]
    return {**summary(returns), "seeds": returns, "curve": curve(run)}


def curve(run: klimb.Run) -> dict[str, list]:
    """Environment steps, and the return in training of every seed, `[iterations, seeds]`."""
    rows = [record["episode_return"] for record in run.history]
    return {"env_steps": [record["env_steps"] for record in run.history], "returns": rows}


def summary(scores: list[float]) -> dict[str, float]:
    estimate = stratified_bootstrap([np.array(scores, float)])
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def reached(found: dict[str, Any], threshold: float) -> tuple[float, int]:
    """(median of the environment steps until a seed's episodes average the threshold over five iterations, of those
    that do, how many do)."""
    steps = np.array(found["curve"]["env_steps"], float)
    returns = np.array(found["curve"]["returns"], float)
    first = []
    for values in returns.T:
        known = np.flatnonzero(np.isfinite(values))
        smooth = np.convolve(values[known], np.full(5, 0.2), "valid")
        above = np.flatnonzero(smooth >= threshold)
        if len(above):
            first.append(steps[known[above[0] + 4]])
    return (float(np.median(first)) if first else float("nan")), len(first)


def ladder() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for task in TASKS:
        for rung in LADDER:
            result = trained(task.env, rung.rule, env_steps=task.env_steps, **rung.options(task))
            steps, count = reached(result, task.solved)
            key = f"{task.env}: {rung.idea}"
            found[key] = {**result, "command": rung.command(task), "reached": steps, "reached_by": count}
            del found[key]["curve"]
            say(found[key], key)
    return found


def say(result: dict[str, Any], label: str) -> None:
    print(f"{result['mean']:9.1f}  [{result['low']:.1f}, {result['high']:.1f}]  {label}", flush=True)


PLAIN = {"optimizer": "sgd", "learning_rate": 0.3}
"""A step size at which plain gradient ascent learns CartPole with its own rewards and advantages as they are."""


def scale() -> dict[str, Any]:
    """Rewards times 0.01, 1 and 100."""
    raw: dict[str, Any] = {"normalize_advantage": False}
    contenders: dict[str, tuple[klimb.Rule, dict[str, Any]]] = {
        "plain gradient (sgd), advantages as they are": (klimb.Reinforce(**PLAIN), raw),
        "plain gradient (sgd), advantages normalised": (klimb.Reinforce(**PLAIN), {}),
        "Adam, advantages as they are": (klimb.Reinforce(), raw),
        "natural gradient to a KL limit, advantages as they are": (klimb.NaturalGradient(), raw),
        "TRPO, advantages as they are": (klimb.TRPO(), raw),
    }
    return _each(
        contenders,
        {f"× {factor:g}": (lambda task, factor=factor: OtherRewards(task, factor)) for factor in (0.01, 1.0, 100.0)},
    )


def sparse() -> dict[str, Any]:
    """The rewards of an episode where they are earned, or all at its end."""
    contenders: dict[str, tuple[klimb.Rule, dict[str, Any]]] = {
        "REINFORCE": (klimb.Reinforce(), {}),
        "TRPO": (klimb.TRPO(), {}),
        "PPO": (klimb.PPO(), {}),
    }
    kinds: dict[str, Callable] = {
        "every step": OtherRewards,
        "at the end": lambda task: OtherRewards(task, sparse=True),
    }
    return _each(contenders, kinds)


def _each(contenders: dict[str, tuple[klimb.Rule, dict]], kinds: dict[str, Callable]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (rule, options) in contenders.items():
        for kind, wrapped in kinds.items():
            task = klimb.make("CartPole-v1")
            result = trained(wrapped(task), rule, on="CartPole-v1", env_steps=100_000, **options)
            del result["curve"]
            found.setdefault(name, {})[kind] = result
            say(result, f"{name}, {kind}")
    return found


ROWS = (256, 1024, 4096, 16384)


def batch() -> dict[str, Any]:
    """The same number of environment steps in many small batches or in a few large ones."""
    found: dict[str, Any] = {}
    for name, rule in {"REINFORCE": klimb.Reinforce(), "TRPO": klimb.TRPO(), "PPO": klimb.PPO()}.items():
        for rows in ROWS:
            options = {"num_envs": min(64, rows // 32), "num_steps": rows // min(64, rows // 32)}
            result = trained("Pendulum-v1", rule, env_steps=300_000, **options)
            del result["curve"]
            found.setdefault(name, {})[str(rows)] = result
            say(result, f"{name}, {rows} rows")
    return found


STARTS = (0.1, 1.0, 10.0, 100.0)
MARKS = (1, 10, 30, 100)


def multiplier() -> dict[str, Any]:
    """Where dual descent's λ goes from several starts, and how far the KL is from its limit meanwhile."""
    found: dict[str, Any] = {}
    for start in STARTS:
        rule = klimb.DualDescent(initial_multiplier=start, log_multiplier=True)
        run = klimb.train("Pendulum-v1", rule, env_steps=200 * 2048, num_seeds=SEEDS)
        λ = np.array([record["multiplier"] for record in run.history], float)
        kl = np.array([record["kl_old_new"] for record in run.history], float) / rule.epsilon
        windows = {str(mark): slice(max(0, mark - 10), mark) for mark in (*MARKS, len(λ))}
        found[f"{start:g}"] = {
            "multiplier": {at: float(np.median(λ[window])) for at, window in windows.items()},
            "kl over limit": {at: float(np.median(kl[window])) for at, window in windows.items()},
        }
        print(start, found[f"{start:g}"], flush=True)
    return found


LENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


def natural() -> dict[str, Any]:
    """Steepest ascent in KL against steepest ascent in parameters, each at the best of six step lengths.

    The lectures' example: linear dynamics, a quadratic cost, a linear Gaussian policy whose σ is a parameter too.
    """
    found: dict[str, Any] = {}
    for name, normalised in {"plain": True, "natural": False}.items():
        results = {}
        for length in LENGTHS:
            rule = klimb.NaturalGradient(epsilon=length, normalised=normalised)
            options = dict(hidden=(), normalize_observations=False, initial_log_std=0.0, env_steps=60 * 2048)
            results[length] = trained("LinearQuadratic-v0", rule, **options)
        best = max(results, key=lambda length: results[length]["mean"])
        at = results[best]
        iterations = len(at["curve"]["returns"])
        returns = np.array(at["curve"]["returns"], float)
        at["training"] = {str(i): float(np.nanmedian(returns[max(0, i - 5) : i])) for i in (5, 10, 20, 40, iterations)}
        del at["curve"]
        found[name] = {"length": best, **at}
        say(at, f"{name}, length {best:g}: {at['training']}")
    return found


def draw(found: dict[str, Any]) -> None:
    """A panel a task: what the policies of each rung reach, with its interval, from the first idea down."""
    figure, axes = plt.subplots(1, len(TASKS), figsize=(12, 4.4), sharey=True, layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        for row, rung in enumerate(LADDER):
            result = found[f"{task.env}: {rung.idea}"]
            axis.plot([result["low"], result["high"]], [row, row], color="#0072b2", linewidth=3, alpha=0.35)
            axis.plot(result["seeds"], [row] * SEEDS, "|", color="#0072b2", alpha=0.5, markersize=7)
            axis.plot(result["mean"], row, "o", color="#0072b2", markersize=7)
        axis.axvline(task.solved, color="#888888", linestyle="--", linewidth=1)
        axis.set_title(task.env, loc="left", fontsize=11)
        axis.set_xlabel("return")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(LADDER)), [rung.idea for rung in LADDER])
    axes[0].invert_yaxis()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)
    plt.close(figure)


def number(value: float, digits: int = 0) -> str:
    return f"{value:,.{digits}f}".replace(",", " ").replace("-", "−")


def interval(result: dict[str, Any]) -> str:
    return f"{number(result['mean'])} ({number(result['low'])} … {number(result['high'])})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def ladder_lines(found: dict[str, Any]) -> list[str]:
    lines = ["![What each idea buys](figures/ideas.png)", ""]
    rows = []
    for rung in LADDER:
        row = [rung.idea]
        for task in TASKS:
            result = found[f"{task.env}: {rung.idea}"]
            by = result["reached_by"]
            row.append(interval(result))
            row.append(f"{number(result['reached'])}, {by} of {SEEDS}" if by else "–")
        rows.append(row)
    head = ["and then"]
    for task in TASKS:
        head += [f"{task.env}, {number(task.env_steps)} steps", f"steps to {number(task.solved)}"]
    lines += table(head, rows)
    lines += ["The commands of the first column of returns:", "", "```"]
    return [*lines, *(rung.command(TASKS[0]) for rung in LADDER), "```", ""]


def crossed(found: dict[str, dict[str, Any]], first: str) -> list[str]:
    """A table of contenders against kinds."""
    kinds = list(next(iter(found.values())))
    return table([first, *kinds], [[name, *(interval(one[kind]) for kind in kinds)] for name, one in found.items()])


def multiplier_lines(found: dict[str, Any]) -> list[str]:
    marks = list(next(iter(found.values()))["multiplier"])
    rows = [
        [
            f"λ = {start} at first",
            *(f"{one['multiplier'][at]:.2g}; {one['kl over limit'][at]:.2f}" for at in marks),
        ]
        for start, one in found.items()
    ]
    return table(["", *(f"iteration {at}" for at in marks)], rows)


def natural_lines(found: dict[str, Any]) -> list[str]:
    marks = list(found["plain"]["training"])
    names = {"plain": "plain gradient, ‖θ' − θ‖² = ε (`--normalised`)", "natural": "natural gradient, KL = ε"}
    rows = [
        [names[name], f"{one['length']:g}", *(number(one["training"][at], 1) for at in marks), interval(one)]
        for name, one in found.items()
    ]
    head = ["", "best ε", *(f"iteration {at}" for at in marks), "trained policy, its most probable actions"]
    return table(head, rows)


def page(measured: dict[str, Any]) -> None:
    """What has been found, each part between the marks of its own in the page."""
    text = PAGE.read_text(encoding="utf-8")
    parts = {
        "ladder": ladder_lines(measured["ladder"]),
        "scale": crossed(measured["scale"], ""),
        "batch": crossed(measured["batch"], "rows a batch"),
        "sparse": crossed(measured["sparse"], "rewards are paid"),
        "multiplier": multiplier_lines(measured["multiplier"]),
        "natural": natural_lines(measured["natural"]),
    }
    for name, lines in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        head, _, tail = text.partition(begin)
        text = head + begin + "\n" + "\n".join(lines) + end + tail.partition(end)[2]
    PAGE.write_text(text, encoding="utf-8")


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "ladder": ladder,
    "scale": scale,
    "batch": batch,
    "sparse": sparse,
    "multiplier": multiplier,
    "natural": natural,
}


def main() -> None:
    measured = {name: part for name, part in read_results("ideas").items() if name in PARTS}
    for name in sys.argv[1:] or PARTS:
        print("---", name)
        measured[name] = PARTS[name]()
        write_results("ideas", **measured)
    if set(measured) == set(PARTS):
        draw(measured["ladder"])
        page(measured)


if __name__ == "__main__":
    main()
