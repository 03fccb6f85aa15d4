"""The world of a simulation: one jobs service, its database, the bus, a registry, nodes and a user."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import select
from sqlmodel import col

from tests.faults.sim.bus import Consumer, SimBus
from tests.faults.sim.database import SimDatabase
from tests.faults.sim.nodes import SimNode, SimRegistry
from tests.faults.sim.virtual import VirtualClock, VirtualIds, VirtualLoop
from tunesmith.api.jobs.v1 import jobs_pb2, spec_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.api.registry.v1 import events_pb2 as registry_pb2
from tunesmith.errors import Unavailable
from tunesmith_jobs import machine
from tunesmith_jobs.departures import Departures
from tunesmith_jobs.events import RegistryAnswers
from tunesmith_jobs.fleet import FleetStore
from tunesmith_jobs.leases import LeaseMonitor
from tunesmith_jobs.reports import Reports
from tunesmith_jobs.scheduler import Scheduler
from tunesmith_jobs.store import Caller, JobStore
from tunesmith_jobs.tables import METADATA, OUTBOX, JobRow
from tunesmith_jobs.verbs import Verbs
from tunesmith_kit import ids
from tunesmith_kit.lease import LeaseWatcher
from tunesmith_kit.outbox import OutboxRelay
from tunesmith_kit.tasks import Tasks

T = TypeVar("T")
USER = Caller("simulated")
NUM_NODES = 3
_GRACE = timedelta(seconds=2)


class Service:
    """The running jobs service: what dies with its process."""

    def __init__(self, world: "World") -> None:
        db, bus, clock = cast(Any, world.db), cast(Any, world.bus), world.clock
        self.store, self.fleet = JobStore(db, clock), FleetStore(db, clock)
        self.verbs, self.reports = Verbs(db, clock), Reports(db, clock)
        self.answers = RegistryAnswers(db, clock)
        self.tasks, self.watcher = Tasks(), LeaseWatcher(bus, clock.monotonic)
        self.tasks.spawn("outbox", OutboxRelay(db, bus, OUTBOX, "jobs").run)
        self.tasks.spawn("scheduler", Scheduler(db, clock).run)
        self.tasks.spawn("leases", LeaseMonitor(self.fleet, self.watcher, clock).run)
        self.tasks.spawn("departures", Departures(db, self.fleet, clock).run)

    async def register(self, request: nodes_pb2.RegisterNodeRequest) -> list[str]:
        """NodeService.RegisterNode; returns the attempts no longer in force."""
        return list((await self.fleet.register(request))[1])

    async def report(self, request: nodes_pb2.ReportAttemptRequest) -> int:
        """NodeService.ReportAttempt; returns what is wanted."""
        return int((await self.reports.take(request)).desired)


class World:
    """Everything, built from a seed. `run` lets virtual time pass."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        made = cast(Any, ids)
        self._real = made.os, made.time, made._last
        made.os = made.time = VirtualIds(random.Random(seed))
        made._last = 0
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.clock = VirtualClock(self.loop)
        self.db = SimDatabase(METADATA, self.rng)
        self.bus = SimBus(self.rng, self.loop)
        self.registry = SimRegistry(self.rng, self.bus)
        self.nodes = [SimNode(f"n{i}", self.rng, self._service, self.bus) for i in range(NUM_NODES)]
        self.service: Service | None = None
        self.accepted: dict[str, str] = {}  # request id -> job, for every call that was answered
        self.asked: dict[str, jobs_pb2.CreateJobRequest] = {}
        self._consume()
        self.do(self._begin)

    def _consume(self) -> None:
        consumers = self.bus.consumers
        heard = ("created", "output_ready", "checkpoint_committed")
        consumers["registry"] = Consumer(lambda s: s.rpartition(".")[2] in heard, self.registry.hear)
        answers = ("inputs_validated", "inputs_rejected", "version_registered", "version_rejected")
        consumers["jobs"] = Consumer(lambda s: s.rpartition(".")[2] in answers)
        for node in self.nodes:
            prefix = f"tunesmith.v1.cmd.node.{node.name}."
            consumers[node.name] = Consumer(partial(_begins, prefix), node.hear)

    async def _begin(self) -> None:
        self.loop.create_task(self.registry.run())
        await self.start_service()
        for node in self.nodes:
            node.start()

    def _service(self) -> Service:
        if self.service is None:
            raise Unavailable("SERVICE_UNAVAILABLE", "the jobs service is down: simulated")
        return self.service

    async def start_service(self) -> None:
        """The jobs service starts, if it is down."""
        if self.service is not None:
            return
        service = self.service = Service(self)
        await service.watcher.start()

        async def hear(subject: str, payload: bytes) -> None:
            await service.answers.hear(registry_pb2.RegistryEvent.FromString(payload))

        self.bus.consumers["jobs"].handler = hear

    async def kill_service(self) -> None:
        """The jobs service dies at once; the database stays."""
        service, self.service = self.service, None
        if service is not None:
            self.bus.consumers["jobs"].handler = None
            self.bus.forget_listeners()
            self.db.forget_listeners()
            await service.watcher.stop()
            await service.tasks.stop()

    def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Runs something to its end in virtual time."""
        done: T = self.loop.run_until_complete(cast(Any, work()))
        return done

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        self.do(lambda: asyncio.sleep(seconds))

    def call(self, work: Callable[[Service], Awaitable[T]], patience: float = 30.0) -> T | None:
        """A user's call, repeated while there is an outage; None when nobody answered in time.

        An answer may be lost although the call was heard.
        """

        async def insist() -> T | None:
            deadline = self.loop.time() + patience
            while self.loop.time() < deadline:
                try:
                    answer = await work(self._service())
                    if self.rng.random() >= self.bus.trouble:
                        return answer
                except Unavailable:
                    pass
                await asyncio.sleep(self.rng.uniform(0.1, 1))
            return None

        return self.do(insist)

    def submit(self, request_id: str, spec: spec_pb2.JobSpec) -> None:
        """Submits a job, or repeats an earlier submission."""
        request = jobs_pb2.CreateJobRequest(parent="projects/default", spec=spec, request_id=request_id)
        self.asked[request_id] = request
        job = self.call(lambda service: service.store.create(request, USER))
        if job is not None:
            known = self.accepted.setdefault(request_id, job.name)
            assert known == job.name, f"{request_id} made {known} and {job.name}"

    def jobs(self) -> dict[str, jobs_pb2.Job]:
        """Every job in the database, by name."""
        rows = self.db.look(lambda session: session.execute(select(col(JobRow.body))).scalars().all())
        return {job.name: job for job in map(jobs_pb2.Job.FromString, rows)}

    def unfinished(self) -> list[jobs_pb2.Job]:
        """Jobs that have not ended."""
        return [job for job in self.jobs().values() if job.state not in machine.TERMINAL]

    def close(self) -> None:
        """Ends all tasks and frees what was used."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.run(0.01)
        self.loop.close()
        asyncio.set_event_loop(None)
        self.db.close()
        made = cast(Any, ids)
        made.os, made.time, made._last = self._real


def _begins(prefix: str, subject: str) -> bool:
    return subject.startswith(prefix)


def spec(rng_value: int) -> spec_pb2.JobSpec:
    """A job: mostly plain, now and then with inputs that are not there, or of a higher priority."""
    made = spec_pb2.JobSpec(
        experiment="sim", base_model="missing" if rng_value % 13 == 0 else "tiny", dataset="sums"
    )
    made.training.max_steps = 10
    made.resources.priority = rng_value % 3
    made.retry.unreachable_grace.FromTimedelta(_GRACE)
    made.retry.max_infra_retries = 3
    return made
