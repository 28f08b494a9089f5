"""The charts of the page, as specifications that `assets/charts.js` draws."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from klimb.improve.divergences import total_variation_bound
from klimb.improve.rule import kl_limit
from klimb.runs.report.averages import Column, bucket_mean
from klimb.runs.report.data import RunData, SeedReturns, Spec, improvement_pairs, rejection_counts
from klimb.runs.report.lines import json_number, json_numbers, line_chart, line_with_spread, mean_line, metric_chart
from klimb.runs.report.text import figure, reason

MAX_DOTS = 1500
MAX_SEED_LINES = 40
MAX_STRIPS = 16


def likelihood_chart(run: RunData) -> Spec:
    """What cloning climbs, and what it is judged by."""
    about = "Mean log-likelihood of the demonstrator’s actions under the policy returned, in nats a row."
    layers = []
    if run.has("held_out_log_likelihood"):
        layers = line_with_spread(run, run.columns["held_out_log_likelihood"], "episodes held out", width=2.25)
    if run.has("log_likelihood"):
        layers.append(mean_line(run, run.columns["log_likelihood"], "episodes trained on", 2, width=1.25))
    return line_chart("Log-likelihood", about, layers, wide=True)


def return_chart(run: RunData) -> Spec:
    """Learning curve against environment steps, with each seed's own line on request."""
    about = "Mean undiscounted return of the episodes that ended in each iteration."
    if not run.has("episode_return"):
        return line_chart("Episode return", f"{about} No episode has ended in this run.", [], wide=True)
    values = run.columns["episode_return"]
    several = values.shape[1] > 1
    layers = line_with_spread(run, values, "interquartile mean of seeds" if several else "mean return", width=2.25)
    if several and run.num_seeds <= MAX_SEED_LINES:
        means = bucket_mean(values, run.edges)
        layers[-1:-1] = [  # under the line of all seeds
            {
                "type": "line",
                "label": "each seed",
                "name": f"seed {seed}",
                "color": 1 + i % 5,
                "values": json_numbers(means[:, i]),
                "hidden": True,
                "width": 1,
            }
            for i, seed in enumerate(run.seeds)
        ]
    levels = []
    if run.evaluation is not None and math.isfinite(run.evaluation.mean):
        levels = [{"value": json_number(run.evaluation.mean), "label": "final evaluation"}]
    return line_chart("Episode return", about, layers, wide=True, height=320, connect=True, levels=levels)


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
    return {"counts": counts.tolist(), "bounds": json_numbers(bounds), "mean": json_number(float(returns.mean()))}


def _strip(seed: SeedReturns) -> Spec:
    """One seed's returns, at most 200 of them: evenly spaced quantiles say the same."""
    shown = np.quantile(seed.returns, np.linspace(0, 1, min(len(seed.returns), 200)))
    mean = json_number(float(seed.returns.mean()))
    return {"label": f"seed {seed.seed}", "mean": mean, "values": json_numbers(shown)}


def kl_chart(run: RunData) -> list[Spec]:
    """KL in both directions, the constrained one first, against its limit; every rejected step is marked."""
    rule = run.config["rule"]
    names = {"old_new": ("kl_old_new", "KL(old‖new)"), "new_old": ("kl_new_old", "KL(new‖old)")}
    limit, enforced, constrained = kl_limit(rule)
    other = "old_new" if constrained == "new_old" else "new_old"
    layers, levels, readout = [], [], []
    main, main_label = names[constrained]
    if run.has(names[other][0]):
        layers.append(mean_line(run, run.of_accepted(names[other][0]), names[other][1], 2, width=1.25))
    if run.has(main):
        layers += line_with_spread(run, run.of_accepted(main), main_label)
        readout.append(("largest step", f"{figure(np.nanmax(run.of_accepted(main)))} nats"))
    if run.has("kl_max"):
        layers.append(mean_line(run, run.of_accepted("kl_max"), "worst state", 4, width=1.25, hidden=True))
    if not layers:
        return []
    about = "How far each accepted step moved the policy: mean over states, in nats."
    if limit is not None:
        word = "limit" if enforced else "target"
        about += " A step beyond the limit is not taken." if enforced else " The target is aimed at, not enforced."
        levels = [{"value": limit, "label": f"{word}{', enforced' if enforced else ''}: {figure(limit)}"}]
        if run.has(main) and limit > 0:
            readout.append(("used on average", f"{np.nanmean(run.of_accepted(main)) / limit:.0%} of the {word}"))
    layers += _rejection_marks(run)
    return [
        line_chart("KL divergence", about, layers, levels=levels, readout=readout, include=[0], log="auto", unit="nats")
    ]


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
        readout.append(("correlation", figure(np.corrcoef(predicted, realised)[0, 1], 2)))
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
        layers += [mean_line(run, run.of_accepted("tv_max"), "worst state", 2)]
        if run.has("kl_max"):
            layers.append(mean_line(run, tv_bound(run, "kl_max"), "bound, worst state", 2, dash=True, width=1.25))
    if run.has("tv"):
        layers += line_with_spread(run, run.of_accepted("tv"), "mean over states")
        directions = [name for name in ("kl_old_new", "kl_new_old") if run.has(name)]
        if directions:
            layers.append(mean_line(run, tv_bound(run, *directions), "bound, mean", 1, dash=True, width=1.25))
    about = (
        "The most that one step changed the probability of any set of actions. "
        "Dashed: the bound that the KL implies (Pinsker or Bretagnolle–Huber, whichever is lower)."
    )
    return [line_chart("Total variation", about, layers, include=[0], log="auto")] if layers else []


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


def health_charts(run: RunData) -> list[Spec]:
    """Whether the policy still explores, what the critic knows, and how fast all of it goes."""
    entropy = "Mean entropy of the policy, in nats: how much it still explores."
    explained = (
        "What the critic knew of the value targets before it saw them. 1 is everything, 0 no more than their "
        "mean. Triangles: below −1."
    )
    loss = "Mean squared error of the critic after its fit, in units of the targets’ variance."
    rows = "Rows of demonstrations" if run.offline else "Environment steps"
    speed = f"{rows} per second, all seeds together. Compilation slows the first iterations."
    return [
        *metric_chart(run, "entropy", "Entropy", entropy),
        *metric_chart(run, "explained_variance", "Explained variance", explained, include=[0, 1], floor=-1),
        *metric_chart(run, "value_loss", "Value loss", loss, log="auto"),
        *metric_chart(run, "steps_per_second", "Speed", speed, include=[0]),
    ]


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
    *("value_loss", "steps_per_second", "wall_time", "log_likelihood", "held_out_log_likelihood"),
}


def own_charts(run: RunData) -> list[Spec]:
    """Every metric that has no chart above: the rule's own, and whatever else was recorded."""
    order = [name for name in run.columns if name not in _OWN] + list(_OWN)
    charts = []
    for name in order:
        if name in _ELSEWHERE or not run.has(name):
            continue
        title, about = _OWN.get(name, (name.replace("_", " ").strip().capitalize() or name, ""))
        charts += metric_chart(run, name, title, about, height=150, log="auto", connect=name == "episode_length")
    return charts
