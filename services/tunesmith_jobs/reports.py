"""What agents report of attempts, and what they are told in return."""

import math
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import events_pb2, state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.errors import FailedPrecondition
from tunesmith_jobs import checkpoints, losses, machine, moves, tasks
from tunesmith_jobs.change import JobChange, save_attempt
from tunesmith_jobs.ending import end_attempt, not_identical
from tunesmith_jobs.store import find
from tunesmith_jobs.tables import AttemptRow
from tunesmith_kit import names
from tunesmith_kit.clock import Clock, utc
from tunesmith_kit.db import Database

_JOB = "projects/*/jobs/*"
_MTTF_SECONDS = 60.0  # how long the measured time between failures is believed
_FAULTS = (
    state_pb2.FAILURE_CLASS_INFRA,
    state_pb2.FAILURE_CLASS_STALLED,
    state_pb2.FAILURE_CLASS_NODE_LOST,
)


class Reports:
    """Takes reports over, each once, and refuses those of replaced attempts."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock
        self._mttf: float | None = None
        self._measured = -math.inf

    async def take(self, request: nodes_pb2.ReportAttemptRequest) -> nodes_pb2.ReportAttemptResponse:
        """Takes over what an agent says of an attempt; returns what is wanted of the attempt.

        Raises:
            FailedPrecondition: the attempt was replaced, or its job has ended.
        """
        project, job_id = names.parse(_JOB, request.job, "job")
        mttf = await self._time_to_failure() if request.HasField("progress") else None

        def act(session: Session) -> nodes_pb2.ReportAttemptResponse | FailedPrecondition:
            row = find(session, project, job_id, even_deleted=True)
            change = JobChange(session, row, f"nodes/{request.node}", self._clock.now())
            attempt = session.get(AttemptRow, (row.id, request.epoch))
            in_force = attempt is not None and request.node in attempt.gpus and not attempt.ended
            if attempt is None or not in_force or request.epoch != change.job.epoch:
                return _refuse(change, attempt, request)
            if request.node != attempt.node:
                return _take_from_member(change, attempt, request)
            if _take_over(change, attempt, request, mttf):
                change.save()
            return wanted(change, attempt)

        answer = await self._db.write(act)
        if request.HasField("failure"):
            self._measured = -math.inf
        if isinstance(answer, FailedPrecondition):
            raise answer
        return answer

    async def prepared(self, request: nodes_pb2.ReportPreparedRequest) -> None:
        """Takes over that a node has fetched what a job that moves there needs, or could not.

        Raises:
            FailedPrecondition: the job does not move there any more.
        """
        project, job_id = names.parse(_JOB, request.job, "job")

        def act(session: Session) -> None:
            row = find(session, project, job_id, even_deleted=True)
            change = JobChange(session, row, f"nodes/{request.node}", self._clock.now())
            moves.prepared(change, request)
            change.save()

        await self._db.write(act)

    async def _time_to_failure(self) -> float | None:
        """Returns the seconds of training between failures that were not the user's; None while unknown."""
        if self._clock.monotonic() - self._measured > _MTTF_SECONDS:
            self._measured = self._clock.monotonic()
            self._mttf = await self._db.read(mean_time_to_failure)
        return self._mttf


def mean_time_to_failure(session: Session) -> float | None:
    """Returns trained seconds by failures of nodes and infrastructure over all attempts; None without any."""
    trained = session.execute(select(func.sum(col(AttemptRow.trained_seconds)))).scalar_one() or 0.0
    faults = select(func.count()).where(col(AttemptRow.failure_class).in_(_FAULTS))
    num_faults = int(session.execute(faults).scalar_one())
    return trained / num_faults if num_faults and trained else None


def wanted(change: JobChange, attempt: AttemptRow) -> nodes_pb2.ReportAttemptResponse:
    """Returns what is wanted of an attempt now, so that a lost command is made good."""
    if attempt.ended:
        return nodes_pb2.ReportAttemptResponse(desired=state_pb2.DESIRED_RUN)
    answer = nodes_pb2.ReportAttemptResponse(
        desired=state_pb2.Desired.ValueType(attempt.wanted or state_pb2.DESIRED_RUN),
        checkpoint_request=attempt.checkpoint_request,
    )
    if attempt.stop_time is not None:
        answer.stop_deadline.FromTimedelta(max(utc(attempt.stop_time) - change.now, timedelta()))
    return answer


def _refuse(
    change: JobChange, row: AttemptRow | None, request: nodes_pb2.ReportAttemptRequest
) -> nodes_pb2.ReportAttemptResponse | FailedPrecondition:
    if row is not None and row.ended and request.node in row.gpus:
        ended_again = request.state in machine.ATTEMPT_ENDS and request.node != row.node
        if row.state == request.state or ended_again:
            return wanted(change, row)  # reported again: the first answer was lost; or another node's part
    change.say(
        "stale_report_refused",
        events_pb2.StaleReportRefused(
            stale_epoch=request.epoch, current_epoch=change.job.epoch, node=request.node
        ),
    )
    change.save()
    return FailedPrecondition(
        "STALE_EPOCH",
        f"attempt {request.epoch} of {request.job} is not in force",
        field="epoch",
        value=request.epoch,
        remedy=f"end its processes; the job's epoch is {change.job.epoch}",
    )


def _take_from_member(
    change: JobChange, row: AttemptRow, request: nodes_pb2.ReportAttemptRequest
) -> nodes_pb2.ReportAttemptResponse:
    """Takes a report of a node that is not the first of its attempt: only a failure of its ranks counts."""
    if request.state == state_pb2.ATTEMPT_STATE_FAILED and request.HasField("failure"):
        end_attempt(change, row, request.state, request.failure)
        change.save()
    return wanted(change, row)


def _take_over(
    change: JobChange, row: AttemptRow, request: nodes_pb2.ReportAttemptRequest, mttf: float | None
) -> bool:
    """Applies a report to job and attempt; tells whether anything changed."""
    job, changed = change.job, False
    last = state_pb2.Progress()
    last.CopyFrom(job.progress)
    if request.HasField("progress"):
        _take_progress(change, row, request.progress, mttf)
        changed = True
    if request.samples:
        job.ClearField("samples")
        job.samples.extend(request.samples)
        changed = True
    if request.HasField("checkpoint"):
        changed |= checkpoints.commit(change, request.checkpoint)
    changed |= _take_origin(change, row, request)
    if request.state and machine.attempt_advances(
        state_pb2.Attempt.FromString(row.body).state, request.state
    ):
        _advance(change, row, request)
        if request.state == state_pb2.ATTEMPT_STATE_RUNNING:
            _count_loss(change, row, last)
        changed = True
    return changed


def _count_loss(change: JobChange, row: AttemptRow, last: state_pb2.Progress) -> None:
    """Adds to the job what faults have cost until this attempt began to train."""
    attempt = state_pb2.Attempt.FromString(row.body)
    attempt.lost_seconds = losses.seconds_lost(change.session, row, last, attempt)
    if attempt.lost_seconds:
        change.job.lost_seconds += attempt.lost_seconds
        row.body = attempt.SerializeToString()
        change.session.add(row)


def _take_progress(
    change: JobChange, row: AttemptRow, progress: state_pb2.Progress, mttf: float | None
) -> None:
    job = change.job
    job.progress.CopyFrom(progress)
    job.progress.ClearField("suggested_checkpoint_interval")
    row.trained_seconds = max(row.trained_seconds, progress.training_seconds)
    change.session.add(row)
    num_checkpoints = checkpoints.num_of_attempt(change.session, change.row.id, row.epoch)
    if mttf and num_checkpoints and progress.checkpoint_seconds > 0:
        interval = young_daly(progress.checkpoint_seconds / num_checkpoints, mttf)
        job.progress.suggested_checkpoint_interval.FromTimedelta(timedelta(seconds=interval))


def young_daly(cost_seconds: float, mttf_seconds: float) -> float:
    """Returns the checkpoint interval, in seconds, with the least expected loss of time (Young 1974)."""
    return math.sqrt(2 * cost_seconds * mttf_seconds)


def _take_origin(change: JobChange, row: AttemptRow, request: nodes_pb2.ReportAttemptRequest) -> bool:
    """Takes over where the trainer began and what differs from before; tells whether that is news."""
    attempt = state_pb2.Attempt.FromString(row.body)
    before = attempt.SerializeToString(deterministic=True)
    if request.HasField("resumed_step"):
        attempt.resumed_step = request.resumed_step
    if request.resumed_from:
        attempt.resumed_from = request.resumed_from
    news = [item for item in request.drift if item not in attempt.drift]
    attempt.drift.extend(news)
    if request.environment:
        attempt.environment.clear()
        attempt.environment.update(request.environment)
    if news:
        change.say("drifted", events_pb2.AttemptDrifted(drift=news), epoch=row.epoch)
        not_identical(change, news)
    row.body = attempt.SerializeToString(deterministic=True)
    change.session.add(row)
    return row.body != before


def _advance(change: JobChange, row: AttemptRow, request: nodes_pb2.ReportAttemptRequest) -> None:
    job = change.job
    if request.state in machine.ATTEMPT_ENDS:
        failure = request.failure if request.HasField("failure") else None
        end_attempt(change, row, request.state, failure)
        if job.state == machine.FINALIZING:
            _announce_output(change, request.output_digest)
        return
    save_attempt(change, row, request.state)
    if request.state == state_pb2.ATTEMPT_STATE_RUNNING and job.state == machine.STARTING:
        change.move(machine.Outcome(machine.RUNNING))
        moves.arrived(job)
        change.row.progressed = False
        if not job.HasField("start_time"):
            job.start_time.FromDatetime(change.now)


def _announce_output(change: JobChange, output_digest: str) -> None:
    job = change.job
    ready = events_pb2.JobOutputReady(
        manifest_digest=output_digest,
        model=job.spec.output.model,
        base_model=job.base_model.name,
        dataset_version=job.dataset.name,
    )
    if not tasks.trains(job.spec):
        ready.targets.extend(job.targets)
        if job.spec.HasField("evaluation"):
            ready.evaluation.CopyFrom(job.spec.evaluation)
        change.say("output_ready", ready)
        return
    ready.final_metrics.update({"train/loss": job.progress.loss, "first_loss": job.progress.first_loss})
    if job.progress.HasField("eval_loss"):
        ready.final_metrics["eval/loss"] = job.progress.eval_loss
    ready.final_metrics.update({f"eval/{name}": value for name, value in job.progress.eval_scores.items()})
    change.say("output_ready", ready)
