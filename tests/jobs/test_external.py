"""External runs in the jobs service: silence, taking up, verbs that do not fit, and nobody else's room."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.jobs.stage import CALLER, Stage, stage
from tunesmith.api.jobs.v1 import external_pb2, jobs_pb2, spec_pb2, state_pb2, verbs_pb2
from tunesmith.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted
from tunesmith_jobs import checkpoints
from tunesmith_jobs.external import ExternalRuns, SilenceMonitor
from tunesmith_jobs.forks import Forks

_ID = "01k0000000000000000000000a"


class Runs:
    """External runs on a stage."""

    def __init__(self, jobs: Stage) -> None:
        self.jobs = jobs
        self.runs = ExternalRuns(jobs.db, jobs.clock)
        self.monitor = SilenceMonitor(jobs.db, jobs.clock)

    async def start(self, job_id: str = _ID, request_id: str = "") -> external_pb2.StartExternalRunResponse:
        request = external_pb2.StartExternalRunRequest(
            parent="projects/default", job_id=job_id, request_id=request_id
        )
        return await self.runs.start(request, CALLER)

    async def renew(self, epoch: int, **what: object) -> external_pb2.RenewExternalRunResponse:
        request = external_pb2.RenewExternalRunRequest(name=self.name, epoch=epoch, **what)  # type: ignore[arg-type]
        return await self.runs.renew(request, CALLER)

    async def finish(self, epoch: int, failed: bool = False) -> jobs_pb2.Job:
        request = external_pb2.FinishExternalRunRequest(name=self.name, epoch=epoch, failed=failed)
        return (await self.runs.finish(request, CALLER)).job

    name = f"projects/default/jobs/{_ID}"

    async def state(self) -> str:
        return await self.jobs.state(self.name)

    async def silence(self, seconds: float) -> None:
        """Lets the program be silent, and looks before and after."""
        await self.monitor.look()
        self.jobs.clock.pass_by(seconds)
        await self.monitor.look()


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[Runs]:
    async with stage(f"sqlite:///{tmp_path}/jobs.db") as found:
        yield Runs(found)


async def test_silence_is_a_condition_first_and_the_program_goes_on_by_itself(runs: Runs) -> None:
    await runs.start()
    await runs.silence(61)
    job = await runs.jobs.get(runs.name)
    assert [(c.type, c.reason) for c in job.conditions] == [("Writing", "WRITER_SILENT")]
    assert await runs.state() == "RUNNING"
    answer = await runs.renew(1, progress=state_pb2.Progress(step=7))
    assert (list(answer.job.conditions), answer.job.progress.step) == ([], 7)
    await runs.silence(59)
    assert not (await runs.jobs.get(runs.name)).conditions


async def test_a_run_nobody_hears_of_rests_and_can_be_taken_up_or_ended(runs: Runs) -> None:
    await runs.start()
    await runs.silence(601)
    assert await runs.state() == "PAUSED WRITER_LOST"
    assert (await runs.jobs.attempt(runs.name)).failure.reason == "WRITER_LOST"
    with pytest.raises(FailedPrecondition, match="not in force"):
        await runs.renew(1)
    assert (await runs.start()).epoch == 2
    assert await runs.state() == "RUNNING"
    with pytest.raises(FailedPrecondition) as stale:
        await runs.finish(1)
    assert stale.value.reason == "STALE_EPOCH"
    await runs.silence(601)
    job = await runs.finish(2)  # its program's end arrived later than we believed in it
    assert job.state == state_pb2.JOB_STATE_SUCCEEDED
    assert (await runs.finish(2, failed=True)).state == job.state, "repeated: harmless"
    with pytest.raises(FailedPrecondition) as over:
        await runs.start()
    assert over.value.reason == "JOB_TERMINAL"


async def test_an_outage_of_the_service_ends_no_run(runs: Runs) -> None:
    await runs.start()
    runs.jobs.clock.pass_by(3600)
    runs.monitor = SilenceMonitor(runs.jobs.db, runs.jobs.clock)  # as after a restart
    await runs.silence(59)
    assert (await runs.state(), list((await runs.jobs.get(runs.name)).conditions)) == ("RUNNING", [])


async def test_a_cancelled_run_tells_its_program_and_a_silent_one_is_cancelled(runs: Runs) -> None:
    await runs.start()
    await runs.jobs.verbs.cancel(jobs_pb2.CancelJobRequest(name=runs.name), CALLER)
    answer = await runs.renew(1)
    assert answer.desired == state_pb2.DESIRED_CANCEL
    assert await runs.state() == "CANCELLING"
    assert (await runs.finish(1, failed=True)).state == state_pb2.JOB_STATE_CANCELLED
    await runs.start("01k0000000000000000000000b")
    name = "projects/default/jobs/01k0000000000000000000000b"
    await runs.jobs.verbs.cancel(jobs_pb2.CancelJobRequest(name=name), CALLER)
    await runs.silence(61)
    assert await runs.jobs.state(name) == "CANCELLED"


async def test_verbs_of_the_platforms_own_jobs_are_refused(runs: Runs) -> None:
    await runs.start()
    verbs = runs.jobs.verbs
    for refused in (
        verbs.pause(verbs_pb2.PauseJobRequest(name=runs.name), CALLER),
        verbs.resume(verbs_pb2.ResumeJobRequest(name=runs.name), CALLER),
        verbs.checkpoint(verbs_pb2.CheckpointJobRequest(name=runs.name), CALLER),
        verbs.move(verbs_pb2.MoveJobRequest(name=runs.name, node="a"), CALLER),
    ):
        with pytest.raises(FailedPrecondition) as error:
            await refused
        assert error.value.reason == "RUN_EXTERNAL"
    spec = spec_pb2.JobSpec(external=spec_pb2.ExternalSpec(host="a"))
    with pytest.raises(InvalidArgument, match="programs that run already"):
        await runs.jobs.store.create(jobs_pb2.CreateJobRequest(parent="projects/default", spec=spec), CALLER)


async def test_a_run_holds_no_node_and_no_quota(runs: Runs) -> None:
    await runs.jobs.node("a")
    await runs.jobs.set_quota("default", max_running_jobs=1)
    await runs.start()
    name = await runs.jobs.run()
    assert await runs.jobs.state(name) == "RUNNING"
    assert await runs.state() == "RUNNING"


async def test_ids_of_others_are_not_taken_over_and_a_repeated_start_begins_one_run(runs: Runs) -> None:
    await runs.jobs.node("a")
    theirs = (await runs.jobs.get(await runs.jobs.queue())).job_id
    with pytest.raises(AlreadyExists) as taken:
        await runs.start(theirs)
    assert taken.value.reason == "JOB_ID_TAKEN"
    first, again = [await runs.start(request_id="one") for _ in range(2)]
    assert (first.epoch, again.epoch) == (1, 1)
    with pytest.raises(FailedPrecondition) as error:
        await runs.runs.renew(
            external_pb2.RenewExternalRunRequest(name=f"projects/default/jobs/{theirs}", epoch=1), CALLER
        )
    assert error.value.reason == "RUN_NOT_EXTERNAL"


async def test_what_a_program_says_of_itself_stays_small_enough_for_lists_and_for_the_bus(runs: Runs) -> None:
    request = external_pb2.StartExternalRunRequest(parent="projects/default", job_id=_ID)
    request.external.config.update({f"key{number}": "x" * 2000 for number in range(500)})
    with pytest.raises(InvalidArgument) as large:
        await runs.runs.start(request, CALLER)
    assert large.value.field == "external.config"
    await runs.start()
    scores = {f"metric{number}": 1.0 for number in range(2000)}
    with pytest.raises(InvalidArgument) as much:
        await runs.renew(1, progress=state_pb2.Progress(eval_scores=scores))
    assert much.value.field == "progress"
    labels = {"note": "x" * 1_000_000}
    with pytest.raises(ResourceExhausted) as bus:
        await runs.jobs.verbs.update(verbs_pb2.UpdateJobRequest(name=runs.name, labels=labels), CALLER)
    assert bus.value.reason == "MESSAGE_TOO_LARGE"
    assert not (await runs.jobs.get(runs.name)).spec.labels, "nothing of it was stored"


async def test_a_program_whose_run_is_to_be_killed_is_told_to_end(runs: Runs) -> None:
    await runs.start()
    now = jobs_pb2.CANCEL_MODE_NOW
    await runs.jobs.verbs.cancel(jobs_pb2.CancelJobRequest(name=runs.name, mode=now), CALLER)
    assert (await runs.renew(1)).desired == state_pb2.DESIRED_CANCEL


async def test_checkpoints_are_entered_once_and_those_of_the_newer_program_count(runs: Runs) -> None:
    async def commit(digest: str, epoch: int = 1, step: int = 5, **what: object) -> state_pb2.CheckpointRef:
        request = external_pb2.CommitExternalCheckpointRequest(
            name=runs.name,
            epoch=epoch,
            step=step,
            digest=digest * 64,
            **what,  # type: ignore[arg-type]
        )
        return (await runs.runs.commit(request, CALLER)).checkpoint

    await runs.start()
    with pytest.raises(FailedPrecondition) as strange:
        await commit("a", epoch=2)
    assert strange.value.reason == "STALE_EPOCH"
    first = await commit("a", eval_loss=0.5, size_bytes=7)
    assert (first.external, first.eval_loss, first.size_bytes, first.epoch) == (True, 0.5, 7, 1)
    revision = (await runs.jobs.get(runs.name)).revision
    assert await commit("a") == first, "what is known is not entered again"
    assert (await runs.jobs.get(runs.name)).revision == revision
    await runs.start()  # another program takes the run up
    assert (await commit("b", epoch=2)).digest[0] == "b"
    assert (await commit("c", epoch=1)).digest[0] == "b", "what the first one left comes late"
    await commit("d", epoch=2, step=6)
    pin = verbs_pb2.PinCheckpointRequest(name=runs.name, step=5)
    await runs.jobs.verbs.pin(pin, CALLER)
    await runs.finish(2)
    assert not (await commit("e", epoch=2, step=8, keep=1)).expired, "after the end, too"
    assert (await runs.jobs.get(runs.name)).checkpoint.step == 8
    with pytest.raises(InvalidArgument, match="create_time"):
        await commit("f", epoch=2, create_time=Timestamp(seconds=10**15))
    with pytest.raises(FailedPrecondition) as fork:
        await Forks(runs.jobs.db, runs.jobs.clock).fork(verbs_pb2.ForkJobRequest(name=runs.name), CALLER)
    assert fork.value.reason == "CHECKPOINT_EXTERNAL"

    async def kept() -> list[int]:
        return await runs.jobs.db.read(lambda s: [row.step for row in checkpoints.kept(s, _ID)])

    assert await kept() == [8, 5], "the newest one and the one that is pinned"
    await runs.jobs.verbs.delete(verbs_pb2.DeleteJobRequest(name=runs.name), CALLER)
    assert await kept() == [], "a deleted run keeps nothing"
