"""All charts of the page except those of the step certificate, as specifications that `assets/charts.js` draws."""

from __future__ import annotations

import math

import numpy as np

from klimb.report.averages import bucket_mean
from klimb.report.data import STANDARD_ERRORS, RunData, SeedReturns, Spec
from klimb.report.intervals import of_seed, over_episodes
from klimb.report.lines import (
    json_number,
    json_numbers,
    line_chart,
    line_with_error,
    line_with_spread,
    mean_line,
    metric_chart,
)
from klimb.report.text import format_number

MAX_SEED_LINES = 40
MAX_STRIPS = 16


def likelihood_chart(run: RunData) -> Spec:
    """Behaviour cloning's objective, on the episodes trained on and on those held out."""
    about = "Mean log-likelihood of the demonstrator’s actions under the policy returned, in nats per sample."
    layers = []
    if run.has("held_out_log_likelihood"):
        layers = line_with_spread(run, run.columns["held_out_log_likelihood"], "episodes held out", width=2.25)
    if run.has("log_likelihood"):
        layers.append(mean_line(run, run.columns["log_likelihood"], "episodes trained on", 2, width=1.25))
    return line_chart("Log-likelihood", about, layers, wide=True)


def return_chart(run: RunData) -> Spec:
    """The learning curve over environment steps, with a line per seed that the legend switches on."""
    about = "Mean undiscounted return of the episodes that ended in each iteration; their actions are sampled."
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
        actions = "deterministic" if run.evaluation.deterministic else "sampled actions"
        levels = [{"value": json_number(run.evaluation.mean), "label": f"final evaluation, {actions}"}]
    return line_chart("Episode return", about, layers, wide=True, height=320, connect=True, levels=levels)


def evaluation_curve(run: RunData) -> list[Spec]:
    """Returns of the evaluations during the training, deterministic and sampled; none when there were none."""
    if not run.has("eval_return"):
        return []
    options = run.config["options"]
    about = (
        f"Mean return of {options['eval_episodes']:,} whole episodes in separate environments, about "
        f"every {options['eval_every']:,} environment steps: with the most likely action at every step, and with "
        "sampled actions."
    )
    layers = []
    if run.has("eval_sampled_return"):
        layers += line_with_error(run, "eval_sampled_return", "eval_sampled_return_se", "sampled actions", 2)
    layers += line_with_error(run, "eval_return", "eval_return_se", "deterministic actions", width=2.25)
    until = options.get("until_return")
    levels = [] if until is None else [{"value": json_number(until), "label": "until_return"}]
    title = "Evaluations during the training"
    return [line_chart(title, about, layers, wide=True, height=260, connect=True, levels=levels)]


def evaluation_chart(run: RunData) -> list[Spec]:
    """The returns of the final evaluation: a strip per seed, or a histogram for one seed or for many."""
    seeds = [seed for seed in run.evaluation.seeds if len(seed.returns)] if run.evaluation else []
    if run.evaluation is None or not seeds:
        return []
    returns = np.concatenate([seed.returns for seed in seeds])
    actions = "the most likely action at every step" if run.evaluation.deterministic else "sampled actions"
    about = f"Returns of {len(returns):,} whole episodes after training, with {actions}."
    interval = over_episodes(run.evaluation)
    readout = [("mean", format_number(run.evaluation.mean))]
    if interval is not None:
        about += " The 95 % interval of the mean is that over episodes, by Student’s t, with the policies as they are."
        readout.append(("95 % interval", f"{format_number(interval.low)} to {format_number(interval.high)}"))
    if 1 < len(seeds) <= MAX_STRIPS:
        chart: Spec = {"kind": "strips", "rows": [_strip(seed) for seed in seeds]}
    else:
        ends = {} if interval is None else {"interval": json_numbers(np.array(interval))}
        chart = {"kind": "histogram", "height": 190, "yLabel": "episodes", **_bars(returns), **ends}
    common = {"title": "Final evaluation", "about": about, "readout": readout, "wide": True, "xLabel": "episode return"}
    return [{**common, **chart}]


def _bars(returns: np.ndarray) -> Spec:
    """A histogram; one bar when all returns are equal, as in a solved task."""
    low, high = float(returns.min()), float(returns.max())
    if high - low <= 1e-6 * abs(high):
        counts, bounds = np.array([len(returns)]), np.array([low - 0.5, high + 0.5])
    else:
        counts, bounds = np.histogram(returns, bins=int(np.clip(2 * math.sqrt(len(returns)), 8, 32)))
    return {"counts": counts.tolist(), "bounds": json_numbers(bounds), "mean": json_number(float(returns.mean()))}


def _strip(seed: SeedReturns) -> Spec:
    """One seed's returns; of more than 200, evenly spaced quantiles."""
    shown = np.quantile(seed.returns, np.linspace(0, 1, min(len(seed.returns), 200)))
    mean, interval = json_number(float(seed.returns.mean())), of_seed(seed)
    ends = {} if interval is None else {"interval": json_numbers(np.array(interval))}
    return {"label": f"seed {seed.seed}", "mean": mean, "values": json_numbers(shown), **ends}


def health_charts(run: RunData) -> list[Spec]:
    """Exploration, the critic, and speed."""
    rows = "A step is one sample of the demonstrations. " if run.offline else ""
    return [
        *metric_chart(run, "entropy"),
        *metric_chart(run, "explained_variance", "Triangles: below −1.", include=[0, 1], floor=-1),
        *metric_chart(run, "value_loss", log="auto"),
        *metric_chart(run, "steps_per_second", f"{rows}Compilation slows the first iterations.", include=[0]),
    ]


_LAST = ("surrogate_gain", "episode_length", "episodes")
_ELSEWHERE = {
    *STANDARD_ERRORS,
    *("kl_old_new", "kl_new_old", "kl_max", "kl_old_new_max", "kl_new_old_max", "kl_normalizer"),
    *("tv", "tv_max", "tv_bound", "tv_max_bound", "state_mismatch_bound", "ess"),
    *("predicted_improvement", "realised_improvement", "sampled_improvement_bound", "step_excess"),
    *("episode_return", "entropy", "explained_variance", "value_loss", "steps_per_second", "wall_time"),
    *("tried_kl", "tried_gain"),  # in the table of rejected steps
    *("log_likelihood", "held_out_log_likelihood", "env_faults", "late_rows"),
    *("eval_return", "eval_return_min", "eval_return_max", "eval_length"),
    *("eval_sampled_return", "eval_sampled_return_min", "eval_sampled_return_max", "eval_sampled_length"),
}


def own_charts(run: RunData) -> list[Spec]:
    """Every metric without another chart: the rule's own, others that were recorded, and the common ones."""
    order = dict.fromkeys([*run.traits.metrics, *(name for name in run.columns if name not in _LAST), *_LAST])
    charts = []
    for name in order:
        if name not in _ELSEWHERE:
            charts += metric_chart(run, name, height=150, log="auto", connect=name == "episode_length")
    return charts
