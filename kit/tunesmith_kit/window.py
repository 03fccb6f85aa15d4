"""The window publisher: many messages under way at once, none ever forgotten.

Each message waits for JetStream's acknowledgement. Without one in time, or after a reconnect, it is published
again under the same message id, and the stream keeps one copy. nats-py's own `publish_async` has no timeout:
after a kill of the server 45 of 1712 futures never resolved; so this has its own clock.
"""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from tunesmith.errors import Aborted, Internal, ResourceExhausted, TunesmithError, Unavailable
from tunesmith_kit.connection import Connection, Subscription
from tunesmith_kit.envelope import MESSAGE_ID

log = logging.getLogger(__name__)

_TICK = 0.1
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.0
_WARN_SECONDS = 10.0  # one line a problem, not one a message
_WRONG_LAST_SEQUENCE = (10071, 10070, 10164)
_TOO_LARGE = (10054, 10097)
# Codes below 500 that are no fault of the message: full stream, no quorum yet, too many requests.
_TRANSIENT = (10077, 10047, 10023, 10008, 10026, 10167)


@dataclass(frozen=True, slots=True)
class PubAck:
    """JetStream has the message: where, and whether it had it before."""

    stream: str
    seq: int
    duplicate: bool


@dataclass(eq=False, slots=True)
class _Entry:
    token: str
    subject: str
    payload: bytes
    headers: dict[str, str]
    future: "asyncio.Future[PubAck]"
    expires: float
    due: float = 0.0
    pause: float = _FIRST_PAUSE
    last_error: str = ""


class Window:
    """Publishes with acknowledgement, at most `size` messages under way through `publish_soon`."""

    def __init__(self, connection: Connection, size: int = 256, timeout: float = 3.0) -> None:
        self._connection = connection
        self._timeout = timeout
        self._slots = asyncio.Semaphore(size)
        self._entries: dict[str, _Entry] = {}
        self._warned: dict[str, float] = {}
        self._counter = 0
        self._inbox = connection.inbox()
        self._busy = asyncio.Event()
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to listen for acknowledgements."""
        self._subscription = await self._connection.subscribe_raw(f"{self._inbox}.*", self._on_ack)
        self._sweeper = asyncio.create_task(self._sweep())
        self._connection.on_reconnect(self._resend_all)

    async def close(self) -> None:
        """Fails what is still under way with `Unavailable`."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for entry in list(self._entries.values()):
            self._fail(entry, Unavailable("SHUTTING_DOWN", "the bus connection is being closed"))
        if self._subscription is not None:
            await self._subscription.close()

    async def publish(
        self, subject: str, payload: bytes, msg_id: str, headers: Mapping[str, str] | None, deadline: float
    ) -> PubAck:
        """Publishes and waits for the acknowledgement, at most `deadline` seconds."""
        return await (await self._begin(subject, payload, msg_id, headers, deadline))

    async def publish_soon(
        self, subject: str, payload: bytes, msg_id: str, headers: Mapping[str, str] | None, deadline: float
    ) -> "asyncio.Future[PubAck]":
        """Publishes as soon as a slot of the window is free; the future resolves with the acknowledgement."""
        await self._slots.acquire()
        try:
            future = await self._begin(subject, payload, msg_id, headers, deadline)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(lambda _: self._slots.release())
        return future

    async def _begin(
        self, subject: str, payload: bytes, msg_id: str, headers: Mapping[str, str] | None, deadline: float
    ) -> "asyncio.Future[PubAck]":
        self._counter += 1
        token = str(self._counter)
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        all_headers = {**(headers or {}), MESSAGE_ID: msg_id}
        entry = _Entry(token, subject, payload, all_headers, future, time.monotonic() + deadline)
        self._entries[token] = entry
        future.add_done_callback(lambda _: self._entries.pop(token, None))
        self._busy.set()
        try:
            await self._send(entry)
        except BaseException:
            self._entries.pop(token, None)
            raise
        return future

    async def _send(self, entry: _Entry) -> None:
        entry.due = time.monotonic() + self._timeout
        await self._connection.send(
            entry.subject, entry.payload, f"{self._inbox}.{entry.token}", entry.headers
        )

    async def _on_ack(self, msg: Msg) -> None:
        entry = self._entries.get(msg.subject.rpartition(".")[2])
        if entry is None or entry.future.done():
            return
        if not msg.data:  # 503: no stream takes the subject at present
            self._retry(entry, "no stream takes this subject")
            return
        answer: dict[str, Any] = json.loads(msg.data)
        refusal = answer.get("error")
        if refusal is None:
            entry.future.set_result(PubAck(answer["stream"], answer["seq"], answer.get("duplicate", False)))
        else:
            self._refused(entry, refusal)

    def _refused(self, entry: _Entry, refusal: Mapping[str, Any]) -> None:
        code, err_code = refusal.get("code", 0), refusal.get("err_code", 0)
        text = refusal.get("description", "")
        problem = f"JetStream refuses the message: {text}"
        if err_code in _WRONG_LAST_SEQUENCE:
            self._fail(
                entry,
                Aborted("REVISION_CONFLICT", problem, field=entry.subject),
            )
        elif err_code in _TOO_LARGE:
            size = len(entry.payload)
            self._fail(entry, ResourceExhausted("MESSAGE_TOO_LARGE", text, field=entry.subject, value=size))
        elif code in (503, 429, 500) or err_code in _TRANSIENT:
            self._retry(entry, text)
        else:
            self._fail(entry, Internal("INTERNAL", problem, field=entry.subject))

    def _retry(self, entry: _Entry, problem: str) -> None:
        now = time.monotonic()
        if now - self._warned.get(problem, float("-inf")) > _WARN_SECONDS:
            self._warned[problem] = now
            log.warning("publish is retried", extra={"subject": entry.subject, "problem": problem})
        entry.last_error = problem
        entry.due = now + entry.pause
        entry.pause = min(entry.pause * 2, _LONGEST_PAUSE)

    def _fail(self, entry: _Entry, error: TunesmithError) -> None:
        if not entry.future.done():
            entry.future.set_exception(error)

    async def _resend_all(self) -> None:
        for entry in self._entries.values():
            entry.due = 0.0

    async def _sweep(self) -> None:
        while True:
            await self._busy.wait()
            await asyncio.sleep(_TICK)
            if not self._entries:
                self._busy.clear()
                continue
            now = time.monotonic()
            for entry in list(self._entries.values()):
                if now >= entry.expires:
                    self._expire(entry)
                elif now >= entry.due and self._connection.connected:
                    await self._send_again(entry)

    async def _send_again(self, entry: _Entry) -> None:
        """Sends once more. What is wrong with one message, seen only now, must not end the clock of all."""
        try:
            await self._send(entry)
        except TunesmithError as error:
            self._fail(entry, error)
        except nats.errors.Error as error:
            self._retry(entry, str(error))

    def _expire(self, entry: _Entry) -> None:
        reason = entry.last_error or "no acknowledgement in time"
        self._fail(
            entry,
            Unavailable(
                "BUS_UNAVAILABLE",
                f"JetStream did not take the message: {reason}",
                field=entry.subject,
                remedy="check that nats-server runs with JetStream and has disk space",
            ),
        )
