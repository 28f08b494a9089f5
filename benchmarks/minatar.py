"""Returns on MinAtar, seen as pictures, beside rejax's PPO after the same steps: `make bench-minatar`.

Three games, a million steps, seeds 0 to 2; the mean return of 100 episodes of the final policy, with its actions
sampled as in training, because the games of MinAtar can go on forever under the most probable actions. What has been
measured is not measured again: it can be stopped at any moment. docs/minatar.md is written from the results.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import time

import klimb
from klimb.cli import compilation_cache, train
from klimb.cli.commands import load
from klimb.training.driver import start
from results_file import read_results, write_results
from speed import HERE, THEIRS, install_peers

GAMES, STEPS, SEEDS = ("Breakout", "Asterix", "SpaceInvaders"), 1_000_000, 3
SIZES = "--num-envs 64 --num-steps 128 --env-steps 1000000 --hidden 64 64"
RULES = {
    "TRPO": f"trpo {SIZES} --critic-epochs 4",
    "PPO": f"ppo {SIZES} --epochs 4 --num-minibatches 8 --learning-rate 0.001 --learning-rate-schedule linear "
    "--ent-coef 0.01 --critic-epochs 4",
}
PAGE = HERE.parent / "docs" / "minatar.md"


def of_klimb(rule: str, game: str, seed: int) -> dict:
    """The final return of a seed, and the seconds of its training."""
    words = shlex.split(RULES[rule])
    words = [words[0], f"gymnax:{game}-MinAtar", *words[1:], "--seed", str(seed)]
    config, _ = train.configuration(load("train").parse(words))
    began = time.perf_counter()
    run = start(config, klimb.make(config.env))
    seconds = time.perf_counter() - began
    result = klimb.evaluate(run.policy, config.env, episodes=100, deterministic=False)
    return {"return": result.mean, "seconds": seconds}


def of_rejax(game: str) -> list[dict]:
    command = [str(THEIRS), str(HERE / "workers" / "minatar_rejax.py"), game, str(STEPS), str(SEEDS)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [{"return": value} for value in json.loads(output.strip().splitlines()[-1])]


def cell(found: list[dict]) -> str:
    """The mean over seeds, and each of them."""
    values = [one["return"] for one in found]
    return f"{statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})" if values else "–"


def write_page(rows: dict[str, list[dict]]) -> None:
    """docs/minatar.md."""
    names = [*(f"klimb {rule}" for rule in RULES), "rejax PPO"]
    table = [
        f"| {game} | " + " | ".join(cell(rows.get(f"{game}, {name}", [])) for name in names) + " |" for game in GAMES
    ]
    seconds = [
        statistics.median(one["seconds"] for game in GAMES for one in rows.get(f"{game}, klimb {rule}", []))
        for rule in RULES
    ]
    commands = [f"klimb train {flags.replace(' ', ' gymnax:Breakout-MinAtar ', 1)}" for flags in RULES.values()]
    lines = [
        "# MinAtar: games seen in pictures",
        "",
        "[MinAtar](https://github.com/kenjyoung/MinAtar) has small versions of Atari games, whose observations are "
        "pictures of 10 × 10 with a channel for each kind of object. In gymnax they are compiled environments. klimb "
        "reads them with the [network](own-network.md#pictures) of MinAtar's paper, one in the policy and one in the "
        "critic; rejax's PPO reads them as vectors, with its own default network.",
        "",
        f"Mean return of 100 episodes of the final policy after {STEPS:,} steps, with actions sampled as in training: "
        "mean over the seeds, and each of them.",
        "",
        "| game | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        *table,
        "",
        "klimb's runs:",
        "",
        "```",
        *commands,
        "```",
        "",
        f"On two cores a seed takes {seconds[0] / 60:.0f} minutes with TRPO and {seconds[1] / 60:.0f} with PPO. "
        "rejax's PPO has the same sizes, 4 epochs of 8 minibatches, a learning rate of 2.5 · 10⁻⁴ and an entropy bonus "
        "of 0.01 ([its script](../benchmarks/workers/minatar_rejax.py)), and gymnax 0.0.9. `make bench-minatar` "
        "measures all of this, and writes this page.",
        "",
        "## Next",
        "[Pictures](environments.md#pictures) · [networks](own-network.md#pictures) · [returns on MuJoCo](results.md)",
    ]
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    compilation_cache.enable()
    install_peers()
    rows = read_results("minatar").get("rows", {})
    for seed in range(SEEDS):
        for game in GAMES:
            for rule in RULES:
                name = f"{game}, klimb {rule}"
                known = rows.setdefault(name, [])
                if len(known) <= seed:
                    known.append(of_klimb(rule, game, seed))
                    print(name, seed, known[-1], flush=True)
                    write_results("minatar", steps=STEPS, rows=rows)
            name = f"{game}, rejax PPO"
            if name not in rows:
                rows[name] = of_rejax(game)
                print(name, rows[name], flush=True)
                write_results("minatar", steps=STEPS, rows=rows)
    write_page(rows)


if __name__ == "__main__":
    main()
