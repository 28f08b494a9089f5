"""klimb record RUN: episodes of a policy, kept as demonstrations."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from klimb.cli import compilation_cache
from klimb.cli.evaluate import environment_of, require_policy_trust
from klimb.cli.parser import Command, OutputFlag, RunWord, require_unused
from klimb.collect.recording import record as record_episodes
from klimb.errors import ConfigError
from klimb.files import is_directory
from klimb.runs.demonstration_file import FILE_NAME, save_demonstrations
from klimb.runs.directory import RunDirectory
from klimb.runs.located import is_elsewhere, located
from klimb.runs.policy_file import load_policy
from klimb.terminal import write_line
from klimb.training.networks import Networks
from klimb.training.progress.choice import view_of_episodes


@dataclass(frozen=True)
class RecordArguments:
    """What is typed after `klimb record`."""

    run: RunWord
    """Run directory, or zoo:NAME (`klimb list zoo`) or hf://USER/NAME (Hugging Face Hub) for a policy from there."""
    episodes: int = 20
    """Number of episodes."""
    seed: int = 0
    """Seed of the episodes."""
    deterministic: bool = False
    """Take the mode of the policy instead of sampling; such episodes have no log-probs, and can only be cloned."""
    policy_seed: int | None = None
    """Seed whose policy is used, in a run of several seeds; by default the first."""
    env: str | None = None
    """Record in this environment instead of the run's own."""
    output: OutputFlag = None
    """File or directory to write to; by default demonstrations.safetensors in the run."""
    overwrite: bool = False
    """Overwrite an existing file."""
    trust_environment: bool = False
    """Allow the run's config.toml to name an environment or a network to import: this runs its code."""


def record(arguments: RecordArguments) -> None:
    """Record episodes of a run's policy, and print where they are and how to clone them.

    arguments: which run, which episodes, and where to.
    """
    run_dir, flags = located(arguments.run), arguments
    if is_elsewhere(arguments.run) and flags.output is None:
        raise ConfigError(
            "episodes of a policy of the zoo or the Hub need a file to be written to: give one with -o FILE"
        )
    config = RunDirectory.open(run_dir).config
    output = flags.output or run_dir
    path = output / FILE_NAME if is_directory(output) else output
    if flags.episodes < 1:
        raise ConfigError(f"episodes = {flags.episodes}; demonstrations need at least 1")
    require_unused([path], flags.overwrite)
    compilation_cache.enable()
    environment = environment_of(run_dir, config, flags.env, trust=flags.trust_environment)
    require_policy_trust(run_dir, config, trust=flags.trust_environment)
    like = None if config.options.own_policy is None else Networks(environment, config.options).template
    several = config.options.num_seeds > 1
    seed = flags.policy_seed if flags.policy_seed is not None else config.options.seed if several else None
    with view_of_episodes() as view:
        demonstrations = record_episodes(
            load_policy(run_dir, seed=seed, like=like),
            environment,
            episodes=flags.episodes,
            seed=flags.seed,
            deterministic=flags.deterministic,
            on_episodes=view.episodes,
        )
    save_demonstrations(demonstrations, path)
    rows, returns = len(demonstrations.reward), demonstrations.returns
    kind = "modes, without log-probs" if flags.deterministic else "samples, with their log-probs"
    write_line(f"recorded     {demonstrations.num_episodes} episodes, {rows} steps ({kind})")
    write_line(f"return       mean {returns.mean():.2f} (lowest {returns.min():.1f}, highest {returns.max():.1f})")
    write_line(f"file         {path}")
    words = ["klimb", "train", "behaviour-cloning", flags.env or config.env, "--demonstrations", str(output)]
    write_line(f"clone        {shlex.join(words)}")


COMMAND = Command("record", RecordArguments, record)
