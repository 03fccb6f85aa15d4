"""The rpc of RecordService: what programs write themselves becomes the messages that agents would send.

They go into the store by the same way as an agent's, only that the answer comes after the commit. So what was
sent twice is stored once, and a program may forget what the answer covers.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import select

from tunesmith.api.metrics.v1 import events_pb2, records_pb2, records_pb2_grpc
from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from tunesmith_kit import names
from tunesmith_kit.db import Database
from tunesmith_metrics import store
from tunesmith_metrics.events import MAX_EPOCH, MAX_SEQ, Rank, key_problem
from tunesmith_metrics.ingest import Ingest
from tunesmith_metrics.retention import forgotten
from tunesmith_metrics.tables import RUNS

Context = Any
_JOB = "projects/*/jobs/*"
_MOST_POINTS = 100_000  # of one call
_LONGEST_STEP = 2**53  # beyond it steps are not exact in a browser
_MOST_TIME_US = 2**53


class RecordService(records_pb2_grpc.RecordServiceServicer):
    """RecordService of the contract."""

    def __init__(self, db: Database, ingest: Ingest) -> None:
        self._db, self._ingest = db, ingest

    async def WriteRecords(
        self, request: records_pb2.WriteRecordsRequest, context: Context
    ) -> records_pb2.WriteRecordsResponse:
        """Stores points and lines of an external run and tells how far all is stored."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        if request.epoch > MAX_EPOCH:
            raise _wrong("epoch", request.epoch, "is not one that StartExternalRun gave")
        who = Rank(project, job_id, request.epoch, 0)
        now_us = time.time_ns() // 1000
        batch = _batch(who, request, now_us) if request.records else None
        chunk = _chunk(who, request, now_us) if request.lines else None
        await self._check(who)
        if batch is not None and self._ingest.is_full(project):
            raise ResourceExhausted(
                "PROJECT_FULL",
                "the project stores as many points as it may",
                field="parent",
                value=project,
                remedy="raise max_points of the project, or delete jobs; what waits is sent then",
            )
        await self._ingest.take(who, batch, chunk)
        mark = await self._db.read(lambda session: store.watermark(session, who))
        return records_pb2.WriteRecordsResponse(metrics_seq=mark.metrics_seq, log_offset=mark.log_offset)

    async def _check(self, who: Rank) -> None:
        """Refuses jobs that agents write for.

        Raises:
            Unavailable: the jobs service has not told of the job yet; it does within a second.
            NotFound: the run was deleted, or its points were kept long enough.
            FailedPrecondition: the job is none of a program of its own.
        """
        query = select(RUNS.c.project, RUNS.c.external, RUNS.c.job_revision).where(
            RUNS.c.job_id == who.job_id
        )
        row = await self._db.read(lambda session: session.execute(query).one_or_none())
        if row is None and await self._db.read(lambda session: bool(forgotten(session, [who.job_id]))):
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


def _batch(who: Rank, request: records_pb2.WriteRecordsRequest, now_us: int) -> events_pb2.MetricBatch:
    """Makes the message an agent would send: a matrix for each row of records with the same keys."""
    if not 1 <= request.first_seq <= MAX_SEQ:
        raise _wrong("first_seq", request.first_seq, "does not count from 1")
    _check_records(request.records)
    keys = tuple(sorted({key for record in request.records for key in record.values}))
    if problem := key_problem(keys):
        raise _wrong("records.values", "", problem)
    places = {key: place for place, key in enumerate(keys)}
    batch = events_pb2.MetricBatch(
        job_id=who.job_id,
        epoch=who.epoch,
        rank=who.rank,
        first_seq=request.first_seq,
        num_records=len(request.records),
        keys=keys,
    )
    for columns, group in groupby(request.records, key=lambda record: tuple(sorted(record.values))):
        records = list(group)
        batch.matrices.add(
            key_indices=[places[key] for key in columns],
            step_deltas=_deltas(record.step for record in records),
            time_deltas_us=_deltas(_time_us(record, now_us) for record in records),
            values=[record.values[key] for record in records for key in columns],
        )
    return batch


def _check_records(records: Sequence[records_pb2.LoggedRecord]) -> None:
    if sum(len(record.values) for record in records) > _MOST_POINTS:
        raise _wrong("records", len(records), f"have more than {_MOST_POINTS} values; send several calls")
    for place, record in enumerate(records):
        if abs(record.step) > _LONGEST_STEP:
            raise _wrong(f"records[{place}].step", record.step, "is larger than a step may be")
        if not record.values:
            raise _wrong(f"records[{place}].values", "", "are missing")


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
