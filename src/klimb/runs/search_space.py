"""The search space of `klimb tune`: the values that a field may have, as they are typed and as they are written."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from klimb.errors import ConfigError, one_line, shown
from klimb.fields import plain_types
from klimb.runs.changes import OPTIONS, value_of, with_changes
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.sweep_file import value_in_a_name

DIGITS = 6
"""Significant digits of the numbers that are tried."""
MAX_CHOICES = 256
SCALES = {"": (False, False), "log": (True, False), "int": (False, True), "log-int": (True, True)}
"""What stands before LOW:HIGH -> whether the range is logarithmic, and whether its numbers are whole."""
FORMS = "FIELD:LOW:HIGH, FIELD:log:LOW:HIGH, FIELD:int:LOW:HIGH or FIELD:log-int:LOW:HIGH"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included.

    log: whether they are spread evenly over the logarithm. whole: whether they are whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def contains(self, value: Any) -> bool:
        """Whether a value, as a configuration has it, is one of them."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or float(value).is_integer())

    def rounded(self, value: float | int) -> float | int:
        """The number that is tried for a proposed one: with few digits, and inside of the range."""
        if self.whole:
            return round(value)
        return min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))

    @property
    def written(self) -> str:
        """The range as text, which `domain_of` reads."""
        scale = next(name for name, kind in SCALES.items() if kind == (self.log, self.whole))
        ends = [repr(int(end)) if self.whole else repr(end) for end in (self.low, self.high)]
        return ":".join([*([scale] if scale else []), *ends])


@dataclass(frozen=True)
class Choice:
    """Some values, without an order."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        """Each value as text."""
        return [value_in_a_name(value) for value in self.values]

    def contains(self, value: Any) -> bool:
        """Whether a value, as a configuration has it, is one of them."""
        return value_in_a_name(value) in self.labels

    @property
    def written(self) -> list[Any]:
        """The values as a list, which `domain_of` reads."""
        return [list(value) if isinstance(value, tuple) else value for value in self.values]


Domain = Range | Choice
"""The values that a field may have."""


def search_space(config: RunConfig, over: Mapping[str, Any]) -> dict[str, Domain]:
    """The values that each searched field may have.

    config: of the trials but for these fields. over: `[log:|int:|log-int:]LOW:HIGH`, or a list of values, for each
    training option or field of the rule.
    Raises ConfigError for fields that can't be searched, for ranges that are none, and for values that the field does
    not take.
    """
    if not over:
        raise ConfigError("a search needs a field and its range: --over max_kl:log:1e-3:1e-1")
    return {name: domain_of(config, name, given) for name, given in over.items()}


def domain_of(config: RunConfig, name: str, given: Any) -> Domain:
    """The values that one field may have. config, name, given, errors: as for `search_space`."""
    if name in ("seed", "num_seeds"):
        raise ConfigError(f"{name} can't be searched: every trial is trained with all seeds; set it with --num-seeds K")
    try:
        value_of(config, name)
    except KeyError:
        with_changes(config, {name: None})  # ConfigError, with the nearest name
    if not (isinstance(given, str) or (isinstance(given, Sequence) and not isinstance(given, bytes))):
        raise ConfigError(f"{one_line(name)}: a range such as 'log:1e-3:1e-1' or a list of values, not {shown(given)}")
    domain = _range_of(config, name, given) if isinstance(given, str) else _choice_of(config, name, given)
    for value in (domain.low, domain.high) if isinstance(domain, Range) else domain.values:
        with_changes(config, {name: int(value) if isinstance(domain, Range) and domain.whole else value})
    return domain


def _range_of(config: RunConfig, name: str, text: str) -> Range:
    field = one_line(name)
    *scale, low, high = text.split(":") if text.count(":") in (1, 2) else ["?", "", ""]
    if len(scale) > 1 or "".join(scale) not in SCALES:
        raise ConfigError(f"{field}: {shown(text)} is no range: it is written {FORMS}")
    log, whole = SCALES["".join(scale)]
    ends = [_number(field, end) for end in (low, high)]
    kinds = _kinds(config, name)
    if kinds is not None and not {int, float} & set(kinds):
        raise ConfigError(f"{field} is no number and has no range: name its values, --over {field} VALUE VALUE")
    whole = whole or (kinds is not None and float not in kinds)
    if not ends[0] < ends[1]:
        raise ConfigError(f"{field}: the range {low} to {high} is empty: write LOW:HIGH, with LOW below HIGH")
    if log and ends[0] <= 0:
        raise ConfigError(f"{field}: a logarithmic range begins above 0, not at {low}: choose a larger LOW")
    if whole and not all(end.is_integer() for end in ends):
        raise ConfigError(f"{field} is a whole number, and {low} to {high} are not both: choose whole ones")
    return Range(ends[0], ends[1], log, whole)


def _number(field: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    # Beyond 2⁵³ whole numbers are no longer exact.
    if not abs(number) <= (1e300 if "." in text or "e" in text else 2**53):
        raise ConfigError(f"{field}: {shown(text)} is not a number that a range can end with ({FORMS})")
    return number


def _choice_of(config: RunConfig, name: str, values: Sequence[Any]) -> Choice:
    if not 2 <= len(values) <= MAX_CHOICES:
        raise ConfigError(f"{one_line(name)} has {len(values)} values to choose from: name 2 to {MAX_CHOICES}")
    choice = Choice(tuple(value_of(with_changes(config, {name: value}), name) for value in values))
    if len(set(choice.labels)) < len(values):
        raise ConfigError(f"the values of {one_line(name)} to choose from are not all different")
    return choice


def _kinds(config: RunConfig, name: str) -> list[Any] | None:
    """The types that a field may have; None where they are not known, as of a rule that is not imported."""
    cls = TrainOptions if name in OPTIONS else type(config.rule)
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):  # of a rule of the user's own
        return None
    return plain_types(hints[name]) if name in hints else None
