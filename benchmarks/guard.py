"""Has klimb become slower? Three minutes of `make bench-speed` beside its recorded ratios: `make bench-guard`.

Some works of speed.py, each with one of its other contenders and few turns. A work has become slower where the median
of today's ratios lies below all ratios that were recorded. Then the exit status is 1. Nothing is written: the recorded
ratios, `benchmarks/results/speed.json`, change with `make bench-speed` only.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, NamedTuple

from results_file import read_results
from speed import Work, install_peers, measure, works

TURNS = 5
GUARDED = {
    "cartpole-ppo-64x64": "rejax PPO",
    "cartpole-trpo": "sb3-contrib TRPO, 8 environments",
    "halfcheetah-trpo-16": "EnvPool alone, 16 environments",
    "halfcheetah-trpo-64": "EnvPool alone, 64 environments",
    "halfcheetah-ppo": "SBX PPO, 8 environments",
}
"""The works that are measured, and beside whom."""


class Comparison(NamedTuple):
    """Of one work: ratios of klimb's speed to another contender's. low, high: of the turns that were recorded."""

    work: str
    other: str
    recorded: float
    low: float
    high: float
    today: float

    @property
    def is_slower(self) -> bool:
        """By more than recorded turns differ among themselves."""
        return self.today < self.low


def guarded_works() -> list[Work]:
    """The works of speed.py that are measured, as small as they can be."""
    return [
        replace(work, others=tuple(other for other in work.others if other.name == GUARDED[key]), also=(), turns=TURNS)
        for work in works()
        if (key := key_of(work.name)) in GUARDED
    ]


def key_of(name: str) -> str:
    """How a work is called on the command line of speed.py."""
    return name.partition(":")[0]


def compared(result: dict[str, Any], recorded: list[dict[str, Any]]) -> Comparison:
    """Today's ratio of a work beside the recorded one.

    result: of `speed.measure`. recorded: the results of speed.json. SystemExit where they do not have the work.
    """
    ((ours, others),) = result["ratios"].items()
    ((other, today),) = others.items()
    for old in recorded:
        if key_of(old["work"]) == key_of(result["work"]) and other in old["ratios"].get(ours, {}):
            ratio = old["ratios"][ours][other]
            return Comparison(old["work"], other, ratio["median"], ratio["min"], ratio["max"], today["median"])
    name = key_of(result["work"])
    raise SystemExit(f"no ratio of {ours} to {other} is recorded for {name}: run benchmarks/speed.py {name} first")


def said(one: Comparison) -> str:
    """One work, as lines."""
    if one.is_slower:
        lost = 100 * (1 - one.today / one.recorded)
        verdict = f"SLOWER by {lost:.0f} %, and than every turn that was recorded"
    elif one.today > one.high:
        verdict = "faster than every turn that was recorded"
    else:
        verdict = "within the recorded turns"
    recorded = f"recorded {one.recorded:.2f} ({one.low:.2f}–{one.high:.2f})"
    return f"{one.work}\n  klimb / {one.other}: {recorded}, today {one.today:.2f}: {verdict}"


def conclusion(found: list[Comparison]) -> str:
    """What has become slower, in one line."""
    slower = [key_of(one.work) for one in found if one.is_slower]
    if not slower:
        return f"None of {len(found)} works has become slower."
    have = "has" if len(slower) == 1 else "have"
    again = f"python benchmarks/speed.py {' '.join(slower)}"
    return (
        f"{', '.join(slower)} {have} become slower. If the machine was busy, run this again; if not, `{again}` "
        "measures all contenders, and replaces what is recorded."
    )


def main() -> None:
    """Measure, compare and say."""
    install_peers()
    recorded = read_results("speed")["results"]
    found = []
    for work in guarded_works():
        found.append(compared(measure(work), recorded))
        print(said(found[-1]), flush=True)
    print(conclusion(found))
    sys.exit(any(one.is_slower for one in found))


if __name__ == "__main__":
    main()
