"""Queries and changes of the metrics store. Core SQL throughout: an ORM costs 25 times as much here."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, and_, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_kit.db import current_revision, next_revision
from tunesmith_metrics import series
from tunesmith_metrics.coverage import Coverage
from tunesmith_metrics.events import Rank, Watermark
from tunesmith_metrics.tables import LOG_CHUNKS, REVISION, RUNS, SEGMENTS, SUMMARIES, WATERMARKS

Batch = tuple[Rank, events_pb2.MetricBatch, bytes]
Chunk = tuple[Rank, events_pb2.LogChunk, bytes]


@dataclass(frozen=True, slots=True)
class Stored:
    """What a write did: new watermarks, messages refused by index, and how much was new."""

    marks: list[Watermark]
    refused: Mapping[int, InvalidArgument]
    num_new: int


def upsert(session: Session, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows or replaces those with the same primary key."""
    if not rows:
        return
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    others = {
        column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys
    }
    session.execute(statement.on_conflict_do_update(index_elements=keys, set_=others), list(rows))


def _rank_of(table: Table, who: Rank) -> Any:
    return and_(table.c.job_id == who.job_id, table.c.epoch == who.epoch, table.c.rank == who.rank)


class _Marks:
    """Watermarks and coverage of the ranks that one write touches."""

    def __init__(
        self, session: Session, table: Table, start: str, length: str, field: str, first: int
    ) -> None:
        self._session, self._table = session, table
        self._start, self._length, self._field, self._first = table.c[start], table.c[length], field, first
        self._rows: dict[Rank, dict[str, int]] = {}
        self._coverage: dict[Rank, Coverage] = {}

    def of(self, who: Rank) -> Coverage:
        """Coverage of a rank, read once."""
        if who not in self._coverage:
            row = self._session.execute(
                select(WATERMARKS.c.metrics_seq, WATERMARKS.c.log_offset).where(_rank_of(WATERMARKS, who))
            ).one_or_none()
            self._rows[who] = dict(row._mapping) if row else {"metrics_seq": 0, "log_offset": 0}
            # Sequence numbers count from 1 and the mark is the last one stored; offsets are half-open.
            start = self._rows[who][self._field] + self._first
            islands = self._session.execute(
                select(self._start, self._start + self._length).where(
                    _rank_of(self._table, who), self._start >= start
                )
            )
            self._coverage[who] = Coverage(start, [(low, high) for low, high in islands])
        return self._coverage[who]

    def save(self) -> list[Watermark]:
        """Writes the marks of all ranks read and returns them."""
        rows = []
        for who, coverage in self._coverage.items():
            row = self._rows[who]
            row[self._field] = coverage.next - self._first
            rows.append({"job_id": who.job_id, "epoch": who.epoch, "rank": who.rank, **row})
        upsert(self._session, WATERMARKS, rows)
        return [Watermark(who, **self._rows[who]) for who in self._coverage]


def add_batches(session: Session, batches: Sequence[Batch]) -> Stored:
    """Stores what is new of metric batches; all of it is visible under one new revision."""
    revision = next_revision(session, REVISION)  # first: it makes the writers of all replicas queue
    refused = _enter_runs(session, [who for who, _, _ in batches])
    marks = _Marks(session, SEGMENTS, "first_seq", "num_records", "metrics_seq", 1)
    rows, summaries, num_points = [], _Summaries(session), 0
    for index, (who, batch, payload) in enumerate(batches):
        if index in refused:
            continue
        end = batch.first_seq + batch.num_records
        for low, high in marks.of(who).add(batch.first_seq, end):
            whole = (low, high) == (batch.first_seq, end)
            part = batch if whole else series.cut(batch, low, high)
            rows.append(_segment(who, part, payload if whole else part.SerializeToString(), revision))
            num_points += summaries.add(who.job_id, part)
    if rows:
        session.execute(insert(SEGMENTS), rows)
    summaries.save()
    return Stored(marks.save(), refused, num_points)


def _segment(who: Rank, batch: events_pb2.MetricBatch, payload: bytes, revision: int) -> dict[str, Any]:
    min_step, max_step = series.step_range(batch)
    return {
        "job_id": who.job_id,
        "epoch": who.epoch,
        "rank": who.rank,
        "first_seq": batch.first_seq,
        "num_records": batch.num_records,
        "min_step": min_step,
        "max_step": max_step,
        "revision": revision,
        "payload": payload,
    }


def add_chunks(session: Session, chunks: Sequence[Chunk]) -> Stored:
    """Stores what is new of log chunks; all of it is visible under one new revision."""
    revision = next_revision(session, REVISION)
    refused = _enter_runs(session, [who for who, _, _ in chunks])
    marks = _Marks(session, LOG_CHUNKS, "offset", "num_bytes", "log_offset", 0)
    rows, num_lines = [], 0
    for index, (who, chunk, payload) in enumerate(chunks):
        if index in refused:
            continue
        end = chunk.offset + chunk.num_bytes
        for low, high in marks.of(who).add(chunk.offset, end):
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
            num_lines += len(part.lines)
    if rows:
        session.execute(insert(LOG_CHUNKS), rows)
    return Stored(marks.save(), refused, num_lines)


def _cut_chunk(chunk: events_pb2.LogChunk, low: int, high: int) -> events_pb2.LogChunk:
    kept = [i for i, offset in enumerate(chunk.line_offsets) if low <= offset < high]
    part = events_pb2.LogChunk(
        job_id=chunk.job_id, epoch=chunk.epoch, rank=chunk.rank, offset=low, num_bytes=high - low
    )
    part.lines.extend(chunk.lines[i] for i in kept)
    part.line_offsets.extend(chunk.line_offsets[i] for i in kept)
    part.time_us = chunk.time_us
    return part


def _enter_runs(session: Session, senders: Sequence[Rank]) -> dict[int, InvalidArgument]:
    """Notes each job's project at its first message, and refuses a job id under another project."""
    ids = {who.job_id for who in senders}
    rows = session.execute(select(RUNS.c.job_id, RUNS.c.project).where(RUNS.c.job_id.in_(ids)))
    known: dict[str, str] = {job_id: project for job_id, project in rows}  # rows are no tuples
    new: list[dict[str, str]] = []
    refused = {}
    for index, who in enumerate(senders):
        if who.job_id not in known:
            known[who.job_id] = who.project
            new.append({"job_id": who.job_id, "project": who.project})
        elif known[who.job_id] != who.project:
            refused[index] = InvalidArgument(
                "MESSAGE_MALFORMED", "the job belongs to another project", field="project", value=who.project
            )
    if new:
        session.execute(insert(RUNS), new)
    return refused


class _Summaries:
    """Changes of the summaries that one write makes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}

    def add(self, job_id: str, batch: events_pb2.MetricBatch) -> int:
        """Takes in a batch and returns its number of points."""
        if job_id not in self._rows:
            found = self._session.execute(select(SUMMARIES).where(SUMMARIES.c.job_id == job_id)).mappings()
            self._rows[job_id] = {row["key"]: dict(row) for row in found}
        rows, num_points = self._rows[job_id], 0
        for key, stat in series.stats(batch):
            num_points += stat.num_points
            if key in rows:
                _extend(rows[key], stat, batch.epoch)
            else:
                rows[key] = _first(job_id, key, stat, batch.epoch)
            rows[key]["changed"] = True
        return num_points

    def save(self) -> None:
        """Writes the rows that changed."""
        rows = [row for by_key in self._rows.values() for row in by_key.values() if row.pop("changed", False)]
        upsert(self._session, SUMMARIES, rows)


def _first(job_id: str, key: str, stat: series.Stat, epoch: int) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "key": key,
        "last_step": stat.last_step,
        "last_epoch": epoch,
        "last_value": to_column(stat.last_value),
        "num_points": stat.num_points,
        "min_value": to_column(stat.min_value),
        "max_value": to_column(stat.max_value),
        "stale": not stat.regular,
    }


def _extend(row: dict[str, Any], stat: series.Stat, epoch: int) -> None:
    if not stat.regular or stat.first_step <= row["last_step"]:
        row["stale"] = True
    row["num_points"] += stat.num_points
    row["min_value"] = _extreme(min, row["min_value"], to_column(stat.min_value))
    row["max_value"] = _extreme(max, row["max_value"], to_column(stat.max_value))
    if (stat.last_step, epoch) >= (row["last_step"], row["last_epoch"]):
        row.update(last_step=stat.last_step, last_epoch=epoch, last_value=to_column(stat.last_value))


def _extreme(choose: Any, one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return choose(known) if known else None


def to_column(value: float) -> float | None:
    """NaN as NULL: SQLite keeps no NaN."""
    return None if math.isnan(value) else value


def from_column(value: float | None) -> float:
    """NULL as NaN."""
    return math.nan if value is None else value


def watermark(session: Session, who: Rank) -> Watermark:
    """How far a rank's records are stored; zeros when nothing is."""
    row = session.execute(
        select(WATERMARKS.c.metrics_seq, WATERMARKS.c.log_offset)
        .join(RUNS, RUNS.c.job_id == WATERMARKS.c.job_id)
        .where(_rank_of(WATERMARKS, who), RUNS.c.project == who.project)
    ).one_or_none()
    return Watermark(who, *(row or (0, 0)))


def belongs(session: Session, project: str, job_id: str) -> bool:
    """Whether anything is stored of a job of this project."""
    query = select(RUNS.c.project).where(RUNS.c.job_id == job_id)
    return session.execute(query).scalar_one_or_none() == project


def summaries(session: Session, job_id: str) -> list[dict[str, Any]]:
    """The summaries of a job by key."""
    query = select(SUMMARIES).where(SUMMARIES.c.job_id == job_id).order_by(SUMMARIES.c.key)
    return [dict(row) for row in session.execute(query).mappings()]


def fresh_summaries(session: Session, job_id: str) -> list[dict[str, Any]]:
    """The summaries of a job; those that went stale are taken from the points."""
    rows = summaries(session, job_id)
    stale = frozenset(row["key"] for row in rows if row["stale"])
    if not stale:
        return rows
    merger = series.Merger(stale)
    for batch in batches(session, job_id):
        merger.add(batch)
    curves = merger.curves()
    return [_recount(row, curves[row["key"]]) if row["key"] in curves else row for row in rows]


def _recount(row: dict[str, Any], curve: series.Curve) -> dict[str, Any]:
    low, high = series.extremes(curve)
    return row | {
        "last_step": int(curve.steps[-1]),
        "last_value": to_column(float(curve.values[-1])),
        "num_points": len(curve.steps),
        "min_value": to_column(low),
        "max_value": to_column(high),
    }


def batches(
    session: Session, job_id: str, min_step: int | None = None, max_step: int | None = None
) -> Iterable[events_pb2.MetricBatch]:
    """The stored batches of a job that may hold steps of the range."""
    query = select(SEGMENTS.c.payload).where(SEGMENTS.c.job_id == job_id)
    if min_step is not None:
        query = query.where(SEGMENTS.c.max_step >= min_step)
    if max_step is not None:
        query = query.where(SEGMENTS.c.min_step <= max_step)
    for payload in session.execute(query).scalars():
        yield events_pb2.MetricBatch.FromString(payload)


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
            found.append(payload)
            reached, size = row_revision, size + len(payload)
    return found, max(reached, newest)
