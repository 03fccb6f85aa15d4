"""Buckets: what is left of the points of a span of time, and how buckets of one span become one."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith_metrics import chunks, segments
from tunesmith_metrics.series import Floats, Ints, Points


@dataclass(frozen=True, slots=True)
class Buckets:
    """Buckets of one key by time; all arrays have shape (n,). A single point is a bucket with one count.

    `starts` and `last_steps` (the place of the last point) are Unix times in seconds.
    """

    starts: Ints
    counts: Ints
    last_steps: Ints
    lasts: Floats
    lows: Floats
    highs: Floats
    means: Floats

    def __len__(self) -> int:
        return len(self.starts)


def of_points(steps: Ints, values: Floats) -> Buckets:
    """Returns points, one a step, as buckets of one point."""
    return Buckets(steps, np.ones(len(steps), dtype=np.int64), steps, values, values, values, values)


def merge(parts: list[Buckets], starts: list[Ints]) -> Buckets:
    """Returns buckets that begin at `starts`, given for each part: those of one start are one."""
    start = np.concatenate(starts)
    arrays = zip(*(_arrays(part) for part in parts), strict=True)
    whole = Buckets(*(np.concatenate(each) for each in arrays))
    order = np.lexsort((whole.last_steps, start))
    start, whole = start[order], choose(whole, order)
    first = np.flatnonzero(np.append(True, start[1:] != start[:-1])) if len(start) else np.zeros(0, np.intp)
    if len(first) == len(start):
        return Buckets(start, *_arrays(whole)[1:])
    last = np.append(first[1:], len(start)) - 1
    counts = np.add.reduceat(whole.counts, first)
    return Buckets(
        start[first],
        counts,
        whole.last_steps[last],
        whole.lasts[last],
        np.fmin.reduceat(whole.lows, first),
        np.fmax.reduceat(whole.highs, first),
        np.add.reduceat(whole.means * whole.counts, first) / counts,
    )


def widen(buckets: Buckets, seconds: int) -> Buckets:
    """Returns wider buckets that begin at multiples of `seconds`."""
    return merge([buckets], [buckets.starts // seconds * seconds])


def join(parts: list[Buckets]) -> Buckets:
    """Returns the buckets of all parts by time; those of one start are one."""
    return merge(parts, [part.starts for part in parts])


def choose(buckets: Buckets, which: NDArray[Any] | slice) -> Buckets:
    """Returns those of the buckets that indices, a mask or a slice choose."""
    return Buckets(*(array[which] for array in _arrays(buckets)))


def _arrays(buckets: Buckets) -> list[Any]:
    return [getattr(buckets, each.name) for each in fields(Buckets)]


def pack(buckets: Buckets) -> bytes:
    """Returns buckets as a payload that `unpack` takes; single points cost no more than points."""
    single = bool((buckets.counts == 1).all())
    values = [buckets.lasts] if single else [buckets.lasts, buckets.lows, buckets.highs, buckets.means]
    nothing = np.zeros(len(buckets), dtype=np.int64)
    parts = [Points(buckets.starts, buckets.counts, values[0], buckets.last_steps - buckets.starts)]
    parts += [Points(nothing, nothing, column, nothing) for column in values[1:]]
    return segments.frame([chunks.encode(part) for part in parts])


def unpack(payload: bytes) -> Buckets:
    """Returns the buckets of a payload."""
    head, *others = [chunks.decode(part) for part in segments.unframe(payload)]
    lows, highs, means = [part.values for part in others] or [head.values] * 3
    last_steps = head.steps + head.seqs
    return Buckets(head.steps, head.times_us, last_steps, head.values, lows, highs, means)
