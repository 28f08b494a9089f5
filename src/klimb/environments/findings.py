"""What a check of an environment found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    name: of what was checked. status: `ok`: it holds; `note`: it does not, and the environment can be trained all the
    same; `fails`: the environment can't be trained. text: what was seen, in one line. remedy: what to do about it;
    empty where nothing has to be done. traceback: of the environment's own code, where it raised.
    """

    name: str
    status: Literal["ok", "note", "fails"]
    text: str
    remedy: str = ""
    traceback: str | None = None


@dataclass(frozen=True)
class EnvironmentCheck:
    """The result of `klimb.check_env`; printed, it is a table.

    environment: its name. findings: in the order in which they were checked.
    """

    environment: str
    findings: tuple[Finding, ...]

    @property
    def trainable(self) -> bool:
        """Whether klimb can train a policy in it."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """Those that have to be fixed first."""
        return tuple(finding for finding in self.findings if finding.status == "fails")

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"environment  {self.environment}"]
        for finding in self.findings:
            lines.append(f"{finding.status:<5}  {finding.name:<{width}}  {finding.text}")
            if finding.remedy:
                lines.append(f"{'':<5}  {'':<{width}}  → {finding.remedy}")
        return "\n".join(lines)
