"""Directions of TRPO's step: products and milliseconds against the angle to the exact one, and against returns.

`make bench-direction`. Batches come from trainings with the presets: one early, one in the middle and one at the end
of 300 000 steps. The exact direction is what conjugate gradient converges to. Every solver is compiled with everything
a step needs for it, so that solvers of the same row of milliseconds differ in the solve alone.

`natural_direction.py returns` trains the two kinds of steps on three tasks, ten seeds each, that the published table
does not use (an hour). Runs that are there are kept. `natural_direction.py page` only writes the tables of
docs/algorithms/trpo.md again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import klimb
from klimb.improve.fisher import fisher_rows, linearise
from klimb.improve.kronecker import preconditioned
from klimb.improve.minibatches import random_rows
from klimb.improve.natural_direction import conjugate_gradient, woodbury
from klimb.improve.objectives import surrogate_gain
from klimb.policies.actions import Box
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.training.devices import compiler_options
from klimb.types import Batch
from results_file import HERE, Line, read_results, write_results

DAMPING, TURNS = 0.1, 15
PRESET = {"num_envs": 16, "num_steps": 64, "initial_log_std": -0.5, "critic_epochs": 20}
TASKS = {
    "gymnasium:HalfCheetah-v5": (300_000, PRESET),
    "gymnasium:Hopper-v5": (300_000, PRESET),
    "gymnasium:Walker2d-v5": (300_000, PRESET),
    "jax:CartPole-v1": (100_000, {"num_envs": 8, "num_steps": 256}),
}
MOMENTS = {"early": 1 / 8, "middle": 1 / 2, "end": 1}
STEPS = {"kronecker": "", "none": "--preconditioner none --cg-min-progress 0"}
"""How the two kinds of steps are asked for, in trainings to compare returns."""
RETURNS = HERE.parent / "runs" / "direction"


class Recorder(klimb.TRPO):
    """TRPO that keeps the policies and batches of all its steps."""

    def step(self, key, policy, state, batch):
        jax.debug.callback(lambda *both: KEPT.append(both), policy, batch, ordered=True)
        return super().step(key, policy, state, batch)


KEPT: list[tuple[Any, Batch]] = []


def recorded(env: str) -> dict[str, tuple[Any, Batch]]:
    """Policies and batches of a training, by moment."""
    steps, options = TASKS[env]
    KEPT.clear()
    klimb.train(env, Recorder(), env_steps=steps, seed=100, cores=1, eval_episodes=0, **options)
    jax.effects_barrier()
    return {name: KEPT[round(share * len(KEPT)) - 1] for name, share in MOMENTS.items()}


class Solver(NamedTuple):
    """A way to a direction: (policy, batch, gradient) ↦ (x, products)."""

    name: str
    solve: Callable[[Any, Batch, jax.Array], tuple[jax.Array, jax.Array]]


def products_of(policy: Any, batch: Batch) -> Callable[[jax.Array], jax.Array]:
    theta, rebuild = flatten(policy)
    return linearise(lambda v: action_distribution(rebuild(v), batch.obs), theta, batch.weight).product


def by_conjugate_gradient(
    kind: str, iterations: int, min_progress: float = 0.0, fraction: float = 1.0, tolerance: float = 0.0
) -> Callable:
    """The solve with a preconditioner, and products of a fraction of the rows."""

    def solve(policy, batch, gradient):
        rows = batch if fraction == 1 else batch.take(random_rows(jax.random.key(0), batch.obs, fraction))
        product = products_of(policy, rows)
        found = conjugate_gradient(
            lambda v: product(v) + DAMPING * v,
            gradient,
            iterations=iterations,
            tolerance=tolerance,
            min_progress=min_progress,
            preconditioner=preconditioned(kind, policy, batch, damping=DAMPING),
        )
        return found.x, found.iterations

    return solve


def by_jacobi(iterations: int) -> Callable:
    """The solve with the diagonal of F, on a sixteenth of the rows, as preconditioner (Jacobi)."""

    def solve(policy, batch, gradient):
        product = products_of(policy, batch)
        few = batch.take(random_rows(jax.random.key(0), batch.obs, 1 / 16))
        diagonal = jnp.sum(jnp.square(fisher_rows(policy, few, "exact")), axis=0) + DAMPING
        found = conjugate_gradient(
            lambda v: product(v) + DAMPING * v,
            gradient,
            iterations=iterations,
            tolerance=0.0,
            preconditioner=lambda v: v / diagonal,
        )
        return found.x, found.iterations

    return solve


def solvers() -> list[Solver]:
    """What is compared."""
    return [
        *(Solver(f"cg, {n} products", by_conjugate_gradient("none", n)) for n in (5, 10, 20, 40)),
        Solver("cg, 10 products of a quarter of the rows", by_conjugate_gradient("none", 10, fraction=0.25)),
        Solver("cg with the diagonal, 10 products", by_jacobi(10)),
        *(Solver(f"cg with K-FAC, {n} products", by_conjugate_gradient("kronecker", n)) for n in (1, 2, 4, 10)),
        Solver("cg with K-FAC until settled (the default)", by_conjugate_gradient("kronecker", 10, 0.1)),
        Solver("cg with K-FAC, 4 products of a quarter", by_conjugate_gradient("kronecker", 4, fraction=0.25)),
    ]


def angles(env: str) -> list[dict]:
    """Every solver at every moment of a training."""
    moments = recorded(env)
    compiled = {one.name: jax.jit(one.solve, compiler_options=compiler_options()) for one in solvers()}
    return [
        {"task": env, "moment": moment, "rows": len(kept[1].weight)} | row
        for moment, kept in moments.items()
        for row in compared(compiled, *jax.tree.map(jnp.asarray, kept))
    ]


def compared(compiled: dict[str, Callable], policy: Any, batch: Batch) -> list[dict]:
    """Every solver on one batch: cos² is its share of the exact direction in the norm of F + η, gain that of gᵀx for a
    given KL."""
    theta, rebuild = flatten(policy)
    gradient = jax.jit(jax.grad(lambda v: surrogate_gain(action_distribution(rebuild(v), batch.obs), batch)))(theta)
    product = jax.jit(products_of(policy, batch))
    exact, _ = jax.jit(by_conjugate_gradient("kronecker", 400, tolerance=1e-7))(policy, batch, gradient)

    def gain(x):
        return float(jnp.vdot(gradient, x) / jnp.sqrt(jnp.vdot(x, product(x))))

    def inner(u, v):
        return float(jnp.vdot(u, product(v) + DAMPING * v))

    took = milliseconds({name: partial(run, policy, batch, gradient) for name, run in compiled.items()})
    rows = []
    for name, run in compiled.items():
        x, products = run(policy, batch, gradient)
        cosine = inner(x, exact) / np.sqrt(inner(x, x) * inner(exact, exact))
        rows.append(
            {
                "solver": name,
                "products": int(products),
                "cosine": round(cosine, 4),
                "gain": round(gain(x) / gain(exact), 4),
                "milliseconds": round(took[name], 3),
            }
        )
    return rows


def milliseconds(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Medians, by turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(TURNS):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            taken[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in taken.items()}


def sizes() -> list[dict]:
    """Milliseconds of the exact solve in sample space (Woodbury) and of conjugate gradient, by rows and widths."""
    found = []
    for width in (8, 64):
        for rows in (16, 64, 256):
            policy = klimb.NetworkPolicy(17, Box((-1.0,) * 6, (1.0,) * 6), hidden=(width, width), key=KEY)
            obs = jax.random.normal(KEY, (rows, 17))
            distribution = action_distribution(policy, obs)
            action = distribution.sample(KEY)
            ones = jnp.ones(rows)
            batch = Batch(obs, action, distribution.log_prob(action), ones, ones, ones)
            gradient = jax.random.normal(KEY, flatten(policy).theta.shape)
            runs = {
                "woodbury": lambda policy, batch, g: (
                    woodbury(fisher_rows(policy, batch, "exact"), g, damping=DAMPING).x
                ),
                "cg with K-FAC until settled": by_conjugate_gradient("kronecker", 10, 0.1),
                "cg, 100 products": by_conjugate_gradient("none", 100),
            }
            compiled = {name: jax.jit(run, compiler_options=compiler_options()) for name, run in runs.items()}
            took = milliseconds({name: partial(run, policy, batch, gradient) for name, run in compiled.items()})
            found.append({"hidden": width, "rows": rows} | {name: round(value, 3) for name, value in took.items()})
    return found


KEY = jax.random.key(0)


def train(kind: str, env: str, seed: int) -> Path:
    """The run of five seeds, trained unless it is there."""
    name = env.partition(":")[2].partition("-")[0]
    directory = RETURNS / f"{kind}-{name}-{seed}"
    if not (directory / "evaluation.json").exists():
        klimb_command = str(Path(sys.executable).with_name("klimb"))
        flags = f"--env-steps 500000 --seed {seed} --num-seeds 5 --eval-episodes 20 --cores 1 --workers 0 --quiet"
        command = [klimb_command, "train", "trpo", env, *flags.split(), "--run-dir", str(directory)]
        subprocess.run([*command, *STEPS[kind].split()], check=True, stdout=subprocess.DEVNULL)
    return directory


def returns() -> list[dict]:
    """Means over seeds 100 to 109 of 20 deterministic episodes of the final policies, with bootstrap intervals."""
    pieces = [(kind, env, seed) for env in list(TASKS)[:3] for kind in STEPS for seed in (100, 105)]
    with ThreadPoolExecutor(2) as pool:
        directories = list(pool.map(lambda piece: train(*piece), pieces))
    found = []
    for env in list(TASKS)[:3]:
        for kind in STEPS:
            mine = [d for d, piece in zip(directories, pieces, strict=True) if piece[:2] == (kind, env)]
            seeds = [seed["mean"] for d in mine for seed in json.loads((d / "evaluation.json").read_text())["seeds"]]
            records = [json.loads(line) for d in mine for line in (d / "metrics.jsonl").read_text().splitlines()]
            means = np.random.default_rng(0).choice(seeds, (10_000, len(seeds))).mean(axis=1)
            found.append(
                {
                    "task": env,
                    "preconditioner": kind,
                    "flags": STEPS[kind],
                    "returns": [round(one, 1) for one in seeds],
                    "mean": round(float(np.mean(seeds)), 1),
                    "interval": np.round(np.quantile(means, (0.025, 0.975)), 1).tolist(),
                    "products": round(float(np.mean([record["cg_iterations"] for record in records])), 2),
                    "kl": round(float(np.mean([record["kl_old_new"] for record in records])), 5),
                }
            )
    return found


def page(kept: dict[str, list[dict]]) -> list[str]:
    """The tables of docs/algorithms/trpo.md; without those of what has not been measured."""
    tables = {"angles": angles_table, "returns": returns_table, "sizes": sizes_table}
    return [line for part, table in tables.items() if kept[part] for line in [*table(kept[part]), ""]][:-1]


def angles_table(measured: list[dict]) -> list[str]:
    """The angles of the MuJoCo tasks."""
    tasks = [env for env in TASKS if env.startswith("gymnasium:")]
    lines = [
        "`make bench-direction`: batches of HalfCheetah-v5, Hopper-v5 and Walker2d-v5 after an eighth, a half and all",
        "of 300 000 steps with the preset. cos² of the angle to the exact direction, as means over the tasks; gᵀx per",
        "KL as a fraction of that of the exact direction, at the end; milliseconds of a solve, median.",
        "",
        "| solve | products | cos², early | middle | end | gᵀx per KL, end | ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["solver"] for row in measured):
        rows = [row for row in measured if row["solver"] == name and row["task"] in tasks]
        squares = {m: np.mean([row["cosine"] ** 2 for row in rows if row["moment"] == m]) for m in MOMENTS}
        gain = np.mean([row["gain"] for row in rows if row["moment"] == "end"])
        products, took = (np.mean([row[key] for row in rows]) for key in ("products", "milliseconds"))
        cells = [f"{products:.3g}", *(f"{value:.2f}" for value in squares.values()), f"{gain:.2f}", f"{took:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def returns_table(measured: list[dict]) -> list[str]:
    """Both kinds of steps on every task."""
    lines = [
        "Returns after 500 000 steps with the preset (`python benchmarks/natural_direction.py returns`): 20",
        "deterministic episodes of the final policies of ten seeds (100 to 109), mean and 95 % bootstrap interval over",
        "seeds. In these runs the factors came from half of the rows, drawn anew in every step, instead of a quarter.",
        "",
        "| task | options | return | products per step |",
        "|---|---|---|---|",
    ]
    for row in measured:
        low, high = row["interval"]
        options = f"`{row['flags']}`" if row["flags"] else "defaults"
        task, value = row["task"].partition(":")[2], f"{row['mean']:.0f} [{low:.0f}, {high:.0f}]"
        lines.append(f"| {task} | {options} | {value} | {row['products']:.1f} |")
    return lines


def sizes_table(measured: list[dict]) -> list[str]:
    """The exact solve beside conjugate gradient."""
    lines = [
        "The exact solve in sample space (`--solver woodbury` of the natural gradient) in milliseconds, for 17",
        "observations and 6 actions:",
        "",
        "| rows | hidden layers | woodbury | cg with K-FAC until settled | cg, 100 products |",
        "|---|---|---|---|---|",
    ]
    for row in measured:
        took = (row["woodbury"], row["cg with K-FAC until settled"], row["cg, 100 products"])
        lines.append(f"| {row['rows']} | 2 × {row['hidden']} | {' | '.join(f'{one:.2f}' for one in took)} |")
    return lines


def write_page(kept: dict[str, list[dict]]) -> None:
    """The tables, between the markers of docs/algorithms/trpo.md."""
    path = HERE.parent / "docs" / "algorithms" / "trpo.md"
    before, rest = path.read_text().split("<!-- direction -->\n")
    _, after = rest.split("<!-- end of direction -->")
    path.write_text("\n".join([before + "<!-- direction -->", *page(kept), "<!-- end of direction -->" + after]))


def main() -> None:
    """Measure, print and keep."""
    kept = {part: read_results("natural_direction").get(part, []) for part in ("angles", "sizes", "returns")}
    if sys.argv[1:] == ["page"]:
        write_page(kept)
        return
    if sys.argv[1:] == ["returns"]:
        kept["returns"] = [Line(row) for row in returns()]
    else:
        kept["angles"] = [Line(row) for env in TASKS for row in angles(env)]
        kept["sizes"] = [Line(row) for row in sizes()]
    for rows in kept.values():
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    write_page(kept)
    write_results("natural_direction", **{part: [Line(row) for row in rows] for part, rows in kept.items()})


if __name__ == "__main__":
    main()
