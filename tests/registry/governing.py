"""The registry with its services of governance, called by people with names."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from sqlalchemy import create_engine, insert, text

from tests.registry.support import PROJECT, Registry, base_model_files, jsonl, safetensors
from tests.support.bus import connected, running_nats
from tests.support.stubs import INTERNAL_TOKEN, running_service
from tests.support.wait import until
from tunesmith.api.jobs.v1 import spec_pb2
from tunesmith.api.registry.v1 import (
    blobs_pb2_grpc,
    cards_pb2_grpc,
    datasets_pb2_grpc,
    events_pb2,
    exports_pb2_grpc,
    lineage_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    search_pb2_grpc,
    stages_pb2,
    stages_pb2_grpc,
    versions_pb2_grpc,
)
from tunesmith.errors import TunesmithError
from tunesmith.status import from_rpc_error
from tunesmith_kit import rpc
from tunesmith_kit.bus import Delivery
from tunesmith_kit.db import normalise
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.nats_server import EmbeddedNats
from tunesmith_registry.evaluations.tables import EVALUATION_SCORES

BOT = f"{PROJECT}/models/bot"
PRODUCTION, ARCHIVED = models_pb2.MODEL_STAGE_PRODUCTION, models_pb2.MODEL_STAGE_ARCHIVED
STAGING, NONE = models_pb2.MODEL_STAGE_STAGING, models_pb2.MODEL_STAGE_NONE
LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


@dataclass
class Governed(Registry):
    """The registry, and clients of its services of governance."""

    channel: Any = None
    versions: Any = None
    stages: Any = None
    cards: Any = None
    lineage: Any = None
    search: Any = None
    exports: Any = None
    # Of the database, when it is not SQLite in the folder.
    url: str = ""

    async def prepared(self) -> None:
        """Enters the base model `tiny` and the dataset `texts`."""
        await self.import_base_model("tiny", base_model_files())
        await self.import_dataset("texts", jsonl({"text": "a"}, {"text": "b"}))

    async def made(self, number: int, model: str = "bot", **metrics: float) -> models_pb2.ModelVersion:
        """A job that runs to its end and registers a version, as the jobs service and an agent do."""
        job = f"{PROJECT}/jobs/{new_ulid()}"
        spec = spec_pb2.JobSpec(base_model="tiny", dataset="texts@1", labels={"n": str(number)})
        await self.job_says("created", job=job, spec=spec)
        await self._answered("job_inputs_validated", job)
        weights = safetensors(a=(2, 2)) + b""
        files = {
            "adapter_config.json": json.dumps({**LORA, "r": number}).encode(),
            "adapter_model.safetensors": weights,
        }
        facts = {"adapter": "lora", "best_eval_loss": "0.125", "torch": "2.10"}
        digest = await self.store_artifact("model", files, facts)
        await self.job_says(
            "output_ready",
            job=job,
            manifest_digest=digest,
            model=f"{PROJECT}/models/{model}",
            base_model=f"{PROJECT}/baseModels/tiny",
            dataset_version=f"{PROJECT}/datasets/texts/versions/1",
            final_metrics=metrics or {"eval/loss": 1.0 / number},
        )
        answer = await self._answered("model_version_registered", job)
        return answer.model_version_registered.version

    async def _answered(self, kind: str, job: str) -> events_pb2.RegistryEvent:
        def found() -> list[events_pb2.RegistryEvent]:
            return [e for e in self.said if e.WhichOneof("event") == kind and getattr(e, kind).job == job]

        await until(lambda: bool(found()), f"{kind} of {job}")
        return found()[0]

    async def stage(
        self, version: int | str, stage: models_pb2.ModelStage.ValueType, who: str = "ann"
    ) -> Any:
        """Moves a version of bot."""
        request = models_pb2.SetModelVersionStageRequest(name=f"{BOT}/versions/{version}", stage=stage)
        return (await self.models.SetModelVersionStage(request, metadata=person(who))).version

    async def policy(self, **fields: Any) -> None:
        """Sets the policy of bot."""
        request = stages_pb2.SetModelPolicyRequest(name=BOT, policy=stages_pb2.ModelPolicy(**fields))
        await self.stages.SetModelPolicy(request, metadata=person("root", "admin"))

    def scored(
        self, version: models_pb2.ModelVersion, metric: str, value: float, dataset: str = "texts"
    ) -> None:
        """Enters a score as an evaluation does."""
        row = {
            "project": "default",
            "evaluation": new_ulid(),
            "target_index": 0,
            "target": version.name,
            "target_digest": version.digest,
            "dataset_version": f"{PROJECT}/datasets/{dataset}/versions/1",
            "metric": metric,
            "value": value,
            "ci_low": value - 0.1,
            "ci_high": value + 0.1,
            "num_samples": 20,
            "higher_is_better": metric != "perplexity",
            "create_time": datetime.now(UTC),
        }
        self.execute(insert(EVALUATION_SCORES).values(row))

    def execute(self, statement: Any) -> None:
        """Writes to the database behind the registry's back."""
        engine = create_engine(
            normalise(self.url) if self.url else f"sqlite:///{self.folder / 'registry.db'}"
        )
        with engine.begin() as connection:
            if self.url:
                connection.execute(text("set search_path = registry"))
            connection.execute(text(statement) if isinstance(statement, str) else statement)
        engine.dispose()


def person(name: str, role: str = "developer") -> tuple[tuple[str, str], ...]:
    """The metadata with which the gateway calls for somebody."""
    return (("authorization", f"Bearer {INTERNAL_TOKEN}"), (rpc.PRINCIPAL_KEY, name), (rpc.ROLE_KEY, role))


class _Calls(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_named(details), request)


class _Streams(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_named(details), request)


class _Uploads(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(_named(details), requests)


def _named(details: Any) -> Any:
    metadata = grpc.aio.Metadata(*(details.metadata or person("ann")))
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


@asynccontextmanager
async def governed(
    folder: Path, server: EmbeddedNats | None = None, **settings: object
) -> AsyncIterator[Governed]:
    """The registry on its own nats-server, or on one that runs already."""
    if server is None:
        async with running_nats(folder) as own, governed(folder, own, **settings) as registry:
            yield registry
        return
    async with running_service("registry", server, folder, **settings) as running, connected(server) as bus:
        channel = grpc.aio.insecure_channel(running.address, interceptors=[_Calls(), _Streams(), _Uploads()])
        others = {
            item.name: None
            for item in fields(Registry)
            if item.default is MISSING and item.default_factory is MISSING
        }
        known: dict[str, Any] = {
            "folder": folder,
            "bus": bus,
            "datasets": datasets_pb2_grpc.DatasetServiceStub(channel),
            "models": models_pb2_grpc.ModelServiceStub(channel),
            "blobs": blobs_pb2_grpc.BlobServiceStub(channel),
            "channel": channel,
            "url": str(settings.get("database_url", "")),
            "versions": versions_pb2_grpc.VersionServiceStub(channel),
            "stages": stages_pb2_grpc.StageServiceStub(channel),
            "cards": cards_pb2_grpc.CardServiceStub(channel),
            "lineage": lineage_pb2_grpc.LineageServiceStub(channel),
            "search": search_pb2_grpc.SearchServiceStub(channel),
            "exports": exports_pb2_grpc.ExportServiceStub(channel),
        }
        registry = Governed(**(others | known))

        async def hear(delivery: Delivery) -> None:
            if delivery.headers.get("ce-type") == events_pb2.RegistryEvent.DESCRIPTOR.full_name:
                registry.said.append(events_pb2.RegistryEvent.FromString(delivery.payload))

        await bus.consume("EVENTS", f"test-{new_ulid()}", hear)
        try:
            yield registry
        finally:
            await channel.close()


async def refused(call: Any) -> TunesmithError:
    """The error that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("it was not refused")


async def collected(stream: Any) -> list[Any]:
    """All messages of a stream."""
    return [message async for message in stream]
