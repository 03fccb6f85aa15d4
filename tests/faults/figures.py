"""Times of a campaign, from the trainers' own records: how long work stood still, how much counted."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.faults.schedule import AIMED
from tests.faults.spools import Record
from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.jobs.v1.events_pb2 import JobEvent

_STALL = 10.0  # medians: a longer pause between two steps is no step
_SLOT_SECONDS = 1.0  # a job that stays longer in the queue waits for room, or rests
_AFTERMATH = 10.0  # seconds in which a process that was killed or stopped finds back into its work
_WAITING = (state_pb2.JOB_STATE_QUEUED, state_pb2.JOB_STATE_PAUSED)


@dataclass(frozen=True)
class Recovery:
    """One death of a trainer and what came after it.

    `seconds`: to the next step of its job; `queued`: of those, in which the job waited in the queue;
    `disturbed`: whether another fault was at work meanwhile.
    """

    job: str
    epoch: int
    died: float
    seconds: float
    queued: float
    disturbed: bool

    @property
    def undisturbed(self) -> bool:
        """Whether nothing else was in the way: no other fault, and no other job in its slot."""
        return not self.disturbed and self.queued < _SLOT_SECONDS


def recoveries(
    deaths: Iterable[Mapping[str, Any]],
    records: Mapping[str, Sequence[Record]],
    moves: Mapping[str, Sequence[tuple[float, int]]],
    blows: Sequence[Mapping[str, Any]] = (),
) -> list[Recovery]:
    """Returns how each death of a trainer was got over; those after which its job made no step are left out.

    `moves`: of each job, when it came into which state. `blows`: facts of the history.
    """
    found: dict[tuple[str, int], Recovery] = {}
    for death in deaths:
        job, epoch, died = death["job"], death["epoch"], death["time"]
        if (job, epoch) in found:
            continue  # another rank, or a blow to what was dead already
        later = [r.time for r in records.get(job, ()) if r.epoch > epoch and r.time > died]
        if later:
            back = min(later)
            queued = _queued(moves.get(job, ()), died, back)
            disturbed = any(_disturbs(blow, f"{job}-{epoch}", died, back) for blow in blows)
            found[job, epoch] = Recovery(job, epoch, died, back - died, queued, disturbed)
    return list(found.values())


def moves_of(events: Iterable[JobEvent]) -> list[tuple[float, int]]:
    """Returns when, in Unix seconds, a job came into which state."""
    return [
        (event.time.ToMicroseconds() / 1e6, event.state_changed.to_state)
        for event in events
        if event.WhichOneof("event") == "state_changed"
    ]


def _queued(moves: Sequence[tuple[float, int]], begin: float, end: float) -> float:
    """Seconds between two times that a job spent in the queue, at rest or on the way to rest."""
    total = 0.0
    for (since, state), (until, _) in pairwise([*moves, (end, 0)]):
        if state in _WAITING:
            total += max(0.0, min(until, end) - max(since, begin))
    return total


def _disturbs(blow: Mapping[str, Any], attempt: str, died: float, back: float) -> bool:
    """Whether a fault was at work between a death and the next step. Its own blow does not count, nor do
    those against the trainers of other jobs."""
    if not blow["hit"] or blow["hit"].startswith(attempt) or blow["fault"] in AIMED:
        return False
    return bool(blow["began"] < back and blow["time"] + _AFTERMATH > died)


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
