"""Returns that others have published: facts from their tables, with the versions of the tasks that they are of."""

from __future__ import annotations

from typing import NamedTuple

TASKS = (
    *("Ant", "HalfCheetah", "Hopper", "Walker2d", "Swimmer", "Humanoid"),
    *("Reacher", "InvertedPendulum", "InvertedDoublePendulum"),
)


class Published(NamedTuple):
    """Mean and standard deviation over runs."""

    mean: float
    deviation: float


def _by_task(*cells: tuple[float, float]) -> dict[str, Published]:
    return {task: Published(*cell) for task, cell in zip(TASKS, cells, strict=True)}


TIANSHOU: dict[tuple[str, int], dict[str, Published]] = {
    ("reinforce", 3_000_000): _by_task(
        *((474.9, 133.5), (884.0, 41.0), (395.8, 64.5), (412.0, 52.4), (35.3, 1.4), (438.2, 47.8)),
        *((-10.5, 0.7), (999.2, 2.4), (1059.7, 307.7)),
    ),
    ("natural-gradient", 1_000_000): _by_task(
        *((2358.0, 517.5), (3485.2, 716.6), (1915.2, 550.5), (2503.2, 963.3), (31.5, 8.0), (765.1, 91.3)),
        *((-4.5, 0.5), (1000.0, 0.0), (9243.2, 276.0)),
    ),
    ("trpo", 1_000_000): _by_task(
        *((2866.7, 707.9), (4471.2, 804.9), (2046.0, 1037.9), (3826.7, 782.7), (40.9, 19.6), (810.1, 126.1)),
        *((-5.1, 0.8), (1000.0, 0.0), (8435.2, 1073.3)),
    ),
    ("ppo", 1_000_000): _by_task(
        *((3258.4, 1079.3), (5783.9, 1244.0), (2609.3, 700.8), (3588.5, 756.6), (66.7, 99.1), (787.1, 193.5)),
        *((-4.1, 0.3), (1000.0, 0.0), (9231.3, 270.4)),
    ),
    ("ppo", 3_000_000): _by_task(
        *((4079.3, 880.2), (7337.4, 1508.2), (3127.7, 413.0), (4895.6, 704.3), (81.4, 96.0), (1359.7, 572.7)),
        *((-3.7, 0.3), (1000.0, 0.0), (9231.3, 270.4)),
    ),
}
"""Tianshou's MuJoCo benchmark, by rule and number of steps: tasks v3 (Reacher and both pendulums v2), ten seeds, the
maximum over training of evaluations of ten episodes."""

ZOO_TRPO = {
    "HalfCheetah": Published(1785, 69),
    "Ant": Published(4982, 664),
    "Hopper": Published(3618, 357),
    "Walker2d": Published(4933, 1453),
    "Swimmer": Published(366, 2),
}
"""RL Baselines3 Zoo, tuned TRPO of sb3-contrib: tasks v3, one million steps, one run each."""
