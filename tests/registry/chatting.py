"""A node that answers conversations by a script: the node is the edge here, all else is real."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.registry.support import PROJECT, Registry
from tests.support.wait import until_async
from tunesmith.api.nodes.v1 import chat_pb2 as wire
from tunesmith.api.registry.v1 import chat_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, Message

Script = Callable[["Node", wire.ChatTask], Awaitable[None]]


class Node:
    """What it was asked, and what it was told since."""

    def __init__(self, name: str, bus: Bus, script: Script) -> None:
        self.name, self.status = name, wire.ChatHostStatus(node=name)
        self.tasks: list[wire.ChatTask] = []
        self.stopped: list[str] = []
        self.receipt = wire.ChatReceipt()
        self._bus, self._script, self._number = bus, script, 0

    async def say(self, task: wire.ChatTask, skip: int = 0, **fields: object) -> None:
        """Sends a piece: `error`, or fields of ChatResponse; `skip` numbers are left out before it."""
        self._number += 1 + skip
        error = fields.pop("error", None)
        piece = wire.ChatPiece(number=self._number, error=error)  # type: ignore[arg-type]
        if error is None:
            piece.response.CopyFrom(chat_pb2.ChatResponse(**fields))  # type: ignore[arg-type]
        await self._bus.publish_core(task.inbox, piece.SerializeToString())

    async def tell(self) -> None:
        """Says what it could do."""
        await self._bus.publish_core(subjects.chat_status(self.name), self.status.SerializeToString())

    async def called(self, message: Message) -> None:
        await self.tell()

    async def task(self, message: Message) -> None:
        task = wire.ChatTask.FromString(message.payload)
        self.tasks.append(task)
        self._number = 0
        await self._bus.publish_core(message.reply, self.receipt.SerializeToString())
        if not self.receipt.HasField("error"):
            await self._script(self, task)

    async def hold(self, message: Message) -> None:
        hold = wire.ChatHold.FromString(message.payload)
        if hold.stop:
            self.stopped.append(hold.task)


async def echo(node: Node, task: wire.ChatTask) -> None:
    """Answers with the name of what was asked."""
    await node.say(task, delta="I am ", state=chat_pb2.CHAT_STATE_ANSWERING)
    await node.say(task, delta=task.target, state=chat_pb2.CHAT_STATE_DONE)


@asynccontextmanager
async def answering(bus: Bus, name: str = "node-a", script: Script = echo) -> AsyncIterator[Node]:
    """A node that answers for the time of the block."""
    node = Node(name, bus, script)
    heard = [
        await bus.subscribe(subjects.chat_call(), node.called),
        await bus.subscribe(subjects.chat_task(name), node.task),
        await bus.subscribe(subjects.chat_hold(name), node.hold),
    ]
    await node.tell()
    try:
        yield node
    finally:
        for subscription in heard:
            await subscription.close()


def question(*targets: str, text: str = "who are you?", **fields: object) -> chat_pb2.ChatRequest:
    """A request with one question."""
    messages = [chat_pb2.ChatMessage(role="user", content=text)]
    return chat_pb2.ChatRequest(**{"parent": PROJECT, "targets": targets, "messages": messages, **fields})  # type: ignore[arg-type]


async def ask(registry: Registry, *targets: str, **fields: object) -> list[str]:
    """The whole answers, one a target."""
    texts = [""] * len(targets)
    request = question(*targets, **fields)  # type: ignore[arg-type]
    async for response in registry.chat.Chat(request):
        texts[response.target] += response.delta
    return texts


async def eventually(registry: Registry, target: str, text: str) -> None:
    """Waits until what the registry heard by events lets a target answer so."""

    async def found() -> bool:
        try:
            return await ask(registry, target) == [f"I am {text}"]
        except Exception:
            return False

    await until_async(found, f"{target} answers as {text}")
