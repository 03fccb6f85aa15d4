"""The jobs service without its rpcs: real database, real stores, a scheduler, and a clock to be set."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import jobs_pb2, queue_pb2, spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs import machine
from tunesmith_jobs.change import JobChange
from tunesmith_jobs.explain import Explainer
from tunesmith_jobs.fleet import FleetStore
from tunesmith_jobs.quotas import QuotaStore
from tunesmith_jobs.reports import Reports
from tunesmith_jobs.scheduler import Scheduler
from tunesmith_jobs.store import Caller, JobStore
from tunesmith_jobs.tables import METADATA, JobRow
from tunesmith_jobs.verbs import Verbs
from tunesmith_kit import migrate
from tunesmith_kit.db import Database

CALLER = Caller("tests")


class SetClock:
    """A clock that stands until it is set; the time of day can be set apart from the time that passes."""

    def __init__(self) -> None:
        self.day, self.passed = datetime(2026, 1, 1, tzinfo=UTC), 1000.0

    def now(self) -> datetime:
        return self.day

    def monotonic(self) -> float:
        return self.passed

    def pass_by(self, seconds: float) -> None:
        """Lets time pass."""
        self.day, self.passed = self.day + timedelta(seconds=seconds), self.passed + seconds


class Stage:
    """Nodes and jobs are entered as their owners would; passes are made one at a time."""

    def __init__(self, db: Database) -> None:
        self.db, self.clock = db, SetClock()
        self.store, self.verbs = JobStore(db, self.clock), Verbs(db, self.clock)
        self.fleet = FleetStore(db, self.clock)
        self.reports, self.quotas = Reports(db, self.clock), QuotaStore(db)
        self.scheduler, self.explainer = Scheduler(db, self.clock), Explainer(db, self.clock)

    async def node(
        self, name: str, slots: int = 1, gpus: int = 0, memory: int = 1 << 34, **labels: str
    ) -> None:
        """Enters a node."""
        capacity = nodes_pb2.NodeCapacity(slots=slots, memory_bytes=memory)
        for index in range(gpus):
            capacity.gpus.add(index=index)
        await self.fleet.register(
            nodes_pb2.RegisterNodeRequest(node_id=name, capacity=capacity, labels=labels)
        )

    async def queue(
        self, project: str = "default", deadlines: spec_pb2.DeadlineSpec | None = None, **resources: object
    ) -> str:
        """Submits a job, lets its inputs be valid, and returns its name."""
        spec = spec_pb2.JobSpec(
            base_model="tiny",
            dataset="sums",
            resources=spec_pb2.ResourceSpec(**resources),  # type: ignore[arg-type]
            deadlines=deadlines,
        )
        request = jobs_pb2.CreateJobRequest(parent=f"projects/{project}", spec=spec)
        job = await self.store.create(request, CALLER)

        def validate(session: Session) -> None:
            change = self._change(session, job.name)
            change.move(machine.after_inputs(valid=True))
            change.save()

        await self.db.write(validate)
        return job.name

    def _change(self, session: Session, name: str) -> JobChange:
        row = session.get_one(JobRow, name.rsplit("/", 1)[1])
        return JobChange(session, row, "tests", self.clock.now())

    async def get(self, name: str) -> jobs_pb2.Job:
        return await self.store.get(name)

    async def state(self, name: str) -> str:
        """Returns where a job stands, and why, for example `QUEUED PREEMPTED`."""
        job = await self.get(name)
        reason = state_pb2.StateReason.Name(job.state_reason).removeprefix("STATE_REASON_")
        state = state_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")
        return state if reason == "UNSPECIFIED" else f"{state} {reason}"

    async def why(self, name: str) -> str:
        """Returns the reason a waiting job's condition gives."""
        return next((c.reason for c in (await self.get(name)).conditions if c.type == "Scheduled"), "")

    async def attempt(self, name: str) -> state_pb2.Attempt:
        """Returns the newest attempt of a job."""
        answer = await self.store.attempts(jobs_pb2.ListAttemptsRequest(parent=name))
        return answer.attempts[0]

    async def report(self, name: str, *states: str, **what: object) -> nodes_pb2.ReportAttemptResponse:
        """Says what the job's agent would: its attempt went through these states."""
        attempt = await self.attempt(name)
        answer = nodes_pb2.ReportAttemptResponse()
        for state in states:
            request = nodes_pb2.ReportAttemptRequest(
                job=name,
                epoch=attempt.epoch,
                node=attempt.nodes[0],
                state=state_pb2.AttemptState.Value(f"ATTEMPT_STATE_{state}"),
                **what,  # type: ignore[arg-type]
            )
            answer = await self.reports.take(request)
        return answer

    async def run(self, project: str = "default", **resources: object) -> str:
        """Submits a job and starts it at once; returns its name."""
        name = await self.queue(project, **resources)  # type: ignore[arg-type]
        await self.scheduler.run_once()
        await self.report(name, "LAUNCHING", "READY", "RUNNING")
        return name

    async def set_quota(self, project: str, **limits: object) -> queue_pb2.Quota:
        """Sets a quota."""
        quota = queue_pb2.Quota(name=f"projects/{project}/quota", **limits)  # type: ignore[arg-type]
        return (await self.quotas.set(queue_pb2.SetQuotaRequest(quota=quota), CALLER)).quota

    async def explain(self, name: str) -> queue_pb2.ExplainJobResponse:
        return await self.explainer.explain(queue_pb2.ExplainJobRequest(name=name))


@asynccontextmanager
async def stage(url: str) -> AsyncIterator[Stage]:
    """Opens a stage on a database and closes it."""
    await asyncio.to_thread(migrate.upgrade, url, "jobs", METADATA)
    db = Database(url, "jobs")
    try:
        yield Stage(db)
    finally:
        await db.close()
