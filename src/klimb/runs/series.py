"""The numbers of a run as curves: their names by group, where they stand on the axis, and a curve for every seed.

TensorBoard and the experiment trackers are given these.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from klimb.types import Status

GROUPS: dict[str, tuple[str, ...]] = {
    "return": ("episode_return", "episode_length", "episodes", "env_faults", "late_rows"),
    "step": (
        *("status", "surrogate_gain", "entropy", "ess", "kl_old_new", "kl_new_old", "kl_max", "kl_old_new_max"),
        *("kl_new_old_max", "kl_normalizer", "tv", "tv_max"),
    ),
    "certificate": (
        *("predicted_improvement", "predicted_improvement_se", "realised_improvement", "realised_improvement_se"),
        *("sampled_improvement_bound", "step_excess", "state_mismatch_bound", "tv_bound", "tv_max_bound"),
        *("kl_old_new_se", "kl_new_old_se", "tv_se"),
    ),
    "critic": ("explained_variance", "value_loss"),
    "speed": ("iteration", "wall_time", "steps_per_second"),
}
"""The metrics of each group. Those called `eval_…` are in `evaluation`, all others in `rule`; a tag is GROUP/METRIC.
`env_steps` is the axis."""

SEPARATE_SEEDS = 16
"""Maximum number of seeds with curves of their own; of more, there are the lowest, median and highest values."""


_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def tag(metric: str) -> str:
    """What a metric is called: its group and its name.

    metric: its name in `metrics.jsonl`.
    """
    group = "evaluation" if metric.startswith("eval_") else _GROUP_OF.get(metric, "rule")
    return f"{group}/{metric}"


def step_of(record: Mapping[str, Any]) -> int:
    """Where a record stands on the axis: at its environment steps, or, where none are made, its iteration; {} at 0."""
    steps = record.get("env_steps") or record.get("iteration", 0)
    # A record that is read back may hold anything.
    return steps if type(steps) is int and 0 <= steps < 2**53 else 0


Numbers = list[float | None]
"""Of a metric, one for each seed or one for all; None where a seed has none."""


def columns_of(seeds: Sequence[int]) -> dict[str, Callable[[Numbers], float | None]]:
    """The names of a run's curves, '' for a single one, and which of a metric's numbers each of them shows.

    seeds: of the run.
    """
    if len(seeds) == 1:
        return {"": lambda numbers: numbers[0]}
    if len(seeds) > SEPARATE_SEEDS:
        return {"lowest": _over_seeds(min), "median": _over_seeds(statistics.median), "highest": _over_seeds(max)}
    return {f"seed_{seed}": _of_seed(k) for k, seed in enumerate(seeds)}


def _of_seed(k: int) -> Callable[[Numbers], float | None]:
    return lambda numbers: numbers[k] if len(numbers) > 1 else numbers[0]


def _over_seeds(statistic: Callable[[list[float]], float]) -> Callable[[Numbers], float | None]:
    def column(numbers: Numbers) -> float | None:
        present = [number for number in numbers if number is not None]
        return statistic(present) if present else None

    return column


def numbers_of(name: str, value: Any) -> Numbers:
    """The numbers of a metric in a record; of `status` the number of each name.

    name: of the metric. value: as it stands in the record.
    """
    values = value if isinstance(value, list) else [value]
    return [None if one is None else float(Status[one] if name == "status" else one) for one in values]
