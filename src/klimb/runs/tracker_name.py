"""Names of experiment trackers, as `--log` and config.toml have them: wandb, mlflow, mlflow:URI, module:Class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from klimb.errors import ConfigError, UntrustedEnvironment, nearest, shown
from klimb.modules import require_trust

WANDB, MLFLOW = "wandb", "mlflow"
KNOWN = (WANDB, MLFLOW)

_SECRET = re.compile(r"pass|pwd|token|secret|key|credential|auth|connect", re.IGNORECASE)


class TrackerName(NamedTuple):
    """A name in its parts.

    kind: `wandb` or `mlflow`; None for a class of the user's own. rest: the address of MLflow, or module:Class;
    empty where there is none.
    """

    kind: str | None
    rest: str


def require_tracker(name: str) -> TrackerName:
    """The parts of a name. ConfigError for one that is none, and for an address with a password in it.

    name: as it is typed. No message repeats what stands behind the colon: it may be a secret.
    """
    kind, colon, rest = name.partition(":")
    if kind == MLFLOW:
        if colon and not rest:
            raise ConfigError("log = 'mlflow:' has no address behind the colon: write mlflow, or mlflow:URI")
        _require_no_secret(rest)
        return TrackerName(MLFLOW, rest)
    if kind == WANDB:
        if colon:
            raise ConfigError("log = wandb has nothing behind it: project and server are set by W&B's own variables")
        return TrackerName(WANDB, "")
    if re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        return TrackerName(None, name)
    hint = nearest(kind, KNOWN) or ""
    raise ConfigError(f"log = {shown(kind)} is no tracker{hint} (there are wandb, mlflow, mlflow:URI and module:Class)")


def _require_no_secret(address: str) -> None:
    """ConfigError for an address with a user or a password, or with a parameter that may hold one.

    Databases take apart what stands before @ in other ways than web addresses: whatever has an @ is refused, unless it
    is the path of a local file.
    """
    try:
        urlsplit(address)
    except ValueError:
        raise ConfigError("log = mlflow:URI: what stands behind the colon is no address") from None
    scheme, separator, rest = address.partition("://")
    # Percent signs may hide any of the other characters.
    place, _, parameters = unquote(rest if separator else address).partition("?")
    local = scheme.lower().startswith(("sqlite", "file"))
    hidden = "#" in place or (not local and "@" in unquote(address)) or _SECRET.search(unquote(parameters)) is not None
    named = not separator and ":" in address and not Path(address).drive
    if hidden or named:
        raise ConfigError(
            "log = mlflow:URI: the address holds a user or a password, or may hold one, and would stand in the run's "
            "files: leave them out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_URI with --log mlflow"
        )


def needs_trust(name: str) -> bool:
    """Whether a file that names a tracker has to be trusted: for its code, or for where it has records sent.

    name: that `require_tracker` accepts.
    """
    return require_tracker(name).rest != ""


def require_trusted_tracker(name: str, source: str | Path) -> None:
    """UntrustedEnvironment when a tracker stands in a file, and would run code or send records to an address.

    name: that `require_tracker` accepts. source: the file.
    """
    kind, rest = require_tracker(name)
    if kind is None:
        require_trust(rest, source, "tracker")
    elif rest:
        raise UntrustedEnvironment(
            f"{str(source)!r} has the run logged to {shown(rest, 200)}: if you trust this address, give "
            "--trust-environment (trust_environment=True in Python)"
        )
