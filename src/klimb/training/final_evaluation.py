"""The evaluation after a training: whole episodes of every seed's policy, and the file that keeps their returns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from klimb.collect.evaluation import Evaluator
from klimb.collect.whole_episodes import OnEpisodes
from klimb.errors import EnvironmentFault
from klimb.policies.policy import policy_of
from klimb.runs.config import RunConfig
from klimb.runs.directory import RunDirectory
from klimb.runs.faults_log import FaultsLog
from klimb.training.progress.view import View

FIRST_SEED = 10_000
"""Added to the seed of a training: no episode of the evaluation is one that was trained on."""


def evaluate_run(
    run_dir: Path,
    policies: list[Any],
    config: RunConfig,
    environment: Any,
    episodes: int,
    view: View,
    evaluator: Evaluator | None = None,
) -> dict[str, Any] | None:
    """The evaluation after a training, which is written to its directory; None without episodes.

    run_dir, policies, config, environment: of the run. episodes: of each seed. view: that shows the evaluation.
    evaluator: of deterministic actions and as many episodes, which may have been used before; None for a new one.
    """
    if episodes == 0:
        return None
    seed = config.options.seed + FIRST_SEED
    try:
        with view:
            result = evaluate_seeds(policies, config, environment, episodes, seed, True, view.episodes, evaluator)
    except EnvironmentFault as fault:
        FaultsLog(run_dir).add(f"final evaluation: {fault}", fault.environment_traceback)
        raise
    RunDirectory(run_dir, config).write_evaluation(result)
    return result


def evaluate_seeds(
    policies: list[Any],
    config: RunConfig,
    environment: Any,
    episodes: int,
    seed: int,
    deterministic: bool,
    on_episodes: OnEpisodes | None = None,
    evaluator: Evaluator | None = None,
) -> dict[str, Any]:
    """One entry per seed, and the mean over seeds, as plain values.

    policies: one per seed. config: of the run. environment: to evaluate in. episodes: of each policy, at least 1.
    seed: of the episodes. deterministic: whether the mode is taken instead of a sample. on_episodes: called with the
    number of episodes of all policies that have ended, and with how many there will be. evaluator: for such an
    evaluation, which may have been used before; None for a new one.
    """
    # Its programs are compiled once for all policies.
    evaluator = evaluator or Evaluator(environment, episodes=episodes, deterministic=deterministic)
    seeds = []
    for k, policy in enumerate(policies):
        count = None if on_episodes is None else partial(_of_all, on_episodes, k, len(policies))
        result = evaluator(policy_of(policy), seed, count)
        seeds.append(
            {
                "seed": config.options.seed + k,
                "mean": result.mean,
                "standard_error": result.standard_error if episodes > 1 else None,
                "returns": result.returns.tolist(),
                "lengths": result.lengths.tolist(),
            }
        )
    mean = sum(entry["mean"] for entry in seeds) / len(seeds)
    return {"episodes": episodes, "deterministic": deterministic, "mean": mean, "seeds": seeds}


def _of_all(on_episodes: OnEpisodes, before: int, policies: int, ended: int, episodes: int) -> None:
    """Tell of the episodes of one policy as a part of those of all.

    on_episodes: whom. before: policies that have been evaluated. policies: how many there are. ended, episodes: of the
    one that is being evaluated.
    """
    on_episodes(before * episodes + ended, policies * episodes)
