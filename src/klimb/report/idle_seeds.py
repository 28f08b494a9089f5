"""What the report says about seeds whose steps were all rejected, from the first one on."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from klimb.report.data import RunData
from klimb.report.text import message, reason

MAX_SEEDS = 8
"""Seeds that are listed by their numbers."""


def idle_seeds(run: RunData) -> str:
    """Sentences about seeds without an accepted step in as many iterations as `max_rejections`, from the first step on.

    run: of the report. Empty where there is no such seed.
    """
    before_first = run.rejected & (np.cumsum(run.accepted, axis=0) == 0)
    idle = before_first.sum(axis=0) >= run.config["options"]["max_rejections"]
    never = idle & ~run.accepted.any(axis=0)
    sentences = [
        _sentences(
            run, before_first, never, "No step{} was accepted: the policy is the one that the training began with."
        ),
        _sentences(run, before_first, idle & ~never, "The first steps{} were all rejected."),
    ]
    return " ".join(filter(None, sentences))


def _sentences(
    run: RunData, rejected: Bool[np.ndarray, "n seeds"], which: Bool[np.ndarray, " seeds"], beginning: str
) -> str:
    """What is said of some seeds. rejected: steps before the first accepted one. which: the seeds; none: nothing."""
    if not which.any():
        return ""
    names, counts = np.unique(run.status[:, which][rejected[:, which]].astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    reasons = " and ".join(f"{counts[i]:,} as {reason(str(names[i]))}" for i in order)
    told = message(str(names[order[0]]))
    remedy = f" {told[:1].upper()}{told[1:]}." if told else ""
    remedy += "" if run.offline else " Rewards or action bounds of an extreme size are a cause too."
    return f"{beginning.format(_of(run, which))} Rejected: {reasons}.{remedy}"


def _of(run: RunData, which: Bool[np.ndarray, " seeds"]) -> str:
    count = int(which.sum())
    if run.num_seeds == 1:
        return ""
    if count == run.num_seeds:
        return f" of any of the {count} seeds"
    seeds = [str(run.seeds[k]) for k in np.flatnonzero(which)[:MAX_SEEDS]]
    more = f" and {count - len(seeds)} more" if count > len(seeds) else ""
    return f" of seed{'' if count == 1 else 's'} {', '.join(seeds)}{more}"
