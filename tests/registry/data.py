"""The registry with the clients that tests of its data part need."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.registry.support import PROJECT
from tests.support.bus import connected, running_nats
from tests.support.stubs import running_service, stub
from tests.support.wait import until
from tunesmith.api.registry.v1 import (
    blobs_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    derivations_pb2,
    derivations_pb2_grpc,
    events_pb2,
    models_pb2_grpc,
    prompts_pb2,
    prompts_pb2_grpc,
    statistics_pb2,
    statistics_pb2_grpc,
)
from tunesmith.errors import TunesmithError
from tunesmith.status import from_rpc_error
from tunesmith_kit.bus import Delivery
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.nats_server import EmbeddedNats


@dataclass
class Data:
    """Clients of a running registry, and every event it said."""

    folder: Path
    datasets: "datasets_pb2_grpc.DatasetServiceAsyncStub"
    derivations: "derivations_pb2_grpc.DerivationServiceAsyncStub"
    prompts: "prompts_pb2_grpc.PromptServiceAsyncStub"
    statistics: "statistics_pb2_grpc.StatisticsServiceAsyncStub"
    blobs: "blobs_pb2_grpc.BlobServiceAsyncStub"
    models: "models_pb2_grpc.ModelServiceAsyncStub"
    said: list[events_pb2.RegistryEvent]

    async def upload(self, data: bytes) -> str:
        """Stores content and returns its digest."""
        from tunesmith.api.registry.v1 import blobs_pb2

        async def chunks() -> AsyncIterator[blobs_pb2.UploadBlobRequest]:
            for start in range(0, len(data), 1 << 20):
                yield blobs_pb2.UploadBlobRequest(chunk=data[start : start + (1 << 20)])

        return (await self.blobs.UploadBlob(chunks())).digest

    def request(self, dataset_id: str, **fields: object) -> datasets_pb2.ImportDatasetRequest:
        """A request to import."""
        return datasets_pb2.ImportDatasetRequest(parent=PROJECT, dataset_id=dataset_id, **fields)  # type: ignore[arg-type]

    async def imported(self, dataset_id: str, data: bytes, **fields: object) -> datasets_pb2.DatasetVersion:
        """Uploads a file and imports it."""
        request = self.request(dataset_id, source_digest=await self.upload(data), **fields)
        return (await self.datasets.ImportDataset(request)).version

    async def refused(self, dataset_id: str, data: bytes | None = None, **fields: object) -> TunesmithError:
        """The error of an import that must not succeed."""
        if data is not None:
            fields["source_digest"] = await self.upload(data)
        try:
            await self.datasets.ImportDataset(self.request(dataset_id, **fields))
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        raise AssertionError(f"{dataset_id} was imported")

    async def content(self, version: datasets_pb2.DatasetVersion) -> bytes:
        """The stored rows of a version."""
        request = datasets_pb2.ExportDatasetRequest(name=version.name)
        return b"".join([piece.data async for piece in self.datasets.ExportDataset(request)])

    async def derive(self, **fields: object) -> list[datasets_pb2.DatasetVersion]:
        """Derives versions."""
        request = derivations_pb2.DeriveDatasetRequest(parent=PROJECT, **fields)  # type: ignore[arg-type]
        return list((await self.derivations.DeriveDataset(request)).versions)

    async def stats(self, name: str, **fields: object) -> statistics_pb2.DatasetStatistics:
        """Statistics of a version, once they are there."""
        request = statistics_pb2.GetDatasetStatisticsRequest(name=name, **fields)  # type: ignore[arg-type]
        answer = await self.statistics.GetDatasetStatistics(request)
        count = len(self._computed())
        if answer.state == statistics_pb2.STATISTICS_STATE_COMPUTING:
            await until(lambda: len(self._computed()) > count, "the statistics", 120)
            answer = await self.statistics.GetDatasetStatistics(request)
        assert answer.state == statistics_pb2.STATISTICS_STATE_READY, answer
        return answer.statistics

    def _computed(self) -> list[events_pb2.RegistryEvent]:
        return [event for event in self.said if event.HasField("dataset_statistics_computed")]


@asynccontextmanager
async def running_data(
    folder: Path, server: EmbeddedNats | None = None, **settings: object
) -> AsyncIterator[Data]:
    """The registry on its own nats-server."""
    if server is None:
        async with running_nats(folder) as own, running_data(folder, own, **settings) as data:
            yield data
        return
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_service("registry", server, folder, **settings))
        bus = await stack.enter_async_context(connected(server))

        async def client(make: object) -> object:
            return await stack.enter_async_context(stub(make, running))  # type: ignore[arg-type]

        data = Data(
            folder,
            await client(datasets_pb2_grpc.DatasetServiceStub),  # type: ignore[arg-type]
            await client(derivations_pb2_grpc.DerivationServiceStub),  # type: ignore[arg-type]
            await client(prompts_pb2_grpc.PromptServiceStub),  # type: ignore[arg-type]
            await client(statistics_pb2_grpc.StatisticsServiceStub),  # type: ignore[arg-type]
            await client(blobs_pb2_grpc.BlobServiceStub),  # type: ignore[arg-type]
            await client(models_pb2_grpc.ModelServiceStub),  # type: ignore[arg-type]
            [],
        )

        async def hear(delivery: Delivery) -> None:
            if delivery.headers.get("ce-type") == events_pb2.RegistryEvent.DESCRIPTOR.full_name:
                data.said.append(events_pb2.RegistryEvent.FromString(delivery.payload))

        await bus.consume("EVENTS", f"test-{new_ulid()}", hear)
        yield data


def template(**parts: str) -> prompts_pb2.PromptParts:
    """Parts of a prompt template."""
    return prompts_pb2.PromptParts(**parts)
