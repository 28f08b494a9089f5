"""How long a training goes on: for a number of iterations, or until enough environment steps have been made."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from klimb.improve.rule import is_offline, traits_of
from klimb.runs.config import RunConfig


class Length(abc.ABC):
    """Tells how much of a training is done. iteration: those that are done. env_steps: so far, of a copy."""

    iterations: int | None
    """How many there will be at most; None where nobody knows."""

    @abc.abstractmethod
    def fraction_done(self, iteration: Any, env_steps: Any) -> Any:
        """The part that is over, 0 to 1; numbers of JAX or of Python."""

    def is_over(self, iteration: Array, env_steps: Array) -> Array:
        """Whether a copy has made all its steps while others go on, `[]`; never where all make as many iterations."""
        return jnp.bool_(False)

    @abc.abstractmethod
    def certain(self, iteration: int, env_steps: np.ndarray) -> int:
        """Iterations that are still to be made whatever happens in them; 0 at the end.

        env_steps: of every copy, `[K]`.
        """


@dataclass(frozen=True)
class Iterations(Length):
    """A number of iterations."""

    iterations: int

    def fraction_done(self, iteration: Any, env_steps: Any) -> Any:
        return iteration / self.iterations

    def certain(self, iteration: int, env_steps: np.ndarray) -> int:
        return self.iterations - iteration


@dataclass(frozen=True)
class EnvSteps(Length):
    """Until every copy has made `total` steps; one that has waits for the others. most: of a copy in one iteration."""

    total: int
    most: int
    iterations: None = None

    def fraction_done(self, iteration: Any, env_steps: Any) -> Any:
        return jnp.minimum(env_steps / self.total, 1)

    def is_over(self, iteration: Array, env_steps: Array) -> Array:
        # The rollout before the first iteration counts, and may be all there is; one iteration is made in any case.
        return (iteration > 0) & (env_steps >= self.total)

    def certain(self, iteration: int, env_steps: np.ndarray) -> int:
        return -(-max(0, self.total - int(env_steps.min())) // self.most)


def length_of(config: RunConfig) -> Length:
    """The length of a run: with whole episodes, or late workers, nobody knows how many steps an iteration makes.

    config: of the run.
    """
    options = config.options
    if not options.rows_are_known and not is_offline(config.rule):
        return EnvSteps(options.env_steps, options.batch_size * traits_of(config.rule).env_steps_per_row)
    return Iterations(config.num_iterations)
