"""Curves: points out of stored batches, one a step, and buckets with their extremes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one key, in no order; all arrays have shape (n,)."""

    steps: Ints
    times_us: Ints
    values: Floats
    seqs: Ints


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one key, one a step, steps ascending; all arrays have shape (n,)."""

    steps: Ints
    times_us: Ints
    values: Floats


def decode(batch: events_pb2.MetricBatch, keys: frozenset[str] | None = None) -> Iterator[tuple[str, Points]]:
    """Yields the points of a checked batch by key, for all keys or those given."""
    seq = batch.first_seq
    for matrix in batch.matrices:
        rows, columns = len(matrix.step_deltas), len(matrix.key_indices)
        first, seq = seq, seq + rows
        wanted = [(i, batch.keys[k]) for i, k in enumerate(matrix.key_indices)]
        if keys is not None:
            wanted = [(i, key) for i, key in wanted if key in keys]
        if not wanted or not rows:
            continue
        steps = np.cumsum(np.array(matrix.step_deltas, dtype=np.int64))
        times = np.cumsum(np.array(matrix.time_deltas_us, dtype=np.int64))
        values = np.array(matrix.values, dtype=np.float64).reshape(rows, columns)
        seqs = np.arange(first, seq, dtype=np.int64)
        for column, key in wanted:
            yield key, Points(steps, times, values[:, column], seqs)


@dataclass(slots=True)
class Stat:
    """What a batch adds to one key. `regular`: steps ascend strictly."""

    first_step: int
    last_step: int
    last_value: float
    num_points: int
    min_value: float
    max_value: float
    regular: bool


def stats(batch: events_pb2.MetricBatch) -> list[tuple[str, Stat]]:
    """Returns what each matrix of a checked batch adds to its keys, in order. NaN counts for no extreme."""
    found = []
    for matrix in batch.matrices:
        rows = len(matrix.step_deltas)
        if not rows or not matrix.key_indices:
            continue
        steps = np.cumsum(np.array(matrix.step_deltas, dtype=np.int64))
        values = np.array(matrix.values, dtype=np.float64).reshape(rows, -1)
        regular = bool((steps[1:] > steps[:-1]).all())
        last = rows - 1 if regular else int(rows - 1 - np.argmax(steps[::-1]))
        first_step, last_step = int(steps.min()), int(steps[last])
        lows = np.fmin.reduce(values, axis=0).tolist()
        highs = np.fmax.reduce(values, axis=0).tolist()
        lasts = values[last].tolist()
        for column, index in enumerate(matrix.key_indices):
            stat = Stat(first_step, last_step, lasts[column], rows, lows[column], highs[column], regular)
            found.append((batch.keys[index], stat))
    return found


def step_range(batch: events_pb2.MetricBatch) -> tuple[int, int]:
    """Smallest and largest step of a checked batch."""
    lows, highs = [], []
    for matrix in batch.matrices:
        if matrix.step_deltas:
            steps = np.cumsum(np.array(matrix.step_deltas, dtype=np.int64))
            lows.append(int(steps.min()))
            highs.append(int(steps.max()))
    return min(lows), max(highs)


def cut(batch: events_pb2.MetricBatch, start: int, end: int) -> events_pb2.MetricBatch:
    """The records of a batch with sequence numbers in `[start, end)`, as a batch of its own."""
    part = events_pb2.MetricBatch(
        job_id=batch.job_id,
        epoch=batch.epoch,
        rank=batch.rank,
        first_seq=start,
        num_records=end - start,
        keys=batch.keys,
    )
    seq = batch.first_seq
    for matrix in batch.matrices:
        rows, columns = len(matrix.step_deltas), len(matrix.key_indices)
        low, high = max(start - seq, 0), min(end - seq, rows)
        seq += rows
        if low < high:
            part.matrices.append(
                events_pb2.MetricMatrix(
                    key_indices=matrix.key_indices,
                    step_deltas=_cut_deltas(matrix.step_deltas, low, high),
                    time_deltas_us=_cut_deltas(matrix.time_deltas_us, low, high),
                    values=matrix.values[low * columns : high * columns],
                )
            )
    return part


def _cut_deltas(deltas: Sequence[int], low: int, high: int) -> list[int]:
    return [sum(deltas[: low + 1]), *deltas[low + 1 : high]]


class Merger:
    """Brings points of many batches into curves, one point a step.

    Of one step the highest epoch counts, of one epoch the lowest rank, of one rank the latest record.
    """

    def __init__(self, keys: frozenset[str] | None = None) -> None:
        self._keys = keys
        self._parts: dict[str, list[tuple[int, int, Points]]] = {}

    def add(self, batch: events_pb2.MetricBatch) -> None:
        """Takes in a batch."""
        for key, points in decode(batch, self._keys):
            self._parts.setdefault(key, []).append((batch.epoch, batch.rank, points))

    def curves(self, min_step: int | None = None, max_step: int | None = None) -> dict[str, Curve]:
        """Returns the curves by key, sorted by key."""
        found = {key: _merge(self._parts[key], min_step, max_step) for key in sorted(self._parts)}
        return {key: curve for key, curve in found.items() if len(curve.steps)}


def _merge(parts: Sequence[tuple[int, int, Points]], min_step: int | None, max_step: int | None) -> Curve:
    steps = np.concatenate([points.steps for _, _, points in parts])
    times = np.concatenate([points.times_us for _, _, points in parts])
    values = np.concatenate([points.values for _, _, points in parts])
    seqs = np.concatenate([points.seqs for _, _, points in parts])
    sizes = [len(points.steps) for _, _, points in parts]
    epochs = np.repeat(np.array([epoch for epoch, _, _ in parts], dtype=np.int64), sizes)
    ranks = np.repeat(np.array([rank for _, rank, _ in parts], dtype=np.int64), sizes)
    order = np.lexsort((seqs, -ranks, epochs, steps))  # the last key sorts first
    ordered = steps[order]
    newest = np.append(ordered[1:] != ordered[:-1], True)
    if min_step is not None:
        newest &= ordered >= min_step
    if max_step is not None:
        newest &= ordered <= max_step
    chosen = order[newest]
    return Curve(steps[chosen], times[chosen], values[chosen])


def extremes(curve: Curve) -> tuple[float, float]:
    """Smallest and largest value, NaN left out; NaN when there is nothing else."""
    return float(np.fmin.reduce(curve.values)), float(np.fmax.reduce(curve.values))


def message(key: str, curve: Curve, max_points: int = 0) -> metrics_pb2.Series:
    """Returns a curve as the contract has it, reduced to at most `max_points` buckets if it is longer."""
    num_points = len(curve.steps)
    if not max_points or num_points <= max_points:
        return metrics_pb2.Series(
            key=key,
            steps=curve.steps.tolist(),
            values=curve.values.tolist(),
            times_us=curve.times_us.tolist(),
            num_points=num_points,
        )
    starts = _bucket_starts(curve.steps, max_points)
    lasts = np.append(starts[1:], num_points) - 1
    return metrics_pb2.Series(
        key=key,
        steps=curve.steps[lasts].tolist(),
        values=curve.values[lasts].tolist(),
        times_us=curve.times_us[lasts].tolist(),
        # fmin and fmax pass over NaN; a bucket of NaN alone stays NaN.
        min_values=np.fmin.reduceat(curve.values, starts).tolist(),
        max_values=np.fmax.reduceat(curve.values, starts).tolist(),
        num_points=num_points,
    )


def _bucket_starts(steps: Ints, num_buckets: int) -> NDArray[np.intp]:
    """Where buckets of equal width in steps begin; empty buckets are left out."""
    width = -(-(int(steps[-1]) - int(steps[0]) + 1) // num_buckets)
    buckets = (steps - steps[0]) // width
    return np.flatnonzero(np.append(True, buckets[1:] != buckets[:-1]))


def messages(curves: dict[str, Curve], max_points: int = 0) -> list[metrics_pb2.Series]:
    """Returns all curves as the contract has them."""
    return [message(key, curve, max_points) for key, curve in curves.items()]
