"""What faults cost a job: the time from where training was last heard of until it stood there again."""

from datetime import UTC

from sqlalchemy import Select, select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith_jobs.tables import AttemptRow

# Ends that were wanted: the time until the next attempt is no loss.
_PLANNED = frozenset({state_pb2.FAILURE_CLASS_PREEMPTED, state_pb2.FAILURE_CLASS_DRAINED})


def seconds_lost(
    session: Session, row: AttemptRow, last: state_pb2.Progress, attempt: state_pb2.Attempt
) -> float:
    """Returns what the faults since the job last trained have cost, now that an attempt trains again.

    Undisturbed, training would have stood at the step where the attempt goes on at the time of the last
    report, plus what the steps between take (minus, where steps are trained again). All beyond that is lost.

    Args:
        row: the attempt that begins to train; `attempt` is its message, with its start.
        last: the job's progress before this attempt.
    """
    began = attempt.start_time.ToDatetime(UTC).timestamp()
    since = began
    for found in session.execute(_earlier(row)).scalars():
        before = state_pb2.Attempt.FromString(found.body)
        if before.HasField("start_time"):
            if _by_fault(before):
                since = _undisturbed(before, last, attempt.resumed_step)
            break
        if _by_fault(before):  # it failed before it trained; what rested before it costs nothing
            since = before.create_time.ToDatetime(UTC).timestamp()
    return max(0.0, began - since)


def _earlier(row: AttemptRow) -> Select[AttemptRow]:
    """The attempts before one, newest first."""
    epoch = col(AttemptRow.epoch)
    mine = col(AttemptRow.job_id) == row.job_id
    return select(AttemptRow).where(mine, epoch < row.epoch).order_by(epoch.desc())


def _by_fault(attempt: state_pb2.Attempt) -> bool:
    return attempt.HasField("failure") and attempt.failure.failure_class not in _PLANNED


def _undisturbed(before: state_pb2.Attempt, last: state_pb2.Progress, resumed_step: int) -> float:
    """Unix time at which the attempt that failed would have stood at a step."""
    heard = min(last.time.ToDatetime(UTC), before.end_time.ToDatetime(UTC))
    heard = max(heard, before.start_time.ToDatetime(UTC))
    steps = last.step - before.resumed_step
    pace = last.training_seconds / steps if steps > 0 else 0.0
    return heard.timestamp() + (resumed_step - last.step) * pace
