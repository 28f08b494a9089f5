"""How well predicted improvements match the realised ones: a fitted line, and the share within two standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Pairs = Float[np.ndarray, " pairs"]


@dataclass(frozen=True)
class Calibration:
    """realised ≈ intercept + slope · predicted. Slope 1 and intercept 0: predictions are right on average.

    slope_se: standard error of the slope.
    """

    slope: float
    slope_se: float
    intercept: float


def calibrate(predicted: Pairs, predicted_se: Pairs, realised: Pairs, realised_se: Pairs) -> Calibration | None:
    """Weighted least squares, w = 1/(predicted_se² + realised_se²); None for fewer than 3 pairs or equal predictions.

    predicted, realised: improvements, one pair per step. predicted_se, realised_se: their standard errors; NaN where
    unknown.
    The standard error of the slope follows from the residuals, √(Σ w r² / ((n − 2) Σ w (x − x̄)²)), so it is right for
    equal weights too. Errors of the predictions bias the slope towards 0.
    """
    if len(predicted) < 3:
        return None
    with np.errstate(all="ignore"):  # overflow ends in a line that is not finite, for which None is returned
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
    """Weights of mean 1. A pair that lacks an error gets the median weight; all are equal if every pair lacks one."""
    weight = np.where((predicted_se > 0) & (realised_se > 0), 1 / (predicted_se**2 + realised_se**2), np.nan)
    known = np.isfinite(weight)
    if not known.any():
        return np.ones(len(weight))
    weight = np.where(known, weight, np.median(weight[known]))
    return weight / np.mean(weight)


def share_within(predicted: Pairs, predicted_se: Pairs, realised: Pairs, realised_se: Pairs) -> float | None:
    """Share of pairs that differ by at most 2 combined standard errors; None where no pair has both errors.

    predicted, predicted_se, realised, realised_se: as for `calibrate`.
    """
    known = np.isfinite(predicted_se) & np.isfinite(realised_se)
    if not known.any():
        return None
    combined = np.hypot(predicted_se, realised_se)[known]
    return float(np.mean(np.abs(realised - predicted)[known] <= 2 * combined))
