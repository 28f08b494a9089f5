"""How the environments of a rollout are shared out among workers, and what becomes of their seeds and faults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from klimb.collect.host.stepping import Columns, parts
from klimb.environments.host import Fault
from klimb.environments.seeds import restart_seed

MAX_LOSSES = 3
"""The number of consecutive rollouts in which the same worker is lost that stops the training."""
REMEDY = "--workers 0 steps them in this process, where a debugger can follow them"


class Shares:
    """Which of the N environments of every seed each worker has, and what every environment was started with last.

    num_seeds, num_envs: K, N. count: number of workers, of which at most N get a share.
    """

    def __init__(self, num_seeds: int, num_envs: int, count: int) -> None:
        self.parts = parts(num_envs, count)
        self._num_seeds, self._num_envs = num_seeds, num_envs
        self._seeds = np.zeros((num_seeds, num_envs), np.uint32)

    def __len__(self) -> int:
        return len(self.parts)

    def name(self, number: int) -> str:
        """What a worker is called in messages. number: of the worker."""
        part = self.parts[number]
        return f"the process that steps the environments {part.start} to {part.stop - 1} of every seed"

    def reset(self, seeds: Integer[np.ndarray, "K N"]) -> None:
        """New episodes begin everywhere. seeds: one per environment."""
        self._seeds = seeds.astype(np.uint32)

    def seeds(self, number: int) -> list[int]:
        """What a worker's environments are started with, over seeds and then environments. number: of the worker."""
        return self._seeds[:, self.parts[number]].reshape(-1).tolist()

    def survived(self, number: int, faults: Sequence[Sequence[Any]]) -> list[Fault]:
        """Faults that a worker has survived: copies are counted over seeds, then environments: seed · N + environment.

        number: of the worker. faults: (copy among its own, cause, traceback) each.
        """
        part = self.parts[number]
        width = part.stop - part.start
        return [self._restarted(copy // width, part.start + copy % width, *what) for copy, *what in faults]

    def lost(self, number: int, cause: str, trace: str | None) -> list[Fault]:
        """The faults of all environments of a worker that is lost, which get new seeds.

        number: of the worker. cause: in one line. trace: what it wrote last; None where that is not known.
        """
        part = self.parts[number]
        return [
            self._restarted(k, environment, cause, trace)
            for k in range(self._num_seeds)
            for environment in range(part.start, part.stop)
        ]

    def made(self, steps: Sequence[int | None], columns: Columns) -> Integer[np.ndarray, " N"]:
        """How many steps of a rollout each of the N environments of every seed has made.

        steps: of every worker; None for one that was lost, whose environments are not late but start again.
        columns: of the rollout.
        """
        widths = [part.stop - part.start for part in self.parts]
        return np.repeat([len(columns.reward) if own is None else own for own in steps], widths)

    def split(self, captured: dict[str, list]) -> list[dict[str, list]]:
        """The states of all environments as those of each worker's. captured: by seed and environment."""
        return [{name: [seed[part] for seed in rows] for name, rows in captured.items()} for part in self.parts]

    def joined(self, captured: list[dict[str, list] | None]) -> dict[str, list] | None:
        """The inverse of `split`; None where those of a worker are not known."""
        known = [part for part in captured if part is not None]
        if len(known) < len(captured):
            return None
        return {
            name: [[copy for part in known for copy in part[name][k]] for k in range(self._num_seeds)]
            for name in known[0]
        }

    def _restarted(self, k: int, environment: int, cause: str, trace: str | None) -> Fault:
        """Note the new seed of an environment of seed k that is restarted. Returns its fault."""
        self._seeds[k, environment] = restart_seed(int(self._seeds[k, environment]))
        return Fault(k * self._num_envs + environment, cause, trace)
