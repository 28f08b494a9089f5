"""The connection to a Ray cluster: which one, whether it may be trusted, and how many workers it has room for."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from klimb.errors import ConfigError, MissingExtra, one_line

AUTO, LOCAL = "auto", "local"
"""`auto`: the cluster that Ray knows of here (`ray start`, RAY_ADDRESS), or else a new one on this machine; `local`:
a new one on this machine. Anything else is an address, HOST:PORT."""
OWN: dict[str, Any] = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
"""Of a new cluster. Ray gives way to all other programs of the machine (nice 15); processes here do not."""
MODE, TOKEN = "RAY_AUTH_MODE", "token"
ADDRESS = "RAY_ADDRESS"
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")

logger = logging.getLogger("klimb")


def load_ray() -> Any:
    """The package `ray`. MissingExtra when it is not installed."""
    try:
        import ray
    except ImportError:
        raise MissingExtra("--ray needs Ray: pip install 'klimb[ray]'") from None
    return ray


class RayCluster:
    """A connection to a cluster, which is ended with `close` unless it was there before.

    address: `auto`, `local` or HOST:PORT. Raises ConfigError when nothing answers there, or when the cluster is not on
    this machine alone and has no token authentication; MissingExtra without Ray.
    """

    def __init__(self, address: str) -> None:
        self.ray = load_ray()
        self._owned = not self.ray.is_initialized()
        if self._owned:
            given = os.environ.get(ADDRESS, "") if address == AUTO else address
            if given and given != LOCAL:
                require_token([given])
            self._connect(address)
        try:
            require_token([node["NodeManagerAddress"] for node in self._nodes()])
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        """End the connection; a cluster that was started for it ends too."""
        if self._owned and self.ray.is_initialized():
            self.ray.shutdown()

    @property
    def cpus(self) -> int:
        """Number of CPUs of all nodes."""
        return int(sum(node["Resources"].get("CPU", 0) for node in self._nodes()))

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _connect(self, address: str) -> None:
        # Processes of the cluster on this machine import what this one can. On others it has to be installed.
        search = {"env_vars": {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}}
        # Ray would have them import from the current directory before everything else, which may be a stranger's. It
        # does not for the jobs of its own client.
        job = self.ray.job_config.JobConfig(_client_job=True)
        options = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": False,
            "job_config": job,
        }
        with quiet():
            try:
                if address == AUTO:
                    try:
                        self.ray.init(address=AUTO, **options)
                    except ConnectionError:  # there is none
                        self.ray.init(address=LOCAL, runtime_env=search, **OWN, **options)
                elif address == LOCAL:
                    self.ray.init(address=LOCAL, runtime_env=search, **OWN, **options)
                else:
                    self.ray.init(address=address, **options)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise ConfigError(f"no Ray cluster can be used at {address!r}: {one_line(error)}") from None


def require_token(addresses: list[str]) -> None:
    """ConfigError when one of some machines is not this one, and Ray's token authentication is off.

    addresses: HOST or HOST:PORT each.
    """
    others = [address for address in addresses if not is_here(address)]
    if others and os.environ.get(MODE) != TOKEN:
        raise ConfigError(
            f"the Ray cluster has another machine ({one_line(others[0])}), and without token authentication whoever "
            f"reaches it can run code here: start it and klimb with {MODE}={TOKEN} and the same ~/.ray/auth_token "
            "(docs/scaling.md)"
        )


def is_here(address: str) -> bool:
    """Whether an address is one of this machine. address: HOST or HOST:PORT."""
    host = address.rpartition("://")[2]
    host = host.rpartition(":")[0] if host.count(":") == 1 or host.startswith("[") else host
    return host in LOOPBACK or host in _own_addresses()


def _own_addresses() -> set[str]:
    """The addresses of this machine, as far as they are known."""
    found = {socket.gethostname()}
    with contextlib.suppress(OSError):
        found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Of the network that leads out: nothing is sent. The address is one of those kept for documentation.
        probe.connect(("192.0.2.1", 9))
        found.add(probe.getsockname()[0])
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warning about forking while JAX runs threads: what is forked starts another program at once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        yield
