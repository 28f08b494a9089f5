"""How experience is collected: the options of this room."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from klimb.fields import Count, checked


@checked
class Collection:
    """How many environments are stepped, for how many steps, and in which processes."""

    num_envs: Count = 16
    """Number of environments stepped in parallel, per seed."""
    num_steps: Annotated[int, Field(ge=1, le=2**24)] = 128
    """Steps per environment and iteration: a batch has num_steps × num_envs samples."""
    batch: Literal["steps", "episodes"] = "steps"
    """steps: episodes continue in the next batch; episodes: one whole episode per environment, up to num_steps."""
    exploration_steps: Count | None = None
    """Steps for which exploration = gsde keeps a draw of its noise; none: a whole rollout, which is the maximum."""
    workers: Annotated[int, Field(ge=0, le=2**12)] | None = None
    """Worker processes that step a Gymnasium environment; none: one per core; 0: in this process, as on Windows."""
    overlap: bool = False
    """Collect the next rollout of a host environment during the update: faster, but its data is one policy old."""
    env_fault: Literal["restart", "stop"] = "restart"
    """What to do when a Gymnasium environment raises, hangs or ends its process: restart it, or stop the run."""
    env_timeout: Annotated[float, Field(gt=0)] = 300.0
    """Maximum time per rollout of a worker process, in seconds, after which it counts as hanging."""
    straggler_timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which a late worker hands over what it has: not repeatable; none: a rollout waits for all steps."""

    @property
    def batch_size(self) -> int:
        """Environment steps per iteration and seed."""
        return self.num_envs * self.num_steps

    @property
    def rows_are_known(self) -> bool:
        """Whether every iteration makes all of these steps, but for faults."""
        return self.batch == "steps" and self.straggler_timeout is None
