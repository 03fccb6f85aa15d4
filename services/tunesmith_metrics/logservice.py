"""The rpcs of LogService: check, call, reply."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from tunesmith_kit import names
from tunesmith_kit.db import Database, current_revision
from tunesmith_kit.watch import CommitSignal
from tunesmith_metrics import errorlines, logs, store
from tunesmith_metrics.changes import changes
from tunesmith_metrics.tables import LOG_CHUNKS, REVISION

Context = Any
_JOB = "projects/*/jobs/*"
_WATCH_BYTES = 1024 * 1024


class LogService(metrics_pb2_grpc.LogServiceServicer):
    """LogService of the contract."""

    def __init__(self, db: Database, signal: CommitSignal) -> None:
        self._db, self._signal = db, signal

    async def ListErrorLines(
        self, request: metrics_pb2.ListErrorLinesRequest, context: Context
    ) -> metrics_pb2.ListErrorLinesResponse:
        """Returns the lines of a job that tell of errors."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        limit = names.page_size(request.page_size, 20, 200)

        def read(session: Session) -> metrics_pb2.ListErrorLinesResponse:
            if not store.belongs(session, project, job_id):
                return metrics_pb2.ListErrorLinesResponse()
            return errorlines.newest(session, job_id, limit)

        return await self._db.read(read)

    async def QueryLogs(
        self, request: metrics_pb2.QueryLogsRequest, context: Context
    ) -> metrics_pb2.QueryLogsResponse:
        """Returns log lines, oldest first."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        cursor = names.page_cursor(request.parent, request.page_token)
        wanted = logs.Filter.of(request)

        def read(session: Session) -> metrics_pb2.QueryLogsResponse:
            revision = current_revision(session, REVISION)
            if not store.belongs(session, project, job_id):
                return metrics_pb2.QueryLogsResponse(revision=revision)
            page = logs.query(
                session,
                job_id,
                wanted,
                page_size=names.page_size(request.page_size, 500, 10_000),
                cursor=cursor,
                tail=request.tail,
            )
            return metrics_pb2.QueryLogsResponse(
                lines=page.lines,
                next_page_token=names.page_token(request.parent, page.cursor) if page.cursor else "",
                previous_page_token=names.page_token(request.parent, page.before) if page.before else "",
                revision=revision,
            )

        return await self._db.read(read)

    async def TailLogs(
        self, request: metrics_pb2.TailLogsRequest, context: Context
    ) -> AsyncIterator[metrics_pb2.TailLogsResponse]:
        """Streams log lines as they are stored."""
        project, job_id = names.parse(_JOB, request.parent, "parent")
        wanted = logs.Filter.of(request)

        async def fetch(revision: int) -> tuple[Sequence[metrics_pb2.LogLine], int]:
            while True:  # a page none of whose lines is wanted is no reason to wait for the next commit
                found, reached, ended = await self._db.read(
                    lambda s, after=revision: _lines_after(s, project, job_id, wanted, after)  # type: ignore[misc]
                )
                if found or ended:
                    return found, reached
                revision = reached

        async for found, revision in changes(self._db, self._signal, fetch, request.from_revision):
            yield metrics_pb2.TailLogsResponse(lines=found, revision=revision)


def _lines_after(
    session: Session, project: str, job_id: str, wanted: logs.Filter, revision: int
) -> tuple[Sequence[metrics_pb2.LogLine], int, bool]:
    """A page of lines stored after a revision, the revision reached, and whether there was nothing more."""
    payloads, reached = store.payloads_after(session, LOG_CHUNKS, job_id, revision, _WATCH_BYTES)
    if not payloads or not store.belongs(session, project, job_id):
        return [], reached, True
    return [line for payload in payloads for line in wanted.lines(payload)], reached, False
