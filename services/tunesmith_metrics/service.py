"""The rpcs of the metrics service: check, call, reply."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2, metrics_pb2_grpc
from tunesmith.errors import ResourceExhausted
from tunesmith_kit import names
from tunesmith_kit.db import Database, current_revision
from tunesmith_kit.watch import CommitSignal, Fetch, follow
from tunesmith_metrics import logs, series, store
from tunesmith_metrics.events import Rank
from tunesmith_metrics.tables import LOG_CHUNKS, REVISION, SEGMENTS

T = TypeVar("T")
Context = Any
_JOB = "projects/*/jobs/*"
_WATCH_BYTES = 1024 * 1024
# At about 22 bytes a point a response stays below the 16 MiB a message may have.
_MAX_POINTS = 600_000


class MetricsService(metrics_pb2_grpc.MetricsServiceServicer):
    """MetricsService of the contract."""

    def __init__(self, db: Database, signal: CommitSignal) -> None:
        self._db, self._signal = db, signal

    async def ListMetrics(
        self, request: metrics_pb2.ListMetricsRequest, context: Context
    ) -> metrics_pb2.ListMetricsResponse:
        """Lists the metrics of a job with their last values."""
        project, job_id = names.parse(_JOB, request.parent, "parent")

        def read(session: Session) -> metrics_pb2.ListMetricsResponse:
            if not store.belongs(session, project, job_id):
                return metrics_pb2.ListMetricsResponse()
            rows = store.fresh_summaries(session, job_id)
            return metrics_pb2.ListMetricsResponse(metrics=[_summary(row) for row in rows])

        return await self._db.read(read)

    async def QuerySeries(
        self, request: metrics_pb2.QuerySeriesRequest, context: Context
    ) -> metrics_pb2.QuerySeriesResponse:
        """Returns curves, in full or in buckets."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        low, high = request.min_step or None, request.max_step or None

        def read(session: Session) -> metrics_pb2.QuerySeriesResponse:
            revision = current_revision(session, REVISION)
            if not store.belongs(session, project, job_id):
                return metrics_pb2.QuerySeriesResponse(revision=revision)
            merger = series.Merger(_keys(request.keys))
            for batch in store.batches(session, job_id, low, high):
                merger.add(batch)
            found = series.messages(merger.curves(low, high), request.max_points)
            _check_size(found)
            return metrics_pb2.QuerySeriesResponse(series=found, revision=revision)

        return await self._db.read(read)

    async def WatchSeries(
        self, request: metrics_pb2.WatchSeriesRequest, context: Context
    ) -> AsyncIterator[metrics_pb2.WatchSeriesResponse]:
        """Streams points as they are stored."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        keys = _keys(request.keys)

        async def fetch(revision: int) -> tuple[Sequence[metrics_pb2.Series], int]:
            return await self._db.read(lambda s: _points_after(s, project, job_id, keys, revision))

        changes = _changes(self._db, self._signal, fetch, request.from_revision)
        async for found, revision in changes:
            yield metrics_pb2.WatchSeriesResponse(series=found, revision=revision)

    async def GetWatermark(
        self, request: metrics_pb2.GetWatermarkRequest, context: Context
    ) -> metrics_pb2.GetWatermarkResponse:
        """Returns how far the records of a rank are stored."""
        project, job_id = names.parse(_JOB, request.job, "job")
        who = Rank(project, job_id, request.epoch, request.rank)
        mark = await self._db.read(lambda session: store.watermark(session, who))
        return metrics_pb2.GetWatermarkResponse(metrics_seq=mark.metrics_seq, log_offset=mark.log_offset)


class LogService(metrics_pb2_grpc.LogServiceServicer):
    """LogService of the contract."""

    def __init__(self, db: Database, signal: CommitSignal) -> None:
        self._db, self._signal = db, signal

    async def QueryLogs(
        self, request: metrics_pb2.QueryLogsRequest, context: Context
    ) -> metrics_pb2.QueryLogsResponse:
        """Returns log lines, oldest first."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        cursor = names.page_cursor(request.parent, request.page_token)

        def read(session: Session) -> metrics_pb2.QueryLogsResponse:
            revision = current_revision(session, REVISION)
            if not store.belongs(session, project, job_id):
                return metrics_pb2.QueryLogsResponse(revision=revision)
            page = logs.query(
                session,
                job_id,
                epoch=request.epoch,
                contains=request.contains,
                page_size=names.page_size(request.page_size, 500, 10_000),
                cursor=cursor,
                tail=request.tail,
            )
            token = names.page_token(request.parent, page.cursor) if page.cursor else ""
            return metrics_pb2.QueryLogsResponse(lines=page.lines, next_page_token=token, revision=revision)

        return await self._db.read(read)

    async def TailLogs(
        self, request: metrics_pb2.TailLogsRequest, context: Context
    ) -> AsyncIterator[metrics_pb2.TailLogsResponse]:
        """Streams log lines as they are stored."""
        project, job_id = names.parse(_JOB, request.parent, "parent")

        async def fetch(revision: int) -> tuple[Sequence[metrics_pb2.LogLine], int]:
            return await self._db.read(lambda s: _lines_after(s, project, job_id, revision))

        changes = _changes(self._db, self._signal, fetch, request.from_revision)
        async for found, revision in changes:
            yield metrics_pb2.TailLogsResponse(lines=found, revision=revision)


async def _changes(
    db: Database, signal: CommitSignal, fetch: Fetch[T], revision: int
) -> AsyncIterator[tuple[Sequence[T], int]]:
    """Yields what was stored after a revision page by page, then what is stored from now on."""
    newest = await db.read(lambda session: current_revision(session, REVISION))
    if revision > newest:  # known from before a backup was restored: what it meant is gone
        revision = 0
    while True:
        found, reached = await fetch(revision)
        if not found:
            break
        revision = reached
        yield found, revision
    async for found, reached in follow(signal, fetch, revision):
        yield found, reached


def _keys(keys: Sequence[str]) -> frozenset[str] | None:
    return frozenset(keys) or None


def _summary(row: dict[str, Any]) -> metrics_pb2.MetricSummary:
    return metrics_pb2.MetricSummary(
        key=row["key"],
        last_value=store.from_column(row["last_value"]),
        last_step=row["last_step"],
        num_points=row["num_points"],
        min_value=store.from_column(row["min_value"]),
        max_value=store.from_column(row["max_value"]),
    )


def _check_size(found: Sequence[metrics_pb2.Series]) -> None:
    num_points = sum(len(each.steps) for each in found)
    if num_points > _MAX_POINTS:
        raise ResourceExhausted(
            "MESSAGE_TOO_LARGE",
            f"the answer would hold {num_points} points",
            field="max_points",
            remedy="set max_points, or ask for fewer keys or a range of steps",
        )


def _points_after(
    session: Session, project: str, job_id: str, keys: frozenset[str] | None, revision: int
) -> tuple[Sequence[metrics_pb2.Series], int]:
    payloads, reached = store.payloads_after(session, SEGMENTS, job_id, revision, _WATCH_BYTES)
    if not payloads or not store.belongs(session, project, job_id):
        return [], reached
    merger = series.Merger(keys)
    for payload in payloads:
        merger.add(events_pb2.MetricBatch.FromString(payload))
    return series.messages(merger.curves()), reached


def _lines_after(
    session: Session, project: str, job_id: str, revision: int
) -> tuple[Sequence[metrics_pb2.LogLine], int]:
    payloads, reached = store.payloads_after(session, LOG_CHUNKS, job_id, revision, _WATCH_BYTES)
    if not payloads or not store.belongs(session, project, job_id):
        return [], reached
    chunks = (events_pb2.LogChunk.FromString(payload) for payload in payloads)
    return [line for chunk in chunks for line in logs.lines(chunk)], reached
