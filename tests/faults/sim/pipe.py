"""What agents and the metrics service see of a bad bus: batches late, in any order, twice, or never."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import TunesmithError, Unavailable
from tunesmith_kit import streams
from tunesmith_kit.bus import Message
from tunesmith_kit.consumer import Delivery

_MOST = 50  # messages in one call of a consumer
BatchHandler = Callable[[Sequence[Delivery]], Awaitable[Mapping[int, TunesmithError]]]


@dataclass
class Durable:
    """What a consumer has yet to take. `stop` ends the process that takes it."""

    waiting: list[Delivery] = field(default_factory=list)
    refused: list[TunesmithError] = field(default_factory=list)
    task: "asyncio.Task[None] | None" = None

    async def stop(self) -> None:
        """Takes no more."""
        if self.task is not None:
            self.task.cancel()
            self.task = None


@dataclass
class Subscription:
    """One who hears core messages."""

    prefix: str
    callback: Callable[[Message], Awaitable[None]]
    all: list["Subscription"]

    async def close(self) -> None:
        """Hears no more."""
        if self in self.all:
            self.all.remove(self)


class Pipe:
    """One stream a consumer. `trouble`: the share of messages, acknowledgements and answers that get lost."""

    def __init__(self, rng: random.Random, loop: asyncio.AbstractEventLoop) -> None:
        self._rng, self._loop = rng, loop
        self.trouble = 0.0
        self.connected = True
        self.durables: dict[str, Durable] = {}
        self._known: set[str] = set()
        self._heard: list[Subscription] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def consume_batches(
        self, stream: str, durable: str, handler: BatchHandler, *, batch: int = 500
    ) -> Durable:
        """Hands what waits to `handler`, some at a time, until all of it was taken."""
        found = self.durables.setdefault(stream, Durable())
        found.task = self._spawn(self._deliver(found, handler))
        return found

    async def publish_soon(
        self,
        subject: str,
        payload: bytes,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        *,
        deadline: float = 60.0,
    ) -> "asyncio.Task[None]":
        """Stores a message, once for an id, as soon as the bus is there; gives up at the deadline."""
        return self._spawn(self._publish(subject, payload, msg_id, self._loop.time() + deadline))

    async def publish_core(self, subject: str, payload: bytes) -> None:
        """Sends a message that nobody stores, and that gets lost in any trouble."""
        if self.connected and self._rng.random() >= self.trouble:
            for one in list(self._heard):
                if subject.startswith(one.prefix):
                    await one.callback(Message(subject, payload, {}))

    async def subscribe(self, subject: str, callback: Callable[[Message], Awaitable[None]]) -> Subscription:
        """Hears core messages below the part of a subject that has no wildcard."""
        one = Subscription(subject.split("*")[0].split(">")[0], callback, self._heard)
        self._heard.append(one)
        return one

    def wipe(self) -> None:
        """The bus loses its disk: what was not taken never will be, and known ids are forgotten."""
        self._known.clear()
        for durable in self.durables.values():
            durable.waiting.clear()

    async def _publish(self, subject: str, payload: bytes, msg_id: str, deadline: float) -> None:
        stream = streams.LOGS if ".log." in subject else streams.METRICS
        while self._loop.time() < deadline:
            await asyncio.sleep(self._rng.uniform(0, 0.05))
            if not self.connected:
                await asyncio.sleep(1)
                continue
            if self._rng.random() < self.trouble / 2:
                continue  # the request was lost
            if msg_id not in self._known:
                self._known.add(msg_id)
                waiting = self.durables.setdefault(stream, Durable()).waiting
                place = self._rng.randint(max(0, len(waiting) - 5), len(waiting))
                reply = f"$JS.ACK.{stream}.sim.1.{len(self._known)}.1.0.{len(waiting)}"
                waiting.insert(place, Delivery(subject, payload, {}, reply))
            if self._rng.random() >= self.trouble / 2:
                return  # else the answer was lost, and it is published again
        raise Unavailable("BUS_UNAVAILABLE", "NATS cannot be reached now: simulated")

    async def _deliver(self, durable: Durable, handler: BatchHandler) -> None:
        while True:
            await asyncio.sleep(self._rng.expovariate(5))
            if not (self.connected and durable.waiting):
                continue
            taken = durable.waiting[: self._rng.randint(1, _MOST)]
            try:
                durable.refused += (await handler(taken)).values()
            except Exception:  # whatever it is: not acknowledged, so it comes again
                await asyncio.sleep(0.5)
                continue
            gone = {id(one) for one in taken if self._rng.random() >= self.trouble}
            durable.waiting[:] = [one for one in durable.waiting if id(one) not in gone]

    def _spawn(self, work: Any) -> "asyncio.Task[Any]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a message that was given up is sent again by its agent
