"""klimb record RUN: episodes of a policy, kept as demonstrations."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from klimb.cli import compilation_cache
from klimb.cli.evaluate import environment_of, require_policy_trust
from klimb.cli.one_policy import chosen_seed, load_chosen
from klimb.cli.parser import Command, OutputFlag, RunWord, require_unused
from klimb.collect.demonstrations import Demonstrations
from klimb.collect.recording import record as record_episodes
from klimb.environments.registry import Environment
from klimb.errors import ConfigError
from klimb.files import is_directory
from klimb.rules import rule_name
from klimb.runs.demonstration_file import FILE_NAME, save_demonstrations
from klimb.runs.directory import RunDirectory
from klimb.runs.located import is_elsewhere, located
from klimb.runs.minari_file import PREFIX
from klimb.runs.minari_writing import require_new_dataset, write_dataset
from klimb.terminal import write_line
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
    to: str | None = None
    """minari:NAME-v0 to write a local Minari dataset instead of a file."""
    overwrite: bool = False
    """Overwrite an existing file, or replace an existing dataset."""
    trust_environment: bool = False
    """Allow the run's config.toml to name an environment or a network to import: this runs its code."""


def record(arguments: RecordArguments) -> None:
    """Record episodes of a run's policy, and print where they are and how to clone them.

    arguments: which run, which episodes, and where to.
    """
    run_dir, flags = located(arguments.run), arguments
    config = RunDirectory.open(run_dir).config
    if flags.episodes < 1:
        raise ConfigError(f"episodes = {flags.episodes}; demonstrations need at least 1")
    destination = _destination(run_dir, flags)
    compilation_cache.enable()
    environment = environment_of(run_dir, config, flags.env, trust=flags.trust_environment)
    require_policy_trust(run_dir, config, trust=flags.trust_environment)
    seed = chosen_seed(config, flags.policy_seed)
    with view_of_episodes() as view:
        demonstrations = record_episodes(
            load_chosen(run_dir, config, seed, lambda: environment),
            environment,
            episodes=flags.episodes,
            seed=flags.seed,
            deterministic=flags.deterministic,
            on_episodes=view.episodes,
        )
    place = destination.write(demonstrations, environment, rule_name(config.rule))
    rows, returns = len(demonstrations.reward), demonstrations.returns
    kind = "modes, without log-probs" if flags.deterministic else "samples, with their log-probs"
    write_line(f"recorded     {demonstrations.num_episodes} episodes, {rows} steps ({kind})")
    write_line(f"return       mean {returns.mean():.2f} (lowest {returns.min():.1f}, highest {returns.max():.1f})")
    write_line(f"{destination.what:<12} {place}")
    words = ["klimb", "train", "behaviour-cloning", flags.env or config.env, "--demonstrations", destination.source]
    write_line(f"clone        {shlex.join(words)}")


@dataclass(frozen=True)
class _Destination:
    """Where the episodes are written to.

    source: what --demonstrations of another command is given to read them. file: the file; None for a Minari dataset.
    overwrite: whether what is there may be replaced.
    """

    source: str
    file: Path | None
    overwrite: bool

    @property
    def what(self) -> str:
        return "dataset" if self.file is None else "file"

    def write(self, demonstrations: Demonstrations, environment: Environment, rule: str) -> Path:
        """Write the episodes, and return where they are. rule: that trained the policy."""
        if self.file is not None:
            return save_demonstrations(demonstrations, self.file)
        name = self.source.removeprefix(PREFIX)
        return write_dataset(demonstrations, name, environment, algorithm=rule, overwrite=self.overwrite)


def _destination(run_dir: Path, flags: RecordArguments) -> _Destination:
    """Where the episodes will be written to, after it was found out that they may be."""
    if flags.to is not None:
        if flags.output is not None:
            raise ConfigError("-o writes a file and --to a Minari dataset: give one of them")
        require_new_dataset(flags.to, overwrite=flags.overwrite)
        return _Destination(flags.to, None, flags.overwrite)
    if is_elsewhere(flags.run) and flags.output is None:
        raise ConfigError(
            "episodes of a policy of the zoo or the Hub need a file to be written to: give one with -o FILE"
        )
    output = flags.output or run_dir
    path = output / FILE_NAME if is_directory(output) else output
    require_unused([path], flags.overwrite)
    return _Destination(str(output), path, flags.overwrite)


COMMAND = Command("record", RecordArguments, record)
