"""What guided policy search brings, beside TRPO: `make bench-guided`, or `python benchmarks/guided.py [PART ...]`.

    steps     environment steps until the cart-pole swing-up is solved, and what others reach in as many
    pendulum  `klimb train guided Pendulum-v1`, seed by seed
    reacher   mirror descent on Gymnasium's Reacher-v5, where the dynamics are not known
    tasks     with the simulator's derivatives, on five MuJoCo tasks
    strip     both figures, of what the parts before have left in `runs/guided`
    page      the tables, between the marks of docs/algorithms/guided.md

Without words all of them. Trainings stay in `runs/guided`, and one that is there is not made again (of the swing-up:
if its settings are the same), so that a part that was cut off goes on where it was; delete the folder to measure anew.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import guided_figures
import guided_tasks
import klimb
import learning
from guided_runs import EPISODES, RUNS, evaluated, listed, minus, table, thousands, trained
from klimb.cli import compilation_cache
from klimb.guided.guides import Guides
from klimb.guided.search import GuidedPolicySearch
from klimb.improve.rule import Rule
from klimb.training.program import Program
from results_file import read_results, write_results

PAGE = learning.DOCS / "guided.md"

# steps: the most probable actions of EPISODES episodes have to average THRESHOLD.
SWING_UP, THRESHOLD, EVALUATION_SEED = "CartPoleSwingUp-v0", -80.0, 10_000
# Others than those that the settings were chosen on: guided's on 0 to 4 and 10 to 12, TRPO's on 5 and 6.
SEEDS, TRYING = range(20, 25), range(5, 7)
GUIDED = {"guiding_samples": 1, "kept_iterations": 4, "supervised_iterations": 50}
GUIDED_OPTIONS = {"num_envs": 4, "num_steps": 200}
GUIDED_LIMIT, GUIDED_EVERY = 20_000, 1
TRPO_TRIED = [
    {"max_kl": max_kl, "num_envs": num_envs, "num_steps": 200}
    for max_kl in (0.003, 0.01, 0.03)
    for num_envs in (1, 2, 4, 8)
]
TRPO_LIMIT, TRPO_EVERY = 600_000, 2
# Like guided policy search without guides: importance-weighted steps on what several policies have collected.
OFF_POLICY = {"history": 4, "behaviour": "mixture"}

# pendulum and reacher: as anyone would type it.
PENDULUM, PENDULUM_SEEDS = "guided Pendulum-v1", range(5)
REACHER = {
    "guided": "guided gymnasium:Reacher-v5 --method mirror_descent",
    "trpo": "trpo gymnasium:Reacher-v5 --preset none",
}
REACHER_FLAGS = "--num-envs 32 --num-steps 50 --env-steps 48000 --initial-log-std -0.5 --num-seeds 3"

# strip: the key of the start, and how long the guide is planned for; shown are the first seconds of it.
STRIP_START, STRIP_HORIZON = 0, 200


@dataclass(frozen=True)
class Contender:
    """A rule with its settings; evaluated every so many iterations, until `limit` environment steps."""

    name: str
    rule: Rule
    options: dict[str, Any]
    every: int
    limit: int

    def config(self, seed: int) -> klimb.RunConfig:
        options = klimb.TrainOptions(env_steps=self.limit, seed=seed, certificate=False, **self.options)
        return klimb.RunConfig(SWING_UP, self.rule, options)

    @functools.cached_property
    def program(self) -> Program:
        """One for all seeds: it is compiled once."""
        return Program(self.config(0), swing_up())


def guided() -> Contender:
    return Contender("guided", GuidedPolicySearch(**GUIDED), GUIDED_OPTIONS, GUIDED_EVERY, GUIDED_LIMIT)


def trpo(max_kl: float, **options: Any) -> Contender:
    name = f"trpo-{max_kl:g}-{options['num_envs']}x{options['num_steps']}"
    return Contender(name, klimb.TRPO(max_kl=max_kl), options, TRPO_EVERY, TRPO_LIMIT)


@functools.cache
def swing_up() -> Any:
    return klimb.make(SWING_UP)


@eqx.filter_jit
def mean_return(policy: Any) -> jax.Array:
    """Of EPISODES episodes by the most probable actions: what `klimb.evaluate` gives, compiled once."""
    environment = swing_up()
    keys = jax.random.split(jax.random.split(jax.random.key(EVALUATION_SEED))[1], EPISODES)

    def step(carry: tuple, _: None) -> tuple:
        state, obs = carry
        distribution = jax.vmap(policy)(obs)
        action = environment.actions.clip(distribution.to_environment(distribution.mode()))
        after = jax.vmap(environment.step)(keys, state, action)
        return (after.state, after.obs), after.reward

    start = jax.vmap(environment.reset)(keys)
    return jnp.mean(jnp.sum(jax.lax.scan(step, start, None, length=environment.max_episode_steps)[1], axis=0))


def solve(contender: Contender, seed: int) -> dict[str, Any]:
    """Train until the threshold: `steps` (None where the limit came first) and `curve`, [steps, mean return] each.

    Untrained and trained policy stay in the folders `before` and `after` of the one that this is kept in.
    """
    config = contender.config(seed)
    evaluation = {"every": contender.every, "threshold": THRESHOLD, "episodes": EPISODES, "seed": EVALUATION_SEED}
    settings = json.loads(json.dumps({**config.to_dict(), "evaluation": evaluation}))
    folder = RUNS / "steps" / f"{contender.name}-seed{seed}"
    kept = folder / "solved.json"
    if kept.exists() and (found := json.loads(kept.read_text()))["settings"] == settings:
        return found
    program = contender.program
    program._copies.seeds[:] = [seed]
    state, steps = program.initial_state(), None
    (policy,) = program.policies(state)
    klimb.save_policy(policy, folder / "before")
    curve = [[0, float(mean_return(policy))]]
    for done in range(0, config.num_iterations, contender.every):
        state, metrics = program.advance(state, min(contender.every, config.num_iterations - done))
        (policy,) = program.policies(state)
        curve.append([int(metrics["env_steps"][-1, 0]), float(mean_return(policy))])
        if curve[-1][1] >= THRESHOLD:
            steps = curve[-1][0]
            break
    klimb.save_policy(policy, folder / "after")
    found = {"settings": settings, "seed": seed, "steps": steps, "curve": curve}
    kept.write_text(json.dumps(found) + "\n")
    print(f"{contender.name:<18} seed {seed}: {f'{steps:,} steps' if steps else 'not solved'}", flush=True)
    return found


def counted(contender: Contender, seeds: range) -> list[int]:
    """Steps of every seed; one that never gets there counts the limit."""
    return [solve(contender, seed)["steps"] or contender.limit for seed in seeds]


def contest(contender: Contender) -> dict[str, Any]:
    """The steps that count, and what the last evaluation was."""
    steps, runs = counted(contender, SEEDS), [solve(contender, seed) for seed in SEEDS]
    return {
        "rule": dataclasses.asdict(contender.rule),
        "options": contender.options,
        "median": statistics.median(steps),
        "steps": [run["steps"] for run in runs],
        "limit": contender.limit,
        "last_evaluation": [run["curve"][-1][1] for run in runs],
        "untrained": [run["curve"][0][1] for run in runs],
    }


def without_guides(rule: Rule, options: dict[str, Any], budget: int) -> dict[str, Any]:
    """What a rule reaches in `budget` environment steps, or the few more that its last iteration makes of them."""
    run = klimb.train(
        SWING_UP, rule, env_steps=budget, seed=SEEDS[0], num_seeds=len(SEEDS), certificate=False, **options
    )
    batch = options["num_envs"] * options["num_steps"]
    each = [float(mean_return(policy)) for policy in run.policies]
    return {"env_steps": -(-budget // batch) * batch, "options": options, "mean": statistics.mean(each), "seeds": each}


def steps() -> dict[str, Any]:
    """Guided policy search, the best TRPO, and what can be done without guides in the steps of the former."""
    tried = [{**setting, "steps": counted(trpo(**setting), TRYING)} for setting in TRPO_TRIED]
    best = TRPO_TRIED[int(np.argmin([statistics.mean(one["steps"]) for one in tried]))]
    alone = trpo(**best)
    contests = {"guided": contest(guided()), "trpo": contest(alone)}
    budget = max(counted(guided(), SEEDS))
    ratio = contests["trpo"]["median"] / contests["guided"]["median"]
    print(f"TRPO / guided: {ratio:.1f} times the steps; without guides stopped at {budget:,}", flush=True)
    return {
        "threshold": THRESHOLD,
        "episodes": EPISODES,
        "tried": tried,
        "best": best,
        "contenders": contests,
        "ratio_of_medians": ratio,
        "budget": budget,
        "without_guides": {
            "trpo": without_guides(alone.rule, alone.options, budget),
            "off-policy-gradient": without_guides(klimb.OffPolicyGradient(**OFF_POLICY), GUIDED_OPTIONS, budget),
        },
    }


def pendulum_run(seed: int) -> tuple[str, str]:
    return f"{PENDULUM} --seed {seed}", f"pendulum-{seed}"


def pendulum() -> dict[str, Any]:
    runs = [pendulum_run(seed) for seed in PENDULUM_SEEDS]
    each = [evaluated(trained(*run))[0] for run in runs]
    for (arguments, _), mean in zip(runs, each, strict=True):
        print(f"     {mean:9.1f} klimb train {arguments}")
    return {"commands": [f"klimb train {arguments}" for arguments, _ in runs], "seeds": each}


def reacher() -> dict[str, Any]:
    found = {}
    for name, words in REACHER.items():
        arguments = f"{words} {REACHER_FLAGS}"
        each = evaluated(trained(arguments, f"reacher-{name}"))
        found[name] = {"command": f"klimb train {arguments}", "mean": statistics.mean(each), "seeds": each}
        print(f"     {found[name]['mean']:9.1f} klimb train {arguments}")
    return found


def strip() -> None:
    """The figures. SystemExit where the trainings that they show have not been run."""
    measured = read_results("guided")
    if "steps" not in measured:
        raise SystemExit("the figures show the trainings of the part steps: run benchmarks/guided.py steps first")
    contenders = {"guided": guided(), "TRPO": trpo(**measured["steps"]["best"])}
    curves = {name: [solve(one, seed) for seed in SEEDS] for name, one in contenders.items()}
    directories = [RUNS / name for _, name in map(pendulum_run, PENDULUM_SEEDS)]
    known = [directory for directory in directories if (directory / "metrics.jsonl").exists()]
    guided_figures.draw_curves(curves, THRESHOLD, known)
    guided_figures.draw_strip(paths(), swing_up())


def paths() -> dict[str, Any]:
    """From one start: the policy untrained, the plan, and the policy that the first seed has become."""
    environment, folder, rule = swing_up(), RUNS / "steps" / f"guided-seed{SEEDS[0]}", GuidedPolicySearch(**GUIDED)
    guides = Guides(environment, environment.actions, STRIP_HORIZON, rule.restarts, rule.temperature)
    start = environment.initial(jax.random.key(STRIP_START))
    planned = jax.jit(guides.planned)(jax.random.key(0), start)
    return {
        "untrained": guides.by_mode(klimb.load_policy(folder / "before"), start),
        "guide": guides.run(jax.random.key(0), lambda key, t, x: planned[t], start),
        "trained": guides.by_mode(klimb.load_policy(folder / "after"), start),
    }


def steps_lines(found: dict[str, Any]) -> list[str]:
    best, budget = found["best"], thousands(found["budget"])
    seeds = f"seeds {SEEDS[0]}–{SEEDS[-1]}"
    settings = f"`--max-kl {best['max_kl']:g} --num-envs {best['num_envs']} --num-steps {best['num_steps']}`"
    names = {"guided": "guided", "trpo": f"TRPO, {settings}"}
    solved, alone = found["contenders"], found["without_guides"]
    rows = []
    for name, label in names.items():
        each = ", ".join(
            f"not in {thousands(solved[name]['limit'])}" if one is None else thousands(one)
            for one in solved[name]["steps"]
        )
        rows.append(f"| {label} | {thousands(solved[name]['median'])} | {each} |")
    reached = {"guided, where it stopped": solved["guided"]["last_evaluation"]}
    for name, label in {"trpo": "TRPO", "off-policy-gradient": "off-policy gradient"}.items():
        reached[f"{label}, after {thousands(alone[name]['env_steps'])}"] = alone[name]["seeds"]
    reached["untrained"] = solved["guided"]["untrained"]
    return [
        f"Environment steps on {SWING_UP}, those of the guides included, until the most probable actions first average "
        f"{minus(found['threshold'], 0)} over {found['episodes']} episodes. TRPO is the best of {len(found['tried'])} "
        "settings, tried on other seeds. Guides are planned through the known dynamics, and what planning computes "
        "there does not count as environment steps.",
        "",
        *table(f"| | median | {seeds} |", rows),
        f"In the median TRPO needs {found['ratio_of_medians']:.0f} times the steps. What is reached without guides in "
        f"the {budget} steps (whole iterations) that the slowest seed of guided needed:",
        "",
        *table(
            f"| | mean return | {seeds} |",
            [f"| {name} | {minus(statistics.mean(each))} | {listed(each)} |" for name, each in reached.items()],
        ),
    ]


def commands_lines(pendulum: dict[str, Any] | None, reacher: dict[str, Any] | None) -> list[str]:
    rows = []
    if pendulum:
        each = pendulum["seeds"]
        command = f"`klimb train {PENDULUM} --seed K`, K = 0 … {len(each) - 1}"
        rows.append(f"| {command} | {minus(statistics.mean(each))} | {listed(each)} |")
    for one in (reacher or {}).values():
        rows.append(f"| `{one['command']}` | {minus(one['mean'])} | {listed(one['seeds'])} |")
    return table("| command | mean return | seeds |", rows) if rows else []


def page() -> None:
    """What has been measured, between the marks of the page. SystemExit where there is no page, or no marks."""
    measured = read_results("guided")
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    for mark in (learning.BEGIN, learning.END):
        if text.count(mark) != 1:
            raise SystemExit(
                f"{PAGE} has {mark!r} {text.count(mark)} times: the tables go between {learning.BEGIN} and "
                f"{learning.END}, each of them once"
            )
    lines = [
        "![guided: learning curves](figures/guided.png)",
        "",
        "Left, the return of the episodes in training: one faint line per seed, and their mean. Right, evaluations "
        "with the most probable actions, one line per seed, until the threshold is reached (dots); returns far below "
        "those of untrained policies (dashed) are cut off; the numbers are medians.",
        "",
    ]
    lines += steps_lines(measured["steps"]) if "steps" in measured else []
    lines += commands_lines(measured.get("pendulum"), measured.get("reacher"))
    lines += guided_tasks.lines(measured["tasks"]) if "tasks" in measured else []
    lines += ["All of it: `make bench-guided`."]
    head, _, tail = text.partition(learning.BEGIN)
    tail = tail.partition(learning.END)[2]
    PAGE.write_text(head + learning.BEGIN + "\n" + "\n".join(lines) + "\n" + learning.END + tail, encoding="utf-8")


MEASURED: dict[str, Callable[[], dict[str, Any]]] = {
    "steps": steps,
    "pendulum": pendulum,
    "reacher": reacher,
    "tasks": guided_tasks.measure,
}
WRITTEN: dict[str, Callable[[], None]] = {"strip": strip, "page": page}


def keep(name: str, found: dict[str, Any]) -> None:
    """One part's numbers; those of the others stay as they are."""
    others = {part: content for part, content in read_results("guided").items() if part in MEASURED}
    write_results("guided", **{**others, name: found})


def main(words: list[str]) -> None:
    parts = [*MEASURED, *WRITTEN]
    if unknown := [word for word in words if word not in parts]:
        raise SystemExit(f"there is no part {unknown[0]!r}; there are {', '.join(parts)}")
    compilation_cache.enable()
    for name in (part for part in parts if part in words or not words):
        print(f"--- {name}", flush=True)
        if name in MEASURED:
            keep(name, MEASURED[name]())
        else:
            WRITTEN[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
