"""The rpcs of the metrics service: check, call, reply."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import export_pb2, metrics_pb2, metrics_pb2_grpc, policy_pb2, runs_pb2
from tunesmith_kit import names
from tunesmith_kit.db import Database
from tunesmith_kit.watch import CommitSignal
from tunesmith_metrics import drawing, export, nodeseries, richseries, runquery, store, summaries
from tunesmith_metrics.changes import changes
from tunesmith_metrics.curves import Curves, Reader
from tunesmith_metrics.drawing import Drawing, Response
from tunesmith_metrics.events import Rank
from tunesmith_metrics.housekeeping import Housekeeping
from tunesmith_metrics.runtable import Table, Tables
from tunesmith_metrics.viewers import Viewers

Context = Any
_JOB = "projects/*/jobs/*"
_PROJECT = "projects/*"
_WATCH_BYTES = 1024 * 1024
_STREAM_POINTS = 40_000  # 24 bytes each: a message stays below a megabyte


class MetricsService(metrics_pb2_grpc.MetricsServiceServicer):
    """MetricsService of the contract."""

    def __init__(
        self,
        db: Database,
        signal: CommitSignal,
        viewers: Viewers,
        curves: Curves,
        tables: Tables,
        housekeeping: Housekeeping,
    ) -> None:
        self._db, self._signal, self._viewers = db, signal, viewers
        self._curves, self._tables, self._housekeeping = curves, tables, housekeeping

    async def ListMetrics(
        self, request: metrics_pb2.ListMetricsRequest, context: Context
    ) -> metrics_pb2.ListMetricsResponse:
        """Lists the metrics of a job with their last values."""
        project, job_id = names.parse(_JOB, request.parent, "parent")

        def read(session: Session) -> metrics_pb2.ListMetricsResponse:
            if not store.belongs(session, project, job_id):
                return metrics_pb2.ListMetricsResponse()
            numbers = [_summary(row) for row in store.fresh_summaries(session, job_id)]
            found = sorted([*numbers, *richseries.summaries(session, job_id)], key=lambda each: each.key)
            return metrics_pb2.ListMetricsResponse(metrics=found)

        return await self._db.read(read)

    async def QuerySeries(
        self, request: metrics_pb2.QuerySeriesRequest, context: Context
    ) -> metrics_pb2.QuerySeriesResponse:
        """Returns curves, in full or reduced."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        wanted, keys = Drawing.of(request), request.keys or None
        found, revision = await self._curves.visit(
            project, job_id, lambda reader: Response().series(wanted, reader, keys)
        )
        return metrics_pb2.QuerySeriesResponse(series=found, revision=revision)

    async def CompareSeries(
        self, request: metrics_pb2.CompareSeriesRequest, context: Context
    ) -> metrics_pb2.CompareSeriesResponse:
        """Returns curves of many jobs; jobs that have not what the axis is made from are left out."""
        jobs = _jobs(request.parent, request.jobs)
        wanted, response = Drawing.of(request, default_points=500), Response()
        answer = metrics_pb2.CompareSeriesResponse()

        def draw(reader: Reader) -> list[metrics_pb2.Series]:
            return response.series(wanted, reader, request.keys) if wanted.axis_of(reader).usable else []

        named = iter(jobs)
        async for found, revision in self._curves.visit_each(
            [(project, job_id) for _, project, job_id in jobs], draw
        ):
            name, *_ = next(named)
            answer.revision = min(answer.revision or revision, revision)
            if found:
                answer.jobs.add(job=name, series=found)
        return answer

    async def StreamSeries(
        self, request: export_pb2.StreamSeriesRequest, context: Context
    ) -> AsyncIterator[export_pb2.StreamSeriesResponse]:
        """Streams whole curves as packed arrays."""
        low, high = drawing.steps_of(request.min_step, request.max_step)
        for name, project, job_id in _jobs(request.parent, request.jobs):
            async for key, curve in self._curves.each(project, job_id, request.keys or None):
                part = drawing.between(curve, low, high)
                for start in range(0, len(part.steps), _STREAM_POINTS):
                    rows = slice(start, start + _STREAM_POINTS)
                    yield export_pb2.StreamSeriesResponse(
                        job=name,
                        key=key,
                        steps=part.steps[rows].astype("<i8").tobytes(),
                        times_us=part.times_us[rows].astype("<i8").tobytes(),
                        values=part.values[rows].astype("<f8").tobytes(),
                    )

    async def ExportSeries(
        self, request: export_pb2.ExportSeriesRequest, context: Context
    ) -> AsyncIterator[export_pb2.ExportSeriesResponse]:
        """Streams a file with whole curves."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        low, high = drawing.steps_of(request.min_step, request.max_step)
        form, keys = export.form_of(request.format), request.keys or None
        sizes, _ = await self._curves.visit(project, job_id, lambda reader: dict(reader.sizes))
        wanted = sorted(sizes if keys is None else set(keys))
        file = export.exporter(request.format, wanted, time.time_ns() // 1000)
        yield export_pb2.ExportSeriesResponse(
            data=file.begin(),
            content_type=form.media_type,
            file_name=export.file_name(request.format, job_id),
        )
        async for key, curve in self._curves.each(project, job_id, wanted):
            pieces = file.curve(key, drawing.between(curve, low, high))
            while piece := await asyncio.to_thread(next, pieces, b""):
                yield export_pb2.ExportSeriesResponse(data=piece)
        if form.takes_rich:
            async for key, value in richseries.each(self._db, project, job_id, keys, low, high):
                yield export_pb2.ExportSeriesResponse(data=file.rich(key, value))
        yield export_pb2.ExportSeriesResponse(data=file.end())

    async def DescribeSeries(
        self, request: export_pb2.DescribeSeriesRequest, context: Context
    ) -> export_pb2.DescribeSeriesResponse:
        """Returns mean, deviation, extremes and quantiles of curves."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        low, high = drawing.steps_of(request.min_step, request.max_step)

        def describe(reader: Reader) -> list[export_pb2.SeriesDescription]:
            parts = (
                (key, drawing.between(curve, low, high)) for key, curve in reader.each(request.keys or None)
            )
            return [drawing.description(key, part) for key, part in parts if len(part.steps)]

        found, _ = await self._curves.visit(project, job_id, describe)
        return export_pb2.DescribeSeriesResponse(descriptions=found)

    async def QueryRichSeries(
        self, request: export_pb2.QueryRichSeriesRequest, context: Context
    ) -> export_pb2.QueryRichSeriesResponse:
        """Returns histograms, texts and pictures."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        wanted = richseries.Wanted.of(request)

        def read(session: Session) -> export_pb2.QueryRichSeriesResponse:
            if not store.belongs(session, project, job_id):
                return export_pb2.QueryRichSeriesResponse()
            return richseries.page(session, job_id, wanted)

        return await self._db.read(read)

    async def QueryRuns(
        self, request: runs_pb2.QueryRunsRequest, context: Context
    ) -> runs_pb2.QueryRunsResponse:
        """Returns a table of jobs."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")

        def answer(session: Session, table: Table) -> runs_pb2.QueryRunsResponse:
            return runquery.Query(table, request).answer(summaries.summed(session))

        return await self._tables.visit(self._db, project, answer)

    async def ListRunColumns(
        self, request: runs_pb2.ListRunColumnsRequest, context: Context
    ) -> runs_pb2.ListRunColumnsResponse:
        """Lists what QueryRuns can show, filter and sort by."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        return await self._tables.visit(self._db, project, lambda _, table: runquery.columns(table))

    async def WatchSeries(
        self, request: metrics_pb2.WatchSeriesRequest, context: Context
    ) -> AsyncIterator[metrics_pb2.WatchSeriesResponse]:
        """Streams points as they are stored."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        keys, before = frozenset(request.keys) or None, request.from_revision

        async def fetch(revision: int) -> tuple[Sequence[metrics_pb2.Series], int]:
            return await self._db.read(lambda s: _points_after(s, project, job_id, keys, revision))

        async with self._viewers.watching(project, job_id):
            async for found, revision in changes(self._db, self._signal, fetch, request.from_revision):
                # Compacted points come many under one revision: only the last message has brought them all.
                *parts, last = drawing.parts(found)
                for part in parts:
                    yield metrics_pb2.WatchSeriesResponse(series=part, revision=min(before, revision))
                yield metrics_pb2.WatchSeriesResponse(series=last, revision=revision)
                before = revision

    async def QueryNodeSeries(
        self, request: metrics_pb2.QueryNodeSeriesRequest, context: Context
    ) -> metrics_pb2.QueryNodeSeriesResponse:
        """Returns a node's own series over a span of time."""
        return await self._db.read(lambda session: nodeseries.answer(session, request, time.time()))

    async def GetMetricsPolicy(
        self, request: policy_pb2.GetMetricsPolicyRequest, context: Context
    ) -> policy_pb2.GetMetricsPolicyResponse:
        """Returns what a project stores and how much it may."""
        return await self._housekeeping.policy(request)

    async def SetMetricsPolicy(
        self, request: policy_pb2.SetMetricsPolicyRequest, context: Context
    ) -> policy_pb2.SetMetricsPolicyResponse:
        """Sets how much a project may store, and for how long."""
        return await self._housekeeping.set_policy(request)

    async def ListDeadLetters(
        self, request: policy_pb2.ListDeadLettersRequest, context: Context
    ) -> policy_pb2.ListDeadLettersResponse:
        """Lists messages that no consumer could use."""
        return await self._housekeeping.dead_letters(request)

    async def GetWatermark(
        self, request: metrics_pb2.GetWatermarkRequest, context: Context
    ) -> metrics_pb2.GetWatermarkResponse:
        """Returns how far the records of a rank are stored."""
        project, job_id = names.parse(_JOB, request.job, "job")
        who = Rank(project, job_id, request.epoch, request.rank)
        mark = await self._db.read(lambda session: store.watermark(session, who))
        return metrics_pb2.GetWatermarkResponse(metrics_seq=mark.metrics_seq, log_offset=mark.log_offset)


def _jobs(parent: str, jobs: Sequence[str]) -> list[tuple[str, str, str]]:
    """Returns name, project and id of jobs, each once.

    Raises:
        InvalidArgument: a name is wrong or of another project.
    """
    (project,) = names.parse(_PROJECT, parent, "parent")
    return [(name, project, names.parse(f"{parent}/jobs/*", name, "jobs")[0]) for name in dict.fromkeys(jobs)]


def _summary(row: dict[str, Any]) -> metrics_pb2.MetricSummary:
    return metrics_pb2.MetricSummary(
        key=row["key"],
        last_value=store.from_column(row["last_value"]),
        last_step=row["last_step"],
        num_points=row["num_points"],
        min_value=store.from_column(row["min_value"]),
        max_value=store.from_column(row["max_value"]),
        kind=metrics_pb2.METRIC_KIND_NUMBER,
    )


def _points_after(
    session: Session, project: str, job_id: str, keys: frozenset[str] | None, revision: int
) -> tuple[Sequence[metrics_pb2.Series], int]:
    curves, reached = store.points_after(session, job_id, revision, _WATCH_BYTES, keys)
    if not curves or not store.belongs(session, project, job_id):
        return [], reached
    return drawing.whole(curves), reached
