"""How far promises are to be trusted: a line through (promised, brought), and how many agree within their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Pairs = Float[np.ndarray, " pairs"]


@dataclass(frozen=True)
class Calibration:
    """realised ≈ intercept + slope · predicted. A slope of 1 through 0: promises are kept."""

    slope: float
    slope_se: float
    intercept: float


def calibrate(predicted: Pairs, predicted_se: Pairs, realised: Pairs, realised_se: Pairs) -> Calibration | None:
    """Weighted least squares, w = 1/(predicted_se² + realised_se²); None for fewer than 3 pairs or equal promises.

    The error of the slope follows from the scatter about the line, √(Σ w r² / ((n − 2) Σ w (x − x̄)²)), so that it
    holds for equal weights too. A promise's own error flattens the line: a slope below 1 is in part that.
    """
    if len(predicted) < 3:
        return None
    with np.errstate(all="ignore"):  # what is out of range ends as a line that is not finite, which is none
        weight = _weights(predicted_se, realised_se)
        x_mean, y_mean = np.average(predicted, weights=weight), np.average(realised, weights=weight)
        x, y = predicted - x_mean, realised - y_mean
        spread = float(np.sum(weight * x**2))
        if not spread > 1e-12 * float(np.sum(weight * predicted**2)):
            return None
        slope = float(np.sum(weight * x * y)) / spread
        scatter = float(np.sum(weight * (y - slope * x) ** 2)) / (len(predicted) - 2)
        line = Calibration(slope, math.sqrt(scatter / spread), float(y_mean - slope * x_mean))
    return line if all(map(math.isfinite, (line.slope, line.slope_se, line.intercept))) else None


def _weights(predicted_se: Pairs, realised_se: Pairs) -> Pairs:
    """Mean 1. A pair without both errors weighs as much as the median of the others; all the same if none has both."""
    weight = np.where((predicted_se > 0) & (realised_se > 0), 1 / (predicted_se**2 + realised_se**2), np.nan)
    known = np.isfinite(weight)
    if not known.any():
        return np.ones(len(weight))
    weight = np.where(known, weight, np.median(weight[known]))
    return weight / np.mean(weight)


def share_within(predicted: Pairs, predicted_se: Pairs, realised: Pairs, realised_se: Pairs) -> float | None:
    """Share of pairs that differ by at most 2 combined standard errors; None where no pair has both errors."""
    known = np.isfinite(predicted_se) & np.isfinite(realised_se)
    if not known.any():
        return None
    combined = np.hypot(predicted_se, realised_se)[known]
    return float(np.mean(np.abs(realised - predicted)[known] <= 2 * combined))
