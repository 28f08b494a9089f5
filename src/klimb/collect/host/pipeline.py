"""The rollouts of a training on host environments, one after the other, each begun as early as it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from klimb.collect.episodes import EpisodeSummary
from klimb.collect.host.collector import HostRollout, VectorCollector


class RolloutPipeline:
    """What to learn from next, from a collector.

    keys: the number of a rollout ↦ `[K]` keys. A rollout's noise depends on them and on nothing learned, so that it
    can be drawn beforehand.
    overlap: the rollout after the one that is given is begun under the policy there is now, and goes on while that
    one is learned from; the data is then one policy old.
    """

    def __init__(
        self, collector: VectorCollector, keys: Callable[[int], Key[Array, " K"]], *, overlap: bool = False
    ) -> None:
        self.collector = collector
        self._keys, self._overlap = keys, overlap
        self._number = 0
        self._noise: Array | None = None
        self._behaviour: PyTree | None = None

    def start(self, number: int, seed: int, host_states: dict[str, Any] | None = None) -> None:
        """Put the environments where `capture` found them, or start all episodes anew from a seed.

        number: that of the next rollout.
        """
        self._number = number
        if host_states is None:
            self.collector.reset(seed)
        else:
            self.collector.restore(seed, host_states)

    def capture(self) -> dict[str, Any] | None:
        """Where the environments stand; None where that can't be saved, or they have gone on already (`overlap`)."""
        return None if self.collector.under_way else self.collector.capture()

    def next(self, policy: PyTree) -> tuple[HostRollout, PyTree | None, EpisodeSummary]:
        """A rollout, the policy it is of (None: the one that is given), and the episodes that ended in it."""
        if not self._overlap:
            self._begin(policy)
            seen, episodes = self.collector.finish()
            return seen, None, episodes
        if self._behaviour is None:
            self._begin(policy)
        behaviour = self._behaviour
        seen, episodes = self.collector.finish()
        self._begin(policy)
        return seen, behaviour, episodes

    def prepare(self) -> None:
        """Draw the next rollout's noise already: there is time while devices are busy learning."""
        self._noise = self._draw()

    def _begin(self, policy: PyTree) -> None:
        self._behaviour = jax.tree.map(np.asarray, policy)
        noise = self._draw() if self._noise is None else self._noise
        self._noise = None
        self._number += 1
        self.collector.begin(noise, self._behaviour, at_once=not self._overlap)

    def _draw(self) -> Array:
        return self.collector.draw(self._keys(self._number), self._behaviour)
