"""A change of a job or node within a transaction: its new form, revision and events leave together."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from sqlalchemy.orm import Session

from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs import machine
from tunesmith_jobs.tables import OUTBOX, REVISION, AttemptRow, JobRow, NodeRow
from tunesmith_kit import outbox, subjects
from tunesmith_kit.db import next_revision
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.telemetry import METRICS

ACTOR = "service/jobs"  # who acts where no user, node or other service does


class JobChange:
    """Collects what happens to one job and saves it as one revision."""

    def __init__(self, session: Session, row: JobRow, actor: str, now: datetime) -> None:
        self.session, self.row, self.actor, self.now = session, row, actor, now
        self.job = jobs_pb2.Job.FromString(row.body)
        self._events: list[tuple[str, events_pb2.JobEvent]] = []

    def move(
        self,
        outcome: machine.Outcome,
        failure: state_pb2.Failure | None = None,
        version: str = "",
        evaluation: str = "",
    ) -> None:
        """Takes the job to another state and says so."""
        old, new = self.job.state, outcome.state
        table = machine.EXTERNAL if self.job.spec.HasField("external") else machine.TRANSITIONS
        assert new in table[old], f"no transition {old} -> {new}"
        self.job.state, self.job.state_reason = new, outcome.reason
        self.job.active = new not in machine.TERMINAL and new != machine.PAUSED
        self.job.terminal = new in machine.TERMINAL
        if new == machine.FAILED and failure is not None:
            self.job.failure.CopyFrom(failure)
        if new == machine.QUEUED:
            self.row.queued_time = self.now
        if self.job.terminal or new == machine.PAUSED:
            self.job.ClearField("move")
        if self.job.terminal:
            self.job.end_time.FromDatetime(self.now)
            self._count_end(new)
        changed = events_pb2.JobStateChanged(
            from_state=old,
            to_state=new,
            reason=outcome.reason,
            model_version=version,
            evaluation=evaluation,
        )
        if failure is not None:
            changed.failure.CopyFrom(failure)
        self.say("state_changed", changed)

    def _count_end(self, state: state_pb2.JobState.ValueType) -> None:
        name = state_pb2.JobState.Name(state).removeprefix("JOB_STATE_").lower()
        accepted = self.job.create_time.ToDatetime(UTC)
        METRICS.task_duration.labels(state=name).observe((self.now - accepted).total_seconds())
        if state == machine.SUCCEEDED:
            METRICS.task_success.inc()
        elif state == machine.FAILED:
            kind = state_pb2.FailureClass.Name(self.job.failure.failure_class)
            METRICS.task_failure.labels(failure_class=kind.removeprefix("FAILURE_CLASS_").lower()).inc()

    def say(self, kind: str, event: Message, epoch: int | None = None) -> None:
        """Adds an event; `kind` names the field of the envelope's oneof and ends the subject."""
        envelope = events_pb2.JobEvent(
            event_id=new_ulid(),
            actor=self.actor,
            job=self.job.name,
            display_name=self.job.display_name,
            epoch=self.job.epoch if epoch is None else epoch,
            traceparent=self.job.traceparent,
        )
        envelope.time.FromDatetime(self.now)
        getattr(envelope, kind).CopyFrom(event)
        self._events.append((kind, envelope))

    def note(self, kind: str, reason: str, message: str, holds: bool = False) -> bool:
        """Sets the condition `kind` (false unless it `holds`); tells whether that is news."""
        return set_condition(self.job.conditions, kind, reason, message, holds, self.now)

    def save(self) -> jobs_pb2.Job:
        """Writes the job under the next revision, its events into the outbox, and returns the job."""
        revision = next_revision(self.session, REVISION)
        job, row = self.job, self.row
        job.revision = revision
        job.update_time.FromDatetime(self.now)
        row.state, row.epoch, row.revision = job.state, job.epoch, revision
        row.priority, row.deleted = job.spec.resources.priority, job.HasField("delete_time")
        row.move_node = job.move.node
        row.body = job.SerializeToString()
        self.session.add(row)
        for kind, envelope in self._events:
            envelope.revision = revision
            self._send(subjects.job_event(row.project, row.id, kind), envelope, envelope.event_id, job.name)
        self._events.clear()
        return job

    def command(
        self, attempt: AttemptRow, verb: str, command: node_events_pb2.NodeCommand, node: str = ""
    ) -> None:
        """Sends a command about an attempt to its node, or to another."""
        node = node or attempt.node
        command.command_id = new_ulid()
        command.time.FromDatetime(self.now)
        command.job, command.epoch, command.traceparent = self.job.name, attempt.epoch, self.job.traceparent
        self._send(subjects.command(node, verb), command, command.command_id, f"nodes/{node}")

    def _send(self, subject: str, message: Message, event_id: str, resource: str) -> None:
        outgoing = outbox.Outgoing(
            event_id, subject, message, resource, self.job.revision, self.now, self.job.traceparent
        )
        outbox.add(self.session, OUTBOX, outgoing)


def set_condition(conditions: Any, kind: str, reason: str, message: str, holds: bool, now: datetime) -> bool:
    """Sets one condition of a job or node; tells whether that is news."""
    status = common_pb2.CONDITION_STATUS_TRUE if holds else common_pb2.CONDITION_STATUS_FALSE
    found = next((c for c in conditions if c.type == kind), None)
    if found is None:
        found = conditions.add(type=kind)
    elif (found.status, found.reason, found.message) == (status, reason, message):
        return False
    found.status, found.reason, found.message = status, reason, message
    found.since_time.FromDatetime(now)
    return True


def drop_condition(conditions: Any, kind: str) -> None:
    """Removes one condition of a job or node, if it is there."""
    kept = [c for c in conditions if c.type != kind]
    del conditions[:]
    conditions.extend(kept)


def save_node(
    session: Session,
    row: NodeRow,
    node: nodes_pb2.Node,
    now: datetime,
    kind: str = "",
    event: Message | None = None,
    actor: str = ACTOR,
) -> nodes_pb2.Node:
    """Writes a node under the next revision, with an event if one is given, and returns it."""
    revision = next_revision(session, REVISION)
    node.revision = revision
    row.state, row.revision, row.body = node.state, revision, node.SerializeToString()
    session.add(row)
    if event is not None:
        envelope = node_events_pb2.NodeEvent(
            event_id=new_ulid(), revision=revision, actor=actor, node=node.name
        )
        envelope.time.FromDatetime(now)
        getattr(envelope, kind).CopyFrom(event)
        subject = subjects.node_event(row.id, kind)
        outbox.add(
            session, OUTBOX, outbox.Outgoing(envelope.event_id, subject, envelope, node.name, revision, now)
        )
    return node


def save_attempt(
    change: JobChange,
    row: AttemptRow,
    new: state_pb2.AttemptState.ValueType,
    failure: state_pb2.Failure | None = None,
) -> None:
    """Takes an attempt to another state and says so through its job's change."""
    attempt = state_pb2.Attempt.FromString(row.body)
    moved = events_pb2.AttemptStateChanged(from_state=attempt.state, to_state=new, nodes=attempt.nodes)
    if failure is not None:
        moved.failure.CopyFrom(failure)
        attempt.failure.CopyFrom(failure)
    attempt.state = new
    if new == state_pb2.ATTEMPT_STATE_RUNNING:
        attempt.start_time.FromDatetime(change.now)
    row.ended = new in machine.ATTEMPT_ENDS
    if row.ended:
        ended = state_pb2.AttemptState.Name(new).removeprefix("ATTEMPT_STATE_").lower()
        METRICS.attempts.labels(state=ended).inc()
        attempt.end_time.FromDatetime(change.now)
    row.state, row.body = new, attempt.SerializeToString()
    change.session.add(row)
    change.say("attempt_state_changed", moved, epoch=row.epoch)
