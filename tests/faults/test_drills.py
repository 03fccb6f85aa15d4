"""Faults that need their moment: everything but the node away, two writers, and a power cut."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.site import Site, Trainer
from tests.support import mounts
from tests.support.jobs import check_whole, output_digest, spec, wait_state, wait_step
from tests.support.network import why_no_namespaces
from tests.support.processes import wait_for
from tunesmith import Client
from tunesmith.errors import Unavailable
from tunesmith_agent.process import start_ticks

STEPS = 300
ACKED = 200


def job_spec() -> dict[str, object]:
    """The job of both drills; it is given up as soon as its node's lease has run out."""
    return {**spec(STEPS, checkpoint_every_steps=25), "retry": {"unreachable_grace": "0s"}}


@pytest.fixture(scope="module")
def undisturbed(distributed_site: Site) -> str:
    """Weights of the job nobody disturbed."""
    with distributed_site.platform.client() as client:
        job = client.jobs.submit(job_spec())
        return output_digest(client, wait_state(client, job.name, "SUCCEEDED", seconds=400))


def started(site: Site, client: Client, step: int) -> tuple[str, Trainer]:
    """Submits the job and returns its name and trainer once it trains."""
    job = client.jobs.submit(job_spec())
    wait_step(client, job.name, step, seconds=400)
    (trainer,) = [trainer for trainer in site.trainers() if trainer.job_id == job.id]
    return job.name, trainer


@pytest.mark.distributed
@pytest.mark.timeout(1500)
def test_a_job_trains_to_its_end_with_nobody_there(distributed_site: Site, undisturbed: str) -> None:
    site = distributed_site
    assert site.database is not None
    away = [process for name, process in site.processes.items() if not name.startswith("node-")]
    with site.platform.client() as client:
        name, trainer = started(site, client, 5)
        os.killpg(trainer.pid, signal.SIGSTOP)  # most of its steps are to be made with nobody there
        for process in away:
            process.kill()
        site.database.kill()
        try:
            os.killpg(trainer.pid, signal.SIGCONT)
            wait_for(lambda: start_ticks(trainer.pid) is None, 400, "it trained to its end on its own")
        finally:
            site.database.start()
            for process in away:
                process.start()
        wait_for(lambda: _reachable(client, name), 200, "the platform answers again")
        done = wait_state(client, name, "SUCCEEDED", seconds=400)
        assert [attempt.epoch for attempt in done.attempts()] == [1], "it was never started again"
        check_whole(site.platform, done, STEPS)
        assert output_digest(client, done) == undisturbed


def _reachable(client: Client, name: str) -> bool:
    try:
        return bool(client.jobs.get(name).id)
    except Unavailable:
        return False


@pytest.mark.distributed
@pytest.mark.timeout(1500)
def test_the_first_of_two_writers_is_refused_and_ends(distributed_site: Site, undisturbed: str) -> None:
    site = distributed_site
    with site.platform.client() as client:
        name, trainer = started(site, client, 60)
        node = trainer.folder.parent.parent.name
        agent = site.processes[node].pid
        os.kill(agent, signal.SIGSTOP)
        os.killpg(trainer.pid, signal.SIGSTOP)
        try:
            done = wait_state(client, name, "SUCCEEDED", seconds=400)
        finally:
            os.killpg(trainer.pid, signal.SIGCONT)
            os.kill(agent, signal.SIGCONT)
        wait_for(lambda: start_ticks(trainer.pid) is None, 200, "the first writer is gone")

        def refused() -> bool:
            events = client.jobs.get(name).events()
            return any(
                e.HasField("stale_report_refused") and e.stale_report_refused.stale_epoch == 1 for e in events
            )

        wait_for(refused, 120, "the refusal is in the job's history")
        assert [attempt.epoch for attempt in done.attempts()] == [2, 1]
        assert done.attempts()[0].nodes != [node], "the second attempt ran elsewhere"
        versions = [version for version in client.models.versions("system") if version.job == name]
        assert len(versions) == 1
        check_whole(site.platform, client.jobs.get(name), STEPS)
        assert output_digest(client, done) == undisturbed


@pytest.mark.distributed
@pytest.mark.timeout(1500)
def test_a_node_that_only_hears_or_is_only_heard_trains_on(distributed_site: Site, undisturbed: str) -> None:
    net = distributed_site.network
    if net is None:
        pytest.skip(why_no_namespaces())
    with distributed_site.platform.client() as client:
        name, trainer = started(distributed_site, client, 5)
        node = trainer.folder.parent.parent.name
        for cut in (net.deafen, net.mute, net.cut):
            cut(node)
            try:
                _trains_on(trainer)
            finally:
                net.heal(node)
        done = wait_state(client, name, "SUCCEEDED", seconds=400)
        assert [attempt.epoch for attempt in done.attempts()] == [1], "it was never started again"
        check_whole(distributed_site.platform, done, STEPS)
        assert output_digest(client, done) == undisturbed


def _trains_on(trainer: Trainer) -> None:
    reached = _step(trainer)
    wait_for(lambda: _step(trainer) >= min(reached + 1, STEPS), 200, "it trains in the dark")


def _step(trainer: Trainer) -> int:
    return int(json.loads((trainer.folder / "status.json").read_text())["step"])


def test_a_power_cut_loses_no_accepted_job(tmp_path: Path) -> None:
    if why := mounts.why_no_images():
        pytest.skip(why)
    image, cut = tmp_path / "disk.img", tmp_path / "cut.img"
    mounts.make_image(image)
    acked = tmp_path / "acked"
    with mounts.mounted(image, tmp_path / "disk"), acked.open("wb") as output:
        command = [sys.executable, "-m", "tests.faults.ledger", str(tmp_path / "disk")]
        ledger = subprocess.Popen(command, stdout=output)
        try:
            wait_for(lambda: acked.read_text().count("\n") >= ACKED, 200, "jobs are accepted")
            promised = acked.read_text().split("\n")[:-1]
            shutil.copyfile(image, cut)  # what the disk holds at this instant, in the middle of the work
        finally:
            ledger.kill()
            ledger.wait()
    with mounts.mounted(cut, tmp_path / "after"):
        connection = sqlite3.connect(tmp_path / "after" / "jobs.db")
        kept = {row[0] for row in connection.execute("SELECT id FROM jobs")}
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    assert len(promised) >= ACKED
    assert set(promised) <= kept
