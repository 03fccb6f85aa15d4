"""What the scheduler knows of jobs, nodes and quotas: a copy kept up to date by revision.

Each reading takes over only what changed since the last one, so a pass over 10,000 queued jobs parses the few
that changed. The copy decides nothing by itself: what is decided upon it is applied under locks, against the
rows. A store that went back to an older revision (a backup was put back) is read anew.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import jobs_pb2, spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs import machine
from tunesmith_jobs.deadlines import Deadlines
from tunesmith_jobs.needs import Need, Quota, Waiting
from tunesmith_jobs.room import Node, Running
from tunesmith_jobs.tables import REVISION, AttemptRow, JobRow, NodeRow, QuotaRow
from tunesmith_kit.clock import Clock, utc
from tunesmith_kit.db import current_revision

_FOLLOWED = (machine.QUEUED, *machine.HAS_ATTEMPT)
_ENDING = (machine.PAUSING, machine.CANCELLING)
_CLOSED = {
    nodes_pb2.NODE_STATE_READY: "",
    nodes_pb2.NODE_STATE_CORDONED: "NODE_CORDONED",
    nodes_pb2.NODE_STATE_DRAINING: "NODE_CORDONED",
}
# Failures that speak against a node rather than against the job.
_INFRA = (state_pb2.FAILURE_CLASS_INFRA, state_pb2.FAILURE_CLASS_STALLED)


class Census:
    """Jobs that wait, jobs that hold nodes, nodes and quotas, as of `revision`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.revision = 0
        self.waiting: dict[str, Waiting] = {}
        self.running: dict[str, Running] = {}
        self.nodes: dict[str, Node] = {}
        self.quotas: dict[str, Quota] = {}
        self.deadlines = Deadlines(clock)

    def refresh(self, session: Session) -> bool:
        """Takes over what changed; tells whether anything did that a decision depends on."""
        # The revision comes first: what is committed meanwhile is read twice, never missed.
        reached = current_revision(session, REVISION)
        if reached < self.revision:
            self._forget()
        before = self.revision
        changed = self._take_quotas(session)
        if reached > before:
            changed = self._take_nodes(session, before) or changed
            changed = self._take_jobs(session, before) or changed
            self.revision = reached
        return changed

    def _forget(self) -> None:
        self.revision = 0
        self.waiting, self.running, self.nodes = {}, {}, {}
        self.deadlines = Deadlines(self._clock)

    def _take_quotas(self, session: Session) -> bool:
        quotas = {
            row.project: Quota(row.max_running_jobs, row.max_gpus, row.weight)
            for row in session.execute(select(QuotaRow)).scalars()
        }
        changed, self.quotas = quotas != self.quotas, quotas
        return changed

    def _take_nodes(self, session: Session, since: int) -> bool:
        changed = False
        query = select(col(NodeRow.id), col(NodeRow.body)).where(col(NodeRow.revision) > since)
        for row in session.execute(query):
            node = node_of(nodes_pb2.Node.FromString(row.body))
            changed = changed or self.nodes.get(row.id) != node
            self.nodes[row.id] = node
        return changed

    def _take_jobs(self, session: Session, since: int) -> bool:
        columns = (
            col(JobRow.id), col(JobRow.project), col(JobRow.state), col(JobRow.revision),
            col(JobRow.last_node), col(JobRow.trained_seconds), col(JobRow.queued_time), col(JobRow.body),
        )  # fmt: skip
        query = select(*columns).where(col(JobRow.revision) > since)
        if not since:
            query = query.where(col(JobRow.state).in_(_FOLLOWED))
        rows = session.execute(query).all()
        attempts = _live_attempts(session, since)
        shunned = _shunned(session, since)
        changed = False
        for row in rows:
            changed = self._take_job(row, attempts.get(row.id), shunned.get(row.id, frozenset())) or changed
        return changed

    def _take_job(self, row: Any, attempt: AttemptRow | None, shunned: frozenset[str]) -> bool:
        old: Waiting | Running | None = self.waiting.pop(row.id, None) or self.running.pop(row.id, None)
        if row.state not in _FOLLOWED:
            self.deadlines.drop(row.id)
            return old is not None
        job = jobs_pb2.Job.FromString(row.body)
        self.deadlines.take(job, row.trained_seconds, attempt)
        if row.state == machine.QUEUED:
            new = self.waiting[row.id] = replace(waiting_of(row, job), avoid=shunned)
            return old != new
        if attempt is None or not attempt.places:  # an external run's holds no node
            return old is not None
        held = self.running[row.id] = running_of(row, job, attempt)
        return old != held


def waiting_of(row: Any, job: jobs_pb2.Job) -> Waiting:
    """Returns a job as one that waits; `row` gives what the message does not hold."""
    noted = next((c for c in job.conditions if c.type == "Scheduled"), None)
    moved = job.state_reason == state_pb2.STATE_REASON_MOVED and job.HasField("move")
    return Waiting(
        job_id=row.id,
        project=row.project,
        need=need_of(job.spec.resources),
        priority=job.spec.resources.priority,
        since=_seconds(row.queued_time) or job.create_time.seconds,
        last_node=row.last_node,
        move_to=job.move.node if moved else "",
        display_name=job.display_name,
        revision=row.revision,
        noted=(noted.reason, noted.message) if noted is not None else ("", ""),
    )


def running_of(row: Any, job: jobs_pb2.Job, attempt: AttemptRow) -> Running:
    """Returns a job that holds nodes."""
    # A move counts from its request on, until the job has left its old node.
    moves = job.HasField("move") and job.move.node != attempt.node
    return Running(
        job_id=row.id,
        project=row.project,
        priority=job.spec.resources.priority,
        gpus=attempt.gpus,
        ending=row.state in _ENDING,
        held_for=attempt.held_for,
        move_to=job.move.node if moves else "",
        trained_seconds=row.trained_seconds + job.progress.training_seconds,
        epoch=attempt.epoch,
        display_name=job.display_name,
    )


def need_of(resources: spec_pb2.ResourceSpec) -> Need:
    """Returns what a spec asks for, in the form in which equal needs are equal."""
    return Need(
        num_nodes=max(resources.num_nodes, 1),
        gpus=resources.gpus_per_node,
        memory_bytes=resources.memory_bytes,
        labels=frozenset(resources.node_labels.items()),
        node=resources.node,
    )


def node_of(node: nodes_pb2.Node) -> Node:
    """Returns a node as the scheduler sees it."""
    return Node(
        node_id=node.node_id,
        slots=node.capacity.slots,
        gpus=tuple(sorted(gpu.index for gpu in node.capacity.gpus)),
        memory_bytes=node.capacity.memory_bytes,
        labels=frozenset(node.labels.items()),
        closed=_CLOSED.get(node.state, "NODE_NOT_READY"),
    )


def _live_attempts(session: Session, since: int) -> dict[str, AttemptRow]:
    """Attempts that hold nodes, of the jobs changed."""
    query = select(AttemptRow).join(JobRow, col(JobRow.id) == col(AttemptRow.job_id))
    query = query.where(col(AttemptRow.ended).is_(False), col(JobRow.revision) > since)
    return {row.job_id: row for row in session.execute(query).scalars()}


def _shunned(session: Session, since: int) -> dict[str, frozenset[str]]:
    """Nodes that failed a queued job too often, of the jobs changed."""
    job, node = col(AttemptRow.job_id), col(AttemptRow.node)
    query = select(job, node).join(JobRow, col(JobRow.id) == job)
    query = query.where(col(JobRow.state) == machine.QUEUED, col(JobRow.revision) > since)
    query = query.where(col(AttemptRow.failure_class).in_(_INFRA)).group_by(job, node)
    found: dict[str, set[str]] = {}
    for row in session.execute(query.having(func.count() >= machine.AVOID_NODE_AFTER)):
        found.setdefault(row.job_id, set()).add(row.node)
    return {job_id: frozenset(names) for job_id, names in found.items()}


def _seconds(time: datetime | None) -> float:
    return 0.0 if time is None else utc(time).timestamp()
