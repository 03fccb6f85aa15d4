"""Queries and changes of the metrics store. Core SQL throughout: an ORM costs 25 times as much here."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, insert, select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith.errors import TunesmithError
from tunesmith_kit.db import current_revision, next_revision
from tunesmith_kit.meters import METRICS as METERS
from tunesmith_metrics import keys, logindex, marks, segments, senders
from tunesmith_metrics.coverage import Coverage
from tunesmith_metrics.events import Rank, Watermark
from tunesmith_metrics.keys import DEFAULT_KEYS, KeyRing
from tunesmith_metrics.points import curves, points_after
from tunesmith_metrics.rich import RichRows
from tunesmith_metrics.rows import from_column, to_column, upsert
from tunesmith_metrics.summaries import counted as summaries
from tunesmith_metrics.summaries import fresh as fresh_summaries
from tunesmith_metrics.tables import LOG_CHUNKS, REVISION, RUNS, SEGMENTS, WATERMARKS

__all__ = [
    "Stored",
    "add_batches",
    "add_chunks",
    "belongs",
    "curves",
    "fresh_summaries",
    "from_column",
    "payloads_after",
    "points_after",
    "summaries",
    "to_column",
    "upsert",
    "watermark",
]

Batch = tuple[Rank, events_pb2.MetricBatch, bytes]
Chunk = tuple[Rank, events_pb2.LogChunk, bytes]

_MOST_RECORDS = 10_000  # in one row
_MOST_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Stored:
    """What a write did: new watermarks, messages refused by index, and how much was new."""

    marks: list[Watermark]
    refused: Mapping[int, TunesmithError]
    num_new: int


def add_batches(
    session: Session,
    batches: Sequence[Batch],
    ring: KeyRing | None = None,
    limit_of: Callable[[str], int] = lambda project: DEFAULT_KEYS,
) -> Stored:
    """Stores what is new of metric batches; all of it is visible under one new revision.

    Batches of a rank that follow each other share a row: what agents send in small pieces lies in few.
    Values of more keys than a job may have (`limit_of` its project) are left out, which its log says.
    """
    revision = next_revision(session, REVISION)  # first: it makes the writers of all replicas queue
    known = senders.enter(session, {who for who, _, _ in batches}, revision)
    refused = {
        index: known.strangers[who] for index, (who, _, _) in enumerate(batches) if who in known.strangers
    }
    stored = marks.of_metrics(session, known.welcome)
    left_out = (ring or KeyRing()).admit(
        session, [(who, batch) for who, batch, _ in batches if who in known.welcome], limit_of
    )
    rows, num_points, rich = [], 0, RichRows(session, revision)
    for who, mine in _by_sender(batches, known.welcome).items():
        run = _Run(who, stored.of(who), rich, left_out.get(who, frozenset()))
        for batch, payload in mine:
            run.add(batch, payload)
        if who in left_out:
            keys.warn(session, who, limit_of(who.project), revision)
            METERS.values_dropped.inc(run.num_dropped)
        stored.count(who, run.num_points)
        num_points += run.num_points
        rank = {"job_id": who.job_id, "epoch": who.epoch, "rank": who.rank, "revision": revision}
        rows += [rank | row for row in run.rows()]
    rich.save()
    if rows:
        session.execute(insert(SEGMENTS), rows)
    ends = ((who, batch.first_seq + batch.num_records - 1) for who, batch, _ in batches if who in known.late)
    return Stored(stored.save() + _let_go("metrics_seq", ends), refused, num_points)


def _let_go(field: str, ends: Iterable[tuple[Rank, int]]) -> list[Watermark]:
    """What senders of deleted jobs are told: all is done, so that they trim their spools and end."""
    reached: dict[Rank, int] = {}
    for who, end in ends:
        reached[who] = max(end, reached.get(who, 0))
    zero = {"metrics_seq": 0, "log_offset": 0}
    return [Watermark(who, **(zero | {field: end})) for who, end in reached.items()]


def _by_sender(
    batches: Sequence[Batch], welcome: Set[Rank]
) -> dict[Rank, list[tuple[events_pb2.MetricBatch, bytes]]]:
    found: dict[Rank, list[tuple[events_pb2.MetricBatch, bytes]]] = {}
    for who, batch, payload in batches:
        if who in welcome:
            found.setdefault(who, []).append((batch, payload))
    return found


class _Run:
    """The rows that new batches of one rank make."""

    def __init__(self, who: Rank, coverage: Coverage, rich: RichRows, left_out: Set[str]) -> None:
        self._who, self._coverage, self._rich, self._left_out = who, coverage, rich, left_out
        self._rows: list[dict[str, Any]] = []
        self._payloads: list[bytes] = []
        self._first = self._next = self._bytes = 0
        self.num_points = self.num_dropped = 0

    def add(self, batch: events_pb2.MetricBatch, payload: bytes) -> None:
        """Takes in what is new of a batch."""
        first, end = batch.first_seq, batch.first_seq + batch.num_records
        for low, high in self._coverage.add(first, end):
            part = batch if high - low == end - first else segments.cut(batch, low, high)
            if self._left_out and not self._left_out.isdisjoint(part.keys):
                part = self._without(part)
            if part.rich:
                self._rich.add(self._who, part, self._left_out)
                self.num_points += len(part.rich)
                part = segments.emptied(part)
            self._append(low, high, payload if part is batch else part.SerializeToString())
            for matrix in part.matrices:
                self.num_points += len(matrix.values)

    def _without(self, batch: events_pb2.MetricBatch) -> events_pb2.MetricBatch:
        part = keys.without(batch, self._left_out)
        for whole, rest in zip(batch.matrices, part.matrices, strict=True):
            self.num_dropped += len(whole.values) - len(rest.values)
        return part

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows."""
        self._flush()
        return self._rows

    def _append(self, low: int, high: int, payload: bytes) -> None:
        full = high - self._first > _MOST_RECORDS or self._bytes + len(payload) > _MOST_BYTES
        if low != self._next or full:
            self._flush()
        if not self._payloads:
            self._first = low
        self._payloads.append(payload)
        self._bytes += len(payload)
        self._next = high

    def _flush(self) -> None:
        if self._payloads:
            self._rows.append(
                {
                    "first_seq": self._first,
                    "num_records": self._next - self._first,
                    "payload": segments.frame(self._payloads),
                }
            )
        self._payloads, self._bytes = [], 0


def add_chunks(session: Session, chunks: Sequence[Chunk]) -> Stored:
    """Stores what is new of log chunks; all of it is visible under one new revision."""
    revision = next_revision(session, REVISION)
    known = senders.enter(session, {who for who, _, _ in chunks}, revision)
    refused = {
        index: known.strangers[who] for index, (who, _, _) in enumerate(chunks) if who in known.strangers
    }
    stored = marks.of_logs(session, known.welcome)
    rows, parts = [], []
    for who, chunk, payload in chunks:
        if who not in known.welcome:
            continue
        end = chunk.offset + chunk.num_bytes
        for low, high in stored.of(who).add(chunk.offset, end):
            whole = (low, high) == (chunk.offset, end)
            part = chunk if whole else _cut_chunk(chunk, low, high)
            rows.append(
                {
                    "job_id": who.job_id,
                    "epoch": who.epoch,
                    "rank": who.rank,
                    "offset": low,
                    "num_bytes": high - low,
                    "num_lines": len(part.lines),
                    "time_us": part.time_us,
                    "revision": revision,
                    "payload": payload if whole else part.SerializeToString(),
                }
            )
            parts.append(part)
    if rows:
        logindex.enter(session, rows, parts)
        session.execute(insert(LOG_CHUNKS), rows)
    ends = ((who, chunk.offset + chunk.num_bytes) for who, chunk, _ in chunks if who in known.late)
    return Stored(
        stored.save() + _let_go("log_offset", ends), refused, sum(len(part.lines) for part in parts)
    )


def _cut_chunk(chunk: events_pb2.LogChunk, low: int, high: int) -> events_pb2.LogChunk:
    kept = [i for i, offset in enumerate(chunk.line_offsets) if low <= offset < high]
    part = events_pb2.LogChunk(
        job_id=chunk.job_id, epoch=chunk.epoch, rank=chunk.rank, offset=low, num_bytes=high - low
    )
    part.lines.extend(chunk.lines[i] for i in kept)
    part.line_offsets.extend(chunk.line_offsets[i] for i in kept)
    part.levels.extend(chunk.levels[i] for i in kept if chunk.levels)
    part.steps.extend(chunk.steps[i] for i in kept if chunk.steps)
    part.time_us = chunk.time_us
    return part


def watermark(session: Session, who: Rank) -> Watermark:
    """How far a rank's records are stored; zeros when nothing is."""
    row = session.execute(
        select(WATERMARKS.c.metrics_seq, WATERMARKS.c.log_offset)
        .join(RUNS, RUNS.c.job_id == WATERMARKS.c.job_id)
        .where(marks.rank_of(WATERMARKS, who), RUNS.c.project == who.project)
    ).one_or_none()
    return Watermark(who, *(row or (0, 0)))


def belongs(session: Session, project: str, job_id: str) -> bool:
    """Whether anything is stored of a job of this project."""
    query = select(RUNS.c.project).where(RUNS.c.job_id == job_id)
    return session.execute(query).scalar_one_or_none() == project


def payloads_after(
    session: Session, table: Table, job_id: str, revision: int, max_bytes: int
) -> tuple[list[bytes], int]:
    """Payloads stored after a revision, in order, of whole revisions; and the revision reached.

    At least one revision is returned if there is one, however large; else about `max_bytes`.
    """
    newest = current_revision(session, REVISION)
    order = [column for column in table.primary_key.columns if column.name != "job_id"]
    query = (
        select(table.c.revision, table.c.payload)
        .where(table.c.job_id == job_id, table.c.revision > revision)
        .order_by(table.c.revision, *order)
        .execution_options(yield_per=100)
    )
    found: list[bytes] = []
    reached, size = revision, 0
    with session.execute(query) as rows:
        for row_revision, payload in rows:
            if size >= max_bytes and row_revision != reached:
                return found, reached
            found += segments.unframe(payload) if table is SEGMENTS else [payload]
            reached, size = row_revision, size + len(payload)
    return found, max(reached, newest)
