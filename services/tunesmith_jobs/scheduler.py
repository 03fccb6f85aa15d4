"""The scheduler: load what waits and what is free, decide with a pure function, apply guarded.

Any number of replicas may run it: a placement is applied only if the job still has the revision that was
decided upon and its nodes still fit, looked at under their locks.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.jobs.v1 import jobs_pb2, spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs import machine
from tunesmith_jobs.change import JobChange, save_node
from tunesmith_jobs.tables import AttemptRow, JobRow, NodeRow
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.telemetry import METRICS
from tunesmith_kit.watch import CommitSignal

log = logging.getLogger(__name__)
_PASS = 500  # jobs looked at in one pass
_REDELIVER_SECONDS = 5.0


@dataclass(frozen=True)
class Waiting:
    """A queued job as the scheduler sees it."""

    job_id: str
    revision: int
    resources: spec_pb2.ResourceSpec


@dataclass(frozen=True)
class Free:
    """What a node has left."""

    node_id: str
    slots: int
    gpus: tuple[int, ...]
    memory_bytes: int
    labels: dict[str, str] = field(default_factory=dict)
    ready: bool = True


@dataclass(frozen=True)
class Placement:
    """Nodes given to a job: all it needs at once (a gang), or none."""

    job: Waiting
    nodes: tuple[Free, ...]
    gpus: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Blocked:
    """Why a job stays in the queue."""

    job: Waiting
    reason: str
    message: str


def decide(waiting: Iterable[Waiting], free: Iterable[Free]) -> tuple[list[Placement], list[Blocked]]:
    """Gives nodes to jobs in the order given (priority, then age), fullest node first to keep gaps large."""
    left = {node.node_id: node for node in free}
    placed, blocked = [], []
    for job in waiting:
        fitting = [node for node in left.values() if not _misfit(job.resources, node)]
        fitting.sort(key=lambda node: (node.slots, len(node.gpus), node.node_id))
        chosen = tuple(fitting[: job.resources.num_nodes])
        if len(chosen) < job.resources.num_nodes:
            blocked.append(_explain(job, list(left.values()), len(fitting)))
            continue
        gpus = tuple(node.gpus[: job.resources.gpus_per_node] for node in chosen)
        placed.append(Placement(job, chosen, gpus))
        for node, taken in zip(chosen, gpus, strict=True):
            rest = tuple(gpu for gpu in node.gpus if gpu not in taken)
            left[node.node_id] = replace(node, slots=node.slots - 1, gpus=rest)
    return placed, blocked


def _misfit(need: spec_pb2.ResourceSpec, node: Free) -> str:
    """Returns the first rule by which the node cannot take the job now, or nothing."""
    if not node.ready:
        return "NODE_NOT_READY"
    if need.node and need.node != node.node_id:
        return "OTHER_NODE"
    if any(node.labels.get(key) != value for key, value in need.node_labels.items()):
        return "LABELS"
    if node.memory_bytes < need.memory_bytes:
        return "MEMORY"
    if node.slots < 1:
        return "NO_FREE_SLOT"
    return "NO_FREE_GPU" if len(node.gpus) < need.gpus_per_node else ""


_MESSAGES = {
    "NO_NODES": "no node has registered; start an agent with `tunesmith serve agent`",
    "NODE_NOT_READY": "the nodes that would fit are not reachable or are cordoned",
    "OTHER_NODE": "the node named by spec.resources.node is not in the fleet",
    "LABELS": "no node carries the labels of spec.resources.node_labels",
    "MEMORY": "no node has the memory of spec.resources.memory_bytes",
    "NO_FREE_SLOT": "every fitting node is busy; the job starts when one is free",
    "NO_FREE_GPU": "no fitting node has enough free GPUs",
}
_CLOSEST = ("NO_FREE_GPU", "NO_FREE_SLOT", "MEMORY", "LABELS", "OTHER_NODE", "NODE_NOT_READY")


def _explain(job: Waiting, nodes: Sequence[Free], num_fitting: int) -> Blocked:
    """Names the rule that blocks on the node closest to fitting."""
    rules = {_misfit(job.resources, node) for node in nodes}
    reason = next((rule for rule in _CLOSEST if rule in rules), "NO_NODES")
    message = _MESSAGES[reason]
    if num_fitting:
        message = f"{num_fitting} of {job.resources.num_nodes} nodes are free; all are reserved at once"
    return Blocked(job, reason, message)


class Scheduler:
    """Runs passes whenever something was committed, and at least each second."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock
        self._signal = CommitSignal(db)

    async def run(self) -> None:
        """Schedules until it is cancelled."""
        while True:
            armed = self._signal.arm()
            await self.run_once()
            try:
                async with asyncio.timeout(1.0):
                    await armed.wait()
            except TimeoutError:
                await self._redeliver()

    async def run_once(self) -> int:
        """Makes one pass; returns the number of jobs placed."""
        waiting, free = await self._db.read(_load)
        METRICS.queue_length.set(len(waiting))
        if not waiting:
            return 0
        placed, blocked = decide(waiting, free)
        for placement in placed:
            await self._db.write(lambda session, p=placement: self._reserve(session, p))  # type: ignore[misc]
        if blocked:
            await self._db.write(lambda session: self._note(session, blocked))
        return len(placed)

    def _reserve(self, session: Session, placement: Placement) -> None:
        row = session.get(JobRow, placement.job.job_id, with_for_update=True)
        if row is None or row.revision != placement.job.revision:
            return
        found = [session.get(NodeRow, node.node_id, with_for_update=True) for node in placement.nodes]
        nodes = [node for node in found if node is not None and _still_fits(session, placement, node)]
        if len(nodes) < len(found):
            return
        change = JobChange(session, row, "service/jobs", self._clock.now())
        change.job.epoch += 1
        change.job.ClearField("conditions")
        # Chosen again under the locks: another replica may have given the GPUs of our reading away.
        gpus = _free(nodes[0], _live(session, nodes[0])).gpus[: placement.job.resources.gpus_per_node]
        attempt = self._attempt(change, placement, gpus)
        session.add(attempt)
        change.move(machine.Outcome(machine.STARTING))
        change.command(attempt, "assign", _assign(change.job, attempt))
        change.save()
        for node_row in nodes:
            node = nodes_pb2.Node.FromString(node_row.body)
            node.jobs.append(change.job.name)
            save_node(session, node_row, node, change.now)

    def _attempt(self, change: JobChange, placement: Placement, gpus: Sequence[int]) -> AttemptRow:
        job = change.job
        attempt = state_pb2.Attempt(
            name=f"{job.name}/attempts/{job.epoch}",
            epoch=job.epoch,
            state=state_pb2.ATTEMPT_STATE_RESERVED,
            nodes=[node.node_id for node in placement.nodes],
            resumed_step=job.checkpoint.step,
        )
        attempt.create_time.FromDatetime(change.now)
        return AttemptRow(
            job_id=job.job_id,
            epoch=job.epoch,
            node=placement.nodes[0].node_id,
            gpus=list(gpus),
            state=attempt.state,
            ended=False,
            command_time=change.now,
            body=attempt.SerializeToString(),
        )

    def _note(self, session: Session, blocked: Sequence[Blocked]) -> None:
        """Writes into each waiting job why it waits, if that changed."""
        for block in blocked:
            row = session.get(JobRow, block.job.job_id, with_for_update=True)
            if row is None or row.revision != block.job.revision:
                continue
            change = JobChange(session, row, "service/jobs", self._clock.now())
            if any(c.type == "Scheduled" and c.message == block.message for c in change.job.conditions):
                continue
            change.job.ClearField("conditions")
            condition = change.job.conditions.add(
                type="Scheduled",
                status=common_pb2.CONDITION_STATUS_FALSE,
                reason=block.reason,
                message=block.message,
            )
            condition.since_time.FromDatetime(change.now)
            change.save()

    async def _redeliver(self) -> None:
        """Sends commands again that no agent has answered: the bus may have lost them."""

        def act(session: Session) -> None:
            now = self._clock.now()
            query = select(AttemptRow).where(col(AttemptRow.state) == state_pb2.ATTEMPT_STATE_RESERVED)
            for attempt in session.execute(query).scalars():
                given = attempt.command_time.replace(tzinfo=attempt.command_time.tzinfo or now.tzinfo)
                if (now - given).total_seconds() < _REDELIVER_SECONDS:
                    continue
                attempt.command_time = now
                row = session.get_one(JobRow, attempt.job_id, with_for_update=True)
                change = JobChange(session, row, "service/jobs", now)
                change.command(attempt, "assign", _assign(change.job, attempt))
                session.add(attempt)

        waiting = select(col(AttemptRow.job_id)).where(
            col(AttemptRow.state) == state_pb2.ATTEMPT_STATE_RESERVED
        )
        if await self._db.read(lambda session: session.execute(waiting.limit(1)).first()):
            await self._db.write(act)


def _live(session: Session, row: NodeRow) -> Sequence[AttemptRow]:
    query = select(AttemptRow).where(col(AttemptRow.node) == row.id, col(AttemptRow.ended).is_(False))
    return session.execute(query).scalars().all()


def _still_fits(session: Session, placement: Placement, row: NodeRow) -> bool:
    """Looks at the node again under its lock: another replica may have filled it meanwhile."""
    return not _misfit(placement.job.resources, _free(row, _live(session, row)))


def _load(session: Session) -> tuple[list[Waiting], list[Free]]:
    queued = select(JobRow).where(col(JobRow.state) == machine.QUEUED)
    rows = session.execute(
        queued.order_by(col(JobRow.priority).desc(), col(JobRow.id)).limit(_PASS)
    ).scalars()
    waiting = [
        Waiting(row.id, row.revision, jobs_pb2.Job.FromString(row.body).spec.resources) for row in rows
    ]
    if not waiting:
        return [], []
    live = session.execute(select(AttemptRow).where(col(AttemptRow.ended).is_(False))).scalars().all()
    free = [
        _free(row, [a for a in live if a.node == row.id])
        for row in session.execute(select(NodeRow)).scalars()
    ]
    return waiting, free


def _free(row: NodeRow, live: Sequence[AttemptRow]) -> Free:
    node = nodes_pb2.Node.FromString(row.body)
    busy = {gpu for attempt in live for gpu in attempt.gpus}
    return Free(
        node_id=row.id,
        slots=node.capacity.slots - len(live),
        gpus=tuple(gpu.index for gpu in node.capacity.gpus if gpu.index not in busy),
        memory_bytes=node.capacity.memory_bytes,
        labels=dict(node.labels),
        ready=node.state == nodes_pb2.NODE_STATE_READY,
    )


def _assign(job: jobs_pb2.Job, attempt: AttemptRow) -> node_events_pb2.NodeCommand:
    assign = node_events_pb2.AssignAttempt(
        spec=job.spec,
        spec_digest=job.spec_digest,
        base_model_digest=job.base_model.digest,
        dataset_digest=job.dataset.digest,
        checkpoint_digest=job.checkpoint.digest,
        checkpoint_step=job.checkpoint.step,
        gpus=attempt.gpus,
        display_name=job.display_name,
        samples=job.samples,
    )
    return node_events_pb2.NodeCommand(assign=assign)
