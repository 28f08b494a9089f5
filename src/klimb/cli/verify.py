"""klimb verify: every statement of the theory, computed on both sides."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from klimb.cli import compilation_cache
from klimb.cli.parser import Command
from klimb.errors import CheckFailed, ConfigError
from klimb.tabular.mdp import TabularMDP
from klimb.terminal import write_line
from klimb.theory.checks import Check, check_gaussians
from klimb.theory.checks import verify as verify_on


@dataclass(frozen=True)
class VerifyArguments:
    """What is typed after `klimb verify`."""

    mdp: str | None = None
    """One of Gymnasium's toy-text environments, e.g. FrozenLake-v1; by default three built-in problems."""
    gamma: float = 0.99
    """Discount factor; 1 only for problems in which every episode ends."""
    seed: int = 0
    """Seed of the two policies that are compared."""
    step: float = 0.5
    """How far apart the two policies are: standard deviation of the difference between their logits."""
    json: bool = False
    """Print one JSON object instead of text."""


def verify(arguments: VerifyArguments) -> None:
    """Compute every statement of the theory on both sides, and print which hold. CheckFailed when one does not.

    arguments: on which problems.
    """
    flags = arguments
    compilation_cache.enable()
    results = {name: verify_on(mdp, flags.seed, step=flags.step) for name, mdp in _problems(flags).items()}
    results["Gaussians"] = check_gaussians()
    everything = [check for checks in results.values() for check in checks]
    failed = [check for check in everything if not check.holds]
    if flags.json:
        write_line(json.dumps({"holds": not failed, "problems": {k: [*map(_plain, v)] for k, v in results.items()}}))
    else:
        for name, checks in results.items():
            write_line(f"{name}\n" + "\n".join(map(_line, checks)) + "\n")
        write_line(f"{len(everything) - len(failed)} of {len(everything)} statements hold")
    if failed:
        raise CheckFailed(f"{len(failed)} statements do not hold: {', '.join(check.name for check in failed)}")


def _problems(flags: VerifyArguments) -> dict[str, TabularMDP]:
    if flags.step < 0 or not math.isfinite(flags.step):
        raise ConfigError(f"step = {flags.step}; it has to be a finite number ≥ 0")
    made = _made(flags)
    return {f"{name}: {m.num_states} states, {m.num_actions} actions, γ = {m.gamma:g}": m for name, m in made.items()}


def _made(flags: VerifyArguments) -> dict[str, TabularMDP]:
    try:
        if flags.mdp is not None:
            return {flags.mdp: TabularMDP.from_gymnasium(flags.mdp, flags.gamma)}
        return {
            "a random problem": TabularMDP.random(flags.seed, 5, 3, flags.gamma),
            "a chain": TabularMDP.chain(5, flags.gamma),
            "FrozenLake-v1": TabularMDP.from_gymnasium("FrozenLake-v1", flags.gamma),
        }
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _line(check: Check) -> str:
    tight = "" if check.tightness is None else f"{min(check.tightness, 1):.1%} of the bound"
    numbers = f"{check.left:>12.6g} {check.relation} {check.right:<12.6g}"
    verdict = "holds" if check.holds else "FAILS"
    return (
        f"  {verdict}  §{check.section}  {check.name:<30} {numbers} margin {check.margin + 0.0:>8.1e}  {tight:<20} "
        f"{check.statement}"
    )


def _plain(check: Check) -> dict[str, Any]:
    """For JSON, which has no infinities and no NaN."""
    tree = dataclasses.asdict(check)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in tree.items()}


COMMAND = Command("verify", VerifyArguments, verify)
