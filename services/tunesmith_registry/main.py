"""Wires the registry."""

import asyncio
from dataclasses import dataclass

from tunesmith.api.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from tunesmith_kit import migrate
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.bus import Bus
from tunesmith_kit.clock import SystemClock
from tunesmith_kit.db import Database
from tunesmith_kit.host import Running, ServiceSpec
from tunesmith_kit.outbox import OutboxRelay
from tunesmith_kit.rpc import RpcServer, internal_authenticator
from tunesmith_kit.settings import ServiceSettings
from tunesmith_kit.tasks import Tasks
from tunesmith_kit.telemetry import Telemetry
from tunesmith_registry.events import JobEvents
from tunesmith_registry.service import BlobService, DatasetService, ModelService
from tunesmith_registry.tables import METADATA, OUTBOX


@dataclass(frozen=True)
class RegistrySettings(ServiceSettings):
    """Settings of the registry: those of every service."""


async def build(settings: RegistrySettings, telemetry: Telemetry) -> Running:
    """Starts the service: database, blob store, bus, rpc server."""
    url, clock, tasks = settings.database("registry"), SystemClock(), Tasks()
    await asyncio.to_thread(migrate.upgrade, url, "registry", METADATA)
    blobs = await asyncio.to_thread(BlobStore.open, settings.blobs())
    db = Database(url, "registry")
    bus = await Bus.connect(
        settings.nats_url, settings.nats_token, "service/registry", num_replicas=settings.num_replicas
    )
    tasks.spawn("outbox", OutboxRelay(db, bus, OUTBOX, "registry").run)
    heard = await JobEvents(db, blobs, clock, telemetry).start(bus)

    server = RpcServer(
        telemetry,
        internal_authenticator(settings.internal_token),
        [
            (datasets_pb2_grpc.add_DatasetServiceServicer_to_server, DatasetService(db, blobs, clock)),
            (models_pb2_grpc.add_ModelServiceServicer_to_server, ModelService(db, blobs, clock)),
            (blobs_pb2_grpc.add_BlobServiceServicer_to_server, BlobService(blobs)),
        ],
        names=[
            each.full_name
            for module in (datasets_pb2, models_pb2, blobs_pb2)
            for each in module.DESCRIPTOR.services_by_name.values()
        ],
    )
    address = await server.start(settings.host, settings.port)

    async def stop() -> None:
        await server.stop()
        await heard.stop()
        await tasks.stop()
        await bus.close()
        await db.close()

    async def ready() -> str:
        return "" if bus.connected else "waiting for the bus"

    return Running(address, stop, ready)


service = ServiceSpec("registry", RegistrySettings, build)
