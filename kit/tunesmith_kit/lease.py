"""Leases: who holds a name now, and who has fallen silent.

A lease is a key of the bucket `lease` with a time to live, written only if nobody wrote since (expected
last sequence); its revision grows with every renewal and is the fencing token. nats-py's key-value class
cannot renew with a time to live and stumbles over expired keys, so this writes the messages itself.

Believing is asymmetric. A holder whose renewals fail for the whole time to live must take the lease for lost.
A watcher calls a key expired only when it could have heard a renewal all that time: an outage of NATS, a
stalled process or a fresh start begin all clocks anew, so an outage of ours costs no healthy node its work.
"""

import asyncio
import base64
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from tunesmith.errors import Aborted, FailedPrecondition, TunesmithError, Unavailable
from tunesmith_kit.bus import Bus, Message
from tunesmith_kit.connection import ApiError
from tunesmith_kit.streams import LEASE_BUCKET
from tunesmith_kit.subjects import token

log = logging.getLogger(__name__)

_STREAM = f"KV_{LEASE_BUCKET}"
_PREFIX = f"$KV.{LEASE_BUCKET}."
_PROBE_SECONDS = 0.5
_BLIND_SECONDS = 3.0

Monotonic = Callable[[], float]
Changed = Callable[[bool], Awaitable[None] | None]


def lease_key(kind: str, name: str) -> str:
    """Key of a lease, for example `node.gpu-1` or `leader.jobs-outbox`."""
    return f"{token(kind, 'lease')}.{token(name, 'lease')}"


@dataclass(frozen=True, slots=True)
class _Entry:
    revision: int
    holder: str


class Lease:
    """A name held by us as long as we renew it; taken back by itself after a loss, when it is free.

    Args:
        key: see `lease_key`.
        holder: who we are. The same holder may take over its own lease at once, as after a restart.
        ttl: seconds it lives without renewal; renewed every third of it.
        changed: called with True when we got the lease and with False when we lost it.
    """

    def __init__(
        self, bus: Bus, key: str, holder: str, ttl: float = 10.0, changed: Changed | None = None
    ) -> None:
        self.key = key
        self.holder = holder
        self.ttl = ttl
        self._bus = bus
        self._changed = changed
        self._nonce = secrets.token_hex(6)
        self._count = 0
        self._revision = 0
        self._until = float("-inf")
        self._told = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def acquire(
        cls, bus: Bus, key: str, holder: str, ttl: float = 10.0, changed: Changed | None = None
    ) -> "Lease":
        """Takes the lease now and keeps it.

        Raises:
            FailedPrecondition: somebody else holds it.
            Unavailable: the bus cannot be reached.
        """
        lease = cls(bus, key, holder, ttl, changed)
        await lease._try()
        lease._task = asyncio.create_task(lease._keep(ttl / 3))
        return lease

    def start(self) -> None:
        """Begins to contend for the lease, and to renew it once it is ours."""
        self._task = asyncio.create_task(self._keep(0))

    @property
    def held(self) -> bool:
        """Whether it is ours for certain now."""
        return time.monotonic() < self._until

    @property
    def revision(self) -> int:
        """Fencing token: grows with every renewal and every new holder. 0 before the first."""
        return self._revision

    def stop(self) -> None:
        """Renews it no more: it lives on for its time, so that the same holder may come back to it."""
        if self._task is not None:
            self._task.cancel()

    async def release(self) -> None:
        """Gives it up, so that others need not wait for its end."""
        self.stop()
        if self.held:
            headers = {
                "KV-Operation": "DEL",
                "Nats-TTL": "60s",
                "Nats-Expected-Last-Subject-Sequence": str(self._revision),
            }
            with suppress(TunesmithError):  # it ends by itself soon
                await self._bus.publish(_PREFIX + self.key, b"", self._id(), headers, deadline=2.0)
        self._until = float("-inf")
        await self._tell()

    async def _keep(self, first_pause: float) -> None:
        await asyncio.sleep(first_pause)
        while True:
            try:
                await self._try()
            except TunesmithError as error:  # whatever it is: nobody else would begin to renew it again
                if self._told:
                    log.warning("lease is not renewed", extra={"key": self.key, "problem": str(error)})
            await self._tell()
            await asyncio.sleep(self.ttl / 3)

    async def _try(self) -> None:
        began = time.monotonic()
        if not self.held:
            await self._look()
        try:
            await self._write(began)
        except Aborted:
            await self._look()  # a renewal of ours may have been stored without our knowing
            await self._write(began)

    async def _write(self, began: float) -> None:
        body = json.dumps({"holder": self.holder, "nonce": self._nonce}).encode()
        headers = {
            "Nats-TTL": f"{max(1, round(self.ttl))}s",
            "Nats-Expected-Last-Subject-Sequence": str(self._revision),
        }
        limit = self.ttl / 3
        ack = await self._bus.publish(_PREFIX + self.key, body, self._id(), headers, deadline=limit)
        self._revision = ack.seq
        self._until = began + self.ttl
        await self._tell()

    async def _look(self) -> None:
        entry = await read(self._bus, self.key)
        if entry.holder not in ("", self.holder):
            self._until = float("-inf")
            raise FailedPrecondition(
                "LEASE_HELD",
                f"{self.key} is held by {entry.holder}",
                field=self.key,
                value=entry.holder,
                remedy="stop the other holder, or wait until its lease ends",
            )
        self._revision = entry.revision

    def _id(self) -> str:
        self._count += 1
        return f"lease:{self.key}:{self._nonce}:{self._count}"

    async def _tell(self) -> None:
        if self.held == self._told:
            return
        self._told = self.held
        log.info("lease is ours" if self._told else "lease is lost", extra={"key": self.key})
        if self._changed is not None:
            answer = self._changed(self._told)
            if answer is not None:
                await answer


async def read(bus: Bus, key: str) -> _Entry:
    """Returns revision and holder of a lease; the holder is empty when it is free."""
    try:
        found = await bus.connection.api(
            f"STREAM.MSG.GET.{_STREAM}", {"last_by_subj": _PREFIX + key}, deadline=1.0
        )
    except ApiError as error:
        if error.code == 404:
            return _Entry(0, "")
        raise Unavailable("BUS_UNAVAILABLE", f"the lease cannot be read: {error}", field=key) from error
    message = found["message"]
    data = base64.b64decode(message.get("data", ""))
    # Empty: a release, or the server's marker that it ran out.
    return _Entry(message["seq"], json.loads(data)["holder"] if data else "")


class LeaseWatcher:
    """Hears every renewal and tells which leases have run out, as far as that can be known."""

    def __init__(self, bus: Bus, monotonic: Monotonic = time.monotonic) -> None:
        self._bus = bus
        self._monotonic = monotonic
        self._last_seen: dict[str, float] = {}
        self._released: set[str] = set()
        self._baseline: float | None = None
        self._last_echo: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to listen."""
        inbox = self._bus.connection.inbox()
        await self._bus.subscribe(f"{_PREFIX}>", self._on_renewal)
        await self._bus.subscribe(inbox, self._on_echo)
        self._task = asyncio.create_task(self._probe(inbox))

    async def stop(self) -> None:
        """Ends the watch."""
        if self._task is not None:
            self._task.cancel()

    def restart_clocks(self) -> None:
        """Begins all clocks anew, as after an outage of the database."""
        self._baseline = self._monotonic()

    def last_seen(self, key: str) -> float | None:
        """Monotonic time of the last renewal heard; None when none was."""
        return self._last_seen.get(key)

    def expired(self, key: str, ttl: float) -> bool:
        """Whether it was released, or not renewed for `ttl` seconds through all of which we listened."""
        connected = self._bus.connected_since()
        if connected is None or self._baseline is None or self._last_echo is None:
            return False
        if key in self._released:
            return True
        since = max(self._last_seen.get(key, 0.0), self._baseline, connected)
        return self._last_echo - since > ttl  # what came after the last echo is not known

    async def _on_renewal(self, message: Message) -> None:
        key = message.subject.removeprefix(_PREFIX)
        if message.payload:
            self._last_seen[key] = self._monotonic()
            self._released.discard(key)
        elif message.headers.get("KV-Operation") == "DEL":
            self._released.add(key)

    async def _probe(self, inbox: str) -> None:
        """Sends to ourselves: only while that comes back do we know that silence is silence."""
        while True:
            await self._bus.publish_core(inbox, b"")
            await asyncio.sleep(_PROBE_SECONDS)

    async def _on_echo(self, message: Message) -> None:
        now = self._monotonic()
        if self._last_echo is None or now - self._last_echo > _BLIND_SECONDS:
            self._baseline = now
        self._last_echo = now
