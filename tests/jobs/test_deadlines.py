"""Deadlines: a job that waits too long fails, one that trains too long stops with its checkpoint."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.jobs.stage import CALLER, Stage, stage
from tunesmith.api.jobs.v1 import jobs_pb2, spec_pb2, state_pb2, verbs_pb2
from tunesmith_jobs.scheduler import Scheduler


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(f"sqlite:///{tmp_path}/jobs.db") as found:
        yield found


def limits(**seconds: int) -> spec_pb2.DeadlineSpec:
    spec = spec_pb2.DeadlineSpec()
    for name, value in seconds.items():
        getattr(spec, name).seconds = value
    return spec


async def test_a_job_that_waits_too_long_fails_and_says_for_what_it_waited(jobs: Stage) -> None:
    name = await jobs.queue(deadlines=limits(queue=60))
    await jobs.scheduler.run_once()
    jobs.clock.pass_by(59)
    await jobs.scheduler.run_once()
    assert await jobs.state(name) == "QUEUED NEW"
    jobs.clock.pass_by(1)
    await jobs.scheduler.run_once()
    job = await jobs.get(name)
    assert job.state == state_pb2.JOB_STATE_FAILED
    assert job.failure.failure_class == state_pb2.FAILURE_CLASS_QUEUE_DEADLINE
    assert "no node has registered" in job.failure.message


async def test_without_a_deadline_what_no_node_can_run_waits_for_one(jobs: Stage) -> None:
    await jobs.node("n1", memory=1 << 30)
    name = await jobs.queue(memory_bytes=1 << 40)
    jobs.clock.pass_by(1e7)
    await jobs.scheduler.run_once()
    assert await jobs.state(name) == "QUEUED NEW"
    assert await jobs.why(name) == "UNSATISFIABLE"
    await jobs.node("n2", memory=1 << 41)
    await jobs.scheduler.run_once()
    assert await jobs.state(name) == "STARTING"
    assert await jobs.why(name) == "", "what kept it waiting is no longer said"


async def test_the_queue_deadline_counts_to_the_first_start_only(jobs: Stage) -> None:
    await jobs.node("n1")
    name = await jobs.run(deadlines=limits(queue=60))
    await jobs.report(name, "CHECKPOINTED")
    await jobs.fleet.set_reachable("n1", False)
    jobs.clock.pass_by(1000)
    await jobs.scheduler.run_once()
    assert (await jobs.state(name)).startswith("QUEUED")


async def test_a_job_that_trains_too_long_stops_with_a_checkpoint_and_fails(jobs: Stage) -> None:
    await jobs.node("n1")
    name = await jobs.run(deadlines=limits(run=100))
    jobs.clock.pass_by(70)
    await jobs.report(name, "CHECKPOINTED")
    jobs.clock.pass_by(500)  # time in the queue does not count
    await jobs.scheduler.run_once()
    await jobs.report(name, "LAUNCHING", "READY", "RUNNING")
    jobs.clock.pass_by(29)
    await jobs.scheduler.run_once()
    assert await jobs.state(name) == "RUNNING"
    jobs.clock.pass_by(1)
    await jobs.scheduler.run_once()
    assert await jobs.state(name) == "PAUSING RUN_DEADLINE"
    checkpoint = state_pb2.CheckpointRef(step=9, epoch=2, digest="c" * 64)
    await jobs.report(name, "CHECKPOINTED", checkpoint=checkpoint)
    job = await jobs.get(name)
    assert job.state == state_pb2.JOB_STATE_FAILED
    assert job.failure.failure_class == state_pb2.FAILURE_CLASS_RUN_DEADLINE
    assert job.checkpoint.step == 9, "the checkpoint is kept"


async def test_a_clock_that_is_set_ends_no_job(jobs: Stage) -> None:
    await jobs.node("n1")
    running = await jobs.run(deadlines=limits(run=100))
    waiting = await jobs.queue(deadlines=limits(queue=100))
    await jobs.scheduler.run_once()
    for hours in (5, -9):
        jobs.clock.day += timedelta(hours=hours)
        await jobs.scheduler.run_once()
        assert await jobs.state(running) == "RUNNING"
        assert await jobs.state(waiting) == "QUEUED NEW"
    jobs.clock.pass_by(100)
    await jobs.scheduler.run_once()
    assert await jobs.state(running) == "PAUSING RUN_DEADLINE"
    assert await jobs.state(waiting) == "FAILED"


async def test_a_scheduler_that_starts_later_knows_how_long_it_has_been(jobs: Stage) -> None:
    name = await jobs.queue(deadlines=limits(queue=60))
    jobs.clock.pass_by(61)
    await Scheduler(jobs.db, jobs.clock).run_once()
    assert await jobs.state(name) == "FAILED"


async def test_a_deadline_can_be_moved(jobs: Stage) -> None:
    name = await jobs.queue(deadlines=limits(queue=60))
    await jobs.scheduler.run_once()
    await jobs.verbs.update(verbs_pb2.UpdateJobRequest(name=name, deadlines=limits(queue=600)), CALLER)
    jobs.clock.pass_by(61)
    await jobs.scheduler.run_once()
    assert await jobs.state(name) == "QUEUED NEW"


@pytest.mark.parametrize(("verb", "end"), [("pause", "PAUSED"), ("cancel", "CANCELLED")])
async def test_a_stop_that_nobody_answers_ends_with_the_lease(jobs: Stage, verb: str, end: str) -> None:
    await jobs.node("n1")
    name = await jobs.run()
    requests = {"pause": verbs_pb2.PauseJobRequest(name=name), "cancel": jobs_pb2.CancelJobRequest(name=name)}
    await getattr(jobs.verbs, verb)(requests[verb], CALLER)
    await jobs.fleet.set_reachable("n1", False)
    await jobs.fleet.give_up(name.rsplit("/", 1)[1], 1, "n1")
    assert await jobs.state(name) == end
