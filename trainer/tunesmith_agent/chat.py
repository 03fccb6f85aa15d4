"""Answers on this node: conversations come over the bus, chat workers answer them, the text goes back.

Nothing here outlives the agent. Whoever asked hears at least once a second, and says every two seconds that
they still wait; so neither side ever waits for one that is gone.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.nodes.v1 import chat_pb2 as wire
from tunesmith.api.registry.v1 import chat_pb2
from tunesmith.errors import FailedPrecondition, ResourceExhausted, TunesmithError, Unavailable
from tunesmith_agent.chatworker import Event, refusal
from tunesmith_agent.chatworkers import ChatLimits, Workers
from tunesmith_agent.inputs import InputCache
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, Message, Subscription
from tunesmith_kit.tasks import Tasks

log = logging.getLogger(__name__)
_BEAT_SECONDS = 1.0
_HOLD_SECONDS = 10.0
_MOST_WAITING = 16
_KINDS = {"adapter": "adapters", "full": "models", "checkpoint": "checkpoints"}


@dataclass(eq=False)
class _Call:
    """An answer somebody waits for."""

    task: wire.ChatTask
    came: float
    held: float
    state: "chat_pb2.ChatState.ValueType" = chat_pb2.CHAT_STATE_WAITING
    number: int = 0
    began: float = 0.0
    loaded: float = 0.0


class ChatHost:
    """Takes the node's conversations and keeps the workers."""

    def __init__(self, node: str, bus: Bus, inputs: InputCache, home: Path, limits: ChatLimits) -> None:
        self._node, self._bus, self._inputs, self._limits = node, bus, inputs, limits
        self._workers = Workers(node, inputs, home / "chat", limits)
        self._calls: dict[str, tuple[_Call, asyncio.Task[None]]] = {}
        self._waiting: deque[tuple[_Call, asyncio.Event]] = deque()
        self._running = 0
        self._tasks = Tasks()
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Begins to answer, and to tell what it could."""
        subscribe = self._bus.subscribe
        self._subscriptions = [
            await subscribe(subjects.chat_call(), self._called),
            await subscribe(subjects.chat_task(self._node), self._hear),
            await subscribe(subjects.chat_hold(self._node), self._held),
        ]
        self._tasks.spawn("chat status", self._tell_for_ever)

    async def stop(self) -> None:
        """Ends all answers and all workers."""
        for subscription in self._subscriptions:
            await subscription.close()
        await self._tasks.stop()
        running = [task for _, task in self._calls.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._workers.stop()

    async def _tell_for_ever(self) -> None:
        while True:
            await self._workers.tidy()
            await self._tell()
            await asyncio.sleep(_BEAT_SECONDS)

    async def _tell(self) -> None:
        status = wire.ChatHostStatus(
            node=self._node,
            loaded_digests=self._workers.loaded(),
            num_running=self._running,
            num_waiting=len(self._waiting),
            closed=self._limits.models < 1 or len(self._waiting) >= _MOST_WAITING,
        )
        await self._bus.publish_core(subjects.chat_status(self._node), status.SerializeToString())

    async def _called(self, message: Message) -> None:
        await self._tell()

    async def _hear(self, message: Message) -> None:
        try:
            task = wire.ChatTask.FromString(message.payload)
        except DecodeError:
            log.warning("a conversation was no message", extra={"subject": message.subject})
            return
        receipt = wire.ChatReceipt()
        if self._limits.models < 1 or len(self._waiting) >= _MOST_WAITING:
            receipt.error.CopyFrom(_detail(_full(self._node, len(self._waiting))))
        elif task.task not in self._calls:
            now = time.monotonic()
            call = _Call(task, now, now)
            self._calls[task.task] = (call, asyncio.create_task(self._answer(call), name=f"chat {task.task}"))
        await self._bus.publish_core(message.reply, receipt.SerializeToString())

    async def _held(self, message: Message) -> None:
        hold = wire.ChatHold.FromString(message.payload)
        found = self._calls.get(hold.task)
        if found is None:
            return
        call, task = found
        if hold.stop:
            task.cancel()
        call.held = time.monotonic()

    async def _answer(self, call: _Call) -> None:
        beat = asyncio.create_task(self._beat(call))
        try:
            async with self._turn(call):
                await self._work(call)
        except (TunesmithError, OSError) as error:
            known = error if isinstance(error, TunesmithError) else _unusable(call, error)
            await self._send(call, wire.ChatPiece(error=_detail(known)))
        except Exception as error:
            log.exception("an answer failed", extra={"task": call.task.task})
            await self._send(call, wire.ChatPiece(error=_detail(_unusable(call, error))))
        finally:
            beat.cancel()
            self._calls.pop(call.task.task, None)

    async def _beat(self, call: _Call) -> None:
        """Says that the answer is alive, and ends it when nobody waits for it any more."""
        while True:
            response = chat_pb2.ChatResponse(state=call.state)
            if call.state == chat_pb2.CHAT_STATE_WAITING:
                response.queue_position = self._position(call)
            await self._send(call, wire.ChatPiece(response=response))
            await asyncio.sleep(_BEAT_SECONDS)
            if time.monotonic() - call.held > _HOLD_SECONDS:
                log.info("nobody waits for an answer any more", extra={"task": call.task.task})
                self._calls[call.task.task][1].cancel()

    def _position(self, call: _Call) -> int:
        return next((place + 1 for place, (each, _) in enumerate(self._waiting) if each is call), 0)

    @contextlib.asynccontextmanager
    async def _turn(self, call: _Call) -> AsyncIterator[None]:
        """Waits for a place among the answers under way, first come, first served."""
        if self._running >= self._limits.answers:
            entry = (call, asyncio.Event())
            self._waiting.append(entry)
            try:
                await entry[1].wait()
            except BaseException:
                if entry in self._waiting:
                    self._waiting.remove(entry)
                else:
                    self._leave()  # the place was given to us while we were being ended
                raise
        else:
            self._running += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._waiting:
            self._waiting.popleft()[1].set()  # the place goes on to the next
        else:
            self._running -= 1

    async def _work(self, call: _Call) -> None:
        task = call.task
        call.state, call.began = chat_pb2.CHAT_STATE_LOADING, time.monotonic()
        folder = None
        if task.digest:
            folder = await self._inputs.fetch(_KINDS[task.kind], task.digest)
        worker = await self._workers.of(task, folder)
        try:
            await worker.ready()
        except FailedPrecondition as error:
            if error.reason == "ARTIFACT_CORRUPT":  # perhaps only the copies here
                await self._inputs.drop("models", task.base_model_digest)
                await self._drop(task)
            raise
        call.loaded = time.monotonic()
        swapped = folder is not None and worker.key == task.base_model_digest
        events = await worker.ask(
            task.task,
            {
                "messages": [{"role": each.role, "content": each.content} for each in task.messages],
                "parameters": _parameters(task.parameters),
                "prompt_parts": json.loads(task.prompt_parts) if task.prompt_parts else None,
                "digest": task.digest if swapped else "",
                "folder": str(folder) if swapped else "",
            },
        )
        try:
            await self._relay(call, events)
        finally:
            await worker.forget(task.task)

    async def _relay(self, call: _Call, events: "asyncio.Queue[Event]") -> None:
        while True:
            event = await events.get()
            if event["event"] == "failed":
                await self._blame(call, event)
            response = chat_pb2.ChatResponse(delta=event["text"], state=chat_pb2.CHAT_STATE_ANSWERING)
            call.state = chat_pb2.CHAT_STATE_ANSWERING
            if event["event"] == "done":
                _close(response, call, event)
                call.state = chat_pb2.CHAT_STATE_DONE
            await self._send(call, wire.ChatPiece(response=response))
            if event["event"] == "done":
                return

    async def _blame(self, call: _Call, event: Event) -> None:
        error = refusal(event)
        if error.reason == "ARTIFACT_CORRUPT":
            # Perhaps only the copy here is damaged; the next answer fetches it anew.
            await self._drop(call.task)
        raise error

    async def _drop(self, task: wire.ChatTask) -> None:
        if task.digest:
            await self._inputs.drop(_KINDS[task.kind], task.digest)

    async def _send(self, call: _Call, piece: wire.ChatPiece) -> None:
        call.number += 1
        piece.number = call.number
        await self._bus.publish_core(call.task.inbox, piece.SerializeToString())


def _close(response: chat_pb2.ChatResponse, call: _Call, event: Event) -> None:
    response.state = chat_pb2.CHAT_STATE_DONE
    finishes = {"stop": chat_pb2.CHAT_FINISH_STOP, "length": chat_pb2.CHAT_FINISH_LENGTH}
    response.finish = finishes[event["finish"]]
    response.usage.prompt_tokens = event["prompt_tokens"]
    response.usage.completion_tokens = event["completion_tokens"]
    timings = response.timings
    timings.queue_seconds = call.began - call.came
    timings.load_seconds = call.loaded - call.began + event["load_seconds"]
    timings.first_token_seconds = event["first_token_seconds"]
    timings.tokens_per_second = event["tokens_per_second"]


def _parameters(given: chat_pb2.ChatParameters) -> dict[str, object]:
    chosen: dict[str, object] = MessageToDict(given, preserving_proto_field_name=True)
    if "seed" in chosen:
        chosen["seed"] = given.seed  # JSON has 64 bits as text
    if not given.max_new_tokens:
        chosen.pop("max_new_tokens", None)
    return chosen


def _full(node: str, num_waiting: int) -> TunesmithError:
    if num_waiting:
        return ResourceExhausted(
            "CHAT_BUSY",
            f"{num_waiting} answers wait on {node} already",
            field="node",
            value=node,
            remedy="ask again in a moment, or let another node answer",
        )
    return Unavailable(
        "CHAT_NO_NODE",
        f"{node} does not answer conversations",
        field="node",
        value=node,
        remedy="choose another node, or set TUNESMITH_AGENT_CHAT_MODELS above 0 there",
    )


def _unusable(call: _Call, error: Exception) -> TunesmithError:
    return FailedPrecondition(
        "MODEL_UNUSABLE",
        f"the node could not answer: {type(error).__name__}: {error}"[:500],
        field="targets",
        value=call.task.target,
        remedy="see the agent's log on the node",
    )


def _detail(error: TunesmithError) -> common_pb2.ErrorDetail:
    return common_pb2.ErrorDetail(
        reason=error.reason, message=error.message, field=error.field, value=error.value, remedy=error.remedy
    )
