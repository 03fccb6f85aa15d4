"""Clients of the registry as the tests need them."""

import hashlib
import json
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tests.support.bus import connected, running_nats
from tests.support.stubs import running_service, stub
from tests.support.wait import until
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.jobs.v1 import events_pb2 as jobs_events_pb2
from tunesmith.api.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    chat_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    evaluations_pb2_grpc,
    events_pb2,
    models_pb2,
    models_pb2_grpc,
)
from tunesmith.errors import TunesmithError
from tunesmith.status import from_rpc_error
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, Delivery
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.nats_server import EmbeddedNats

PROJECT = "projects/default"
JOB_ID = "01k0000000000000000000test"
JOB = f"{PROJECT}/jobs/{JOB_ID}"


@dataclass
class Registry:
    """The running registry, clients of it, and every event it said."""

    folder: Path
    bus: Bus
    datasets: "datasets_pb2_grpc.DatasetServiceAsyncStub"
    models: "models_pb2_grpc.ModelServiceAsyncStub"
    blobs: "blobs_pb2_grpc.BlobServiceAsyncStub"
    chat: "chat_pb2_grpc.ChatServiceAsyncStub"
    evaluations: "evaluations_pb2_grpc.EvaluationServiceAsyncStub"
    said: list[events_pb2.RegistryEvent] = field(default_factory=list)

    async def upload(self, data: bytes, sha256: str = "") -> str:
        """Stores content and returns its digest."""

        async def chunks() -> AsyncIterator[blobs_pb2.UploadBlobRequest]:
            for start in range(0, len(data), 100_000):
                yield blobs_pb2.UploadBlobRequest(chunk=data[start : start + 100_000])
            yield blobs_pb2.UploadBlobRequest(sha256=sha256)

        return (await self.blobs.UploadBlob(chunks())).digest

    async def import_dataset(
        self, dataset_id: str, data: bytes, **fields: object
    ) -> datasets_pb2.ImportDatasetResponse:
        """Uploads a file and imports it."""
        digest = await self.upload(data)
        request = datasets_pb2.ImportDatasetRequest(
            parent=PROJECT,
            dataset_id=dataset_id,
            source_digest=digest,
            **fields,  # type: ignore[arg-type]
        )
        return await self.datasets.ImportDataset(request)

    async def import_base_model(self, base_model_id: str, files: Mapping[str, bytes]) -> models_pb2.BaseModel:
        """Uploads the files of a base model and enters it."""
        listed = [
            common_pb2.ManifestFile(path=path, size_bytes=len(data), sha256=await self.upload(data))
            for path, data in files.items()
        ]
        request = models_pb2.ImportBaseModelRequest(
            parent=PROJECT, base_model_id=base_model_id, files=listed, license="apache-2.0"
        )
        return (await self.models.ImportBaseModel(request)).base_model

    async def store_artifact(
        self, kind: str, files: Mapping[str, bytes], properties: Mapping[str, str] | None = None
    ) -> str:
        """Uploads files and their manifest, as an agent does, and returns the manifest's digest."""
        listed = [
            {"path": path, "sha256": await self.upload(data), "size_bytes": len(data)}
            for path, data in sorted(files.items())
        ]
        body = {"files": listed, "kind": kind, "properties": {"steps": "3", **(properties or {})}}
        return await self.upload(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())

    async def job_says(self, kind: str, event_id: str = "", job: str = JOB, **fields: object) -> str:
        """Publishes an event of the jobs service and returns its id."""
        event_id = event_id or new_ulid()
        event = jobs_events_pb2.JobEvent(event_id=event_id, job=job, epoch=1, **{kind: fields})  # type: ignore[arg-type]
        subject = subjects.job_event("default", job.rpartition("/")[2], kind)
        await self.bus.publish(subject, event.SerializeToString(), f"{event_id}-{new_ulid()}")
        return event_id

    async def answer(self, kind: str, count: int = 1) -> events_pb2.RegistryEvent:
        """Waits until the registry has said something of this kind `count` times; returns the last."""

        def found() -> list[events_pb2.RegistryEvent]:
            return [event for event in self.said if event.WhichOneof("event") == kind]

        await until(lambda: len(found()) >= count, f"{count} x {kind}")
        return found()[count - 1]


@asynccontextmanager
async def running_registry(folder: Path, server: EmbeddedNats | None = None) -> AsyncIterator[Registry]:
    """The registry on its own nats-server, or on one that runs already."""
    if server is None:
        async with running_nats(folder) as own, running_registry(folder, own) as registry:
            yield registry
        return
    async with (
        running_service("registry", server, folder) as running,
        connected(server) as bus,
        stub(datasets_pb2_grpc.DatasetServiceStub, running) as datasets,
        stub(models_pb2_grpc.ModelServiceStub, running) as models,
        stub(blobs_pb2_grpc.BlobServiceStub, running) as blobs,
        stub(chat_pb2_grpc.ChatServiceStub, running) as chat,
        stub(evaluations_pb2_grpc.EvaluationServiceStub, running) as evaluations,
    ):
        registry = Registry(folder, bus, datasets, models, blobs, chat, evaluations)

        async def hear(delivery: Delivery) -> None:
            if delivery.headers.get("ce-type") == events_pb2.RegistryEvent.DESCRIPTOR.full_name:
                registry.said.append(events_pb2.RegistryEvent.FromString(delivery.payload))

        await bus.consume("EVENTS", f"test-{new_ulid()}", hear)
        yield registry


def refusal(error: grpc.aio.AioRpcError) -> TunesmithError:
    """The error of the table that a failed call carries."""
    return from_rpc_error(error)


def safetensors(**shapes: tuple[int, ...]) -> bytes:
    """A file of float32 zeros with these tensors."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def base_model_files() -> dict[str, bytes]:
    """The files of a very small base model."""
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 128}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors(embed=(4, 8), head=(8, 4)),
        "tokenizer.json": b"{}",
    }


def jsonl(*rows: object) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def sha256(data: bytes) -> str:
    """Digest of some bytes."""
    return hashlib.sha256(data).hexdigest()
