"""`check_env`: whether an environment can be trained, and what about it will be noticed later on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from klimb.environments.base import CompiledEnvironment
from klimb.environments.check_compiled import compiled_findings
from klimb.environments.check_host import host_findings
from klimb.environments.check_reference import NAME, reference_finding
from klimb.environments.findings import EnvironmentCheck, Finding
from klimb.environments.registry import Environment, make
from klimb.errors import ConfigError, EnvironmentFault, UnsupportedSpace, one_line
from klimb.policies.actions import remarks

STEPS = 1000


def check_env(
    env: str | Any, *, reference: str | None = None, steps: int = STEPS, seed: int = 0, in_worker: bool = True
) -> EnvironmentCheck:
    """Check an environment before it is trained in.

    Its spaces, what `reset` and `step` return over some steps with random actions, whether rewards and observations are
    finite and in their space, whether the same seed gives the same episodes, whether episodes end, whether its
    simulator's state can be saved (a resumed run is then exact), whether it runs in worker processes, and what
    Gymnasium's own checker says. Of a compiled environment also how fast it is alone, and what a reset costs; and with
    a reference, whether it does what that one does, step by step.

    env: a name (see `klimb.make`) or an environment object. reference: the id of a Gymnasium environment that a
    compiled one is a port of; it needs a method `write_reference`. steps: how many, at least 1. seed: of the
    environment and of the actions. in_worker: whether a new process is started to try the environment there.

    Returns what was found, which can be printed.
    Raises EnvironmentNotFound and the other errors of `klimb.make` for a name that is none, ConfigError for a reference
    for an environment that is not compiled, and ValueError for fewer than one step; whatever is wrong with an
    environment that exists is a finding.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}; a check needs at least 1")
    try:
        environment = make(env)
    except (UnsupportedSpace, EnvironmentFault) as error:
        name = env if isinstance(env, str) else type(env).__name__
        return EnvironmentCheck(one_line(name), (_not_made(error),))
    kind = "compiled" if isinstance(environment, CompiledEnvironment) else "stepped in Python"
    findings = tuple(_findings(environment, steps, seed, in_worker))
    if reference is not None:
        if not isinstance(environment, CompiledEnvironment):
            raise ConfigError(f"{one_line(environment.id, 60)} is stepped in Python: a reference is for compiled ones")
        if all(finding.status != "fails" for finding in findings):
            findings = (*findings, reference_finding(environment, reference, steps, seed))
        else:
            findings = (*findings, Finding(NAME, "note", "not compared: first fix what fails"))
    return EnvironmentCheck(f"{one_line(environment.id)} ({kind})", findings)


def _findings(environment: Environment, steps: int, seed: int, in_worker: bool) -> Iterator[Finding]:
    spaces = _spaces(environment)
    yield spaces
    for remark in remarks(environment.action_space):
        yield Finding("actions", "note", remark)
    if isinstance(environment, CompiledEnvironment):
        if spaces.status == "ok":
            yield from compiled_findings(environment, steps, seed)
    else:
        yield from host_findings(environment, steps, seed, in_worker=in_worker, can_act=spaces.status == "ok")


def _not_made(error: UnsupportedSpace | EnvironmentFault) -> Finding:
    if isinstance(error, UnsupportedSpace):
        return Finding("spaces", "fails", str(error))
    return Finding("making it", "fails", str(error), traceback=error.environment_traceback)


def _spaces(environment: Environment) -> Finding:
    """Whether klimb has networks and distributions for the spaces."""
    try:
        observations, actions = environment.observations, environment.actions
    except UnsupportedSpace as error:
        return Finding("spaces", "fails", str(error))
    numbers = f"{observations.encoded.size} numbers as observation"
    mask = f", and an action mask of {actions.num_choices} flags" if environment.masked else ""
    return Finding(
        "spaces", "ok", one_line(f"{numbers}{mask}; actions {environment.action_space} ({actions.kind})", 200)
    )
