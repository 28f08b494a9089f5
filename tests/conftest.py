"""Shared fixtures. Shapes are checked everywhere: the fast tests run with jaxtyping's hook and beartype on `klimb`."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path

# Most of what the tests cost is compilation, of programs that then run for milliseconds. LLVM does not optimise them;
# fusions are emitted without MLIR, in half of the time; and a program is one module instead of 32 for 32 threads.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    + os.environ.get("XLA_FLAGS", "")
)

import jax
import pytest

import klimb
import klimb.training.devices

# Before JAX starts; `one_device` leaves the second one to the tests that ask for it.
jax.config.update("jax_num_cpu_devices", 2)

# Compiled programs are kept for other test processes and later runs: also the thousands of single operations.
CACHE = Path(os.environ.get("KLIMB_TEST_CACHE", Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Every compiled program has some tens of memory maps of its own, of which Linux allows a process 65530; and memory: a
# process that keeps the programs of all tests has 4 gigabytes.
MAX_MAPS = 4_000


def pytest_configure(config: pytest.Config) -> None:
    """Import everything: jaxtyping rewrites syntax trees, which CPython 3.11 can fail to do deep inside a call stack.

    Not in the process that only hands the tests out to others.
    """
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        for module in pkgutil.walk_packages(klimb.__path__, "klimb."):
            importlib.import_module(module.name)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Compiled programs are kept for the next modules, until a process has too many of them."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_text().splitlines()) > MAX_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def one_device() -> Iterator[None]:
    """Trainings are laid over one device, as on a machine with one core; before every fixture of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("klimb.training.program.available", lambda: klimb.training.devices.available()[:1])
        yield


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings are laid over both devices, unless they are told `cores=1`."""
    monkeypatch.setattr("klimb.training.program.available", klimb.training.devices.available)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision, for tests whose oracle is exact."""
    with jax.enable_x64(True):
        yield
