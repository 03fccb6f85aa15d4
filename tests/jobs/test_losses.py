"""What faults cost a job, to the second, by a clock that is set."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.stage import CALLER, Stage, stage
from tunesmith.api.jobs.v1 import state_pb2, verbs_pb2

_CRASH = state_pb2.Failure(failure_class=state_pb2.FAILURE_CLASS_INFRA, reason="PROCESS_DIED")


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(f"sqlite:///{tmp_path}/jobs.db") as found:
        await found.node("n1")
        yield found


async def _progress(jobs: Stage, name: str, step: int, seconds: float) -> None:
    progress = state_pb2.Progress(step=step, training_seconds=seconds)
    progress.time.FromDatetime(jobs.clock.now())
    await jobs.report(name, "RUNNING", progress=progress)


async def _fail(jobs: Stage, name: str, failure: state_pb2.Failure = _CRASH) -> None:
    await jobs.report(name, "FAILED", failure=failure)


async def _again(jobs: Stage, name: str, after: float, **what: Any) -> state_pb2.Attempt:
    """Starts the next attempt, which trains so many seconds from now."""
    await jobs.scheduler.run_once()
    await jobs.report(name, "LAUNCHING", "READY")
    jobs.clock.pass_by(after)
    await jobs.report(name, "RUNNING", **what)
    return await jobs.attempt(name)


async def test_a_fault_costs_the_time_until_training_stands_there_again(jobs: Stage) -> None:
    name = await jobs.run()
    jobs.clock.pass_by(100)
    await _progress(jobs, name, 50, 100)
    jobs.clock.pass_by(10)  # it may have trained on unseen, until it died
    await _fail(jobs, name)
    # Ten steps of 2 s each are trained again: 10 s unseen, 5 s down, 20 s again.
    assert (await _again(jobs, name, 5, resumed_step=40)).lost_seconds == pytest.approx(35)
    assert (await jobs.get(name)).lost_seconds == pytest.approx(35)
    jobs.clock.pass_by(60)
    await _progress(jobs, name, 70, 60)
    jobs.clock.pass_by(10)
    await _fail(jobs, name)
    # A snapshot kept the three steps (of 2 s) that nobody had heard of: 10 s unseen less 6, and 5 s down.
    assert (await _again(jobs, name, 5, resumed_step=73)).lost_seconds == pytest.approx(9)
    assert (await jobs.get(name)).lost_seconds == pytest.approx(44)


async def test_reports_that_come_again_cost_nothing_more(jobs: Stage) -> None:
    name = await jobs.run()
    jobs.clock.pass_by(10)
    await _progress(jobs, name, 5, 10)
    await _fail(jobs, name)
    await _again(jobs, name, 7, resumed_step=5)
    jobs.clock.pass_by(30)
    await _progress(jobs, name, 20, 30)
    assert (await jobs.get(name)).lost_seconds == pytest.approx(7)


async def test_rest_is_no_loss_and_a_start_that_failed_is(jobs: Stage) -> None:
    name = await jobs.run()
    jobs.clock.pass_by(10)
    await _progress(jobs, name, 5, 10)
    await jobs.verbs.pause(verbs_pb2.PauseJobRequest(name=name), CALLER)
    await jobs.report(name, "CHECKPOINTED")
    jobs.clock.pass_by(3600)
    await jobs.verbs.resume(verbs_pb2.ResumeJobRequest(name=name), CALLER)
    await jobs.scheduler.run_once()
    await jobs.report(name, "LAUNCHING")
    jobs.clock.pass_by(4)
    await _fail(jobs, name)
    assert (await _again(jobs, name, 5, resumed_step=5)).lost_seconds == pytest.approx(9)


async def test_what_it_computed_with_is_kept_and_told_once(jobs: Stage) -> None:
    name = await jobs.run()
    told = {f"part_{number:02}": str(number) for number in range(40)}
    await jobs.report(name, "RUNNING", environment=told)
    before = (await jobs.get(name)).revision
    assert dict((await jobs.attempt(name)).environment) == told
    await jobs.report(name, "RUNNING", environment=told)
    await jobs.report(name, "RUNNING")
    assert dict((await jobs.attempt(name)).environment) == told
    assert (await jobs.get(name)).revision == before, "nothing was news"
