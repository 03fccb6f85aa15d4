"""What users ask of a job once it is accepted: pause, resume, cancel, checkpoint, move, update, delete."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, spec_pb2, state_pb2, verbs_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument
from tunesmith_jobs import checkpoints, machine, moves, spec
from tunesmith_jobs.change import JobChange
from tunesmith_jobs.stopping import live_attempt, order
from tunesmith_jobs.store import Caller, change_of
from tunesmith_jobs.tables import REQUESTS
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.idempotency import once

A = TypeVar("A", bound=Message)
_MAX_LABELS = 64


class Verbs:
    """Each verb acts once for a request id, and only on the revision its caller saw, if it names one."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def _act(
        self, request: Any, caller: Caller, act: Callable[[JobChange], None], answer: type[A]
    ) -> A:
        def change(session: Session) -> A:
            revision = getattr(request, "revision", 0)
            begun = change_of(session, request.name, caller, self._clock.now(), revision)
            act(begun)
            return answer(job=begun.save())

        return await self._db.write(
            lambda s: once(s, REQUESTS, caller.name, request, lambda: change(s), answer)
        )

    async def pause(self, request: verbs_pb2.PauseJobRequest, caller: Caller) -> jobs_pb2.PauseJobResponse:
        """Rests a job: with a checkpoint, or at once with the last one. Harmless when repeated."""
        latest = request.mode == verbs_pb2.PAUSE_MODE_LATEST
        deadline = spec.positive(request.deadline, "deadline") if request.HasField("deadline") else None

        def act(change: JobChange) -> None:
            job = _ours(change, "paused")
            _go(change, machine.after_pause(job.state, latest, job.HasField("checkpoint")))
            job.desired = state_pb2.DESIRED_PAUSE
            attempt = live_attempt(change.session, job)
            if attempt is None or attempt.wanted == state_pb2.DESIRED_KILL:
                return
            if latest:
                order(change, attempt, state_pb2.DESIRED_KILL)
            elif not attempt.wanted or deadline is not None:
                order(change, attempt, state_pb2.DESIRED_PAUSE, deadline)

        return await self._act(request, caller, act, jobs_pb2.PauseJobResponse)

    async def resume(self, request: verbs_pb2.ResumeJobRequest, caller: Caller) -> jobs_pb2.ResumeJobResponse:
        """Queues a job that rests, or is about to, again."""

        def act(change: JobChange) -> None:
            _ours(change, "resumed")
            _go(change, machine.after_resume(change.job.state, change.job.desired))
            change.job.desired = state_pb2.DESIRED_RUN
            change.job.accept_drift |= request.accept_drift

        return await self._act(request, caller, act, jobs_pb2.ResumeJobResponse)

    async def cancel(self, request: jobs_pb2.CancelJobRequest, caller: Caller) -> jobs_pb2.CancelJobResponse:
        """Asks for the end of a job; what has no processes ends at once. Harmless when repeated."""
        wanted = state_pb2.DESIRED_CANCEL
        if request.mode == jobs_pb2.CANCEL_MODE_NOW:
            wanted = state_pb2.DESIRED_KILL

        def act(change: JobChange) -> None:
            job = change.job
            _go(change, machine.after_cancel(job.state))
            if job.desired != state_pb2.DESIRED_KILL:
                job.desired = wanted
            attempt = live_attempt(change.session, job)
            if attempt is not None and attempt.wanted not in (wanted, state_pb2.DESIRED_KILL):
                order(change, attempt, wanted)

        return await self._act(request, caller, act, jobs_pb2.CancelJobResponse)

    async def checkpoint(
        self, request: verbs_pb2.CheckpointJobRequest, caller: Caller
    ) -> jobs_pb2.CheckpointJobResponse:
        """Asks a running job for a durable checkpoint."""

        def act(change: JobChange) -> None:
            job, attempt = _ours(change, "asked for a checkpoint"), live_attempt(change.session, change.job)
            if job.state != machine.RUNNING or attempt is None:
                reason = "JOB_TERMINAL" if job.terminal else "STATE_CONFLICT"
                remedy = "only a RUNNING job has something new to save"
                raise machine.refusal(reason, job.state, "asked for a checkpoint", remedy)
            command = node_events_pb2.NodeCommand()
            attempt.checkpoint_request += 1
            command.checkpoint.request = attempt.checkpoint_request
            change.command(attempt, "checkpoint", command)

        return await self._act(request, caller, act, jobs_pb2.CheckpointJobResponse)

    async def move(self, request: verbs_pb2.MoveJobRequest, caller: Caller) -> jobs_pb2.MoveJobResponse:
        """Begins to take a running job to another node."""
        node = request.node.removeprefix("nodes/")

        def act(change: JobChange) -> None:
            _ours(change, "moved")
            moves.begin(change, node)

        return await self._act(request, caller, act, jobs_pb2.MoveJobResponse)

    async def update(self, request: verbs_pb2.UpdateJobRequest, caller: Caller) -> jobs_pb2.UpdateJobResponse:
        """Changes priority, labels and deadlines; what the request leaves out stays as it is."""
        for known, value in request.deadlines.ListFields():
            spec.positive(value, f"deadlines.{known.name}")

        def act(change: JobChange) -> None:
            job = change.job
            if job.terminal and (request.HasField("priority") or request.HasField("deadlines")):
                raise machine.refusal(
                    "JOB_TERMINAL", job.state, "updated", "only its labels can still change"
                )
            if request.HasField("priority"):
                job.spec.resources.priority = request.priority
            _set_labels(job.spec, request.labels)
            for known, value in request.deadlines.ListFields():
                getattr(job.spec.deadlines, known.name).CopyFrom(value)
            change.say("updated", events_pb2.JobUpdated(spec=job.spec))

        return await self._act(request, caller, act, jobs_pb2.UpdateJobResponse)

    async def delete(
        self, request: verbs_pb2.DeleteJobRequest, caller: Caller
    ) -> verbs_pb2.DeleteJobResponse:
        """Hides a finished job; its name stays taken, so that no other job can be mistaken for it."""

        def act(session: Session) -> verbs_pb2.DeleteJobResponse:
            change = change_of(session, request.name, caller, self._clock.now(), request.revision)
            if not change.job.terminal:
                raise machine.refusal(
                    "STATE_CONFLICT",
                    change.job.state,
                    "deleted",
                    "cancel it first: `tunesmith cancel JOB --wait`",
                )
            checkpoints.let_go(change)
            change.job.delete_time.FromDatetime(change.now)
            change.say("deleted", events_pb2.JobDeleted())
            change.save()
            return verbs_pb2.DeleteJobResponse()

        return await self._db.write(
            lambda s: once(s, REQUESTS, caller.name, request, lambda: act(s), verbs_pb2.DeleteJobResponse)
        )

    async def pin(
        self, request: verbs_pb2.PinCheckpointRequest, caller: Caller
    ) -> verbs_pb2.PinCheckpointResponse:
        """Keeps a checkpoint whatever the retention rules say, or lets them decide again."""

        def act(session: Session) -> verbs_pb2.PinCheckpointResponse:
            change = change_of(session, request.name, caller, self._clock.now())
            ref = checkpoints.pin(change, request.step, request.unpin)
            change.save()
            return verbs_pb2.PinCheckpointResponse(checkpoint=ref)

        return await self._db.write(
            lambda s: once(s, REQUESTS, caller.name, request, lambda: act(s), verbs_pb2.PinCheckpointResponse)
        )


def _ours(change: JobChange, what: str) -> jobs_pb2.Job:
    """Returns the job.

    Raises:
        FailedPrecondition: the platform did not start its program, so it cannot be `what`.
    """
    if change.job.spec.HasField("external"):
        raise FailedPrecondition(
            "RUN_EXTERNAL",
            f"the run is of a program that the platform did not start: it cannot be {what}",
            field="name",
            value=change.job.display_name,
            remedy="`tunesmith cancel` asks its program to end; tunesmith.init(resume=…) goes on",
        )
    return change.job


def _go(change: JobChange, outcome: machine.Outcome) -> None:
    """Takes the job where a verb leads; when it is there already, only the reason changes."""
    if outcome.state != change.job.state:
        change.move(outcome)
    else:
        change.job.state_reason = outcome.reason


def _set_labels(job_spec: spec_pb2.JobSpec, labels: Any) -> None:
    for key, value in labels.items():
        if value:
            job_spec.labels[key] = value
        else:
            job_spec.labels.pop(key, None)
    if len(job_spec.labels) > _MAX_LABELS:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"labels would have {len(job_spec.labels)} entries, more than {_MAX_LABELS}",
            field="labels",
            value=len(job_spec.labels),
            remedy="remove some: give them an empty value",
        )
