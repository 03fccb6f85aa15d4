"""Why a job does not run: the rule on each node, and the smallest change that would start it."""

import asyncio

from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import jobs_pb2, queue_pb2
from tunesmith_jobs import machine, pace
from tunesmith_jobs.census import Census, need_of, waiting_of
from tunesmith_jobs.needs import Waiting
from tunesmith_jobs.placement import Blocked, Pass
from tunesmith_jobs.store import find
from tunesmith_jobs.suggestion import Picture, Proposal, suggest
from tunesmith_jobs.verdict import OF_NODE, of_node
from tunesmith_kit import names
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database

_NOT_WAITING = {
    machine.VALIDATING: ("VALIDATING", "its inputs are being checked"),
    machine.STARTING: ("", "it is starting"),
    machine.RUNNING: ("", "it runs"),
    machine.FINALIZING: ("", "it has trained; its result is being registered"),
    machine.PAUSING: ("", "it is being stopped with a checkpoint"),
    machine.CANCELLING: ("", "it is being cancelled"),
}


class Explainer:
    """Answers ExplainJob from a census of its own, so that it never waits for the scheduler."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock
        self._census = Census(clock)
        self._lock = asyncio.Lock()

    async def explain(self, request: queue_pb2.ExplainJobRequest) -> queue_pb2.ExplainJobResponse:
        """Says what blocks a job, decided as the next pass would."""
        project, name = names.parse("projects/*/jobs/*", request.name)

        def read(session: Session) -> tuple[jobs_pb2.Job, Waiting]:
            row = find(session, project, name)
            job = jobs_pb2.Job.FromString(row.body)
            self._census.refresh(session)
            return job, waiting_of(row, job)

        async with self._lock:
            job, waiting = await self._db.read(read)
            return await asyncio.to_thread(self._answer, job, waiting)

    def _answer(self, job: jobs_pb2.Job, waiting: Waiting) -> queue_pb2.ExplainJobResponse:
        answer = queue_pb2.ExplainJobResponse(state=job.state)
        if job.state not in (machine.QUEUED, machine.PAUSED):
            ended = job.state in machine.TERMINAL
            answer.rule, answer.message = ("", "it has ended") if ended else _NOT_WAITING[job.state]
            return answer
        blocked = self._place(answer, self._census.waiting.get(job.job_id, waiting))
        if job.state == machine.PAUSED:
            _explain_pause(answer, job, blocked)
        return answer

    async def foresee(self, job: jobs_pb2.Job) -> queue_pb2.JobForecast:
        """Says when and where a job that is not created yet would start, and at which pace it would train."""
        (project, _) = names.parse("projects/*/jobs/*", job.name)

        def read(session: Session) -> tuple[float, int]:
            self._census.refresh(session)
            return pace.seconds_per_row(session, project, job.spec)

        resources = job.spec.resources
        waiting = Waiting(
            job_id=job.job_id,
            project=project,
            need=need_of(resources),
            priority=resources.priority,
            since=self._clock.now().timestamp(),
        )
        placement = queue_pb2.ExplainJobResponse(state=machine.QUEUED)
        async with self._lock:
            seconds, num_jobs = await self._db.read(read)
            await asyncio.to_thread(self._place, placement, waiting)
        _reword(placement.change)
        forecast = queue_pb2.JobForecast(placement=placement, num_jobs=num_jobs)
        if num_jobs:
            forecast.seconds_per_row = seconds
        return forecast

    def _place(self, answer: queue_pb2.ExplainJobResponse, waiting: Waiting) -> Blocked | None:
        """Fills in what the next pass would do with a job that waits; returns why it would not place it."""
        census, job_id = self._census, waiting.job_id
        picture = Picture(
            dict(census.waiting), census.running, census.nodes, census.quotas, self._clock.now().timestamp()
        ).with_job(waiting)
        found = picture.decide(job_id)
        _add_verdicts(answer, picture, waiting, found)
        num_decided = len(found.decision.placements) + len(found.decision.blocked)
        answer.queue_position = num_decided - 1
        blocked = next((b for b in found.decision.blocked if b.job.job_id == job_id), None)
        if answer.state == machine.PAUSED:
            return blocked
        if blocked is None:
            answer.message = "nothing blocks it: the next pass of the scheduler starts it"
        else:
            answer.rule, answer.message = blocked.reason, blocked.message
            _add_change(answer, suggest(picture, job_id))
        return blocked


def _explain_pause(answer: queue_pb2.ExplainJobResponse, job: jobs_pb2.Job, blocked: Blocked | None) -> None:
    answer.rule, answer.message = "PAUSED", "it is paused"
    answer.queue_position = 0
    if blocked is None:
        text = f"resume it: `tunesmith resume {job.display_name}`"
        answer.change.CopyFrom(queue_pb2.SuggestedChange(target=job.name, value="RESUME", text=text))
    else:
        answer.message += f"; resumed, it would wait: {blocked.message}"


def _add_verdicts(answer: queue_pb2.ExplainJobResponse, picture: Picture, job: Waiting, found: Pass) -> None:
    own = {name for p in found.decision.placements if p.job.job_id == job.job_id for name in p.nodes}
    for node in sorted(picture.nodes.values(), key=lambda node: node.node_id):
        rule = "" if node.node_id in own else of_node(found.room, job.need, node.node_id)
        answer.nodes.add(
            node=f"nodes/{node.node_id}", rule=rule, message=OF_NODE[rule] if rule else "it fits"
        )


def _reword(change: queue_pb2.SuggestedChange) -> None:
    """A job that does not exist yet has no command that changes it: its file is changed."""
    if change.target.startswith("spec."):
        key = change.target.removeprefix("spec.")
        change.text = f"set {key} to {change.value}" if change.value else f"leave {key} out"


def _add_change(answer: queue_pb2.ExplainJobResponse, found: Proposal | None) -> None:
    if found is not None:
        answer.change.CopyFrom(found.message)
