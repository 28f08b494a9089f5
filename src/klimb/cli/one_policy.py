"""Which policy of a run `--policy-seed` means, for commands that use one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from klimb.environments.registry import Environment
from klimb.errors import ConfigError
from klimb.runs.config import RunConfig
from klimb.runs.policy_file import load_policy
from klimb.training.networks import Networks


def chosen_seed(config: RunConfig, given: int | None) -> int:
    """The seed that is meant, the first one of a run by default. ConfigError when the run has none of this number.

    config: of the run. given: with --policy-seed, or None.
    """
    options = config.options
    seeds = range(options.seed, options.seed + options.num_seeds)
    if given is not None and given not in seeds:
        among = f"only {seeds[0]}" if len(seeds) == 1 else f"only {seeds[0]} to {seeds[-1]}"
        raise ConfigError(f"the run has no seed {given}, {among}")
    return seeds[0] if given is None else given


def seed_in_files(config: RunConfig, seed: int) -> int | None:
    """By which seed the files of a policy are named; None in a run of one. config: of the run. seed: of the policy."""
    return None if config.options.num_seeds == 1 else seed


def load_chosen(folder: Path, config: RunConfig, seed: int, environment: Callable[[], Environment]) -> Any:
    """The policy of a seed.

    folder: of the run, or `best/` of it. config: of the run. seed: of the policy. environment: makes the environment,
    which only a policy of the user's own class needs.
    """
    like = None if config.options.own_policy is None else Networks(environment(), config.options).template
    return load_policy(folder, seed=seed_in_files(config, seed), like=like)
