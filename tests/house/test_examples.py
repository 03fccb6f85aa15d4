"""The examples do what they say."""

import asyncio
import os
import sys
from pathlib import Path

from tests.house.tables import ROOT
from tunesmith.api.jobs.v1 import events_pb2, state_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, event_headers
from tunesmith_kit.clock import SystemClock
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.nats_server import EmbeddedNats

_TOKEN = "bus-test-token"
_DEADLINE_SECONDS = 20


async def say(bus: Bus, state: "state_pb2.JobState.ValueType") -> None:
    """Publishes an event as the jobs service does."""
    event_id = new_ulid()
    changed = events_pb2.JobStateChanged(to_state=state)
    event = events_pb2.JobEvent(event_id=event_id, display_name="demo-k3f9", state_changed=changed)
    headers = event_headers(event_id, event.DESCRIPTOR.full_name, "tunesmith/jobs", SystemClock().now())
    subject = subjects.job_event("default", new_ulid(), "state_changed")
    await bus.publish(subject, event.SerializeToString(), event_id, headers)


async def test_subscriber_prints_what_was_and_what_comes(tmp_path: Path) -> None:
    nats = EmbeddedNats(tmp_path / "nats", token=_TOKEN)
    await nats.start()
    bus = await Bus.connect(nats.url, _TOKEN, "tests")
    await say(bus, state_pb2.JOB_STATE_QUEUED)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "examples" / "subscriber.py"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TUNESMITH_NATS_URL": nats.url, "TUNESMITH_NATS_TOKEN": _TOKEN},
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(_DEADLINE_SECONDS):
            assert await child.stdout.readline() == b"demo-k3f9 to_state: JOB_STATE_QUEUED\n"
            await say(bus, state_pb2.JOB_STATE_RUNNING)
            assert await child.stdout.readline() == b"demo-k3f9 to_state: JOB_STATE_RUNNING\n"
    finally:
        child.kill()
        await child.communicate()
        await bus.close()
        await nats.stop()
