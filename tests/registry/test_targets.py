"""Targets by name: what a conversation with each form of name is really held with."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.registry.chatting import Node, answering, ask, eventually
from tests.registry.support import (
    JOB,
    PROJECT,
    Registry,
    base_model_files,
    refusal,
    running_registry,
    safetensors,
)
from tests.support.wait import until_async
from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.registry.v1 import models_pb2

OUTPUT = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": safetensors(a=(2, 2))}
BASE = f"{PROJECT}/baseModels/tiny"
MODEL = f"{PROJECT}/models/bot"


async def _version(registry: Registry, number: int, base_digest: str, adapter: str = "lora") -> str:
    """Registers the output of a job as the next version of the model `bot`; returns its digest."""
    job = f"{PROJECT}/jobs/01k000000000000000000test{number}"
    properties = {"adapter": adapter, "base_model_digest": base_digest, "steps": str(number)}
    digest = await registry.store_artifact("model", OUTPUT, properties)
    await registry.job_says(
        "output_ready", job=job, manifest_digest=digest, model=MODEL, base_model=BASE, dataset_version="d"
    )
    await registry.answer("model_version_registered", number)
    return digest


async def _checkpoint(registry: Registry, step: int, base_digest: str, *, expired: bool = False) -> str:
    files = {"trainable.safetensors": safetensors(a=(step, 2))}
    digest = await registry.store_artifact("checkpoint", files, {"base_model_digest": base_digest})
    kind = "checkpoint_expired" if expired else "checkpoint_committed"
    point = state_pb2.CheckpointRef(step=step, epoch=1, digest=digest, expired=expired)
    await registry.job_says(kind, checkpoint=point)
    return digest


def _asked(node: Node) -> tuple[str, str, str, str]:
    task = node.tasks[-1]
    return task.target, task.kind, task.base_model_digest, task.digest


async def test_every_form_of_name_is_held_with_the_right_content(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry, answering(registry.bus) as node:
        base = (await registry.import_base_model("tiny", base_model_files())).digest
        assert await ask(registry, BASE) == [f"I am {BASE}"]
        assert _asked(node) == (BASE, "base", base, "")

        first = await _version(registry, 1, base)
        second = await _version(registry, 2, base, "full")
        await ask(registry, f"{MODEL}/versions/1")
        assert _asked(node) == (f"{MODEL}/versions/1", "adapter", base, first)
        await ask(registry, f"{MODEL}/versions/latest")
        assert _asked(node) == (f"{MODEL}/versions/2", "full", base, second)

        point = await _checkpoint(registry, 3, base)
        name = f"{JOB}/checkpoints/{point}"
        await eventually(registry, name, name)
        assert _asked(node) == (name, "checkpoint", base, point)


@pytest.mark.parametrize(("word", "stage"), [("production", 3), ("staging", 2)])
async def test_a_stage_means_the_version_that_is_in_it_now(tmp_path: Path, word: str, stage: int) -> None:
    async with running_registry(tmp_path) as registry, answering(registry.bus):
        base = (await registry.import_base_model("tiny", base_model_files())).digest
        for number in (1, 2):
            await _version(registry, number, base)
        target = f"{MODEL}/versions/{word}"
        with pytest.raises(grpc.aio.AioRpcError) as none:
            await ask(registry, target)
        assert refusal(none.value).reason == "MODEL_NOT_FOUND"
        for number in (1, 2):
            steps = [models_pb2.ModelStage.ValueType(2), models_pb2.ModelStage.ValueType(stage)]
            for step in steps:
                await registry.models.SetModelVersionStage(
                    models_pb2.SetModelVersionStageRequest(name=f"{MODEL}/versions/{number}", stage=step)
                )
            assert await ask(registry, target) == [f"I am {MODEL}/versions/{number}"]


@pytest.mark.parametrize(
    ("target", "reason", "said"),
    [
        (f"{PROJECT}/baseModels/tni", "BASE_MODEL_NOT_FOUND", "did you mean tiny"),
        (f"{MODEL}/versions/9", "MODEL_NOT_FOUND", "newest version is 1"),
        (f"{MODEL}/versions/champion", "MODEL_NOT_FOUND", "champion"),
        (f"{PROJECT}/models/none/versions/1", "MODEL_NOT_FOUND", "none"),
        ("projects/other/baseModels/tiny", "NAME_INVALID", "project other"),
        (f"{PROJECT}/baseModels/../secret", "NAME_INVALID", "use projects/P"),
        (f"{PROJECT}/datasets/d", "NAME_INVALID", "use projects/P"),
        ("tiny", "NAME_INVALID", "use projects/P"),
        (f"{JOB}/checkpoints/{'a' * 64}", "CHECKPOINT_NOT_FOUND", "checkpoints list"),
    ],
)
async def test_what_is_not_there_is_named(
    registry_with_a_version: Registry, target: str, reason: str, said: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(registry_with_a_version, target)
    error = refusal(caught.value)
    assert error.reason == reason
    assert said in f"{error.message} {error.remedy}"


@pytest.fixture(name="registry_with_a_version")
async def _registry_with_a_version(tmp_path: Path) -> AsyncIterator[Registry]:
    async with running_registry(tmp_path) as registry:
        base = await registry.import_base_model("tiny", base_model_files())
        await _version(registry, 1, base.digest)
        yield registry


async def test_a_checkpoint_that_was_let_go_or_lost_its_base_is_refused(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry, answering(registry.bus):
        base = (await registry.import_base_model("tiny", base_model_files())).digest
        kept = await _checkpoint(registry, 1, base)
        await eventually(registry, f"{JOB}/checkpoints/{kept}", f"{JOB}/checkpoints/{kept}")
        gone = await _checkpoint(registry, 2, base, expired=True)
        foreign = await _checkpoint(registry, 3, "b" * 64)
        for digest, reason in ((gone, "CHECKPOINT_MISSING"), (foreign, "BASE_MODEL_NOT_FOUND")):
            await _refused(registry, f"{JOB}/checkpoints/{digest}", reason)


async def _refused(registry: Registry, target: str, reason: str) -> None:
    async def refused() -> bool:
        try:
            await ask(registry, target)
        except grpc.aio.AioRpcError as error:
            return refusal(error).reason == reason
        return False

    await until_async(refused, f"{target} is refused as {reason}")
