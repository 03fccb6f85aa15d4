"""The outbox: an event is a row of the transaction that changes the state, and leaves through the relay.

So a change and its event cannot part, and a bus that lost its disk costs nothing: the relay sees that the
stream is shorter than what it had confirmed and publishes the kept rows again under the same ids.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
    select,
    update,
)
from sqlalchemy.orm import Session

from tunesmith.errors import ResourceExhausted, TunesmithError
from tunesmith_kit.bus import Bus
from tunesmith_kit.clock import utc
from tunesmith_kit.db import Database
from tunesmith_kit.envelope import event_headers
from tunesmith_kit.telemetry import METRICS

log = logging.getLogger(__name__)
_BATCH = 500
_MOST_BYTES = 1_000_000  # the bus takes 1 MiB, headers included
_KEPT_FOR_REPUBLISH = timedelta(hours=24)
_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Outgoing:
    """A message to be sent with the transaction. `event_id` becomes its `Nats-Msg-Id`."""

    event_id: str
    subject: str
    message: Message
    resource: str
    revision: int
    time: datetime
    traceparent: str = ""


def outbox_table(metadata: MetaData) -> Table:
    """Returns the table of events, sent and unsent; it is also the history a client lists."""
    return Table(
        "outbox",
        metadata,
        Column("event_id", String(26), primary_key=True),
        Column("revision", BigInteger, nullable=False),
        Column("resource", String(300), nullable=False),
        Column("subject", String(300), nullable=False),
        Column("type", String(200), nullable=False),
        Column("payload", LargeBinary, nullable=False),
        Column("traceparent", String(60), nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("published_seq", BigInteger, nullable=True),
        # When the stream it went to was made: its numbers mean nothing in a later one.
        Column("published_to", String(40), nullable=True),
        Index("ix_outbox_published_seq", "published_seq", "event_id"),
        Index("ix_outbox_resource", "resource", "event_id"),
    )


def add(session: Session, table: Table, outgoing: Outgoing) -> None:
    """Puts a message into the outbox within the caller's transaction.

    Raises:
        ResourceExhausted: the bus would not take it, and all behind it would wait for ever.
    """
    payload = outgoing.message.SerializeToString()
    if len(payload) > _MOST_BYTES:
        raise ResourceExhausted(
            "MESSAGE_TOO_LARGE",
            f"its event would have {len(payload):,} bytes; {_MOST_BYTES:,} is the most",
            field=outgoing.resource,
            value=len(payload),
            remedy="give less text",
        )
    row = {
        "event_id": outgoing.event_id,
        "revision": outgoing.revision,
        "resource": outgoing.resource,
        "subject": outgoing.subject,
        "type": outgoing.message.DESCRIPTOR.full_name,
        "payload": payload,
        "traceparent": outgoing.traceparent,
        "time": outgoing.time,
    }
    session.execute(insert(table), row)


def timestamp(time: datetime | None) -> Timestamp | None:
    """Returns a stored time as protobuf."""
    if time is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(utc(time))
    return stamp


class OutboxRelay:
    """Publishes the unsent rows of one outbox, in their order, until it is cancelled."""

    def __init__(self, db: Database, bus: Bus, table: Table, source: str) -> None:
        self._db, self._bus, self._table, self._source = db, bus, table, source
        self._stream = ""  # when the stream that is written to was made, as of the last look
        self._wake = asyncio.Event()
        db.on_commit(self._wake.set)
        bus.on_reconnect(self._wake.set)

    async def run(self) -> None:
        """Sends rows as they come; a poll each second finds those of other replicas, and ends an outage."""
        looked: tuple[float | None, float] | None = None
        while True:
            self._wake.clear()
            try:
                connected, now = self._bus.connected_since(), asyncio.get_running_loop().time()
                # A stream that somebody deletes breaks no connection, so time alone is a reason to look too.
                if looked is None or connected != looked[0] or now - looked[1] > _LOOK_SECONDS:
                    await self._send_lost_again()
                    looked = (connected, now)
                while await self._send_batch():
                    pass
            except TunesmithError as error:
                log.warning("events wait", extra={"service": self._source, "error": error.message})
            try:
                async with asyncio.timeout(1.0):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _send_batch(self) -> bool:
        table = self._table
        query = select(table).where(table.c.published_seq.is_(None)).order_by(table.c.event_id).limit(_BATCH)
        rows = await self._db.read(lambda session: session.execute(query).all())
        if not rows:
            METRICS.outbox_age.labels(service=self._source).set(0)
            return False
        age = datetime.now(UTC) - utc(rows[0].time)
        METRICS.outbox_age.labels(service=self._source).set(age.total_seconds())
        sends = [
            self._bus.publish(
                row.subject,
                bytes(row.payload),
                msg_id=row.event_id,
                headers=event_headers(
                    row.event_id, row.type, f"tunesmith/{self._source}", row.time, row.traceparent
                ),
            )
            for row in rows
        ]
        # What was looked up before sending: if the stream is another by now, the rows are sent again.
        stream = self._stream
        acks = await asyncio.gather(*sends)
        sent = {row.event_id: ack.seq for row, ack in zip(rows, acks, strict=True)}

        def mark(session: Session) -> None:
            for event_id, seq in sent.items():
                sent_to = {"published_seq": seq, "published_to": stream}
                session.execute(update(table).where(table.c.event_id == event_id).values(sent_to))

        await self._db.write(mark)
        return len(rows) == _BATCH

    async def _send_lost_again(self) -> None:
        """Marks rows unsent that went to a stream that is gone, or whose newest is gone from the stream: the
        bus lost its disk, or the end of it."""
        table, self._stream = self._table, await self._bus.stream_created("EVENTS")
        since = datetime.now(UTC) - _KEPT_FOR_REPUBLISH
        lost = (table.c.time > since) & table.c.subject.like("%.evt.%") & table.c.published_seq.is_not(None)
        here = table.c.published_to == self._stream
        query = select(table.c.event_id, table.c.published_seq).where(lost, here)
        newest = await self._db.read(
            lambda s: s.execute(query.order_by(table.c.published_seq.desc()).limit(1)).first()
        )
        if newest is None or await self._bus.msg_id_at("EVENTS", newest.published_seq) == newest.event_id:
            lost &= table.c.published_to.is_distinct_from(self._stream)
        found = select(table.c.event_id).where(lost).limit(1)
        if await self._db.read(lambda s: s.execute(found).first()) is None:
            return
        await self._db.write(lambda s: s.execute(update(table).where(lost).values(published_seq=None)))
        log.warning(
            "the bus lost events; publishing those of the last day again", extra={"service": self._source}
        )
