"""Nodes, and what their agents report of attempts, in the database."""

import difflib
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.errors import FailedPrecondition, NotFound
from tunesmith_jobs import machine
from tunesmith_jobs.change import JobChange, save_attempt, save_node
from tunesmith_jobs.store import find
from tunesmith_jobs.tables import REVISION, AttemptRow, JobRow, NodeRow
from tunesmith_kit import names
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database, current_revision

_JOB = "projects/*/jobs/*"


class FleetStore:
    """What the rpcs of NodeService and the lease monitor need."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def register(self, request: nodes_pb2.RegisterNodeRequest) -> tuple[nodes_pb2.Node, list[str]]:
        """Enters a node; returns it and which of its attempts are no longer in force."""

        def act(session: Session) -> tuple[nodes_pb2.Node, list[str]]:
            now = self._clock.now()
            row = session.get(NodeRow, request.node_id)
            node = nodes_pb2.Node.FromString(row.body) if row else self._new_node(request.node_id, now)
            row = row or NodeRow(id=request.node_id, state=0, revision=0, body=b"")
            if node.state != nodes_pb2.NODE_STATE_CORDONED:
                node.state = nodes_pb2.NODE_STATE_READY
            node.ClearField("labels")
            node.labels.update(request.labels)
            node.capacity.CopyFrom(request.capacity)
            node.agent_version = request.agent_version
            node.register_time.FromDatetime(now)
            _set_reachable(node, True, now)
            saved = save_node(
                session, row, node, now, "registered", node_events_pb2.NodeRegistered(node=node)
            )
            stale = [job for job, epoch in request.attempts.items() if not _in_force(session, job, epoch)]
            self._give_up_unknown(session, request, now)
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
            launched = row.state != state_pb2.ATTEMPT_STATE_RESERVED
            if launched and (row.job_id, row.epoch) not in known:
                failure = state_pb2.Failure(
                    failure_class=state_pb2.FAILURE_CLASS_INFRA,
                    reason="RUN_FOLDER_LOST",
                    message="the node's agent started anew and no longer has the attempt",
                )
                _end(session, row, state_pb2.ATTEMPT_STATE_FAILED, failure, f"nodes/{request.node_id}", now)

    async def get(self, name: str) -> nodes_pb2.Node:
        """Returns one node."""
        (node_id,) = names.parse("nodes/*", name)

        def read(session: Session) -> nodes_pb2.Node:
            row = session.get(NodeRow, node_id)
            if row is None:
                near = difflib.get_close_matches(
                    node_id, session.execute(select(col(NodeRow.id))).scalars().all(), n=1
                )
                hint = f"did you mean {near[0]}?" if near else "`tunesmith nodes list` shows all nodes"
                raise NotFound(
                    "NODE_NOT_FOUND", f"there is no node {node_id}", field="name", value=node_id, remedy=hint
                )
            return nodes_pb2.Node.FromString(row.body)

        return await self._db.read(read)

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

    async def report(self, request: nodes_pb2.ReportAttemptRequest) -> state_pb2.Desired.ValueType:
        """Takes over what an agent says of an attempt; returns what the user wants of the job.

        Raises:
            FailedPrecondition: the attempt was replaced, or its job has ended.
        """
        project, job_id = names.parse(_JOB, request.job, "job")

        def act(session: Session) -> state_pb2.Desired.ValueType | FailedPrecondition:
            change = JobChange(
                session, find(session, project, job_id), f"nodes/{request.node}", self._clock.now()
            )
            row = session.get(AttemptRow, (change.row.id, request.epoch))
            if row is None or row.node != request.node or request.epoch != change.job.epoch or row.ended:
                return self._refuse(change, row, request)
            if _take_over(change, row, request):
                change.save()
            return change.job.desired

        answer = await self._db.write(act)
        if isinstance(answer, FailedPrecondition):
            raise answer
        return answer

    def _refuse(
        self, change: JobChange, row: AttemptRow | None, request: nodes_pb2.ReportAttemptRequest
    ) -> state_pb2.Desired.ValueType | FailedPrecondition:
        if row is not None and row.ended and row.state == request.state and row.node == request.node:
            return change.job.desired  # the same end reported again: the first answer was lost
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

    async def set_reachable(self, node_id: str, reachable: bool) -> None:
        """Takes over that a node's lease expired or is renewed again."""

        def act(session: Session) -> None:
            now = self._clock.now()
            row = session.get(NodeRow, node_id)
            wanted = nodes_pb2.NODE_STATE_READY if reachable else nodes_pb2.NODE_STATE_LOST
            if row is None or row.state in (wanted, nodes_pb2.NODE_STATE_CORDONED):
                return
            node = nodes_pb2.Node.FromString(row.body)
            moved = node_events_pb2.NodeStateChanged(
                from_state=node.state,
                to_state=wanted,
                message="lease renewed" if reachable else "lease expired",
            )
            node.state = wanted
            _set_reachable(node, reachable, now)
            save_node(session, row, node, now, "state_changed", moved)

        await self._db.write(act)

    async def states(self) -> dict[str, int]:
        """Returns the state of every node by its id."""
        query = select(col(NodeRow.id), col(NodeRow.state))
        return {row.id: row.state for row in await self._db.read(lambda s: s.execute(query).all())}

    async def graces(self, node_id: str) -> Sequence[tuple[str, int, timedelta]]:
        """Returns (job id, epoch, grace) of the attempts a node holds."""

        def read(session: Session) -> Sequence[tuple[str, int, timedelta]]:
            found = []
            for row in _live(session, node=node_id):
                job = jobs_pb2.Job.FromString(session.get_one(JobRow, row.job_id).body)
                found.append((row.job_id, row.epoch, job.spec.retry.unreachable_grace.ToTimedelta()))
            return found

        return await self._db.read(read)

    async def give_up(self, job_id: str, epoch: int) -> None:
        """Ends an attempt whose node stayed away longer than its grace; its job gets a new one."""

        def act(session: Session) -> None:
            row = session.get(AttemptRow, (job_id, epoch))
            if row is None or row.ended:
                return
            failure = state_pb2.Failure(
                failure_class=state_pb2.FAILURE_CLASS_NODE_LOST,
                reason="LEASE_EXPIRED",
                message=f"node {row.node} was not heard of for longer than its lease and the job's grace",
            )
            _end(session, row, state_pb2.ATTEMPT_STATE_LOST, failure, "service/jobs", self._clock.now())

        await self._db.write(act)


def _live(session: Session, node: str) -> Sequence[AttemptRow]:
    query = select(AttemptRow).where(col(AttemptRow.node) == node, col(AttemptRow.ended).is_(False))
    return session.execute(query).scalars().all()


def _in_force(session: Session, name: str, epoch: int) -> bool:
    row = session.get(AttemptRow, (names.parse(_JOB, name)[1], epoch))
    return row is not None and not row.ended


def _set_reachable(node: nodes_pb2.Node, reachable: bool, now: datetime) -> None:
    node.ClearField("conditions")
    status = common_pb2.CONDITION_STATUS_TRUE if reachable else common_pb2.CONDITION_STATUS_FALSE
    condition = node.conditions.add(
        type="Reachable", status=status, reason="" if reachable else "LEASE_EXPIRED"
    )
    condition.since_time.FromDatetime(now)


def _end(
    session: Session,
    row: AttemptRow,
    end: state_pb2.AttemptState.ValueType,
    failure: state_pb2.Failure,
    actor: str,
    now: datetime,
) -> None:
    change = JobChange(session, session.get_one(JobRow, row.job_id, with_for_update=True), actor, now)
    end_attempt(change, row, end, failure)
    change.save()


def end_attempt(
    change: JobChange,
    row: AttemptRow,
    end: state_pb2.AttemptState.ValueType,
    failure: state_pb2.Failure | None = None,
) -> None:
    """Ends an attempt and takes its job where the state machine says; frees the node's slot."""
    history = machine.History(
        change.row.infra_failures,
        change.job.spec.retry.max_infra_retries,
        change.row.user_errors,
        change.row.progressed,
    )
    kind = failure.failure_class if failure is not None else state_pb2.FAILURE_CLASS_UNSPECIFIED
    save_attempt(change, row, end, failure)
    outcome = machine.after_attempt(change.job.state, change.job.desired, end, kind, history)
    if machine.BUDGETS.get(kind) is machine.Budget.INFRA:
        change.row.infra_failures += 1
    elif machine.BUDGETS.get(kind) is machine.Budget.PROGRESS:
        change.row.user_errors += 1
    change.move(outcome, failure)
    free_node(change.session, row.node, change.job.name, change.now)


def free_node(session: Session, node_id: str, job: str, now: datetime) -> None:
    """Takes a job off a node's list."""
    row = session.get(NodeRow, node_id, with_for_update=True)
    if row is None:
        return
    node = nodes_pb2.Node.FromString(row.body)
    if job in node.jobs:
        node.jobs.remove(job)
        save_node(session, row, node, now)


def _take_over(change: JobChange, row: AttemptRow, request: nodes_pb2.ReportAttemptRequest) -> bool:
    """Applies a report to job and attempt; tells whether anything changed."""
    changed = False
    job = change.job
    if request.HasField("progress"):
        job.progress.CopyFrom(request.progress)
        changed = True
    if request.samples:
        job.ClearField("samples")
        job.samples.extend(request.samples)
        changed = True
    if request.HasField("checkpoint") and request.checkpoint.digest != job.checkpoint.digest:
        job.checkpoint.CopyFrom(request.checkpoint)
        change.row.progressed, change.row.infra_failures, change.row.user_errors = True, 0, 0
        change.say("checkpoint_committed", events_pb2.CheckpointCommitted(checkpoint=request.checkpoint))
        changed = True
    if request.state and machine.attempt_advances(
        state_pb2.Attempt.FromString(row.body).state, request.state
    ):
        _advance(change, row, request)
        changed = True
    return changed


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
    ready.final_metrics.update({"train/loss": job.progress.loss, "first_loss": job.progress.first_loss})
    if job.progress.HasField("eval_loss"):
        ready.final_metrics["eval/loss"] = job.progress.eval_loss
    change.say("output_ready", ready)
