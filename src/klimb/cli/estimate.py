"""klimb estimate POLICY --demonstrations DATA: the return of a policy, from episodes of another one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from klimb.cli import compilation_cache
from klimb.cli.evaluate import environment_of, require_policy_trust
from klimb.cli.one_policy import chosen_seed, load_chosen
from klimb.cli.parser import Command
from klimb.collect.demonstrations import Demonstrations
from klimb.estimate.off_policy import Interval
from klimb.estimate.off_policy_evaluation import MIN_ESS, RESAMPLES, ReturnEstimate, as_plain, estimate_return
from klimb.files import is_file
from klimb.runs.demonstration_file import load_demonstrations
from klimb.runs.directory import RunDirectory
from klimb.runs.located import located
from klimb.runs.policy_file import load_policy
from klimb.terminal import write_line


@dataclass(frozen=True)
class EstimateArguments:
    """What is typed after `klimb estimate`."""

    policy: Annotated[Path, Positional, arg(metavar="POLICY")]
    """Run directory, policy directory, or zoo:NAME: the policy whose return is estimated."""
    demonstrations: str
    """Episodes of another policy with its log-probs: a file or run of `klimb record`, or minari:ID."""
    gamma: float = 1.0
    """Discount per step; 1 for the return that `klimb evaluate` measures."""
    min_ess: float = MIN_ESS
    """Effective number of episodes below which nothing is estimated."""
    resamples: int = RESAMPLES
    """Resamples of the bootstrap, from which the intervals are computed."""
    seed: int = 0
    """Seed of the bootstrap, of the folds of episodes and of the policy's samples."""
    policy_seed: int | None = None
    """Seed whose policy is meant, in a run of several seeds; by default the first."""
    json: bool = False
    """Print one JSON object instead of text."""
    trust_environment: bool = False
    """Allow the run's config.toml to name an environment or a network to import: this runs its code."""


def estimate(arguments: EstimateArguments) -> None:
    """Estimate the return of a policy without running it, and print all estimates with their intervals.

    arguments: which policy, which episodes, and how.
    """
    flags = arguments
    compilation_cache.enable()
    policy, demonstrations = _policy(flags), load_demonstrations(flags.demonstrations)
    result = estimate_return(
        policy, demonstrations, gamma=flags.gamma, min_ess=flags.min_ess, resamples=flags.resamples, seed=flags.seed
    )
    if flags.json:
        head = {"policy": str(flags.policy), "demonstrations": flags.demonstrations, "env": demonstrations.environment}
        write_line(json.dumps({**head, **as_plain(result)}))
        return
    write_line(f"policy       {flags.policy}, whose actions are sampled")
    for line in estimate_lines(result, demonstrations):
        write_line(line)


def _policy(flags: EstimateArguments) -> Any:
    """The policy that is named; of a run the one of the chosen seed."""
    place = located(flags.policy)
    if not is_file(place / "config.toml"):
        return load_policy(place, seed=flags.policy_seed)
    config = RunDirectory.open(place).config
    require_policy_trust(place, config, trust=flags.trust_environment)
    seed = chosen_seed(config, flags.policy_seed)
    return load_chosen(place, config, seed, lambda: environment_of(place, config, None, trust=flags.trust_environment))


def estimate_lines(result: ReturnEstimate, demonstrations: Demonstrations) -> list[str]:
    """An estimate for people.

    result: of `estimate_return`. demonstrations: that it was made from.
    """
    cut = f", {result.truncated} of them truncated (their returns are those up to there)" if result.truncated else ""
    undiscounted = " (undiscounted)" if result.gamma == 1 else ""
    lines = [
        f"data         {demonstrations.source}: {result.episodes} episodes of {demonstrations.environment}, "
        f"{result.steps:,} steps{cut}",
        f"weights      effective sample size {result.ess:.1f} of {result.episodes} episodes; the largest weight is "
        f"{result.largest_weight:.1%} of their sum",
        f"return       expected, gamma {result.gamma:g}{undiscounted}, with {result.confidence:.0%} bootstrap "
        f"intervals ({result.resamples:,} resamples of the episodes)",
        f"  {'behaviour, as recorded':<30}{_number(result.behaviour)}",
    ]
    return lines + [f"  {name.replace('_', ' '):<30}{_number(each)}" for name, each in result.estimates.items()]


def _number(interval: Interval) -> str:
    return f"{interval.value:10.3f}  [{interval.low:.3f}, {interval.high:.3f}]"


COMMAND = Command("estimate", EstimateArguments, estimate)
