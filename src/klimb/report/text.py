"""Numbers, durations and reasons as people read them."""

from __future__ import annotations

import math

import numpy as np

from klimb.types import Status


def format_number(value: int | float, digits: int = 4) -> str:
    """Significant digits without an exponent where that is readable: 1,234  0.00973  2.50e−7."""
    value = float(value)
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e6:
        return si(value)
    if 0 < size < 1e-4:
        text = f"{value:.{digits - 2}e}".replace("e-0", "e-")
    else:
        decimals = digits - 1 - math.floor(math.log10(size)) if size else 0
        text = f"{value:,.{max(decimals, 0)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


def si(value: float) -> str:
    """499,712 → 500k with three digits: 1.23M, 45.6k, 812."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{suffix}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def with_error(mean: float, error: float) -> str:
    """Both with the decimals that two digits of the error deserve."""
    if not (math.isfinite(error) and error > 0):
        return f"{format_number(mean)} ± 0" if error == 0 else format_number(mean)
    decimals = int(np.clip(1 - math.floor(math.log10(error)), 0, 4))
    return f"{mean:,.{decimals}f} ± {error:,.{decimals}f}".replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def reason(status: str) -> str:
    """KL_TOO_LARGE → KL too large."""
    words = [word if word in ("KL", "CG") else word.lower() for word in status.split("_")]
    return " ".join(words)


def message(status: str) -> str:
    return Status[status].message if status in Status.__members__ else ""
