"""W&B's own file of a run, `run-ID.wandb`: which steps and which summary it holds.

Offline nothing else says what has been logged, also by a process that was killed. The format is that of LevelDB's log:
blocks of 32 KiB of records, each with a checksum, a length and whether it is whole or a part; in them messages of W&B.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from klimb.files import open_regular

MAX_RECORD = 2**26
"""Largest record that is read, in bytes."""
HEADER = 7
"""Bytes before the first record, and of the head of every record."""
BLOCK = 2**15
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def logged(path: Path) -> tuple[int | None, dict[str, Any]]:
    """The last step in a file, None where it has none, and the summary that the run was given, by name.

    path: the file. Raises OSError or ValueError when it can't be read.
    """
    last: int | None = None
    summary: dict[str, Any] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            last = max(record.history.step.num, -1 if last is None else last)
        elif kind == "summary":
            for item in record.summary.update:
                if len(item.nested_key) == 1 or item.key:
                    summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
    return last, summary


def is_complete(path: Path) -> bool:
    """Whether a file has been written to the end of its run. Raises OSError or ValueError when it can't be read.

    path: the file.
    """
    last = deque(_contents(path), maxlen=1)
    return bool(last) and _message(last[0]).WhichOneof("record_type") == "exit"


def records(path: Path) -> Iterator[Any]:
    """The messages in a file, in order, up to one that was not written to its end.

    path: the file. Raises OSError or ValueError when it can't be read.
    """
    for content in _contents(path):
        yield _message(content)


def _message(content: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
    try:
        record.ParseFromString(content)
    except DecodeError:
        raise ValueError("it holds what is no message of W&B") from None
    return record


def _contents(path: Path) -> Iterator[bytes]:
    """The contents of the records in a file. Nothing is read after what is no record."""
    parts = b""
    with open_regular(path) as file:
        at = HEADER
        while block := file.read(BLOCK):
            while at + HEADER <= len(block):  # less, at the end of a block, are zeros
                _, length, kind = struct.unpack_from("<IHB", block, at)
                content = block[at + HEADER : at + HEADER + length]
                at += HEADER + length
                if kind not in (WHOLE, FIRST, MIDDLE, LAST) or len(content) < length:
                    return
                parts = content if kind in (WHOLE, FIRST) else parts + content
                if len(parts) > MAX_RECORD:
                    return
                if kind in (WHOLE, LAST):
                    yield parts
            at = 0
