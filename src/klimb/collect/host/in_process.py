"""Host environments stepped in this process: the twin of `Workers` for environments that can't be made elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Integer, PyTree

from klimb.collect.host.decisions import Decide
from klimb.collect.host.stepping import Columns, Stepped, Stepper
from klimb.environments.host import HostVector


class InProcess:
    """All N environments of K seeds, stepped by one loop.

    vector: the running copies. seeds: K. empty: makes the columns of a rollout. decider: from the policies' arrays
    `[K, …]` to their decisions. noise_steps: for which a row of the noise is used.
    whole_episodes: whether a rollout is one episode of every copy, after a reset. remembered: numbers that a policy
    remembers of each.
    """

    def __init__(
        self,
        vector: HostVector,
        seeds: int,
        empty: Callable[[], Columns],
        decider: Callable[[PyTree], Decide],
        *,
        noise_steps: int = 1,
        whole_episodes: bool = False,
        remembered: int = 0,
    ) -> None:
        self._noise_steps = noise_steps
        self._stepper = Stepper(vector, slice(None), seeds, whole_episodes=whole_episodes, remembered=remembered)
        self._empty, self._decider = empty, decider
        self._thread = ThreadPoolExecutor(1, "klimb-collect")
        self._result: Callable[[], Stepped] | None = None

    def reset(self, seeds: Integer[np.ndarray, "K N"]) -> None:
        """Start all episodes again. seeds: one per environment."""
        self._stepper.start_from(self._stepper.vector.reset(seeds.reshape(-1)))

    def begin(self, policy: PyTree, noise: np.ndarray, *, at_once: bool) -> None:
        """Begin a rollout.

        policy: arrays `[K, …]`. noise: as `NoiseLayout` says. at_once: step it here; else on a thread, until `finish`.
        """
        if at_once:
            rolled = self._roll(policy, noise)
            self._result = lambda: rolled
        else:
            self._result = self._thread.submit(self._roll, policy, noise).result

    def finish(self) -> Stepped:
        """The rollout that was begun, and what went wrong in it."""
        assert self._result is not None, "begin comes before finish"
        result, self._result = self._result, None
        return result()

    def capture(self) -> dict[str, list] | None:
        """Where all copies stand, by seed and copy; None where that can't be saved."""
        return self._stepper.capture()

    def restore(self, captured: dict[str, list]) -> None:
        """Put all copies where `capture` found them, after a reset."""
        self._stepper.restore(captured)

    def close(self) -> None:
        """Release the environments."""
        self._thread.shutdown()
        self._stepper.vector.close()

    def _roll(self, policy: PyTree, noise: np.ndarray) -> Stepped:
        columns, decide = self._empty(), self._decider(policy)
        self._stepper.roll(lambda t, obs, carry: decide(obs, noise[t // self._noise_steps], carry), columns)
        return Stepped(columns, self._stepper.vector.take_faults())
