"""The report of a run: one HTML file that opens anywhere, with its data inside and nothing fetched.

Numbers are averaged here and drawn by `report_page/charts.js`; text and tables are written here, escaped.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import shlex
import tomllib
from collections import Counter
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from klimb.errors import ConfigError, RunError
from klimb.improve.divergences import total_variation_bound
from klimb.improve.registry import RULES
from klimb.runs.config import RunConfig, TrainOptions, build
from klimb.runs.files import write_text
from klimb.runs.metrics import read_metrics
from klimb.types import Status

Column = Float[np.ndarray, "n _"]  # one value a seed, or one for all
Spec = dict[str, Any]

MAX_POINTS = 600
MAX_NUMBERS = 100_000  # in all series together: keeps the page under 1 MB
MAX_DOTS = 1500
MAX_ROWS = 200
MAX_SEED_LINES = 40
MAX_STRIPS = 16


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write the report of a run and return where it is: `run_dir/report.html` unless `output` says otherwise.

    Raises RunError when the run has no record of an iteration yet or a file can't be read or written,
    ConfigError when its configuration is wrong.
    """
    run_dir = Path(run_dir)
    output = run_dir / "report.html" if output is None else Path(output)
    page = render(read_run(run_dir))
    try:
        write_text(output, page)
    except OSError as error:
        raise RunError(f"cannot write {output}: {error.strerror}") from None
    return output


@dataclass(frozen=True)
class SeedReturns:
    """What the final evaluation says of one seed's policy: `[episodes]` finite returns, their mean and its error."""

    seed: int
    mean: float
    standard_error: float
    returns: Float[np.ndarray, " episodes"]


@dataclass(frozen=True)
class Evaluation:
    """The final evaluation: whole episodes of every seed's policy."""

    episodes: int
    deterministic: bool
    seeds: list[SeedReturns]

    @property
    def mean(self) -> float:
        """Mean return, over seeds too."""
        return float(np.mean([seed.mean for seed in self.seeds]))

    @property
    def standard_error(self) -> float:
        """Of `mean`: over episodes with one seed, over the seeds' means with several."""
        if len(self.seeds) == 1:
            return self.seeds[0].standard_error
        return float(np.std([seed.mean for seed in self.seeds], ddof=1) / math.sqrt(len(self.seeds)))


@dataclass(frozen=True)
class RunData:
    """A run as columns: n iterations, one value a seed (or one for all). NaN where a number does not exist.

    `edges` are the first rows of the buckets that lines are averaged over, and n at the end.
    """

    name: str
    config: Spec
    iteration: Int[np.ndarray, " n"]
    env_steps: Float[np.ndarray, " n"]
    status: Shaped[np.ndarray, "n seeds"]
    columns: dict[str, Column]
    evaluation: Evaluation | None
    edges: Int[np.ndarray, " edges"]

    @property
    def num_seeds(self) -> int:
        return self.status.shape[1]

    @property
    def seeds(self) -> list[int]:
        first = self.config["options"]["seed"]
        return [first + i for i in range(self.num_seeds)]

    @property
    def rejected(self) -> Bool[np.ndarray, "n seeds"]:
        return self.status != Status.ACCEPTED.name

    def has(self, name: str) -> bool:
        return name in self.columns

    def of_accepted(self, name: str) -> Column:
        """A metric without the rejected steps, which moved nothing; with them if there are no others."""
        column = np.where(self.rejected, np.nan, self.columns[name])
        return column if np.isfinite(column).any() else self.columns[name]

    def centre(self, name: str) -> Float[np.ndarray, " n"]:
        """One number an iteration: the value, or the interquartile mean over seeds. Empty for no such metric."""
        return interquartile_mean(self.columns[name]) if self.has(name) else np.empty(0)


def read_run(run_dir: Path) -> RunData:
    """Everything the report needs from a run's directory."""
    config = _read_config(run_dir / "config.toml")
    records = _read_records(run_dir / "metrics.jsonl")
    num_seeds = config["options"]["num_seeds"]
    names = dict.fromkeys(name for record in records for name in record if name != "status")
    columns = {name: _column([record.get(name) for record in records], num_seeds) for name in names}
    columns = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    iteration = columns.pop("iteration")[:, 0].astype(np.int64)
    env_steps = columns.pop("env_steps")[:, 0]
    points = min(len(records), MAX_POINTS, max(50, MAX_NUMBERS // (len(columns) * 5 + num_seeds)))
    return RunData(
        name=run_dir.resolve().name,
        config=config,
        iteration=iteration,
        env_steps=env_steps,
        status=_statuses([record.get("status") for record in records], num_seeds),
        columns=columns,
        evaluation=_read_evaluation(run_dir / "evaluation.json"),
        edges=np.linspace(0, len(records), points + 1).astype(np.int64),
    )


def _read_config(path: Path) -> Spec:
    """The configuration, completed by its defaults. A rule that is not klimb's own is taken as it is written."""
    try:
        return RunConfig.read(path).to_dict()
    except ConfigError:
        tree = _foreign_rule(path)
        if tree is None:
            raise
    rule = {key: None if value == "none" else value for key, value in tree["rule"].items()}
    options = build(TrainOptions, tree.get("options", {}))
    return {"env": tree["env"], "rule": rule, "options": dataclasses.asdict(options)}


def _foreign_rule(path: Path) -> Spec | None:
    """The file's tree if all that is unusual about it is a rule of the user's own."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = tree["rule"].get("name") if isinstance(tree.get("rule"), dict) else None
    usable = isinstance(tree.get("env"), str) and isinstance(name, str) and name not in RULES
    return tree if usable else None


def _read_records(path: Path) -> list[Spec]:
    try:
        records = read_metrics(path)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; is {path.parent} the directory of a run?") from None
    except ValueError as error:
        raise RunError(f"{path} is not a file of metrics: {error}") from None
    # After a crash and a resume an iteration may stand there twice: the later record is the one that counts.
    latest = {record["iteration"]: record for record in records if _is_record(record)}
    if not latest:
        raise RunError(f"{path} holds no iteration yet: let the run finish at least one, then report again")
    return [latest[iteration] for iteration in sorted(latest)]


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(x), int) for x in ("iteration", "env_steps"))


def _read_evaluation(path: Path) -> Evaluation | None:
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_bytes())
        seeds = [
            SeedReturns(
                int(seed["seed"]),
                _number_or_nan(seed["mean"]),
                _number_or_nan(seed["standard_error"]),
                np.array([x for x in map(_number_or_nan, seed["returns"]) if math.isfinite(x)]),
            )
            for seed in tree["seeds"]
        ]
        return Evaluation(int(tree["episodes"]), bool(tree["deterministic"]), seeds) if seeds else None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not an evaluation ({error!r}): evaluate the run again or remove the file") from None


def _column(cells: list[Any], num_seeds: int) -> Column:
    """`[n, seeds]`, or `[n, 1]` for a metric that all seeds share; NaN for everything that is not a finite number."""
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
    return np.where(np.isfinite(values), values, np.nan)


def _number_or_nan(cell: Any) -> float:
    try:
        return float(cell) if isinstance(cell, int | float) else math.nan
    except OverflowError:
        return math.nan


def _statuses(cells: list[Any], num_seeds: int) -> Shaped[np.ndarray, "n seeds"]:
    """Status names; a record without one counts as accepted."""
    status = np.full((len(cells), num_seeds), Status.ACCEPTED.name, dtype=object)
    for row, cell in enumerate(cells):
        for seed, name in enumerate((cell if isinstance(cell, list) else [cell] * num_seeds)[:num_seeds]):
            if isinstance(name, str):
                status[row, seed] = name
    return status


def bucket_mean(column: Column, edges: Int[np.ndarray, " edges"]) -> Float[np.ndarray, "points seeds"]:
    """The mean over each bucket of rows, of the numbers that exist there."""
    present = np.isfinite(column)
    total = np.add.reduceat(np.where(present, column, 0.0), edges[:-1], axis=0)
    count = np.add.reduceat(present.astype(np.int64), edges[:-1], axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def bucket_range(
    column: Column, edges: Int[np.ndarray, " edges"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """The smallest and the largest number in each bucket, over its rows and over seeds."""
    low = np.fmin.reduceat(np.fmin.reduce(column, axis=1), edges[:-1])
    high = np.fmax.reduceat(np.fmax.reduce(column, axis=1), edges[:-1])
    return low, high


def interquartile_mean(values: Float[np.ndarray, "n seeds"]) -> Float[np.ndarray, " n"]:
    """The mean of the middle half over seeds (Agarwal et al. 2021): a quarter of those present cut from each end."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(ordered).sum(axis=1, keepdims=True)
    cut = count // 4
    rank = np.arange(values.shape[1])
    kept = (rank >= cut) & (rank < count - cut)
    total, size = np.where(kept, ordered, 0.0).sum(axis=1), kept.sum(axis=1)
    return np.divide(total, size, out=np.full(len(values), np.nan), where=size > 0)


def quantile(values: Float[np.ndarray, "n seeds"], q: float) -> Float[np.ndarray, " n"]:
    """The q-quantile over the seeds present, linear between ranks; NaN where there is none."""
    ordered = np.sort(values, axis=1)
    count = np.isfinite(ordered).sum(axis=1, keepdims=True)
    position = q * np.maximum(count - 1, 0)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low, high = (np.take_along_axis(ordered, rank, axis=1) for rank in (below, above))
    return (low + (position - below) * (high - low))[:, 0]


def improvement_pairs(run: RunData) -> dict[str, np.ndarray]:
    """What each accepted step promised beside what it brought, in reward a step, over all seeds.

    A step's improvement is measured on the next batch, so it stands in the *next* record.
    """
    step = np.flatnonzero(np.diff(run.iteration) == 1)
    missing = np.full((len(run.iteration), run.num_seeds), np.nan)

    def at(name: str, rows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(run.columns.get(name, missing), missing.shape)[rows]

    pairs = {
        "predicted": at("predicted_improvement", step),
        "predicted_se": at("predicted_improvement_se", step),
        "realised": at("realised_improvement", step + 1),
        "realised_se": at("realised_improvement_se", step + 1),
        "iteration": np.broadcast_to(run.iteration[step, None], (len(step), run.num_seeds)),
        "seed": np.broadcast_to(np.array(run.seeds), (len(step), run.num_seeds)),
    }
    kept = np.isfinite(pairs["predicted"]) & np.isfinite(pairs["realised"]) & ~run.rejected[step]
    return {name: values[kept] for name, values in pairs.items()}


def _plain(values: np.ndarray) -> list[int | float | None]:
    """For JSON: five significant digits, null where there is no number."""
    return [_short(value) if math.isfinite(value) else None for value in values.tolist()]


def _short(value: int | float) -> int | float:
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e9 else rounded


def _line(run: RunData, values: Column, label: str, color: int, **style: Any) -> Spec:
    mean = interquartile_mean(bucket_mean(values, run.edges))
    return {"type": "line", "label": label, "color": color, "values": _plain(mean), **style}


def _band(label: str, color: int, low: np.ndarray, high: np.ndarray, strength: float) -> Spec:
    return {
        "type": "band",
        "label": label,
        "color": color,
        "low": _plain(low),
        "high": _plain(high),
        "strength": strength,
    }


def _spread(run: RunData, values: Column, label: str, color: int = 1, **style: Any) -> list[Spec]:
    """A line and what it is the middle of: seeds, or else the iterations averaged into one point."""
    line = _line(run, values, label, color, **style)
    if values.shape[1] > 1:
        means = bucket_mean(values, run.edges)
        bounds = [quantile(means, q) for q in (0.0, 0.25, 0.75, 1.0)]
        return [
            _band("lowest to highest seed", color, bounds[0], bounds[3], 0.12),
            _band("middle half of seeds", color, bounds[1], bounds[2], 0.24),
            line,
        ]
    if len(run.edges) - 1 < len(run.iteration):
        return [_band("range within a point", color, *bucket_range(values, run.edges), 0.18), line]
    return [line]


def _chart(title: str, about: str, layers: list[Spec], **options: Any) -> Spec:
    return {"kind": "lines", "title": title, "about": about, "layers": layers, **options}


def _simple(run: RunData, name: str, title: str, about: str, **options: Any) -> list[Spec]:
    """The chart of one metric; none when the run does not have it."""
    if not run.has(name):
        return []
    return [_chart(title, about, _spread(run, run.columns[name], title.lower()), **options)]


def return_chart(run: RunData) -> Spec:
    """Learning curve against environment steps, with each seed's own line on request."""
    about = "Mean undiscounted return of the episodes that ended in each iteration."
    if not run.has("episode_return"):
        return _chart("Episode return", f"{about} No episode has ended in this run.", [], wide=True)
    values = run.columns["episode_return"]
    several = values.shape[1] > 1
    layers = _spread(run, values, "interquartile mean of seeds" if several else "mean return", width=2.25)
    if several and run.num_seeds <= MAX_SEED_LINES:
        means = bucket_mean(values, run.edges)
        layers[-1:-1] = [  # under the line of all seeds
            {
                "type": "line",
                "label": "each seed",
                "name": f"seed {seed}",
                "color": 1 + i % 5,
                "values": _plain(means[:, i]),
                "hidden": True,
                "width": 1,
            }
            for i, seed in enumerate(run.seeds)
        ]
    levels = []
    if run.evaluation is not None and math.isfinite(run.evaluation.mean):
        levels = [{"value": _short(run.evaluation.mean), "label": "final evaluation"}]
    return _chart("Episode return", about, layers, wide=True, height=320, connect=True, levels=levels)


def kl_chart(run: RunData) -> list[Spec]:
    """KL in both directions, the constrained one first, against its limit; every rejected step is marked."""
    rule = run.config["rule"]
    names = {"old_new": ("kl_old_new", "KL(old‖new)"), "new_old": ("kl_new_old", "KL(new‖old)")}
    constrained = "new_old" if rule.get("kl_direction") == "new_old" else "old_new"
    other = "old_new" if constrained == "new_old" else "new_old"
    layers, levels, readout = [], [], []
    main, main_label = names[constrained]
    if run.has(names[other][0]):
        layers.append(_line(run, run.of_accepted(names[other][0]), names[other][1], 2, width=1.25))
    if run.has(main):
        layers += _spread(run, run.of_accepted(main), main_label)
        readout.append(("largest step", f"{_figure(np.nanmax(run.of_accepted(main)))} nats"))
    if run.has("kl_max"):
        layers.append(_line(run, run.of_accepted("kl_max"), "worst state", 4, width=1.25, hidden=True))
    if not layers:
        return []
    about = "How far each accepted step moved the policy: mean over states, in nats."
    enforced = isinstance(rule.get("max_kl"), int | float)
    limit = rule["max_kl"] if enforced else rule.get("target_kl")
    if isinstance(limit, int | float):
        word = "limit" if enforced else "target"
        about += " A step beyond the limit is not taken." if enforced else " The target is aimed at, not enforced."
        levels = [{"value": limit, "label": f"{word}{', enforced' if enforced else ''}: {_figure(limit)}"}]
        if run.has(main) and limit > 0:
            readout.append(("used on average", f"{np.nanmean(run.of_accepted(main)) / limit:.0%} of the {word}"))
    layers += rejection_marks(run)
    return [
        _chart("KL divergence", about, layers, levels=levels, readout=readout, include=[0], log="auto", unit="nats")
    ]


def rejection_marks(run: RunData) -> list[Spec]:
    """Rejected steps by reason: [point, how many]. None is lost to averaging: the counts add up to all of them."""
    bucket = np.repeat(np.arange(len(run.edges) - 1), np.diff(run.edges))
    marks = []
    for color, (name, total) in enumerate(rejection_counts(run)):
        per_bucket = np.bincount(bucket, weights=(run.status == name).sum(axis=1), minlength=len(run.edges) - 1)
        points = [[int(i), int(per_bucket[i])] for i in np.flatnonzero(per_bucket)]
        label = f"rejected: {_reason(name)} ({total:,})"
        marks.append({"type": "marks", "label": label, "color": color % 4, "status": name, "points": points})
    return marks


def rejection_counts(run: RunData) -> list[tuple[str, int]]:
    """(status, steps), the most frequent reason first."""
    return Counter(run.status[run.rejected].tolist()).most_common()


def improvement_chart(run: RunData) -> list[Spec]:
    """Predicted against realised improvement of accepted steps, with what the whole cloud says."""
    pairs = improvement_pairs(run)
    total = len(pairs["predicted"])
    if total == 0:
        return []
    shown = np.unique(np.linspace(0, total - 1, min(total, MAX_DOTS)).astype(np.int64))
    points = {name: _plain(values[shown]) for name, values in pairs.items()}
    last = max(int(run.iteration[-1]), 1)
    points["group"] = np.minimum(pairs["iteration"][shown] * 4 // (last + 1), 3).tolist()
    about = (
        "One dot a step: what its surrogate promised, and what the next batch measured under the same critic. "
        "On the dashed line the promise was kept exactly."
    )
    if len(shown) < total:
        about += f" {len(shown):,} of {total:,} steps are drawn; the numbers are of all."
    return [
        {
            "kind": "scatter",
            "title": "Promised and kept",
            "about": about,
            "points": points,
            "groups": ["first quarter", "second", "third", "last quarter of training"],
            "xLabel": "predicted improvement, reward per step",
            "yLabel": "realised",
            "readout": _improvement_readout(pairs["predicted"], pairs["realised"]),
        }
    ]


def _improvement_readout(predicted: np.ndarray, realised: np.ndarray) -> list[tuple[str, str]]:
    readout = []
    if len(predicted) > 2 and np.ptp(predicted) > 0 and np.ptp(realised) > 0:
        readout.append(("correlation", _figure(np.corrcoef(predicted, realised)[0, 1], 2)))
    readout.append(("improved", f"{np.mean(realised > 0):.0%} of {len(realised):,} steps"))
    if np.sum(predicted) > 0:
        readout.append(
            ("kept in total", f"{np.sum(realised) / np.sum(predicted):.0%} of the promise".replace("-", "−"))
        )
    return readout


def total_variation_chart(run: RunData) -> list[Spec]:
    """Total variation, mean and worst, each under the bound its KL implies.

    TV is symmetric, so both directions of KL bound it; the bound is concave, so the mean TV is below the bound
    of the mean KL.
    """
    layers = []
    if run.has("tv_max"):
        layers += [_line(run, run.of_accepted("tv_max"), "worst state", 2)]
        if run.has("kl_max"):
            layers.append(_line(run, tv_bound(run, "kl_max"), "bound, worst state", 2, dash=True, width=1.25))
    if run.has("tv"):
        layers += _spread(run, run.of_accepted("tv"), "mean over states")
        directions = [name for name in ("kl_old_new", "kl_new_old") if run.has(name)]
        if directions:
            layers.append(_line(run, tv_bound(run, *directions), "bound, mean", 1, dash=True, width=1.25))
    about = (
        "The most that one step changed the probability of any set of actions. "
        "Dashed: the bound that the KL implies (Pinsker or Bretagnolle–Huber, whichever is lower)."
    )
    return [_chart("Total variation", about, layers, include=[0], log="auto")] if layers else []


def tv_bound(run: RunData, *names: str) -> Column:
    """The least of the bounds that these KLs put on the total variation, per iteration and seed."""
    kl = np.fmin.reduce([run.of_accepted(name) for name in names])
    return np.asarray(total_variation_bound(jnp.asarray(kl)), dtype=float)


def evaluation_chart(run: RunData) -> list[Spec]:
    """The returns of the final evaluation: a strip a seed, or a histogram for one seed or very many."""
    seeds = [seed for seed in run.evaluation.seeds if len(seed.returns)] if run.evaluation else []
    if run.evaluation is None or not seeds:
        return []
    everything = np.concatenate([seed.returns for seed in seeds])
    how = "the most likely action at every step" if run.evaluation.deterministic else "sampled actions"
    about = f"Returns of {len(everything):,} whole episodes after training, with {how}."
    if 1 < len(seeds) <= MAX_STRIPS:
        chart: Spec = {"kind": "strips", "rows": [_strip(seed) for seed in seeds]}
    else:
        chart = {"kind": "histogram", "height": 190, "yLabel": "episodes", **_bars(everything)}
    return [{"title": "Final evaluation", "about": about, "wide": True, "xLabel": "episode return", **chart}]


def _bars(returns: np.ndarray) -> Spec:
    """A histogram; one bar when all returns are the same, as in a task that is solved."""
    low, high = float(returns.min()), float(returns.max())
    if high - low <= 1e-6 * abs(high):
        counts, bounds = np.array([len(returns)]), np.array([low - 0.5, high + 0.5])
    else:
        counts, bounds = np.histogram(returns, bins=int(np.clip(2 * math.sqrt(len(returns)), 8, 32)))
    return {"counts": counts.tolist(), "bounds": _plain(bounds), "mean": _short(float(returns.mean()))}


def _strip(seed: SeedReturns) -> Spec:
    """One seed's returns, at most 200 of them: evenly spaced quantiles say the same."""
    shown = np.quantile(seed.returns, np.linspace(0, 1, min(len(seed.returns), 200)))
    mean = _short(float(seed.returns.mean()))
    return {"label": f"seed {seed.seed}", "mean": mean, "values": _plain(shown)}


_OWN = {
    "backtracks": ("Backtracks", "Times the line search shortened the step."),
    "cg_iterations": ("Conjugate gradient steps", "Fisher-vector products in one solve."),
    "cg_residual": ("Conjugate gradient residual", "What the solve left over, relative to the gradient."),
    "step_size": ("Step size", "Factor on the natural direction; 0 when rejected."),
    "clip_fraction": ("Clip fraction", "Rows whose ratio ended outside the clip range."),
    "epochs_done": ("Epochs", "Passes over the batch before stopping."),
    "grad_norm": ("Gradient norm", "Before it is limited."),
    "surrogate_gain": ("Surrogate gain", "In the units of the batch's advantages."),
    "episode_length": ("Episode length", "Mean steps of the episodes that ended."),
    "episodes": ("Episodes", "How many ended in the iteration."),
}
_ELSEWHERE = {
    *("episode_return", "kl_old_new", "kl_new_old", "kl_max", "tv", "tv_max", "entropy", "ess", "explained_variance"),
    *("predicted_improvement", "predicted_improvement_se", "realised_improvement", "realised_improvement_se"),
    *("value_loss", "steps_per_second", "wall_time", "status"),
}


def own_charts(run: RunData) -> list[Spec]:
    """Every metric that has no chart above: the rule's own, and whatever else was recorded."""
    order = [name for name in run.columns if name not in _OWN] + list(_OWN)
    charts = []
    for name in order:
        if name in _ELSEWHERE or not run.has(name):
            continue
        title, about = _OWN.get(name, (name.replace("_", " ").strip().capitalize() or name, ""))
        charts += _simple(run, name, title, about, height=150, log="auto", connect=name == "episode_length")
    return charts


def effective_sample_chart(run: RunData) -> list[Spec]:
    """How much of the batch still speaks for the new policy."""
    about = "Share of the batch left once its rows are weighted by new/old probability. 1 is an unmoved policy."
    if not run.has("ess"):
        return []
    layers = _spread(run, run.of_accepted("ess"), "effective sample size")
    return [_chart("Effective sample size", about, layers, include=[1])]


def health_charts(run: RunData) -> list[Spec]:
    """Whether the policy still explores, what the critic knows, and how fast all of it goes."""
    entropy = "Mean entropy of the policy, in nats: how much it still explores."
    explained = (
        "What the critic knew of the value targets before it saw them. 1 is everything, 0 no more than their "
        "mean. Triangles: below −1."
    )
    loss = "Mean squared error of the critic after its fit, in units of the targets’ variance."
    speed = "Environment steps per second, all seeds together. Compilation slows the first iterations."
    return [
        *_simple(run, "entropy", "Entropy", entropy),
        *_simple(run, "explained_variance", "Explained variance", explained, include=[0, 1], floor=-1),
        *_simple(run, "value_loss", "Value loss", loss, log="auto"),
        *_simple(run, "steps_per_second", "Speed", speed, include=[0]),
    ]


def _how_averaged(run: RunData) -> str:
    """What lines and bands are, for all charts of the page."""
    said = []
    if run.num_seeds > 1:
        said.append(
            f"Lines are interquartile means of {run.num_seeds} seeds; "
            "the stronger band holds the middle half of them, the fainter all."
        )
    per_point = len(run.iteration) / (len(run.edges) - 1)
    if per_point > 1:
        band = "" if run.num_seeds > 1 else "; the band spans them"
        said.append(f"Each point is the mean of about {_figure(per_point, 2)} iterations{band}.")
    return " ".join(said)


def sections(run: RunData) -> list[Spec]:
    """The page's charts in order, under headings."""
    certificate = [
        *kl_chart(run),
        *improvement_chart(run),
        *total_variation_chart(run),
        *effective_sample_chart(run),
    ]
    return [
        {
            "title": "Learning",
            "lead": _how_averaged(run),
            "charts": [return_chart(run), *evaluation_chart(run)],
        },
        {
            "title": "Step certificate",
            "lead": "How far each step went, and whether it kept its promise.",
            "charts": certificate,
        },
        {"title": "Policy and critic", "lead": "", "charts": health_charts(run)},
        {
            "title": "More measurements",
            "lead": "The rule’s own, and the episodes’.",
            "small": True,
            "charts": own_charts(run),
        },
    ]


def render(run: RunData) -> str:
    """The whole page as text."""
    parts = sections(run)
    charts = [chart for part in parts for chart in part["charts"]]
    data = {
        "steps": _exact(bucket_mean(run.env_steps[:, None], run.edges)[:, 0]),
        "first": run.iteration[run.edges[:-1]].tolist(),
        "last": run.iteration[run.edges[1:] - 1].tolist(),
        "charts": [{key: value for key, value in chart.items() if key != "readout"} for chart in charts],
    }
    style, script = _resource("style.css"), _resource("charts.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = f"{_rule_title(run)} on {run.config['env']}"
    return Template(_resource("page.html")).substitute(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:",
        title=escape(title),
        rule=escape(_rule_title(run)),
        env=escape(run.config["env"]),
        name=escape(run.name),
        style=style,
        headline=_headline_html(run),
        sections=_sections_html(parts),
        rejected=_rejected_html(run),
        configuration=_configuration_html(run),
        data=embed(data),
        script=script,
    )


def embed(data: Any) -> str:
    """JSON that may stand inside a script element: ASCII, and without `<`, `>` and `&`."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _exact(values: np.ndarray) -> list[int]:
    return [round(value) for value in values.tolist()]


def _resource(name: str) -> str:
    return resources.files("klimb.runs").joinpath("report_page", name).read_text(encoding="utf-8")


def _rule_title(run: RunData) -> str:
    name = run.config["rule"]["name"]
    known = {"trpo": "TRPO", "ppo": "PPO", "reinforce": "REINFORCE", "kl-penalty": "KL penalty"}
    return known.get(name, name.replace("-", " ").capitalize() if name in RULES else name)


def _reason(status: str) -> str:
    """KL_TOO_LARGE → KL too large."""
    words = [word if word in ("KL", "CG") else word.lower() for word in status.split("_")]
    return " ".join(words)


def _message(status: str) -> str:
    return Status[status].message if status in Status.__members__ else ""


def headline(run: RunData) -> list[tuple[str, str, str]]:
    """(name, value, detail) of the numbers at the top."""
    tiles = []
    count = len(run.iteration)
    if run.evaluation is not None:
        value = _with_error(run.evaluation.mean, run.evaluation.standard_error)
        tiles.append(("Final evaluation", value, _evaluation_detail(run.evaluation)))
    returns = run.centre("episode_return")
    ended = np.flatnonzero(np.isfinite(returns))
    if len(ended):
        best = ended[np.argmax(returns[ended])]
        over = "IQM of seeds, " if run.num_seeds > 1 else ""
        tiles.append(("Best mean return", _figure(returns[best]), f"{over}at {_si(run.env_steps[best])} steps"))
        tiles.append(("Last mean return", _figure(returns[ended[-1]]), f"{over}iteration {run.iteration[ended[-1]]:,}"))
    each = "each seed, " if run.num_seeds > 1 else ""
    tiles.append(("Environment steps", _si(run.env_steps[-1]), f"{each}{count:,} iteration{'' if count == 1 else 's'}"))
    if run.has("wall_time"):
        tiles.append(("Wall time", _duration(np.nanmax(run.columns["wall_time"])), "compilation included"))
    if run.has("steps_per_second"):
        speed = np.nanmedian(run.columns["steps_per_second"])
        tiles.append(("Steps per second", _si(speed), "median" + (", all seeds" if run.num_seeds > 1 else "")))
    seeds = f"{run.seeds[0]} to {run.seeds[-1]}" if run.num_seeds > 1 else f"number {run.seeds[0]}"
    tiles.append(("Seeds", str(run.num_seeds), seeds))
    rejected, steps = int(run.rejected.sum()), run.status.size
    share = f"{rejected / steps:.1%} of {steps:,}" if rejected else f"of {steps:,}"
    tiles.append(("Rejected steps", f"{rejected:,}", share))
    return tiles


def _evaluation_detail(evaluation: Evaluation) -> str:
    seeds = f" × {len(evaluation.seeds)} seeds" if len(evaluation.seeds) > 1 else ""
    return f"± standard error, {evaluation.episodes} episodes{seeds}"


def _headline_html(run: RunData) -> str:
    tiles = []
    for name, value, detail in headline(run):
        number, *error = value.split(" ± ")
        error_html = f'<span class="error"> ± {escape(error[0])}</span>' if error else ""
        tiles.append(
            f"<div><dt>{escape(name)}</dt><dd><strong>{escape(number)}{error_html}</strong>"
            f"<span>{escape(detail)}</span></dd></div>"
        )
    return "\n".join(tiles)


def _sections_html(parts: list[Spec]) -> str:
    """Headings and empty cards; `charts.js` fills the n-th card with the n-th chart."""
    blocks = []
    for part in parts:
        if not part["charts"]:
            continue
        cards = "\n".join(_card_html(chart) for chart in part["charts"])
        lead = f"<p>{escape(part['lead'].strip())}</p>" if part["lead"].strip() else ""
        kind = "grid small" if part.get("small") else "grid"
        blocks.append(
            f'<section><header><h2>{part["title"]}</h2>{lead}</header>\n<div class="{kind}">\n{cards}\n</div></section>'
        )
    return "\n".join(blocks)


def _card_html(chart: Spec) -> str:
    readout = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in chart.get("readout", [])
    )
    return (
        f'<figure class="card{" wide" if chart.get("wide") else ""}" data-chart>'
        f"<figcaption><h3>{escape(chart['title'])}</h3><p>{escape(chart['about'])}</p></figcaption>"
        + (f'<dl class="readout">{readout}</dl>' if readout else "")
        + '<div class="legend"></div><div class="plot"></div></figure>'
    )


def _rejected_html(run: RunData) -> str:
    counts = rejection_counts(run)
    if not counts:
        return '<p class="quiet">No step was rejected.</p>'
    reasons = "".join(
        f'<li class="bad{i % 4}"><b>{count:,}</b> {escape(_reason(name))}<span>{escape(_message(name))}</span></li>'
        for i, (name, count) in enumerate(counts)
    )
    where = np.argwhere(run.rejected)
    several = run.num_seeds > 1
    rows = "".join(
        f"<tr><td>{run.iteration[i]:,}</td>{f'<td>{run.seeds[s]}</td>' if several else ''}"
        f"<td>{round(run.env_steps[i]):,}</td><td>{escape(_reason(run.status[i, s]))}</td>"
        f'<td title="{escape(_message(run.status[i, s]))}">{escape(_message(run.status[i, s]))}</td></tr>'
        for i, s in where[:MAX_ROWS]
    )
    first = f'<p class="quiet">The first {MAX_ROWS} of {len(where):,}.</p>' if len(where) > MAX_ROWS else ""
    head = (
        f"<th>Iteration</th>{'<th>Seed</th>' if several else ''}<th>Steps</th><th>Reason</th><th>Cause and remedy</th>"
    )
    return (
        f'<ul class="reasons">{reasons}</ul>{first}<div class="scroll" tabindex="0">'
        f'<table class="rejected"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _defaults(name: str) -> Spec:
    """Default of every field of a rule (or of the options, under the name `options`)."""
    cls = TrainOptions if name == "options" else RULES.get(name)
    if cls is None:
        return {}
    fields = dataclasses.fields(cls)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def _setting(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return " × ".join(map(str, value)) or "none"
        case int() if abs(value) >= 10_000:
            return f"{value:,}"
    return str(value)


def _configuration_html(run: RunData) -> str:
    """The rule and how to repeat the run on the left, the training's options on the right."""
    rule, options = run.config["rule"], run.config["options"]
    settings = {key: value for key, value in rule.items() if key != "name"}
    left = _settings_html(_rule_title(run), settings, _defaults(rule["name"]))
    right = _settings_html("Training", options, _defaults("options"))
    repeat = f'<div class="panel"><h3>To repeat this run</h3>{_command_html(run)}</div>'
    return f"<div>{left}{repeat}</div>\n<div>{right}</div>"


def _settings_html(title: str, values: Spec, defaults: Spec) -> str:
    rows = "".join(_setting_html(key, value, defaults.get(key, value)) for key, value in values.items())
    return f'<div class="panel"><h3>{escape(title)}</h3><table><tbody>{rows}</tbody></table></div>'


def _setting_html(name: str, value: Any, default: Any) -> str:
    changed = _listed(value) != _listed(default)
    note = f"<td>default {escape(_setting(default))}</td>" if changed else "<td></td>"
    return (
        f"<tr{' class=changed' if changed else ''}><th>{escape(name)}</th><td>{escape(_setting(value))}</td>{note}</tr>"
    )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def command(config: Spec) -> list[str]:
    """The command line that repeats a run, quoted, word group by word group: what differs from its default.

    The number of environment steps is always said.
    """
    rule = config["rule"]
    groups = [["klimb", "train", rule["name"], config["env"]]]
    for values, defaults in ((config["options"], _defaults("options")), (rule, _defaults(rule["name"]))):
        for key, value in values.items():
            changed = _listed(value) != _listed(defaults.get(key, value))
            if key != "name" and (changed or key == "env_steps"):
                groups.append(_flag(key, value))
    return [shlex.join(group) for group in groups]


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    match value:
        case bool():
            return [f"--{flag}" if value else f"--no-{flag}"]
        case list() | tuple():
            return [f"--{flag}", *map(str, value)]
        case None:
            return [f"--{flag}", "None"]
    return [f"--{flag}", str(value)]


def _command_html(run: RunData) -> str:
    if run.config["rule"]["name"] not in RULES:
        return '<p class="quiet">The rule is not one of klimb’s own: repeat this run from Python.</p>'
    words = " ".join(f"<span>{escape(group)}</span>" for group in command(run.config))
    return f'<pre class="command"><code>{words}</code></pre>'


def _figure(value: int | float, digits: int = 4) -> str:
    """Significant digits without an exponent where that is readable: 1,234  0.00973  2.5e−7."""
    value = float(value)
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e6:
        return _si(value)
    if 0 < size < 1e-4:
        text = f"{value:.{digits - 2}e}".replace("e-0", "e-")
    else:
        decimals = digits - 1 - math.floor(math.log10(size)) if size else 0
        text = f"{value:,.{max(decimals, 0)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


def _si(value: float) -> str:
    """499,712 → 500k with three digits: 1.23M, 45.6k, 812."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{suffix}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def _with_error(mean: float, error: float) -> str:
    """Both with the decimals that two digits of the error deserve."""
    if not (math.isfinite(error) and error > 0):
        return f"{_figure(mean)} ± 0" if error == 0 else _figure(mean)
    decimals = int(np.clip(1 - math.floor(math.log10(error)), 0, 4))
    return f"{mean:,.{decimals}f} ± {error:,.{decimals}f}".replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
