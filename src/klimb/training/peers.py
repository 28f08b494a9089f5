"""Several processes that train one policy together (`jax.distributed`): who writes, and what all have to agree on.

Every process runs the same training: each steps its share of the environments, and the devices of all of them are those
of one program. What a process decides by its clock, its disk or a signal is decided for all of them here, since a
program that one process does not run has the others wait. The first process writes the run and prints.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from klimb.errors import ConfigError, one_line

INITIALIZATION_TIMEOUT = 300
HEARTBEAT_TIMEOUT = 30
"""Seconds until the other processes have to be there, and without a sign of life of one of them."""

LEAD = 1.0
"""Seconds by which the other processes leave before the first one."""

SETTINGS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Environment variables with which processes find each other where no batch system says it."""


def use_all_processes() -> None:
    """Join the processes that train together. Call it before JAX starts, in each of them.

    JAX knows by itself of those that SLURM, Open MPI or Kubernetes has started. Elsewhere the environment variables
    `JAX_COORDINATOR_ADDRESS` (HOST:PORT of the first process), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (from 0) say
    it. On CPUs each process has one device.

    Raises ConfigError when nothing says how many processes there are, or when they don't find each other.
    """
    address, *numbers = (os.environ.get(name) for name in SETTINGS)
    # Signals are klimb's own; and a process that is lost is an error of this one, not its end.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_enable_recoverability", True)
    if jax.config.jax_num_cpu_devices < 1:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", 1)
    try:
        processes, own = (None if text is None else int(text) for text in numbers)
        jax.distributed.initialize(
            address,
            processes,
            own,
            initialization_timeout=INITIALIZATION_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            # Where the first process is on this machine, nobody else can join.
            coordinator_bind_address=address if address is not None and _is_loopback(address) else None,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"the processes of the training can't be joined ({one_line(error)}): start them with SLURM's srun, "
            f"mpirun or Kubernetes, or set {', '.join(SETTINGS[:-1])} and {SETTINGS[-1]} in each of them"
        ) from None
    leave_at_exit(leaves=True)


def leave_at_exit(*, leaves: bool) -> None:
    """Whether this process leaves the others when it ends, which it can't do when one of them is lost."""
    atexit.unregister(_leave)
    if leaves:
        atexit.register(_leave)


def _leave() -> None:
    """Leave the other processes, the first one last: without it, JAX would abort them."""
    if is_first():
        time.sleep(LEAD)
    jax.distributed.shutdown()


def count() -> int:
    """Processes that train together; 1 for one alone."""
    # Asked like this, JAX does not start.
    return jax.process_count() if jax.distributed.is_initialized() else 1


def number() -> int:
    """Of this process, from 0."""
    return 0 if count() == 1 else jax.process_index()


def is_first() -> bool:
    """Whether this process writes and prints."""
    return number() == 0


def require_alone(what: str, *, distributed: bool = False) -> None:
    """ConfigError in one of several processes. what: that trains in one. distributed: whether there will be others."""
    if distributed or count() > 1:
        raise ConfigError(f"{what} trains in one process, or on a cluster with --ray: leave --distributed off")


def share(num_envs: int) -> slice:
    """The environments of each seed that this process steps.

    num_envs: of a seed, in all processes. Raises ConfigError unless they can be shared out equally.
    """
    if num_envs % count():
        raise ConfigError(
            f"num_envs = {num_envs} environments can't be shared out equally over {count()} processes; choose "
            f"num_envs = {max(1, num_envs // count()) * count()}"
        )
    each = num_envs // count()
    return slice(number() * each, (number() + 1) * each)


def exchange(message: Any) -> list[Any]:
    """What every process has said, in their order.

    message: plain data.
    """
    if count() == 1:
        return [message]
    words = np.frombuffer(json.dumps(message).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([words.size], np.int32))).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: words.size] = words
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(count(), -1)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def from_first(message: Any) -> Any:
    """What the first process has said. message: plain data."""
    return exchange(message)[0]


def gather(tree: PyTree, axis: int) -> PyTree:
    """The arrays of all processes, one after the other along an axis, in NumPy.

    tree: of arrays, of the same shapes in each process. axis: along which they are joined.
    """
    if count() == 1:
        return tree

    def joined(rows: np.ndarray) -> np.ndarray:
        return np.concatenate(list(np.asarray(rows)), axis=axis)

    return jax.tree.map(joined, multihost_utils.process_allgather(tree))


def _is_loopback(address: str) -> bool:
    return address.rsplit(":", 1)[0] in ("127.0.0.1", "localhost", "[::1]")
