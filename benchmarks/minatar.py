"""Returns on MinAtar, seen as pictures, beside rejax's PPO after the same steps: `make bench-minatar`.

Three games, a million steps, seeds 0 to 2; the mean return of 100 episodes of the final policy, with its actions
sampled as in training, because the games of MinAtar can go on forever under the most probable actions. What has been
measured is not measured again: it can be stopped at any moment. docs/minatar.md is written from the results.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time

import klimb
from klimb.cli import compilation_cache, train
from klimb.cli.commands import load
from klimb.training.driver import start
from results_file import read_results, write_results
from speed import HERE, THEIRS, install_peers

GAMES, STEPS, SEEDS = ("Breakout", "Asterix", "SpaceInvaders"), 1_000_000, 3
SIZES = "--num-envs 64 --num-steps 128 --env-steps 1000000"
RULES = {
    "TRPO": f"trpo {SIZES} --critic-epochs 4",
    "PPO": f"ppo {SIZES} --epochs 4 --num-minibatches 8 --learning-rate 0.001 --anneal-learning-rate --ent-coef 0.01 "
    "--critic-epochs 4",
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


if __name__ == "__main__":
    main()
