"""External runs: jobs of programs that the platform does not start. They hold no node and wait in no queue.

A program begins its run, says every few seconds that it lives, and ends it. The newest attempt's epoch is its
authority, as an agent's is: whoever takes the run up makes the earlier program's word count no more.
"""

import asyncio
import logging
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import external_pb2, jobs_pb2, spec_pb2, state_pb2
from tunesmith.errors import AlreadyExists, FailedPrecondition, InvalidArgument, Unavailable
from tunesmith_jobs import checkpoints, machine, spec
from tunesmith_jobs.change import ACTOR, JobChange, drop_condition, save_attempt
from tunesmith_jobs.store import Caller, change_of, draft, insert
from tunesmith_jobs.tables import REQUESTS, AttemptRow, JobRow
from tunesmith_kit import names
from tunesmith_kit.clock import Clock, utc
from tunesmith_kit.db import Database
from tunesmith_kit.idempotency import once

log = logging.getLogger(__name__)
LEASE = timedelta(seconds=60)
LOST_AFTER = timedelta(minutes=10)
_WRITING = "Writing"  # the condition
_LOOK_SECONDS = 5.0
# Each listing carries them, and each event of the run's beginning: a page of 50 stays below 5 MB.
_LATEST_SECOND = 2**53 // 1_000_000  # microseconds are exact in a browser up to there
_MOST_SPEC_BYTES, _MOST_PROGRESS_BYTES = 64 * 1024, 16 * 1024


class ExternalRuns:
    """What ExternalRunService needs."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def start(
        self, request: external_pb2.StartExternalRunRequest, caller: Caller
    ) -> external_pb2.StartExternalRunResponse:
        """Begins a run, or takes one up, once for a request id."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        lease = Duration(seconds=int(LEASE.total_seconds()))

        def act(session: Session) -> external_pb2.StartExternalRunResponse:
            row = session.get(JobRow, request.job_id, with_for_update=True) if request.job_id else None
            if row is None:
                job = self._enter(session, project, request, caller)
                row = session.get_one(JobRow, job.job_id)
            _check_home(row, project, request.job_id)
            change = JobChange(session, row, caller.name, self._clock.now())
            _begin_attempt(change)
            job = change.save()
            return external_pb2.StartExternalRunResponse(job=job, epoch=job.epoch, lease_ttl=lease)

        answer = external_pb2.StartExternalRunResponse
        return await self._db.write(lambda s: once(s, REQUESTS, caller.name, request, lambda: act(s), answer))

    def _enter(
        self,
        session: Session,
        project: str,
        request: external_pb2.StartExternalRunRequest,
        caller: Caller,
    ) -> jobs_pb2.Job:
        now = self._clock.now()
        full = spec_pb2.JobSpec(experiment=request.experiment or "run", labels=request.labels)
        full.external.CopyFrom(request.external)
        full.external.SetInParent()
        _check_size("external.config", full.ByteSize(), _MOST_SPEC_BYTES)
        job = draft(project, full, caller, now)
        if request.job_id:
            job.job_id = request.job_id
            job.name = f"projects/{project}/jobs/{request.job_id}"
        job.spec_digest = spec.digest(full)
        return insert(session, project, job, caller, now)

    async def renew(
        self, request: external_pb2.RenewExternalRunRequest, caller: Caller
    ) -> external_pb2.RenewExternalRunResponse:
        """Takes over that the program lives and how far it is.

        Raises:
            FailedPrecondition: the attempt is not in force any more.
        """

        def act(session: Session) -> external_pb2.RenewExternalRunResponse:
            change, row = self._attempt(session, request.name, request.epoch, caller)
            if row.ended:
                raise _stale(change, request.epoch)
            row.command_time = change.now
            session.add(row)
            changed = _take_progress(change, request)
            if any(condition.type == _WRITING for condition in change.job.conditions):
                drop_condition(change.job.conditions, _WRITING)
                changed = True
            job = change.save() if changed else change.job
            # Killing is not ours to do: whoever wants it is told like one that cancels.
            desired = state_pb2.DESIRED_CANCEL if row.wanted else state_pb2.DESIRED_RUN
            return external_pb2.RenewExternalRunResponse(job=job, desired=desired)

        return await self._db.write(act)

    async def commit(
        self, request: external_pb2.CommitExternalCheckpointRequest, caller: Caller
    ) -> external_pb2.CommitExternalCheckpointResponse:
        """Enters a checkpoint whose manifest was uploaded. What an earlier program left may come late, even
        after the run's end.

        Raises:
            FailedPrecondition: the run has no such attempt.
        """

        if not 0 <= request.create_time.seconds < _LATEST_SECOND:
            raise InvalidArgument(
                "FIELD_INVALID", "create_time is not between 1970 and 2255", field="create_time",
                value=request.create_time.seconds, remedy="leave it out: it is now then",
            )  # fmt: skip

        def act(session: Session) -> external_pb2.CommitExternalCheckpointResponse:
            change = self._external(session, request.name, caller)
            if session.get(AttemptRow, (change.job.job_id, request.epoch)) is None:
                raise _stale(change, request.epoch)
            ref = state_pb2.CheckpointRef(
                step=request.step,
                epoch=request.epoch,
                digest=request.digest,
                size_bytes=request.size_bytes,
                eval_loss=request.eval_loss if request.HasField("eval_loss") else None,
            )
            if request.HasField("create_time"):
                ref.create_time.CopyFrom(request.create_time)
            entered = checkpoints.commit_external(change, ref, request.keep)
            return external_pb2.CommitExternalCheckpointResponse(checkpoint=entered)

        answer = external_pb2.CommitExternalCheckpointResponse
        return await self._db.write(lambda s: once(s, REQUESTS, caller.name, request, lambda: act(s), answer))

    async def finish(
        self, request: external_pb2.FinishExternalRunRequest, caller: Caller
    ) -> external_pb2.FinishExternalRunResponse:
        """Ends a run. Its attempt may be lost; replaced it may not be.

        Raises:
            FailedPrecondition: another program took the run up.
        """

        def act(session: Session) -> external_pb2.FinishExternalRunResponse:
            change, row = self._attempt(session, request.name, request.epoch, caller)
            if change.job.terminal:
                return external_pb2.FinishExternalRunResponse(job=change.job)
            _take_progress(change, request)
            _finish(change, row, request)
            return external_pb2.FinishExternalRunResponse(job=change.save())

        answer = external_pb2.FinishExternalRunResponse
        return await self._db.write(lambda s: once(s, REQUESTS, caller.name, request, lambda: act(s), answer))

    def _external(self, session: Session, name: str, caller: Caller) -> JobChange:
        change = change_of(session, name, caller, self._clock.now())
        if not change.job.spec.HasField("external"):
            raise FailedPrecondition(
                "RUN_NOT_EXTERNAL",
                "the platform runs this job itself",
                field="name",
                value=change.job.display_name,
                remedy="name a run that tunesmith.init began",
            )
        return change

    def _attempt(
        self, session: Session, name: str, epoch: int, caller: Caller
    ) -> tuple[JobChange, AttemptRow]:
        change = self._external(session, name, caller)
        row = session.get(AttemptRow, (change.job.job_id, epoch))
        if row is None or epoch != change.job.epoch:
            raise _stale(change, epoch)
        return change, row


class SilenceMonitor:
    """Notes which programs are silent, and gives their attempts up after ten minutes.

    What counts is the time since this process could first have heard them: an outage of ours ends no run.
    """

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock
        self._seen: dict[tuple[str, int], tuple[float, float]] = {}  # last word, and when it was found here

    async def run(self) -> None:
        """Looks every five seconds until it is cancelled."""
        while True:
            try:
                await self.look()
            except Unavailable as error:
                self._seen.clear()
                log.warning("external runs cannot be looked after", extra={"error": error.message})
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Looks once at every external run that goes on."""
        columns = (col(AttemptRow.job_id), col(AttemptRow.epoch), col(AttemptRow.command_time))
        query = select(*columns).where(col(AttemptRow.ended).is_(False), col(AttemptRow.node) == "")
        rows = await self._db.read(lambda session: session.execute(query).all())
        now = self._clock.monotonic()
        seen = {}
        for row in rows:
            said, key = utc(row.command_time).timestamp(), (row.job_id, row.epoch)
            known = self._seen.get(key)
            seen[key] = known if known is not None and known[0] == said else (said, now)
        self._seen = seen
        for (job_id, epoch), (said, found) in seen.items():
            silent = timedelta(seconds=now - found)
            if silent > LEASE:
                await self._db.write(
                    lambda session, job_id=job_id, epoch=epoch, silent=silent, said=said: self._note(  # type: ignore[misc]
                        session, job_id, epoch, silent, said
                    )
                )

    def _note(self, session: Session, job_id: str, epoch: int, silent: timedelta, said: float) -> None:
        row = session.get_one(JobRow, job_id, with_for_update=True)
        attempt = session.get_one(AttemptRow, (job_id, epoch))
        if attempt.ended or utc(attempt.command_time).timestamp() != said:
            return  # it has spoken meanwhile
        change = JobChange(session, row, ACTOR, self._clock.now())
        cancelled = change.job.state == machine.CANCELLING
        if silent > LOST_AFTER or cancelled:
            message = f"nothing was heard of the program for {int(silent.total_seconds())} s"
            failure = state_pb2.Failure(
                failure_class=state_pb2.FAILURE_CLASS_NODE_LOST,
                reason="WRITER_LOST",
                message=message,
                remedy="it goes on by itself when it is heard again; `tunesmith sync` sends what it left",
            )
            save_attempt(change, attempt, state_pb2.ATTEMPT_STATE_LOST, failure)
            change.move(machine.after_silence(change.job.state), failure)
            change.note(_WRITING, "WRITER_LOST", message)
            change.save()
            log.info("external run given up", extra={"job": change.job.name, "epoch": epoch})
        elif change.note(_WRITING, "WRITER_SILENT", "nothing is heard of the program"):
            change.save()


def _check_size(field: str, size: int, most: int) -> None:
    if size > most:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"{field} has {size:,} bytes; {most:,} is the most",
            field=field,
            value=size,
            remedy="leave out what nobody filters or compares by",
        )


def _check_home(row: JobRow, project: str, job_id: str) -> None:
    """Refuses an id that is of something else; what it is of, strangers are not told."""
    job = jobs_pb2.Job.FromString(row.body)
    if row.project != project or row.deleted or not job.spec.HasField("external"):
        raise AlreadyExists(
            "JOB_ID_TAKEN",
            "the id is that of another job",
            field="job_id",
            value=job_id,
            remedy="give a new ULID, or leave it out",
        )


def _begin_attempt(change: JobChange) -> None:
    job = change.job
    outcome = machine.after_start(job.state)
    before = change.session.get(AttemptRow, (job.job_id, job.epoch))
    if before is not None and not before.ended:
        failure = state_pb2.Failure(
            failure_class=state_pb2.FAILURE_CLASS_NODE_LOST,
            reason="WRITER_REPLACED",
            message="another program took the run up",
        )
        save_attempt(change, before, state_pb2.ATTEMPT_STATE_LOST, failure)
    job.epoch += 1
    attempt = state_pb2.Attempt(
        name=f"{job.name}/attempts/{job.epoch}", epoch=job.epoch, state=state_pb2.ATTEMPT_STATE_READY
    )
    attempt.resumed_step = job.progress.step
    attempt.create_time.FromDatetime(change.now)
    row = AttemptRow(
        job_id=job.job_id,
        epoch=job.epoch,
        node="",
        members="",
        places=[],
        state=attempt.state,
        ended=False,
        command_time=change.now,
        body=attempt.SerializeToString(),
    )
    change.session.add(row)
    save_attempt(change, row, state_pb2.ATTEMPT_STATE_RUNNING)
    if outcome.state != job.state:
        change.move(outcome)
    job.desired = state_pb2.DESIRED_RUN
    drop_condition(job.conditions, _WRITING)
    if not job.HasField("start_time"):
        job.start_time.FromDatetime(change.now)


def _take_progress(
    change: JobChange,
    request: external_pb2.RenewExternalRunRequest | external_pb2.FinishExternalRunRequest,
) -> bool:
    """Takes over how far the program is; tells whether that is news."""
    job = change.job
    if not request.HasField("progress") or request.progress == job.progress:
        return False
    _check_size("progress", request.progress.ByteSize(), _MOST_PROGRESS_BYTES)
    first = job.progress.first_loss
    job.progress.CopyFrom(request.progress)
    job.progress.first_loss = first or request.progress.first_loss
    return True


def _finish(change: JobChange, row: AttemptRow, request: external_pb2.FinishExternalRunRequest) -> None:
    failure = None
    if request.failed:
        failure = state_pb2.Failure(
            failure_class=state_pb2.FAILURE_CLASS_USER_ERROR,
            reason="PROGRAM_FAILED",
            message=request.message or "the program failed",
            remedy="its log tells more: `tunesmith logs`",
        )
    outcome = machine.after_finish(change.job.state, request.failed)
    if not row.ended:
        end = state_pb2.ATTEMPT_STATE_FAILED if request.failed else state_pb2.ATTEMPT_STATE_COMPLETED
        if outcome.state == machine.CANCELLED:
            end = state_pb2.ATTEMPT_STATE_KILLED
        save_attempt(change, row, end, failure)
    drop_condition(change.job.conditions, _WRITING)
    change.move(outcome, failure)


def _stale(change: JobChange, epoch: int) -> FailedPrecondition:
    return FailedPrecondition(
        "STALE_EPOCH",
        f"attempt {epoch} of {change.job.name} is not in force",
        field="epoch",
        value=epoch,
        remedy="take the run up with StartExternalRun, unless another program did",
    )
