"""MuJoCo's warnings in the log, each once.

By itself MuJoCo prints them for every copy of an environment, and appends them to a file MUJOCO_LOG.TXT in the current
directory.
"""

from __future__ import annotations

import logging
import re
import sys

logger = logging.getLogger("klimb")

_SAID: set[str] = set()


def log_warnings(entry_point: object = None) -> None:
    """From now on MuJoCo's warnings go to the logger `klimb`, unless the user has made another function for them.

    entry_point: of an environment that is about to be made. For one of Gymnasium's with MuJoCo the package is imported;
    for others something is done only where it has been imported.
    """
    of_gymnasium = isinstance(entry_point, str) and entry_point.startswith("gymnasium.envs.mujoco")
    if not of_gymnasium and "mujoco" not in sys.modules:
        return
    try:
        import mujoco
    except ImportError:  # Gymnasium says so in its own words
        return
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log)


def _log(message: str) -> None:
    # The same warning at another time, or of another joint, is the same warning.
    kind = re.sub(r"[0-9.]+", "0", message)
    if kind not in _SAID:
        _SAID.add(kind)
        logger.warning("MuJoCo: %s", message.strip())
