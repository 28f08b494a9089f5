"""klimb watch RUN: a policy in the browser, one episode after the other, also while it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klimb.cli import compilation_cache
from klimb.cli.evaluate import environment_of, of_iteration, require_policy_trust
from klimb.cli.one_policy import chosen_seed
from klimb.cli.parser import Command, RunWord
from klimb.collect.whole_episodes import require_fit
from klimb.environments.registry import Environment
from klimb.environments.rendering import offscreen
from klimb.errors import ConfigError
from klimb.filming.live import Watched
from klimb.filming.live import watch as serve
from klimb.filming.scenes import scene_of
from klimb.runs.directory import BEST, RunDirectory
from klimb.runs.located import located
from klimb.terminal import flush, write_line
from klimb.training.networks import load_policies_of_one_iteration


@dataclass(frozen=True)
class WatchArguments:
    """What is typed after `klimb watch`."""

    run: RunWord
    """Run directory, also of a training that goes on, or zoo:NAME or hf://USER/NAME for a policy from there."""
    episodes: int | None = None
    """End after so many episodes; by default with Ctrl-C."""
    seed: int = 0
    """Seed of the first episode; each has the next one."""
    speed: float = 1.0
    """How much faster than in the environment's own time."""
    port: int = 0
    """Port of the page on this machine; 0 for a free one."""
    stochastic: bool = False
    """Sample actions instead of taking the mode of the policy."""
    policy_seed: int | None = None
    """Seed whose policy is watched, in a run of several seeds; by default the first."""
    env: str | None = None
    """Watch in this environment instead of the run's own."""
    best: bool = False
    """Watch the policy in `best/` instead of the last one."""
    trust_environment: bool = False
    """Allow the run's config.toml to name an environment or a network to import: this runs its code."""


def watch(arguments: WatchArguments) -> None:
    """Serve a page with one episode after the other, each with the newest policy of the run.

    arguments: which run, and how.
    """
    run_dir, flags = located(arguments.run), arguments
    if flags.speed <= 0 or (flags.episodes is not None and flags.episodes < 1) or not 0 <= flags.port < 65536:
        raise ConfigError("speed has to be above 0, episodes at least 1, and port from 0 to 65535")
    offscreen.prepare()
    config = RunDirectory.open(run_dir).config
    compilation_cache.enable()
    environment = environment_of(run_dir, config, flags.env, trust=flags.trust_environment)
    require_policy_trust(run_dir, config, trust=flags.trust_environment)
    index = chosen_seed(config, flags.policy_seed) - config.options.seed

    def newest() -> Watched:
        return _newest(run_dir, environment, index, best=flags.best)

    require_fit(newest().policy, environment)  # what is wrong is said before there is a page
    with scene_of(environment, deterministic=not flags.stochastic) as scene:
        try:
            serve(
                scene,
                newest,
                seed=flags.seed,
                episodes=flags.episodes,
                speed=flags.speed,
                port=flags.port,
                on_ready=_tell,
            )
        except KeyboardInterrupt:
            return  # the way to end it


def _newest(run_dir: Path, environment: Environment, index: int, *, best: bool) -> Watched:
    """A policy of the run as it is now. index: of its seed."""
    directory = RunDirectory.open(run_dir)
    folder = run_dir / BEST if best else run_dir
    policies, iteration = load_policies_of_one_iteration(folder, directory.config, environment)
    if iteration is None:
        return Watched(policies[index], "the run's policy")
    return Watched(policies[index], f"policy {of_iteration(iteration, directory.env_steps_at(iteration))}")


def _tell(address: str) -> None:
    write_line(f"watch        {address}  (Ctrl-C ends)")
    flush()


COMMAND = Command("watch", WatchArguments, watch)
