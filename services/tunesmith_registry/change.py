"""What happened in a transaction of the registry: one revision, and its events in the outbox."""

from dataclasses import dataclass
from datetime import datetime

from google.protobuf.message import Message
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import events_pb2
from tunesmith_kit import outbox
from tunesmith_kit.db import next_revision
from tunesmith_kit.ids import new_ulid
from tunesmith_registry import ledger
from tunesmith_registry.tables import OUTBOX, REVISION


@dataclass(frozen=True)
class Caller:
    """Who causes a change, when, and as part of which trace."""

    actor: str
    now: datetime
    traceparent: str = ""


def say(
    session: Session,
    caller: Caller,
    subject: str,
    kind: str,
    event: Message,
    *,
    resource: str,
    epoch: int = 0,
) -> int:
    """Puts an event into the outbox and its receipt into the ledger; returns its revision. `kind` names the
    field of the envelope's oneof."""
    revision = next_revision(session, REVISION)
    envelope = events_pb2.RegistryEvent(
        event_id=new_ulid(),
        revision=revision,
        actor=caller.actor,
        resource=resource,
        traceparent=caller.traceparent,
        epoch=epoch,
    )
    envelope.time.FromDatetime(caller.now)
    getattr(envelope, kind).CopyFrom(event)
    outgoing = outbox.Outgoing(
        envelope.event_id, subject, envelope, resource, revision, caller.now, caller.traceparent
    )
    outbox.add(session, OUTBOX, outgoing)
    ledger.append(session, kind, envelope)
    return revision
