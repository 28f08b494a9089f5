"""Processes that klimb starts to step environments: what they can import, and that they end with this process."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

PR_SET_PDEATHSIG = 1
SECONDS_BETWEEN_LOOKS = 1.0
"""How often a process looks whether the one that started it is still there, where the kernel does not tell it."""


def command(module: str, function: str) -> list[str]:
    """The command line of a new process that calls a function of klimb's, and imports what this process can import.

    Its search path is this one's, entry by entry. `python -m` would put the current directory before everything else,
    and PYTHONPATH can't hold names with a colon, and comes before the modules that Python itself starts with.

    module: of klimb. function: in it; it is called with the number of this process.
    """
    path = [entry for entry in sys.path if isinstance(entry, str)]
    # Before any import. In ASCII, because names of files may be bytes that are no text.
    start = f"import sys; sys.path[:] = {path!a}; from {module} import {function}; {function}({os.getpid()})"
    kept = {"-I": sys.flags.isolated, "-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    return [sys.executable, "-P", *(flag for flag, is_set in kept.items() if is_set), "-c", start]


def start(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that lives as long as this one at most, if it calls `end_with`.

    Linux ends it with the thread that has started it. That is therefore a thread of klimb's own, which never ends: the
    calling thread may, while the process is still used.

    arguments: the command line. options: of `subprocess.Popen`. Raises OSError when it can't be started.
    """
    global _starter
    # After a fork the thread of the original process is not there.
    if not _starter.is_alive():
        _starter = _Starter()
        _starter.start()
    return _starter.call(lambda: subprocess.Popen(arguments, **options))


class _Starter(threading.Thread):
    """A thread that starts processes, as long as this one runs."""

    def __init__(self) -> None:
        super().__init__(name="klimb-start", daemon=True)
        self._calls: queue.SimpleQueue[tuple[Future, Callable[[], Any]]] = queue.SimpleQueue()

    def call(self, function: Callable[[], Any]) -> Any:
        """What a function returns or raises on this thread."""
        future: Future = Future()
        self._calls.put((future, function))
        return future.result()

    def run(self) -> None:
        while True:
            future, function = self._calls.get()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)


_starter = _Starter()


def can_serve() -> bool:
    """Whether processes started here can inherit an open file, and be waited for at pipes: not on Windows."""
    return sys.platform != "win32"


def end_with(parent: int) -> None:
    """Have this process end within seconds after the one that has started it, whatever this one is doing then.

    On Linux the kernel ends it, even when native code holds the interpreter. Elsewhere a thread does. On Windows
    nothing does: the parent of a process in a virtual environment is a launcher there, and not who has started it.

    parent: the number of the process that has started this one.
    """
    if sys.platform == "win32":
        return
    if not _kernel_ends_it():
        threading.Thread(target=_watch, args=(parent,), name="klimb-watch", daemon=True).start()
    # It may have ended before the kernel was told.
    if os.getppid() != parent:
        os._exit(1)


def _kernel_ends_it() -> bool:
    """Have the kernel kill this process when its parent ends; False where it can't."""
    if sys.platform != "linux":
        return False
    try:
        return ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    """End this process when its parent is another one."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
