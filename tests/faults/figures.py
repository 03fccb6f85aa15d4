"""Times of a campaign, from the trainers' own records: how long work stood still, how much counted."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.faults.spools import Record

_STALL = 10.0  # medians: a longer pause between two steps is no step


def recoveries(deaths: Iterable[Mapping[str, Any]], records: Mapping[str, Sequence[Record]]) -> list[float]:
    """Seconds from each death of a trainer to the next step of its job; jobs that made none are left out."""
    found = []
    for death in deaths:
        later = [
            r.time
            for r in records.get(death["job"], ())
            if r.epoch > death["epoch"] and r.time > death["time"]
        ]
        if later:
            found.append(min(later) - death["time"])
    return found


def effective_share(records: Mapping[str, Sequence[Record]]) -> float | None:
    """Time of the steps that counted over the time from the first step of each job to its last.

    A step that was made again counts once, with the time of its last making. A pause of more than ten median
    steps (a stopped trainer, a restart) counts as one median step.
    """
    useful = wall = 0.0
    for ranks in records.values():
        if len(ranks) < 2:
            continue
        gaps = [b.time - a.time for a, b in pairwise(ranks) if a.epoch == b.epoch and b.step > a.step]
        if not gaps:
            continue
        median = statistics.median(gaps)
        kept: dict[int, float] = {ranks[0].step: median}
        for a, b in pairwise(ranks):
            gap = b.time - a.time
            kept[b.step] = gap if a.epoch == b.epoch and 0 <= gap <= _STALL * median else median
        useful += sum(kept.values())
        times = [record.time for record in ranks]
        wall += max(times) - min(times) + median
    return round(min(useful / wall, 1.0), 4) if wall else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of all do not exceed; None when there is none."""
    ordered = sorted(values)
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3) if ordered else None
