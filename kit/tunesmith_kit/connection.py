"""The wire to NATS: one connection that never gives up.

nats-py does the protocol; this module adds what it leaves open (measured on 2.16): it goes to CLOSED for ever
after some server errors (we dial anew and subscribe again), its `flush` is no barrier for a subscription just
made (we flush twice), errors of the server are easy to miss (we log them), and its defaults give up after a
minute (we never do).
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tunesmith.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    TunesmithError,
    Unauthenticated,
    Unavailable,
)

log = logging.getLogger(__name__)

_API = "$JS.API"
_DRAIN_SECONDS = 2.0
_PENDING_BYTES = 16 * 1024 * 1024
_NO_HEADERS: Mapping[str, str] = {}


class _Client(Client):
    """nats-py's client with a quicker way through what a consumer of small messages does most."""

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # nats-py looks at each character of each name: a third of what receiving a message costs.
        found = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, text = line.partition(":")
            if colon and " " not in name:
                found[name] = text.strip()
        return found

    async def answer_all(self, replies: Iterable[str], answer: bytes) -> None:
        """Sends the same short answer to each subject, in one piece."""
        tail = b" %d\r\n%b\r\n" % (len(answer), answer)
        await self._send_command(b"".join([b"PUB " + reply.encode() + tail for reply in replies]))
        await self._flush_pending()


@dataclass(frozen=True, slots=True)
class Message:
    """A message from the bus."""

    subject: str
    payload: bytes
    headers: Mapping[str, str]
    reply: str = ""


class ApiError(Exception):
    """JetStream refused a request; `err_code` as in the server's error table (503: nobody answers)."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} (code {code}, {err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


class RawCallback(Protocol):
    """Takes a nats-py message as it is; inside the kit's bus modules only."""

    def __call__(self, message: Msg, /) -> Awaitable[None]: ...


Callback = Callable[[Message], Awaitable[None]]


@dataclass(eq=False, slots=True)
class Subscription:
    """A core subscription; it outlives reconnects until `close`."""

    subject: str
    queue: str
    callback: RawCallback
    _connection: "Connection"
    _sub: Any = field(default=None, repr=False)
    _client: Any = field(default=None, repr=False)

    async def drain(self) -> None:
        """Ends the subscription after the callback has had what the server sent until then."""
        self._connection.forget(self)
        if self._sub is not None:
            with suppress(nats.errors.Error, TimeoutError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    await self._sub.drain()
                    # The first flush may overtake the end of the subscription (nats-py writes PING first).
                    await self._client.flush()

    async def close(self) -> None:
        """Ends the subscription; messages under way are dropped."""
        self._connection.forget(self)
        if self._sub is not None:
            with suppress(nats.errors.Error):
                await self._sub.unsubscribe()


class Connection:
    """A connection to NATS that is dialled again for ever once it has been open."""

    def __init__(self, url: str, token: str, name: str) -> None:
        self.url = url
        self._token = token
        self._name = name
        self._client = _Client()
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._subscriptions: list[Subscription] = []
        self._reconnected: list[Callable[[], Awaitable[None]]] = []
        self._since: float | None = None
        self._closing = False
        self._refused = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, url: str, token: str, name: str, deadline: float) -> "Connection":
        """Connects within `deadline` seconds.

        Raises:
            Unavailable: no server answers.
            Unauthenticated: the server refuses the token.
        """
        self = cls(url, token, name)
        dial = asyncio.create_task(self._dial())
        refused = asyncio.create_task(self._refused.wait())
        done, _ = await asyncio.wait({dial, refused}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        refused.cancel()
        if dial in done:
            dial.result()
            return self
        dial.cancel()
        await asyncio.wait({dial})
        await self.close()
        raise self._not_connected()

    def _not_connected(self) -> TunesmithError:
        if self._refused.is_set():
            return Unauthenticated(
                "TOKEN_INVALID",
                f"the NATS server at {self.url} refuses our token",
                field="nats_token",
                remedy="set TUNESMITH_NATS_TOKEN to the server's token",
            )
        return Unavailable(
            "BUS_UNAVAILABLE",
            f"no NATS server answers at {self.url}",
            field="nats_url",
            value=self.url,
            remedy="start nats-server or set TUNESMITH_NATS_URL to where it listens",
        )

    async def _dial(self) -> None:
        self._client = _Client()
        await self._client.connect(
            servers=self.url.split(","),
            name=self._name,
            token=self._token or None,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]  # it is used as seconds, annotated as int
            connect_timeout=5,
            ping_interval=5,
            max_outstanding_pings=2,
            pending_size=_PENDING_BYTES,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
        )
        self._since = time.monotonic()
        for subscription in self._subscriptions:
            await self._attach(subscription)

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.AuthorizationError) or "authorization" in str(error).lower():
            self._refused.set()
        if self._closing:
            return
        level = logging.WARNING if isinstance(error, OSError | TimeoutError) else logging.ERROR
        log.log(
            level,
            "NATS connection error",
            extra={"error": f"{type(error).__name__}: {error}", "url": self.url},
        )

    async def _on_disconnected(self) -> None:
        self._since = None
        if not self._closing:
            log.warning("NATS connection lost", extra={"url": self.url})

    async def _on_reconnected(self) -> None:
        self._since = time.monotonic()
        log.info("NATS connection is back", extra={"url": self.url})
        for callback in self._reconnected:
            self.spawn(callback())

    async def _on_closed(self) -> None:
        self._since = None
        if not self._closing:
            log.error("NATS client gave up, dialling anew", extra={"url": self.url})
            self.spawn(self._rebuild())

    async def _rebuild(self) -> None:
        while not self._closing:
            try:
                await self._dial()
            except (OSError, nats.errors.Error, TimeoutError) as error:
                log.warning("NATS cannot be dialled", extra={"error": str(error), "url": self.url})
                await asyncio.sleep(0.5)
            else:
                await self._on_reconnected()
                return

    def spawn(self, work: Awaitable[None]) -> None:
        """Runs work in the background until it ends or the connection is closed; failures are logged."""

        async def guarded() -> None:
            try:
                await work
            except Exception:
                log.exception("background work of the bus failed")

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._since is not None and self._client.is_connected

    @property
    def since(self) -> float | None:
        """Monotonic time since when the connection has stood without a break; None while it does not."""
        return self._since if self.connected else None

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Calls back each time the connection stands again after a break."""
        self._reconnected.append(callback)

    def inbox(self) -> str:
        """A subject of our own for answers."""
        return f"{self._inbox}.{secrets.token_hex(6)}"

    async def send(
        self, subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Sends without waiting for anything. While disconnected the message is dropped.

        Raises `ResourceExhausted` for a payload above the server's limit.
        """
        if not self.connected:
            return
        try:
            await self._client.publish(subject, payload, reply, dict(headers) if headers else None)
        except nats.errors.MaxPayloadError as error:
            raise ResourceExhausted(
                "MESSAGE_TOO_LARGE",
                "the message is larger than the bus takes",
                field=subject,
                value=len(payload),
            ) from error
        except nats.errors.BadSubjectError as error:
            raise InvalidArgument("NAME_INVALID", "not a subject", field="subject", value=subject) from error
        except (
            nats.errors.ConnectionClosedError,
            nats.errors.OutboundBufferLimitError,
            nats.errors.FlushTimeoutError,
        ):
            log.warning("message dropped, NATS connection lost", extra={"subject": subject})

    async def answer_all(self, replies: Sequence[str], answer: bytes) -> None:
        """Sends the same answer to the reply subjects of many messages. While disconnected it is dropped."""
        if self.connected and replies:
            await self._client.answer_all(replies, answer)

    async def subscribe(self, subject: str, callback: Callback, queue: str = "") -> Subscription:
        """Calls back for each message; with `queue` only one member of the queue gets each."""

        async def deliver(msg: Msg) -> None:
            message = Message(msg.subject, msg.data, msg.headers or _NO_HEADERS, msg.reply)
            try:
                await callback(message)
            except Exception:
                log.exception("a bus callback failed", extra={"subject": msg.subject})

        return await self.subscribe_raw(subject, deliver, queue)

    async def subscribe_raw(self, subject: str, callback: RawCallback, queue: str = "") -> Subscription:
        """As `subscribe`, with nats-py's own message and without a net for exceptions."""
        subscription = Subscription(subject, queue, callback, self)
        self._subscriptions.append(subscription)
        await self._attach(subscription)
        # One flush is no barrier: its PING overtakes the buffered SUB (seen on the wire with nats-py 2.16).
        with suppress(nats.errors.Error, TimeoutError):
            await self._client.flush(timeout=5)
            await self._client.flush(timeout=5)
        return subscription

    async def _attach(self, subscription: Subscription) -> None:
        if subscription._client is self._client:
            return
        with suppress(nats.errors.ConnectionClosedError):  # the next connection gets all subscriptions
            subscription._sub = await self._client.subscribe(
                subscription.subject,
                queue=subscription.queue,
                cb=subscription.callback,
                pending_bytes_limit=0,
            )
            subscription._client = self._client

    def forget(self, subscription: Subscription) -> None:
        """Drops a subscription from those that a new connection gets."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def request(
        self, subject: str, payload: bytes, deadline: float = 5.0, headers: Mapping[str, str] | None = None
    ) -> Message:
        """Sends and waits for one answer.

        Raises:
            Unavailable: nobody listens, or there is no connection now.
            DeadlineExceeded: no answer within `deadline` seconds.
        """
        if not self.connected:
            raise Unavailable("BUS_UNAVAILABLE", "NATS cannot be reached now", field=subject)
        try:
            msg = await self._client.request(
                subject, payload, deadline, headers=dict(headers) if headers else None
            )
        except nats.errors.NoRespondersError as error:
            raise Unavailable(
                "SERVICE_UNAVAILABLE", "nobody answers on this subject", field=subject
            ) from error
        except (nats.errors.TimeoutError, TimeoutError) as error:
            raise DeadlineExceeded(
                "DEADLINE_EXCEEDED", f"no answer within {deadline} s", field=subject
            ) from error
        except nats.errors.Error as error:
            raise Unavailable("BUS_UNAVAILABLE", f"NATS cannot be reached: {error}", field=subject) from error
        return Message(msg.subject, msg.data, msg.headers or _NO_HEADERS, msg.reply)

    async def api(
        self, path: str, body: Mapping[str, object] | None = None, deadline: float = 5.0
    ) -> dict[str, Any]:
        """One request of the JetStream API, for example `api("STREAM.INFO.EVENTS")`; raises `ApiError`."""
        payload = json.dumps(body).encode() if body is not None else b""
        try:
            answer = await self.request(f"{_API}.{path}", payload, deadline)
        except (Unavailable, DeadlineExceeded) as error:
            raise ApiError(503, 0, error.message) from error
        result: dict[str, Any] = json.loads(answer.payload)
        if "error" in result:
            refusal = result["error"]
            raise ApiError(refusal.get("code", 0), refusal.get("err_code", 0), refusal.get("description", ""))
        return result

    async def close(self) -> None:
        """Sends what is buffered and ends the connection."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        if self._client.is_connected:
            with suppress(nats.errors.Error, TimeoutError):
                await self._client.flush(timeout=2)
                await self._client.flush(timeout=2)
        with suppress(nats.errors.Error, OSError):
            await self._client.close()
        self._since = None
