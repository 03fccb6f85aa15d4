"""A cancel ends in bounded time, whatever the trainer, the store or the bus are at."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.jobs import check_whole, spec, wait_state, wait_step
from tests.support.platform import Platform
from tests.support.processes import children, runs, wait_for


def trainer_of(platform: Platform, job_id: str) -> int:
    """Pid of the trainer of a job's first attempt."""
    (notes,) = platform.root.glob(f"data/**/runs/{job_id}-1/agent.json")
    pid: int = json.loads(notes.read_text())["pid"]
    return pid


@contextmanager
def bus_without_its_disk(platform: Platform) -> Iterator[None]:
    """Kills every NATS server, and starts them again with nothing."""
    servers = [p for name, p in platform.processes.items() if name.startswith("nats-")]
    for server in servers:
        server.kill()
        shutil.rmtree(platform.root / server.name / "data")
    try:
        yield
    finally:
        for server in servers:
            server.start()


@pytest.mark.parametrize("now", [False, True], ids=["graceful", "now"])
def test_a_cancel_waits_for_no_import(embedded_platform: Platform, now: bool) -> None:
    _cancel_beside_a_hung_standby(embedded_platform, now)


def test_a_cancel_waits_for_no_fork(embedded_platform: Platform) -> None:
    with embedded_platform.client() as client:  # once a job has trained, the imports are done
        wait_state(client, client.jobs.submit(spec(2)).name, "SUCCEEDED")
    _cancel_beside_a_hung_standby(embedded_platform, now=False, handed_over=True)


def _cancel_beside_a_hung_standby(embedded_platform: Platform, now: bool, handed_over: bool = False) -> None:
    up = embedded_platform.processes["up"].pid
    waiting = wait_for(lambda: children(up, "--standby"), 90, "a trainer stands by")[0]
    waiting.suspend()  # it stands for a process that hangs
    try:
        with embedded_platform.client() as client:
            job = client.jobs.submit(spec(5))
            wait_state(client, job.name, "STARTING")
            if handed_over:  # the folder is written: the agent waits for a fork now
                wait_for(
                    lambda: any(embedded_platform.root.glob(f"data/**/runs/{job.id}-1/run.json")), 90, "it"
                )
            job.cancel(now=now)
            # An agent that knows no better waits 20 s for a fork, and 2 minutes for the imports.
            wait_state(client, job.name, "CANCELLED", seconds=18 if handed_over else 90)
        pid = trainer_of(embedded_platform, job.id)
        assert not pid or not runs(pid), "nobody goes on training"
    finally:
        with suppress(psutil.NoSuchProcess):
            waiting.resume()


def test_a_cancel_now_does_not_wait_for_the_blob_store(embedded_platform: Platform, tmp_path: Path) -> None:
    blobs = embedded_platform.root / "data" / "blobs"
    with embedded_platform.client() as client:
        job = client.jobs.submit(spec(100_000, checkpoint_every_steps=50))
        wait_step(client, job.name, 5)
        blobs.rename(tmp_path / "away")
        blobs.touch()
        try:
            step = wait_step(client, job.name, 5).proto.progress.step
            wait_step(client, job.name, step + 120)  # a checkpoint waits for the store now
            job.cancel(now=True)
            wait_state(client, job.name, "CANCELLED", seconds=90)
        finally:
            blobs.unlink()
            (tmp_path / "away").rename(blobs)


@pytest.mark.distributed
def test_a_cancel_reaches_a_hung_trainer_though_the_bus_lost_the_command(
    distributed_platform: Platform,
) -> None:
    with distributed_platform.client() as client:
        job = client.jobs.submit(spec(100_000))
        wait_step(client, job.name, 1, seconds=300)
        pid = trainer_of(distributed_platform, job.id)
        os.killpg(pid, signal.SIGSTOP)
        with bus_without_its_disk(distributed_platform):
            job.cancel(now=True)
            wait_state(client, job.name, "CANCELLED", seconds=100)
        assert not runs(pid)


@pytest.mark.distributed
def test_the_end_of_a_run_in_an_outage_of_the_bus_loses_no_point(distributed_platform: Platform) -> None:
    platform = distributed_platform
    with platform.client() as client:
        job = client.jobs.submit(spec(300))
        wait_step(client, job.name, 100, seconds=300)
        with bus_without_its_disk(platform):
            wait_state(client, job.name, "FINALIZING")
        done = wait_state(client, job.name, "SUCCEEDED")
        check_whole(platform, done, 300)
