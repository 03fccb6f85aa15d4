"""What an agent leaves behind when it dies at a bad moment, and what its successor makes of it.

The folders are brought into the state of that moment by hand: the moments are too short to be hit by a kill.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.jobs import check_whole, spec, wait_state, wait_step
from tests.support.platform import Platform, embedded
from tests.support.processes import wait_for


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for a platform; trainers that a failed test left are ended."""
    yield tmp_path
    for notes in (tmp_path / "data" / "nodes").glob("*/runs/*/agent.json"):
        pid = json.loads(notes.read_text())["pid"]
        if pid and psutil.pid_exists(pid):
            os.killpg(pid, signal.SIGKILL)


def runs(root: Path) -> Path:
    """The folder of the node's run folders."""
    (found,) = (root / "data" / "nodes").glob("*/runs")
    return found


def read(folder: Path) -> dict[str, Any]:
    """The agent's notes."""
    found: dict[str, Any] = json.loads((folder / "agent.json").read_text())
    return found


def end_trainer(pid: int) -> None:
    """SIGKILL to a trainer that no agent looks after."""
    trainer = psutil.Process(pid)
    os.killpg(pid, signal.SIGKILL)
    psutil.wait_procs([trainer], timeout=90)


def test_an_attempt_that_was_taken_but_not_started_is_started_by_the_next_agent(root: Path) -> None:
    with embedded(root) as platform:
        platform.load_inputs()
        with platform.client() as client:
            job = client.jobs.submit(spec(10_000))
            wait_step(client, job.name, 1)
        platform.processes["up"].kill()
    folder = runs(root) / f"{job.id}-1"
    notes = read(folder)
    end_trainer(notes["pid"])
    for left in [folder / "status.json", folder / "run.json", *folder.glob("spool/*")]:
        left.unlink()
    fresh = {key: notes[key] for key in ("job", "epoch", "node", "traceparent")}
    (folder / "agent.json").write_text(json.dumps(fresh))
    with embedded(root) as platform, platform.client() as client:
        wait_for(lambda: read(folder).get("pid"), 120, "a trainer works in the folder")
        client.jobs.get(job.name).cancel(now=True)
        done = wait_state(client, job.name, "CANCELLED")
        assert [a.epoch for a in done.attempts()] == [1]


def test_a_stop_that_was_noted_but_not_told_reaches_the_trainer(root: Path) -> None:
    with embedded(root) as platform:
        platform.load_inputs()
        with platform.client() as client:
            # The trainer must have time to save after the platform is back, however long that takes.
            job = client.jobs.submit({**spec(100_000), "deadlines": {"stop": "600s"}})
            wait_step(client, job.name, 5)
            folder = runs(root) / f"{job.id}-1"
            pid = read(folder)["pid"]
            os.killpg(pid, signal.SIGSTOP)
            job.cancel()
            wait_for(lambda: read(folder)["told_to_stop"], 90, "the agent noted the stop")
            wait_for(lambda: (folder / "control").read_text() == "stop\n", 90, "the trainer was told")
        platform.processes["up"].kill()
    (folder / "control").write_text("run\n")
    os.killpg(pid, signal.SIGCONT)
    with embedded(root) as platform, platform.client() as client:
        done = wait_state(client, job.name, "CANCELLED")
        assert done.proto.checkpoint.step >= 5


def test_the_trainer_of_an_attempt_that_was_just_replaced_is_ended(root: Path) -> None:
    with embedded(root) as platform:
        platform.load_inputs()
        with platform.client() as client:
            job = client.jobs.submit(spec(300))
            wait_step(client, job.name, 1)
        platform.processes["up"].kill()
    older = runs(root) / f"{job.id}-0"
    for name in ("spool", "logs", "checkpoints"):
        (older / name).mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as orphan:
        ticks = int(Path(f"/proc/{orphan.pid}/stat").read_text().rpartition(")")[2].split()[19])
        notes = {**read(runs(root) / f"{job.id}-1"), "epoch": 0, "pid": orphan.pid, "start_ticks": ticks}
        (older / "agent.json").write_text(json.dumps(notes))
        with embedded(root) as platform, platform.client() as client:
            done = wait_state(client, job.name, "SUCCEEDED")
            assert [a.epoch for a in done.attempts()] == [1]
            check_whole(platform, done, 300)
            wait_for(lambda: orphan.poll() is not None, 90, "the older trainer is ended")


@pytest.mark.parametrize(("notes", "epochs"), [(None, [1]), ({"ended": True, "closed": True}, [2, 1])])
def test_a_folder_that_is_there_already_does_not_hold_the_job_up(
    embedded_platform: Platform, notes: dict[str, Any] | None, epochs: list[int]
) -> None:
    """Half made by an agent that died over it; or used up, and the database restored from before."""
    with embedded_platform.client() as client:
        first = client.jobs.submit(spec(100_000))
        wait_step(client, first.name, 1)
        job = client.jobs.submit(spec(5))
        wait_state(client, job.name, "QUEUED")
        folder = runs(embedded_platform.root) / f"{job.id}-1"
        (folder / "spool").mkdir(parents=True)
        if notes is not None:
            place = {"job": job.name, "epoch": 1, "node": folder.parent.parent.name}
            (folder / "agent.json").write_text(json.dumps({**place, **notes}))
        first.cancel(now=True)
        done = wait_state(client, job.name, "SUCCEEDED")
        assert [a.epoch for a in done.attempts()] == epochs
        check_whole(embedded_platform, done, 5)
