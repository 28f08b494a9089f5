"""The rollouts of a training on host environments, each started as early as possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Integer, Key, PyTree

from klimb.collect.episodes import EpisodeSummary
from klimb.collect.host.collector import HostRollout, VectorCollector


class RolloutPipeline:
    """The rollouts of a collector, in order.

    collector: of the rollouts. keys: the number of a rollout ↦ `[K]` keys. A rollout's noise depends on them alone, so
    that it can be drawn in advance.
    seeds: the number of a rollout ↦ `[K, N]` seeds of the environments, for those that begin with new episodes.
    overlap: whether the next rollout is collected while the last one is learned from; the data is then one policy old.
    """

    def __init__(
        self,
        collector: VectorCollector,
        keys: Callable[[int], Key[Array, " K"]],
        seeds: Callable[[int], Integer[np.ndarray, "K N"]],
        *,
        overlap: bool = False,
    ) -> None:
        self.collector = collector
        self._keys, self._seeds, self._overlap = keys, seeds, overlap
        self._number = 0
        self._noise: Array | None = None
        self._behaviour: PyTree | None = None

    def start(self, number: int, host_states: dict[str, Any] | None = None) -> None:
        """Restore the environments' states, or begin new episodes.

        number: of the next rollout. host_states: what `capture` returned; None for new episodes. Raises RunError when
        the states do not fit.
        """
        self._number = number
        if host_states is None:
            self.collector.reset(self._seeds(number))
        else:
            self.collector.restore(self._seeds(number), host_states)

    def capture(self) -> dict[str, Any] | None:
        """The environments' states as plain data; None where they can't be saved or a rollout is under way."""
        return None if self.collector.under_way else self.collector.capture()

    def first(self, policy: PyTree) -> HostRollout:
        """The rollout before the first iteration; none is begun beside it.

        policy: as for `next`.
        """
        self._number -= 1
        self._begin(policy)
        self._behaviour = None
        return self.collector.finish()[0]

    def next(self, policy: PyTree) -> tuple[HostRollout, PyTree | None, EpisodeSummary]:
        """A rollout, the policy that collected it (None if it is `policy`), and the episodes that ended in it.

        policy: the current one, arrays `[K, ...]`. Raises EnvironmentFault for a fault that ends the training.
        """
        if not self._overlap:
            self._begin(policy)
            rollout, episodes = self.collector.finish()
            return rollout, None, episodes
        if self._behaviour is None:
            self._begin(policy)
        behaviour = self._behaviour
        rollout, episodes = self.collector.finish()
        self._begin(policy)
        return rollout, behaviour, episodes

    def prepare(self) -> None:
        """Draw the next rollout's noise in advance, while the devices are busy with the update."""
        self._noise = self._draw()

    def _begin(self, policy: PyTree) -> None:
        self._behaviour = jax.tree.map(np.asarray, policy)
        noise = self._draw() if self._noise is None else self._noise
        self._noise = None
        self._number += 1
        if self.collector.whole_episodes:
            # Numbered from 1, because the rollout before the first iteration has the seeds of number 0.
            self.collector.reset(self._seeds(self._number))
        self.collector.begin(noise, self._behaviour, at_once=not self._overlap)

    def _draw(self) -> Array:
        return self.collector.draw(self._keys(self._number), self._behaviour)
