"""Drawing without a screen: which library MuJoCo draws with, and that pygame opens no window."""

from __future__ import annotations

import ctypes.util
import importlib
import os
import sys

LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
"""MuJoCo's names of what it can draw with where there is no screen, and the names of their libraries."""
READERS = ("mujoco.rendering.classic.gl_context", "mujoco.gl_context")
"""MuJoCo's modules that read MUJOCO_GL, once, when they are imported."""
NEEDS_A_LIBRARY = (
    "MuJoCo draws with EGL or OSMesa where there is no screen, and found neither: install one of them (on Debian and "
    "Ubuntu: apt install libegl1 libgl1-mesa-dri, or libosmesa6)"
)


def prepare() -> None:
    """Choose how to draw, in the environment variables of this process; those that are set stay as they are.

    `MUJOCO_GL`: EGL or else OSMesa, on Linux without a screen. pygame opens neither a window nor a sound device, and
    prints no greeting.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if has_screen():
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    found = installed()
    if found is not None and "MUJOCO_GL" not in os.environ:
        os.environ["MUJOCO_GL"] = found
        for name in READERS:
            if name in sys.modules:
                importlib.reload(sys.modules[name])


def has_screen() -> bool:
    """Whether there is a screen to draw on, or a system whose graphics need none."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def installed() -> str | None:
    """MuJoCo's name of a library that draws without a screen; None where there is none."""
    return next((name for name, library in LIBRARIES.items() if ctypes.util.find_library(library)), None)
