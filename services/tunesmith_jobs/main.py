"""Wires the jobs service."""

import asyncio
from dataclasses import dataclass

from tunesmith.api.jobs.v1 import external_pb2, external_pb2_grpc, jobs_pb2, jobs_pb2_grpc
from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith.api.registry.v1 import events_pb2
from tunesmith_jobs.departures import Departures
from tunesmith_jobs.events import HEARD, RegistryAnswers
from tunesmith_jobs.explain import Explainer
from tunesmith_jobs.external import ExternalRuns, SilenceMonitor
from tunesmith_jobs.faults import FaultMonitor
from tunesmith_jobs.figures import Figures
from tunesmith_jobs.fleet import FleetStore
from tunesmith_jobs.forks import Forks
from tunesmith_jobs.leases import LeaseMonitor
from tunesmith_jobs.quotas import QuotaStore
from tunesmith_jobs.reports import Reports
from tunesmith_jobs.scheduler import Scheduler
from tunesmith_jobs.service import ExternalRunService, JobService, NodeService
from tunesmith_jobs.store import JobStore
from tunesmith_jobs.tables import METADATA, OUTBOX
from tunesmith_jobs.verbs import Verbs
from tunesmith_kit import migrate, subjects
from tunesmith_kit.bus import Bus
from tunesmith_kit.clock import SystemClock
from tunesmith_kit.consumer import Delivery
from tunesmith_kit.db import Database
from tunesmith_kit.host import Running, ServiceSpec
from tunesmith_kit.lease import LeaseWatcher
from tunesmith_kit.outbox import OutboxRelay
from tunesmith_kit.rpc import RpcServer, internal_authenticator
from tunesmith_kit.settings import ServiceSettings
from tunesmith_kit.tasks import Tasks
from tunesmith_kit.telemetry import Telemetry
from tunesmith_kit.watch import CommitSignal


@dataclass(frozen=True)
class JobsSettings(ServiceSettings):
    """Settings of the jobs service: those of every service."""


async def build(settings: JobsSettings, telemetry: Telemetry) -> Running:
    """Starts the service: database, bus, loops, rpc server."""
    url, clock, tasks = settings.database("jobs"), SystemClock(), Tasks()
    await asyncio.to_thread(migrate.upgrade, url, "jobs", METADATA)
    db = Database(url, "jobs")
    bus = await Bus.connect(
        settings.nats_url, settings.nats_token, "service/jobs", num_replicas=settings.num_replicas
    )
    spans = telemetry.publish(bus)

    store, fleet, signal = JobStore(db, clock), FleetStore(db, clock), CommitSignal(db)
    verbs, forks, reports = Verbs(db, clock), Forks(db, clock), Reports(db, clock)
    jobs = JobService(store, verbs, forks, Explainer(db, clock), QuotaStore(db), signal)
    answers, watcher = RegistryAnswers(db, clock), LeaseWatcher(bus)
    await watcher.start()
    tasks.spawn("outbox", OutboxRelay(db, bus, OUTBOX, "jobs").run)
    tasks.spawn("figures", Figures(db).run)
    tasks.spawn("scheduler", Scheduler(db, clock, telemetry).run)
    tasks.spawn("leases", LeaseMonitor(fleet, watcher, clock).run)
    tasks.spawn("faults", FaultMonitor(db, bus, clock).run)
    tasks.spawn("departures", Departures(db, fleet, clock).run)
    tasks.spawn("external runs", SilenceMonitor(db, clock).run)

    async def hear(message: Delivery) -> None:
        await answers.hear(events_pb2.RegistryEvent.FromString(message.payload))

    heard = await bus.consume(
        "EVENTS", "jobs-registry", hear, filter_subjects=subjects.any_event("job", *HEARD)
    )

    server = RpcServer(
        telemetry,
        internal_authenticator(settings.internal_token),
        [
            (jobs_pb2_grpc.add_JobServiceServicer_to_server, jobs),
            (nodes_pb2_grpc.add_NodeServiceServicer_to_server, NodeService(fleet, reports, store, signal)),
            (
                external_pb2_grpc.add_ExternalRunServiceServicer_to_server,
                ExternalRunService(ExternalRuns(db, clock)),
            ),
        ],
        names=[
            jobs_pb2.DESCRIPTOR.services_by_name["JobService"].full_name,
            nodes_pb2.DESCRIPTOR.services_by_name["NodeService"].full_name,
            external_pb2.DESCRIPTOR.services_by_name["ExternalRunService"].full_name,
        ],
    )
    address = await server.start(settings.host, settings.port)

    async def stop() -> None:
        await server.stop()
        await heard.stop()
        await tasks.stop()
        await spans.stop()
        await bus.close()
        await db.close()

    async def ready() -> str:
        return "" if bus.connected_since() is not None else "waiting for the bus"

    return Running(address, stop, ready)


service = ServiceSpec("jobs", JobsSettings, build)
