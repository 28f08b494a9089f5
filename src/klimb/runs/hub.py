"""Policies on the Hugging Face Hub, by names such as hf://USER/NAME@REVISION: what is downloaded, and nothing else."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from klimb.errors import ConfigError, MissingExtra, RunError, one_line, shown
from klimb.files import is_file
from klimb.runs.own_files import CONFIG

PREFIX = "hf:"
FILES = (CONFIG, "policy.json", "policy.safetensors")
"""What klimb reads of a repository. Nothing else is downloaded: all of these are data, as those of a run are."""
_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_REVISION = re.compile(r"[\w./-]{1,128}", re.ASCII)


class HubName(NamedTuple):
    """A repository with a policy. name: USER/NAME. revision: a branch, a tag or a commit; None for the main branch."""

    name: str
    revision: str | None

    @classmethod
    def read(cls, given: str | PurePath) -> HubName:
        """ConfigError for what is no such name. given: hf://USER/NAME or hf://USER/NAME@REVISION."""
        # A path has one slash where two were typed, and on Windows slashes of its own.
        text = given.as_posix() if isinstance(given, PurePath) else given
        name, _, revision = text.removeprefix(PREFIX).lstrip("/").partition("@")
        wrong = not _NAME.fullmatch(name) or (revision and not _REVISION.fullmatch(revision))
        if wrong or {".", ".."} & {*name.split("/"), *revision.split("/")}:
            raise ConfigError(
                f"{shown(str(given), 80)} is no name on the Hub: write hf://USER/NAME, or hf://USER/NAME@REVISION for "
                "a tag or a commit"
            )
        return cls(name, revision or None)

    def __str__(self) -> str:
        return f"hf://{self.name}" + ("" if self.revision is None else f"@{self.revision}")


def is_hub(given: Any) -> bool:
    """Whether a path is the name of a policy on the Hub. given: what was typed or passed."""
    return isinstance(given, str | PurePath) and str(given).startswith(PREFIX)


def downloaded(given: str | Path) -> Path:
    """The directory of a policy of the Hub on this machine, whose name is its commit.

    given: hf://USER/NAME or hf://USER/NAME@REVISION. Only `FILES` are downloaded, into the Hub's own cache, and only
    what is not there yet. Raises ConfigError for another name, MissingExtra without the package huggingface_hub, and
    RunError when it can't be downloaded.
    """
    hub, name = hub_package(), HubName.read(given)
    try:
        with quiet(hub):
            folder = hub.HfApi().snapshot_download(name.name, revision=name.revision, allow_patterns=list(FILES))
    except Exception as error:
        raise RunError(f"{name} can't be downloaded: {explained(error)}") from error
    if not is_file(Path(folder) / CONFIG):
        raise RunError(f"{name} has no config.toml: it is no policy that klimb push has written")
    return Path(folder)


@contextlib.contextmanager
def quiet(hub: Any) -> Iterator[None]:
    """Without progress bars: the files are small. hub: the package."""
    shown = not hub.utils.are_progress_bars_disabled()
    if shown:
        hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            hub.utils.enable_progress_bars()


def pinned(given: str | Path, folder: Path) -> str:
    """The name of exactly what was downloaded. given: as for `downloaded`. folder: that it returned."""
    return str(HubName(HubName.read(given).name, folder.name))


def hub_package() -> Any:
    """The package huggingface_hub. MissingExtra when it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError:
        raise MissingExtra("the Hub needs the package huggingface_hub: pip install 'klimb[hub]'") from None
    return huggingface_hub


def explained(error: Exception) -> str:
    """What went wrong with the Hub, in one line, and what can be done. error: of the package."""
    first = one_line(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedies = {
        401: "log in with `hf auth login`, or set HF_TOKEN; and check the name",
        403: "your token may not do that: it needs the right to write to this repository",
        404: "check the name and the revision; a private repository needs `hf auth login`",
    }
    remedy = remedies.get(status) if isinstance(status, int) else None
    if "offline" in type(error).__name__.lower():
        remedy = "HF_HUB_OFFLINE is set"
    return first if remedy is None else f"{first} ({remedy})"
