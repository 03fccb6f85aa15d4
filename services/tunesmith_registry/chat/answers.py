"""One answer on its way from a node to the caller."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress

from google.protobuf.message import DecodeError

from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.nodes.v1 import chat_pb2 as wire
from tunesmith.api.registry.v1 import chat_pb2
from tunesmith.errors import REASONS, DeadlineExceeded, ResourceExhausted, TunesmithError, Unavailable
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, Message, Subscription
from tunesmith_registry.chat.hosts import Hosts

_RECEIPT_SECONDS = 3.0
# A node says something every second; it may be busy for a while.
_SILENT_SECONDS = 5.0
_HOLD_SECONDS = 2.0
# Pieces a slow caller may be behind: a node makes at most fifty a second.
_MOST_PIECES = 4096


class Answers:
    """Hands tasks to nodes and gives out the pieces that come back."""

    def __init__(self, bus: Bus, hosts: Hosts) -> None:
        self._bus, self._hosts = bus, hosts
        self._inbox = bus.connection.inbox()
        self._waiting: dict[str, asyncio.Queue[wire.ChatPiece]] = {}
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begins to hear the nodes."""
        # One subscription for all answers: one of its own would cost each two round trips more.
        self._subscription = await self._bus.subscribe(f"{self._inbox}.*", self._hear)

    async def stop(self) -> None:
        """Stops hearing; answers under way end as lost."""
        if self._subscription is not None:
            await self._subscription.close()

    async def _hear(self, message: Message) -> None:
        queue = self._waiting.get(message.subject.rpartition(".")[2])
        if queue is None:
            return
        # What is dropped here, or on the bus, is a gap in the numbers and ends the answer.
        with suppress(DecodeError, asyncio.QueueFull):
            queue.put_nowait(wire.ChatPiece.FromString(message.payload))

    async def stream(self, node: str, task: wire.ChatTask) -> AsyncGenerator[chat_pb2.ChatResponse, None]:
        """Yields an answer of a node; when it is left early, the node is told to end.

        Raises:
            Unavailable: the node, or the process there, was lost on the way.
            TunesmithError: what the node says is wrong.
        """
        task.inbox = f"{self._inbox}.{task.task}"
        pieces: asyncio.Queue[wire.ChatPiece] = asyncio.Queue(_MOST_PIECES)
        self._waiting[task.task] = pieces
        finished = False
        try:
            await self._give(node, task)
            number, held = 0, time.monotonic()
            while not finished:
                if time.monotonic() - held >= _HOLD_SECONDS:
                    held = time.monotonic()
                    await self._hold(node, task.task, stop=False)
                piece = await self._next(node, pieces)
                number += 1
                if piece.number != number:
                    raise _lost(node, "parts of the answer were lost on the way")
                if piece.HasField("error"):
                    finished = True
                    raise _error(piece.error)
                finished = piece.response.state == chat_pb2.CHAT_STATE_DONE
                piece.response.node = node
                yield piece.response
        finally:
            del self._waiting[task.task]
            if not finished:
                await self._hold(node, task.task, stop=True)

    async def _give(self, node: str, task: wire.ChatTask) -> None:
        try:
            answer = await self._bus.request(
                subjects.chat_task(node), task.SerializeToString(), deadline=_RECEIPT_SECONDS
            )
        except (Unavailable, DeadlineExceeded) as error:
            self._hosts.lost(node)
            raise _lost(node, "it does not answer") from error
        except ResourceExhausted as error:
            raise ResourceExhausted(
                "MESSAGE_TOO_LARGE",
                "the conversation is larger than the bus takes",
                field="messages",
                value=task.ByteSize(),
                remedy="shorten it, or begin a new one",
            ) from error
        receipt = wire.ChatReceipt.FromString(answer.payload)
        if receipt.HasField("error"):
            raise _error(receipt.error)

    async def _next(self, node: str, pieces: "asyncio.Queue[wire.ChatPiece]") -> wire.ChatPiece:
        try:
            async with asyncio.timeout(_SILENT_SECONDS):
                return await pieces.get()
        except TimeoutError:
            self._hosts.lost(node)
            raise _lost(node, f"it has said nothing for {_SILENT_SECONDS:g} s") from None

    async def _hold(self, node: str, task: str, *, stop: bool) -> None:
        hold = wire.ChatHold(task=task, stop=stop)
        await self._bus.publish_core(subjects.chat_hold(node), hold.SerializeToString())


def _lost(node: str, why: str) -> TunesmithError:
    return Unavailable(
        "CHAT_LOST",
        f"the node {node} was lost: {why}",
        field="node",
        value=node,
        remedy="ask again; another node answers if there is one",
    )


def _error(detail: common_pb2.ErrorDetail) -> TunesmithError:
    """What a node says is wrong, as the error of the table."""
    kind = REASONS[detail.reason][0] if detail.reason in REASONS else Unavailable
    reason = detail.reason if detail.reason in REASONS else "CHAT_LOST"
    return kind(reason, detail.message, field=detail.field, value=detail.value, remedy=detail.remedy)
