"""The folder of a policy for others: its files, its configuration, its evaluation, a film, ONNX, a page about it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from klimb.collect.evaluation import Evaluation, evaluate
from klimb.collect.whole_episodes import OnEpisodes
from klimb.environments.registry import Environment
from klimb.errors import ConfigError, KlimbError, MissingExtra, one_line
from klimb.export.write import export_policy
from klimb.files import write_text
from klimb.filming.clip import film
from klimb.filming.writing import require_format
from klimb.policies.acting import Placed
from klimb.report.intervals import CONFIDENCE, student
from klimb.runs.config import RunConfig
from klimb.runs.policy_file import save_policy
from klimb.sharing.card import Facts, card

MIN_EPISODES = 100
"""Of the evaluation: with fewer, what others read would be mostly chance."""


class Shared(NamedTuple):
    """A policy that is shared.

    policy: the policy. config: of its run, with its seed alone. environment: that it was trained in. iteration: of the
    training, that it is after; None where that is not known.
    """

    policy: Any
    config: RunConfig
    environment: Environment
    iteration: int | None


class Progress(NamedTuple):
    """Functions that are called meanwhile.

    on_episodes: after episodes of the evaluation. on_pictures: with the number of pictures of the film. say: with a
    line for people about what is left out.
    """

    on_episodes: OnEpisodes | None
    on_pictures: Callable[[int], None] | None
    say: Callable[[str], None]


def alone(config: RunConfig, seed: int) -> RunConfig:
    """The configuration of a run with one of its seeds alone, without its trackers, and without paths of its machine.

    config: of the run. seed: of the policy.
    """
    options = dataclasses.replace(
        config.options,
        seed=seed,
        num_seeds=1,
        log=(),
        demonstrations=_without_folder(config.options.demonstrations),
        init_from=_without_folder(config.options.init_from),
    )
    return dataclasses.replace(config, options=options)


def _without_folder(name: str | None) -> str | None:
    """What a training started from, without the folders around it: they may hold a user's name."""
    if name is None or name.partition(":")[0] in ("minari", "zoo", "hf"):
        return name
    return PureWindowsPath(name).name  # of slashes of both kinds


def write_folder(
    shared: Shared, folder: Path, name: str, *, episodes: int, seed: int, video: bool, progress: Progress
) -> dict[str, Any]:
    """Write the files of a policy. Returns its evaluation, as plain values.

    shared: the policy. folder: an empty directory. name: of the repository, USER/NAME, for the commands in the page.
    episodes: of the evaluation, at least `MIN_EPISODES`. seed: of its first episode. video: whether to film an episode.
    progress: what is told meanwhile.

    Raises ConfigError for fewer episodes, and what evaluating raises. What else can't be made is left out, and said.
    """
    require_episodes(episodes)
    config = shared.config
    evaluation = evaluate(
        shared.policy, shared.environment, episodes=episodes, seed=seed, on_episodes=progress.on_episodes
    )
    result = _plain(evaluation, seed)
    save_policy(shared.policy, folder, iteration=shared.iteration)
    write_text(folder / "config.toml", config.to_toml())
    write_text(folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
    about = {"env": config.env, "mean return": f"{evaluation.mean:.6g}"}
    has_onnx = _attempt(progress.say, "policy.onnx", lambda path: _export(shared, path, about), folder)
    replay = _film_name(folder)
    filmed = video and _attempt(progress.say, replay, lambda path: _film(shared, path, seed, progress), folder)
    facts = Facts(name, config, shared.iteration, result, replay if filmed else None, has_onnx)
    write_text(folder / "README.md", card(facts))
    return result


def require_episodes(episodes: int) -> None:
    """ConfigError for an evaluation with too few episodes. episodes: of it."""
    if episodes < MIN_EPISODES:
        raise ConfigError(
            f"episodes = {episodes}: a policy is shared with an evaluation over at least {MIN_EPISODES} episodes"
        )


def _plain(evaluation: Evaluation, seed: int) -> dict[str, Any]:
    """An evaluation for JSON, with its interval: Student's, over episodes."""
    returns = evaluation.returns
    return {
        "mean": evaluation.mean,
        "standard_error": evaluation.standard_error,
        "interval": list(student(evaluation.mean, evaluation.standard_error, len(returns) - 1)),
        "confidence": CONFIDENCE,
        "episodes": len(returns),
        "seed": seed,
        "deterministic": True,
        "returns": np.asarray(returns, float).tolist(),
        "lengths": np.asarray(evaluation.lengths, int).tolist(),
    }


def _export(shared: Shared, path: Path, about: dict[str, str]) -> None:
    placed, environment = isinstance(shared.policy, Placed), shared.environment
    export_policy(
        shared.policy,
        path,
        # A policy may see less of the observations than the environment gives.
        observations=None if placed else environment.observations,
        actions=None if placed else environment.actions,
        about=about,
    )


def _film(shared: Shared, path: Path, seed: int, progress: Progress) -> None:
    film(shared.policy, shared.environment, seed=seed, on_pictures=progress.on_pictures).save(path)


def _film_name(folder: Path) -> str:
    """Of the film: MP4, which the Hub shows beside a model, where it can be written."""
    try:
        require_format(folder / "replay.mp4")
    except MissingExtra:
        return "replay.webp"
    return "replay.mp4"


def _attempt(say: Callable[[str], None], name: str, make: Callable[[Path], None], folder: Path) -> bool:
    """Whether a file could be made."""
    try:
        make(folder / name)
    except KlimbError as error:
        say(f"{name} is left out: {one_line(error)}")
        return False
    return True
