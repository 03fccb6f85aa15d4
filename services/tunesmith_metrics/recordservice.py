"""The rpc of RecordService: what programs write themselves becomes the messages that agents would send.

They go into the store by the same way as an agent's, only that the answer comes after the commit. So what was
sent twice is stored once, and a program may forget what the answer covers.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2, records_pb2, records_pb2_grpc
from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from tunesmith_kit import names
from tunesmith_kit.db import Database
from tunesmith_metrics import store
from tunesmith_metrics.events import MAX_EPOCH, MAX_SEQ, Rank, Watermark, key_problem, rich_problem
from tunesmith_metrics.ingest import Ingest
from tunesmith_metrics.retention import forgotten
from tunesmith_metrics.tables import RUNS
from tunesmith_metrics.viewers import Viewers

Context = Any
_JOB = "projects/*/jobs/*"
_MOST_POINTS = 100_000  # of one call
_LONGEST_STEP = 2**53  # beyond it steps are not exact in a browser
_MOST_TIME_US = 2**53
_PICTURES = ("image/png", "image/jpeg", "image/webp")
_LONGEST_CAPTION = 1000
# As agents do: a call is a commit, and nobody needs them often while nobody looks.
_PAUSE, _VIEWED_PAUSE = Duration(nanos=500_000_000), Duration(nanos=50_000_000)


class RecordService(records_pb2_grpc.RecordServiceServicer):
    """RecordService of the contract."""

    def __init__(self, db: Database, ingest: Ingest, viewers: Viewers) -> None:
        self._db, self._ingest, self._viewers = db, ingest, viewers

    async def WriteRecords(
        self, request: records_pb2.WriteRecordsRequest, context: Context
    ) -> records_pb2.WriteRecordsResponse:
        """Stores points and lines of an external run and tells how far all is stored."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        if request.epoch > MAX_EPOCH:
            raise _wrong("epoch", request.epoch, "is not one that StartExternalRun gave")
        who = Rank(project, job_id, request.epoch, 0)
        now_us = time.time_ns() // 1000
        batches = _batches(who, request, now_us) if request.records else []
        chunk = _chunk(who, request, now_us) if request.lines else None

        def check(session: Session) -> None:
            _refuse_others(session, who)
            if batches and self._ingest.is_full(project):
                raise ResourceExhausted(
                    "PROJECT_FULL",
                    "the project stores as many points as it may",
                    field="parent",
                    value=project,
                    remedy="raise max_points of the project, or delete jobs; what waits is sent then",
                )

        def read(session: Session) -> Watermark:
            check(session)
            return store.watermark(session, who)

        asks = not batches and chunk is None
        mark = await (self._db.read(read) if asks else self._ingest.take(who, batches, chunk, check))
        return records_pb2.WriteRecordsResponse(
            metrics_seq=mark.metrics_seq,
            log_offset=mark.log_offset,
            pause=_VIEWED_PAUSE if self._viewers.watched(project, job_id) else _PAUSE,
        )


def _refuse_others(session: Session, who: Rank) -> None:
    """Refuses jobs that agents write for.

    Raises:
        Unavailable: the jobs service has not told of the job yet; it does within a second.
        NotFound: the run was deleted, or its points were kept long enough.
        FailedPrecondition: the job is none of a program of its own.
    """
    of = RUNS.c
    query = select(of.project, of.external, of.job_revision).where(of.job_id == who.job_id)
    row = session.execute(query).one_or_none()
    if row is None and forgotten(session, [who.job_id]):
        raise NotFound(
            "JOB_NOT_FOUND",
            f"the run {who.job_id} was deleted, or its points were kept long enough",
            field="parent",
            value=who.job_id,
            remedy="begin another run",
        )
    if row is None or row.project != who.project or not row.job_revision:
        raise Unavailable(
            "RUN_UNKNOWN",
            "the metrics service has not heard of the run yet",
            field="parent",
            value=who.job_id,
            remedy="try again in a second; begin the run with StartExternalRun",
        )
    if not row.external:
        raise FailedPrecondition(
            "RUN_NOT_EXTERNAL",
            "the platform runs this job itself, and its agents alone write its points",
            field="parent",
            value=who.job_id,
            remedy="begin a run of your own with tunesmith.init",
        )


def _batches(
    who: Rank, request: records_pb2.WriteRecordsRequest, now_us: int
) -> list[events_pb2.MetricBatch]:
    """Makes the messages an agent would send: one holds either matrices or rich values."""
    if not 1 <= request.first_seq <= MAX_SEQ:
        raise _wrong("first_seq", request.first_seq, "does not count from 1")
    _check_records(request.records)
    batches, seq = [], request.first_seq
    for rich, group in groupby(request.records, key=lambda record: record.HasField("rich")):
        records = list(group)
        make = _rich_batch if rich else _batch
        batches.append(make(who, seq, records, now_us))
        seq += len(records)
    return batches


def _batch(
    who: Rank, seq: int, records: Sequence[records_pb2.LoggedRecord], now_us: int
) -> events_pb2.MetricBatch:
    """A matrix for each row of records with the same keys."""
    batch = _empty(who, seq, records, (key for record in records for key in record.values))
    places = {key: place for place, key in enumerate(batch.keys)}
    for columns, group in groupby(records, key=lambda record: tuple(sorted(record.values))):
        alike = list(group)
        batch.matrices.add(
            key_indices=[places[key] for key in columns],
            step_deltas=_deltas(record.step for record in alike),
            time_deltas_us=_deltas(_time_us(record, now_us) for record in alike),
            values=[record.values[key] for record in alike for key in columns],
        )
    return batch


def _rich_batch(
    who: Rank, seq: int, records: Sequence[records_pb2.LoggedRecord], now_us: int
) -> events_pb2.MetricBatch:
    batch = _empty(who, seq, records, (record.rich.key for record in records))
    places = {key: place for place, key in enumerate(batch.keys)}
    for record in records:
        value = batch.rich.add(
            key_index=places[record.rich.key], step=record.step, time_us=_time_us(record, now_us)
        )
        kind = record.rich.WhichOneof("value")
        if kind == "text":
            value.text = record.rich.text
        elif kind is not None:
            getattr(value, kind).CopyFrom(getattr(record.rich, kind))
        if problem := rich_problem(value, len(batch.keys)) or _picture_problem(value):
            raise _wrong(f"records.rich[{record.rich.key}]", "", f"is none: {problem}")
    return batch


def _picture_problem(value: events_pb2.RichValue) -> str:
    if value.HasField("picture") and value.picture.media_type not in _PICTURES:
        return f"a picture is one of {', '.join(_PICTURES)}"
    return "a caption has more than 1,000 characters" if len(value.picture.caption) > _LONGEST_CAPTION else ""


def _empty(
    who: Rank, seq: int, records: Sequence[records_pb2.LoggedRecord], keys: Iterable[str]
) -> events_pb2.MetricBatch:
    found = tuple(sorted(set(keys)))
    if problem := key_problem(found):
        raise _wrong("records.values", "", problem)
    return events_pb2.MetricBatch(
        job_id=who.job_id,
        epoch=who.epoch,
        rank=who.rank,
        first_seq=seq,
        num_records=len(records),
        keys=found,
    )


def _check_records(records: Sequence[records_pb2.LoggedRecord]) -> None:
    if sum(len(record.values) for record in records) > _MOST_POINTS:
        raise _wrong("records", len(records), f"have more than {_MOST_POINTS} values; send several calls")
    for place, record in enumerate(records):
        if abs(record.step) > _LONGEST_STEP:
            raise _wrong(f"records[{place}].step", record.step, "is larger than a step may be")
        if bool(record.values) == record.HasField("rich"):
            problem = "stand beside `rich`" if record.values else "are missing"
            raise _wrong(f"records[{place}].values", "", problem)


def _time_us(record: records_pb2.LoggedRecord, now_us: int) -> int:
    if not record.HasField("time"):
        return now_us
    time_us = record.time.ToMicroseconds()
    if not 0 <= time_us <= _MOST_TIME_US:
        raise _wrong("records.time", record.time.seconds, "is not between 1970 and 2255")
    return time_us


def _deltas(numbers: Iterable[int]) -> Iterator[int]:
    before = 0
    for number in numbers:
        yield number - before
        before = number


def _chunk(who: Rank, request: records_pb2.WriteRecordsRequest, now_us: int) -> events_pb2.LogChunk:
    """Makes the message an agent would send for lines of a log."""
    if request.log_offset > MAX_SEQ:
        raise _wrong("log_offset", request.log_offset, "is larger than an offset may be")
    offsets, end = [], request.log_offset
    for place, line in enumerate(request.lines):
        if "\n" in line.text:
            raise _wrong(f"lines[{place}].text", line.text, "holds the end of a line; send several lines")
        offsets.append(end)
        end += len(line.text.encode()) + 1
    return events_pb2.LogChunk(
        job_id=who.job_id,
        epoch=who.epoch,
        rank=who.rank,
        offset=request.log_offset,
        num_bytes=end - request.log_offset,
        lines=[line.text for line in request.lines],
        line_offsets=offsets,
        time_us=now_us,
        levels=[line.level for line in request.lines],
        steps=[line.step for line in request.lines],
    )


def _wrong(field: str, value: object, problem: str) -> InvalidArgument:
    return InvalidArgument("FIELD_INVALID", f"{field} {problem}", field=field, value=value, remedy="mend it")
