"""The figures by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from klimb.errors import ConfigError, nearest


class Entry(NamedTuple):
    """The module that makes a figure, and what the figure shows, in one line."""

    module: str
    title: str


FIGURES = {
    "fields": Entry("fields", "vanilla and natural gradient fields of the linear-quadratic example"),
    "constraint-sets": Entry("constraint_sets", "the circle, the Fisher ellipse and the true KL contours at one θ"),
    "kl-directions": Entry("kl_directions", "one Gaussian fitted to two modes: KL(p‖q) covers both, KL(q‖p) picks one"),
    "estimator-variance": Entry(
        "estimator_variance", "measured variance of the policy gradient estimate, by advantage estimator"
    ),
    "credit": Entry("credit", "weight of each step in the policy gradient, by advantage estimator"),
    "bounds": Entry("bounds", "shift of the state distribution between two policies, against 1 − (1 − ε)ᵗ and εt"),
    "tightrope": Entry("tightrope", "a tightrope walker: mistakes grow as εT², with the bounds for comparison"),
    "policy-iteration": Entry(
        "policy_iteration", "from policy iteration to the policy gradient: updates π e^{A/λ} for several λ"
    ),
    "trust-region": Entry(
        "trust_region", "surrogate, true improvement and guaranteed improvement along the natural gradient"
    ),
}
"""By the name on the command line."""


SUFFIXES = (".png", ".svg", ".pdf")
"""Formats of a figure's file, by its ending."""


def check_suffix(path: Path) -> None:
    """ConfigError unless a file has the ending of a figure's format. path: that is to be written."""
    if path.suffix not in SUFFIXES:
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        known = f"{', '.join(SUFFIXES[:-1])} and {SUFFIXES[-1]}"
        raise ConfigError(f"{path} {ending}; figures are written as {known}: choose -o {path.stem}.png")


def load(name: str) -> ModuleType:
    """The module of the figure called `name`, with `compute`, `draw` and `summary`. ConfigError for an unknown name."""
    if name not in FIGURES:
        hint = nearest(name, FIGURES) or f" (figures: {', '.join(FIGURES)})"
        raise ConfigError(f"there is no figure {name!r}{hint}")
    return importlib.import_module(f"klimb.theory.figures.{FIGURES[name].module}")
