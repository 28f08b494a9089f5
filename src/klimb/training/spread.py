"""How one seed is spread over devices: the rows of its batches, or its environments alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from klimb.errors import ConfigError
from klimb.mesh import ENVIRONMENTS, ROWS

WORTHWHILE, WORTHWHILE_BETWEEN_PROCESSES = 2**26, 2**29
"""Parameters × rows of a batch from which on it is faster to learn from a share of the rows than from all of them,
although every gradient and Fisher product is exchanged: in one process, and in several. Measured (docs/scaling.md)."""


@dataclass(frozen=True)
class Spread:
    """How one seed lies on several devices.

    devices: how many, at least 2. rows: whether each device also has a share of the rows of a batch; else it has a
    share of the environments, and learns from all rows what the others learn.
    """

    devices: int
    rows: bool

    @property
    def axis(self) -> str:
        """The axis of the mesh (`klimb.mesh`)."""
        return ROWS if self.rows else ENVIRONMENTS


def spread_of(
    learn_on: int | None,
    spread: Literal["auto", "rows", "environments"],
    *,
    devices: int,
    seeds: int,
    processes: int,
    num_envs: int,
    compiled: bool,
    work: int,
) -> Spread | None:
    """What the options `learn_on` and `spread` come to; None where one seed stays on one device.

    devices: of all processes. seeds: that are trained together. processes: of the training. num_envs: environments per
    seed. compiled: whether they are stepped on the devices. work: parameters of policy and critic × rows of a batch.
    Raises ConfigError for more devices than there are, and for environments that can't be shared out equally.
    """
    # The smallest share with which no device is left over.
    whole = next(each for each in range(1, devices + 1) if devices % each == 0 and devices // each <= seeds)
    each = learn_on if learn_on is not None else whole if processes > 1 else 1
    # A process without a device in the program could not take part in it.
    if processes > 1 and (devices % each or devices // each > seeds):
        raise ConfigError(
            f"learn_on = {each} with num_seeds = {seeds} leaves some of the {devices} devices of the {processes} "
            f"processes without work: choose learn_on = {whole}, or leave it out"
        )
    if each == 1:
        return None
    if each > devices:
        raise ConfigError(f"learn_on = {each}, but JAX has {devices} device{'' if devices == 1 else 's'}: choose fewer")
    if compiled and num_envs % each:
        nearest = max(each, num_envs // each * each)
        raise ConfigError(
            f"num_envs = {num_envs} environments can't be shared out equally over learn_on = {each} devices; choose "
            f"num_envs = {nearest}"
        )
    least = WORTHWHILE if processes == 1 else WORTHWHILE_BETWEEN_PROCESSES
    return Spread(each, work >= least if spread == "auto" else spread == "rows")
