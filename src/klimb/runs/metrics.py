"""What a run says of itself: one JSON object an iteration, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from klimb.types import Status

Record = dict[str, Any]


def to_records(metrics: dict[str, np.ndarray], *, wall_time: list[float], steps_per_second: float) -> list[Record]:
    """Records from arrays `[iterations, seeds]`: a number a metric with one seed, a list with several.

    Non-finite numbers become None (null in JSON); statuses become their names.
    """
    count, num_seeds = metrics["iteration"].shape
    common = {"iteration", "env_steps"}
    records = []
    for i in range(count):
        record: Record = {
            "iteration": int(metrics["iteration"][i, 0]),
            "env_steps": int(metrics["env_steps"][i, 0]),
            "wall_time": round(wall_time[i], 4),
            "steps_per_second": round(steps_per_second, 1),
        }
        for name in metrics.keys() - common:
            values = [_plain(name, value) for value in metrics[name][i]]
            record[name] = values[0] if num_seeds == 1 else values
        head = list(record)[:4]
        records.append({name: record[name] for name in [*head, *sorted(record.keys() - set(head))]})
    return records


def _plain(name: str, value: Any) -> Any:
    if name == "status":
        return Status(int(value)).name
    if isinstance(value, np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def read_metrics(path: Path) -> list[Record]:
    """All whole records of a metrics file; a last line still being written is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class MetricsLog:
    """Appends records to `metrics.jsonl`, and to TensorBoard event files in the same directory."""

    def __init__(self, directory: Path, *, keep_until: int | None = None) -> None:
        """`keep_until` drops the records after that iteration: they are about to be made again."""
        path = directory / "metrics.jsonl"
        if keep_until is not None and path.exists():
            kept = [record for record in read_metrics(path) if record["iteration"] <= keep_until]
            path.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        # TensorBoard costs half a second to import: only runs that are written pay for it.
        from tensorboardX import SummaryWriter

        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory), flush_secs=10)

    def append(self, records: list[Record]) -> None:
        """Write records, whole lines at a time. TensorBoard, which is for looking, gets the last of them."""
        self._file.write("".join(_line(record) for record in records))
        self._file.flush()
        last = records[-1]
        for name, value in last.items():
            for tag, number in _scalars(name, value):
                self._board.add_scalar(tag, number, global_step=last["env_steps"])

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


def _line(record: Record) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _scalars(name: str, value: Any) -> list[tuple[str, float | int]]:
    """(tag, number) for TensorBoard: one tag, or one a seed."""
    values = value if isinstance(value, list) else [value]
    tags = [name] if not isinstance(value, list) else [f"{name}/seed_{i}" for i in range(len(values))]
    numbers = [float(Status[v]) if name == "status" else v for v in values]
    return [(tag, number) for tag, number in zip(tags, numbers, strict=True) if number is not None]
