"""The verbs of jobs and nodes through their rpcs, with nodes that the test plays."""

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tests.jobs.hands import PARENT, Jobs
from tests.support.service import until
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.jobs.v1 import jobs_pb2, spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.api.registry.v1 import events_pb2 as registry_events_pb2
from tunesmith.errors import TunesmithError

STOPPED = "ATTEMPT_STATE_CHECKPOINTED"


async def refused(call: Any, reason: str) -> TunesmithError:
    with pytest.raises(TunesmithError) as caught:
        await call
    assert caught.value.reason == reason, caught.value
    assert caught.value.remedy
    return caught.value


async def restart(jobs: Jobs, job: jobs_pb2.Job, epoch: int, node: str = "n1") -> None:
    """Plays the next attempt of a job until it trains."""

    async def assigned() -> bool | None:
        return (
            any(c.HasField("assign") and (c.job, c.epoch) == (job.name, epoch) for c in jobs.commands) or None
        )

    await until(assigned, f"attempt {epoch} of {job.display_name}")
    await jobs.report(job, epoch, node=node, state="ATTEMPT_STATE_RUNNING")


async def test_a_checkpoint_asked_for_comes_with_each_answer_too(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    assert (await jobs.report(job)).checkpoint_request == 0
    await jobs.verb("CheckpointJob", job, request_id="one")
    await jobs.verb("CheckpointJob", job, request_id="one")
    assert (await jobs.command("checkpoint")).checkpoint.request == 1
    assert (await jobs.report(job)).checkpoint_request == 1, "the bus may have lost the command"
    await jobs.verb("CheckpointJob", job, request_id="two")
    assert (await jobs.report(job)).checkpoint_request == 2


@pytest.mark.parametrize("labels", [{"": "x"}, {"a b": "x"}, {"k" * 64: "x"}, {"team": "x" * 257}])
async def test_labels_have_limits(jobs: Jobs, labels: dict[str, str]) -> None:
    error = await refused(jobs.submit(labels=labels), "FIELD_INVALID")
    assert error.field == "spec.labels" or error.field.startswith("spec.labels[")


async def test_a_paused_job_rests_with_its_checkpoint_and_goes_on_from_there(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    early = await refused(jobs.verb("PauseJob", job, mode="PAUSE_MODE_LATEST"), "CHECKPOINT_MISSING")
    assert early.value == "RUNNING"
    paused = (await jobs.verb("PauseJob", job, deadline=Duration(seconds=7), request_id="p")).job
    assert (paused.state, paused.desired) == (state_pb2.JOB_STATE_PAUSING, state_pb2.DESIRED_PAUSE)
    assert (await jobs.command("stop")).stop.deadline.seconds == 7
    answer = await jobs.report(job, progress=state_pb2.Progress(step=9))
    assert answer.desired == state_pb2.DESIRED_PAUSE, "a lost command comes with the next answer"
    assert 0 < answer.stop_deadline.ToTimedelta().total_seconds() <= 7
    again = (await jobs.verb("PauseJob", job, deadline=Duration(seconds=7), request_id="p")).job
    assert again.revision == paused.revision, "the first answer, whatever happened since"
    await refused(jobs.verb("PauseJob", job, request_id="p"), "REQUEST_ID_REUSED")
    await jobs.commit(job, 9)
    await jobs.report(job, state=STOPPED)
    rests = await jobs.reaches(job.name, state_pb2.JOB_STATE_PAUSED)
    assert not rests.active
    assert not rests.terminal
    assert not (await jobs.node("n1")).jobs, "the node is free"
    await refused(jobs.verb("CheckpointJob", job), "STATE_CONFLICT")
    resumed = (await jobs.verb("ResumeJob", job, accept_drift=True)).job
    assert (resumed.state_reason, resumed.accept_drift) == (state_pb2.STATE_REASON_RESUMED, True)
    second = await jobs.command("assign", 2)
    assert (second.epoch, second.assign.checkpoint_step, second.assign.accept_drift) == (2, 9, True)
    await restart(jobs, job, 2)
    error = await refused(jobs.verb("ResumeJob", job), "STATE_CONFLICT")
    assert error.value == "RUNNING"


async def test_a_pause_with_the_latest_checkpoint_kills_and_a_crash_meanwhile_is_a_pause(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    await jobs.commit(job, 4)
    await jobs.verb("PauseJob", job)
    await jobs.command("stop")
    await jobs.verb("PauseJob", job, mode="PAUSE_MODE_LATEST")
    await jobs.command("kill")
    assert (await jobs.report(job, progress=state_pb2.Progress())).desired == state_pb2.DESIRED_KILL
    resumed = (await jobs.verb("ResumeJob", job)).job
    assert resumed.state == state_pb2.JOB_STATE_PAUSING, "it is queued as soon as it has stopped"
    await jobs.verb("PauseJob", job)
    crash = state_pb2.Failure(failure_class=state_pb2.FAILURE_CLASS_USER_ERROR, reason="X")
    await jobs.report(job, state="ATTEMPT_STATE_FAILED", failure=crash)
    await jobs.reaches(job.name, state_pb2.JOB_STATE_PAUSED)
    queued = (await jobs.verb("ResumeJob", job)).job
    assert queued.state == state_pb2.JOB_STATE_QUEUED
    await restart(jobs, job, 2)
    await jobs.verb("PauseJob", job)
    await jobs.verb("CancelJob", job)
    await jobs.report(job, 2, state=STOPPED)
    await jobs.reaches(job.name, state_pb2.JOB_STATE_CANCELLED)
    for verb, fields in (
        ("PauseJob", {}),
        ("ResumeJob", {}),
        ("MoveJob", {"node": "n1"}),
        ("UpdateJob", {"priority": 1}),
    ):
        error = await refused(jobs.verb(verb, job, **fields), "JOB_TERMINAL")
        assert error.value == "CANCELLED"


async def test_what_waits_is_paused_at_once_and_what_is_checked_rests_afterwards(jobs: Jobs) -> None:
    checked, queued = await jobs.submit(), await jobs.submit()
    await jobs.validate(queued)
    await jobs.reaches(queued.name, state_pb2.JOB_STATE_QUEUED)
    assert (await jobs.verb("PauseJob", queued)).job.state == state_pb2.JOB_STATE_PAUSED
    assert (await jobs.verb("PauseJob", checked)).job.state == state_pb2.JOB_STATE_VALIDATING
    await jobs.validate(checked)
    await jobs.reaches(checked.name, state_pb2.JOB_STATE_PAUSED)
    assert (await jobs.verb("CancelJob", checked)).job.state == state_pb2.JOB_STATE_CANCELLED


async def test_a_verb_on_another_revision_is_refused_with_the_present_one(jobs: Jobs) -> None:
    job = await jobs.submit()
    updated = (await jobs.verb("UpdateJob", job, labels={"team": "a"}, revision=job.revision)).job
    for verb, fields in (
        ("CancelJob", {}),
        ("PauseJob", {}),
        ("UpdateJob", {"priority": 3}),
        ("DeleteJob", {}),
    ):
        error = await refused(jobs.verb(verb, job, revision=job.revision, **fields), "REVISION_STALE")
        assert str(updated.revision) in error.message
    assert (await jobs.get(job.name)).revision == updated.revision, "a refused verb changes nothing"


async def test_priority_labels_and_deadlines_change_and_the_digest_stays(jobs: Jobs) -> None:
    job = await jobs.submit(labels={"a": "1", "b": "2"})
    deadlines = spec_pb2.DeadlineSpec(run=Duration(seconds=100))
    updated = (
        await jobs.verb("UpdateJob", job, priority=-5, labels={"a": "", "c": "3"}, deadlines=deadlines)
    ).job
    assert updated.spec.resources.priority == -5
    assert dict(updated.spec.labels) == {"b": "2", "c": "3"}
    assert (updated.spec.deadlines.run.seconds, updated.spec.deadlines.stop.seconds) == (100, 60)
    assert updated.spec_digest == job.spec_digest, "a resume must not think that it is another job"
    again = await jobs.submit(labels={"x": "y"}, deadlines=deadlines, resources={"priority": 3})
    assert again.spec_digest == job.spec_digest, "nor does one that is told otherwise from the beginning"
    assert (await jobs.events(job, "updated"))[0].spec.resources.priority == -5
    for seconds in (0, -1, 1 << 60):
        late = spec_pb2.DeadlineSpec(queue=Duration(seconds=seconds))
        error = await refused(jobs.verb("UpdateJob", job, deadlines=late), "FIELD_INVALID")
        assert error.field == "deadlines.queue"
        error = await refused(jobs.verb("PauseJob", job, deadline=Duration(seconds=seconds)), "FIELD_INVALID")
        assert error.field == "deadline"
        error = await refused(jobs.submit(deadlines=late), "SPEC_INCONSISTENT")
        assert error.field == "spec.deadlines.queue"


async def test_a_deleted_job_is_hidden_and_keeps_its_name(jobs: Jobs) -> None:
    job = await jobs.submit()
    await refused(jobs.verb("DeleteJob", job), "STATE_CONFLICT")
    await jobs.verb("CancelJob", job)
    seen = await jobs.get(job.name)
    for _ in range(2):
        await jobs.verb("DeleteJob", job, request_id="d")
    await refused(jobs.get(job.name), "JOB_NOT_FOUND")
    await refused(jobs.get(f"{PARENT}/jobs/{job.display_name}"), "JOB_NOT_FOUND")
    page: Any = await jobs.call(jobs.jobs.ListJobs, jobs_pb2.ListJobsRequest(parent=PARENT))
    assert not page.jobs
    watch = jobs.jobs.WatchJobs(
        jobs_pb2.WatchJobsRequest(parent=PARENT, from_revision=seen.revision), metadata=jobs.harness.metadata
    )
    change: Any = await watch.read()
    watch.cancel()
    assert change.jobs[0].HasField("delete_time"), "who follows hears of it once"


async def test_retention_keeps_newest_best_pinned_and_forked(jobs: Jobs) -> None:
    await jobs.join()
    training = spec_pb2.TrainingSpec(
        keep_checkpoints=1, keep_best_checkpoints=1, eval_every_steps=1, eval_fraction=0.1
    )
    job = await jobs.running(training=training)
    for step, loss in ((1, 9.0), (2, 1.0), (3, 5.0), (4, 6.0)):
        await jobs.commit(job, step, eval_loss=loss)
        if step == 1:
            assert (await jobs.verb("PinCheckpoint", job, step=1)).checkpoint.pinned
    expired = [event.checkpoint.step for event in await jobs.events(job, "checkpoint_expired")]
    assert expired == [], "1 is pinned, 2 the best, 3 and 4 the newest"
    fork = (await jobs.verb("ForkJob", job, step=3)).job
    await jobs.commit(job, 5, eval_loss=7.0)
    await jobs.commit(job, 6, eval_loss=8.0)
    expired = [event.checkpoint.step for event in await jobs.events(job, "checkpoint_expired")]
    assert expired == [4], "3 is what a live fork began from"
    await jobs.verb("PinCheckpoint", job, step=1, unpin=True)
    expired = [event.checkpoint.step for event in await jobs.events(job, "checkpoint_expired")]
    pins = [event.checkpoint for event in await jobs.events(job, "checkpoint_pinned")]
    assert expired == [4]
    assert [(p.pinned, p.expired) for p in pins] == [(True, False), (False, True)]
    await refused(jobs.verb("PinCheckpoint", job, step=1), "CHECKPOINT_MISSING")
    error = await refused(jobs.verb("ForkJob", job, step=4), "CHECKPOINT_MISSING")
    assert "6, 5, 3, 2" in error.remedy
    assert fork.forked_from.step == 3


async def test_a_late_report_of_an_older_checkpoint_does_not_set_the_job_back(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    for step in (20, 10):
        await jobs.commit(job, step)
    assert (await jobs.get(job.name)).checkpoint.step == 20
    await jobs.commit(job, 20)
    assert len(await jobs.events(job, "checkpoint_committed")) == 2, "the same again is no news"


async def test_a_fork_goes_on_from_a_checkpoint_with_its_edits(jobs: Jobs) -> None:
    await jobs.join(slots=2)
    job = await jobs.submit()
    good = registry_events_pb2.JobInputsValidated(
        job=job.name, base_model="b", base_model_digest="a" * 64,
        dataset_version=f"{PARENT}/datasets/sums/versions/3", dataset_digest="b" * 64,
    )  # fmt: skip
    await jobs.answer(job, "inputs_validated", job_inputs_validated=good)
    await restart(jobs, job, 1)
    await refused(jobs.verb("ForkJob", job), "CHECKPOINT_MISSING")
    for step in (5, 8):
        await jobs.commit(job, step)
    samples = [state_pb2.Sample(prompt="p", before="x", after="y")]
    await jobs.report(job, samples=samples)
    spec = spec_pb2.JobSpec(sample_prompts=["p"])
    spec.training.learning_rate = 0.5
    spec.deadlines.run.seconds = 50
    mask = FieldMask(paths=["training.learning_rate", "deadlines.run", "labels"])
    fork = (await jobs.verb("ForkJob", job, step=5, spec=spec, update_mask=mask, request_id="f")).job
    assert (await jobs.verb("ForkJob", job, step=5, spec=spec, update_mask=mask, request_id="f")).job == fork
    assert (fork.forked_from.job, fork.forked_from.step) == (job.name, 5)
    assert fork.forked_from.digest == fork.checkpoint.digest == f"{1:032x}{5:032x}"
    assert (fork.spec.training.learning_rate, fork.spec.deadlines.run.seconds) == (0.5, 50)
    assert fork.spec.dataset == "sums@3", "the very data of its parent"
    assert list(fork.spec.sample_prompts) == []
    expected = spec_pb2.JobSpec()
    expected.CopyFrom((await jobs.get(job.name)).spec)
    expected.training.learning_rate, expected.dataset = 0.5, "sums@3"
    expected.deadlines.run.seconds = 50
    assert fork.spec == expected
    await jobs.validate(fork)
    assign = await jobs.command("assign", 2)
    assert (assign.assign.forked, assign.assign.checkpoint_step) == (True, 5)
    await restart(jobs, fork, 1)
    await jobs.commit(fork, 6)
    await jobs.verb("PauseJob", fork)
    await jobs.report(fork, state=STOPPED)
    await jobs.verb("ResumeJob", fork)
    own = await jobs.command("assign", 3)
    assert (own.assign.forked, own.assign.checkpoint_step) == (False, 6), "from now on its own"


async def test_edits_that_no_checkpoint_can_follow_are_refused(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    await jobs.commit(job, 5)
    for path in ("base_model", "method", "adapter", "adapter.lora.r"):
        error = await refused(jobs.verb("ForkJob", job, update_mask=FieldMask(paths=[path])), "FIELD_FROZEN")
        assert error.field == f"spec.{path}"
    mask = FieldMask(paths=["training.learning_rates"])
    error = await refused(jobs.verb("ForkJob", job, update_mask=mask), "FIELD_INVALID")
    assert "training.learning_rate" in error.remedy
    spec = spec_pb2.JobSpec(training=spec_pb2.TrainingSpec(early_stopping_patience=3))
    mask = FieldMask(paths=["training.early_stopping_patience"])
    error = await refused(jobs.verb("ForkJob", job, spec=spec, update_mask=mask), "SPEC_INCONSISTENT")
    await refused(jobs.verb("ForkJob", job, step=77), "CHECKPOINT_MISSING")


async def test_a_move_prepares_the_target_and_changes_over(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    await jobs.commit(job, 3)
    await refused(jobs.verb("MoveJob", job, node="n9"), "NODE_NOT_FOUND")
    await refused(jobs.verb("MoveJob", job, node="n1"), "NODE_UNFIT")
    await jobs.join("n2")
    other = await jobs.submit()
    await jobs.validate(other)
    await jobs.reaches(other.name, state_pb2.JOB_STATE_STARTING)
    full = await refused(jobs.verb("MoveJob", job, node="n2"), "NODE_UNFIT")
    assert "slots are taken" in full.message
    await refused(jobs.verb("MoveJob", other, node="n1"), "NODE_UNFIT")
    await jobs.join("n3")
    moving = (await jobs.verb("MoveJob", job, node="n3", request_id="m")).job
    assert (moving.state, moving.move.node) == (state_pb2.JOB_STATE_RUNNING, "n3")
    prepare = await jobs.command("prepare")
    assert (prepare.job, prepare.prepare.checkpoint_digest) == (job.name, f"{1:032x}{3:032x}")
    await refused(jobs.verb("MoveJob", job, node="n2"), "STATE_CONFLICT")
    stale = nodes_pb2.ReportPreparedRequest(job=job.name, epoch=1, node="n2")
    await refused(jobs.call(jobs.nodes.ReportPrepared, stale), "STALE_EPOCH")
    ready = nodes_pb2.ReportPreparedRequest(job=job.name, epoch=1, node="n3")
    for _ in range(2):
        await jobs.call(jobs.nodes.ReportPrepared, ready)
    stopping = await jobs.get(job.name)
    assert (stopping.state, stopping.state_reason, stopping.move.prepared) == (
        state_pb2.JOB_STATE_PAUSING,
        state_pb2.STATE_REASON_MOVED,
        True,
    )
    await jobs.command("stop")
    await jobs.report(job, state=STOPPED)
    await restart(jobs, job, 2, "n3")
    moved = await jobs.get(job.name)
    assert not moved.HasField("move")
    assert [list(a.nodes) for a in await jobs.attempts(job)] == [["n3"], ["n1"]]


async def test_a_move_that_cannot_be_prepared_leaves_the_job_where_it_is(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    await jobs.join("n2")
    await jobs.verb("MoveJob", job, node="n2")
    broken = nodes_pb2.ReportPreparedRequest(job=job.name, epoch=1, node="n2")
    broken.failure.reason, broken.failure.message = "DISK_FULL", "no room"
    await jobs.call(jobs.nodes.ReportPrepared, broken)
    stays = await jobs.get(job.name)
    assert stays.state == state_pb2.JOB_STATE_RUNNING
    assert not stays.HasField("move")
    assert [(c.type, c.reason) for c in stays.conditions] == [("Moved", "DISK_FULL")]
    await jobs.verb("MoveJob", job, node="n2")
    await jobs.node_verb("CordonNode", "n2")

    async def given_up() -> bool | None:
        return not (await jobs.get(job.name)).HasField("move") or None

    await until(given_up, "the move to a cordoned node is given up")
    assert (await jobs.get(job.name)).state == state_pb2.JOB_STATE_RUNNING


async def test_a_cordoned_node_takes_nothing_and_a_drained_one_is_emptied(jobs: Jobs) -> None:
    await jobs.join(slots=2)
    job = await jobs.running()
    cordoned = await jobs.node_verb("CordonNode", "n1", reason="fan is loud")
    assert cordoned.state == nodes_pb2.NODE_STATE_CORDONED
    assert (
        await jobs.register(slots=2, attempts={job.job_id: 1})
    ).node.state == nodes_pb2.NODE_STATE_CORDONED
    waiting = await jobs.submit()
    await jobs.validate(waiting)

    async def noted() -> str | None:
        conditions = (await jobs.get(waiting.name)).conditions
        return conditions[0].reason if conditions else None

    await until(noted, "why it waits")
    assert (await jobs.get(job.name)).state == state_pb2.JOB_STATE_RUNNING, "what runs goes on"
    draining = await jobs.node_verb("DrainNode", "n1")
    assert draining.state == nodes_pb2.NODE_STATE_DRAINING
    leaving = await jobs.get(job.name)
    assert (leaving.state, leaving.state_reason) == (
        state_pb2.JOB_STATE_PAUSING,
        state_pb2.STATE_REASON_DRAINED,
    )
    await jobs.command("stop")
    assert (await jobs.node_verb("CordonNode", "n1")).state == nodes_pb2.NODE_STATE_DRAINING
    await jobs.commit(job, 4)
    await jobs.report(job, state=STOPPED)
    assert (await jobs.node("n1")).state == nodes_pb2.NODE_STATE_CORDONED, "empty now"
    again = await jobs.get(job.name)
    assert (again.state, again.state_reason) == (state_pb2.JOB_STATE_QUEUED, state_pb2.STATE_REASON_DRAINED)
    for _ in range(2):
        opened = await jobs.node_verb("UncordonNode", "n1")
        assert opened.state == nodes_pb2.NODE_STATE_READY
    await restart(jobs, job, 2)
    await refused(jobs.node_verb("DrainNode", "n7"), "NODE_NOT_FOUND")


async def test_memory_that_ran_out_halves_micro_batches_until_they_are_whole_no_more(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running(
        retry=spec_pb2.RetrySpec(oom_policy=spec_pb2.OOM_POLICY_HALVE_MICRO_BATCH),
        training=spec_pb2.TrainingSpec(micro_batch_size=4),
    )
    memory = state_pb2.Failure(
        failure_class=state_pb2.FAILURE_CLASS_OOM, reason="OOM", message="m", remedy="r"
    )
    for epoch, divisor in ((1, 2), (2, 4)):
        await jobs.report(job, epoch, state="ATTEMPT_STATE_FAILED", failure=memory)
        await restart(jobs, job, epoch + 1)
        assign = await jobs.command("assign", epoch + 1)
        assert assign.assign.micro_batch_divisor == divisor
    told = [list(event.drift) for event in await jobs.events(job, "drifted")]
    assert told == [["micro_batch_size: 4 -> 2"], ["micro_batch_size: 2 -> 1"]]
    condition = next(c for c in (await jobs.get(job.name)).conditions if c.type == "BitIdentical")
    assert condition.status == common_pb2.CONDITION_STATUS_FALSE
    await jobs.report(job, 3, state="ATTEMPT_STATE_FAILED", failure=memory)
    failed = await jobs.reaches(job.name, state_pb2.JOB_STATE_FAILED)
    assert failed.failure.failure_class == state_pb2.FAILURE_CLASS_OOM


async def test_an_attempt_says_where_it_began_and_what_differs(
    jobs: Jobs,
) -> None:
    await jobs.join()
    job = await jobs.running()
    crash = state_pb2.Failure(failure_class=state_pb2.FAILURE_CLASS_INFRA, reason="PROCESS_DIED")
    await jobs.report(job, state="ATTEMPT_STATE_FAILED", failure=crash)
    await restart(jobs, job, 2)
    drift = ["torch: 2.13.0 -> 2.14.0"]
    for _ in range(2):
        await jobs.report(job, 2, resumed_step=4, resumed_from="snapshot", drift=drift)
    attempt = (await jobs.attempts(job))[0]
    assert (attempt.resumed_step, attempt.resumed_from, list(attempt.drift)) == (4, "snapshot", drift)
    assert len(await jobs.events(job, "drifted")) == 1
    condition = next(c for c in (await jobs.get(job.name)).conditions if c.type == "BitIdentical")
    assert condition.message == drift[0]


async def test_verbs_of_many_at_once_act_once_each(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    answers = await asyncio.gather(*(jobs.verb("PauseJob", job, request_id="same") for _ in range(8)))
    assert len({answer.job.revision for answer in answers}) == 1
    await jobs.command("stop")
    assert sum(c.HasField("stop") for c in jobs.commands) == 1


async def test_a_checkpoint_interval_is_suggested_once_cost_and_failures_are_known(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.running()
    await jobs.commit(job, 3)
    failed = state_pb2.Failure(failure_class=state_pb2.FAILURE_CLASS_INFRA, reason="PROCESS_DIED")
    trained = state_pb2.Progress(step=5, training_seconds=800, checkpoint_seconds=9)
    await jobs.report(job, state="ATTEMPT_STATE_FAILED", failure=failed, progress=trained)
    await restart(jobs, job, 2)
    for step in (6, 7):
        await jobs.commit(job, step, 2)
    cheap = state_pb2.Progress(step=7, training_seconds=1, checkpoint_seconds=2)
    await jobs.report(job, 2, progress=cheap)
    suggested = (await jobs.get(job.name)).progress.suggested_checkpoint_interval
    # One second a checkpoint, one failure in 801 s of training: the square root of 2 x 1 x 800 or so.
    assert suggested.ToTimedelta().total_seconds() == pytest.approx(40, abs=0.1)
