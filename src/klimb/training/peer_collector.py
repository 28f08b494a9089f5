"""Rollouts of a host environment whose copies several processes share out."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Integer, Key, PyTree

from klimb.collect.episodes import EpisodeSummary
from klimb.collect.host.collector import STANDS, HostRollout, VectorCollector
from klimb.collect.host.shares import Shares
from klimb.environments.host import Fault, HostEnvironment
from klimb.training import peers


class PeerCollector(VectorCollector):
    """A `VectorCollector` whose copies are stepped by the processes of a training, each its share of every seed.

    Every process gets the rollouts of all copies. Noise and seeds are drawn for all of them everywhere, so that they do
    not depend on the number of processes.

    environment, policy_static, policy_shapes, num_seeds, num_envs, options: as for `VectorCollector`. num_envs counts
    the copies of all processes, and `workers` the worker processes of each.
    """

    def __init__(
        self,
        environment: HostEnvironment,
        policy_static: PyTree,
        policy_shapes: PyTree,
        *,
        num_seeds: int,
        num_envs: int,
        **options: Any,
    ) -> None:
        made: Any = (environment, policy_static, policy_shapes)
        super().__init__(*made, num_seeds=num_seeds, num_envs=num_envs, **options)
        self._part = peers.share(num_envs)
        own = self._part.stop - self._part.start
        self._own = VectorCollector(*made, num_seeds=num_seeds, num_envs=own, **options)
        self._shares = Shares(num_seeds, num_envs, peers.count())

    def reset(self, seeds: Integer[np.ndarray, "K N"]) -> None:
        self._own.reset(seeds[:, self._part])

    def capture(self) -> dict[str, Any] | None:
        captured = peers.exchange(self._own.capture())
        states = self._shares.joined([None if one is None else _states(one) for one in captured])
        tally = self._shares.joined([None if one is None else one["tally"] for one in captured])
        return None if states is None else {**states, "tally": tally, "room": captured[0]["room"]}

    def restore(self, seeds: Integer[np.ndarray, "K N"], captured: dict[str, Any]) -> None:
        number = peers.number()
        states = self._shares.split(_states(captured))[number]
        tally = self._shares.split(captured["tally"])[number]
        room = {name: captured[name] for name in ("room",) if name in captured}
        self._own.restore(seeds[:, self._part], {**states, **room, "tally": tally})

    def draw(self, keys: Key[Array, " K"], policy: PyTree) -> Array:
        return super().draw(keys, policy)[:, :, self._part]

    def begin(self, noise: Array, policy: PyTree, *, at_once: bool = False) -> None:
        self._own.begin(noise, policy, at_once=at_once)

    def finish(self) -> tuple[HostRollout, EpisodeSummary]:
        rollout, episodes = self._own.finish()
        room = rollout.columns.successor.shape[1]
        summaries, rooms = peers.gather(jax.tree.map(lambda x: np.asarray(x)[None], (episodes, room)), axis=0)
        if room < rooms.max():
            # All must bring arrays of the same shapes.
            rollout = self._own.with_room(rollout, int(rooms.max()))
        self._room = int(rooms.max())
        if summaries.faults.any():
            self._faults += self._numbered(peers.exchange([list(fault) for fault in self._own.take_faults()]))
        return peers.gather(rollout, axis=2), _together(summaries)

    @property
    def under_way(self) -> bool:
        return self._own.under_way

    def close(self) -> None:
        self._own.close()

    def _numbered(self, faults: list[list[Any]]) -> list[Fault]:
        """The faults of all processes, with the numbers that copies have among all of them."""
        return [fault for number, own in enumerate(faults) for fault in self._shares.survived(number, own)]


def _states(captured: dict[str, Any]) -> dict[str, Any]:
    return {name: captured[name] for name in STANDS if name in captured}


def _together(parts: EpisodeSummary) -> EpisodeSummary:
    """The summary of all processes' episodes. parts: those of each, `[processes, K]`."""
    count = np.asarray(parts.count)
    total = np.where(count.sum(0) > 0, count.sum(0), np.nan)

    def mean(of_each: Any) -> np.ndarray:
        return (np.where(count > 0, of_each, 0).astype(np.float64) * count).sum(0) / total

    return EpisodeSummary(
        count=count.sum(0).astype(np.int32),
        mean_return=mean(parts.mean_return).astype(np.float32),
        mean_length=mean(parts.mean_length).astype(np.float32),
        faults=np.asarray(parts.faults).sum(0).astype(np.int32),
        late_rows=None if parts.late_rows is None else np.asarray(parts.late_rows).sum(0).astype(np.int32),
    )
