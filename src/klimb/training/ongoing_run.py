"""What a callback is given: a run while it trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from klimb.errors import RunError
from klimb.runs.metrics import Record


class OngoingRun:
    """A run while it trains, after its newest iterations.

    iteration: the last one that is done. env_steps: so far, per seed (the mean over seeds).
    records: of the iterations since the last call, one each; an evaluation is in the record of its iteration.
    directory: of the run; None when it is not written. read_policies: copies the policies from the device.
    """

    def __init__(self, records: list[Record], directory: Path | None, read_policies: Callable[[], list[Any]]) -> None:
        self.records, self.directory = records, directory
        self.iteration, self.env_steps = int(records[-1]["iteration"]), int(records[-1]["env_steps"])
        self._read_policies: Callable[[], list[Any]] | None = read_policies
        self._stopped = False

    @property
    def metrics(self) -> Record:
        """The newest record: metrics by name, each one number, or a list with one per seed."""
        return self.records[-1]

    @cached_property
    def policies(self) -> list[Any]:
        """The policies that the training would result in if it ended now, one per seed.

        They are copied from the device when they are first read, which has to be inside of the callback. Raises
        RunError afterwards.
        """
        if self._read_policies is None:
            raise RunError(
                f"the policies after iteration {self.iteration} are no longer available, because the "
                "training has continued; read them inside the callback"
            )
        return self._read_policies()

    @property
    def policy(self) -> Any:
        """The policy of the (first) seed."""
        return self.policies[0]

    def stop(self) -> None:
        """End the training cleanly once the callback returns: with a checkpoint, and a `Run` as usual."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether `stop` has been called."""
        return self._stopped

    def release(self) -> None:
        """The training goes on: policies that have not been read are gone."""
        self._read_policies = None


Callback = Callable[[OngoingRun], object]
"""Called with the run after every call to the device, which makes one iteration or several."""
