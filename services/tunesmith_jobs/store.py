"""Jobs, attempts and nodes in the database: reading, and the changes a user asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.errors import FailedPrecondition, NotFound
from tunesmith.names import is_id
from tunesmith_jobs import machine, spec
from tunesmith_jobs.change import JobChange
from tunesmith_jobs.tables import OUTBOX, REQUESTS, REVISION, AttemptRow, JobRow, NodeRow
from tunesmith_kit import names
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database, current_revision
from tunesmith_kit.idempotency import once
from tunesmith_kit.ids import new_ulid, short_suffix

_WATCH_BATCH = 500
M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Caller:
    """Who asks, and in which trace."""

    name: str
    traceparent: str = ""


def find(session: Session, project: str, job: str, even_deleted: bool = False) -> JobRow:
    """Returns a job by its id or readable name, locked for this transaction where the database can.

    Raises:
        NotFound: the project has no such job, or it was deleted.
    """
    column = col(JobRow.id) if is_id(job) else col(JobRow.display_name)
    query = select(JobRow).where(col(JobRow.project) == project, column == job).with_for_update()
    row = session.execute(query).scalar_one_or_none()
    if row is None or (row.deleted and not even_deleted):
        raise NotFound(
            "JOB_NOT_FOUND",
            f"there is no job {job} in project {project}",
            field="name",
            value=job,
            remedy="`tunesmith list` shows the jobs of the project",
        )
    return row


def change_of(
    session: Session, name: str, caller: Caller, now: datetime, revision: int = 0, field: str = "name"
) -> JobChange:
    """Begins a change of the job `name`, if it still has `revision` (0: whatever it has).

    Raises:
        NotFound: there is no such job.
        FailedPrecondition: it has another revision.
    """
    project, job = names.parse("projects/*/jobs/*", name, field)
    change = JobChange(session, find(session, project, job), caller.name, now)
    if revision and revision != change.job.revision:
        raise FailedPrecondition(
            "REVISION_STALE",
            f"the job has revision {change.job.revision}, not {revision}: it changed meanwhile",
            field="revision",
            value=revision,
            remedy="read the job again and decide anew, or leave the revision out",
        )
    return change


def draft(project: str, full: spec_pb2.JobSpec, caller: Caller, now: datetime) -> jobs_pb2.Job:
    """Returns a job of this spec as it is accepted."""
    job_id = new_ulid()
    job = jobs_pb2.Job(
        name=f"projects/{project}/jobs/{job_id}",
        job_id=job_id,
        display_name=f"{full.experiment}-{short_suffix()}",
        spec=full,
        spec_digest=spec.digest(full),
        desired=state_pb2.DESIRED_RUN,
        state=machine.VALIDATING,
        active=True,
        creator=caller.name,
        traceparent=caller.traceparent,
    )
    job.create_time.FromDatetime(now)
    return job


def insert(
    session: Session, project: str, job: jobs_pb2.Job, caller: Caller, now: datetime, parent_id: str = ""
) -> jobs_pb2.Job:
    """Enters an accepted job and asks the registry to check its inputs."""
    taken = select(col(JobRow.id)).where(col(JobRow.project) == project)
    # Of 1,000 jobs of one experiment two have the same four characters with a chance of 0.4.
    while session.execute(taken.where(col(JobRow.display_name) == job.display_name)).first():
        job.display_name = f"{job.spec.experiment}-{short_suffix()}"
    row = JobRow(
        id=job.job_id,
        project=project,
        display_name=job.display_name,
        experiment=job.spec.experiment,
        state=job.state,
        priority=job.spec.resources.priority,
        epoch=0,
        revision=0,
        parent_id=parent_id,
        body=job.SerializeToString(),
    )
    change = JobChange(session, row, caller.name, now)
    created = events_pb2.JobCreated(spec=job.spec)
    if job.HasField("forked_from"):
        created.forked_from.CopyFrom(job.forked_from)
    change.say("created", created)
    return change.save()


class JobStore:
    """What the rpcs of JobService need."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def create(self, request: jobs_pb2.CreateJobRequest, caller: Caller) -> jobs_pb2.Job:
        """Accepts a job in state VALIDATING, once for a request id."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        full = spec.complete(request.spec)

        def act(session: Session) -> jobs_pb2.CreateJobResponse:
            now = self._clock.now()

            def accept() -> jobs_pb2.CreateJobResponse:
                job = insert(session, project, draft(project, full, caller, now), caller, now)
                return jobs_pb2.CreateJobResponse(job=job)

            return once(session, REQUESTS, caller.name, request, accept, jobs_pb2.CreateJobResponse)

        if request.validate_only:
            return draft(project, full, caller, self._clock.now())
        return (await self._db.write(act)).job

    async def get(self, name: str) -> jobs_pb2.Job:
        """Returns one job."""
        project, job = names.parse("projects/*/jobs/*", name)
        return await self._db.read(lambda session: jobs_pb2.Job.FromString(find(session, project, job).body))

    async def list(self, request: jobs_pb2.ListJobsRequest) -> jobs_pb2.ListJobsResponse:
        """Returns a page of jobs, newest first."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        size, cursor = names.page_size(request.page_size), names.page_cursor("jobs", request.page_token)
        query = select(col(JobRow.id), col(JobRow.body)).where(
            col(JobRow.project) == project, col(JobRow.deleted).is_(False)
        )
        if request.states:
            query = query.where(col(JobRow.state).in_(list(request.states)))
        if request.experiment:
            query = query.where(col(JobRow.experiment) == request.experiment)
        if cursor:
            query = query.where(col(JobRow.id) < cursor)
        query = query.order_by(col(JobRow.id).desc()).limit(size + 1)

        def read(session: Session) -> jobs_pb2.ListJobsResponse:
            # The revision is read first: a change between the two reads is sent again, never missed.
            revision = current_revision(session, REVISION)
            rows = session.execute(query).all()
            jobs = [jobs_pb2.Job.FromString(row.body) for row in rows[:size]]
            token = names.page_token("jobs", rows[size - 1].id) if len(rows) > size else ""
            return jobs_pb2.ListJobsResponse(jobs=jobs, next_page_token=token, revision=revision)

        return await self._db.read(read)

    async def attempts(self, request: jobs_pb2.ListAttemptsRequest) -> jobs_pb2.ListAttemptsResponse:
        """Returns a page of a job's attempts, newest first."""
        project, name = names.parse("projects/*/jobs/*", request.parent, "parent")
        size, cursor = names.page_size(request.page_size), names.page_cursor("attempts", request.page_token)

        def read(session: Session) -> jobs_pb2.ListAttemptsResponse:
            query = select(AttemptRow).where(col(AttemptRow.job_id) == find(session, project, name).id)
            if cursor:
                query = query.where(col(AttemptRow.epoch) < int(cursor))
            rows = (
                session.execute(query.order_by(col(AttemptRow.epoch).desc()).limit(size + 1)).scalars().all()
            )
            token = names.page_token("attempts", str(rows[size - 1].epoch)) if len(rows) > size else ""
            attempts = [state_pb2.Attempt.FromString(row.body) for row in rows[:size]]
            return jobs_pb2.ListAttemptsResponse(attempts=attempts, next_page_token=token)

        return await self._db.read(read)

    async def events(self, request: jobs_pb2.ListJobEventsRequest) -> jobs_pb2.ListJobEventsResponse:
        """Returns a page of what happened to a job, oldest first."""
        project, name = names.parse("projects/*/jobs/*", request.parent, "parent")
        size, cursor = names.page_size(request.page_size), names.page_cursor("events", request.page_token)

        def read(session: Session) -> jobs_pb2.ListJobEventsResponse:
            resource = f"projects/{project}/jobs/{find(session, project, name).id}"
            query = select(OUTBOX.c.event_id, OUTBOX.c.payload).where(OUTBOX.c.resource == resource)
            query = query.where(OUTBOX.c.event_id > cursor).order_by(OUTBOX.c.event_id).limit(size + 1)
            rows = session.execute(query).all()
            events = [events_pb2.JobEvent.FromString(row.payload) for row in rows[:size]]
            token = names.page_token("events", rows[size - 1].event_id) if len(rows) > size else ""
            return jobs_pb2.ListJobEventsResponse(events=events, next_page_token=token)

        return await self._db.read(read)

    async def changed_jobs(self, project: str, revision: int) -> tuple[Sequence[jobs_pb2.Job], int]:
        """Returns the jobs changed after `revision` (0: all unfinished ones) and the revision reached.

        A deletion is a change too: who follows sees the job once more, with its `delete_time`.
        """

        def read(session: Session) -> tuple[Sequence[jobs_pb2.Job], int]:
            reached = current_revision(session, REVISION)
            query = select(JobRow).where(col(JobRow.revision) > revision)
            if project != "-":
                query = query.where(col(JobRow.project) == project)
            if revision == 0:
                query = query.where(col(JobRow.state).not_in(machine.TERMINAL))
            return _changes(session, query.order_by(col(JobRow.revision)), jobs_pb2.Job, reached)

        return await self._db.read(read)

    async def changed_nodes(self, revision: int) -> tuple[Sequence[nodes_pb2.Node], int]:
        """Returns the nodes changed after `revision` (0: all) and the revision reached."""

        def read(session: Session) -> tuple[Sequence[nodes_pb2.Node], int]:
            reached = current_revision(session, REVISION)
            query = select(NodeRow).where(col(NodeRow.revision) > revision).order_by(col(NodeRow.revision))
            return _changes(session, query, nodes_pb2.Node, reached)

        return await self._db.read(read)


def _changes(session: Session, query: Any, kind: type[M], reached: int) -> tuple[Sequence[M], int]:
    rows = session.execute(query.limit(_WATCH_BATCH)).scalars().all()
    if len(rows) == _WATCH_BATCH:
        reached = rows[-1].revision  # more are waiting: go on from the last one sent
    else:
        reached = max([reached, *(row.revision for row in rows)])
    return [kind.FromString(row.body) for row in rows], reached
