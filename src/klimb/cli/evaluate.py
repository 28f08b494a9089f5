"""klimb evaluate RUN: returns of whole episodes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from klimb.cli import compilation_cache
from klimb.cli.parser import Command, RunWord, require_unused
from klimb.environments.registry import Environment, make, make_named_in
from klimb.environments.rendering import offscreen
from klimb.errors import ConfigError
from klimb.filming.clip import Clip, film
from klimb.filming.writing import require_format
from klimb.modules import require_trust
from klimb.policies.memory import carry_size
from klimb.runs.config import RunConfig
from klimb.runs.directory import BEST, RunDirectory
from klimb.runs.ending import Ending
from klimb.runs.hub import is_hub, pinned
from klimb.runs.located import located
from klimb.runs.provenance import as_plain
from klimb.tabular.mdp import TabularMDP
from klimb.terminal import write_line
from klimb.theory.exact_evaluation import exact_return
from klimb.training.final_evaluation import evaluate_seeds
from klimb.training.networks import load_policies_of_one_iteration
from klimb.training.progress.choice import view_of_episodes


@dataclass(frozen=True)
class EvaluateArguments:
    """What is typed after `klimb evaluate`."""

    run: RunWord
    """Run directory, or zoo:NAME (`klimb list zoo`) or hf://USER/NAME (Hugging Face Hub) for a policy from there."""
    episodes: int = 100
    """Number of episodes per seed of the run."""
    seed: int = 0
    """Seed of the episodes."""
    stochastic: bool = False
    """Sample actions instead of taking the mode of the policy."""
    env: str | None = None
    """Evaluate in this environment instead of the run's own."""
    best: bool = False
    """Evaluate the policies in `best/` instead of the last ones: those with the highest return in an evaluation during
    the training or, without --eval-every, those of the checkpoint with the highest mean training return."""
    exact: bool = False
    """Also print the exact discounted return and that of an optimal policy; tabular environments only."""
    video: Path | None = None
    """Also film an episode of the run's first seed, the one that --episodes 1 would run: a .webp or .mp4 file."""
    overwrite: bool = False
    """Overwrite an existing file of --video."""
    json: bool = False
    """Print one JSON object, including the provenance of the run, instead of text."""
    trust_environment: bool = False
    """Allow the run's config.toml to name an environment or a network to import: this runs its code."""


def evaluate(arguments: EvaluateArguments) -> None:
    """Run whole episodes under a run's policies, and print their returns.

    arguments: which run, and how.
    """
    run_dir, flags = located(arguments.run), arguments
    if flags.video is not None:
        require_format(flags.video)
        require_unused([flags.video], flags.overwrite, "--video")
        # Before anything imports MuJoCo, which chooses then how to draw.
        offscreen.prepare()
    directory = RunDirectory.open(run_dir)
    config, provenance = directory.config, as_plain(directory.provenance()) if flags.json else []
    compilation_cache.enable()
    environment = environment_of(run_dir, config, flags.env, trust=flags.trust_environment)
    require_policy_trust(run_dir, config, trust=flags.trust_environment)
    folder = run_dir / BEST if flags.best else run_dir
    policies, iteration = load_policies_of_one_iteration(folder, config, environment)
    env_steps = None if iteration is None else directory.env_steps_at(iteration)
    writer, ending = directory.writer, directory.ending()
    if not flags.json:
        if is_hub(arguments.run):
            write_line(f"hub          {pinned(arguments.run, run_dir)}")
        print_policy(iteration, env_steps, writer, ending)
    if flags.exact and any(carry_size(policy) is not None for policy in policies):
        raise ConfigError("--exact is for policies without memory: leave it out")
    mode = not flags.stochastic
    # First: an environment that can't be drawn is found out before all episodes have been run.
    filmed = {} if flags.video is None else {"video": _filmed(policies[0], environment, flags)}
    with view_of_episodes() as view:
        result = evaluate_seeds(policies, config, environment, flags.episodes, flags.seed, mode, view.episodes)
    if flags.exact:
        result["exact"] = _exact_returns(policies, environment.id, config)
    if flags.json:
        policy = {"iteration": iteration, "env_steps": env_steps, "being_trained": writer is not None}
        ended = {"ended": None if ending is None else dataclasses.asdict(ending)}
        name = pinned(arguments.run, run_dir) if is_hub(arguments.run) else str(arguments.run)
        head = {"run": name, "env": environment.id, **policy, **ended}
        write_line(json.dumps({**head, **result, **filmed, "provenance": provenance or None}))
        return
    for line in evaluation_lines(result):
        write_line(line)
    for video in filmed.values():
        write_line(video_line(video))
    for entry in result.get("exact", []):
        write_line(
            f"exact        seed {entry['seed']}: discounted return {entry['sampled']:.4f} with sampled actions, "
            f"{entry['deterministic']:.4f} with the most likely actions; optimal {entry['optimal']:.4f}"
        )


def _filmed(policy: Any, environment: Environment, flags: EvaluateArguments) -> dict[str, Any]:
    """The film of an episode, as plain values, after it was written."""
    assert flags.video is not None
    clip = film_episode(policy, environment, flags.seed, deterministic=not flags.stochastic)
    clip.save(flags.video)
    episode = {"return": clip.episode_return, "length": len(clip.reward), "whole": clip.whole}
    return {"file": str(flags.video), "seconds": clip.seconds, "pictures": len(clip.pictures), **episode}


def film_episode(policy: Any, environment: Environment, seed: int, *, deterministic: bool = True) -> Clip:
    """An episode as a film; a terminal shows how far it is.

    policy, environment, seed, deterministic: as for `klimb.film`.
    """
    with view_of_episodes() as view:

        def count(pictures: int) -> None:
            view.doing(f"filming: {pictures:,} pictures")

        return film(policy, environment, seed=seed, deterministic=deterministic, on_pictures=count)


def video_line(video: dict[str, Any]) -> str:
    """A film for people. video: of `_filmed`."""
    part = "" if video["whole"] else f"; only the first {video['pictures']:,} pictures are in the film"
    return (
        f"video        {video['file']}: an episode with return {video['return']:.2f} in {video['length']:,} steps, "
        f"{video['seconds']:.1f} s{part}"
    )


def print_policy(iteration: int | None, env_steps: int | None, writer: str | None, ending: Ending | None) -> None:
    """Print of which iteration the policy is, and whether the training goes on or was ended early.

    iteration, env_steps: of the policy; None where they are not known. writer: the process that trains it, or None.
    ending: what ended the training, or None.
    """
    parts = []
    if iteration is not None:
        parts.append(of_iteration(iteration, env_steps))
    if writer is not None:
        parts.append(f"the run is still being trained by {writer}")
    elif ending is not None and ending.early:
        parts.append(f"the training ended early: {ending.message}")
    if parts:
        write_line(f"policy       {'; '.join(parts)}")


def of_iteration(iteration: int, env_steps: int | None) -> str:
    """Which policy it is, for people. iteration, env_steps: after which it is; None for steps that are not known."""
    steps = "" if env_steps is None else f", after {env_steps:,} environment steps"
    return f"of iteration {iteration:,}{steps}"


def _exact_returns(policies: list[Any], env: str, config: RunConfig) -> list[dict[str, Any]]:
    """One entry per seed, in double precision, with the run's own discount."""
    options = config.options
    with jax.enable_x64(True):
        mdp = TabularMDP.from_gymnasium(env.partition(":")[2], options.gamma)
        returns = [exact_return(mdp, policy) for policy in policies]
    return [{"seed": options.seed + k, **x._asdict()} for k, x in enumerate(returns)]


def environment_of(run_dir: Path, config: RunConfig, other: str | None, *, trust: bool) -> Environment:
    """The environment of a run, or another one.

    run_dir, config: of the run. other: the name of another environment. trust: whether the configuration may have a
    module imported.
    """
    return make(other) if other else make_named_in(run_dir / "config.toml", config.env, trust=trust)


def require_policy_trust(run_dir: Path, config: RunConfig, *, trust: bool) -> None:
    """UntrustedEnvironment when a function of a module makes the run's policies, and may not be imported.

    run_dir, config: of the run. trust: whether the configuration may have a module imported.
    """
    name = config.options.own_policy
    if name is not None and not trust:
        require_trust(name, run_dir / "config.toml", "policy")


def evaluation_lines(result: dict[str, Any]) -> list[str]:
    """A result of `evaluate_seeds` for people.

    result: one entry per seed, and their mean.
    """
    lines = []
    for entry in result["seeds"]:
        error = "" if entry["standard_error"] is None else f" ± {entry['standard_error']:.2f}"
        lowest, highest = min(entry["returns"]), max(entry["returns"])
        lines.append(
            f"evaluation   seed {entry['seed']}: mean return {entry['mean']:.2f}{error} over {result['episodes']} "
            f"episodes (lowest {lowest:.1f}, highest {highest:.1f})"
        )
    if len(result["seeds"]) > 1:
        lines.append(f"             mean over {len(result['seeds'])} seeds {result['mean']:.2f}")
    return lines


COMMAND = Command("evaluate", EvaluateArguments, evaluate)
