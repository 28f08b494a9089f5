"""How experience is collected: the options of this room."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from klimb.fields import Count, checked


@checked
class Collection:
    """How many environments are stepped, for how long, and by whom."""

    num_envs: Count = 16
    """Copies of the environment stepped together, each seed."""
    num_steps: Annotated[int, Field(ge=1, le=2**24)] = 128
    """Steps of each copy in one iteration: the batch is num_steps × num_envs rows."""
    batch: Literal["steps", "episodes"] = "steps"
    """steps: episodes go on in the next batch; episodes: one whole episode of each copy, of num_steps steps at most."""
    workers: Annotated[int, Field(ge=0, le=2**12)] | None = None
    """Processes that step a Gymnasium environment; none for one per core, 0 to step it in this process."""
    overlap: bool = False
    """Step host environments while the last rollout is learned from: faster, from data that is one policy old."""
    env_fault: Literal["restart", "stop"] = "restart"
    """What follows when a Gymnasium environment raises, hangs or ends its process: restart it, or stop the run."""
    env_timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that a worker process may take for a rollout before it counts as hanging."""

    @property
    def batch_size(self) -> int:
        """Environment steps in one iteration, each seed."""
        return self.num_envs * self.num_steps
