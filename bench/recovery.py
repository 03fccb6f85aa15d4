"""How long until things are well again: a trainer killed, a job paused, a node lost, a broker killed.

`python -m bench.recovery [--rounds N] [--messages N]`. Times are those the platform noted in its events,
or the wall clock where it cannot know (a process that is gone). The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.embedded import report
from tests.support.bus import connected, running_nats
from tests.support.jobs import spec, wait_state, wait_step
from tests.support.platform import Distributed, Platform, embedded, tiny_model
from tests.support.postgres import Postgres
from tests.support.processes import wait_for
from tunesmith.api.jobs.v1 import state_pb2
from tunesmith_kit import subjects

_JOB = "01k0000000000000000000000a"
_WINDOW_SECONDS = 125  # a little more than the window of metrics; that of events is a day
TARGETS = {
    "kill_to_noticed_s": "1",
    "kill_to_training_s": "15+load",
    "pause_to_gone_s": "2+step",
    "node_dead_to_rescheduled_s": "15",
    "broker_1m_usable_s": "1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times each thing is done")
    parser.add_argument("--messages", type=int, default=1_000_000, help="messages in the killed broker")
    options = parser.parse_args()
    tiny_model()
    found: dict[str, list[float]] = {}
    for name, value in measured(options.rounds, options.messages):
        found.setdefault(name, []).append(value)
    report(found, TARGETS)


def measured(rounds: int, messages: int) -> Iterator[tuple[str, float]]:
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder)) as platform:
        platform.load_inputs()
        for _ in range(rounds):
            yield from trainer_killed(platform)
            yield "pause_to_gone_s", paused(platform)
    for _ in range(rounds):
        yield "node_dead_to_rescheduled_s", node_lost()
    backlog = subjects.metrics("bench", _JOB, 1, 0)
    yield "broker_1m_usable_s", asyncio.run(broker_killed(messages, backlog, settled=_WINDOW_SECONDS))
    events = subjects.job_event("bench", _JOB, "state_changed")
    yield "broker_1m_events_of_today_usable_s", asyncio.run(broker_killed(messages, events, settled=0))


def trainer_killed(platform: Platform) -> Iterator[tuple[str, float]]:
    """SIGKILL to a trainer: until the platform knows, and until a step beyond the last is made."""
    with platform.client() as client:
        job = client.jobs.submit(spec(1_000_000))
        wait_step(client, job.name, 50)
        pid = trainer_of(platform, job.id)
        began = time.time()
        os.killpg(pid, signal.SIGKILL)
        wait_for(lambda: client.jobs.get(job.name).proto.epoch == 2, 60, "the second attempt")
        noticed = attempt_time(client.jobs.get(job.name), 1, state_pb2.ATTEMPT_STATE_FAILED)
        yield "kill_to_noticed_s", noticed - began
        wait_for(lambda: trained_since(client.jobs.get(job.name), 2), 60, "a step of the second attempt")
        running = attempt_time(client.jobs.get(job.name), 2, state_pb2.ATTEMPT_STATE_RUNNING)
        yield "kill_to_training_s", running - began
        client.jobs.get(job.name).cancel(now=True)
        wait_state(client, job.name, "CANCELLED")


def paused(platform: Platform) -> float:
    """Seconds from the call to the end of the trainer process."""
    with platform.client() as client, platform.rest() as rest:
        job = client.jobs.submit(spec(1_000_000))
        wait_step(client, job.name, 50)
        trainer = psutil.Process(trainer_of(platform, job.id))
        began = time.monotonic()
        rest.post(f"/api/v1/{job.proto.name}:pause", json={}).raise_for_status()
        while trainer.is_running() and trainer.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.005)
        seconds = time.monotonic() - began
        wait_state(client, job.name, "PAUSED")
        client.jobs.get(job.name).cancel(now=True)
        return seconds


def node_lost() -> float:
    """Seconds from the death of all of a node's processes to the next attempt on another node."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.ExitStack() as stack,
    ):
        root = Path(folder)
        os.chmod(root, 0o755)  # noqa: PTH101  PostgreSQL runs as a user of its own
        postgres = Postgres(root / "postgres")
        stack.callback(postgres.stop)
        platform = stack.enter_context(Distributed(root, postgres).run())
        platform.load_inputs()
        with platform.client() as client:
            job = client.jobs.submit(spec(1_000_000))
            wait_step(client, job.name, 20)
            (node,) = client.jobs.get(job.name).attempts()[0].nodes
            pid = trainer_of(platform, job.id)
            began = time.time()
            platform.processes[node].kill()
            os.killpg(pid, signal.SIGKILL)
            wait_for(lambda: client.jobs.get(job.name).proto.epoch == 2, 60, "the second attempt")
            found = client.jobs.get(job.name)
            seconds = attempt_time(found, 2, state_pb2.ATTEMPT_STATE_RESERVED) - began
            found.cancel(now=True)
            wait_state(client, job.name, "CANCELLED")
            return seconds


async def broker_killed(messages: int, subject: str, settled: float) -> float:
    """Seconds from the restart of a server full of messages, killed so long after the last, to the first new
    one stored. The server reads again whatever is younger than a stream's window for repeated ids."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_nats(Path(folder)) as server, connected(server) as bus:
            payload = os.urandom(100)
            pending: list[asyncio.Future[Any]] = []
            for number in range(messages):
                pending.append(await bus.publish_soon(subject, payload, f"bench-{number}"))
                if len(pending) == 10_000:
                    await asyncio.gather(*pending)
                    pending.clear()
            await asyncio.gather(*pending)
            await asyncio.sleep(settled)
            await server.kill()
            began = time.monotonic()
            await server.start()
            await bus.publish(subject, payload, "after", deadline=60)
            return time.monotonic() - began


def trainer_of(platform: Platform, job_id: str) -> int:
    """Process id of a job's trainer, from the agent's notes."""
    notes = [json.loads(path.read_text()) for path in platform.root.glob(f"**/runs/{job_id}-*/agent.json")]
    pid: int = max(notes, key=lambda note: note["epoch"])["pid"]
    return pid


def attempt_time(job: Any, epoch: int, state: int) -> float:
    """When the platform noted a state of an attempt, Unix seconds; RESERVED is its creation."""
    if state == state_pb2.ATTEMPT_STATE_RESERVED:
        (attempt,) = [attempt for attempt in job.attempts() if attempt.epoch == epoch]
        return float(attempt.create_time.ToNanoseconds() / 1e9)
    for event in job.events():
        if event.epoch == epoch and event.attempt_state_changed.to_state == state:
            return float(event.time.ToNanoseconds() / 1e9)
    raise AssertionError(f"attempt {epoch} never reached {state}")


def trained_since(job: Any, epoch: int) -> bool:
    """Whether the attempt of this epoch makes steps."""
    return bool(job.proto.epoch == epoch and job.state == "RUNNING" and job.proto.progress.step)


if __name__ == "__main__":
    main()
