"""Several runs side by side: which of them are seeds of one algorithm, and what their scores say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from klimb.environments.registry import BUILT_IN
from klimb.errors import ConfigError, RunError, one_line
from klimb.files import exists, is_file
from klimb.report.data import RunData, Spec, read_run
from klimb.report.statistics import from_few_seeds
from klimb.report.text import setting

MAX_LABEL = 200
# Options that may differ between runs of one algorithm, because they do not change what is learned.
NOT_THE_ALGORITHM = (
    *("seed", "num_seeds", "certificate", "log", "cores", "workers", "learn_on", "spread"),
    *("checkpoint_every", "keep_checkpoints", "eval_every", "eval_episodes"),
)


@dataclass(frozen=True)
class Seed:
    """One seed of one run: its score, and its learning curve over n iterations (NaN where no episode ended).

    run: the run's name. env_steps, wall_time: steps and seconds at the end of each iteration.
    """

    seed: int
    run: str
    score: float
    curve: Float[np.ndarray, " n"]
    env_steps: Float[np.ndarray, " n"]
    wall_time: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Group:
    """The seeds of one algorithm (`label`) on one environment."""

    environment: str
    label: str
    seeds: list[Seed]

    @property
    def scores(self) -> Float[np.ndarray, " seeds"]:
        """The score of every seed."""
        return np.array([seed.score for seed in self.seeds])


@dataclass(frozen=True)
class Comparison:
    """All groups in the order in which their runs were named, and the kind of scores they are compared by."""

    groups: list[Group]
    evaluated: bool
    """Scores are mean returns of the final evaluations; else of the last tenth of the training's iterations."""
    notes: list[str] = field(default_factory=list)

    @property
    def environments(self) -> list[str]:
        """The names of all environments."""
        return list(dict.fromkeys(group.environment for group in self.groups))

    @property
    def labels(self) -> list[str]:
        """The labels of all algorithms."""
        return list(dict.fromkeys(group.label for group in self.groups))

    def on(self, environment: str) -> list[Group]:
        """The groups on one environment."""
        return [group for group in self.groups if group.environment == environment]

    @property
    def has_few_seeds(self) -> bool:
        """Whether some interval comes from too few seeds to rely on."""
        return any(from_few_seeds(len(group.seeds)) for group in self.groups)

    def of(self, label: str) -> dict[str, Group]:
        """An algorithm's groups by environment."""
        return {group.environment: group for group in self.groups if group.label == label}

    def shared(self, labels: Iterable[str]) -> list[str]:
        """The environments on which all of these algorithms ran."""
        members = [self.of(label) for label in labels]
        return [env for env in self.environments if all(env in groups for groups in members)]


def read_comparison(paths: list[Path]) -> Comparison:
    """The comparison of the runs in some directories. Runs whose configurations differ only in the seeds are pooled.

    Raises RunError when a directory is not a run, ConfigError when the runs can't be compared.
    """
    if not paths:
        raise ConfigError("klimb compare takes at least one run directory, not 0: klimb compare RUN RUN")
    for path in paths:
        if not is_file(path / "config.toml"):
            what = "there is no such directory" if not exists(path) else "it has no config.toml"
            raise RunError(f"{one_line(path)} is not a run: {what}")
    runs = [read_run(path) for path in paths]
    without = [run.name for run in runs if not _is_evaluated(run)]
    algorithms = _algorithms(runs)
    names = _labels(algorithms, runs)
    members: dict[tuple[str, str], list[RunData]] = {}
    for run, label in zip(runs, names, strict=True):
        members.setdefault((_environment(run), label), []).append(run)
    groups = [Group(env, label, _pool(label, group, not without)) for (env, label), group in members.items()]
    return Comparison(groups, not without, _notes(runs, without))


def default_threshold(environment: str) -> float | None:
    """The return at which Gymnasium's registry calls an environment solved; None where it does not say."""
    import gymnasium

    spec = gymnasium.registry.get(environment.rpartition(":")[2])
    return None if spec is None or spec.reward_threshold is None else float(spec.reward_threshold)


def _environment(run: RunData) -> str:
    """The environment's name, on one line, without a prefix that `make` would add by itself."""
    full_name = one_line(run.config["env"])
    prefix, _, name = full_name.partition(":")
    redundant = prefix == "jax" or (prefix == "gymnasium" and name not in BUILT_IN)
    return name if redundant else full_name


def _algorithms(runs: list[RunData]) -> list[Spec]:
    """The settings that identify each run's algorithm: its rule and its options.

    `env_steps` is left out where all runs on an environment share it: environments may need different budgets.
    """
    budgets: dict[str, set[int]] = {}
    for run in runs:
        budgets.setdefault(_environment(run), set()).add(run.config["options"]["env_steps"])
    algorithms = []
    for run in runs:
        ignored = NOT_THE_ALGORITHM + (("env_steps",) if len(budgets[_environment(run)]) == 1 else ())
        options = {key: value for key, value in run.config["options"].items() if key not in ignored}
        algorithms.append({"rule": run.config["rule"], **options})
    return algorithms


def _labels(algorithms: list[Spec], runs: list[RunData]) -> list[str]:
    """The rule's title with the settings in which it differs from the others; with the run's name if ambiguous."""
    labels = []
    for algorithm, run in zip(algorithms, runs, strict=True):
        rule = algorithm["rule"]
        rivals = [other["rule"] for other in algorithms if other["rule"]["name"] == rule["name"]]
        settings = {**_differing(rule, rivals), **_differing(algorithm, algorithms)}
        settings.pop("rule", None)
        label = " ".join([run.rule_title, *(f"{key}={_value(key, value)}" for key, value in settings.items())])
        labels.append(one_line(label, MAX_LABEL))
    first: dict[str, str] = {}
    meanings: dict[str, set[str]] = {}
    keys = [_canonical(algorithm) for algorithm in algorithms]
    for key, label, run in zip(keys, labels, runs, strict=True):
        first.setdefault(key, run.name)
        meanings.setdefault(label, set()).add(key)
    return [x if len(meanings[x]) == 1 else f"{x} ({first[key]})" for key, x in zip(keys, labels, strict=True)]


def _differing(values: Spec, all_values: list[Spec]) -> Spec:
    """The settings that are not the same in `all_values`."""
    return {key: x for key, x in values.items() if len({_canonical(other.get(key)) for other in all_values}) > 1}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _value(name: str, value: Any) -> str:
    """A value in a label, written as on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return setting(name, value, times="×") if isinstance(value, list | tuple | None) else str(value)


def _pool(label: str, runs: list[RunData], evaluated: bool) -> list[Seed]:
    """The seeds of all runs of one algorithm. ConfigError when two runs have the same seed: it would count twice."""
    seeds: dict[int, Seed] = {}
    for run in runs:
        for seed in _seeds(run, evaluated):
            if seed.seed in seeds:
                raise ConfigError(
                    f"seed {seed.seed} of {label} on {_environment(run)} occurs twice, in {seeds[seed.seed].run} and "
                    f"in {run.name}: omit one of them, or train it with another --seed"
                )
            seeds[seed.seed] = seed
    return [seeds[number] for number in sorted(seeds)]


def _seeds(run: RunData, evaluated: bool) -> list[Seed]:
    shape = (len(run.iteration), run.num_seeds)
    missing = np.full((shape[0], 1), np.nan)
    curves = np.broadcast_to(run.columns.get("episode_return", missing), shape)
    wall_time = run.columns.get("wall_time", missing)[:, 0]
    seeds = []
    for k, seed in enumerate(run.seeds):
        score = run.evaluation.seeds[k].mean if evaluated and run.evaluation else _final_return(run, seed, curves[:, k])
        seeds.append(Seed(seed, run.name, score, curves[:, k], run.env_steps, wall_time))
    return seeds


def _final_return(run: RunData, seed: int, curve: Float[np.ndarray, " n"]) -> float:
    tail = curve[-math.ceil(len(curve) / 10) :]
    if not np.isfinite(tail).any():
        raise ConfigError(
            f"{run.name}: seed {seed} finished no episode in the last {len(tail)} of its {len(curve)} iterations, so "
            "it has no score; continue it (klimb resume RUN), or omit it"
        )
    return float(np.nanmean(tail))


def _is_evaluated(run: RunData) -> bool:
    """Whether the final evaluation has a mean return for every seed."""
    seeds = run.evaluation.seeds if run.evaluation else []
    return len(seeds) == run.num_seeds and all(math.isfinite(seed.mean) for seed in seeds)


def _notes(runs: list[RunData], without: list[str]) -> list[str]:
    notes = []
    if 0 < len(without) < len(runs):
        notes.append(f"Scores are training returns because {', '.join(without)} has no final evaluation.")
    kinds = {run.evaluation.deterministic for run in runs if run.evaluation}
    if not without and len(kinds) > 1:
        notes.append("Some final evaluations took the mode of the policy, others sampled from it.")
    return notes
