"""What `returns.py` trains: parts of the table, in order, each a list of pieces that are trained one by one."""

from __future__ import annotations

from dataclasses import dataclass

LOCOMOTION = ("HalfCheetah", "Hopper", "Walker2d")
TASKS = (*LOCOMOTION, "Ant", "Swimmer", "Reacher", "InvertedPendulum", "InvertedDoublePendulum", "Humanoid")
"""The nine tasks of the published tables."""
SEEDS_PER_PIECE = 5

MUJOCO = {
    "trpo": "--num-steps 64 --initial-log-std -0.5 --critic-epochs 20",
    "natural-gradient": "--num-steps 64 --initial-log-std -0.5 --critic-epochs 20",
    "ppo": "--initial-log-std -0.5 --num-minibatches 32 --critic-num-minibatches 32 --anneal-learning-rate",
    "reinforce": "--num-steps 64 --initial-log-std -0.5 --critic-epochs 20",
}
SWIMMER = "--gamma 0.9999"


@dataclass(frozen=True)
class Piece:
    """Seeds of one rule on one environment that are trained together.

    part: of the table. env_steps: per seed. seed: the first. num_seeds: how many.
    """

    part: str
    rule: str
    env: str
    env_steps: int
    seed: int
    num_seeds: int

    @property
    def name(self) -> str:
        """Of its run directory."""
        return f"{self.part}/{self.rule}-{self.env.partition(':')[2]}-{self.seed}"

    @property
    def command(self) -> str:
        """What trains it; ten evaluations on the way, each of ten episodes."""
        flags = [MUJOCO[self.rule], SWIMMER if "Swimmer" in self.env else ""]
        return " ".join(
            [
                *("klimb train", self.rule, self.env, *filter(None, flags)),
                f"--env-steps {self.env_steps} --seed {self.seed} --num-seeds {self.num_seeds}",
                f"--eval-every {self.env_steps // 10} --eval-episodes 10",
            ]
        )


def _pieces(part: str, rules: tuple[str, ...], envs: list[str], env_steps: int, seeds: int) -> list[Piece]:
    """Every rule on every environment, rule by rule."""
    starts = range(0, seeds, SEEDS_PER_PIECE)
    return [
        Piece(part, rule, env, env_steps, seed, min(SEEDS_PER_PIECE, seeds - seed))
        for rule in rules
        for env in envs
        for seed in starts
    ]


PARTS = {
    "v4": _pieces(
        "v4",
        ("trpo", "natural-gradient", "ppo", "reinforce"),
        [f"gymnasium:{task}-v4" for task in TASKS],
        1_000_000,
        seeds=10,
    ),
    "v5": [
        *_pieces("v5", ("trpo", "ppo"), [f"gymnasium:{task}-v5" for task in TASKS], 1_000_000, seeds=5),
        *_pieces("v5", ("natural-gradient",), [f"gymnasium:{task}-v5" for task in LOCOMOTION], 1_000_000, seeds=5),
    ],
}
"""Each part is measured whole before the next one is begun."""
