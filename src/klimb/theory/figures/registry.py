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
    "kl-directions": Entry("kl_directions", "one Gaussian fitted to two modes: KL(p‖q) covers, KL(q‖p) seeks"),
    "estimator-variance": Entry("estimator_variance", "the noise of the policy gradient, by estimator, measured"),
    "credit": Entry("credit", "what a policy gradient encourages: the weight of every step, by estimator"),
    "bounds": Entry("bounds", "shift of the state distribution between two policies, against 1 − (1 − ε)ᵗ and εt"),
    "tightrope": Entry(
        "tightrope", "a walker who can't get back on the rope: mistakes grow as εT², against the bounds"
    ),
    "policy-iteration": Entry(
        "policy_iteration", "one family, from policy iteration through π e^{A/λ} to the gradient"
    ),
    "trust-region": Entry("trust_region", "surrogate, true improvement and guarantee along the natural direction"),
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
