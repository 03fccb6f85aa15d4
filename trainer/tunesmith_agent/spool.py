"""Reads metric records from a run's spool and packs them into matrix messages (8.5 bytes a point)."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.api.metrics.v1 import events_pb2

MAGIC = b"TSMETR01"
_HEAD = struct.Struct("<IIB")
_STEP = struct.Struct("<QqqH")
_KEY, _STEP_KIND = 1, 2
_BATCH_POINTS = 4000  # below the 1 MB a message may have, and little enough to be quick


@dataclass(frozen=True, slots=True)
class Record:
    """One step's values."""

    seq: int
    step: int
    time_us: int
    keys: tuple[str, ...]
    values: tuple[float, ...]


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

    def read(self, after_seq: int, max_records: int = 20_000) -> list[Record]:
        """Returns the records that came since the last call, without those up to `after_seq`."""
        records: list[Record] = []
        while len(records) < max_records:
            path = self._segment()
            if path is None:
                break
            with path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            records += (record for record in self._parse(data) if record.seq > after_seq)
            if self._numbers(above=self._number):
                self._open(self._numbers(above=self._number)[0])
            else:
                break
        return records

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

    def _parse(self, data: bytes) -> Iterator[Record]:
        at = 0
        if self._offset == 0:
            if data[: len(MAGIC)] != MAGIC:
                return
            at = len(MAGIC)
        while at + 4 <= len(data):
            (length,) = struct.unpack_from("<I", data, at)
            end = at + 4 + length
            if end > len(data):
                break
            body = data[at + 8 : end]
            if length < 5 or zlib.crc32(body) != struct.unpack_from("<I", data, at + 4)[0]:
                break
            record = self._record(body)
            at = end
            if record is not None:
                self._last_seqs[self._number] = record.seq
                yield record
        self._offset += at

    def _record(self, body: bytes) -> Record | None:
        if body[0] == _KEY:
            self._keys[struct.unpack_from("<H", body, 1)[0]] = body[3:].decode(errors="replace")
            return None
        if body[0] != _STEP_KIND:
            return None
        seq, step, time_us, count = _STEP.unpack_from(body, 1)
        at = 1 + _STEP.size
        ids = struct.unpack_from(f"<{count}H", body, at)
        values = struct.unpack_from(f"<{count}d", body, at + 2 * count)
        return Record(seq, step, time_us, tuple(self._keys.get(i, f"unknown/{i}") for i in ids), values)


def pack(job_id: str, epoch: int, rank: int, records: Sequence[Record]) -> Iterator[events_pb2.MetricBatch]:
    """Packs records into messages of at most some thousand points, in order."""
    start = points = 0
    for index, record in enumerate(records):
        points += len(record.values)
        last = index + 1 == len(records)
        # Within a message sequence numbers follow each other; a gap (a torn segment) starts a new one.
        if last or points >= _BATCH_POINTS or records[index + 1].seq != record.seq + 1:
            yield _batch(job_id, epoch, rank, records[start : index + 1])
            start, points = index + 1, 0


def _batch(job_id: str, epoch: int, rank: int, records: Sequence[Record]) -> events_pb2.MetricBatch:
    batch = events_pb2.MetricBatch(
        job_id=job_id, epoch=epoch, rank=rank, first_seq=records[0].seq, num_records=len(records)
    )
    ids: dict[str, int] = {}
    matrix, columns, step, time_us = None, None, 0, 0
    values: list[float] = []
    for record in records:
        if matrix is None or record.keys != columns:
            if matrix is not None:
                matrix.values.extend(values)
            values = []
            columns = record.keys
            matrix = batch.matrices.add(key_indices=[ids.setdefault(key, len(ids)) for key in columns])
            step = time_us = 0
        matrix.step_deltas.append(record.step - step)
        matrix.time_deltas_us.append(record.time_us - time_us)
        step, time_us = record.step, record.time_us
        values += record.values
    if matrix is not None:
        matrix.values.extend(values)
    batch.keys.extend(ids)
    return batch
