"""Wires the metrics service."""

import asyncio
from dataclasses import dataclass

from tunesmith.api.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from tunesmith_kit import migrate
from tunesmith_kit.bus import Bus
from tunesmith_kit.db import Database
from tunesmith_kit.host import Running, ServiceSpec
from tunesmith_kit.rpc import RpcServer, internal_authenticator
from tunesmith_kit.settings import ServiceSettings
from tunesmith_kit.tasks import Tasks
from tunesmith_kit.telemetry import Telemetry
from tunesmith_kit.watch import CommitSignal
from tunesmith_metrics.compact import Compactor
from tunesmith_metrics.ingest import Ingest
from tunesmith_metrics.service import LogService, MetricsService
from tunesmith_metrics.tables import METADATA


@dataclass(frozen=True)
class MetricsSettings(ServiceSettings):
    """Settings of the metrics service: those of every service."""


async def build(settings: MetricsSettings, telemetry: Telemetry) -> Running:
    """Starts the service: database, bus, ingest, rpc server."""
    url = settings.database("metrics")
    await asyncio.to_thread(migrate.upgrade, url, "metrics", METADATA)
    db = Database(url, "metrics")
    bus = await Bus.connect(
        settings.nats_url, settings.nats_token, "service/metrics", num_replicas=settings.num_replicas
    )
    signal, ingest, tasks = CommitSignal(db), Ingest(db, bus), Tasks()
    await ingest.start()
    tasks.spawn("compaction", Compactor(db).run)
    server = RpcServer(
        telemetry,
        internal_authenticator(settings.internal_token),
        [
            (metrics_pb2_grpc.add_MetricsServiceServicer_to_server, MetricsService(db, signal)),
            (metrics_pb2_grpc.add_LogServiceServicer_to_server, LogService(db, signal)),
        ],
        names=[each.full_name for each in metrics_pb2.DESCRIPTOR.services_by_name.values()],
    )
    address = await server.start(settings.host, settings.port)

    async def stop() -> None:
        await server.stop()
        await ingest.stop()
        await tasks.stop()
        await bus.close()
        await db.close()

    async def ready() -> str:
        return "" if bus.connected else "waiting for the bus"

    return Running(address, stop, ready)


service = ServiceSpec("metrics", MetricsSettings, build)
