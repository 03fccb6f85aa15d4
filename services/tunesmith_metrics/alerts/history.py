"""What the engine hears of jobs and nodes, kept in the order in which it was heard.

An event is entered once, whatever the bus delivers twice; it is judged from here, together with metrics and
logs.
"""

from google.protobuf.message import DecodeError
from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import events_pb2 as job_events_pb2
from tunesmith.api.jobs.v1 import spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_kit import names, subjects
from tunesmith_kit.bus import Bus, Consumer, Delivery
from tunesmith_kit.db import Database, next_revision
from tunesmith_kit.streams import EVENTS
from tunesmith_metrics.alerts import store
from tunesmith_metrics.alerts.machine import Facts
from tunesmith_metrics.alerts.reading import Heard
from tunesmith_metrics.alerts.samples import Change
from tunesmith_metrics.alerts.tables import HISTORY
from tunesmith_metrics.tables import REVISION

JOB_EVENTS = ("created", "state_changed", "updated", "deleted")
NODE_EVENTS = ("registered", "state_changed")
_TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED")


class History:
    """Hears events of jobs and nodes and keeps them."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def start(self, bus: Bus) -> Consumer:
        """Begins to hear, one event after the other."""
        filters = subjects.any_event("job", *JOB_EVENTS) + subjects.any_event("node", *NODE_EVENTS)
        return await bus.consume(EVENTS, "metrics-alerts", self._hear, filter_subjects=filters)

    async def _hear(self, delivery: Delivery) -> None:
        of_node = subjects.parse_event(delivery.subject).entity == "node"
        kind = node_events_pb2.NodeEvent if of_node else job_events_pb2.JobEvent
        try:
            event = kind.FromString(delivery.payload)
        except DecodeError as error:
            raise InvalidArgument("MESSAGE_MALFORMED", "not an event", field=delivery.subject) from error
        subject = event.node if isinstance(event, node_events_pb2.NodeEvent) else event.job
        names.parse("nodes/*" if of_node else "projects/*/jobs/*", subject, "subject")
        said = event.WhichOneof("event")
        if not event.event_id or said not in (NODE_EVENTS if of_node else JOB_EVENTS):
            return
        row = {
            "event_id": event.event_id,
            "time_us": event.time.ToMicroseconds(),
            "subject": subject,
            "kind": said,
            "payload": delivery.payload,
        }

        def write(session: Session) -> None:
            known = select(HISTORY.c.event_id).where(HISTORY.c.event_id == event.event_id)
            if session.execute(known).one_or_none() is None:
                store.add_history(session, row | {"revision": next_revision(session, REVISION)})

        await self._db.write(write)


def take(heard: Heard, facts: Facts) -> Change | None:
    """Brings facts in line with an event; returns the change of state it tells of, if it does."""
    if facts.is_node:
        return _take_node(node_events_pb2.NodeEvent.FromString(heard.payload), heard, facts)
    event = job_events_pb2.JobEvent.FromString(heard.payload)
    if event.revision < facts.revision:
        return None
    facts.revision, facts.display_name = event.revision, event.display_name
    if heard.kind in ("created", "updated"):
        spec: spec_pb2.JobSpec = getattr(event, heard.kind).spec
        facts.experiment, facts.labels = spec.experiment, dict(spec.labels)
    if heard.kind == "created":
        return Change(heard.time_us, "VALIDATING") if not facts.state else None
    if heard.kind != "state_changed":
        return None
    state = state_pb2.JobState.Name(event.state_changed.to_state).removeprefix("JOB_STATE_")
    return Change(heard.time_us, state, state in _TERMINAL)


def _take_node(event: node_events_pb2.NodeEvent, heard: Heard, facts: Facts) -> Change | None:
    if event.revision < facts.revision:
        return None
    facts.revision = event.revision
    if heard.kind == "registered":
        node = event.registered.node
        facts.display_name, facts.labels = node.node_id, dict(node.labels)
        state = node.state
    else:
        state = event.state_changed.to_state
    name = nodes_pb2.NodeState.Name(state).removeprefix("NODE_STATE_")
    return Change(heard.time_us, name) if name != facts.state else None
