"""The jobs service through its rpcs and the bus: accepted once, validated, scheduled, followed, ended."""

import asyncio
from pathlib import Path

import grpc
import pytest

from tests.jobs.hands import PARENT, Jobs
from tests.support.service import running_on, service, until
from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.registry.v1 import events_pb2 as registry_events_pb2
from tunesmith.errors import TunesmithError
from tunesmith.status import from_rpc_error
from tunesmith_kit import subjects
from tunesmith_kit.connection import Message
from tunesmith_kit.ids import new_ulid


async def test_a_job_goes_from_submit_to_a_registered_version(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    assign = await jobs.command("assign")
    assert assign.epoch == 1
    assert assign.assign.spec.training.micro_batch_size == 4, "defaults are filled in"
    assert assign.assign.base_model_digest == "a" * 64
    progress = state_pb2.Progress(step=3, total_steps=10, loss=2.5, first_loss=3.0)
    await jobs.report(job, progress=progress)
    assert (await jobs.get(job.name)).progress.step == 3
    await jobs.report(job, state="ATTEMPT_STATE_COMPLETED", output_digest="c" * 64)
    await jobs.reaches(job.name, state_pb2.JOB_STATE_FINALIZING)
    registered = registry_events_pb2.ModelVersionRegistered(job=job.name)
    registered.version.name = "projects/default/models/job/versions/1"
    await jobs.answer(job, "version_registered", model_version_registered=registered)
    done = await jobs.reaches(job.name, state_pb2.JOB_STATE_SUCCEEDED)
    assert done.model_version == "projects/default/models/job/versions/1"
    assert done.terminal
    assert not done.active
    events = await jobs.call(jobs.jobs.ListJobEvents, jobs_pb2.ListJobEventsRequest(parent=job.name))
    assert isinstance(events, jobs_pb2.ListJobEventsResponse)
    states = [e.state_changed.to_state for e in events.events if e.HasField("state_changed")]
    assert states == [
        state_pb2.JOB_STATE_QUEUED,
        state_pb2.JOB_STATE_STARTING,
        state_pb2.JOB_STATE_RUNNING,
        state_pb2.JOB_STATE_FINALIZING,
        state_pb2.JOB_STATE_SUCCEEDED,
    ]


async def test_a_repeated_request_makes_one_job_and_a_different_one_is_refused(jobs: Jobs) -> None:
    first, again = await asyncio.gather(jobs.submit("r1"), jobs.submit("r1"))
    assert first.name == again.name
    with pytest.raises(TunesmithError) as caught:
        await jobs.submit("r1", experiment="other")
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_wrong_fields_are_refused_all_at_once(jobs: Jobs) -> None:
    with pytest.raises(TunesmithError) as caught:
        await jobs.submit(
            experiment="a/b*", training=spec_pb2.TrainingSpec(learning_rate=-1, num_epochs=float("inf"))
        )
    assert caught.value.reason == "FIELD_INVALID"
    paths = {v.path for v in caught.value.violations}
    assert paths == {"spec.experiment", "spec.training.learning_rate", "spec.training.num_epochs"}


async def test_rejected_inputs_fail_the_job_with_every_reason(jobs: Jobs) -> None:
    job = await jobs.submit()
    rejected = registry_events_pb2.JobInputsRejected(job=job.name)
    rejected.errors.add(reason="DATASET_NOT_FOUND", message="there is no dataset sums", remedy="import it")
    await jobs.answer(job, "inputs_rejected", job_inputs_rejected=rejected)
    failed = await jobs.reaches(job.name, state_pb2.JOB_STATE_FAILED)
    assert failed.failure.failure_class == state_pb2.FAILURE_CLASS_INVALID_INPUT
    assert failed.failure.remedy == "import it"


async def test_a_waiting_job_says_why_it_waits(jobs: Jobs) -> None:
    job = await jobs.submit(resources=spec_pb2.ResourceSpec(gpus_per_node=8))
    await jobs.join()
    await jobs.validate(job)

    async def look() -> str | None:
        conditions = (await jobs.get(job.name)).conditions
        return conditions[0].reason if conditions else None

    assert await until(look, "a reason") == "UNSATISFIABLE"


async def test_higher_priority_goes_first(jobs: Jobs) -> None:
    low = await jobs.submit(resources=spec_pb2.ResourceSpec(priority=1))
    high = await jobs.submit(resources=spec_pb2.ResourceSpec(priority=5))
    for job in (low, high):
        await jobs.validate(job)
    for job in (low, high):
        await jobs.reaches(job.name, state_pb2.JOB_STATE_QUEUED)
    await jobs.join()
    assert (await jobs.command("assign")).job == high.name


async def test_a_crashed_trainer_gets_a_new_attempt_from_the_last_checkpoint(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    await jobs.report(job, checkpoint=state_pb2.CheckpointRef(step=7, epoch=1, digest="d" * 64))
    failure = state_pb2.Failure(failure_class=state_pb2.FAILURE_CLASS_INFRA, reason="PROCESS_DIED")
    await jobs.report(job, state="ATTEMPT_STATE_FAILED", failure=failure)
    second = await jobs.command("assign", 2)
    assert (second.epoch, second.assign.checkpoint_step) == (2, 7)
    assert second.assign.checkpoint_digest == "d" * 64
    with pytest.raises(TunesmithError) as caught:
        await jobs.report(job, epoch=1, progress=state_pb2.Progress(step=99))
    assert caught.value.reason == "STALE_EPOCH"
    assert (await jobs.get(job.name)).progress.step != 99


async def test_the_same_end_reported_twice_is_accepted_once(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    for _ in range(2):
        await jobs.report(job, state="ATTEMPT_STATE_COMPLETED", output_digest="c" * 64)
    events = await jobs.call(jobs.jobs.ListJobEvents, jobs_pb2.ListJobEventsRequest(parent=job.name))
    assert isinstance(events, jobs_pb2.ListJobEventsResponse)
    assert sum(e.HasField("output_ready") for e in events.events) == 1


async def test_cancel_tells_the_node_and_ends_when_it_has_stopped(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    await jobs.call(jobs.jobs.CancelJob, jobs_pb2.CancelJobRequest(name=job.name))
    await jobs.command("stop")
    assert (await jobs.get(job.name)).state == state_pb2.JOB_STATE_CANCELLING
    answer = await jobs.report(job, progress=state_pb2.Progress(step=1))
    assert answer.desired == state_pb2.DESIRED_CANCEL, "a lost command comes with the next answer"
    await jobs.report(job, state="ATTEMPT_STATE_CHECKPOINTED")
    await jobs.reaches(job.name, state_pb2.JOB_STATE_CANCELLED)
    with pytest.raises(TunesmithError) as caught:
        await jobs.call(jobs.jobs.CancelJob, jobs_pb2.CancelJobRequest(name=job.name))
    assert caught.value.reason == "JOB_TERMINAL"


async def test_a_command_nobody_answers_is_sent_again(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.submit()
    await jobs.validate(job)
    first = await jobs.command("assign", 1)

    async def second() -> node_events_pb2.NodeCommand | None:
        return jobs.commands[1] if len(jobs.commands) > 1 else None

    again = await until(second, "the command again")
    assert (again.job, again.epoch) == (first.job, first.epoch)
    assert again.command_id != first.command_id


async def test_a_node_whose_lease_ends_loses_its_attempt_after_the_grace(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs.join()
    lease = jobs.leases["n1"]
    spec = spec_pb2.RetrySpec()
    spec.unreachable_grace.SetInParent()
    job = await jobs.submit(retry=spec)
    await jobs.validate(job)
    await jobs.command("assign")
    await jobs.report(job, state="ATTEMPT_STATE_RUNNING")
    assert lease._task is not None
    lease._task.cancel()  # the node falls silent without a word
    lost = await until_epoch(jobs, job)
    assert lost.state in (state_pb2.JOB_STATE_QUEUED, state_pb2.JOB_STATE_STARTING)
    attempts = await jobs.call(jobs.jobs.ListAttempts, jobs_pb2.ListAttemptsRequest(parent=job.name))
    assert isinstance(attempts, jobs_pb2.ListAttemptsResponse)
    assert attempts.attempts[-1].state == state_pb2.ATTEMPT_STATE_LOST


async def until_epoch(jobs: Jobs, job: jobs_pb2.Job) -> jobs_pb2.Job:
    async def look() -> jobs_pb2.Job | None:
        now = await jobs.get(job.name)
        return now if now.state == state_pb2.JOB_STATE_QUEUED else None

    return await until(look, "the attempt is given up")


async def test_a_watch_goes_on_where_it_was_cut(jobs: Jobs) -> None:
    first = await jobs.submit()
    watch = jobs.jobs.WatchJobs(jobs_pb2.WatchJobsRequest(parent=PARENT), metadata=jobs.harness.metadata)
    snapshot = await watch.read()
    assert isinstance(snapshot, jobs_pb2.WatchJobsResponse)
    assert [job.name for job in snapshot.jobs] == [first.name]
    watch.cancel()
    second = await jobs.submit()
    resumed = jobs.jobs.WatchJobs(
        jobs_pb2.WatchJobsRequest(parent=PARENT, from_revision=snapshot.revision),
        metadata=jobs.harness.metadata,
    )
    change = await resumed.read()
    assert isinstance(change, jobs_pb2.WatchJobsResponse)
    assert [job.name for job in change.jobs] == [second.name]
    resumed.cancel()


async def test_pages_hold_every_job_once(jobs: Jobs) -> None:
    made = {(await jobs.submit()).name for _ in range(7)}
    seen: list[str] = []
    token = ""
    while True:
        request = jobs_pb2.ListJobsRequest(parent=PARENT, page_size=3, page_token=token)
        page = await jobs.call(jobs.jobs.ListJobs, request)
        assert isinstance(page, jobs_pb2.ListJobsResponse)
        seen += [job.name for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == 7
    assert set(seen) == made
    with pytest.raises(TunesmithError) as caught:
        await jobs.call(jobs.jobs.ListJobs, jobs_pb2.ListJobsRequest(parent=PARENT, page_token="forged"))
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


async def test_accepted_jobs_and_their_events_survive_a_wiped_bus_and_a_restart(tmp_path: Path) -> None:
    async with service("jobs", tmp_path) as harness:
        jobs = Jobs(harness)
        job = await jobs.submit()
        nats = harness.nats

        async def published() -> int | None:
            events: list[str] = []

            async def hear(message: Message) -> None:
                events.append(events_pb2.JobEvent.FromString(message.payload).event_id)

            consumer = await harness.bus.consume(
                "EVENTS", f"probe-{new_ulid()}", hear, filter_subjects=subjects.any_event("job", "created")
            )
            try:
                return await until(lambda: _first(events), "the event on the bus")
            finally:
                await consumer.stop()

        await published()
        await nats.kill()
        nats.wipe()
        await nats.start()
        await published()
    async with service("jobs", tmp_path) as harness:
        assert (await Jobs(harness).get(job.name)).display_name == job.display_name


async def _first(events: list[str]) -> int | None:
    return len(events) or None


async def test_a_service_without_token_or_with_a_wrong_one_tells_nothing(jobs: Jobs) -> None:
    for metadata, reason in (((), "TOKEN_MISSING"), ((("authorization", "Bearer x"),), "TOKEN_INVALID")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await jobs.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent=PARENT), metadata=metadata, timeout=60)
        assert from_rpc_error(caught.value).reason == reason


async def test_two_replicas_share_the_queue_without_doubling_an_attempt(tmp_path: Path) -> None:
    async with service("jobs", tmp_path) as first, running_on(first.nats, "jobs", tmp_path) as second:
        jobs, other = Jobs(first), Jobs(second)
        await jobs.join(slots=4)
        made = [await (jobs if i % 2 else other).submit() for i in range(4)]
        await asyncio.gather(*(jobs.validate(job) for job in made))
        await jobs.command("assign", 4)
        assert {(c.job, c.epoch) for c in jobs.commands} == {(job.name, 1) for job in made}
