"""Seeds of host environments: every copy has its own, which no other copy and no number of worker processes changes."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt32


def environment_seeds(seed: int, iteration: int, num_envs: int) -> UInt32[np.ndarray, " N"]:
    """The seeds of the N environments of one training seed: SeedSequence(seed, spawn_key=(iteration,)).

    An evaluation with the same seed has SeedSequence(seed), which without a spawn key would be that of iteration 0.

    seed: of the training; of seed k of K it is `seed + k`. iteration: the one that new episodes begin in, 0 for a new
    run. num_envs: N.
    """
    return np.random.SeedSequence(seed, spawn_key=(iteration,)).generate_state(num_envs)


def restart_seed(seed: int) -> int:
    """The seed of a copy that is restarted: after n restarts it depends on the copy's first seed and on n alone.

    seed: that the copy was started with last.
    """
    return int(np.random.SeedSequence(seed).spawn(1)[0].generate_state(1)[0])
