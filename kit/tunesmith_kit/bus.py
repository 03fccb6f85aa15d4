"""The bus: publish with acknowledgement, consume at least once, core messages, through any outage of NATS.

    bus = await Bus.connect(settings.nats_url, settings.nats_token, "service/jobs")
    ack = await bus.publish(subject, payload, msg_id)           # stored in the stream, once
    await bus.consume("EVENTS", "registry-jobs", handler, filter_subjects=[...])
    await bus.subscribe(subjects.any_heartbeat(), callback)     # core: loss is harmless

The bus carries, the ends own the data: a server that lost its disk is set up again at the next reconnect, and
publishers that kept what was not yet consumed send it again.
"""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import TunesmithError, Unavailable
from tunesmith_kit import streams, subjects
from tunesmith_kit.connection import ApiError, Callback, Connection, Message, Subscription
from tunesmith_kit.consumer import BatchHandler, Consumer, Delivery, Handler
from tunesmith_kit.envelope import MESSAGE_ID, event_headers
from tunesmith_kit.meters import METRICS
from tunesmith_kit.streams import Durable
from tunesmith_kit.window import PubAck, Window

__all__ = [
    "Bus",
    "Consumer",
    "Delivery",
    "Message",
    "PubAck",
    "StoredMessage",
    "Subscription",
    "event_headers",
]

log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_STREAMS_SECONDS = 60.0  # to make all streams, three copies of each, on a cluster that has just begun
_FOR_EVER = 10.0 * 365 * 24 * 3600
_GET_AT_ONCE = 50


def _headers(message: Mapping[str, Any]) -> dict[str, str]:
    """The headers of a message that a stream gave out."""
    found = {}
    for line in base64.b64decode(message.get("hdrs", "")).decode(errors="replace").splitlines()[1:]:
        name, colon, text = line.partition(":")
        if colon:
            found[name.strip()] = text.strip()
    return found


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it lies in a stream; `time` is when the stream took it, as RFC 3339 has it."""

    seq: int
    subject: str
    payload: bytes
    headers: Mapping[str, str]
    time: str


class Bus:
    """A process's connection to the bus. Make it with `Bus.connect`, end it with `close`."""

    def __init__(self, connection: Connection, num_replicas: int, ensure_streams: bool, window: int) -> None:
        self.connection = connection
        self._num_replicas = num_replicas
        self._ensure_streams = ensure_streams
        self._window = Window(connection, window)
        self._consumers: list[Consumer] = []
        self._reconnected: list[Callable[[], Awaitable[None] | None]] = []
        self._ensuring = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        url: str,
        token: str,
        name: str,
        *,
        num_replicas: int = 1,
        ensure_streams: bool = True,
        window: int = 256,
        deadline: float = 15.0,
    ) -> "Bus":
        """Connects and makes the streams of the table.

        Args:
            url: address of the server, several of a cluster with commas between.
            name: who connects, for people who look at the server, for example `service/jobs`.
            num_replicas: copies of each stream; 3 on a cluster of three.
            ensure_streams: False for processes that may not administer JetStream, such as agents.
            window: messages under way at once through `publish_soon`.
            deadline: seconds until a server must have answered; its streams may take a minute.

        Raises:
            Unavailable: no server answers, or JetStream is not ready in time.
            Unauthenticated: the server refuses the token.
        """
        connection = await Connection.open(url, token, name, deadline)
        bus = cls(connection, num_replicas, ensure_streams, window)
        await bus._window.start()
        connection.on_reconnect(bus._on_reconnect)
        try:
            await asyncio.wait_for(bus._repair(), max(deadline, _STREAMS_SECONDS))
        except TimeoutError as error:
            await bus.close()
            raise Unavailable(
                "BUS_UNAVAILABLE",
                f"JetStream at {url} is not ready",
                field="nats_url",
                remedy="start nats-server with -js and enough disk space",
            ) from error
        if ensure_streams:
            bus._keeper = asyncio.create_task(bus._keep_streams())
        return bus

    async def publish(
        self,
        subject: str,
        payload: bytes,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        *,
        deadline: float = 30.0,
    ) -> PubAck:
        """Publishes to a stream and waits until it is stored, once for each `msg_id`.

        Raises:
            Unavailable: not stored within `deadline` seconds, or not known: publish again under the same id.
            Aborted: an expected sequence in `headers` does not hold.
            ResourceExhausted: the payload is larger than the server takes.
        """
        return await self._window.publish(subject, payload, msg_id, headers, deadline)

    async def publish_soon(
        self,
        subject: str,
        payload: bytes,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        *,
        deadline: float = _FOR_EVER,
    ) -> "asyncio.Future[PubAck]":
        """As `publish`, without waiting: returns a future as soon as a slot of the window is free.

        The fast way for many messages. The future fails as `publish` does; cancelling it stops the retries.
        """
        return await self._window.publish_soon(subject, payload, msg_id, headers, deadline)

    async def stream_created(self, stream: str) -> str:
        """Returns when a stream was made, which tells it from one of the same name made anew after a loss.

        Raises:
            Unavailable: the stream is not there now, or cannot be asked.
        """
        try:
            return str((await self.connection.api(f"STREAM.INFO.{stream}"))["created"])
        except ApiError as error:
            raise Unavailable(
                "BUS_UNAVAILABLE", f"the stream cannot be read: {error}", field=stream
            ) from error

    async def msg_id_at(self, stream: str, seq: int) -> str | None:
        """Returns the message id of one stored message; None when it is not there or has none.

        Raises:
            Unavailable: the stream cannot be read now.
        """
        try:
            found = await self.connection.api(f"STREAM.MSG.GET.{stream}", {"seq": seq})
        except ApiError as error:
            if error.code == 404:
                return None
            raise Unavailable(
                "BUS_UNAVAILABLE", f"the stream cannot be read: {error}", field=stream
            ) from error
        return next(
            (text for name, text in _headers(found["message"]).items() if name.lower() == MESSAGE_ID.lower()),
            None,
        )

    async def newest(
        self, stream: str, limit: int, before: int | None = None
    ) -> tuple[list[StoredMessage], int]:
        """Returns messages of a stream, newest first, with numbers below `before` if it is given; and how
        many the stream holds in all. For people to look at: each costs a request.

        Raises:
            Unavailable: the stream cannot be read now.
        """
        try:
            state = (await self.connection.api(f"STREAM.INFO.{stream}"))["state"]
            seq = min(state["last_seq"], before - 1 if before is not None else state["last_seq"])
            found: list[StoredMessage] = []
            while seq >= max(1, state["first_seq"]) and len(found) < limit:
                low = max(1, state["first_seq"], seq - _GET_AT_ONCE + 1)
                some = await asyncio.gather(*(self._stored(stream, at) for at in range(seq, low - 1, -1)))
                found += [message for message in some if message is not None]
                seq = low - 1
        except ApiError as error:
            raise Unavailable(
                "BUS_UNAVAILABLE", f"the stream cannot be read: {error}", field=stream
            ) from error
        return found[:limit], int(state["messages"])

    async def _stored(self, stream: str, seq: int) -> StoredMessage | None:
        try:
            found = (await self.connection.api(f"STREAM.MSG.GET.{stream}", {"seq": seq}))["message"]
        except ApiError as error:
            if error.code == 404:  # too old, or deleted
                return None
            raise
        payload = base64.b64decode(found.get("data", ""))
        return StoredMessage(seq, found["subject"], payload, _headers(found), found["time"])

    async def consume(
        self,
        stream: str,
        durable: str,
        handler: Handler,
        *,
        filter_subjects: Sequence[str] = (),
        concurrency: int = 1,
        prefetch: int = 16,
        ack_wait: float = 10.0,
        max_deliver: int = 10,
    ) -> Consumer:
        """Calls `handler` for each message of a durable consumer and acknowledges once it returned.

        Args:
            concurrency: handlers at work at once; with 1 messages come in order.
            ack_wait: seconds after which messages of a dead process go to another; handlers may take longer.
            max_deliver: deliveries after which a message whose handler raises unforeseen errors is given up.
        """

        async def one(items: Sequence[Delivery]) -> None:
            await handler(items[0])

        entry = self._durable(stream, durable, filter_subjects, ack_wait)
        return await self._consume(entry, one, 1, concurrency, max(prefetch, concurrency), max_deliver)

    async def consume_batches(
        self,
        stream: str,
        durable: str,
        handler: BatchHandler,
        *,
        filter_subjects: Sequence[str] = (),
        batch: int = 500,
        ack_wait: float = 10.0,
        max_deliver: int = 10,
    ) -> Consumer:
        """As `consume`, with all messages at hand, at most `batch`, in one call.

        The handler returns what it could not use, by index; that goes to the dead letters, the rest is
        acknowledged. When it raises `InvalidArgument` for several messages, it is called for each alone.
        """
        entry = self._durable(stream, durable, filter_subjects, ack_wait)
        return await self._consume(entry, handler, batch, 1, 2 * batch, max_deliver)

    def _durable(self, stream: str, name: str, filters: Sequence[str], ack_wait: float) -> Durable:
        fixed = streams.fixed_durable(stream, name)
        return fixed or Durable(stream, name, tuple(filters), ack_wait)

    async def _consume(
        self,
        durable: Durable,
        handler: BatchHandler,
        batch: int,
        concurrency: int,
        capacity: int,
        max_deliver: int,
    ) -> Consumer:
        consumer = Consumer(
            self.connection,
            durable,
            handler,
            batch=batch,
            concurrency=concurrency,
            capacity=capacity,
            max_deliver=max_deliver,
            dead_letter=self._dead_letter,
            repair=self._repair,
        )
        self._consumers.append(consumer)
        await consumer.start()
        return consumer

    async def _dead_letter(self, durable: Durable, item: Delivery, error: Exception) -> None:
        reason = error.reason if isinstance(error, TunesmithError) else type(error).__name__
        headers = {key: text for key, text in item.headers.items() if not key.lower().startswith("nats-")}
        headers |= {
            "dead-reason": reason,
            "dead-error": str(error)[:1000],
            "dead-subject": item.subject,
            "dead-consumer": durable.name,
            "dead-message-id": item.message_id,
            "dead-deliveries": str(item.num_delivered),
        }
        METRICS.dead_letters.labels(stream=durable.stream).inc()
        msg_id = f"{durable.stream}:{durable.name}:{item.stream_seq}:{item.message_id}"
        await self.publish(subjects.dead(durable.stream), item.payload, msg_id, headers)

    async def publish_core(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Sends to whoever listens now; dropped while disconnected. For heartbeats, watermarks and such."""
        await self.connection.send(subject, payload, headers=headers)

    async def subscribe(self, subject: str, callback: Callback, queue: str = "") -> Subscription:
        """Calls back for each core message, one after another; what the callback raises is logged."""
        return await self.connection.subscribe(subject, callback, queue)

    async def request(
        self, subject: str, payload: bytes, *, deadline: float = 5.0, headers: Mapping[str, str] | None = None
    ) -> Message:
        """Sends and waits for one answer.

        Raises:
            Unavailable: nobody listens.
            DeadlineExceeded: no answer within `deadline` seconds.
        """
        return await self.connection.request(subject, payload, deadline, headers)

    @property
    def connected(self) -> bool:
        """Whether the server can be reached now."""
        return self.connection.connected

    def connected_since(self) -> float | None:
        """`time.monotonic()` since when the connection has stood without a break; None while it does not."""
        return self.connection.since

    def on_reconnect(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        """Calls back after each break, once the streams are in order again."""
        self._reconnected.append(callback)

    async def _on_reconnect(self) -> None:
        METRICS.bus_reconnects.inc()
        await self._repair()
        for callback in self._reconnected:
            answer = callback()
            if answer is not None:
                await answer

    async def _repair(self) -> None:
        """Brings the streams in order, for as long as it takes; one caller at a time."""
        if not self._ensure_streams:
            return
        async with self._ensuring:
            while True:
                try:
                    await streams.ensure(self.connection, self._num_replicas)
                except ApiError as error:
                    log.warning("JetStream is not ready", extra={"problem": str(error)})
                    await asyncio.sleep(0.25)
                else:
                    return

    async def _keep_streams(self) -> None:
        """Makes streams again that somebody deleted. Who reads one notices by itself and at once; but nobody
        who may make streams reads the commands, and the nodes that do waited for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            with suppress(ApiError):  # the server is away: the reconnect sees to it
                if await streams.missing(self.connection):
                    await self._repair()

    async def close(self) -> None:
        """Stops the consumers, fails what is still being published with `Unavailable`, and disconnects."""
        if self._keeper is not None:
            self._keeper.cancel()
        for consumer in self._consumers:
            await consumer.stop()
        await self._window.close()
        await self.connection.close()
