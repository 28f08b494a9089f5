"""klimb export RUN -o FILE: a policy as a file for programs without klimb."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from klimb.cli import compilation_cache
from klimb.cli.evaluate import environment_of, require_policy_trust
from klimb.cli.one_policy import chosen_seed, load_chosen, seed_in_files
from klimb.cli.parser import Command, OutputFlag, RunWord, require_unused
from klimb.environments.registry import Environment
from klimb.errors import ConfigError
from klimb.export.write import FORMATS, Exported, export_policy, require_export
from klimb.files import is_file, read_limited
from klimb.improve.rule import rule_title
from klimb.policies.acting import Placed
from klimb.runs.directory import BEST, RunDirectory
from klimb.runs.located import located
from klimb.runs.own_files import CONFIG
from klimb.runs.policy_file import MAX_HEADER, load_policy, policy_iteration, policy_name
from klimb.terminal import write_line


@dataclass(frozen=True)
class ExportArguments:
    """What is typed after `klimb export`."""

    run: RunWord
    """Directory of a run or a policy, or zoo:NAME (`klimb list zoo`) or hf://USER/NAME (Hugging Face Hub)."""
    output: OutputFlag = None
    """File to write: .onnx, .stablehlo, or .py for a file of Python that needs NumPy alone."""
    best: bool = False
    """Export the policy in `best/` instead of the last one."""
    policy_seed: int | None = None
    """Seed whose policy is exported, in a run of several seeds; by default the first."""
    overwrite: bool = False
    """Overwrite an existing file."""
    trust_environment: bool = False
    """Allow the run's config.toml to name an environment or a network to import: this runs its code."""


def export(arguments: ExportArguments) -> None:
    """Write a run's policy as a file of another format, compare both, and print what the file reads and returns.

    arguments: which policy, and the file.
    """
    run_dir, flags = located(arguments.run), arguments
    if flags.output is None:
        raise ConfigError(f"give the file to write with -o FILE; its ending is one of {', '.join(FORMATS)}")
    require_export(flags.output)
    require_unused([flags.output], flags.overwrite)
    compilation_cache.enable()
    if is_file(run_dir / CONFIG):
        policy, spaces, about = _of_run(run_dir, flags)
    else:
        if flags.best:
            raise ConfigError("--best is for a run: give the directory of the policy alone")
        policy, spaces, about = load_policy(run_dir, seed=flags.policy_seed), {}, {}
    for line in lines_of(export_policy(policy, flags.output, about=about, **spaces), about):
        write_line(line)


def _of_run(run_dir: Path, flags: ExportArguments) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """A policy of a run, its spaces if it does not hold them itself, and what its files say of it."""
    config = RunDirectory.open(run_dir).config
    folder = run_dir / BEST if flags.best else run_dir
    require_policy_trust(run_dir, config, trust=flags.trust_environment)
    seed = chosen_seed(config, flags.policy_seed)

    @functools.cache
    def environment() -> Environment:
        return environment_of(run_dir, config, None, trust=flags.trust_environment)

    policy = load_chosen(folder, config, seed, environment)
    spaces = {}
    if not isinstance(policy, Placed):
        spaces = {"observations": environment().observations, "actions": environment().actions}
    name = seed_in_files(config, seed)
    iteration = policy_iteration(folder, seed=name)
    # No larger than what was just loaded, up to names and shapes.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(policy, eqx.is_array)))
    arrays = read_limited(folder / f"{policy_name(name)}.safetensors", size + MAX_HEADER)
    about = {
        "env": config.env,
        "rule": rule_title(config.rule),
        **({} if iteration is None else {"iteration": str(iteration)}),
        "policy.safetensors sha256": hashlib.sha256(arrays).hexdigest(),
    }
    return policy, spaces, about


def lines_of(exported: Exported, about: dict[str, str]) -> list[str]:
    """What was written, for people. exported: the file. about: what it says of the policy."""
    agreement = exported.agreement
    trained = f": {about['rule']} on {about['env']}" if "env" in about else ""
    ties = f"; {agreement.ties} ties between choices" if agreement.ties else ""
    return [
        f"exported     {exported.path} ({_as_bytes(exported.size)}){trained}",
        f"reads        {_arrays(exported.inputs)}",
        f"returns      {_arrays(exported.outputs)}",
        f"compared     {agreement.rows:,} observations: largest difference from the policy {agreement.difference:.1e}, "
        f"from float32 to float64 {agreement.rounding:.1e}{ties}",
    ]


def _arrays(shapes: dict[str, tuple[str | int, ...]]) -> str:
    """Names and shapes."""
    return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())


def _as_bytes(count: int) -> str:
    """A size for people."""
    if count < 1000:
        return f"{count} bytes"
    power = min(int(math.log(count, 1000)), 3)
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"


COMMAND = Command("export", ExportArguments, export)
