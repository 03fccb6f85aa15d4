"""Wires the registry."""

import asyncio
from dataclasses import dataclass

from tunesmith.api.registry.v1 import (
    blobs_pb2,
    chat_pb2,
    chat_pb2_grpc,
    datasets_pb2,
    derivations_pb2,
    evaluations_pb2,
    evaluations_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    prompts_pb2,
    statistics_pb2,
)
from tunesmith_kit import migrate
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.bus import Bus
from tunesmith_kit.clock import SystemClock
from tunesmith_kit.db import Database
from tunesmith_kit.holds import Holds
from tunesmith_kit.host import Running, ServiceSpec
from tunesmith_kit.outbox import OutboxRelay
from tunesmith_kit.rpc import RpcServer, internal_authenticator
from tunesmith_kit.tasks import Tasks
from tunesmith_kit.telemetry import Telemetry
from tunesmith_registry.chat.answers import Answers
from tunesmith_registry.chat.hosts import Hosts
from tunesmith_registry.chat.service import ChatService
from tunesmith_registry.data.host import DataHost, DataSettings
from tunesmith_registry.evaluations.service import EvaluationService
from tunesmith_registry.events import JobEvents
from tunesmith_registry.governance import wiring as governance
from tunesmith_registry.governance.wiring import GovernanceSettings
from tunesmith_registry.service import ModelService
from tunesmith_registry.tables import METADATA, OUTBOX


@dataclass(frozen=True)
class RegistrySettings(DataSettings, GovernanceSettings):
    """Settings of the registry."""


async def build(settings: RegistrySettings, telemetry: Telemetry) -> Running:
    """Starts the service: database, blob store, bus, rpc server."""
    url, clock, tasks = settings.database("registry"), SystemClock(), Tasks()
    await asyncio.to_thread(migrate.upgrade, url, "registry", METADATA)
    blobs = await asyncio.to_thread(BlobStore.open, settings.blobs())
    holds = await asyncio.to_thread(Holds.open, settings.blobs())
    db = Database(url, "registry")
    bus = await Bus.connect(
        settings.nats_url, settings.nats_token, "service/registry", num_replicas=settings.num_replicas
    )
    spans = telemetry.publish(bus)
    tasks.spawn("outbox", OutboxRelay(db, bus, OUTBOX, "registry").run)
    heard = await JobEvents(db, blobs, holds, clock, telemetry).start(bus)
    hosts = Hosts(bus)
    answers = Answers(bus, hosts)
    await hosts.start()
    await answers.start()

    data = DataHost(settings, db, blobs, holds, clock)
    data.start(tasks)
    governed = await governance.start(settings, db, blobs, holds, clock, tasks)

    server = RpcServer(
        telemetry,
        internal_authenticator(settings.internal_token),
        [
            *data.services,
            (models_pb2_grpc.add_ModelServiceServicer_to_server, ModelService(db, blobs, clock)),
            (evaluations_pb2_grpc.add_EvaluationServiceServicer_to_server, EvaluationService(db, blobs)),
            (chat_pb2_grpc.add_ChatServiceServicer_to_server, ChatService(db, blobs, hosts, answers)),
            *governed.services,
        ],
        names=[
            each.full_name
            for module in (
                datasets_pb2,
                derivations_pb2,
                prompts_pb2,
                statistics_pb2,
                models_pb2,
                blobs_pb2,
                chat_pb2,
                evaluations_pb2,
                *governance.MODULES,
            )
            for each in module.DESCRIPTOR.services_by_name.values()
        ],
    )
    address = await server.start(settings.host, settings.port)

    async def stop() -> None:
        await server.stop()
        await data.stop()
        await hosts.stop()
        await answers.stop()
        await heard.stop()
        await tasks.stop()
        await governed.embedder.close()
        await spans.stop()
        await bus.close()
        await db.close()

    async def ready() -> str:
        return "" if bus.connected else "waiting for the bus"

    return Running(address, stop, ready)


service = ServiceSpec("registry", RegistrySettings, build)
