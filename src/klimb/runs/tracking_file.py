"""`tracking.json`: by which identifier experiment trackers know a run. It stays the same when the run is resumed."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

from klimb.errors import RunError, one_line
from klimb.files import read_limited, write_text
from klimb.runs.own_files import TRACKING

MAX_FILE = 2**12


def new_identifier() -> str:
    """One that no other run has."""
    return uuid.uuid4().hex


def identifier_of(run_dir: Path) -> str:
    """The identifier of a run, which is made and written down where it has none.

    run_dir: of the run. Raises RunError when the file can't be read or written, or holds something else.
    """
    path = run_dir / TRACKING
    try:
        content = json.loads(read_limited(path, MAX_FILE))
    except FileNotFoundError:
        content = {"id": new_identifier()}
        try:
            write_text(path, json.dumps(content) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {one_line(path)}: {error.strerror}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{one_line(path)} can't be read ({one_line(error, 200)}): remove the file") from None
    identifier = content.get("id") if isinstance(content, dict) else None
    if not isinstance(identifier, str) or not re.fullmatch(r"[0-9a-z]{8,64}", identifier):
        raise RunError(f"{one_line(path)} does not hold the identifier of a run: remove the file")
    return identifier
