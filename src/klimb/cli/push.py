"""klimb push RUN NAME: a policy on the Hugging Face Hub, with its evaluation, a film and a page about it."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from klimb.cli import compilation_cache
from klimb.cli.evaluate import environment_of, require_policy_trust
from klimb.cli.one_policy import chosen_seed, load_chosen, seed_in_files
from klimb.cli.parser import Command, RunWord
from klimb.environments.rendering import offscreen
from klimb.errors import RunError, one_line
from klimb.files import exists, make_directory
from klimb.improve.rule import rule_title
from klimb.runs.directory import BEST, RunDirectory
from klimb.runs.hub import HubName, hub_package
from klimb.runs.located import located
from klimb.runs.policy_file import policy_iteration
from klimb.sharing.folder import MIN_EPISODES, Progress, Shared, alone, require_episodes, write_folder
from klimb.sharing.push import push_folder
from klimb.terminal import write_line
from klimb.training.progress.choice import view_of_episodes


@dataclass(frozen=True)
class PushArguments:
    """What is typed after `klimb push`."""

    run: RunWord
    """Run directory, or zoo:NAME for a policy that comes with klimb (`klimb list zoo`)."""
    name: Annotated[str, Positional, arg(metavar="USER/NAME")]
    """Repository on the Hub: USER/NAME."""
    dry_run: Path | None = None
    """Write the folder to this new directory, and send nothing."""
    public: bool = False
    """Let everybody see the repository, if it is made; by default only you can."""
    episodes: int = MIN_EPISODES
    """Episodes of the evaluation, at least 100."""
    seed: int = 0
    """Seed of its first episode."""
    best: bool = False
    """Push the policy in `best/` instead of the last one."""
    policy_seed: int | None = None
    """Seed whose policy is pushed, in a run of several seeds; by default the first."""
    video: bool = True
    """Film an episode; an environment that can't be drawn is left without a film."""
    trust_environment: bool = False
    """Allow the run's config.toml to name an environment or a network to import: this runs its code."""


def push(arguments: PushArguments) -> None:
    """Evaluate a policy, write its folder, and upload it; print where it is.

    arguments: which policy, and where to.
    """
    name, flags = HubName.read(arguments.name), arguments
    require_episodes(flags.episodes)
    if flags.dry_run is None:
        hub_package()
    elif exists(flags.dry_run):
        raise RunError(f"{one_line(flags.dry_run)} exists already: give --dry-run a new directory")
    if flags.video:
        # Before anything imports MuJoCo, which chooses then how to draw.
        offscreen.prepare()
    shared = _shared(located(flags.run), flags)
    if flags.dry_run is not None:
        make_directory(flags.dry_run)
        try:
            _write(shared, flags.dry_run, name, flags)
        except BaseException:
            shutil.rmtree(flags.dry_run, ignore_errors=True)
            raise
        write_line(f"folder       {flags.dry_run}: nothing was sent")
        return
    with tempfile.TemporaryDirectory(prefix="klimb-push-") as folder:
        result = _write(shared, Path(folder), name, flags)
        title = f"{rule_title(shared.config.rule)} on {shared.config.env}: mean return {result['mean']:.6g}"
        pushed = push_folder(Path(folder), name, public=flags.public, message=title)
    write_line(f"pushed       {pushed.address}")
    write_line(f"evaluate     klimb evaluate hf://{pushed.name}@{pushed.commit}")


def _shared(run_dir: Path, flags: PushArguments) -> Shared:
    """The policy of a run, with its environment."""
    config = RunDirectory.open(run_dir).config
    compilation_cache.enable()
    environment = environment_of(run_dir, config, None, trust=flags.trust_environment)
    require_policy_trust(run_dir, config, trust=flags.trust_environment)
    seed = chosen_seed(config, flags.policy_seed)
    folder = run_dir / BEST if flags.best else run_dir
    policy = load_chosen(folder, config, seed, lambda: environment)
    iteration = policy_iteration(folder, seed=seed_in_files(config, seed))
    return Shared(policy, alone(config, seed), environment, iteration)


def _write(shared: Shared, folder: Path, name: HubName, flags: PushArguments) -> dict[str, Any]:
    """Write the folder, and print what is in it. Returns the evaluation."""
    with view_of_episodes() as view:

        def filming(pictures: int) -> None:
            view.doing(f"filming: {pictures:,} pictures")

        progress = Progress(view.episodes, filming, lambda line: write_line(f"left out     {line}"))
        result = write_folder(
            shared, folder, name.name, episodes=flags.episodes, seed=flags.seed, video=flags.video, progress=progress
        )
    low, high = result["interval"]
    write_line(
        f"evaluation   mean return {result['mean']:.2f} over {result['episodes']} episodes, "
        f"{result['confidence']:.0%} interval {low:.2f} to {high:.2f}"
    )
    write_line(f"files        {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return result


COMMAND = Command("push", PushArguments, push)
