"""The recent mean return of a run's policies, by which the best checkpoint is chosen."""

from __future__ import annotations

import math

import numpy as np

from klimb.runs.metrics import Record, per_seed_of


class RecentScore:
    """The mean over seeds of the mean return of the episodes that ended since the last `draw`."""

    def __init__(self) -> None:
        self._sums: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []

    def take_in(self, metrics: dict[str, np.ndarray]) -> None:
        """Add the metrics of some iterations, `[iterations, seeds]` each."""
        if "episodes" in metrics:
            counts = metrics["episodes"].astype(np.float64)
            self._counts.extend(counts)
            self._sums.extend(np.where(counts > 0, metrics["episode_return"] * counts, 0))

    def restore(self, records: list[Record], num_seeds: int) -> None:
        """Add the records of some iterations, when a run is resumed. num_seeds: of the run."""
        for record in records:
            counts, returns = (
                np.array(per_seed_of(record, name, num_seeds), float) for name in ("episodes", "episode_return")
            )
            if np.isfinite(counts).all():
                self.take_in({"episodes": counts[None], "episode_return": returns[None]})

    def draw(self) -> float | None:
        """The score, which is then reset. None where a seed has ended no episode, or its return is not finite."""
        # Exact sums, so that the score does not depend on how iterations were grouped into calls.
        sums = [math.fsum(seed) for seed in zip(*self._sums, strict=True)]
        counts = [math.fsum(seed) for seed in zip(*self._counts, strict=True)]
        self._sums, self._counts = [], []
        if not counts or not all(counts) or not all(map(math.isfinite, sums)):
            return None
        return math.fsum(total / count for total, count in zip(sums, counts, strict=True)) / len(sums)
