"""The rpc of chat: who is chosen, what comes through, and what is said when a node is lost."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.registry.chatting import Node, answering, ask, question
from tests.registry.support import PROJECT, Registry, base_model_files, refusal, running_registry
from tests.support.wait import until, until_async
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.nodes.v1 import chat_pb2 as wire
from tunesmith.api.registry.v1 import chat_pb2
from tunesmith.errors import TunesmithError
from tunesmith_registry.chat import answers

BASE = f"{PROJECT}/baseModels/tiny"


async def _refusal(registry: Registry, *targets: str, **fields: object) -> TunesmithError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(registry, *(targets or (BASE,)), **fields)
    return refusal(caught.value)


async def test_the_node_that_has_the_model_answers_then_the_least_busy(tmp_path: Path) -> None:
    async with (
        running_registry(tmp_path) as registry,
        answering(registry.bus, "node-a") as first,
        answering(registry.bus, "node-b") as second,
    ):
        base = (await registry.import_base_model("tiny", base_model_files())).digest
        second.status.loaded_digests.append(base)
        second.status.num_running = 1
        await second.tell()
        await _answered_by(registry, "node-b")
        assert [await _answering(registry) for _ in range(2)] == [{"node-b"}] * 2
        second.status.num_waiting = 9
        await second.tell()
        await _answered_by(registry, "node-a")
        num_tasks = len(second.tasks)
        await ask(registry, BASE, node="node-b")
        assert len(second.tasks) == num_tasks + 1
        assert first.tasks


async def _answering(registry: Registry) -> set[str]:
    return {response.node async for response in registry.chat.Chat(question(BASE))}


async def _answered_by(registry: Registry, node: str) -> None:
    """Waits until the registry has heard enough to choose this node."""

    async def chosen() -> bool:
        return await _answering(registry) == {node}

    await until_async(chosen, f"{node} is chosen")


async def test_two_answers_come_side_by_side(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry, answering(registry.bus):
        await registry.import_base_model("tiny", base_model_files())
        other = base_model_files() | {"extra.json": b"{}"}
        await registry.import_base_model("other", other)
        both = await ask(registry, BASE, f"{PROJECT}/baseModels/other")
        assert both == [f"I am {BASE}", f"I am {PROJECT}/baseModels/other"]


async def test_what_the_caller_asks_for_reaches_the_node(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry, answering(registry.bus) as node:
        await registry.import_base_model("tiny", base_model_files())
        parameters = chat_pb2.ChatParameters(temperature=0.5, seed=7, stop=["\n"])
        await ask(registry, BASE, parameters=parameters)
        assert node.tasks[0].parameters == parameters
        assert [message.content for message in node.tasks[0].messages] == ["who are you?"]


async def test_without_a_node_the_error_says_what_to_start(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        await registry.import_base_model("tiny", base_model_files())
        error = await _refusal(registry)
        assert (error.reason, error.code) == ("CHAT_NO_NODE", 14)
        assert "tunesmith serve agent" in error.remedy


async def test_a_node_that_is_full_or_not_there_is_not_asked(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry, answering(registry.bus) as node:
        await registry.import_base_model("tiny", base_model_files())
        assert (await _refusal(registry, node="node-z")).reason == "CHAT_NO_NODE"
        node.receipt.error.reason = "CHAT_BUSY"
        assert (await _refusal(registry)).reason == "CHAT_BUSY"
        node.receipt.ClearField("error")
        node.status.closed = True
        await node.tell()

        async def refused() -> bool:
            num_tasks = len(node.tasks)
            try:
                await ask(registry, BASE)
            except grpc.aio.AioRpcError as error:
                return refusal(error).reason == "CHAT_BUSY" and len(node.tasks) == num_tasks
            return False

        await until_async(refused, "the registry itself refuses")


async def test_an_error_of_the_node_reaches_the_caller_as_it_is(tmp_path: Path) -> None:
    async def fail(node: Node, task: wire.ChatTask) -> None:
        await node.say(task, delta="half", state=chat_pb2.CHAT_STATE_ANSWERING)
        detail = common_pb2.ErrorDetail(reason="CONTEXT_TOO_LONG", message="600 of 512", remedy="shorten it")
        await node.say(task, error=detail)

    async with running_registry(tmp_path) as registry, answering(registry.bus, script=fail):
        await registry.import_base_model("tiny", base_model_files())
        error = await _refusal(registry)
        assert (error.reason, error.code, error.message) == ("CONTEXT_TOO_LONG", 3, "600 of 512")


async def test_a_lost_piece_ends_the_answer_instead_of_falsifying_it(tmp_path: Path) -> None:
    async def gap(node: Node, task: wire.ChatTask) -> None:
        await node.say(task, delta="I am", state=chat_pb2.CHAT_STATE_ANSWERING)
        await node.say(task, skip=1, delta=" good", state=chat_pb2.CHAT_STATE_DONE)

    async with running_registry(tmp_path) as registry, answering(registry.bus, script=gap) as node:
        await registry.import_base_model("tiny", base_model_files())
        assert (await _refusal(registry)).reason == "CHAT_LOST"
        await until(lambda: node.stopped, "the node is told to end")


async def test_a_node_that_falls_silent_is_an_error_and_not_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence(node: Node, task: wire.ChatTask) -> None:
        await node.say(task, delta="I am", state=chat_pb2.CHAT_STATE_ANSWERING)

    monkeypatch.setattr(answers, "_SILENT_SECONDS", 0.3)
    async with running_registry(tmp_path) as registry, answering(registry.bus, script=silence) as node:
        await registry.import_base_model("tiny", base_model_files())
        error = await _refusal(registry)
        assert (error.reason, error.value) == ("CHAT_LOST", "node-a")
        await until(lambda: node.stopped == [node.tasks[0].task], "the node is told to end")


async def test_a_caller_who_goes_away_ends_the_answer_on_the_node(tmp_path: Path) -> None:
    async def begin(node: Node, task: wire.ChatTask) -> None:
        await node.say(task, delta="I am", state=chat_pb2.CHAT_STATE_ANSWERING)

    async with running_registry(tmp_path) as registry, answering(registry.bus, script=begin) as node:
        await registry.import_base_model("tiny", base_model_files())
        call = registry.chat.Chat(question(BASE))
        async for response in call:
            assert response.delta == "I am"
            break
        call.cancel()
        await until(lambda: node.stopped == [node.tasks[0].task], "the node is told to end")


def _says(role: str, content: str) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, content=content)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"messages": []}, "FIELD_INVALID", "messages"),
        ({"messages": [_says("boss", "x")]}, "FIELD_INVALID", "messages[0].role"),
        ({"messages": [_says("user", " ")]}, "FIELD_INVALID", "messages[0].content"),
        ({"messages": [_says("assistant", "x")]}, "FIELD_INVALID", "messages[0].role"),
        ({"messages": [_says("user", "x" * 10_000_000)]}, "FIELD_INVALID", "messages[0].content"),
        ({"messages": [_says("user", "x" * 300_000)] * 2}, "CONTEXT_TOO_LONG", "messages"),
        ({"targets": []}, "FIELD_INVALID", "targets"),
        ({"targets": [BASE] * 3}, "FIELD_INVALID", "targets"),
        ({"parameters": chat_pb2.ChatParameters(temperature=-1)}, "FIELD_INVALID", "parameters.temperature"),
        ({"parameters": chat_pb2.ChatParameters(top_p=float("nan"))}, "FIELD_INVALID", "parameters.top_p"),
        ({"parent": "projects/../x"}, "NAME_INVALID", "parent"),
        ({"node": "a.b.>"}, "FIELD_INVALID", "node"),
    ],
)  # fmt: skip
async def test_bad_input_names_the_field(
    registry: Registry, fields: dict[str, object], reason: str, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in registry.chat.Chat(question(**{"targets": [BASE], **fields})):  # type: ignore[arg-type]
            pass
    error = refusal(caught.value)
    assert (error.reason, error.field) == (reason, field)


@pytest.fixture(name="registry")
async def _registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with running_registry(tmp_path) as registry:
        yield registry
