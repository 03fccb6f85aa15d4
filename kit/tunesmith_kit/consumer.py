"""The pull loop of a durable consumer: at least once, for ever, through restarts and wiped disks.

nats-py's `fetch` hangs until its timeout across a restart of the server; so this keeps its own inbox, asks
for more at half, notices missed heartbeats, and makes the consumer again when it is gone. A message is
acknowledged after its handler returned; so the handler must be idempotent.

What a handler raises decides: `InvalidArgument` means the message itself is bad: to the dead letters at once.
`Unavailable` and its like mean the world is bad: tried again for ever. Anything else is tried again, and
after `max_deliver` deliveries the message goes to the dead letters, so that it never blocks the others.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import nats.errors
from nats.aio.msg import Msg

from tunesmith.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    TunesmithError,
    Unavailable,
)
from tunesmith_kit.connection import ApiError, Connection, Message, Subscription
from tunesmith_kit.envelope import MESSAGE_ID
from tunesmith_kit.streams import Durable, ensure_durable

log = logging.getLogger(__name__)

_HEARTBEAT = 2.0
_EXPIRES = 30.0
_MAX_PULL_BYTES = 16 * 1024 * 1024
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_TRANSIENT = (Unavailable, Aborted, DeadlineExceeded, ResourceExhausted)


@dataclass(frozen=True, slots=True)
class Delivery(Message):
    """A message of a stream, delivered to a consumer."""

    @property
    def message_id(self) -> str:
        """Id the publisher gave it; empty when it gave none."""
        return self.headers.get(MESSAGE_ID, "")

    @property
    def stream_seq(self) -> int:
        """Its number in the stream."""
        return int(self._position()[1])

    @property
    def num_delivered(self) -> int:
        """How often it was delivered, this time included."""
        return int(self._position()[0])

    @property
    def num_pending(self) -> int:
        """Messages of the stream that wait behind it for this consumer."""
        return int(self._position()[4])

    @property
    def time_ns(self) -> int:
        """When the stream took it, Unix time in nanoseconds."""
        return int(self._position()[3])

    def _position(self) -> list[str]:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<time>.<pending>; newer servers may add a
        # domain and an account hash in front and a token behind.
        parts = self.reply.split(".")
        return parts[4:9] if len(parts) == 9 else parts[6:11]


# What a batch handler could not use, by index; the rest was stored. None: all was.
Rejected = Mapping[int, TunesmithError] | None
BatchHandler = Callable[[Sequence[Delivery]], Awaitable[Rejected]]
Handler = Callable[[Delivery], Awaitable[None]]
DeadLetter = Callable[[Durable, Delivery, TunesmithError | Exception], Awaitable[None]]
Repair = Callable[[], Awaitable[None]]


class Consumer:
    """One process's part in a durable consumer. Made by `Bus.consume` and `Bus.consume_batches`."""

    def __init__(
        self,
        connection: Connection,
        durable: Durable,
        handler: BatchHandler,
        *,
        batch: int,
        concurrency: int,
        capacity: int,
        max_deliver: int,
        dead_letter: DeadLetter,
        repair: Repair,
    ) -> None:
        self.durable = durable
        self.num_pending = 0
        self._connection = connection
        self._handler = handler
        self._batch = batch
        self._capacity = capacity
        self._max_deliver = max_deliver
        self._dead_letter = dead_letter
        self._repair = repair
        self._inbox = connection.inbox()
        self._buffer: deque[Delivery] = deque()
        self._in_hand: dict[str, float] = {}
        self._asked = 0
        self._heard = 0.0
        self._broken = True
        self._stopping = False
        self._arrived = asyncio.Event()
        self._free = asyncio.Semaphore(concurrency)
        self._work: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begins to pull. Problems are logged and tried again until `stop`."""
        self._subscription = await self._connection.subscribe_raw(self._inbox, self._on_message)
        self._connection.on_reconnect(self._on_reconnect)
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._keep_alive())]

    async def stop(self, grace: float = 10.0) -> None:
        """Lets handlers end for at most `grace` seconds; the rest goes back for others to take at once."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        if self._subscription is not None:
            await (
                self._subscription.close()
            )  # before the buffer is given back, so that nothing more enters it
        if self._work:
            await asyncio.wait(self._work, timeout=grace)
        cut_short = set(self._work)
        for task in cut_short:
            task.cancel()
        if cut_short:
            await asyncio.wait(cut_short, timeout=1)  # each gives its message back
        for delivery in self._buffer:
            await self._answer(delivery, b"-NAK")
        self._buffer.clear()

    async def _on_reconnect(self) -> None:
        self._broken = True
        self._arrived.set()

    async def _on_message(self, msg: Msg) -> None:
        self._heard = time.monotonic()
        if not msg.reply.startswith("$JS.ACK"):
            self._on_status(msg.headers or {})
            return
        self._asked = max(0, self._asked - 1)
        delivery = Delivery(msg.subject, msg.data, msg.headers or {}, msg.reply)
        if self._stopping:
            self._buffer.append(delivery)  # given back once the server sends us nothing more
            return
        self._in_hand[msg.reply] = self._heard
        self._buffer.append(delivery)
        self._arrived.set()
        await self._ask()

    def _on_status(self, headers: Mapping[str, str]) -> None:
        status = headers.get("Status", "")
        if status == "100":  # idle heartbeat
            return
        if status in ("404", "408") or (status == "409" and "MaxBytes" in headers.get("Description", "")):
            self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", self._asked)))
        else:  # no such consumer, consumer deleted, leader changed, server going down
            self._broken = True
        self._arrived.set()

    async def _ask(self) -> None:
        """Asks for more once half of what may lie here is used up."""
        room = self._capacity - len(self._buffer) - self._asked
        if self._broken or self._stopping or room < max(1, self._capacity // 2):
            return
        self._asked += room
        body = {
            "batch": room,
            "expires": int(_EXPIRES * 1e9),
            "idle_heartbeat": int(_HEARTBEAT * 1e9),
            "max_bytes": _MAX_PULL_BYTES,
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.durable.stream}.{self.durable.name}"
        await self._connection.send(subject, json.dumps(body).encode(), self._inbox)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                if self._broken:
                    await self._mend()
                await self._ask()
                failures = 0
                await self._wait()
                await self._dispatch()
            except (ApiError, TunesmithError, nats.errors.Error) as error:
                pause = _PAUSES[min(failures, 4)]
                failures += 1
                log.warning("consumer is not ready", extra={**self._names(), "problem": str(error)})
                await asyncio.sleep(pause)

    async def _mend(self) -> None:
        try:
            await ensure_durable(self._connection, self.durable)
        except ApiError as error:
            if error.code == 404:  # the stream itself is gone: a wiped server
                await self._repair()
            raise
        self._asked = 0
        self._heard = time.monotonic()
        self._broken = False

    async def _wait(self) -> None:
        if not self._buffer:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT):
                    await self._arrived.wait()
        if self._connection.connected and time.monotonic() - self._heard > 2 * _HEARTBEAT + 1:
            log.warning("consumer missed heartbeats", extra=self._names())
            self._broken = True

    async def _dispatch(self) -> None:
        while self._buffer and not self._broken:
            await self._free.acquire()
            items = [self._buffer.popleft() for _ in range(min(self._batch, len(self._buffer)))]
            if not items:
                self._free.release()
                return
            task = asyncio.create_task(self._process(items))
            self._work.add(task)
            task.add_done_callback(self._done)
            await self._ask()

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._work.discard(task)
        self._free.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("consumer failed to answer", extra=self._names(), exc_info=task.exception())

    async def _process(self, items: Sequence[Delivery]) -> None:
        try:
            self.num_pending = items[-1].num_pending
            await self._handle(items)
        finally:
            for item in items:
                self._in_hand.pop(item.reply, None)

    async def _handle(self, items: Sequence[Delivery]) -> None:
        try:
            rejected = await self._handler(items)
        except asyncio.CancelledError:
            for item in items:
                await self._answer(item, b"-NAK")
            raise
        except Exception as error:
            if isinstance(error, InvalidArgument) and len(items) > 1:
                for item in items:  # find the bad one; the others are good
                    await self._handle([item])
                return
            for item in items:
                await self._failed(item, error)
        else:
            for index, problem in (rejected or {}).items():
                await self._failed(items[index], problem)
            stored = [item.reply for index, item in enumerate(items) if not rejected or index not in rejected]
            # An answer lost with the connection only means one more delivery.
            await self._connection.answer_all(stored, b"+ACK")

    async def _failed(self, item: Delivery, error: Exception) -> None:
        hopeless = isinstance(error, InvalidArgument)
        exhausted = not isinstance(error, _TRANSIENT) and item.num_delivered >= self._max_deliver
        fields = {
            **self._names(),
            "subject": item.subject,
            "message_id": item.message_id,
            "error": str(error),
        }
        if hopeless or exhausted:
            log.error("message goes to the dead letters", extra=fields, exc_info=None if hopeless else error)
            await self._bury(item, error)
            return
        transient = isinstance(error, _TRANSIENT)
        log.warning("message is tried again", extra=fields, exc_info=None if transient else error)
        await self._nak(item)

    async def _bury(self, item: Delivery, error: Exception) -> None:
        try:
            await self._dead_letter(self.durable, item, error)
        except TunesmithError:
            log.exception("dead letter was not stored", extra=self._names())
            await self._nak(item)
        else:
            await self._answer(item, b"+TERM")

    async def _nak(self, item: Delivery) -> None:
        pause = _PAUSES[min(item.num_delivered, len(_PAUSES)) - 1]
        await self._answer(item, b"-NAK " + json.dumps({"delay": int(pause * 1e9)}).encode())

    async def _answer(self, item: Delivery, answer: bytes) -> None:
        # An answer lost with the connection only means one more delivery.
        await self._connection.send(item.reply, answer)

    async def _keep_alive(self) -> None:
        """Tells the server that messages lying here are not forgotten, however long a handler takes."""
        period = self.durable.ack_wait / 3
        while True:
            await asyncio.sleep(period)
            old = time.monotonic() - period
            for reply, since in list(self._in_hand.items()):
                if since <= old:
                    await self._connection.send(reply, b"+WPI")

    def _names(self) -> dict[str, str]:
        return {"stream": self.durable.stream, "consumer": self.durable.name}
