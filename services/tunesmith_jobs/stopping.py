"""Ending an attempt from our side: the job's state, the attempt's order and the command leave together.

The order stays in the attempt's row, so that each report of its agent is answered with it: a command that
was lost is made good.
"""

from collections.abc import Iterable
from datetime import timedelta

from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith_jobs import machine, spec
from tunesmith_jobs.change import JobChange
from tunesmith_jobs.tables import AttemptRow


def stop_attempt(
    change: JobChange,
    attempt: AttemptRow,
    reason: state_pb2.StateReason.ValueType,
    deadline: timedelta | None = None,
) -> bool:
    """Stops an attempt with a checkpoint although its job is to run on: preempted, moved, drained, too late.

    The job goes to PAUSING with `reason`; where it goes from there the state machine says. The caller saves
    the change. `deadline` is the longest time it may take (default: spec.deadlines.stop). Returns false, and
    changes nothing, if the job is ending, pausing or without processes already.
    """
    outcome = machine.after_stop(change.job.state, reason)
    if outcome is None or attempt.ended:
        return False
    change.move(outcome)
    order(change, attempt, state_pb2.DESIRED_PAUSE, deadline)
    return True


def order(
    change: JobChange,
    attempt: AttemptRow,
    wanted: state_pb2.Desired.ValueType,
    deadline: timedelta | None = None,
) -> None:
    """Tells an attempt's node to end it: PAUSE and CANCEL with a checkpoint, KILL at once."""
    attempt.wanted, attempt.stop_time = wanted, None
    change.session.add(attempt)
    if not attempt.node:
        return  # an external run: its program hears it with its next renewal
    if wanted == state_pb2.DESIRED_KILL:
        kill(change, attempt, attempt.gpus)
        return
    longest = stop_deadline(change.job) if deadline is None else deadline
    attempt.stop_time = change.now + longest
    command = node_events_pb2.NodeCommand()
    command.stop.deadline.FromTimedelta(longest)
    change.command(attempt, "stop", command)  # rank 0 tells the others


def kill(change: JobChange, attempt: AttemptRow, nodes: Iterable[str]) -> None:
    """Tells some of an attempt's nodes to kill its processes."""
    for node in nodes:
        command = node_events_pb2.NodeCommand()
        command.kill.SetInParent()
        change.command(attempt, "kill", command, node)


def stop_deadline(job: jobs_pb2.Job) -> timedelta:
    """Returns how long a graceful stop of the job may take."""
    return job.spec.deadlines.stop.ToTimedelta() or timedelta(seconds=spec.DEFAULT_STOP_SECONDS)


def live_attempt(session: Session, job: jobs_pb2.Job) -> AttemptRow | None:
    """Returns the job's newest attempt if it has not ended."""
    row = session.get(AttemptRow, (job.job_id, job.epoch))
    return row if row is not None and not row.ended else None
