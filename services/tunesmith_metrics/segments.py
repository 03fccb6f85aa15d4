"""Segments: messages of a rank as they came, several in one row, and the points in them."""

import struct
from collections.abc import Iterator, Sequence, Set
from itertools import accumulate

import numpy as np

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_metrics.series import Points

# A message begins with a tag, which is never 0: what begins so is a frame with several.
_FRAME = b"\x00"
_LENGTH = struct.Struct("<I")
_VALUES_TAG = bytes([events_pb2.MetricMatrix.VALUES_FIELD_NUMBER << 3 | 2])
_SMALL_BYTES = 256


def frame(payloads: Sequence[bytes]) -> bytes:
    """Returns one payload for a row with all these messages."""
    if len(payloads) == 1:
        return payloads[0]
    parts = [_FRAME]
    for payload in payloads:
        parts.append(_LENGTH.pack(len(payload)))
        parts.append(payload)
    return b"".join(parts)


def unframe(payload: bytes) -> list[bytes]:
    """Returns the messages of a row."""
    if payload[:1] != _FRAME:
        return [payload]
    found, at = [], 1
    while at < len(payload):
        (length,) = _LENGTH.unpack_from(payload, at)
        found.append(payload[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def batches(payload: bytes) -> Iterator[events_pb2.MetricBatch]:
    """Yields the messages of a row, read."""
    for message in unframe(payload):
        yield events_pb2.MetricBatch.FromString(message)


class _Table:
    """Records with one set of keys, gathered from many matrices; `values` are little-endian doubles."""

    __slots__ = ("seqs", "steps", "times", "values")

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.steps: list[int] = []
        self.times: list[int] = []
        self.values: list[bytes] = []


def columns(payloads: Sequence[bytes], keys: Set[str] | None = None) -> Iterator[tuple[str, Points]]:
    """Yields the points of rows of one rank by key, for all keys or those given; a key may come twice."""
    tables: dict[tuple[str, ...], _Table] = {}
    for payload in payloads:
        for batch in batches(payload):
            _gather(tables, batch)
    for names, table in tables.items():
        wanted = [i for i, name in enumerate(names) if keys is None or name in keys]
        if not wanted or not table.seqs:
            continue
        seqs, steps, times = (
            np.array(numbers, dtype=np.int64) for numbers in (table.seqs, table.steps, table.times)
        )
        values = np.frombuffer(b"".join(table.values), dtype="<f8").reshape(len(seqs), len(names))
        for column in wanted:
            yield names[column], Points(steps, times, np.ascontiguousarray(values[:, column]), seqs)


def _gather(tables: dict[tuple[str, ...], _Table], batch: events_pb2.MetricBatch) -> None:
    names, seq = tuple(batch.keys), batch.first_seq
    for matrix in batch.matrices:
        indices = tuple(matrix.key_indices)
        here = names if indices == tuple(range(len(names))) else tuple(names[i] for i in indices)
        table = tables.get(here)
        if table is None:
            table = tables[here] = _Table()
        rows = len(matrix.step_deltas)
        table.seqs.extend(range(seq, seq + rows))
        table.steps.extend(accumulate(matrix.step_deltas))
        table.times.extend(accumulate(matrix.time_deltas_us))
        table.values.append(_values(matrix))
        seq += rows


def _values(matrix: events_pb2.MetricMatrix) -> bytes:
    """The values of a matrix as little-endian doubles.

    Serialized they stand at the end, behind tag and length, as they are: twenty times as fast as one by one.
    """
    size = 8 * len(matrix.values)
    if size < _SMALL_BYTES:
        return struct.pack(f"<{size // 8}d", *matrix.values)
    data = matrix.SerializeToString(deterministic=True)
    head = _VALUES_TAG + _varint(size)
    if data[: len(data) - size].endswith(head):
        return data[len(data) - size :]
    return struct.pack(f"<{size // 8}d", *matrix.values)  # another order of fields


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


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
    if batch.rich:
        part.rich.extend(batch.rich[start - batch.first_seq : end - batch.first_seq])
        return part
    seq = batch.first_seq
    for matrix in batch.matrices:
        rows, width = len(matrix.step_deltas), len(matrix.key_indices)
        low, high = max(start - seq, 0), min(end - seq, rows)
        seq += rows
        if low < high:
            part.matrices.append(
                events_pb2.MetricMatrix(
                    key_indices=matrix.key_indices,
                    step_deltas=_cut_deltas(matrix.step_deltas, low, high),
                    time_deltas_us=_cut_deltas(matrix.time_deltas_us, low, high),
                    values=matrix.values[low * width : high * width],
                )
            )
    return part


def emptied(batch: events_pb2.MetricBatch) -> events_pb2.MetricBatch:
    """A batch that only says which records there were: their rich values have a table of their own."""
    return events_pb2.MetricBatch(
        job_id=batch.job_id,
        epoch=batch.epoch,
        rank=batch.rank,
        first_seq=batch.first_seq,
        num_records=batch.num_records,
    )


def _cut_deltas(deltas: Sequence[int], low: int, high: int) -> list[int]:
    return [sum(deltas[: low + 1]), *deltas[low + 1 : high]]
