"""Settings of JAX with which no training is possible, in one line instead of a traceback."""

from __future__ import annotations

import jax

from klimb.errors import ConfigError, one_line

REFUSED = {
    ("jax_debug_nans", True): "it ends the program at the first NaN, and a training rejects steps that have one and "
    "goes on: switch it off, and use check_finite (--check-finite) to find the operation",
    ("jax_debug_infs", True): "it ends the program at the first infinity, and a training rejects steps that have one "
    "and goes on: switch it off, and use check_finite (--check-finite) to find the operation",
    ("jax_numpy_dtype_promotion", "strict"): "klimb mixes Python's numbers with arrays: set it to standard",
    ("jax_numpy_rank_promotion", "raise"): "klimb broadcasts arrays of different rank: set it to allow",
}
"""Settings by name and value, and why they are refused."""


def require_trainable() -> None:
    """ConfigError when JAX can't start, or has been set so that no training is possible."""
    for (name, value), reason in REFUSED.items():
        if getattr(jax.config, name) == value:
            raise ConfigError(f"JAX's setting {name} is {value}: {reason}")
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError for a platform that is known, but not installed
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = one_line(error) or "it is not installed"
        raise ConfigError(
            f"JAX can't use the platform {platforms!r} (JAX_PLATFORMS): {reason}; unset it, or install JAX for it"
        ) from None
