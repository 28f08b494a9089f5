"""The charts of the step certificate: how far each step went, what it promised and brought, what was guaranteed."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from klimb.improve.divergences import total_variation_bound
from klimb.report.averages import Column
from klimb.report.calibration import calibrate, share_within
from klimb.report.data import RunData, Spec, improvement_pairs, of_the_step, rejection_counts
from klimb.report.lines import json_number, json_numbers, line_chart, line_with_spread, mean_line
from klimb.report.text import format_number, reason, si, with_error

MAX_DOTS = 1500


def certificate_charts(run: RunData) -> list[Spec]:
    return [
        *kl_chart(run),
        *improvement_chart(run),
        *total_variation_chart(run),
        *effective_sample_chart(run),
        *guarantee_chart(run),
        *excess_chart(run),
    ]


def kl_chart(run: RunData) -> list[Spec]:
    """KL in both directions, the constrained one first, against its limit; every rejected step is marked."""
    names = {"old_new": ("kl_old_new", "KL(old‖new)"), "new_old": ("kl_new_old", "KL(new‖old)")}
    limit, enforced, constrained = run.traits.kl
    other = "old_new" if constrained == "new_old" else "new_old"
    layers, levels, readout = [], [], []
    main, main_label = names[constrained]
    if run.has(names[other][0]):
        layers.append(mean_line(run, run.of_accepted(names[other][0]), names[other][1], 2, width=1.25))
    if run.has(main):
        layers += line_with_spread(run, run.of_accepted(main), main_label)
        readout.append(("largest step", f"{format_number(np.nanmax(run.of_accepted(main)))} nats"))
    layers += _worst_states(run, {main: 3, names[other][0]: 4})
    if not layers:
        return []
    about = "How far each accepted step moved the policy: mean over states, in nats."
    if limit is not None:
        word = "limit" if enforced else "target"
        about += " A step beyond the limit is not taken." if enforced else " The target is aimed at, not enforced."
        levels = [{"value": limit, "label": f"{word}{', enforced' if enforced else ''}: {format_number(limit)}"}]
        if run.has(main) and limit > 0:
            readout.append(("used on average", f"{np.nanmean(run.of_accepted(main)) / limit:.0%} of the {word}"))
    readout += _standard_error(run, main)
    layers += _rejection_marks(run)
    return [
        line_chart("KL divergence", about, layers, levels=levels, readout=readout, include=[0], log="auto", unit="nats")
    ]


def _worst_states(run: RunData, colors: dict[str, int]) -> list[Spec]:
    """The largest KL over states, in each direction that has one; older records have only the constrained one."""
    each = {"kl_old_new": "worst state, old‖new", "kl_new_old": "worst state, new‖old"}
    lines = [(f"{name}_max", each[name], color) for name, color in colors.items() if run.has(f"{name}_max")]
    if not lines and run.has("kl_max"):
        lines = [("kl_max", "worst state", 4)]
    return [
        mean_line(run, run.of_accepted(name), label, color, width=1.25, hidden=True) for name, label, color in lines
    ]


def _standard_error(run: RunData, name: str) -> list[tuple[str, str]]:
    """How exact the mean over states is, as a readout: the median over steps of its relative standard error."""
    if not (run.has(name) and run.has(f"{name}_se")):
        return []
    mean, error = run.of_accepted(name), run.of_accepted(f"{name}_se")
    relative = np.divide(error, mean, out=np.full(mean.shape, np.nan), where=mean > 0)
    if not np.isfinite(relative).any():
        return []
    return [("standard error of the mean", f"{format_number(np.nanmedian(relative) * 100, 2)}%")]


def _rejection_marks(run: RunData) -> list[Spec]:
    """Rejected steps by reason: [point, how many]. None is lost to averaging: the counts add up to all of them."""
    bucket = np.repeat(np.arange(len(run.edges) - 1), np.diff(run.edges))
    marks = []
    for color, (name, total) in enumerate(rejection_counts(run)):
        per_bucket = np.bincount(bucket, weights=(run.status == name).sum(axis=1), minlength=len(run.edges) - 1)
        points = [[int(i), int(per_bucket[i])] for i in np.flatnonzero(per_bucket)]
        label = f"rejected: {reason(name)} ({total:,})"
        marks.append({"type": "marks", "label": label, "color": color % 4, "status": name, "points": points})
    return marks


def improvement_chart(run: RunData) -> list[Spec]:
    """Predicted against realised improvement of accepted steps, with what the whole cloud says."""
    pairs = improvement_pairs(run)
    total = len(pairs["predicted"])
    if total == 0:
        return []
    shown = np.unique(np.linspace(0, total - 1, min(total, MAX_DOTS)).astype(np.int64))
    points = {name: json_numbers(values[shown]) for name, values in pairs.items()}
    last = max(int(run.iteration[-1]), 1)
    points["group"] = np.minimum(pairs["iteration"][shown] * 4 // (last + 1), 3).tolist()
    measured = [pairs[name] for name in ("predicted", "predicted_se", "realised", "realised_se")]
    line, within = calibrate(*measured), share_within(*measured)
    about = (
        "One dot a step: what its surrogate promised, and what the next batch measured under the same critic. "
        "On the dashed line the promise was kept exactly"
    )
    about += "; the solid one is fitted, each step weighted by its errors." if line is not None else "."
    if len(shown) < total:
        about += f" {len(shown):,} of {total:,} steps are drawn; the numbers are of all."
    chart: Spec = {
        "kind": "scatter",
        "title": "Promised and kept",
        "about": about,
        "points": points,
        "groups": ["first quarter", "second", "third", "last quarter of training"],
        "xLabel": "predicted improvement, reward per step",
        "yLabel": "realised",
    }
    readout = []
    if line is not None:
        chart["fit"] = {
            "label": "calibration",
            "slope": json_number(line.slope),
            "intercept": json_number(line.intercept),
            "span": json_numbers(np.array([pairs["predicted"].min(), pairs["predicted"].max()])),
        }
        readout.append(("slope", f"{with_error(line.slope, line.slope_se)} kept of each unit promised"))
    if within is not None:
        readout.append(("within 2 standard errors", f"{within:.0%}"))
    return [{**chart, "readout": readout + _improvement_readout(pairs["predicted"], pairs["realised"])}]


def _improvement_readout(predicted: np.ndarray, realised: np.ndarray) -> list[tuple[str, str]]:
    readout = []
    if len(predicted) > 2 and np.ptp(predicted) > 0 and np.ptp(realised) > 0:
        readout.append(("correlation", format_number(np.corrcoef(predicted, realised)[0, 1], 2)))
    readout.append(("improved", f"{np.mean(realised > 0):.0%} of {len(realised):,} steps"))
    if np.sum(predicted) > 0:
        readout.append(
            ("kept in total", f"{np.sum(realised) / np.sum(predicted):.0%} of the promise".replace("-", "−"))
        )
    return readout


def total_variation_chart(run: RunData) -> list[Spec]:
    """Total variation, mean and worst, each under the bound its KL implies.

    TV is symmetric, so both directions of KL bound it; the bound is concave, so the mean TV is below the bound
    of the mean KL. What was recorded is tighter: the mean over states of each state's own bound.
    """
    layers = []
    if run.has("tv_max"):
        layers += [mean_line(run, run.of_accepted("tv_max"), "worst state", 2)]
        layers += _bound_line(run, "tv_max_bound", ["kl_max"], "bound, worst state", 2)
    if run.has("tv"):
        layers += line_with_spread(run, run.of_accepted("tv"), "mean over states")
        layers += _bound_line(run, "tv_bound", ["kl_old_new", "kl_new_old"], "bound, mean", 1)
    if layers and run.has("state_mismatch_bound"):
        label = "bound on the shift of states visited"
        shift = run.of_accepted("state_mismatch_bound")
        layers.append(mean_line(run, shift, label, 4, dash=True, width=1.25, hidden=True))
    about = (
        "The most that one step changed the probability of any set of actions. "
        "Dashed: the bound that the KL implies (Pinsker or Bretagnolle–Huber, whichever is lower)."
    )
    readout = _standard_error(run, "tv")
    return [line_chart("Total variation", about, layers, include=[0], log="auto", readout=readout)] if layers else []


def _bound_line(run: RunData, recorded: str, kl: list[str], label: str, color: int) -> list[Spec]:
    """A bound on the total variation: as recorded, or from the KL where a record lacks it."""
    directions = [name for name in kl if run.has(name)]
    bounds = [run.of_accepted(recorded)] if run.has(recorded) else []
    bounds += [tv_bound(run, *directions)] if directions else []
    if not bounds:
        return []
    bound = bounds[0] if len(bounds) == 1 else np.where(np.isfinite(bounds[0]), *bounds)
    return [mean_line(run, bound, label, color, dash=True, width=1.25)]


def tv_bound(run: RunData, *names: str) -> Column:
    """The least of the bounds that these KLs put on the total variation, per iteration and seed."""
    kl = np.fmin.reduce([run.of_accepted(name) for name in names])
    return np.asarray(total_variation_bound(jnp.asarray(kl)), dtype=float)


def effective_sample_chart(run: RunData) -> list[Spec]:
    """How much of the batch still speaks for the new policy."""
    about = "Share of the batch left once its rows are weighted by new/old probability. 1 is an unmoved policy."
    if not run.has("ess"):
        return []
    layers = line_with_spread(run, run.of_accepted("ess"), "effective sample size")
    return [line_chart("Effective sample size", about, layers, include=[1])]


def guarantee_chart(run: RunData) -> list[Spec]:
    """What each accepted step promised, brought, and was sure to bring, on an axis that shows all orders."""
    if not (run.has("guaranteed_improvement") and run.accepted.any()):
        return []
    guaranteed, realised = run.of_accepted("guaranteed_improvement"), of_the_step(run, "realised_improvement")
    columns = [(realised, "realised", 1, 1.25)]
    if run.has("predicted_improvement"):
        columns.append((run.of_accepted("predicted_improvement"), "predicted", 2, 1.75))
    columns.append((guaranteed, "guaranteed at least", 3, 1.75))
    layers = [
        mean_line(run, x, label, color, width=width) for x, label, color, width in columns if np.isfinite(x).any()
    ]
    real = np.abs(np.concatenate([x[np.isfinite(x)] for x, *_ in columns[:-1]]))
    real = real[real > 0] if (real > 0).any() else np.abs(guaranteed[np.isfinite(guaranteed) & (guaranteed != 0)])
    scale = 10.0 ** math.floor(math.log10(np.quantile(real, 0.9))) if len(real) else 1.0
    about = (
        "What each accepted step promised and brought, and the least it was sure to bring, the batch taken as exact. "
        f"Linear up to ±{format_number(scale)}, logarithmic beyond."
    )
    readout = [("guaranteed, median", format_number(np.nanmedian(guaranteed), 3))]
    if np.isfinite(realised).any():
        readout.append(("realised, median", format_number(np.nanmedian(realised), 3)))
    options = {"include": [0], "log": "always", "symlog": scale, "unit": "reward per step", "height": 260}
    return [line_chart("Guarantee and reality", about, layers, readout=readout, **options)]


def excess_chart(run: RunData) -> list[Spec]:
    """How many times longer each accepted step is than the longest with a guarantee."""
    if not (run.has("step_excess") and run.accepted.any()):
        return []
    excess = run.of_accepted("step_excess")
    known = excess[np.isfinite(excess)]
    about = (
        "How many times longer each accepted step is than the longest whose improvement is guaranteed. "
        "Steps that learn in reasonable time go far beyond."
    )
    readout = [
        ("median step", f"{si(np.median(known))} times"),
        ("guaranteed", f"{np.sum(known <= 1):,} of {len(known):,} steps"),
    ]
    layers = line_with_spread(run, excess, "beyond the guarantee")
    levels = [{"value": 1, "label": "guaranteed"}]
    options = {"levels": levels, "readout": readout, "log": "always", "unit": "times"}
    return [line_chart("Beyond the guarantee", about, layers, **options)]
