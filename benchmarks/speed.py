"""klimb beside its peers and beside the environments alone, on one machine, in turns: `make bench-speed`.

Every contender is a process of its own that compiles, runs once to warm up, and then answers a line with steps per
second. Contenders take turns, so that whatever else the machine does hits all of them; what counts are the ratios
within a turn. A contender that does not answer in time is killed and reported, not waited for.

`speed.py NAME...` measures only the works whose names begin so; their results replace the old ones.
"""

from __future__ import annotations

import contextlib
import json
import queue
import statistics
import subprocess
import sys
import threading
import venv
from dataclasses import dataclass, field
from pathlib import Path

from results_file import read_results, write_results

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv" / "peers"
OURS, THEIRS = Path(sys.executable), PEERS / "bin" / "python"
PATIENCE = 300  # seconds for one answer, compilation included
# Its own requirements would replace a package of rejax's by another of the same files.
WITHOUT_DEPENDENCIES = ("sbx-rl==0.21.0",)


@dataclass(frozen=True)
class Contender:
    """A worker script, the Python that runs it, and its arguments."""

    name: str
    python: Path
    script: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """One thing measured. Ratios are of the first of ours to each of the others."""

    name: str
    ours: Contender
    others: tuple[Contender, ...]
    also: tuple[Contender, ...] = field(default=())
    """Further settings of ours, whose ratios are given too."""
    turns: int = 9


def klimb(name: str, rule: str, env: str, iterations: int, rule_options: dict | None = None, **options) -> Contender:
    """A klimb training; turns of `iterations`."""
    task = {"rule": rule, "env": env, "iterations": iterations, "rule_options": rule_options or {}, "options": options}
    return Contender(name, OURS, "klimb_training.py", (json.dumps(task),))


def peer(name: str, script: str, *arguments: object) -> Contender:
    return Contender(name, THEIRS, script, tuple(str(argument) for argument in arguments))


def works() -> list[Work]:
    """What is measured. A turn takes about a second."""
    cheetah, batch = "HalfCheetah-v5", 2048
    trpo = {"cg_iterations": 15}  # as many as sb3-contrib

    def alone(count: int) -> Contender:
        return peer(f"EnvPool alone, {count} environments", "environment_only.py", "envpool", cheetah, count, 60_000)

    def trust_region(name: str, prefix: str, count: int, **options) -> Contender:
        return klimb(name, "trpo", f"{prefix}:{cheetah}", 15, num_envs=count, num_steps=batch // count, **options)

    def proximal(name: str, prefix: str, count: int) -> Contender:
        rule = {"epochs": 10, "num_minibatches": batch // 64}
        sizes = {"num_envs": count, "num_steps": batch // count, "critic_num_minibatches": batch // 64}
        return klimb(name, "ppo", f"{prefix}:{cheetah}", 6, rule, critic_learning_rate=3e-4, **sizes)

    def rejax_like(envs: int, steps: int, iterations: int, **options) -> Contender:
        rule = {"learning_rate": 3e-4, "epochs": 4, "num_minibatches": 4, "ent_coef": 0.01, "max_grad_norm": None}
        sizes = {"num_envs": envs, "num_steps": steps, "normalize_observations": False, "critic_num_minibatches": 4}
        critic = {"critic_learning_rate": 3e-4, "critic_epochs": 4}
        return klimb("klimb", "ppo", "jax:CartPole-v1", iterations, rule, **sizes, **critic, **options)

    def pictures(name: str, iterations: int, **options) -> Contender:
        rule = {"epochs": 4, "num_minibatches": 4}
        sizes = {"num_envs": 8, "num_steps": 128, "critic_epochs": 4, "critic_num_minibatches": 4}
        return klimb(name, "ppo", "envpool:Breakout-v5", iterations, rule, **sizes, **options)

    def remembering(name: str, prefix: str, **options) -> Contender:
        rule = {"epochs": 10, "num_minibatches": 8}
        sizes = {"num_envs": 8, "num_steps": 128, "critic_epochs": 10, "critic_num_minibatches": 8}
        return klimb(name, "ppo", f"{prefix}:CartPole-v1", 10, rule, memory="lstm", **sizes, **options)

    def masked(name: str) -> Contender:
        rule = {"epochs": 10, "num_minibatches": 16}
        sizes = {"num_envs": 8, "num_steps": 128, "critic_epochs": 10, "critic_num_minibatches": 16}
        return klimb(name, "ppo", "gymnasium:Taxi-v4", 10, rule, **sizes)

    return [
        *(
            Work(
                f"halfcheetah-trpo-{count}: HalfCheetah-v5, TRPO, batch 2048, {count} environments",
                trust_region("klimb, EnvPool", "envpool", count),
                (alone(count),),
                (trust_region("klimb, EnvPool, --overlap", "envpool", count, overlap=True),),
            )
            for count in (8, 16, 64)
        ),
        Work(
            "halfcheetah-trpo-peers: HalfCheetah-v5, TRPO, batch 2048",
            trust_region("klimb, EnvPool, 64 environments", "envpool", 64),
            (
                peer("sb3-contrib TRPO, 8 environments", "sb3.py", "sb3-trpo", cheetah, 8, 256, 8 * 256),
                peer("sb3-contrib TRPO, 1 environment", "sb3.py", "sb3-trpo", cheetah, 1, 2048, 2048),
                peer("Tianshou TRPO, EnvPool, 16", "tianshou_worker.py", "trpo", cheetah, 16, 4096),
                peer("Tianshou NPG, EnvPool, 16", "tianshou_worker.py", "npg", cheetah, 16, 4096),
            ),
            (
                trust_region("klimb, EnvPool, 16", "envpool", 16),
                trust_region("klimb, Gymnasium, 16, worker processes", "gymnasium", 16),
            ),
            turns=7,
        ),
        Work(
            "halfcheetah-ppo: HalfCheetah-v5, PPO, 10 epochs of minibatches of 64",
            proximal("klimb, EnvPool, 16 environments", "envpool", 16),
            (
                peer("SB3 PPO, 8 environments", "sb3.py", "sb3-ppo", cheetah, 8, 256, 2048),
                peer("SB3 PPO, 1 environment", "sb3.py", "sb3-ppo", cheetah, 1, 2048, 2048),
                peer("SBX PPO, 8 environments", "sb3.py", "sbx-ppo", cheetah, 8, 256, 2048),
                peer("Tianshou PPO, EnvPool, 16", "tianshou_worker.py", "ppo", cheetah, 16, 2048),
            ),
            (proximal("klimb, Gymnasium, 16, worker processes", "gymnasium", 16),),
            turns=7,
        ),
        Work(
            "cartpole-ppo-4x128: CartPole-v1, PPO, 4 environments × 128 steps, 4 epochs × 4 minibatches, compiled",
            rejax_like(4, 128, 512),
            (peer("rejax PPO", "rejax_ppo.py", 512, 4, 128),),
            turns=15,
        ),
        Work(
            "cartpole-ppo-64x64: CartPole-v1, PPO, 64 × 64, 4 epochs × 4 minibatches, compiled",
            rejax_like(64, 64, 128),
            (peer("rejax PPO", "rejax_ppo.py", 128, 64, 64),),
            turns=15,
        ),
        *(
            Work(
                f"cartpole-ppo-{seeds}-seeds: CartPole-v1, PPO, 4 × 128, {seeds} seeds in one program",
                rejax_like(4, 128, max(2, 512 // seeds), num_seeds=seeds),
                (peer("rejax PPO, vmap", "rejax_many.py", seeds, max(2, 512 // seeds), 4, 128),),
            )
            for seeds in (8, 64, 256)
        ),
        Work(
            "breakout-ppo: Atari Breakout, 84 × 84 × 4, nature, PPO, 8 × 128, 4 epochs × 4 minibatches",
            pictures("klimb, EnvPool", 3),
            (peer("SB3 PPO, CnnPolicy", "sb3.py", "sb3-atari", "BreakoutNoFrameskip-v4", 8, 128, 3 * 1024),),
            turns=3,
        ),
        Work(
            "memory-ppo: CartPole-v1, LSTM of 64 units, PPO, 8 × 128, 10 epochs × 8 minibatches",
            remembering("klimb, Gymnasium, worker processes", "gymnasium"),
            (peer("sb3-contrib RecurrentPPO", "sb3.py", "sb3-recurrent", "CartPole-v1", 8, 128, 3 * 1024),),
            (
                remembering("klimb, Gymnasium, --chunk-steps 16", "gymnasium", chunk_steps=16),
                remembering("klimb, compiled", "jax"),
                remembering("klimb, compiled, --chunk-steps 16", "jax", chunk_steps=16),
            ),
            turns=5,
        ),
        Work(
            "masked-ppo: Taxi-v4 with its mask, PPO, 8 × 128, 10 epochs × 16 minibatches",
            masked("klimb, Gymnasium, worker processes"),
            (peer("sb3-contrib MaskablePPO, Taxi-v3", "sb3.py", "sb3-masked", "Taxi-v3", 8, 128, 3 * 1024),),
            turns=5,
        ),
        Work(
            "cartpole-trpo: CartPole-v1, TRPO, 8 × 256, 15 CG iterations, 10 critic epochs of minibatches of 128",
            klimb(
                "klimb, compiled",
                "trpo",
                "jax:CartPole-v1",
                100,
                trpo,
                num_envs=8,
                num_steps=256,
                critic_num_minibatches=16,
            ),
            (peer("sb3-contrib TRPO, 8 environments", "sb3.py", "sb3-trpo", "CartPole-v1", 8, 256, 2048),),
        ),
    ]


class Worker:
    """A running contender. patience: seconds to wait for one answer."""

    def __init__(self, contender: Contender, patience: int = PATIENCE) -> None:
        command = [str(contender.python), str(HERE / "workers" / contender.script), *contender.arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.name, self._patience = contender.name, patience
        self._answer()

    def turn(self) -> float:
        """Steps per second of one run."""
        return float(self.ask("go"))

    def ask(self, line: str) -> str:
        """The answer to a line; SystemExit when the worker has ended or does not answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(("ready", "{")) or line[:1].isdigit():
                self._lines.put(line)

    def _answer(self) -> str:
        for _ in range(self._patience):
            try:
                return self._lines.get(timeout=1)
            except queue.Empty:
                if self._process.poll() is not None:
                    break
        self.stop()
        raise SystemExit(f"{self.name} ended, or did not answer within {self._patience} s")


def measure(work: Work) -> dict[str, object]:
    """Steps per second of all, turn by turn, and the ratios of ours to the others'."""
    contenders = (work.ours, *work.also, *work.others)
    workers: list[Worker] = []
    try:
        for contender in contenders:
            workers.append(Worker(contender))
        turns = [[worker.turn() for worker in workers] for _ in range(work.turns)]
    finally:
        for worker in workers:
            worker.stop()
    rates = dict(zip((contender.name for contender in contenders), zip(*turns, strict=True), strict=True))
    ratios = {
        ours.name: {
            other.name: spread([a / b for a, b in zip(rates[ours.name], rates[other.name], strict=True)])
            for other in work.others
        }
        for ours in (work.ours, *work.also)
    }
    return {
        "work": work.name,
        "steps_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratios": ratios,
        "turns": {name: list(values) for name, values in rates.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def install_peers() -> None:
    """Make the peers' environment unless it is there."""
    if (PEERS / ".ready").exists():
        return
    venv.create(PEERS, with_pip=True)
    pip = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(HERE / "peers.txt")], check=True)
    subprocess.run([*pip, "--no-deps", *WITHOUT_DEPENDENCIES], check=True)
    (PEERS / ".ready").touch()


def show(result: dict) -> None:
    """One work, as lines."""
    print(result["work"])
    for name, rate in result["steps_per_second"].items():
        print(f"  {rate:>10,.0f} steps/s  {name}")
    for ours, others in result["ratios"].items():
        for other, ratio in others.items():
            print(f"  {ours} / {other}: {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})", flush=True)


def main() -> None:
    wanted = tuple(sys.argv[1:]) or ("",)
    install_peers()
    pins = [line for line in (HERE / "peers.txt").read_text().splitlines() if line and not line.startswith("#")]
    everything = works()
    order = [work.name for work in everything]
    for work in everything:
        if not work.name.startswith(wanted):
            continue
        result = measure(work)
        show(result)
        # Written after each: a long run that is cut off has lost nothing.
        kept = [old for old in read_results("speed").get("results", []) if old["work"] in order]
        merged = [old for old in kept if old["work"] != work.name] + [result]
        merged.sort(key=lambda one: order.index(one["work"]))
        write_results("speed", peers=[*pins, *WITHOUT_DEPENDENCIES], results=merged)


if __name__ == "__main__":
    main()
