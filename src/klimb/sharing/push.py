"""From a folder to a repository on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from klimb.errors import RunError
from klimb.runs.hub import HubName, explained, hub_package, quiet

OWN_FILES = ("policy.onnx", "replay.mp4", "replay.webp", "evaluation.json")
"""What a push before may have left and this one may not have."""


class Pushed(NamedTuple):
    """A commit with the files of a policy. name: USER/NAME. commit: its hash. address: of the commit."""

    name: str
    commit: str
    address: str


def push_folder(folder: Path, name: HubName, *, public: bool, message: str) -> Pushed:
    """Upload the files of a folder in one commit, into a repository that is made where there is none.

    folder: with the files. name: of the repository; its revision is the branch. public: whether everybody may see a
    repository that is made; one that exists stays as it is. message: of the commit.

    The token is that of `hf auth login` or HF_TOKEN, as the package huggingface_hub finds it. Raises RunError when the
    Hub refuses or can't be reached.
    """
    hub = hub_package()
    try:
        with quiet(hub):
            api = hub.HfApi()
            api.create_repo(name.name, private=not public, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name.name,
                folder_path=folder,
                commit_message=message,
                revision=name.revision,
                # A film or an ONNX file of the policy before would stand beside this one.
                delete_patterns=list(OWN_FILES),
            )
    except Exception as error:
        raise RunError(f"{name} can't be pushed: {explained(error)}") from error
    return Pushed(name.name, str(commit.oid), str(commit.commit_url))
