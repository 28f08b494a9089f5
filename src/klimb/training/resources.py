"""How much memory a training has taken: of this process, and of accelerators."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import jax

from klimb.files import read_limited


def peak_memory() -> dict[str, int]:
    """The most bytes that have been in use so far: of this process, and of each of its devices that tells.

    The process is left out where the system does not say (Windows), and so are CPUs, whose memory is the process's.
    """
    peaks = {}
    process = _of_process()
    if process is not None:
        peaks["this process"] = process
    for device in jax.local_devices():
        statistics = device.memory_stats() or {}
        if device.platform != "cpu" and "peak_bytes_in_use" in statistics:
            peaks[f"{device.device_kind} {device.id}"] = int(statistics["peak_bytes_in_use"])
    return peaks


def memory_line(peaks: dict[str, int]) -> str:
    """What `peak_memory` says, for people."""
    return ", ".join(f"{_size(count)} of {name}" for name, count in peaks.items())


def _of_process() -> int | None:
    if sys.platform == "linux":
        # `getrusage` also counts the process that has started this one.
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = read_limited(Path("/proc/self/status"), 2**16).decode().splitlines()
            return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
