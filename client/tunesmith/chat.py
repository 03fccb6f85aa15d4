"""Talking to models: any version, checkpoint or base model, one or two side by side."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tunesmith import names
from tunesmith.api.registry.v1 import blobs_pb2, chat_pb2, datasets_pb2
from tunesmith.blobs import inspect, upload
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import InvalidArgument, NotFound
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.targets import resolve

Messages = str | Sequence[Mapping[str, str]]
_DATA = "data.jsonl"
_PARAMETERS = chat_pb2.ChatParameters.DESCRIPTOR.fields_by_name


@dataclass
class Reply:
    """A whole answer: `finish` is `stop` or `length`, `usage` and `timings` as in the contract."""

    target: str
    text: str = ""
    finish: str = ""
    node: str = ""
    usage: chat_pb2.ChatUsage = field(default_factory=chat_pb2.ChatUsage)
    timings: chat_pb2.ChatTimings = field(default_factory=chat_pb2.ChatTimings)

    def add(self, response: chat_pb2.ChatResponse) -> None:
        """Takes the next message of the stream."""
        self.text += response.delta
        self.node = response.node or self.node
        if response.state == chat_pb2.CHAT_STATE_DONE:
            finish = names.short(chat_pb2.ChatFinish.DESCRIPTOR, response.finish)
            self.finish = finish.lower()
            self.usage, self.timings = response.usage, response.timings


class Chat(Handle[Face]):
    """Conversations with models. A target is written `BASE`, `MODEL@VERSION` (a number, alias or stage),
    `job:JOB` or `job:JOB@STEP`, or as a resource name."""

    _core: Connection

    @stream
    async def stream(
        self,
        /,
        targets: str | Sequence[str],
        messages: Messages,
        *,
        prompt_template: str = "",
        node: str = "",
        **parameters: Any,
    ) -> AsyncGenerator[chat_pb2.ChatResponse, None]:
        """Yields the answer of one target, or of two, as it comes; leaving early ends it on the node.

        `messages` is a question, or the conversation so far: mappings with `role` and `content`. `parameters`
        are max_new_tokens, temperature, top_p, top_k, seed, repetition_penalty and stop (ChatParameters).
        Raises InvalidArgument for what is wrong in them, NotFound for a target that is not there, Unavailable
        when no node can answer or the one that did is lost.
        """
        async for response in self._stream(targets, messages, prompt_template, node, parameters):
            yield response

    @both
    async def complete(
        self,
        /,
        target: str,
        messages: Messages,
        *,
        prompt_template: str = "",
        node: str = "",
        **parameters: Any,
    ) -> Reply:
        """Returns the whole answer of one target. Arguments and errors as `stream`."""
        reply = Reply(target)
        async for response in self._stream(target, messages, prompt_template, node, parameters):
            reply.add(response)
        return reply

    @both
    async def keep(self, dataset: str, messages: Messages) -> datasets_pb2.DatasetVersion:
        """Appends a conversation to a dataset, as a row of a new version; the dataset is made if need be.

        Its newest version is read and written again, so this is for collections of conversations, not for
        gigabytes.
        """
        row = json.dumps({"messages": _listed(messages)}, ensure_ascii=False).encode() + b"\n"
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{dataset}.jsonl"
            await self._fetch(dataset, path)
            await asyncio.to_thread(_append, path, row)
            file = await inspect(path)
            await upload(self._core, [file], None)
        request = datasets_pb2.ImportDatasetRequest(
            parent=self._core.parent,
            dataset_id=dataset,
            source_digest=file.sha256,
            format=datasets_pb2.DATASET_FORMAT_JSONL,
            source="chat",
            request_id=new_request_id(),
        )
        seconds = 60 + file.size_bytes / 1e6
        return (await self._core.call(self._core.datasets.ImportDataset, request, seconds=seconds)).version

    async def _stream(
        self,
        targets: str | Sequence[str],
        messages: Messages,
        prompt_template: str,
        node: str,
        parameters: Mapping[str, Any],
    ) -> AsyncGenerator[chat_pb2.ChatResponse, None]:
        named = [targets] if isinstance(targets, str) else list(targets)
        request = chat_pb2.ChatRequest(
            parent=self._core.parent,
            targets=[await resolve(self._core, name) for name in named],
            messages=[chat_pb2.ChatMessage(**each) for each in _listed(messages)],
            prompt_template=prompt_template,
            parameters=_parameters(parameters),
            node=node,
        )
        call = self._core.chat.Chat(request, metadata=self._core.metadata)
        try:
            async for response in call:
                yield response
        except grpc.RpcError as failure:
            raise self._core.explain(failure) from None
        finally:
            call.cancel()

    async def _fetch(self, dataset: str, path: Path) -> None:
        """Writes the rows of a dataset's newest version into a file; none when there is no such dataset."""
        name = names.resource(self._core.project, "datasets", dataset)
        try:
            request = datasets_pb2.GetDatasetRequest(name=name)
            newest = (await self._core.call(self._core.datasets.GetDataset, request)).dataset.latest
        except NotFound:
            return
        digest = next(file.sha256 for file in newest.manifest.files if file.path == _DATA)
        call = self._core.blobs.DownloadBlob(
            blobs_pb2.DownloadBlobRequest(digest=digest), metadata=self._core.metadata
        )
        try:
            async for part in call:
                await asyncio.to_thread(_append, path, part.chunk)
        except grpc.RpcError as failure:
            raise self._core.explain(failure) from None


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _listed(messages: Messages) -> list[dict[str, str]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    listed = [dict(message) for message in messages]
    for place, message in enumerate(listed):
        if set(message) - {"role", "content"}:
            raise InvalidArgument(
                "FIELD_INVALID",
                "a message has role and content only",
                field=f"messages[{place}]",
                value=", ".join(sorted(message)),
                remedy='write {"role": "user", "content": "…"}',
            )
    return listed


def _parameters(given: Mapping[str, Any]) -> chat_pb2.ChatParameters:
    for name, value in given.items():
        if name not in _PARAMETERS:
            raise InvalidArgument(
                "FIELD_INVALID",
                f"there is no parameter {name}",
                field=f"parameters.{name}",
                value=value,
                remedy=f"parameters: {', '.join(_PARAMETERS)}",
            )
    try:
        return chat_pb2.ChatParameters(**given)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            "FIELD_INVALID", f"a parameter has a wrong type: {error}", field="parameters",
            remedy="temperature, top_p and repetition_penalty are numbers, stop is a list of texts",
        ) from None  # fmt: skip
