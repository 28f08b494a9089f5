"""The charts of the page but the certificate's, as specifications that `assets/charts.js` draws."""

from __future__ import annotations

import math

import numpy as np

from klimb.report.averages import bucket_mean
from klimb.report.data import STANDARD_ERRORS, RunData, SeedReturns, Spec
from klimb.report.lines import json_number, json_numbers, line_chart, line_with_spread, mean_line, metric_chart

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
    *STANDARD_ERRORS,
    *("kl_old_new", "kl_new_old", "kl_max", "kl_old_new_max", "kl_new_old_max"),
    *("tv", "tv_max", "tv_bound", "tv_max_bound", "state_mismatch_bound", "ess"),
    *("predicted_improvement", "realised_improvement", "guaranteed_improvement", "step_excess"),
    *("episode_return", "entropy", "explained_variance", "value_loss", "steps_per_second", "wall_time"),
    *("log_likelihood", "held_out_log_likelihood", "env_faults"),
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
