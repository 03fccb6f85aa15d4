"""What the scheduler does at scale: 10,000 queued jobs on 1,000 simulated nodes, on SQLite with real commits.

`python -m bench.scheduler [--jobs N] [--nodes N] [--seconds N]`. First the passes alone, then the whole
service over gRPC with clients that list jobs while it schedules. The clients share the service's process, so
their figures hold what they cost it too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from unittest.mock import patch

import uvloop
from sqlalchemy.orm import Session

from tests.support.service import Harness, service
from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, jobs_pb2_grpc, spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith_jobs import machine
from tunesmith_jobs.census import Census
from tunesmith_jobs.change import JobChange
from tunesmith_jobs.fleet import FleetStore
from tunesmith_jobs.placement import Decision, decide
from tunesmith_jobs.reservation import Reservations
from tunesmith_jobs.store import Caller, JobStore
from tunesmith_jobs.tables import METADATA, JobRow
from tunesmith_kit import migrate, subjects
from tunesmith_kit.clock import SystemClock
from tunesmith_kit.consumer import Delivery
from tunesmith_kit.db import Database
from tunesmith_kit.lease import Lease, lease_key
from tunesmith_kit.pauses import short_pauses

_PROJECTS, _PRIORITIES, _PASSES = 7, 3, 5
_CHUNK = 500
TARGETS = {
    "scheduler_decisions_per_s": ">= 1000",
    "list_jobs_p99_ms": "<= 100",
    "control_event_p99_ms": "<= 10",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs in the queue")
    parser.add_argument("--nodes", type=int, default=1_000, help="nodes of the fleet, a slot and a GPU each")
    parser.add_argument("--seconds", type=float, default=10, help="how long jobs are listed, busy and quiet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(uvloop.run(measure(options, Path(folder))))


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """All figures. The passes work on a copy: the service finds all jobs waiting and all nodes free."""
    found: dict[str, float] = {}
    async with database(folder / "jobs.db") as db:
        found |= await fill(db, options.jobs, options.nodes)
    shutil.copy(folder / "jobs.db", folder / "copy.db")
    async with database(folder / "copy.db") as db:
        found |= await passes(db)
    async with short_pauses():  # as in the process of a service
        async with service("jobs", folder) as harness, simulated(harness, options.nodes):
            found |= await serve(harness, options.seconds)
        async with service("jobs", folder / "empty") as harness:
            times = await event_times(harness)
    return found | {
        "control_event_p50_ms": percentile(times, 50),
        "control_event_p99_ms": percentile(times, 99),
    }


@asynccontextmanager
async def database(path: Path) -> AsyncIterator[Database]:
    """The service's database, opened and closed; closing leaves all in one file."""
    await asyncio.to_thread(migrate.upgrade, f"sqlite:///{path}", "jobs", METADATA)
    db = Database(f"sqlite:///{path}", "jobs")
    try:
        yield db
    finally:
        await db.close()


@asynccontextmanager
async def simulated(harness: Harness, nodes: int) -> AsyncIterator[None]:
    """Agents that hold their leases and say of each attempt assigned to them that it trains."""
    stub: nodes_pb2_grpc.NodeServiceAsyncStub = nodes_pb2_grpc.NodeServiceStub(harness.channel)

    async def hear(message: Delivery) -> None:
        command = node_events_pb2.NodeCommand.FromString(message.payload)
        node = message.subject.split(".")[4]
        for state in (state_pb2.ATTEMPT_STATE_LAUNCHING, state_pb2.ATTEMPT_STATE_RUNNING):
            request = nodes_pb2.ReportAttemptRequest(
                job=command.job, epoch=command.epoch, node=node, state=state
            )
            await stub.ReportAttempt(request, metadata=harness.metadata)

    leases = [Lease(harness.bus, lease_key("node", name_of(number)), "bench") for number in range(nodes)]
    commands = [f"{subjects.ROOT}.cmd.node.>"]
    consumer = await harness.bus.consume("CMD", "bench-nodes", hear, filter_subjects=commands, concurrency=8)
    try:
        for lease in leases:
            lease.start()
        yield
    finally:
        await consumer.stop()
        for lease in leases:
            lease.stop()


async def fill(db: Database, jobs: int, nodes: int) -> dict[str, float]:
    """Queues jobs of several projects, priorities and sizes, and enters nodes."""
    clock, store = SystemClock(), JobStore(db, SystemClock())
    began = time.perf_counter()

    def validate(name: str) -> Awaitable[object]:
        def act(session: Session) -> None:
            row = session.get_one(JobRow, name.rsplit("/", 1)[1])
            change = JobChange(session, row, "bench", clock.now())
            change.move(machine.after_inputs(valid=True))
            change.save()

        return db.write(act)

    async def submit(number: int) -> None:
        resources = spec_pb2.ResourceSpec(
            priority=number % _PRIORITIES, gpus_per_node=number % 2, memory_bytes=(1 + number % 5) << 30
        )
        spec = spec_pb2.JobSpec(base_model="tiny", dataset="sums", resources=resources)
        parent = f"projects/p{number % _PROJECTS}"
        job = await store.create(jobs_pb2.CreateJobRequest(parent=parent, spec=spec), Caller("bench"))
        await validate(job.name)

    for first in range(0, jobs, _CHUNK):
        await asyncio.gather(*(submit(number) for number in range(first, min(first + _CHUNK, jobs))))
    accepted = time.perf_counter() - began
    await add_nodes(db, nodes)
    return {"accepted_per_s": jobs / accepted}


def name_of(number: int) -> str:
    return f"bench-{number:05}"


async def add_nodes(db: Database, nodes: int) -> None:
    """Enters nodes with a slot and a GPU each."""
    fleet = FleetStore(db, SystemClock())
    capacity = nodes_pb2.NodeCapacity(slots=1, memory_bytes=1 << 36, gpus=[nodes_pb2.Gpu(index=0)])

    async def join(number: int) -> None:
        request = nodes_pb2.RegisterNodeRequest(node_id=name_of(number), capacity=capacity)
        await fleet.register(request)

    for first in range(0, nodes, _CHUNK):
        await asyncio.gather(*(join(number) for number in range(first, min(first + _CHUNK, nodes))))


async def passes(db: Database) -> dict[str, float]:
    """Passes alone: what one decides, cold and warm, and what is committed of it."""
    clock = SystemClock()
    census, reservations = Census(clock), Reservations(clock)

    async def one() -> tuple[float, int]:
        began = time.perf_counter()
        await db.read(census.refresh)
        decision = decide(
            census.waiting.values(),
            census.nodes.values(),
            census.running.values(),
            census.quotas,
            time.time(),
        )
        return time.perf_counter() - began, len(decision.placements) + len(decision.blocked)

    cold, decided = await one()
    warm = statistics.median([(await one())[0] for _ in range(_PASSES)])
    placements = decided_by(census).placements
    began = time.perf_counter()
    for first in range(0, len(placements), 16):
        batch = placements[first : first + 16]
        await db.write(lambda session, b=batch: reservations.place(session, b))  # type: ignore[misc]
    return {
        "scheduler_cold_pass_ms": cold * 1e3,
        "scheduler_pass_ms": warm * 1e3,
        "scheduler_decisions_per_s": decided / warm,
        "scheduler_placements_per_s": len(placements) / (time.perf_counter() - began),
    }


def decided_by(census: Census) -> Decision:
    """What a pass decides upon a census."""
    waiting, nodes, running = census.waiting.values(), census.nodes.values(), census.running.values()
    return decide(waiting, nodes, running, census.quotas, time.time())


async def serve(harness: Harness, seconds: float) -> dict[str, float]:
    """Lists jobs while the service fills the fleet and notes why the rest waits, then once that is done."""
    stub: jobs_pb2_grpc.JobServiceAsyncStub = jobs_pb2_grpc.JobServiceStub(harness.channel)
    busy = await listing(harness, stub, seconds)
    events = await event_times(harness)
    quiet = await listing(harness, stub, seconds / 2)
    return {
        "list_jobs_p50_ms": percentile(busy, 50),
        "list_jobs_p99_ms": percentile(busy, 99),
        "list_jobs_late_p99_ms": percentile(quiet, 99),
        "control_event_busy_p50_ms": percentile(events, 50),
        "control_event_busy_p99_ms": percentile(events, 99),
    }


async def listing(harness: Harness, stub: jobs_pb2_grpc.JobServiceAsyncStub, seconds: float) -> list[float]:
    """Milliseconds of calls that walk through all jobs in pages of the default size, two clients at once."""
    until = time.perf_counter() + seconds

    async def client(number: int) -> list[float]:
        times, token = [], ""
        while time.perf_counter() < until:
            request = jobs_pb2.ListJobsRequest(parent=f"projects/p{number}", page_token=token)
            began = time.perf_counter()
            answer = await stub.ListJobs(request, metadata=harness.metadata)
            times.append((time.perf_counter() - began) * 1e3)
            token = answer.next_page_token
        return times

    return [took for times in await asyncio.gather(client(0), client(1)) for took in times]


async def event_times(harness: Harness, events: int = 300) -> list[float]:
    """Milliseconds from the moment the service knows of an event's commit to a durable consumer."""
    stub: jobs_pb2_grpc.JobServiceAsyncStub = jobs_pb2_grpc.JobServiceStub(harness.channel)
    arrived: dict[str, float] = {}
    heard = asyncio.Event()

    async def hear(message: Delivery) -> None:
        arrived[events_pb2.JobEvent.FromString(message.payload).job] = time.perf_counter()
        heard.set()

    created = f"{subjects.ROOT}.late.job.*.evt.created"
    consumer = await harness.bus.consume("EVENTS", "bench", hear, filter_subjects=[created])
    spec = spec_pb2.JobSpec(base_model="tiny", dataset="sums")
    with committed() as commits:
        for _ in range(events):
            heard.clear()
            await stub.CreateJob(
                jobs_pb2.CreateJobRequest(parent="projects/late", spec=spec), metadata=harness.metadata
            )
            await heard.wait()
    await consumer.stop()
    return [(arrived[job] - at) * 1e3 for job, at in commits.items()]


@contextmanager
def committed() -> Iterator[dict[str, float]]:
    """When each job's creation was known to be committed, by name."""
    create, commits = JobStore.create, {}

    async def timed(self: JobStore, request: jobs_pb2.CreateJobRequest, caller: Caller) -> jobs_pb2.Job:
        job = await create(self, request, caller)
        commits[job.name] = time.perf_counter()
        return job

    with patch.object(JobStore, "create", timed):
        yield commits


def percentile(values: list[float], which: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[which - 1]


def report(found: dict[str, float]) -> None:
    write = sys.stdout.write
    write(f"{'figure':<30}{'value':>12}{'target':>10}\n")
    for name, value in found.items():
        write(f"{name:<30}{value:>12.1f}{TARGETS.get(name, ''):>10}\n")
    write(json.dumps({name: round(value, 3) for name, value in found.items()}) + "\n")


if __name__ == "__main__":
    main()
