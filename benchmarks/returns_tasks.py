"""What `returns.py` trains: parts of the table, in order, each a list of pieces that are trained one by one.

Hyperparameters are those of the presets; on classic control, which has none, the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

LOCOMOTION = ("HalfCheetah", "Hopper", "Walker2d")
TASKS = (*LOCOMOTION, "Ant", "Swimmer", "Reacher", "InvertedPendulum", "InvertedDoublePendulum", "Humanoid")
"""The nine tasks of the published tables."""
SEEDS_PER_PIECE = 5
CONTROL = {"CartPole-v1": 200_000, "Acrobot-v1": 200_000, "Pendulum-v1": 400_000, "MountainCarContinuous-v0": 200_000}
"""Compiled tasks of classic control, and the steps that are trained on each."""
CONTROL_RULES = (
    *("reinforce", "off-policy-gradient", "kl-penalty", "dual-descent", "natural-gradient", "trpo", "ppo"),
    *("conservative-policy-iteration", "reps", "v-mpo", "awr"),
)

FIRST_ABLATION_SEED = 100
"""Settings are chosen on other seeds than those of the table, 0 to 9."""

SHARED_VARIANTS = {
    "as-trained": "",
    "first-sigma-1": "--initial-log-std 0",
    "first-sigma-0.37": "--initial-log-std -1",
    "gamma-0.995": "--gamma 0.995",
    "lambda-0.9": "--gae-lambda 0.9",
    "lambda-0.97": "--gae-lambda 0.97",
    "raw-observations": "--no-normalize-observations",
    "raw-value-targets": "--no-normalize-value-targets",
}
VARIANTS = {
    "trpo": SHARED_VARIANTS
    | {
        "batch-2048": "--num-steps 128",
        "critic-10-epochs": "--critic-epochs 10",
        "max-kl-0.02": "--max-kl 0.02",
    },
    "ppo": SHARED_VARIANTS
    | {
        "batch-1024": "--num-steps 64 --num-minibatches 16 --critic-num-minibatches 16",
        "4-minibatches": "--num-minibatches 4 --critic-num-minibatches 8",
        "critic-20-epochs": "--critic-epochs 20",
        "constant-learning-rate": "--learning-rate-schedule constant",
        "raw-advantages": "--no-normalize-advantage",
        "recomputed-advantages": "--recompute-advantages",
        "clipped-values": "--critic-clip-eps 0.2",
    },
}
"""What is changed in the ablations, by rule: one choice at a time."""


@dataclass(frozen=True)
class Piece:
    """Seeds of one rule on one environment that are trained together.

    part: of the table. env_steps: per seed. seed: the first. num_seeds: how many. variant: of `VARIANTS`; empty for
    none. evaluations: during the training, of ten episodes. final_episodes: of the evaluation after it.
    """

    part: str
    rule: str
    env: str
    env_steps: int
    seed: int
    num_seeds: int
    variant: str = ""
    evaluations: int = 10
    final_episodes: int = 100

    @property
    def task(self) -> str:
        """HalfCheetah of gymnasium:HalfCheetah-v4."""
        return self.env.partition(":")[2].rpartition("-")[0]

    @property
    def name(self) -> str:
        """Of its run directory."""
        words = (self.rule, self.env.partition(":")[2], self.variant, str(self.seed))
        return f"{self.part}/{'-'.join(filter(None, words))}"

    @property
    def command(self) -> str:
        """What trains it, with the preset of rule and environment."""
        changed = VARIANTS[self.rule][self.variant] if self.variant else ""
        return " ".join(
            [
                *filter(None, ("klimb train", self.rule, self.env, changed)),
                f"--env-steps {self.env_steps} --seed {self.seed} --num-seeds {self.num_seeds}",
                f"--eval-every {self.env_steps // self.evaluations} --eval-episodes 10",
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


def _ablations() -> list[Piece]:
    return [
        Piece(
            "ablations",
            rule,
            f"gymnasium:{task}-v5",
            500_000,
            FIRST_ABLATION_SEED,
            SEEDS_PER_PIECE,
            variant=variant,
            evaluations=2,
            final_episodes=20,
        )
        for rule, variants in VARIANTS.items()
        for variant in variants
        for task in LOCOMOTION
    ]


PARTS = {
    "v4": _pieces(
        "v4",
        ("trpo", "natural-gradient", "ppo", "reinforce"),
        [f"gymnasium:{task}-v4" for task in TASKS],
        1_000_000,
        seeds=10,
    ),
    "ablations": _ablations(),
    "v5": [
        *_pieces("v5", ("trpo", "ppo"), [f"gymnasium:{task}-v5" for task in TASKS], 1_000_000, seeds=5),
        *_pieces("v5", ("natural-gradient",), [f"gymnasium:{task}-v5" for task in LOCOMOTION], 1_000_000, seeds=5),
    ],
    "control": [
        Piece("control", rule, f"jax:{task}", env_steps, 0, 10)
        for rule in CONTROL_RULES
        for task, env_steps in CONTROL.items()
    ],
    "3M": [
        *_pieces("3M", ("ppo",), [f"gymnasium:{task}-v4" for task in ("HalfCheetah", "Walker2d")], 3_000_000, seeds=5),
        *_pieces("3M", ("reinforce",), [f"gymnasium:{task}-v4" for task in ("HalfCheetah", "Hopper")], 3_000_000, 5),
    ],
}
"""Each part is measured whole before the next one is begun."""
