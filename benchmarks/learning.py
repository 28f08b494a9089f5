"""Does every rule learn? `make bench-learning` runs the commands below and writes what came of them into the docs.

For every rule and environment: the returns of the trained policies (final evaluation, the most likely action), of
untrained ones, and the learning curve. The runs stay in `runs/learning`; a run that is there already is not made
again, so that a run can be looked at with `klimb report`. `benchmarks/learning.py RULE...` measures some rules only and
leaves the pages and results of the others as they are.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import matplotlib
import numpy as np

import klimb
from results_file import HERE, read_results, write_results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RUNS, DOCS = HERE.parent / "runs" / "learning", HERE.parent / "docs" / "algorithms"
BEGIN, END = "<!-- measured -->", "<!-- end of what is measured -->"


@dataclass(frozen=True)
class Task:
    """An environment with its budget, and the goal of a rule there."""

    name: str
    env: str
    flags: str
    goal: str
    needed: float

    @property
    def label(self) -> str:
        return self.env.removeprefix("gymnasium:")


TASKS = [
    Task("cartpole", "CartPole-v1", "--env-steps 200000 --num-seeds 5", "≥ 475 for every seed", 475),
    Task("pendulum", "Pendulum-v1", "--env-steps 400000 --num-seeds 5", "better than untrained by 400", 400),
    Task(
        "halfcheetah",
        "gymnasium:HalfCheetah-v5",
        "--preset none --env-steps 200000 --num-seeds 3 --num-envs 4 --num-steps 512 --eval-episodes 20",
        "better than untrained by 500",
        500,
    ),
]
RULES = (
    *("reinforce", "off-policy-gradient", "kl-penalty", "dual-descent", "natural-gradient", "trpo", "ppo"),
    *("conservative-policy-iteration", "reps", "v-mpo", "awr"),
)
CLONING = "behaviour-cloning"
VARIANTS = {
    "off-policy-gradient": ("--weighting per_decision", "--weighting trajectory", "--history 4 --behaviour mixture"),
    "dual-descent": ("--divergence tv --epsilon 0.05 --log-multiplier", "--divergence kl_new_old --log-multiplier"),
    "natural-gradient": ("--solver woodbury --fisher empirical --num-envs 2", "--normalised --epsilon 0.003"),
    "trpo": ("--line-search growing", "--fisher empirical", "--fisher-fraction 0.1", "--kl-direction new_old"),
    "ppo": ("--penalty kl",),
    "conservative-policy-iteration": ("--mixture none", "--learning-rate 0.003"),
    "reps": ("--epsilon 0.1",),
    "v-mpo": ("--top-fraction 1",),
    "awr": ("--temperature 0.3",),
}


@dataclass(frozen=True)
class Measured:
    """A run and what it is compared with; returns are means over seeds of means over episodes."""

    rule: str
    env: str
    goal: str
    command: str
    untrained: float
    trained: float
    lowest: float
    enough: bool


def run(arguments: str, name: str) -> Path:
    """`klimb train ARGUMENTS`, unless it has been run before."""
    directory = RUNS / name
    if not (directory / "evaluation.json").exists():
        print(f"klimb train {arguments}", flush=True)
        command = [str(Path(sys.executable).with_name("klimb")), "train", *shlex.split(arguments)]
        subprocess.run([*command, "--run-dir", str(directory)], check=True, stdout=subprocess.DEVNULL, timeout=900)
    return directory


def returns(directory: Path) -> list[float]:
    """The final evaluation's mean return of every seed."""
    return [entry["mean"] for entry in json.loads((directory / "evaluation.json").read_text())["seeds"]]


def untrained(task: Task, seeds: int = 5) -> float:
    """The mean return of fresh policies."""
    env = klimb.make(task.env)
    size = env.observation_space.shape[0]
    policies = [klimb.NetworkPolicy(size, env.actions, key=jax.random.key(k)) for k in range(seeds)]
    return float(np.mean([klimb.evaluate(policy, env, episodes=10, seed=k).mean for k, policy in enumerate(policies)]))


def measure(rule: str, task: Task, start: float, extra: str = "") -> tuple[Measured, Path]:
    arguments = " ".join(filter(None, (rule, task.env, task.flags, extra)))
    directory = run(arguments, f"{rule}-{task.name}" + "".join(extra.replace("--", "-").replace(".", "").split()))
    each = returns(directory)
    lenient = rule in ("reinforce", "off-policy-gradient") and task.name == "cartpole"
    needed, goal = (400, "≥ 400 for every seed") if lenient else (task.needed, task.goal)
    enough = min(each) >= needed if task.name == "cartpole" else np.mean(each) - start >= needed
    return (
        Measured(
            rule, task.label, goal, f"klimb train {arguments}", start, float(np.mean(each)), min(each), bool(enough)
        ),
        directory,
    )


def clone(task: Task, start: float) -> tuple[Measured, Path]:
    """Twenty episodes of the TRPO policy's first seed, cloned, and the clone trained on."""
    teacher = RUNS / f"trpo-{task.name}"
    demonstrations = RUNS / f"demonstrations-{task.name}.safetensors"
    if not demonstrations.exists():
        klimb_ = str(Path(sys.executable).with_name("klimb"))
        subprocess.run([klimb_, "record", str(teacher), "-o", str(demonstrations)], check=True, timeout=600)
    shown = f"klimb train behaviour-cloning {task.env} --demonstrations RUN"
    directory = run(f"{CLONING} {task.env} --demonstrations {demonstrations}", f"{CLONING}-{task.name}")
    each, taught = returns(directory), klimb.load_demonstrations(demonstrations).returns.mean()
    needed = 450 if task.name == "cartpole" else start + 0.7 * (taught - start)
    goal = "≥ 450" if task.name == "cartpole" else f"most of the way to the demonstrator's {taught:.0f}"
    measured = Measured(
        CLONING, task.label, goal, shown, start, float(np.mean(each)), min(each), bool(min(each) >= needed)
    )
    return measured, run(f"trpo {task.env} {task.flags} --init-from {directory}", f"fine-tuning-{task.name}")


def curve(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps, and the mean return of the episodes that ended, `[iterations, seeds]`."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    values = np.array([np.atleast_1d(record["episode_return"]) for record in records], dtype=float)
    return np.array([record["env_steps"] for record in records]), values


def draw(rule: str, runs: list[tuple[Task, Path, float]]) -> None:
    """One panel an environment: every seed, their mean, and where an untrained policy is."""
    figure, axes = plt.subplots(1, len(runs), figsize=(4.2 * len(runs), 2.9), layout="constrained")
    for axis, (task, directory, start) in zip(axes, runs, strict=True):
        steps, values = curve(directory)
        width = max(1, len(steps) // 60)
        cut = len(steps) // width * width
        with np.errstate(all="ignore"):
            smooth = np.array([np.nanmean(part, axis=0) for part in np.split(values[:cut], cut // width)])
        at = steps[:cut].reshape(-1, width).mean(1)
        known = np.isfinite(smooth)
        for seed in range(smooth.shape[1]):
            axis.plot(at[known[:, seed]] / 1e3, smooth[known[:, seed], seed], color="#0072b2", alpha=0.3, linewidth=1)
        every = known.any(1)
        axis.plot(at[every] / 1e3, np.nanmean(smooth[every], axis=1), color="#0072b2", linewidth=2.2)
        axis.axhline(start, color="#888888", linestyle="--", linewidth=1)
        axis.annotate(
            "untrained", (1, start), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#666666"
        )
        axis.set_title(task.label, loc="left", fontsize=11)
        axis.set_xlabel("environment steps, thousands")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("return")
    (DOCS / "figures").mkdir(parents=True, exist_ok=True)
    figure.savefig(DOCS / "figures" / f"{rule}.png", dpi=110)
    plt.close(figure)


def describe(rule: str, rows: list[Measured], tuned: dict[str, float] | None) -> None:
    """The figure and the table, between the marks of the rule's page."""
    page = DOCS / f"{rule}.md"
    about = (
        "Return of the training episodes: one faint line per seed, their mean, and the return of untrained policies "
        "(dashed)."
    )
    if tuned is not None:
        about = (
            "TRPO training that starts from the clone (`--init-from`): one faint line per seed and their mean; "
            "untrained policies (dashed)."
        )
    lines = [f"![{rule}: learning curves](figures/{rule}.png)", "", about, ""]
    lines += ["| command | untrained | trained | lowest seed |", "|---|---|---|---|"]
    lines += [f"| `{row.command}` | {round(row.untrained)} | {row.trained:.1f} | {row.lowest:.1f} |" for row in rows]
    if tuned is not None:
        low = ", ".join(f"{name} {value:.1f}" for name, value in tuned.items())
        lines += ["", f"Lowest mean return of any iteration and seed in these TRPO trainings: {low}."]
    lines += ["", "All rows are measured by `make bench-learning`."]
    text = page.read_text(encoding="utf-8")
    head, _, tail = text.partition(BEGIN)
    tail = tail.partition(END)[2] if END in tail else tail
    page.write_text(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + tail, encoding="utf-8")


def main(names: list[str]) -> None:
    """Measures rules and writes their results and pages. names: of the rules; none for all of them."""
    if unknown := set(names) - {*RULES, CLONING}:
        sys.exit(f"there is no rule {', '.join(sorted(unknown))} here; there are {', '.join((*RULES, CLONING))}")
    chosen = [rule for rule in RULES if not names or rule in names]
    starts = {task.name: untrained(task) for task in TASKS}
    found = {rule: [measure(rule, task, starts[task.name]) for task in TASKS] for rule in chosen}
    before = read_results("learning") if names else {}
    tuned = before.get("fine_tuning_lowest", {})
    if not names or CLONING in names:
        found[CLONING] = [clone(task, starts[task.name]) for task in TASKS]
        tuned = {
            task.label: float(np.nanmin(curve(path)[1])) for task, (_, path) in zip(TASKS, found[CLONING], strict=True)
        }
    variants = {
        rule: [measure(rule, TASKS[0], starts["cartpole"], flags)[0] for flags in VARIANTS.get(rule, ())]
        for rule in found
    }
    everything = [row for rule in found for row in ([row for row, _ in found[rule]] + variants[rule])]
    results = [row for row in before.get("results", []) if row["rule"] not in found] + [vars(row) for row in everything]
    write_results("learning", fine_tuning_lowest=tuned, results=results)
    for rule, runs in found.items():
        draw(rule, [(task, path, starts[task.name]) for task, (_, path) in zip(TASKS, runs, strict=True)])
        rows = [row for row in everything if row.rule == rule]
        describe(rule, rows, tuned if rule == CLONING else None)
    for row in everything:
        print(f"{'ok  ' if row.enough else 'MISS'} {row.trained:9.1f} (lowest {row.lowest:.1f}) {row.command}")


if __name__ == "__main__":
    main(sys.argv[1:])
