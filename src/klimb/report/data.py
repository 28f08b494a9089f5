"""Reads a run's directory: its configuration, its metrics as columns, its final evaluation, its provenance."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from klimb.errors import RunError, one_line, shown
from klimb.files import exists, read_limited
from klimb.improve.rule import Traits, rule_title, traits_of
from klimb.report.averages import Column
from klimb.report.statistics import interquartile_mean
from klimb.rules import UnknownRule
from klimb.runs.config import RunConfig
from klimb.runs.ending import Ending, read_ending
from klimb.runs.metrics import LARGEST, METRICS, read_metrics
from klimb.runs.provenance import Provenance, read_provenance
from klimb.types import Metric, Status

Spec = dict[str, Any]

STANDARD_ERRORS = (
    *("predicted_improvement_se", "realised_improvement_se"),
    *("kl_old_new_se", "kl_new_old_se", "tv_se", "eval_return_se", "eval_sampled_return_se"),
)
"""Metrics without a line of their own: they are the standard errors of others."""

MAX_POINTS = 600
MAX_NUMBERS = 100_000  # in all series together: keeps the page under 1 MB
MAX_METRICS = 1000
MAX_EVALUATION = 2**28
"""Bytes of the largest evaluation that is read: of millions of episodes."""
MAX_REASONS = 32
"""Metrics are single precision. A larger number comes from a damaged file, and its square would overflow."""


@dataclass(frozen=True)
class SeedReturns:
    """The final evaluation of one seed's policy: the finite returns, the mean and its standard error."""

    seed: int
    mean: float
    standard_error: float
    returns: Float[np.ndarray, " episodes"]


@dataclass(frozen=True)
class Evaluation:
    """The final evaluation of all seeds.

    episodes: per seed. deterministic: whether actions were the policy's mode instead of samples.
    """

    episodes: int
    deterministic: bool
    seeds: list[SeedReturns]

    @property
    def mean(self) -> float:
        """Mean return over episodes and seeds."""
        return float(np.mean([seed.mean for seed in self.seeds]))

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`: over episodes for one seed, over the seeds' means for several."""
        if len(self.seeds) == 1:
            return self.seeds[0].standard_error
        return float(np.std([seed.mean for seed in self.seeds], ddof=1) / math.sqrt(len(self.seeds)))


@dataclass(frozen=True)
class RunData:
    """A run as columns of n iterations, with one value per seed or one for all. NaN where a number does not exist.

    traits: of the rule. provenance: what it was trained with and on, oldest first. edges: the first row of each bucket
    that lines are averaged over, and n at the end. ending: what ended the training; None where that is not known.
    """

    name: str
    config: Spec
    traits: Traits
    iteration: Int[np.ndarray, " n"]
    env_steps: Float[np.ndarray, " n"]
    status: Shaped[np.ndarray, "n seeds"]
    columns: dict[str, Column]
    evaluation: Evaluation | None
    provenance: list[Provenance]
    edges: Int[np.ndarray, " edges"]
    ending: Ending | None = None

    @property
    def rule_title(self) -> str:
        """The rule's name in headings."""
        return self.traits.title

    def metric(self, name: str) -> Metric:
        """Title and meaning of a metric: the rule's own, a common one, or else the name itself without a meaning."""
        unknown = Metric(name.replace("_", " ").strip().capitalize() or name, "")
        return self.traits.metrics.get(name) or METRICS.get(name, unknown)

    @property
    def num_seeds(self) -> int:
        """Number of seeds."""
        return self.status.shape[1]

    @property
    def seeds(self) -> list[int]:
        """The seeds' numbers, in the order of the columns."""
        first = self.config["options"]["seed"]
        return [first + i for i in range(self.num_seeds)]

    @property
    def accepted(self) -> Bool[np.ndarray, "n seeds"]:
        """Which steps were taken."""
        return self.status == Status.ACCEPTED.name

    @property
    def rejected(self) -> Bool[np.ndarray, "n seeds"]:
        """Which steps were tried and not taken."""
        not_rejected = [status.name for status in Status if not status.rejected]
        return ~np.isin(self.status, not_rejected)

    @property
    def offline(self) -> bool:
        """Whether the run used no environment, so that iterations are passes over demonstrations."""
        return not self.env_steps.any()

    def has(self, name: str) -> bool:
        """Whether the metric `name` was recorded, with at least one finite value."""
        return name in self.columns

    def of_accepted(self, name: str) -> Column:
        """The metric `name` with NaN at steps that were not taken; unchanged if no step was taken."""
        column = np.where(~self.accepted, np.nan, self.columns[name])
        return column if np.isfinite(column).any() else self.columns[name]

    def centre(self, name: str) -> Float[np.ndarray, " n"]:
        """The interquartile mean over seeds of the metric `name`, per iteration. Empty if it was not recorded."""
        return interquartile_mean(self.columns[name]) if self.has(name) else np.empty(0)


def read_run(run_dir: Path) -> RunData:
    """Everything that the report needs from a run's directory.

    Raises RunError when the directory holds no record or a damaged evaluation, provenance or ending, ConfigError for a
    wrong config.toml.
    """
    run_config = RunConfig.read(run_dir / "config.toml")
    config = _as_plain(run_config)
    path = run_dir / "metrics.jsonl"
    records = _read_records(path)
    num_seeds = config["options"]["num_seeds"]
    names = dict.fromkeys(name for record in records for name in record if name != "status")
    _check_size(path, records, len(names), num_seeds)
    columns = {one_line(name): _column([record.get(name) for record in records], num_seeds) for name in names}
    columns = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    iteration = columns.pop("iteration")[:, 0].astype(np.int64)
    env_steps = columns.pop("env_steps")[:, 0]
    drawn = sum(name not in STANDARD_ERRORS for name in columns)
    points = min(len(records), MAX_POINTS, max(50, MAX_NUMBERS // (drawn * 5 + num_seeds)))
    return RunData(
        name=one_line(run_dir.resolve().name),
        config=config,
        traits=replace(traits_of(run_config.rule), title=rule_title(run_config.rule)),
        iteration=iteration,
        env_steps=env_steps,
        status=_statuses([record.get("status") for record in records], num_seeds),
        columns=columns,
        evaluation=read_evaluation(run_dir / "evaluation.json"),
        provenance=read_provenance(run_dir),
        edges=np.linspace(0, len(records), points + 1).astype(np.int64),
        ending=read_ending(run_dir),
    )


def _as_plain(config: RunConfig) -> Spec:
    """The configuration with its defaults. Settings of a rule that could not be imported were never checked."""
    tree = config.to_dict()
    if isinstance(config.rule, UnknownRule):
        tree["rule"] = {one_line(key): _plain(value) for key, value in tree["rule"].items()}
    return tree


def _plain(value: Any) -> Any:
    """A setting of a rule that klimb does not know, as a number, a line of text or a list of such."""
    match value:
        case "none":
            return None
        case bool() | float():
            return value
        case int() if abs(value) < 2**63:
            return value
        case str():
            return one_line(value)
        case list():
            return [_plain(item) if isinstance(item, bool | int | float | str) else shown(item) for item in value]
    return shown(value)


def _read_records(path: Path) -> list[Spec]:
    try:
        records = read_metrics(path)
    except OSError as error:
        where, directory = one_line(path), one_line(path.parent)
        raise RunError(f"cannot read {where}: {error.strerror}; is {directory} the directory of a run?") from None
    # After a crash and a resume an iteration may be recorded twice: the later record counts.
    latest = {record["iteration"]: record for record in records if _is_record(record)}
    if not latest:
        raise RunError(f"{one_line(path)} holds no iteration yet: let the run finish at least one, then report again")
    return [latest[iteration] for iteration in sorted(latest)]


def _is_record(record: Any) -> bool:
    # 2⁵³ is the largest range of integers that a float represents exactly; larger counts come from damaged files.
    counts = [record.get(name) for name in ("iteration", "env_steps")] if isinstance(record, dict) else [None]
    return all(type(count) is int and 0 <= count <= 2**53 for count in counts)


def _check_size(path: Path, records: list[Spec], num_names: int, num_seeds: int) -> None:
    """RunError for metrics that need far more memory as columns than their file is large."""
    if num_names > MAX_METRICS:
        raise RunError(f"{one_line(path)} has {num_names} different metrics; a report shows at most {MAX_METRICS}")
    size, cells = path.stat().st_size, len(records) * max(num_names, num_seeds)
    if cells > max(2**20, size):
        raise RunError(
            f"{one_line(path)} has {size} bytes, too few for {len(records)} iterations of {num_seeds} seeds with "
            f"{num_names} metrics: its config.toml is that of another run, or the file is damaged"
        )


def read_evaluation(path: Path) -> Evaluation | None:
    """The final evaluation of a run; None where there is none. RunError when the file is damaged.

    path: of `evaluation.json`.
    """
    if not exists(path):
        return None
    try:
        tree = json.loads(read_limited(path, MAX_EVALUATION))
        seeds = [
            SeedReturns(
                int(seed["seed"]),
                _number_or_nan(seed["mean"]),
                _number_or_nan(seed["standard_error"]),
                np.array([x for x in map(_number_or_nan, seed["returns"]) if math.isfinite(x)], float),
            )
            for seed in tree["seeds"]
        ]
        return Evaluation(int(tree["episodes"]), bool(tree["deterministic"]), seeds) if seeds else None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError, MemoryError, OSError) as error:
        raise RunError(
            f"{one_line(path)} is not an evaluation ({one_line(repr(error), 200)}): evaluate the run again or remove "
            "the file"
        ) from None


def _column(cells: list[Any], num_seeds: int) -> Column:
    """`[n, seeds]`, or `[n, 1]` for a metric that all seeds share; NaN for every cell that is not a finite number."""
    try:
        values = np.array(cells, dtype=float)
    except (ValueError, TypeError, OverflowError):
        shared = not any(isinstance(cell, list) for cell in cells)
        width = 1 if shared else num_seeds
        rows = [cell if isinstance(cell, list) and len(cell) == width else [cell] for cell in cells]
        values = np.array(
            [[_number_or_nan(x) for x in row] if len(row) == width else [math.nan] * width for row in rows]
        )
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] not in (1, num_seeds):
        return np.full((len(cells), 1), np.nan)
    return np.where(np.abs(values) <= LARGEST, values, np.nan)


def _number_or_nan(cell: Any) -> float:
    # Compared before the conversion: Python compares integers of any size, float() overflows.
    return float(cell) if isinstance(cell, int | float) and -LARGEST <= cell <= LARGEST else math.nan


def _statuses(cells: list[Any], num_seeds: int) -> Shaped[np.ndarray, "n seeds"]:
    """Status names; a record without one counts as accepted. Unknown names beyond the first few become OTHER."""
    known = set(Status.__members__)
    status = np.full((len(cells), num_seeds), Status.ACCEPTED.name, dtype=object)
    for row, cell in enumerate(cells):
        for seed, name in enumerate((cell if isinstance(cell, list) else [cell] * num_seeds)[:num_seeds]):
            if isinstance(name, str):
                name = one_line(name)
                known |= {name} if len(known) < MAX_REASONS else set()
                status[row, seed] = name if name in known else "OTHER"
    return status


def aligned_to_step(run: RunData, name: str) -> Column:
    """A metric that measures an earlier step, moved to the record of that step; NaN for steps that were not taken.

    run: whose metric. name: of the metric. The step is that of the previous record; with `overlap`, where data is one
    policy old, that of the record before it.
    """
    lag = 2 if run.config["options"].get("overlap") else 1
    column = np.broadcast_to(run.columns.get(name, np.full((1, 1), np.nan)), run.status.shape)
    aligned = np.full(run.status.shape, np.nan)
    # Rows whose record `lag` rows later is that of the iteration `lag` later: no record between them is missing.
    rows = np.flatnonzero(run.iteration[lag:] - run.iteration[:-lag] == lag)
    aligned[rows] = np.where(run.accepted[rows], column[rows + lag], np.nan)
    return aligned


def improvement_pairs(run: RunData) -> dict[str, np.ndarray]:
    """Predicted and realised improvement of each accepted step, in reward per step, over all seeds, by name."""
    shape = run.status.shape
    missing = np.full(shape, np.nan)
    pairs = {
        "predicted": np.broadcast_to(run.columns.get("predicted_improvement", missing), shape),
        "predicted_se": np.broadcast_to(run.columns.get("predicted_improvement_se", missing), shape),
        "realised": aligned_to_step(run, "realised_improvement"),
        "realised_se": aligned_to_step(run, "realised_improvement_se"),
        "iteration": np.broadcast_to(run.iteration[:, None], shape),
        "seed": np.broadcast_to(np.array(run.seeds), shape),
    }
    complete = np.isfinite(pairs["predicted"]) & np.isfinite(pairs["realised"])
    return {name: values[complete] for name, values in pairs.items()}


def rejection_counts(run: RunData) -> list[tuple[str, int]]:
    """(status, number of rejected steps), the most frequent status first."""
    return Counter(run.status[run.rejected].tolist()).most_common()
