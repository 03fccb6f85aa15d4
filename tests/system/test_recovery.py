"""Processes killed in the middle: the job goes on, the bits are the same, every point is there once.

Found by these tests: see docs/architecture.md, "What the fault tests found".
"""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.jobs import check_whole, output_digest, spec, wait_state, wait_step
from tests.support.platform import Platform, embedded
from tests.support.processes import runs, wait_for

STEPS = 300


def running_pid(platform: Platform, job_id: str, epoch: int) -> int:
    """Returns the pid the agent noted for an attempt."""
    (notes,) = (platform.root / "data" / "nodes").glob(f"*/runs/{job_id}-{epoch}/agent.json")
    pid: int = json.loads(notes.read_text())["pid"]
    return pid


def saved(platform: Platform, job_id: str) -> int:
    """Returns the step of the newest checkpoint that the first attempt has told its agent of."""
    found = 0
    for path in (platform.root / "data" / "nodes").glob(f"*/runs/{job_id}-1/spool/events-*.jsonl"):
        for line in path.read_text().split("\n")[:-1]:
            event = json.loads(line)
            found = max(found, event["step"] if event["type"] == "checkpoint" else 0)
    return found


@pytest.fixture(scope="module")
def undisturbed(embedded_platform: Platform) -> str:
    """Weights of the job nobody disturbed."""
    with embedded_platform.client() as client:
        job = client.jobs.submit(spec(STEPS, checkpoint_every_steps=25))
        return output_digest(client, wait_state(client, job.name, "SUCCEEDED"))


def test_a_killed_trainer_ends_with_the_same_bits(embedded_platform: Platform, undisturbed: str) -> None:
    platform = embedded_platform
    with platform.client() as client:
        job = client.jobs.submit(spec(STEPS, checkpoint_every_steps=25))
        wait_for(lambda: saved(platform, job.id) >= 50, 180, "a checkpoint from which to go on")
        os.kill(running_pid(platform, job.id, 1), signal.SIGKILL)
        done = wait_state(client, job.name, "SUCCEEDED")
        assert [a.epoch for a in done.attempts()] == [2, 1]
        second = done.attempts()[0]
        # From a snapshot at any step, or where copies had to wait for the processor from a checkpoint.
        assert second.resumed_from == "snapshot" or second.resumed_step % 25 == 0
        assert second.resumed_step >= 50
        assert second.lost_seconds == done.proto.lost_seconds
        assert second.environment == done.attempts()[1].environment != {}
        check_whole(platform, done, STEPS)
        assert output_digest(client, done) == undisturbed


def test_a_killed_platform_adopts_the_running_trainer(tmp_path: Path, undisturbed: str) -> None:
    with embedded(tmp_path) as platform:
        platform.load_inputs()
        with platform.client() as client:
            job = client.jobs.submit(spec(STEPS, checkpoint_every_steps=25))
            wait_step(client, job.name, 40)
        pid = running_pid(platform, job.id, 1)
        platform.processes["up"].kill()
        assert runs(pid), "the trainer outlives the platform"
    with embedded(tmp_path) as platform, platform.client() as client:
        done = wait_state(client, job.name, "SUCCEEDED")
        assert [a.epoch for a in done.attempts()] == [1], "no second attempt was needed"
        check_whole(platform, done, STEPS)
        assert output_digest(client, done) == undisturbed


def test_a_wiped_bus_loses_nothing(tmp_path: Path, undisturbed: str) -> None:
    with embedded(tmp_path) as platform:
        platform.load_inputs()
        with platform.client() as client:
            job = client.jobs.submit(spec(STEPS, checkpoint_every_steps=25))
            wait_step(client, job.name, 40)
        platform.processes["up"].kill()
    shutil.rmtree(tmp_path / "data" / "nats")
    with embedded(tmp_path) as platform, platform.client() as client:
        done = wait_state(client, job.name, "SUCCEEDED")
        check_whole(platform, done, STEPS)
        assert output_digest(client, done) == undisturbed


def test_a_run_that_ends_while_the_platform_is_down_is_taken_up_afterwards(tmp_path: Path) -> None:
    with embedded(tmp_path) as platform:
        platform.load_inputs()
        with platform.client() as client:
            job = client.jobs.submit(spec(STEPS))
            wait_step(client, job.name, 5)
        pid = running_pid(platform, job.id, 1)
        platform.processes["up"].kill()
        wait_for(lambda: not runs(pid), 300, "it trained to its end on its own")
    with embedded(tmp_path) as platform, platform.client() as client:
        done = wait_state(client, job.name, "SUCCEEDED")
        assert [a.epoch for a in done.attempts()] == [1]
        check_whole(platform, done, STEPS)


def test_a_damaged_copy_of_the_data_on_the_node_is_brought_anew(embedded_platform: Platform) -> None:
    with embedded_platform.client() as client:
        wait_state(client, client.jobs.submit(spec(3)).name, "SUCCEEDED")
        for copy in embedded_platform.root.glob("data/nodes/*/cache/datasets/*/data.jsonl"):
            damaged = b"X" + copy.read_bytes()[1:]
            copy.unlink()  # it may be a link into the store
            copy.write_bytes(damaged)
        done = wait_state(client, client.jobs.submit(spec(3)).name, "SUCCEEDED")
        assert [a.epoch for a in done.attempts()] == [2, 1]
