"""The charts of the step certificate: each step's length, its predicted and realised improvement, and bounds."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from klimb.improve.divergences import total_variation_bound
from klimb.report.averages import Column
from klimb.report.calibration import calibrate, share_within
from klimb.report.data import RunData, Spec, aligned_to_step, improvement_pairs, rejection_counts
from klimb.report.lines import json_number, json_numbers, line_chart, line_with_spread, mean_line
from klimb.report.text import format_number, reason, sentence, si, with_error

MAX_DOTS = 1500


def certificate_charts(run: RunData) -> list[Spec]:
    """All charts of the step certificate for which a run has the metrics."""
    return [
        *kl_chart(run),
        *improvement_chart(run),
        *total_variation_chart(run),
        *effective_sample_chart(run),
        *lower_bound_chart(run),
        *excess_chart(run),
    ]


def kl_chart(run: RunData) -> list[Spec]:
    """The KL in both directions, with the limit on the constrained one; rejected steps are marked."""
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
        kind = "limit" if enforced else "target"
        about += " A step beyond the limit is rejected." if enforced else " The target is not enforced."
        levels = [{"value": limit, "label": f"{kind}{', enforced' if enforced else ''}: {format_number(limit)}"}]
        if run.has(main) and limit > 0:
            readout.append(("used on average", f"{np.nanmean(run.of_accepted(main)) / limit:.0%} of the {kind}"))
    readout += _standard_error(run, main)
    layers += _rejection_marks(run)
    return [
        line_chart("KL divergence", about, layers, levels=levels, readout=readout, include=[0], log="auto", unit="nats")
    ]


def _worst_states(run: RunData, colors: dict[str, int]) -> list[Spec]:
    """The largest KL over states, in both directions; older records have only the constrained one."""
    labels = {"kl_old_new": "worst state, old‖new", "kl_new_old": "worst state, new‖old"}
    lines = [(f"{name}_max", labels[name], color) for name, color in colors.items() if run.has(f"{name}_max")]
    if not lines and run.has("kl_max"):
        lines = [("kl_max", "worst state", 4)]
    return [
        mean_line(run, run.of_accepted(name), label, color, width=1.25, hidden=True) for name, label, color in lines
    ]


def _standard_error(run: RunData, name: str) -> list[tuple[str, str]]:
    """The relative standard error of the mean over states, its median over steps, as a readout."""
    if not (run.has(name) and run.has(f"{name}_se")):
        return []
    mean, error = run.of_accepted(name), run.of_accepted(f"{name}_se")
    relative = np.divide(error, mean, out=np.full(mean.shape, np.nan), where=mean > 0)
    if not np.isfinite(relative).any():
        return []
    return [("standard error of the mean", f"{format_number(np.nanmedian(relative) * 100, 2)}%")]


def _rejection_marks(run: RunData) -> list[Spec]:
    """Rejected steps by reason: [point, count]. The counts of all points add up to the number of rejected steps."""
    bucket = np.repeat(np.arange(len(run.edges) - 1), np.diff(run.edges))
    marks = []
    for color, (name, total) in enumerate(rejection_counts(run)):
        per_bucket = np.bincount(bucket, weights=(run.status == name).sum(axis=1), minlength=len(run.edges) - 1)
        points = [[int(i), int(per_bucket[i])] for i in np.flatnonzero(per_bucket)]
        label = f"rejected: {reason(name)} ({total:,})"
        marks.append({"type": "marks", "label": label, "color": color % 4, "status": name, "points": points})
    return marks


def improvement_chart(run: RunData) -> list[Spec]:
    """Predicted against realised improvement of accepted steps, with a fitted line and its numbers."""
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
        "One dot per step: the improvement predicted by the surrogate, and the improvement measured on the next batch "
        "with the same critic. On the dashed line both are equal"
    )
    about += "; the solid line is fitted, with each step weighted by its standard errors." if line is not None else "."
    if len(shown) < total:
        about += f" {len(shown):,} of {total:,} steps are drawn; the numbers are computed from all of them."
    chart: Spec = {
        "kind": "scatter",
        "title": "Predicted and realised improvement",
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
        readout.append(("slope", f"{with_error(line.slope, line.slope_se)} realised per unit predicted"))
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
            ("realised in total", f"{np.sum(realised) / np.sum(predicted):.0%} of the prediction".replace("-", "−"))
        )
    return readout


def total_variation_chart(run: RunData) -> list[Spec]:
    """The total variation, mean and worst state, each with the upper bound that the KL implies.

    TV is symmetric, so both directions of KL bound it; the bound is concave, so the mean TV is below the bound
    of the mean KL. The recorded bound is tighter: the mean over states of each state's own bound.
    """
    layers = []
    if run.has("tv_max"):
        layers += [mean_line(run, run.of_accepted("tv_max"), "worst state", 2)]
        layers += _bound_line(run, "tv_max_bound", ["kl_max"], "bound, worst state", 2)
    if run.has("tv"):
        layers += line_with_spread(run, run.of_accepted("tv"), "mean over states")
        layers += _bound_line(run, "tv_bound", ["kl_old_new", "kl_new_old"], "bound, mean", 1)
    if layers and run.has("state_mismatch_bound"):
        label = "bound on the change of the state distribution"
        mismatch = run.of_accepted("state_mismatch_bound")
        layers.append(mean_line(run, mismatch, label, 4, dash=True, width=1.25, hidden=True))
    about = (
        "The largest change that one step made to the probability of any set of actions. "
        "Dashed: the upper bound implied by the KL (Pinsker or Bretagnolle–Huber, whichever is lower)."
    )
    readout = _standard_error(run, "tv")
    return [line_chart("Total variation", about, layers, include=[0], log="auto", readout=readout)] if layers else []


def _bound_line(run: RunData, recorded: str, kl: list[str], label: str, color: int) -> list[Spec]:
    """A bound on the total variation: as recorded, or computed from the KL where it was not recorded."""
    directions = [name for name in kl if run.has(name)]
    bounds = [run.of_accepted(recorded)] if run.has(recorded) else []
    bounds += [tv_bound(run, *directions)] if directions else []
    if not bounds:
        return []
    bound = bounds[0] if len(bounds) == 1 else np.where(np.isfinite(bounds[0]), *bounds)
    return [mean_line(run, bound, label, color, dash=True, width=1.25)]


def tv_bound(run: RunData, *names: str) -> Column:
    """The lowest bound on the total variation that the KLs `names` of a run imply, per iteration and seed."""
    kl = np.fmin.reduce([run.of_accepted(name) for name in names])
    return np.asarray(total_variation_bound(jnp.asarray(kl)), dtype=float)


def effective_sample_chart(run: RunData) -> list[Spec]:
    """The effective sample size of the batch under the new policy."""
    if not run.has("ess"):
        return []
    title, meaning = run.metric("ess")
    layers = line_with_spread(run, run.of_accepted("ess"), title.lower())
    return [line_chart(title, sentence(meaning), layers, include=[1])]


def lower_bound_chart(run: RunData) -> list[Spec]:
    """Predicted and realised improvement of each accepted step and its lower bound, on a symmetric logarithmic axis."""
    if not (run.has("sampled_improvement_bound") and run.accepted.any()):
        return []
    bound, realised = run.of_accepted("sampled_improvement_bound"), aligned_to_step(run, "realised_improvement")
    columns = [(realised, "realised", 1, 1.25)]
    if run.has("predicted_improvement"):
        columns.append((run.of_accepted("predicted_improvement"), "predicted", 2, 1.75))
    columns.append((bound, "sampled lower bound", 3, 1.75))
    layers = [
        mean_line(run, x, label, color, width=width) for x, label, color, width in columns if np.isfinite(x).any()
    ]
    sizes = np.abs(np.concatenate([x[np.isfinite(x)] for x, *_ in columns[:-1]]))
    sizes = sizes[sizes > 0] if (sizes > 0).any() else np.abs(bound[np.isfinite(bound) & (bound != 0)])
    scale = 10.0 ** math.floor(math.log10(np.quantile(sizes, 0.9))) if len(sizes) else 1.0
    about = (
        "Predicted and realised improvement of each accepted step, and the lower bound, which treats the batch as "
        f"exact and is therefore not a guarantee. Linear up to ±{format_number(scale)}, logarithmic beyond."
    )
    readout = [("lower bound, median", format_number(np.nanmedian(bound), 3))]
    if np.isfinite(realised).any():
        readout.append(("realised, median", format_number(np.nanmedian(realised), 3)))
    options = {"include": [0], "log": "always", "symlog": scale, "unit": "reward per step", "height": 260}
    return [line_chart("Sampled lower bound and realised improvement", about, layers, readout=readout, **options)]


def excess_chart(run: RunData) -> list[Spec]:
    """The length of each accepted step relative to the longest step whose sampled lower bound is not negative."""
    if not (run.has("step_excess") and run.accepted.any()):
        return []
    excess = run.of_accepted("step_excess")
    known = excess[np.isfinite(excess)]
    title, meaning = run.metric("step_excess")
    about = f"{sentence(meaning)} Steps that learn in reasonable time are far longer than that."
    readout = [
        ("median step", f"{si(np.median(known))} times"),
        ("bound not negative", f"{np.sum(known <= 1):,} of {len(known):,} steps"),
    ]
    layers = line_with_spread(run, excess, title.lower())
    levels = [{"value": 1, "label": "bound 0"}]
    options = {"levels": levels, "readout": readout, "log": "always", "unit": "times"}
    return [line_chart(title, about, layers, **options)]
