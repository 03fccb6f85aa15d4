"""Quotas of projects in the database."""

from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import queue_pb2
from tunesmith_jobs.reservation import usage_of
from tunesmith_jobs.store import Caller
from tunesmith_jobs.tables import REQUESTS, REVISION, QuotaRow
from tunesmith_kit import names
from tunesmith_kit.db import Database, next_revision
from tunesmith_kit.idempotency import once


class QuotaStore:
    """What the rpcs about quotas need."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, request: queue_pb2.GetQuotaRequest) -> queue_pb2.GetQuotaResponse:
        """Returns a project's quota and what it uses; a project without one has no limits and weight 1."""
        (project,) = names.parse("projects/*/quota", request.name)
        return await self._db.read(lambda session: queue_pb2.GetQuotaResponse(quota=_quota(session, project)))

    async def set(self, request: queue_pb2.SetQuotaRequest, caller: Caller) -> queue_pb2.SetQuotaResponse:
        """Sets a project's quota as a whole: a limit that is absent is no limit."""
        (project,) = names.parse("projects/*/quota", request.quota.name, "quota.name")
        asked = request.quota

        def act(session: Session) -> queue_pb2.SetQuotaResponse:
            # Revision first, then rows: the order in which the scheduler locks.
            revision = next_revision(session, REVISION)
            row = session.get(QuotaRow, project, with_for_update=True) or QuotaRow(
                project=project, revision=0
            )
            row.max_running_jobs = asked.max_running_jobs if asked.HasField("max_running_jobs") else None
            row.max_gpus = asked.max_gpus if asked.HasField("max_gpus") else None
            row.weight = asked.weight if asked.HasField("weight") else 1.0
            row.revision = revision
            session.add(row)
            session.flush()
            return queue_pb2.SetQuotaResponse(quota=_quota(session, project))

        return await self._db.write(
            lambda s: once(s, REQUESTS, caller.name, request, lambda: act(s), queue_pb2.SetQuotaResponse)
        )


def _quota(session: Session, project: str) -> queue_pb2.Quota:
    row = session.get(QuotaRow, project)
    quota = queue_pb2.Quota(name=f"projects/{project}/quota", weight=row.weight if row else 1.0)
    if row is not None and row.max_running_jobs is not None:
        quota.max_running_jobs = row.max_running_jobs
    if row is not None and row.max_gpus is not None:
        quota.max_gpus = row.max_gpus
    used = usage_of(session, [project]).get(project)
    if used is not None:
        quota.running_jobs, quota.gpus = used.jobs, used.gpus
    return quota
