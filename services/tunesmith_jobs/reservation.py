"""What a pass decided, applied under locks: each decision holds only if the rows still allow it.

Any number of replicas may decide at once. A row that somebody else has locked is left out rather than waited
for, and the next pass looks again: so the scheduler can be part of no deadlock.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs import deadlines, machine
from tunesmith_jobs.assignment import assign
from tunesmith_jobs.census import node_of
from tunesmith_jobs.change import ACTOR, JobChange, drop_condition, save_node
from tunesmith_jobs.needs import Quota, Usage, over_quota
from tunesmith_jobs.placement import Blocked, Placement, Preemption
from tunesmith_jobs.room import Room, Running
from tunesmith_jobs.stopping import stop_attempt
from tunesmith_jobs.tables import REVISION, AttemptRow, JobRow, NodeRow, QuotaRow, holds, members
from tunesmith_kit.clock import Clock, utc

T = TypeVar("T", JobRow, NodeRow, QuotaRow)


@dataclass(frozen=True, slots=True)
class Placed:
    """A job that was given a node: since when it had waited."""

    job: str
    epoch: int
    node: str
    traceparent: str
    since: datetime
    until: datetime


class Reservations:
    """Applies placements, preemptions, notes and deadlines; each call is one transaction's work."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def place(self, session: Session, placements: Sequence[Placement]) -> list[Placed]:
        """Starts an attempt for each placement that still holds; returns those that did."""
        _lock_revisions(session)
        jobs = _locked(session, JobRow, col(JobRow.id), [p.job.job_id for p in placements])
        names = sorted({node for placement in placements for node in placement.nodes})
        nodes = _Nodes(session, names)
        limits = _Limits(session, {placement.job.project for placement in placements})
        placed = []
        with session.no_autoflush:  # all rows are at hand: they are written together, at the end
            for placement in placements:
                row = jobs.get(placement.job.job_id)
                if row is None or row.state != machine.QUEUED or row.revision != placement.job.revision:
                    continue
                if all(nodes.fit(placement, name) for name in placement.nodes) and limits.allow(placement):
                    placed.append(self._start(session, row, placement, nodes))
            nodes.save(session, self._clock)
        return placed

    def _start(self, session: Session, row: JobRow, placement: Placement, nodes: "_Nodes") -> Placed:
        change = JobChange(session, row, ACTOR, self._clock.now())
        change.job.epoch += 1
        drop_condition(change.job.conditions, "Scheduled")
        gpus = [nodes.give(placement, name, change.job.name) for name in placement.nodes]
        attempt = _attempt(change, list(zip(placement.nodes, map(list, gpus), strict=True)))
        if len(placement.nodes) > 1:
            attempt.rendezvous = f"{nodes.address(attempt.node)}:{_port(attempt)}"
        session.add(attempt)
        change.move(machine.Outcome(machine.STARTING))
        assign(change, attempt)
        job = change.save()
        since = utc(row.queued_time) if row.queued_time is not None else change.now
        return Placed(job.name, attempt.epoch, attempt.node, job.traceparent, since, change.now)

    def preempt(self, session: Session, preemption: Preemption) -> bool:
        """Stops the victims with a checkpoint, all or none; they are queued again when they have ended."""
        _lock_revisions(session)
        for_job = preemption.job.job_id
        names = [for_job, *(victim.job_id for victim in preemption.victims)]
        rows = _locked(session, JobRow, col(JobRow.id), names)
        if len(rows) < len(names) or rows[for_job].state != machine.QUEUED or _is_served(session, for_job):
            return False
        attempts = [session.get(AttemptRow, (v.job_id, v.epoch)) for v in preemption.victims]
        if any(a is None or a.ended or rows[a.job_id].state not in machine.TRAINS for a in attempts):
            return False
        for attempt in attempts:
            assert attempt is not None
            change = JobChange(session, rows[attempt.job_id], ACTOR, self._clock.now())
            attempt.held_for = for_job
            stop_attempt(change, attempt, state_pb2.STATE_REASON_PREEMPTED)
            change.save()
        return True

    def note(self, session: Session, blocked: Sequence[Blocked]) -> None:
        """Writes into waiting jobs why they wait."""
        _lock_revisions(session)
        jobs = _locked(session, JobRow, col(JobRow.id), [block.job.job_id for block in blocked])
        with session.no_autoflush:
            for block in blocked:
                row = jobs.get(block.job.job_id)
                if row is None or row.revision != block.job.revision:
                    continue
                change = JobChange(session, row, ACTOR, self._clock.now())
                change.note("Scheduled", block.reason, block.message)
                change.save()

    def expire(self, session: Session, due: deadlines.Due) -> bool:
        """Ends what is late: a waiting job fails, a training one is stopped with a checkpoint first."""
        _lock_revisions(session)
        row = _locked(session, JobRow, col(JobRow.id), [due.job_id]).get(due.job_id)
        if row is None or row.epoch != due.epoch:
            return False
        change = JobChange(session, row, ACTOR, self._clock.now())
        if due.kind == deadlines.RUN:
            attempt = session.get(AttemptRow, (due.job_id, due.epoch))
            if attempt is None or not stop_attempt(change, attempt, state_pb2.STATE_REASON_RUN_DEADLINE):
                return False
        elif row.state == machine.QUEUED:
            change.move(machine.Outcome(machine.FAILED), deadlines.failure(due.kind, change.job))
        else:
            return False
        change.save()
        return True


class _Nodes:
    """The nodes of a batch of placements, locked, and their room as the rows say it is."""

    def __init__(self, session: Session, names: Sequence[str]) -> None:
        self._rows = _locked(session, NodeRow, col(NodeRow.id), names)
        self._nodes = {name: nodes_pb2.Node.FromString(row.body) for name, row in self._rows.items()}
        live = select(AttemptRow).where(holds(names), col(AttemptRow.ended).is_(False))
        running = [Running(row.job_id, "", 0, row.gpus) for row in session.execute(live).scalars()]
        self._room = Room(map(node_of, self._nodes.values()), running)
        self._given: set[str] = set()

    def fit(self, placement: Placement, name: str) -> bool:
        return self._room.fits(placement.job.need, name)

    def give(self, placement: Placement, name: str, job: str) -> tuple[int, ...]:
        """Gives a node to a job. GPUs are chosen anew: another replica may have given ours away."""
        self._given.add(name)
        self._nodes[name].jobs.append(job)
        return self._room.take(placement.job.need, name)

    def address(self, name: str) -> str:
        """Where other nodes reach this one."""
        return self._nodes[name].address or name

    def save(self, session: Session, clock: Clock) -> None:
        for name in sorted(self._given):
            save_node(session, self._rows[name], self._nodes[name], clock.now())


class _Limits:
    """The quotas of a batch of placements, locked, and what their projects use."""

    def __init__(self, session: Session, projects: Iterable[str]) -> None:
        every = select(col(QuotaRow.project)).where(col(QuotaRow.project).in_(sorted(projects)))
        limited = list(session.execute(every).scalars())
        self._rows = _locked(session, QuotaRow, col(QuotaRow.project), limited)
        self._limited = set(limited)
        self._usage = usage_of(session, limited) if limited else {}

    def allow(self, placement: Placement) -> bool:
        """Whether the project's quota allows one more job, which is then counted."""
        project, need = placement.job.project, placement.job.need
        if project not in self._limited:
            return True
        row = self._rows.get(project)
        if row is None:  # somebody else decides about this project now
            return False
        usage = self._usage[project]
        moves = bool(placement.job.move_to)
        if not moves and over_quota(Quota(row.max_running_jobs, row.max_gpus), usage, need):
            return False
        usage.add(need.num_nodes, need.num_gpus)
        return True


def usage_of(session: Session, projects: Sequence[str]) -> dict[str, Usage]:
    """Returns what projects use now: the attempts that hold nodes."""
    query = select(col(JobRow.project), col(AttemptRow.places)).join(
        AttemptRow, col(AttemptRow.job_id) == col(JobRow.id)
    )
    query = query.where(col(AttemptRow.ended).is_(False), col(JobRow.project).in_(projects))
    query = query.where(col(AttemptRow.node) != "")  # external runs hold none
    usage: dict[str, Usage] = defaultdict(Usage)
    for row in session.execute(query):
        usage[row.project].add(len(row.places), sum(len(gpus) for _, gpus in row.places))
    return usage


def _port(attempt: AttemptRow) -> int:
    """A port for the ranks to meet at. If it is taken the attempt fails as INFRA; the next has another."""
    return 29400 + zlib.crc32(f"{attempt.job_id}-{attempt.epoch}".encode()) % 2000


def _attempt(change: JobChange, places: list[tuple[str, list[int]]]) -> AttemptRow:
    job, nodes = change.job, [node for node, _ in places]
    attempt = state_pb2.Attempt(
        name=f"{job.name}/attempts/{job.epoch}",
        epoch=job.epoch,
        state=state_pb2.ATTEMPT_STATE_RESERVED,
        nodes=nodes,
        resumed_step=job.checkpoint.step,
    )
    attempt.create_time.FromDatetime(change.now)
    return AttemptRow(
        job_id=job.job_id,
        epoch=job.epoch,
        node=nodes[0],
        members=members(nodes),
        places=places,
        state=attempt.state,
        ended=False,
        command_time=change.now,
        body=attempt.SerializeToString(),
    )


def _is_served(session: Session, job_id: str) -> bool:
    """Whether jobs give way to this one already, at another replica's word."""
    query = select(func.count()).where(col(AttemptRow.held_for) == job_id, col(AttemptRow.ended).is_(False))
    return bool(session.execute(query).scalar_one())


def _lock_revisions(session: Session) -> None:
    """Locks the counter that every change takes last: whoever holds it waits for no row of ours."""
    session.execute(select(REVISION.c.value).with_for_update()).all()


def _locked(session: Session, table: type[T], key: Any, names: Sequence[str]) -> dict[str, T]:
    """Returns rows by key, locked; those that somebody else holds are missing."""
    query = select(table).where(key.in_(names)).with_for_update(skip_locked=True)
    rows: Sequence[T] = session.execute(query.execution_options(populate_existing=True)).scalars().all()
    return {getattr(row, key.key): row for row in rows}
