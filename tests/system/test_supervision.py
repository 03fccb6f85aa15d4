"""The agent over its trainers: a rank that dies, one that hangs, memory that runs out, snapshots taken up."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import check_whole, output_digest, spec, trainers, wait_state, wait_step
from tests.support.platform import Platform, embedded
from tests.support.processes import runs, wait_for

_CGROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One platform for the whole file."""
    with embedded(tmp_path_factory.mktemp("supervision")) as running:
        running.load_inputs()
        yield running


def sharded(steps: int, processes: int, **more: Any) -> dict[str, Any]:
    """A job of two logical shards on one or two ranks: the same bits by promise."""
    job = spec(steps, logical_shards=2)
    return {**job, "resources": {"processes_per_node": processes}, **more}


def undisturbed(platform: Platform, job: dict[str, Any]) -> str:
    """The weights of a job that nobody disturbs."""
    with platform.client() as client:
        done = client.jobs.submit(job).wait(240)
        assert done.succeeded, done.proto.failure
        return output_digest(client, done)


def test_a_rank_that_dies_ends_the_group_and_the_next_attempt_gives_the_same_bits(platform: Platform) -> None:
    expected = undisturbed(platform, sharded(400, processes=1))
    with platform.client() as client:
        job = client.jobs.submit(sharded(400, processes=2))
        wait_step(client, job.name, 5)
        first = trainers(platform.root, job.id)
        assert len(first) == 2
        os.kill(first[1], signal.SIGKILL)
        done = wait_state(client, job.name, "SUCCEEDED")
        second, lost = done.attempts()
        assert (lost.failure.reason, second.resumed_from) == ("PROCESS_DIED", "snapshot")
        assert lost.failure.message.startswith("rank 1 died")
        assert not any(runs(pid) for pid in first), "the group ends as one"
        assert output_digest(client, done) == expected
        check_whole(platform, done, 400)


def test_a_hang_is_noticed_and_its_stacks_are_in_the_log(platform: Platform) -> None:
    with platform.client() as client:
        job = client.jobs.submit(sharded(400, processes=2, retry={"stall_timeout": "8s"}))
        wait_step(client, job.name, 5)
        os.kill(trainers(platform.root, job.id)[1], signal.SIGSTOP)  # rank 0 now waits in a collective
        done = wait_state(client, job.name, "SUCCEEDED")
        stalled = done.attempts()[-1]
        assert stalled.failure.reason == "NO_PROGRESS"
        wait_for(
            lambda: any("most recent call first" in line.text for line in done.logs(epoch=1)),
            90,
            "the stacks of rank 0 are in the log",
        )
        check_whole(platform, done, 400)


def test_a_killed_trainer_loses_one_step_at_most_and_its_memory_is_given_back(platform: Platform) -> None:
    with platform.client() as client:
        job = client.jobs.submit(spec(600, max_checkpoint_overhead=1.0))
        seen = wait_step(client, job.name, 20).proto.progress.step
        (pid,) = trainers(platform.root, job.id)
        os.kill(pid, signal.SIGKILL)
        done = wait_state(client, job.name, "SUCCEEDED")
        second, _ = done.attempts()
        assert second.resumed_from == "snapshot"
        assert second.resumed_step >= seen - 1, "of what was reported one step at most is done again"
        memory = [path for path in Path("/dev/shm").glob("tunesmith-*/*") if path.name == job.id]
        wait_for(lambda: not any(path.exists() for path in memory), 90, "the snapshots are gone")
        check_whole(platform, done, 600)


def test_a_pause_whose_trainer_dies_over_it_costs_no_step(platform: Platform) -> None:
    with platform.client() as client:
        # A snapshot each step, whatever it costs on this machine.
        job = client.jobs.submit(spec(300, max_checkpoint_overhead=1))
        seen = wait_step(client, job.name, 20).proto.progress.step
        (pid,) = trainers(platform.root, job.id)
        os.kill(pid, signal.SIGSTOP)  # it will not save
        job.pause()
        (control,) = platform.root.glob(f"**/runs/{job.id}-1/control")
        wait_for(lambda: control.read_text() == "stop\n", 90, "the trainer is told to stop")
        os.kill(pid, signal.SIGKILL)
        wait_state(client, job.name, "PAUSED")
        job.resume()
        done = wait_state(client, job.name, "SUCCEEDED")
        second, _ = done.attempts()
        assert second.resumed_from == "snapshot"
        assert second.resumed_step >= seen - 1
        check_whole(platform, done, 300)


def test_a_trainer_killed_for_memory_is_told_as_such_and_not_tried_blindly(tmp_path: Path) -> None:
    if not os.access(_CGROUPS, os.W_OK):
        pytest.skip("no memory cgroup that this user may make")
    group = _CGROUPS / f"tunesmith-test-{os.getpid()}"
    group.mkdir()
    try:
        with embedded(tmp_path, {"TUNESMITH_AGENT_STANDBY": "false"}) as platform:
            platform.load_inputs()
            # What it has already stays charged where it was; the trainer it starts is charged here.
            (group / "memory.limit_in_bytes").write_text(str(150 * 1024 * 1024))
            (group / "cgroup.procs").write_text(str(platform.processes["up"].pid))
            with platform.client() as client:
                job = client.jobs.submit(spec(10, micro_batch_size=8))
                failed = wait_state(client, job.name, "FAILED")
                assert len(failed.attempts()) == 1
                failure = failed.proto.failure
                assert failure.reason == "KILLED_FOR_MEMORY"
                assert "micro_batch_size to 4" in failure.remedy
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), 90, "every process has left the group")
        group.rmdir()
