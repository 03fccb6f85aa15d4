"""Which nodes could answer, as they say every second, and which of them should."""

import asyncio
import time
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from tunesmith.api.nodes.v1 import chat_pb2 as wire
from tunesmith.errors import ResourceExhausted, TunesmithError, Unavailable
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, Message, Subscription

# Three statuses missed and some time for a busy machine.
_SILENT_SECONDS = 5.0
# How long a registry that has just started waits for the first node to say something.
_FIRST_SECONDS = 1.5


@dataclass(slots=True)
class _Known:
    status: wire.ChatHostStatus
    heard: float
    given: int = 0  # answers it was given since


class Hosts:
    """The nodes that answer, by what they last said."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._known: dict[str, _Known] = {}
        self._news = asyncio.Event()
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begins to hear, and asks all nodes to say something."""
        self._subscription = await self._bus.subscribe(subjects.any_chat_status(), self._hear)
        await self._bus.publish_core(subjects.chat_call(), b"")

    async def stop(self) -> None:
        """Stops hearing."""
        if self._subscription is not None:
            await self._subscription.close()

    async def _hear(self, message: Message) -> None:
        try:
            status = wire.ChatHostStatus.FromString(message.payload)
        except DecodeError:
            return
        self._known[status.node] = _Known(status, time.monotonic())
        self._news.set()

    async def choose(self, digests: list[str], wanted: str = "") -> str:
        """The node for an answer of the model that has one of `digests`: `wanted`, else one that has it
        loaded, else the least busy.

        Raises:
            Unavailable: no node answers, or not the one wanted.
            ResourceExhausted: all have as many answers waiting as they take.
        """
        await self._hear_first(wanted)
        online = self._online()
        if wanted:
            online = {name: known for name, known in online.items() if name == wanted}
        if not online:
            raise _nobody(wanted, sorted(self._online()))
        open_ = [known for known in online.values() if not known.status.closed]
        if not open_:
            raise _closed(wanted)
        best = min(open_, key=lambda known: _cost(known, digests))
        best.given += 1
        return best.status.node

    def lost(self, node: str) -> None:
        """Takes note that a node does not answer; it is asked again once it says something."""
        self._known.pop(node, None)

    async def _hear_first(self, wanted: str) -> None:
        deadline = time.monotonic() + _FIRST_SECONDS
        while not (wanted in self._online() if wanted else self._online()):
            self._news.clear()
            await self._bus.publish_core(subjects.chat_call(), b"")
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._news.wait()
            except TimeoutError:
                return

    def _online(self) -> dict[str, _Known]:
        since = time.monotonic() - _SILENT_SECONDS
        return {name: known for name, known in self._known.items() if known.heard >= since}


def _cost(known: _Known, digests: list[str]) -> tuple[int, int, str]:
    status = known.status
    load = status.num_running + status.num_waiting + known.given
    # A model that must be loaded first costs seconds, as some answers before ours would.
    has = bool(set(digests) & set(status.loaded_digests))
    return load + (0 if has else 4), load, status.node


def _nobody(wanted: str, online: list[str]) -> TunesmithError:
    if wanted:
        hint = f"nodes that answer: {', '.join(online)}" if online else "`tunesmith nodes list` shows why"
        return Unavailable(
            "CHAT_NO_NODE",
            f"the node {wanted} is not online, or does not answer conversations",
            field="node",
            value=wanted,
            remedy=hint,
        )
    return Unavailable(
        "CHAT_NO_NODE",
        "no node that could answer is online",
        field="node",
        remedy="start an agent (`tunesmith serve agent`) whose setting chat_models is above 0; "
        "`tunesmith nodes list` shows the nodes",
    )


def _closed(wanted: str) -> TunesmithError:
    return ResourceExhausted(
        "CHAT_BUSY",
        f"{wanted or 'every node'} takes no more conversations now",
        field="node",
        value=wanted,
        remedy="ask again in a moment",
    )
