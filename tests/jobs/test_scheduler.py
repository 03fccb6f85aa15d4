"""The scheduler on a real database: what is decided is applied once, by however many replicas."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from tests.jobs.stage import CALLER, Stage, stage
from tests.support import postgres
from tunesmith.api.jobs.v1 import jobs_pb2, queue_pb2, verbs_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs import census, moves
from tunesmith_jobs.change import save_node
from tunesmith_jobs.needs import Waiting
from tunesmith_jobs.placement import Placement, Preemption
from tunesmith_jobs.reservation import Reservations
from tunesmith_jobs.scheduler import Scheduler
from tunesmith_jobs.tables import AttemptRow
from tunesmith_kit import db
from tunesmith_kit.db import Database


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Postgres]:
    with postgres.running() as found:
        yield found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.distributed)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    return empty(request.getfixturevalue("server"))


def empty(server: postgres.Postgres) -> str:
    """Removes what the service has in a PostgreSQL database and returns its URL."""
    engine = create_engine(db.normalise(server.url))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA IF EXISTS jobs CASCADE"))
    engine.dispose()
    return server.url


@pytest.fixture
async def jobs(url: str) -> AsyncIterator[Stage]:
    async with stage(url) as found:
        yield found


def key(name: str) -> str:
    return name.rsplit("/", 1)[1]


async def test_a_pass_starts_what_fits_and_says_why_the_rest_waits(jobs: Stage) -> None:
    names = [await jobs.queue() for _ in range(3)]
    assert await jobs.scheduler.run_once() == 0
    assert [await jobs.why(name) for name in names] == ["NO_NODES"] * 3
    await jobs.node("n1", slots=2)
    assert await jobs.scheduler.run_once() == 2
    assert [await jobs.state(name) for name in names] == ["STARTING", "STARTING", "QUEUED NEW"]
    assert [await jobs.why(name) for name in names] == ["", "", "NO_FREE_SLOT"]
    node = await jobs.fleet.get("nodes/n1")
    assert sorted(node.jobs) == sorted(names[:2])


async def test_a_reason_that_stays_is_written_once(jobs: Stage) -> None:
    name = await jobs.queue()
    await jobs.scheduler.run_once()
    revision = (await jobs.get(name)).revision
    await jobs.scheduler.run_once()
    assert (await jobs.get(name)).revision == revision


async def test_every_waiting_job_is_looked_at_and_told(jobs: Stage) -> None:
    """The last of many is the only one that fits: it must not be cut off."""
    await jobs.node("n1")
    for _ in range(150):
        await jobs.queue(memory_bytes=1 << 50)
    last = await jobs.queue()
    assert await jobs.scheduler.run_once() == 1
    assert await jobs.state(last) == "STARTING"
    await jobs.scheduler.run_once()
    listed = await jobs.store.list(jobs_pb2.ListJobsRequest(parent="projects/default", page_size=1000))
    reasons = [c.reason for job in listed.jobs for c in job.conditions]
    assert reasons == ["UNSATISFIABLE"] * 150


async def test_a_job_goes_back_to_the_node_with_its_snapshots(jobs: Stage) -> None:
    await jobs.node("n1")
    await jobs.node("n2")
    name = await jobs.run(node="")
    at = (await jobs.attempt(name)).nodes[0]
    other = await jobs.run()
    await jobs.report(name, "CHECKPOINTED")
    await jobs.report(other, "CHECKPOINTED")
    await jobs.scheduler.run_once()
    assert (await jobs.attempt(name)).nodes == [at]


async def test_a_node_that_failed_a_job_twice_is_avoided(jobs: Stage) -> None:
    await jobs.node("n1")
    name = await jobs.run()
    failure = {"failure_class": "FAILURE_CLASS_INFRA", "reason": "DISK", "message": "broken"}
    await jobs.report(name, "FAILED", failure=failure)
    await jobs.scheduler.run_once()
    await jobs.report(name, "LAUNCHING", "FAILED", failure=failure)
    await jobs.node("n2")
    await jobs.scheduler.run_once()
    assert (await jobs.attempt(name)).nodes == ["n2"]


async def test_preempted_jobs_checkpoint_and_come_back_after_the_one_they_gave_way_to(jobs: Stage) -> None:
    await jobs.node("n1")
    low = await jobs.run()
    high, idle = await jobs.queue(priority=5), await jobs.queue(priority=-1)
    await jobs.scheduler.run_once()
    assert await jobs.state(low) == "PAUSING PREEMPTED"
    assert await jobs.why(high) == "ROOM_PROMISED"
    await jobs.scheduler.run_once()
    assert await jobs.state(low) == "PAUSING PREEMPTED", "told once"
    await jobs.report(low, "STOPPING", "CHECKPOINTED")
    assert await jobs.state(low) == "QUEUED PREEMPTED"
    await jobs.scheduler.run_once()
    assert [await jobs.state(name) for name in (high, low, idle)] == [
        "STARTING",
        "QUEUED PREEMPTED",
        "QUEUED NEW",
    ]
    await jobs.report(high, "LAUNCHING", "READY", "RUNNING", "COMPLETED")
    await jobs.scheduler.run_once()
    assert await jobs.state(low) == "STARTING"


async def test_a_higher_priority_given_later_counts_in_the_next_pass(jobs: Stage) -> None:
    await jobs.node("n1")
    low, other = await jobs.run(), await jobs.queue()
    await jobs.scheduler.run_once()
    assert await jobs.state(low) == "RUNNING"
    await jobs.verbs.update(verbs_pb2.UpdateJobRequest(name=other, priority=1), CALLER)
    await jobs.scheduler.run_once()
    assert await jobs.state(low) == "PAUSING PREEMPTED"


async def test_a_scheduler_of_another_replica_takes_up_where_the_first_left(jobs: Stage) -> None:
    """The second knows nothing but the database: the promise of a room is there."""
    await jobs.node("n1")
    await jobs.node("n2")
    lows = [await jobs.run(), await jobs.run()]
    await jobs.queue(priority=5)
    await jobs.scheduler.run_once()
    await Scheduler(jobs.db, jobs.clock).run_once()
    assert sorted([await jobs.state(name) for name in lows]) == ["PAUSING PREEMPTED", "RUNNING"]


async def test_a_decision_that_has_become_wrong_is_not_applied(jobs: Stage) -> None:
    await jobs.node("n1", slots=2, gpus=2)
    await jobs.set_quota("a", max_running_jobs=1)
    one, two, three = await jobs.queue("a"), await jobs.queue("a"), await jobs.queue(gpus_per_node=2)
    picture, reservations = census.Census(jobs.clock), Reservations(jobs.clock)
    await jobs.db.read(picture.refresh)

    async def place(name: str, gpus: tuple[int, ...] = ()) -> int:
        decided = Placement(picture.waiting[key(name)], ("n1",), (gpus,))
        return len(await jobs.db.write(lambda session: reservations.place(session, [decided])))

    assert await place(one) == 1
    assert await place(one) == 0, "it has started"
    assert await place(two) == 0, "the quota is used up"
    assert await place(three, (0, 1)) == 1
    await jobs.set_quota("a")
    assert await place(two) == 0, "no slot is left"

    victim = (await jobs.attempt(three)).epoch
    await jobs.db.read(picture.refresh)
    decided = Preemption(picture.waiting[key(two)], (picture.running[key(three)],))
    assert victim == decided.victims[0].epoch
    assert await jobs.db.write(lambda session: reservations.preempt(session, decided))
    assert not await jobs.db.write(lambda session: reservations.preempt(session, decided)), "it stops already"


async def test_two_replicas_do_not_both_make_room_for_one_job(jobs: Stage) -> None:
    await jobs.node("n1", slots=2)
    lows, high = [await jobs.run(), await jobs.run()], await jobs.queue(priority=5)
    picture, reservations = census.Census(jobs.clock), Reservations(jobs.clock)
    await jobs.db.read(picture.refresh)
    done = []
    for low in lows:  # each replica has chosen another victim
        decided = Preemption(picture.waiting[key(high)], (picture.running[key(low)],))
        done.append(await jobs.db.write(lambda session, d=decided: reservations.preempt(session, d)))  # type: ignore[misc]
    assert done == [True, False]
    assert [await jobs.state(low) for low in lows] == ["PAUSING PREEMPTED", "RUNNING"]


async def test_schedulers_side_by_side_give_nothing_twice(jobs: Stage, url: str) -> None:
    """Each has its own connection to the database, as replicas have."""
    for number in range(6):
        await jobs.node(f"n{number}", slots=2, gpus=2)
    await jobs.set_quota("b", max_running_jobs=3, max_gpus=2)
    for number in range(24):
        await jobs.queue("ab"[number % 2], gpus_per_node=number % 3, priority=number % 2)
    others = [Database(url, "jobs") for _ in range(2)]
    try:
        schedulers = [Scheduler(each, jobs.clock) for each in (jobs.db, *others)]
        for _ in range(8):
            await asyncio.gather(*(scheduler.run_once() for scheduler in schedulers))
    finally:
        for each in others:
            await each.close()

    live = select(AttemptRow).where(AttemptRow.ended.is_(False))  # type: ignore[attr-defined]
    attempts = await jobs.db.read(lambda session: session.execute(live).scalars().all())
    given = [(node, gpu) for attempt in attempts for node, gpus in attempt.places for gpu in gpus]
    assert len(given) == len(set(given)), "a GPU was given twice"
    for number in range(6):
        assert sum(attempt.node == f"n{number}" for attempt in attempts) <= 2
    used = (await jobs.quotas.get(queue_pb2.GetQuotaRequest(name="projects/b/quota"))).quota
    assert used.running_jobs <= 3
    assert used.gpus <= 2
    assert len(attempts) >= 9, "they got on with it"
    assert len({(attempt.job_id, attempt.epoch) for attempt in attempts}) == len(attempts)
    nodes = (await jobs.fleet.list(nodes_pb2.ListNodesRequest())).nodes
    assert sum(len(node.jobs) for node in nodes) == len(attempts)


async def test_the_census_kept_up_to_date_is_the_one_read_anew(jobs: Stage) -> None:
    kept = census.Census(jobs.clock)

    async def check() -> None:
        fresh = census.Census(jobs.clock)
        await jobs.db.read(kept.refresh)
        await jobs.db.read(fresh.refresh)
        assert (kept.waiting, kept.running, kept.nodes, kept.quotas) == (
            fresh.waiting, fresh.running, fresh.nodes, fresh.quotas,
        )  # fmt: skip
        assert kept.revision == fresh.revision

    await check()
    await jobs.node("n1", gpus=2)
    name = await jobs.queue(gpus_per_node=1)
    await check()
    await jobs.set_quota("default", max_gpus=2)
    await jobs.scheduler.run_once()
    await check()
    await jobs.report(name, "LAUNCHING", "READY", "RUNNING")
    await check()
    await jobs.verbs.pause(verbs_pb2.PauseJobRequest(name=name), CALLER)
    await check()
    await jobs.report(name, "CHECKPOINTED")
    await jobs.fleet.cordon(nodes_pb2.CordonNodeRequest(name="nodes/n1"), CALLER)
    await check()
    assert not kept.waiting
    await jobs.verbs.resume(verbs_pb2.ResumeJobRequest(name=name), CALLER)
    await check()
    await jobs.verbs.cancel(jobs_pb2.CancelJobRequest(name=name), CALLER)
    await check()
    kept.revision, kept.waiting = 1_000_000, {"gone": Waiting("gone")}
    await check()  # a backup was put back: everything is read anew


@pytest.mark.distributed
async def test_a_lease_that_comes_back_opens_no_node_that_is_being_closed(server: postgres.Postgres) -> None:
    """Another replica's cordon is not committed yet when this one hears of the lease."""
    locked, commit = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def cordon(session: Session) -> None:
        row = moves.node_row(session, "n1")
        node = nodes_pb2.Node.FromString(row.body)
        node.state = nodes_pb2.NODE_STATE_CORDONED
        save_node(session, row, node, datetime.now(UTC))
        loop.call_soon_threadsafe(locked.set)
        assert commit.wait(90)

    def waits(session: Session) -> bool:
        held = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool(session.execute(held).scalar_one())

    async with stage(empty(server)) as jobs:
        await jobs.node("n1")
        await jobs.fleet.set_reachable("n1", False)
        other = Database(server.url, "jobs")
        try:
            cordoning = asyncio.create_task(other.write(cordon))
            await locked.wait()
            hearing = asyncio.create_task(jobs.fleet.set_reachable("n1", True))
            while not await other.read(waits):
                pass
            commit.set()
            await asyncio.gather(cordoning, hearing)
        finally:
            commit.set()
            await other.close()
        (node,) = (await jobs.fleet.list(nodes_pb2.ListNodesRequest())).nodes
        assert node.state == nodes_pb2.NODE_STATE_CORDONED
