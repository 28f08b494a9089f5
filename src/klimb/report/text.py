"""Numbers, durations, settings and reasons as text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from klimb.types import Status


def format_number(value: int | float, digits: int = 4) -> str:
    """A number without an exponent where that is readable: 1,234  0.00973  2.50e−7; – where it is not finite.

    value: the number. digits: significant digits.
    """
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
    """A number with three digits and a suffix: 1.23M, 500k, 812."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{suffix}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def with_error(mean: float, error: float) -> str:
    """`mean ± error`, both with as many decimals as give the error two digits.

    mean: the value. error: its standard error; not shown where it is not finite.
    """
    if not (math.isfinite(error) and error > 0):
        return f"{format_number(mean)} ± 0" if error == 0 else format_number(mean)
    decimals = int(np.clip(1 - math.floor(math.log10(error)), 0, 4))
    return f"{mean:,.{decimals}f} ± {error:,.{decimals}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """A time in words: 12.3 s, 4 min 5 s, 2 h 30 min."""
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
    """Cause and remedy of a status, by its name; empty for a name that is not klimb's."""
    return Status[status].message if status in Status.__members__ else ""


def sentence(meaning: str) -> str:
    """A meaning as a sentence: capitalised, unless it begins with a symbol, and with a full stop."""
    first = meaning.split(" ", 1)[0]
    capital = first.isascii() and first.isalpha() and len(first) > 1
    return f"{meaning[:1].upper() if capital else meaning[:1]}{meaning[1:]}." if meaning else ""


def setting(name: str, value: Any, times: str = " × ") -> str:
    """A setting's value: sizes with × between them, a range as `low to high`.

    name: of the field; one that ends in `_range` holds the ends of a range. value: as in the configuration.
    times: is written between sizes.
    """
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case [int() | float() as low, int() | float() as high] if name.endswith("_range"):
            return f"{low:g} to {high:g}"
        case list() | tuple():
            return times.join(map(str, value)) or "none"
        case int() if abs(value) >= 10_000:
            return f"{value:,}"
    return str(value)
