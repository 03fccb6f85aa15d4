"""Quotas in the database: set, shown with what is used, and kept by the scheduler."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.jobs.stage import CALLER, Stage, stage
from tunesmith.api.jobs.v1 import queue_pb2


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(f"sqlite:///{tmp_path}/jobs.db") as found:
        yield found


async def get(jobs: Stage, project: str) -> queue_pb2.Quota:
    return (await jobs.quotas.get(queue_pb2.GetQuotaRequest(name=f"projects/{project}/quota"))).quota


async def test_a_project_without_a_quota_has_no_limits(jobs: Stage) -> None:
    assert await get(jobs, "a") == queue_pb2.Quota(name="projects/a/quota", weight=1)


async def test_a_quota_is_set_as_a_whole(jobs: Stage) -> None:
    assert (await jobs.set_quota("a", max_running_jobs=2, weight=3.0)).max_running_jobs == 2
    assert await get(jobs, "a") == queue_pb2.Quota(name="projects/a/quota", max_running_jobs=2, weight=3)
    await jobs.set_quota("a", max_gpus=4)
    assert await get(jobs, "a") == queue_pb2.Quota(name="projects/a/quota", max_gpus=4, weight=1)


async def test_a_repeated_request_sets_it_once(jobs: Stage) -> None:
    quota = queue_pb2.Quota(name="projects/a/quota", max_gpus=4)
    first = queue_pb2.SetQuotaRequest(request_id="r1", quota=quota)
    await jobs.quotas.set(first, CALLER)
    await jobs.set_quota("a", max_gpus=9)
    assert (await jobs.quotas.set(first, CALLER)).quota.max_gpus == 4, "the first answer"
    assert (await get(jobs, "a")).max_gpus == 9, "and no second effect"


async def test_what_is_used_is_shown(jobs: Stage) -> None:
    await jobs.node("n1", slots=4, gpus=4)
    await jobs.run("a", gpus_per_node=3)
    await jobs.run("a")
    await jobs.run("b")
    found = await get(jobs, "a")
    assert (found.running_jobs, found.gpus) == (2, 3)


async def test_the_scheduler_keeps_quotas_and_a_raise_starts_the_next_job(jobs: Stage) -> None:
    await jobs.node("n1", slots=4)
    await jobs.set_quota("a", max_running_jobs=1)
    names = [await jobs.queue("a") for _ in range(2)]
    other = await jobs.queue("b")
    assert await jobs.scheduler.run_once() == 2
    assert [await jobs.state(name) for name in (*names, other)] == ["STARTING", "QUEUED NEW", "STARTING"]
    assert await jobs.why(names[1]) == "QUOTA"
    await jobs.set_quota("a", max_running_jobs=2)
    assert await jobs.scheduler.run_once() == 1


async def test_a_quota_below_what_is_used_stops_nothing(jobs: Stage) -> None:
    await jobs.node("n1", slots=4)
    names = [await jobs.run("a") for _ in range(2)]
    await jobs.set_quota("a", max_running_jobs=1)
    await jobs.scheduler.run_once()
    assert {await jobs.state(name) for name in names} == {"RUNNING"}
