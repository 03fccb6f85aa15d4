"""Wires the metrics service."""

import asyncio
from dataclasses import dataclass

from tunesmith.api.metrics.v1 import (
    alerts_pb2,
    alerts_pb2_grpc,
    metrics_pb2,
    metrics_pb2_grpc,
    records_pb2,
    records_pb2_grpc,
    trace_pb2,
    trace_pb2_grpc,
)
from tunesmith_kit import migrate
from tunesmith_kit.bus import Bus
from tunesmith_kit.db import Database
from tunesmith_kit.host import Running, ServiceSpec
from tunesmith_kit.rpc import RpcServer, internal_authenticator
from tunesmith_kit.settings import ServiceSettings, setting
from tunesmith_kit.tasks import Tasks
from tunesmith_kit.telemetry import Telemetry
from tunesmith_kit.watch import CommitSignal
from tunesmith_metrics.alerts.store import safe_revision
from tunesmith_metrics.alerts.wiring import Alerts
from tunesmith_metrics.compact import Compactor
from tunesmith_metrics.curves import Curves
from tunesmith_metrics.housekeeping import Housekeeping
from tunesmith_metrics.ingest import Ingest
from tunesmith_metrics.logservice import LogService
from tunesmith_metrics.recordservice import RecordService
from tunesmith_metrics.retention import Policy, Retention, forget
from tunesmith_metrics.rollup import RollUp
from tunesmith_metrics.runs import JobEvents
from tunesmith_metrics.runtable import Tables
from tunesmith_metrics.service import MetricsService
from tunesmith_metrics.tables import METADATA
from tunesmith_metrics.traceservice import SpanEvents, TraceService
from tunesmith_metrics.viewers import Viewers


@dataclass(frozen=True)
class MetricsSettings(ServiceSettings):
    """Settings of the metrics service."""

    curve_cache_bytes: int = setting(128 * 1024**2, "memory for curves that were asked for last")
    run_table_bytes: int = setting(128 * 1024**2, "memory for the tables of runs that were asked for last")
    node_seconds_hours: float = setting(24, "hours for which nodes' series are kept by the second")
    node_minutes_days: float = setting(30, "days for which nodes' series are kept by the minute")
    node_hours_days: float = setting(730, "days for which nodes' series are kept by the hour")
    max_points: int = setting(0, "points a project may store unless its policy says otherwise; 0: no limit")
    max_keys_per_job: int = setting(
        5000, "different metrics a job may have unless its project's policy says otherwise; 0: no limit"
    )
    keep_days: int = setting(0, "days for which metrics and logs of ended jobs are kept; 0: for ever")
    webhook_private: bool = setting(False, "whether webhooks of alerts may go to private addresses")

    def keep_seconds(self) -> dict[int, float]:
        """Returns how long nodes' series are kept, by the seconds between points."""
        return {
            1: self.node_seconds_hours * 3600,
            60: self.node_minutes_days * 86400,
            3600: self.node_hours_days * 86400,
        }


async def build(settings: MetricsSettings, telemetry: Telemetry) -> Running:
    """Starts the service: database, bus, ingest, rpc server."""
    url = settings.database("metrics")
    await asyncio.to_thread(migrate.upgrade, url, "metrics", METADATA)
    db = Database(url, "metrics")
    bus = await Bus.connect(
        settings.nats_url, settings.nats_token, "service/metrics", num_replicas=settings.num_replicas
    )
    keeper = Retention(db, Policy(settings.max_points, settings.max_keys_per_job, settings.keep_days))
    await keeper.refresh()
    spans = telemetry.publish(bus)
    signal, viewers, ingest, tasks = CommitSignal(db), Viewers(bus), Ingest(db, bus, keeper), Tasks()
    await ingest.start()
    await viewers.start()
    tasks.spawn("viewers", viewers.run)
    tasks.spawn("retention", keeper.run)
    tasks.spawn("compaction", Compactor(db, safe_revision, ingest.busy).run)
    tasks.spawn("roll-up", RollUp(db, settings.keep_seconds()).run)
    curves = Curves(db, settings.curve_cache_bytes)
    metrics = MetricsService(
        db, signal, viewers, curves, Tables(settings.run_table_bytes), Housekeeping(db, bus, keeper)
    )
    await JobEvents(db, forget, curves.forget).start(bus)
    await SpanEvents(db).start(bus)
    alerts = Alerts(db, signal, settings.webhook_private)
    await alerts.start(bus, tasks)
    server = RpcServer(
        telemetry,
        internal_authenticator(settings.internal_token),
        [
            (metrics_pb2_grpc.add_MetricsServiceServicer_to_server, metrics),
            (metrics_pb2_grpc.add_LogServiceServicer_to_server, LogService(db, signal)),
            (records_pb2_grpc.add_RecordServiceServicer_to_server, RecordService(db, ingest, viewers)),
            (alerts_pb2_grpc.add_AlertServiceServicer_to_server, alerts.service),
            (trace_pb2_grpc.add_TraceServiceServicer_to_server, TraceService(db)),
        ],
        names=[
            each.full_name
            for module in (metrics_pb2, records_pb2, alerts_pb2, trace_pb2)
            for each in module.DESCRIPTOR.services_by_name.values()
        ],
    )
    address = await server.start(settings.host, settings.port)

    async def stop() -> None:
        await server.stop()
        await ingest.stop()
        await alerts.stop()
        await tasks.stop()
        await spans.stop()
        await bus.close()
        await db.close()

    async def ready() -> str:
        return "" if bus.connected else "waiting for the bus"

    return Running(address, stop, ready)


service = ServiceSpec("metrics", MetricsSettings, build)
