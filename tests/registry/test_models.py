"""Base models, versions made by jobs, stages and checkpoints."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.registry.support import (
    JOB,
    PROJECT,
    base_model_files,
    jsonl,
    refusal,
    running_registry,
    safetensors,
)
from tests.support.bus import running_nats
from tests.support.wait import until_async
from tunesmith.api.jobs.v1 import events_pb2 as jobs_events_pb2
from tunesmith.api.jobs.v1 import spec_pb2, state_pb2
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.errors import TunesmithError
from tunesmith_kit.ids import new_ulid

OUTPUT = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": safetensors(a=(2, 2))}


async def test_a_good_base_model_is_entered_with_its_facts(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        entered = await registry.import_base_model("tiny", base_model_files())
        assert entered.name == f"{PROJECT}/baseModels/tiny"
        assert (entered.architecture, entered.num_parameters, entered.context_length) == (
            "LlamaForCausalLM",
            64,
            128,
        )
        assert await registry.import_base_model("tiny", base_model_files()) == entered
        said = await registry.answer("base_model_imported")
        assert said.base_model_imported.base_model.digest == entered.digest


def _changed(**files: bytes | None) -> dict[str, bytes]:
    named = {name.replace("__", "."): data for name, data in files.items()}
    merged: dict[str, bytes | None] = {**base_model_files(), **named}
    return {name: data for name, data in merged.items() if data is not None}


def _config(**fields: object) -> bytes:
    return json.dumps({"architectures": ["LlamaForCausalLM"], **fields}).encode()


@pytest.mark.parametrize(
    ("files", "reason", "said"),
    [
        (_changed(pytorch_model__bin=b"x"), "BASE_MODEL_UNSAFE", "pytorch_model.bin is a pickle"),
        (_changed(modeling__py=b"x"), "BASE_MODEL_UNSAFE", "modeling.py is Python code"),
        (_changed(thing__exe=b"x"), "BASE_MODEL_UNSAFE", "not allowed"),
        (_changed(config__json=_config(auto_map={"a": "b"})), "BASE_MODEL_UNSAFE", "auto_map"),
        (_changed(tokenizer_config__json=b'{"auto_map": {"a": "b"}}'), "BASE_MODEL_UNSAFE", "auto_map"),
        (_changed(config__json=None), "BASE_MODEL_INVALID", "config.json is missing"),
        (_changed(config__json=b"{"), "BASE_MODEL_INVALID", "is no JSON"),
        (_changed(config__json=_config(architectures=["BertModel"])), "BASE_MODEL_INVALID", "no causal"),
        (_changed(tokenizer__json=None), "BASE_MODEL_INVALID", "tokenizer is missing"),
        (_changed(model__safetensors=None), "BASE_MODEL_INVALID", "no weights"),
        (_changed(model__safetensors=b"\xff" * 50), "BASE_MODEL_INVALID", "no safetensors"),
        (_changed(model__safetensors=safetensors(a=(4, 4))[:-1]), "BASE_MODEL_INVALID", "cut off"),
        (
            _changed(**{"model__safetensors__index__json": b'{"weight_map": {"a": "model-2.safetensors"}}'}),
            "BASE_MODEL_INVALID",
            "part of the weights is missing",
        ),
        ({**base_model_files(), "../evil.json": b"{}"}, "FIELD_INVALID", "stay inside"),
    ],
)
async def test_unsafe_and_broken_base_models_are_refused(
    tmp_path: Path, files: dict[str, bytes], reason: str, said: str
) -> None:
    async with running_registry(tmp_path) as registry:
        error = await _refused(registry.import_base_model("bad", files))
        assert (error.reason, said in error.message, bool(error.remedy)) == (reason, True, True), (
            error.message
        )


async def _refused(call: object) -> TunesmithError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return refusal(caught.value)


async def test_an_id_keeps_its_files(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        await registry.import_base_model("tiny", base_model_files())
        other = _changed(tokenizer__json=b'{"version": 2}')
        assert (await _refused(registry.import_base_model("tiny", other))).reason == "NAME_TAKEN"


async def test_good_inputs_of_a_job_are_pinned_by_digest(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        base = await registry.import_base_model("tiny", base_model_files())
        data = (await registry.import_dataset("texts", jsonl({"text": "a"}, {"text": "b"}))).version
        await registry.import_dataset("texts", jsonl({"text": "c"}))
        await registry.job_says("created", spec=spec_pb2.JobSpec(base_model="tiny", dataset="texts@1"))
        answer = await registry.answer("job_inputs_validated")
        good = answer.job_inputs_validated
        assert (good.job, answer.resource, answer.epoch) == (JOB, JOB, 1)
        assert (good.base_model, good.base_model_digest) == (base.name, base.digest)
        assert (good.dataset_version, good.dataset_digest, good.num_rows) == (data.name, data.digest, 2)


async def test_bad_inputs_of_a_job_are_all_named_with_hints(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        await registry.import_base_model("tiny-llama", base_model_files())
        await registry.import_dataset("texts", jsonl({"text": "a"}))
        await registry.job_says("created", spec=spec_pb2.JobSpec(base_model="tiny-lama", dataset="texts@7"))
        errors = (await registry.answer("job_inputs_rejected")).job_inputs_rejected.errors
        assert [(e.reason, e.field) for e in errors] == [
            ("BASE_MODEL_NOT_FOUND", "spec.base_model"),
            ("DATASET_NOT_FOUND", "spec.dataset"),
        ]
        assert "did you mean tiny-llama?" in errors[0].remedy
        assert "newest version is 1" in errors[1].remedy


async def test_a_fork_begins_only_from_a_whole_checkpoint_of_its_base_model(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        base = await registry.import_base_model("tiny", base_model_files())
        await registry.import_dataset("texts", jsonl({"text": "a"}))
        spec = spec_pb2.JobSpec(base_model="tiny", dataset="texts@1")

        async def reason_of(digest: str, count: int) -> str:
            origin = jobs_events_pb2.ForkOrigin(job=JOB, step=3, digest=digest)
            await registry.job_says("created", spec=spec, forked_from=origin)
            (error,) = (await registry.answer("job_inputs_rejected", count)).job_inputs_rejected.errors
            return error.reason

        files = {"trainable.safetensors": b"x"}
        foreign = await registry.store_artifact("checkpoint", files, {"base_model_digest": "0" * 64})
        assert await reason_of("0" * 64, 1) == "CHECKPOINT_DAMAGED", "it is nowhere"
        assert await reason_of(await registry.store_artifact("model", files), 2) == "CHECKPOINT_DAMAGED"
        assert await reason_of(foreign, 3) == "CHECKPOINT_FOREIGN"
        good = await registry.store_artifact("checkpoint", files, {"base_model_digest": base.digest})
        origin = jobs_events_pb2.ForkOrigin(job=JOB, step=3, digest=good)
        await registry.job_says("created", spec=spec, forked_from=origin)
        assert (await registry.answer("job_inputs_validated")).job_inputs_validated.job == JOB


async def test_a_verified_output_becomes_one_version_however_often_the_event_comes(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server:
        async with running_registry(tmp_path, server) as registry:
            digest = await registry.store_artifact("model", OUTPUT)
            ready: dict[str, Any] = {
                "manifest_digest": digest,
                "model": "bot",
                "final_metrics": {"train/loss": 0.5},
            }
            event_id = await registry.job_says("output_ready", **ready)
            made = (await registry.answer("model_version_registered")).model_version_registered.version
            await asyncio.gather(*(registry.job_says("output_ready", event_id, **ready) for _ in range(5)))
        async with running_registry(tmp_path, server) as registry:
            await registry.job_says("output_ready", event_id, **ready)
            await registry.job_says("output_ready", **ready)  # said anew: the same version is named again
            await registry.answer("model_version_registered", 2)
            request = models_pb2.ListModelVersionsRequest(parent=f"{PROJECT}/models/bot")
            listed = (await registry.models.ListModelVersions(request)).versions
            assert [version.name for version in listed] == [f"{PROJECT}/models/bot/versions/1"]
            assert (listed[0], listed[0].metrics["train/loss"], listed[0].job) == (made, 0.5, JOB)


async def test_a_damaged_or_incomplete_output_is_rejected_with_the_reason(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        await registry.job_says("output_ready", manifest_digest="0" * 64, model="bot")
        missing = (await registry.answer("model_version_rejected")).model_version_rejected.error
        assert missing.reason == "BLOB_NOT_FOUND"
        digest = await registry.store_artifact("model", OUTPUT)
        weights = next((tmp_path / "blobs" / "sha256").rglob(await _digest(registry, OUTPUT)))
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        await registry.job_says("output_ready", manifest_digest=digest, model="bot")
        damaged = (await registry.answer("model_version_rejected", 2)).model_version_rejected.error
        assert damaged.reason == "ARTIFACT_CORRUPT"
        unsafe = await registry.store_artifact("model", {"adapter_model.bin": b"x"})
        await registry.job_says("output_ready", manifest_digest=unsafe, model="bot")
        refused = (await registry.answer("model_version_rejected", 3)).model_version_rejected.error
        assert refused.reason == "BASE_MODEL_UNSAFE"
        listed = await registry.models.ListModels(models_pb2.ListModelsRequest(parent=PROJECT))
        assert not listed.models


async def _digest(registry: object, files: dict[str, bytes]) -> str:
    return await registry.upload(files["adapter_model.safetensors"])  # type: ignore[attr-defined,no-any-return]


async def test_promoting_a_version_archives_the_one_before(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        for number in (1, 2):
            digest = await registry.store_artifact("model", {**OUTPUT, "n.txt": bytes([number])})
            job = f"{PROJECT}/jobs/{new_ulid()}"
            await registry.job_says("output_ready", job=job, manifest_digest=digest, model="bot")
            await registry.answer("model_version_registered", number)
        for number in (1, 2):
            request = models_pb2.SetModelVersionStageRequest(
                name=f"{PROJECT}/models/bot/versions/{number}", stage=models_pb2.MODEL_STAGE_PRODUCTION
            )
            await registry.models.SetModelVersionStage(request)
        model = (
            await registry.models.GetModel(models_pb2.GetModelRequest(name=f"{PROJECT}/models/bot"))
        ).model
        assert (model.production.version, model.latest.version) == (2, 2)
        first = models_pb2.GetModelVersionRequest(name=f"{PROJECT}/models/bot/versions/1")
        stage = (await registry.models.GetModelVersion(first)).version.stage
        assert stage == models_pb2.MODEL_STAGE_ARCHIVED
        said = await registry.answer("model_version_stage_changed", 3)
        assert said.model_version_stage_changed.version.version == 2


async def test_committed_checkpoints_are_listed_newest_first(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        for epoch, step in ((1, 10), (1, 20), (2, 20)):
            committed = state_pb2.CheckpointRef(step=step, epoch=epoch, digest=f"{epoch}{step}".zfill(64))
            event_id = await registry.job_says("checkpoint_committed", checkpoint=committed)
            await registry.job_says("checkpoint_committed", event_id, checkpoint=committed)
        request = models_pb2.ListCheckpointsRequest(parent=JOB, page_size=2)

        async def all_there() -> bool:
            everything = models_pb2.ListCheckpointsRequest(parent=JOB)
            return len((await registry.models.ListCheckpoints(everything)).checkpoints) == 3

        await until_async(all_there, "three checkpoints")
        page = await registry.models.ListCheckpoints(request)
        request.page_token = page.next_page_token
        rest = await registry.models.ListCheckpoints(request)
        assert [(c.epoch, c.step) for c in [*page.checkpoints, *rest.checkpoints]] == [
            (2, 20),
            (1, 20),
            (1, 10),
        ]
        assert not rest.next_page_token
