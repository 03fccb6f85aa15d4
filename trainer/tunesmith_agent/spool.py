"""Reads metric records from a run's spool and packs them into matrix messages (8.5 bytes a point)."""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.api.metrics.v1 import events_pb2

MAGIC = b"TSMETR01"
_RICH = struct.Struct("<QqqHB")
_KEY, _STEP_KIND, _RICH_KIND = 1, 2, 3
_HISTOGRAM, _TEXT, _PICTURE = 1, 2, 3
_STEP_BYTES = 31  # of a step record without values, counted as its length field counts
_BATCH_POINTS = 4000  # below the 1 MB a message may have, and little enough to be quick
_RICH_BYTES = 512 * 1024
# Packed doubles are their bytes behind tag and length: a list in between would cost 20 times as much.
_VALUES_TAG = bytes([events_pb2.MetricMatrix.VALUES_FIELD_NUMBER << 3 | 2])
_FIRST_LOOK, _LONGEST_LOOK = 16, 4096  # records compared at once


@dataclass(frozen=True, slots=True)
class Record:
    """One step's values."""

    seq: int
    step: int
    time_us: int
    keys: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Steps with the same keys; `values` has shape (steps, keys), the other arrays (steps,)."""

    keys: tuple[str, ...]
    seqs: NDArray[np.int64]
    steps: NDArray[np.int64]
    times_us: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.seqs)

    def cut(self, start: int, end: int | None = None) -> "Block":
        """Returns the steps from `start` to `end`."""
        return replace(
            self,
            seqs=self.seqs[start:end],
            steps=self.steps[start:end],
            times_us=self.times_us[start:end],
            values=self.values[start:end],
        )


@dataclass(frozen=True, slots=True)
class Rich:
    """A value that is no number; `value.key_index` is not set yet."""

    seq: int
    key: str
    value: events_pb2.RichValue


Item = Block | Rich


def block(records: Sequence[Record]) -> Block:
    """Makes a block of records with the same keys."""
    seqs, steps, times = (
        np.array([getattr(record, name) for record in records], dtype=np.int64)
        for name in ("seq", "step", "time_us")
    )
    values = np.array([record.values for record in records], dtype=np.float64)
    return Block(records[0].keys, seqs, steps, times, values.reshape(len(records), len(records[0].keys)))


class SpoolReader:
    """Reads `metrics-*.bin` in order. What is torn at the end of a segment waits, or never was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._offset = 0
        self._keys: dict[int, str] = {}
        self._last_seqs: dict[int, int] = {}  # segment number -> last sequence number read in it

    def rewind(self) -> None:
        """Starts again with the oldest segment that is left."""
        self._number = self._offset = 0

    def read(self, after_seq: int, max_records: int = 20_000) -> list[Item]:
        """Returns what came since the last call, without records up to `after_seq`: at least `max_records` if
        there are so many, for a segment is read as a whole."""
        found: list[Item] = []
        num_records = 0
        while num_records < max_records:
            path = self._segment()
            if path is None:
                break
            with path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            for item in self._parse(data):
                if fresh := _after(item, after_seq):
                    found.append(fresh)
                    num_records += len(fresh) if isinstance(fresh, Block) else 1
            later = self._numbers(above=self._number)
            if not later:
                break
            self._open(later[0])
        return found

    def trim(self, committed_seq: int) -> None:
        """Deletes segments whose records are all stored; the one being written stays."""
        for number, last_seq in list(self._last_seqs.items()):
            if last_seq <= committed_seq and number < self._number:
                self._path(number).unlink(missing_ok=True)
                del self._last_seqs[number]

    def backlog_bytes(self) -> int:
        """Returns the bytes that lie in the spool."""
        return sum(self._path(number).stat().st_size for number in self._numbers())

    def _segment(self) -> Path | None:
        if self._number == 0:
            numbers = self._numbers()
            if not numbers:
                return None
            self._open(numbers[0])
        return self._path(self._number)

    def _open(self, number: int) -> None:
        self._number, self._offset, self._keys = number, 0, {}

    def _path(self, number: int) -> Path:
        return self._folder / f"metrics-{number:08d}.bin"

    def _numbers(self, above: int = 0) -> list[int]:
        found = (int(path.name[8:16]) for path in self._folder.glob("metrics-*.bin"))
        return sorted(number for number in found if number > above)

    def _parse(self, data: bytes) -> Iterator[Item]:
        at = 0
        if self._offset == 0:
            if data[: len(MAGIC)] != MAGIC:
                return
            at = len(MAGIC)
        look = _FIRST_LOOK
        while at + 4 <= len(data):
            (length,) = struct.unpack_from("<I", data, at)
            end = at + 4 + length
            if end > len(data) or length < 5:
                break
            item: Item | None
            if data[at + 8] == _STEP_KIND and length >= _STEP_BYTES:
                item = self._steps(data, at, length, look)
                if item is None:
                    break
                look = min(2 * look, _LONGEST_LOOK) if len(item) == look else _FIRST_LOOK
                end = at + len(item) * (4 + length)
            else:
                body = data[at + 8 : end]
                if zlib.crc32(body) != struct.unpack_from("<I", data, at + 4)[0]:
                    break
                item = self._other(body)
            at = end
            if item is not None:
                self._last_seqs[self._number] = _last_seq(item)
                yield item
        self._offset += at

    def _steps(self, data: bytes, at: int, length: int, most: int) -> Block | None:
        """Reads step records that look alike, from one on; None when the first of them is torn."""
        num_values = (length - _STEP_BYTES) // 10
        form = _layout(num_values)
        count = min(most, (len(data) - at) // form.itemsize)
        rows = np.frombuffer(data, dtype=form, count=count, offset=at)
        first = rows[0]
        alike = (rows["length"] == length) & (rows["kind"] == _STEP_KIND) & (rows["n"] == num_values)
        alike &= (rows["ids"] == first["ids"]).all(axis=1)
        count = count if alike.all() else int(np.argmin(alike))
        whole, crcs, view = 0, rows["crc"].tolist(), memoryview(data)
        size = form.itemsize
        while whole < count:
            start = at + whole * size
            if zlib.crc32(view[start + 8 : start + size]) != crcs[whole]:
                break
            whole += 1
        if not whole:
            return None
        rows = rows[:whole]
        return Block(
            tuple(self._keys.get(i, f"unknown/{i}") for i in first["ids"].tolist()),
            rows["seq"].astype(np.int64),
            rows["step"].astype(np.int64),
            rows["time"].astype(np.int64),
            rows["values"].astype(np.float64),
        )

    def _other(self, body: bytes) -> Item | None:
        if body[0] == _KEY:
            self._keys[struct.unpack_from("<H", body, 1)[0]] = body[3:].decode(errors="replace")
            return None
        if body[0] != _RICH_KIND:
            return None
        seq, step, time_us, key, kind = _RICH.unpack_from(body, 1)
        value = events_pb2.RichValue(step=step, time_us=time_us)
        _fill(value, kind, body[1 + _RICH.size :])
        return Rich(seq, self._keys.get(key, f"unknown/{key}"), value)


@lru_cache(maxsize=1024)
def _layout(num_values: int) -> np.dtype[np.void]:
    """A step record of so many values, as docs/run-folder.md has it."""
    numbers = [("ids", "<u2", (num_values,)), ("values", "<f8", (num_values,))]
    head = [("length", "<u4"), ("crc", "<u4"), ("kind", "u1")]
    return np.dtype([*head, ("seq", "<u8"), ("step", "<i8"), ("time", "<i8"), ("n", "<u2"), *numbers])


def _fill(value: events_pb2.RichValue, kind: int, data: bytes) -> None:
    if kind == _TEXT:
        value.text = data.decode(errors="replace")
    elif kind == _HISTOGRAM:
        (num_counts,) = struct.unpack_from("<H", data)
        value.histogram.edges.extend(struct.unpack_from(f"<{num_counts + 1}d", data, 2))
        value.histogram.counts.extend(struct.unpack_from(f"<{num_counts}q", data, 2 + 8 * (num_counts + 1)))
    elif kind == _PICTURE:
        value.picture.CopyFrom(events_pb2.Picture(**json.loads(data)))


def _after(item: Item, seq: int) -> Item | None:
    if isinstance(item, Rich):
        return item if item.seq > seq else None
    if item.seqs[0] > seq:
        return item
    start = int(np.searchsorted(item.seqs, seq, side="right"))
    return item.cut(start) if start < len(item) else None


def _last_seq(item: Item) -> int:
    return item.seq if isinstance(item, Rich) else int(item.seqs[-1])


def pack(
    job_id: str, epoch: int, rank: int, items: Iterable[Item | Record], max_points: int = _BATCH_POINTS
) -> Iterator[events_pb2.MetricBatch]:
    """Packs records into messages of about so many points at most, in order."""
    for group in _groups(items, max_points):
        if isinstance(group[0], Rich):
            yield _rich_batch(job_id, epoch, rank, [each for each in group if isinstance(each, Rich)])
        else:
            yield _batch(job_id, epoch, rank, [each for each in group if isinstance(each, _Piece)])


@dataclass(slots=True)
class _Piece:
    """Steps of one message with the same keys. Deltas are each step's difference to the one before it."""

    keys: tuple[str, ...]
    seq: int
    end: int  # the sequence number after the last one
    first: tuple[int, int]  # step and time
    last: tuple[int, int]
    step_deltas: list[int]
    time_deltas: list[int]
    values: bytes  # little-endian doubles


def _groups(items: Iterable[Item | Record], max_points: int) -> Iterator[list[_Piece | Rich]]:
    """What goes into one message: rich values or steps, without a gap between their sequence numbers."""
    group: list[_Piece | Rich] = []
    room, next_seq, rich = 0, -1, False
    for piece in _pieces(items, max_points):
        if isinstance(piece, Rich):
            size, end = piece.value.ByteSize(), piece.seq + 1
        else:
            size, end = len(piece.values) // 8, piece.end
        if group and (piece.seq != next_seq or size > room or rich != isinstance(piece, Rich)):
            yield group
            group = []
        if not group:
            rich = isinstance(piece, Rich)
            room = _RICH_BYTES if rich else max_points
        group.append(piece)
        room -= size
        next_seq = end
    if group:
        yield group


def _pieces(items: Iterable[Item | Record], max_points: int) -> Iterator[_Piece | Rich]:
    """The items, with blocks cut at gaps and into parts that a message can take."""
    for item in items:
        if isinstance(item, Rich):
            yield item
        else:
            yield from _cut(block([item]) if isinstance(item, Record) else item, max_points)


def _cut(whole: Block, max_points: int) -> Iterator[_Piece]:
    # Lists are made once: of numpy's calls each costs more than a small message may.
    width = len(whole.keys)
    most = max(1, max_points // max(1, width))
    gaps = (np.flatnonzero(np.diff(whole.seqs) != 1) + 1).tolist()
    seqs, steps, times = whole.seqs.tolist(), whole.steps.tolist(), whole.times_us.tolist()
    step_deltas, time_deltas = (
        np.diff(numbers, prepend=0).tolist() for numbers in (whole.steps, whole.times_us)
    )
    values = np.ascontiguousarray(whole.values, dtype="<f8").tobytes()
    for start, end in zip([0, *gaps], [*gaps, len(whole)], strict=True):
        for at in range(start, end, most):
            to = min(at + most, end)
            yield _Piece(
                whole.keys,
                seqs[at],
                seqs[to - 1] + 1,
                (steps[at], times[at]),
                (steps[to - 1], times[to - 1]),
                step_deltas[at:to],
                time_deltas[at:to],
                values[8 * at * width : 8 * to * width],
            )


def _batch(job_id: str, epoch: int, rank: int, pieces: Sequence[_Piece]) -> events_pb2.MetricBatch:
    batch = events_pb2.MetricBatch(
        job_id=job_id,
        epoch=epoch,
        rank=rank,
        first_seq=pieces[0].seq,
        num_records=pieces[-1].end - pieces[0].seq,
    )
    ids: dict[str, int] = {}
    before: _Piece | None = None
    for piece in pieces:
        step, time_us = piece.first
        if before is not None and before.keys == piece.keys:
            matrix = batch.matrices[-1]
            step, time_us = step - before.last[0], time_us - before.last[1]
        else:
            matrix = batch.matrices.add()
            matrix.key_indices.extend([ids.setdefault(key, len(ids)) for key in piece.keys])
        piece.step_deltas[0], piece.time_deltas[0] = step, time_us
        matrix.step_deltas.extend(piece.step_deltas)
        matrix.time_deltas_us.extend(piece.time_deltas)
        matrix.MergeFromString(_VALUES_TAG + _varint(len(piece.values)) + piece.values)
        before = piece
    batch.keys.extend(ids)
    return batch


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _rich_batch(job_id: str, epoch: int, rank: int, items: Sequence[Rich]) -> events_pb2.MetricBatch:
    batch = events_pb2.MetricBatch(
        job_id=job_id, epoch=epoch, rank=rank, first_seq=items[0].seq, num_records=len(items)
    )
    ids: dict[str, int] = {}
    for item in items:
        value = batch.rich.add()
        value.CopyFrom(item.value)
        value.key_index = ids.setdefault(item.key, len(ids))
    batch.keys.extend(ids)
    return batch
