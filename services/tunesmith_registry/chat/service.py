"""The rpc of chat: find who answers, then pass on what they say."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from tunesmith.api.nodes.v1 import chat_pb2 as wire
from tunesmith.api.registry.v1 import chat_pb2 as pb
from tunesmith.api.registry.v1 import chat_pb2_grpc
from tunesmith.errors import InvalidArgument
from tunesmith_kit import names
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.db import Database
from tunesmith_kit.ids import new_ulid
from tunesmith_registry import targets
from tunesmith_registry.chat.answers import Answers
from tunesmith_registry.chat.hosts import Hosts
from tunesmith_registry.data import prompts
from tunesmith_registry.targets import Target

# Half of what a message on the bus may have: the rest is room for the template and the envelope.
_MOST_BYTES = 512 * 1024
# Of two answers side by side one may be ahead of a slow caller by so much.
_AHEAD = 64

Responses = AsyncGenerator[pb.ChatResponse, None]


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """ChatService of the contract."""

    def __init__(self, db: Database, blobs: BlobStore, hosts: Hosts, answers: Answers) -> None:
        self._db, self._blobs, self._hosts, self._answers = db, blobs, hosts, answers

    async def Chat(self, request: pb.ChatRequest, context: Any) -> Responses:
        """Streams the answers of one model, or of two side by side."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        _check(request)
        found = [await targets.find(self._db, self._blobs, project, name) for name in request.targets]
        parts = await self._prompt(project, request.prompt_template)
        async with aclosing(_merged([self._one(request, target, parts) for target in found])) as responses:
            async for response in responses:
                yield response

    async def _prompt(self, project: str, wanted: str) -> str:
        """The parts of a prompt template as JSON; empty without one."""
        if not wanted:
            return ""
        if "/" in wanted:
            owner, prompt_id, version = names.parse(
                "projects/*/prompts/*/versions/*", wanted, "prompt_template"
            )
            if owner != project:
                raise InvalidArgument(
                    "NAME_INVALID",
                    f"this belongs to the project {owner}, not to {project}",
                    field="prompt_template",
                    value=wanted,
                    remedy="name a template of the project",
                )
            wanted = f"{prompt_id}@{version}"
        found = await self._db.read(lambda session: prompts.resolve(session, project, wanted))
        return json.dumps({"system": found.parts.system, "prompt": found.parts.prompt})

    async def _one(self, request: pb.ChatRequest, target: Target, parts: str) -> Responses:
        node = await self._hosts.choose([target.digest, target.base_digest], request.node)
        task = wire.ChatTask(
            task=new_ulid(),
            target=target.name,
            kind=target.kind,
            base_model_digest=target.base_digest,
            digest=target.digest,
            messages=request.messages,
            prompt_parts=parts,
            parameters=request.parameters,
        )
        async with aclosing(self._answers.stream(node, task)) as responses:
            async for response in responses:
                yield response


def _check(request: pb.ChatRequest) -> None:
    last = len(request.messages) - 1
    if request.messages[last].role == "assistant":
        raise InvalidArgument(
            "FIELD_INVALID",
            "the last message is the assistant's; there is nothing to answer",
            field=f"messages[{last}].role",
            value="assistant",
            remedy="end with a message of the user",
        )
    if not any(message.content.strip() for message in request.messages):
        raise InvalidArgument(
            "FIELD_INVALID",
            "no message says anything",
            field="messages[0].content",
            remedy="give at least one message a content",
        )
    size = sum(message.ByteSize() for message in request.messages)
    if size > _MOST_BYTES:
        raise InvalidArgument(
            "CONTEXT_TOO_LONG",
            f"the conversation has {size} bytes; {_MOST_BYTES} are the most",
            field="messages",
            value=size,
            remedy="shorten it, or begin a new one",
        )


async def _merged(streams: Sequence[Responses]) -> Responses:
    """Yields what any of the streams says, as it comes, with the number of the stream; the first error ends
    all of them."""
    queue: asyncio.Queue[pb.ChatResponse | Exception | None] = asyncio.Queue(_AHEAD)

    async def pump(number: int, stream: Responses) -> None:
        try:
            async with aclosing(stream):
                async for response in stream:
                    response.target = number
                    await queue.put(response)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    pumps = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(pumps)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
