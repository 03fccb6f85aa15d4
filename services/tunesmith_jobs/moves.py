"""Moving a running job: its target is checked and told to fetch, then the job changes over or stays.

A move that comes to nothing costs nothing: the job trains on where it is until the target has everything.
"""

import difflib

from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.errors import FailedPrecondition, NotFound
from tunesmith_jobs import machine
from tunesmith_jobs.census import need_of, node_of
from tunesmith_jobs.change import JobChange
from tunesmith_jobs.room import Room, Running
from tunesmith_jobs.stopping import live_attempt, stop_attempt
from tunesmith_jobs.tables import AttemptRow, JobRow, NodeRow, holds
from tunesmith_jobs.verdict import OF_NODE, of_node


def node_row(session: Session, node_id: str, field: str = "name") -> NodeRow:
    """Returns a node, locked for this transaction where the database can.

    Raises:
        NotFound: there is no such node; the remedy names one that looks alike.
    """
    row = session.get(NodeRow, node_id, with_for_update=True)
    if row is None:
        known = session.execute(select(col(NodeRow.id))).scalars().all()
        near = difflib.get_close_matches(node_id, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`tunesmith nodes list` shows all nodes"
        raise NotFound(
            "NODE_NOT_FOUND", f"there is no node {node_id}", field=field, value=node_id, remedy=hint
        )
    return row


def begin(change: JobChange, node_id: str) -> None:
    """Asks a node to fetch what a running job needs to go on there; the caller saves the change.

    Raises:
        NotFound: there is no such node.
        FailedPrecondition: the job does not train, moves already, or the node cannot take it.
    """
    job, target = change.job, node_row(change.session, node_id, "node")
    if job.state not in machine.TRAINS:
        reason = "JOB_TERMINAL" if job.terminal else "STATE_CONFLICT"
        remedy = "a queued or paused job starts wherever there is room; a running one can be moved"
        raise machine.refusal(reason, job.state, "moved", remedy)
    if job.move.node == node_id:
        return
    attempt = live_attempt(change.session, job)
    assert attempt is not None, "a job that trains has an attempt"
    if job.HasField("move"):
        raise machine.refusal(
            "STATE_CONFLICT",
            job.state,
            f"moved: it is on its way to {job.move.node}",
            "wait until it is there",
        )
    if rule := _unfit(change, attempt, target):
        raise FailedPrecondition(
            "NODE_UNFIT",
            f"the node {node_id} cannot take the job: {rule}",
            field="node",
            value=node_id,
            remedy="`tunesmith nodes list` shows what is free",
        )
    job.move.node = node_id
    job.move.start_time.FromDatetime(change.now)
    change.say("move_requested", events_pb2.JobMoveRequested(node=node_id))
    ask(change, attempt)


def ask(change: JobChange, attempt: AttemptRow) -> None:
    """Tells the target of a move what to fetch."""
    job = change.job
    command = node_events_pb2.NodeCommand()
    command.prepare.base_model_digest = job.base_model.digest
    command.prepare.dataset_digest = job.dataset.digest
    command.prepare.checkpoint_digest = job.checkpoint.digest
    command.prepare.prompt_template_digest = job.prompt_template.digest
    command.prepare.targets.extend(job.targets)
    change.command(attempt, "prepare", command, job.move.node)


def _unfit(change: JobChange, attempt: AttemptRow, row: NodeRow) -> str:
    """Returns why a node cannot take a running job, or nothing."""
    if len(attempt.gpus) > 1:
        return "jobs over several nodes are not moved; pause it and resume it"
    if row.id == attempt.node:
        return "it runs there already"
    rule = of_node(_room(change.session, row), need_of(change.job.spec.resources), row.id)
    return OF_NODE[rule] if rule else ""


def _room(session: Session, row: NodeRow) -> Room:
    """Returns what is left of a node: without the attempts it holds and the jobs on their way to it."""
    live = select(AttemptRow).where(holds([row.id]), col(AttemptRow.ended).is_(False))
    running = [Running(held.job_id, "", 0, held.gpus) for held in session.execute(live).scalars()]
    room = Room([node_of(nodes_pb2.Node.FromString(row.body))], running)
    there = [attempt.job_id for attempt in running]
    coming = select(col(JobRow.body)).where(col(JobRow.move_node) == row.id, col(JobRow.id).not_in(there))
    for body in session.execute(coming).scalars():
        room.take(need_of(jobs_pb2.Job.FromString(body).spec.resources), row.id)
    return room


def prepared(change: JobChange, request: nodes_pb2.ReportPreparedRequest) -> None:
    """Takes over that the target has what the job needs, or could not get it; the caller saves the change.

    Raises:
        FailedPrecondition: the job does not move there any more.
    """
    job, attempt = change.job, live_attempt(change.session, change.job)
    if job.move.node != request.node or job.epoch != request.epoch or attempt is None:
        raise FailedPrecondition(
            "STALE_EPOCH",
            f"attempt {request.epoch} of {request.job} does not move to {request.node}",
            field="epoch",
            value=request.epoch,
            remedy=f"what was fetched stays in the node's cache; the job's epoch is {job.epoch}",
        )
    if request.HasField("failure"):
        give_up(change, request.failure.reason, request.failure.message)
    elif not job.move.prepared:
        job.move.prepared = True
        stop_attempt(change, attempt, state_pb2.STATE_REASON_MOVED)


def give_up(change: JobChange, reason: str, message: str) -> None:
    """Ends a move that comes to nothing; the job goes on where it is."""
    node = change.job.move.node
    change.job.ClearField("move")
    change.note("Moved", reason, f"it does not move to {node}: {message}")


def arrived(job: jobs_pb2.Job) -> None:
    """Forgets the move of a job that trains again after it, wherever it is; one asked for since goes on."""
    if job.move.prepared:
        job.ClearField("move")
