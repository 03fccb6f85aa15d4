"""Nodes in the database: entered, given up, cordoned and drained."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs.change import ACTOR, JobChange, drop_condition, save_node, set_condition
from tunesmith_jobs.ending import end_attempt
from tunesmith_jobs.moves import node_row
from tunesmith_jobs.stopping import stop_attempt
from tunesmith_jobs.store import Caller
from tunesmith_jobs.tables import REQUESTS, REVISION, AttemptRow, JobRow, NodeRow, holds
from tunesmith_kit import names
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database, current_revision
from tunesmith_kit.idempotency import once

_JOB = "projects/*/jobs/*"
# Closed by an operator: only an operator opens them again, whatever their agents do.
CLOSED = (nodes_pb2.NODE_STATE_CORDONED, nodes_pb2.NODE_STATE_DRAINING)
A = TypeVar("A", bound=Message)

_EARLY = (
    state_pb2.ATTEMPT_STATE_RESERVED,
    state_pb2.ATTEMPT_STATE_LAUNCHING,
    state_pb2.ATTEMPT_STATE_READY,
)


class FleetStore:
    """What the rpcs of NodeService and the lease monitor need."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def register(self, request: nodes_pb2.RegisterNodeRequest) -> tuple[nodes_pb2.Node, list[str]]:
        """Enters a node; returns it and which of its attempts are no longer in force."""

        def act(session: Session) -> tuple[nodes_pb2.Node, list[str]]:
            now = self._clock.now()
            self._give_up_unknown(session, request, now)
            row = session.get(NodeRow, request.node_id, with_for_update=True)
            node = nodes_pb2.Node.FromString(row.body) if row else self._new_node(request.node_id, now)
            row = row or NodeRow(id=request.node_id, state=0, revision=0, body=b"")
            if node.state not in CLOSED:
                node.state = nodes_pb2.NODE_STATE_READY
            node.ClearField("labels")
            node.labels.update(request.labels)
            node.capacity.CopyFrom(request.capacity)
            node.agent_version, node.address = request.agent_version, request.address
            node.register_time.FromDatetime(now)
            _set_reachable(node, True, now)
            saved = save_node(
                session, row, node, now, "registered", node_events_pb2.NodeRegistered(node=node)
            )
            stale = [job for job, epoch in request.attempts.items() if not _in_force(session, job, epoch)]
            return saved, stale

        return await self._db.write(act)

    def _new_node(self, node_id: str, now: datetime) -> nodes_pb2.Node:
        node = nodes_pb2.Node(name=f"nodes/{node_id}", node_id=node_id)
        node.create_time.FromDatetime(now)
        return node

    def _give_up_unknown(
        self, session: Session, request: nodes_pb2.RegisterNodeRequest, now: datetime
    ) -> None:
        """Ends attempts that the database gives to the node and a freshly started agent knows nothing of."""
        known = {(names.parse(_JOB, job)[1], epoch) for job, epoch in request.attempts.items()}
        for row in _live(session, node=request.node_id):
            # Another node of a gang may not have heard of it yet when the first one has launched.
            early = (state_pb2.ATTEMPT_STATE_RESERVED,) if row.node == request.node_id else _EARLY
            launched = row.state not in early
            if launched and (row.job_id, row.epoch) not in known:
                failure = state_pb2.Failure(
                    failure_class=state_pb2.FAILURE_CLASS_INFRA,
                    reason="RUN_FOLDER_LOST",
                    message="the node's agent started anew and no longer has the attempt",
                    remedy="nothing: another attempt begins at once; see what happened to the node's disk",
                )
                _end(session, row, state_pb2.ATTEMPT_STATE_FAILED, failure, f"nodes/{request.node_id}", now)

    async def get(self, name: str) -> nodes_pb2.Node:
        """Returns one node."""
        (node_id,) = names.parse("nodes/*", name)

        return await self._db.read(lambda s: nodes_pb2.Node.FromString(node_row(s, node_id).body))

    async def list(self, request: nodes_pb2.ListNodesRequest) -> nodes_pb2.ListNodesResponse:
        """Returns a page of nodes by name."""
        size, cursor = names.page_size(request.page_size), names.page_cursor("nodes", request.page_token)

        def read(session: Session) -> nodes_pb2.ListNodesResponse:
            revision = current_revision(session, REVISION)
            query = select(NodeRow).where(col(NodeRow.id) > cursor).order_by(col(NodeRow.id)).limit(size + 1)
            rows = session.execute(query).scalars().all()
            token = names.page_token("nodes", rows[size - 1].id) if len(rows) > size else ""
            nodes = [nodes_pb2.Node.FromString(row.body) for row in rows[:size]]
            return nodes_pb2.ListNodesResponse(nodes=nodes, next_page_token=token, revision=revision)

        return await self._db.read(read)

    async def cordon(self, request: nodes_pb2.CordonNodeRequest, caller: Caller) -> nodes_pb2.Node:
        """Gives a node no new attempts; a draining one goes on draining."""

        def act(node: nodes_pb2.Node) -> str:
            if node.state in CLOSED:
                return ""
            node.state = nodes_pb2.NODE_STATE_CORDONED
            set_condition(node.conditions, "Cordoned", "CORDONED", request.reason, True, self._clock.now())
            return request.reason or "cordoned"

        return (await self._operate(request, caller, act, nodes_pb2.CordonNodeResponse)).node

    async def uncordon(self, request: nodes_pb2.UncordonNodeRequest, caller: Caller) -> nodes_pb2.Node:
        """Lets a node take attempts again."""

        def act(node: nodes_pb2.Node) -> str:
            if node.state not in CLOSED:
                return ""
            ready = is_reachable(node)
            node.state = nodes_pb2.NODE_STATE_READY if ready else nodes_pb2.NODE_STATE_LOST
            drop_condition(node.conditions, "Cordoned")
            return "uncordoned"

        return (await self._operate(request, caller, act, nodes_pb2.UncordonNodeResponse)).node

    async def drain(self, request: nodes_pb2.DrainNodeRequest, caller: Caller) -> nodes_pb2.Node:
        """Gives a node no new attempts and stops those it holds, each with a checkpoint."""

        def act(node: nodes_pb2.Node) -> str:
            empty = not node.jobs
            wanted = nodes_pb2.NODE_STATE_CORDONED if empty else nodes_pb2.NODE_STATE_DRAINING
            if node.state == wanted:
                return ""
            node.state = wanted
            set_condition(node.conditions, "Cordoned", "DRAINED", request.reason, True, self._clock.now())
            return request.reason or ("drained: it is empty" if empty else "draining")

        drained = (await self._operate(request, caller, act, nodes_pb2.DrainNodeResponse)).node
        await self.clear(drained.node_id, caller.name)
        return drained

    async def clear(self, node_id: str, actor: str) -> None:
        """Stops what trains on a draining node. Jobs are locked before nodes, as everywhere, so it is a
        change of its own for each; what it misses is found when `Departures` looks again."""
        live = await self._db.read(lambda session: _live(session, node=node_id))
        for attempt in live:
            await self._db.write(lambda s, a=attempt: self._clear_one(s, a.job_id, a.epoch, actor))  # type: ignore[misc]

    def _clear_one(self, session: Session, job_id: str, epoch: int, actor: str) -> None:
        row = session.get_one(JobRow, job_id, with_for_update=True)
        attempt = session.get(AttemptRow, (job_id, epoch))
        found = [session.get(NodeRow, node) for node in attempt.gpus] if attempt is not None else []
        draining = any(n is not None and n.state == nodes_pb2.NODE_STATE_DRAINING for n in found)
        if attempt is None or not draining:
            return
        change = JobChange(session, row, actor, self._clock.now())
        if stop_attempt(change, attempt, state_pb2.STATE_REASON_DRAINED):
            change.save()

    async def draining(self) -> Sequence[str]:
        """Returns the ids of the nodes that are being drained."""
        query = select(col(NodeRow.id)).where(col(NodeRow.state) == nodes_pb2.NODE_STATE_DRAINING)
        return await self._db.read(lambda session: session.execute(query).scalars().all())

    async def _operate(
        self, request: Any, caller: Caller, act: Callable[[nodes_pb2.Node], str], answer: type[A]
    ) -> A:
        """Changes a node at an operator's wish, once for a request id; `act` returns why, or nothing."""
        (node_id,) = names.parse("nodes/*", request.name)

        def change(session: Session) -> A:
            row = node_row(session, node_id)
            node = nodes_pb2.Node.FromString(row.body)
            before = node.state
            if why := act(node):
                moved = node_events_pb2.NodeStateChanged(from_state=before, to_state=node.state, message=why)
                save_node(session, row, node, self._clock.now(), "state_changed", moved, caller.name)
            return answer(node=node)

        return await self._db.write(
            lambda s: once(s, REQUESTS, caller.name, request, lambda: change(s), answer)
        )

    async def set_reachable(self, node_id: str, reachable: bool) -> None:
        """Takes over that a node's lease expired or is renewed. What an operator closed stays closed."""

        def act(session: Session) -> None:
            now = self._clock.now()
            row = session.get(NodeRow, node_id, with_for_update=True)
            if row is None:
                return
            node = nodes_pb2.Node.FromString(row.body)
            wanted = nodes_pb2.NODE_STATE_READY if reachable else nodes_pb2.NODE_STATE_LOST
            wanted = node.state if node.state in CLOSED else wanted
            if not _set_reachable(node, reachable, now) and node.state == wanted:
                return
            moved = node_events_pb2.NodeStateChanged(
                from_state=node.state,
                to_state=wanted,
                message="lease renewed" if reachable else "lease expired",
            )
            node.state = wanted
            save_node(session, row, node, now, "state_changed", moved)

        await self._db.write(act)

    async def reachable(self) -> dict[str, bool]:
        """Returns by its id whether each node is known to be reachable."""
        state = col(NodeRow.state)
        plain = select(col(NodeRow.id), state).where(state.not_in(CLOSED))
        closed = select(col(NodeRow.id), col(NodeRow.body)).where(state.in_(CLOSED))

        def read(session: Session) -> dict[str, bool]:
            found = {row.id: row.state != nodes_pb2.NODE_STATE_LOST for row in session.execute(plain)}
            for row in session.execute(closed):
                found[row.id] = is_reachable(nodes_pb2.Node.FromString(row.body))
            return found

        return await self._db.read(read)

    async def graces(self, node_id: str) -> Sequence[tuple[str, int, timedelta]]:
        """Returns (job id, epoch, grace) of the attempts a node holds."""

        def read(session: Session) -> Sequence[tuple[str, int, timedelta]]:
            found = []
            for row in _live(session, node=node_id):
                job = jobs_pb2.Job.FromString(session.get_one(JobRow, row.job_id).body)
                found.append((row.job_id, row.epoch, job.spec.retry.unreachable_grace.ToTimedelta()))
            return found

        return await self._db.read(read)

    async def give_up(self, job_id: str, epoch: int, node_id: str) -> None:
        """Ends an attempt whose node stayed away longer than its grace; its job gets a new one."""

        def act(session: Session) -> None:
            row = session.get(AttemptRow, (job_id, epoch))
            if row is None or row.ended:
                return
            failure = state_pb2.Failure(
                failure_class=state_pb2.FAILURE_CLASS_NODE_LOST,
                reason="LEASE_EXPIRED",
                message=f"node {node_id} was not heard of for its lease and for retry.unreachable_grace",
                remedy="nothing: another attempt begins where there is room; a longer grace waits longer",
            )
            _end(session, row, state_pb2.ATTEMPT_STATE_LOST, failure, ACTOR, self._clock.now())

        await self._db.write(act)


def _live(session: Session, node: str) -> Sequence[AttemptRow]:
    query = select(AttemptRow).where(holds([node]), col(AttemptRow.ended).is_(False))
    return session.execute(query).scalars().all()


def _in_force(session: Session, name: str, epoch: int) -> bool:
    row = session.get(AttemptRow, (names.parse(_JOB, name)[1], epoch))
    return row is not None and not row.ended


def is_reachable(node: nodes_pb2.Node) -> bool:
    """Whether the node's lease was alive when last looked at."""
    condition = next((c for c in node.conditions if c.type == "Reachable"), None)
    return condition is None or condition.status == common_pb2.CONDITION_STATUS_TRUE


def _set_reachable(node: nodes_pb2.Node, reachable: bool, now: datetime) -> bool:
    reason = "" if reachable else "LEASE_EXPIRED"
    return set_condition(node.conditions, "Reachable", reason, "", reachable, now)


def _end(
    session: Session,
    row: AttemptRow,
    end: state_pb2.AttemptState.ValueType,
    failure: state_pb2.Failure,
    actor: str,
    now: datetime,
) -> None:
    """Ends an attempt that was found without its job's lock: a report may have ended it meanwhile."""
    change = JobChange(session, session.get_one(JobRow, row.job_id, with_for_update=True), actor, now)
    session.refresh(row)
    if not row.ended:
        end_attempt(change, row, end, failure)
        change.save()
