"""A bus in memory with the face of the kit's, as bad as one may be: it delays, reorders, doubles, loses its
disk, and fails before or after it stored what it was given."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import Unavailable
from tunesmith_kit.bus import Message

Handler = Callable[[str, bytes], Awaitable[None]]


@dataclass(frozen=True)
class Ack:
    """The answer to a publish."""

    seq: int
    duplicate: bool = False


@dataclass
class Consumer:
    """A durable: what it heard stays heard over the death of its process; `alive` says if one listens."""

    wants: Callable[[str], bool]
    handler: Handler | None = None


class SimBus:
    """One stream for all. `trouble`: the share of publishes that fail, and of deliveries that come twice."""

    def __init__(self, rng: random.Random, loop: asyncio.AbstractEventLoop) -> None:
        self._rng, self._loop = rng, loop
        self.trouble = 0.0
        self.consumers: dict[str, Consumer] = {}
        self.published: set[str] = set()  # every id that was ever stored
        self._stored: list[tuple[str, str, bytes]] = []
        self._known: set[str] = set()
        self._generation = 0
        self._since: float | None = loop.time()
        self._reconnected: list[Callable[[], Any]] = []
        self._core: list[tuple[str, Callable[[Message], Awaitable[None]]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.connection = self

    # The face of the kit's bus.

    async def publish(
        self,
        subject: str,
        payload: bytes,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        deadline: float = 5.0,
    ) -> Ack:
        """Stores a message, once for an id; may fail before that, and after it."""
        await asyncio.sleep(self._rng.uniform(0, 0.02))
        self._check()
        fails = self._rng.random() < self.trouble
        if fails and self._rng.random() < 0.5:
            raise _gone()
        if msg_id not in self._known:
            self._known.add(msg_id)
            self.published.add(msg_id)
            self._stored.append((msg_id, subject, payload))
            for consumer in self.consumers.values():
                if consumer.wants(subject):
                    self._spawn(self._deliver(consumer, subject, payload, self._generation))
        if fails:
            raise _gone()
        return Ack(1 + next(i for i, (known, _, _) in enumerate(self._stored) if known == msg_id))

    async def stream_created(self, stream: str) -> str:
        """Tells the streams from those made anew after a loss."""
        self._check()
        return str(self._generation)

    async def msg_id_at(self, stream: str, seq: int) -> str | None:
        """Id of a stored message."""
        self._check()
        return self._stored[seq - 1][0] if 0 < seq <= len(self._stored) else None

    async def subscribe(self, subject: str, callback: Callable[[Message], Awaitable[None]]) -> None:
        """Hears core messages."""
        self._core.append((subject.removesuffix(">"), callback))

    async def publish_core(self, subject: str, payload: bytes) -> None:
        """Sends a message that nobody stores."""
        if self._since is not None:
            for prefix, callback in list(self._core):
                if subject.startswith(prefix):
                    await callback(Message(subject, payload, {}))

    def inbox(self) -> str:
        """A subject of the caller's own."""
        return f"_INBOX.{self._rng.getrandbits(64):x}"

    def connected_since(self) -> float | None:
        """Since when the bus is there."""
        return self._since

    def on_reconnect(self, callback: Callable[[], Any]) -> None:
        """Calls back after each outage."""
        self._reconnected.append(callback)

    # What happens to it.

    def cut(self) -> None:
        """An outage begins."""
        self._since = None

    def heal(self) -> None:
        """It ends."""
        if self._since is None:
            self._since = self._loop.time()
            for callback in list(self._reconnected):
                callback()

    def wipe(self) -> None:
        """The bus loses its disk: what was not delivered never will be, and numbers start anew."""
        self._generation += 1
        self._stored.clear()
        self._known.clear()
        self.cut()
        self.heal()

    def forget_listeners(self) -> None:
        """The process that listened has died."""
        self._reconnected.clear()
        self._core.clear()

    def known(self) -> set[str]:
        """Ids that are stored now."""
        return self._known

    async def _deliver(self, consumer: Consumer, subject: str, payload: bytes, generation: int) -> None:
        """At least once, late, in any order, until it is taken or the disk is lost."""
        while generation == self._generation:
            await asyncio.sleep(self._rng.expovariate(5))
            if self._since is None or consumer.handler is None or generation != self._generation:
                continue
            try:
                await consumer.handler(subject, payload)
            except Exception:  # whatever it is: not acknowledged, so it comes again
                await asyncio.sleep(0.5)
                continue
            if self._rng.random() < self.trouble:
                continue  # the answer was lost
            return

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check(self) -> None:
        if self._since is None:
            raise _gone()


def _gone() -> Unavailable:
    return Unavailable("BUS_UNAVAILABLE", "NATS cannot be reached now: simulated")
