"""The tasks of `make bench-seconds`, and who solves them with which settings.

Peers have the settings that their own projects tuned for the task: rejax its configs/gymnax, SB3, sb3-contrib and SBX
those of rl-baselines3-zoo, Tianshou those of its examples/mujoco. klimb has its presets where there are some, and else
the best of a few settings, tried on seeds from 100 on. No setting was chosen on the seeds measured here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from seconds_settings import MINATAR, REJAX, ZOO_PPO, ZOO_TRPO

OURS = "klimb"


@dataclass(frozen=True)
class Contender:
    """Who solves a task: a worker script and what it is told beside the goal. env: its own name of the environment."""

    name: str
    script: str
    task: dict[str, Any] = field(default_factory=dict, hash=False)
    env: str | None = None

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


@dataclass(frozen=True)
class Task:
    """What is to be solved.

    threshold: of the mean return of `episodes` deterministic episodes, which are run every `every` environment steps.
    seeds: how many, from 0 on. max_steps, max_seconds: after which a seed counts as not solved. The seconds are several
    times those of klimb's faster rule: what they leave open is how far below a known ratio klimb is.
    """

    name: str
    threshold: float
    episodes: int
    every: int
    seeds: int
    max_steps: int
    max_seconds: float
    contenders: tuple[Contender, ...] = ()

    def argument(self, contender: Contender) -> dict[str, Any]:
        """What the worker of a contender is told."""
        goal = {key: value for key, value in asdict(self).items() if key not in ("name", "seeds", "contenders")}
        return goal | {"env": contender.env or self.name} | contender.task


def klimb(rule: str, env: str, flags: str) -> Contender:
    """klimb with a rule. flags: of `klimb train`; what they leave out is that of the preset, or the default."""
    title = {"trpo": "TRPO", "ppo": "PPO"}[rule]
    return Contender(f"{OURS} {title}", "solve_klimb.py", {"command": f"klimb train {rule} {env} {flags}"})


def rejax(**settings: Any) -> Contender:
    return Contender("rejax PPO", "solve_rejax.py", {"settings": settings})


def zoo(library: str, env: str | None = None, **settings: Any) -> Contender:
    """SB3, sb3-contrib or SBX with settings of rl-baselines3-zoo."""
    name = {"sb3": "SB3 PPO", "sb3-contrib": "sb3-contrib TRPO", "sbx": "SBX PPO"}[library]
    return Contender(name, "solve_sb3.py", {"library": library, "settings": settings}, env)


def tianshou(rule: str) -> Contender:
    return Contender(f"Tianshou {rule.upper()}", "solve_tianshou.py", {"rule": rule})


def control(name: str, threshold: float, limits: tuple[int, float], trpo: str, ppo: str) -> Task:
    """Classic control: ten seeds, 20 episodes every 1000 steps. limits: of steps and seconds. trpo, ppo: flags."""
    steps, seconds = limits
    ours = [klimb(rule, name, f"--env-steps {steps} {flags}") for rule, flags in (("trpo", trpo), ("ppo", ppo))]
    peers = (rejax(**REJAX[name]), zoo("sbx", **ZOO_PPO[name]), zoo("sb3", **ZOO_PPO[name]))
    return Task(name, threshold, 20, 1000, 10, steps, seconds, (*ours, *peers))


def mujoco(name: str, threshold: float, max_seconds: float, ours: tuple[str, str], *peers: Contender) -> Task:
    """MuJoCo: three seeds, ten episodes every 20 000 steps, at most a million steps.

    ours: flags of TRPO and PPO beside those of the presets. peers: whose published mean return is above the threshold.
    """
    length = "--env-steps 1000000"
    own = [
        klimb(rule, f"gymnasium:{name}", f"{length} {flags}".rstrip()) for rule, flags in zip(RULES, ours, strict=True)
    ]
    return Task(name, threshold, 10, 20_000, 3, 1_000_000, max_seconds, (*own, *peers))


RULES = ("trpo", "ppo")
CRITIC = "--critic-learning-rate 0.003 --critic-epochs 4"
FAST_PPO = "--learning-rate 0.003 --epochs 4 --num-minibatches 8 --critic-num-minibatches 8"
CARTPOLE = "--num-envs 8 --num-steps 64 --hidden 32 32"
ACROBOT = "--num-envs 16 --num-steps 64 --hidden 32 32"
PENDULUM = "--num-envs 16 --num-steps 64 --hidden 32 32 --gamma 0.95"
MOUNTAIN_CAR = "--num-envs 8 --num-steps 128 --hidden 32 32 --exploration gsde"
LUNAR = "envpool:LunarLander-v3"
BREAKOUT = "gymnax:Breakout-MinAtar"
PICTURES = "--num-envs 64 --num-steps 32 --network mlp --hidden 64 64 --activation relu --no-normalize-observations"

TASKS = (
    mujoco(
        *("HalfCheetah-v5", 3000, 90, ("", "")),
        *(tianshou("trpo"), tianshou("npg"), tianshou("ppo"), zoo("sbx", **ZOO_PPO["HalfCheetah-v5"])),
    ),
    control(
        *("CartPole-v1", 475, (100_000, 10)),
        f"{CARTPOLE} --max-kl 0.05 --cg-iterations 5 --critic-learning-rate 0.005 --critic-epochs 4 "
        "--critic-num-minibatches 4",
        f"{CARTPOLE} {FAST_PPO} {CRITIC}",
    ),
    control(
        *("Acrobot-v1", -100, (500_000, 10)),
        f"{ACROBOT} --max-kl 0.05 --cg-iterations 5 {CRITIC} --critic-num-minibatches 4",
        f"--num-envs 16 --num-steps 128 --gae-lambda 0.94 {FAST_PPO} {CRITIC}",
    ),
    control(
        *("Pendulum-v1", -200, (300_000, 10)),
        f"{PENDULUM} --max-kl 0.03 --cg-iterations 5 --critic-learning-rate 0.003",
        f"{PENDULUM} {FAST_PPO} {CRITIC}",
    ),
    control(
        *("MountainCarContinuous-v0", 90, (300_000, 10)),
        f"{MOUNTAIN_CAR} --exploration-steps 32 --max-kl 0.05 --cg-iterations 5 --critic-learning-rate 0.003 "
        "--critic-epochs 5",
        f"{MOUNTAIN_CAR} {FAST_PPO} {CRITIC}",
    ),
    Task(
        *("Breakout-MinAtar", 10, 20, 10_000, 3, 3_000_000, 60),
        (
            klimb("trpo", BREAKOUT, f"--env-steps 3000000 {PICTURES} --max-kl 0.05 --cg-iterations 5 {CRITIC}"),
            klimb(
                *("ppo", BREAKOUT),
                f"--env-steps 3000000 {PICTURES} --learning-rate 0.005 --epochs 4 --num-minibatches 8 --ent-coef 0.01 "
                "--critic-learning-rate 0.005 --critic-epochs 4",
            ),
            rejax(**MINATAR),
        ),
    ),
    Task(
        *("LunarLander-v3", 200, 20, 20_000, 3, 1_000_000, 60),
        (
            klimb("trpo", LUNAR, "--env-steps 1000000 --gamma 0.999 --gae-lambda 0.98 --max-kl 0.03"),
            klimb(
                *("ppo", LUNAR),
                "--env-steps 1000000 --gamma 0.999 --gae-lambda 0.98 --learning-rate 0.001 --epochs 4 "
                "--num-minibatches 16 --ent-coef 0.01 --critic-epochs 4 --critic-num-minibatches 16",
            ),
            zoo("sbx", LUNAR, **ZOO_PPO["LunarLander-v3"]),
            zoo("sb3", LUNAR, **ZOO_PPO["LunarLander-v3"]),
        ),
    ),
    mujoco(
        *("Hopper-v5", 2500, 120, ("", "")),
        *(zoo("sb3-contrib", **ZOO_TRPO["Hopper-v5"]), tianshou("ppo")),
    ),
    mujoco(
        *("Walker2d-v5", 3000, 120, ("", "")),
        *(zoo("sb3-contrib", **ZOO_TRPO["Walker2d-v5"]), tianshou("trpo"), zoo("sbx", **ZOO_PPO["Walker2d-v5"])),
    ),
)
