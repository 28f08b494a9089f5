"""Compiled programs kept between processes, so that the second start of a run is quick."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jaxlib

SWITCH = "KLIMB_COMPILATION_CACHE"


def enable() -> None:
    """Keep XLA's compiled programs under the user's cache directory, a folder for each version of jaxlib.

    KLIMB_COMPILATION_CACHE=off switches it off; another value is the directory to use.
    """
    where = os.environ.get(SWITCH, "")
    if where.lower() in ("off", "0", "none"):
        return
    base = Path(where or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(base / "klimb" / f"jaxlib-{jaxlib.__version__}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
