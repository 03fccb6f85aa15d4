"""Logs of any length, put on the bus as an agent packs them."""

import json
from collections.abc import Callable

from tests.support.platform import Platform
from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus

_LINES = 1000
_START_US = 1_790_000_000_000_000


async def agents_bus(platform: Platform) -> Bus:
    """Returns the platform's bus, connected as an agent."""
    (ports,) = (platform.root / "data" / "nats").glob("*.ports")
    url = json.loads(ports.read_text())["nats"][0]
    return await Bus.connect(url, platform.nats_token, "agent", ensure_streams=False)


async def write_log(
    bus: Bus, job_id: str, rank: int, num_lines: int, line: Callable[[int], tuple[str, str]]
) -> int:
    """Publishes the log of a rank and returns its bytes. `line` gives level and text of a line by its number;
    ten lines are a step, and a millisecond passes with each."""
    offset = 0
    for first in range(0, num_lines, _LINES):
        chunk = events_pb2.LogChunk(
            job_id=job_id, epoch=1, rank=rank, offset=offset, time_us=_START_US + first * 1000 + rank
        )
        for number in range(first, min(first + _LINES, num_lines)):
            level, text = line(number)
            chunk.lines.append(text)
            chunk.levels.append(events_pb2.LogLevel.Value(f"LOG_LEVEL_{level}"))
            chunk.steps.append(number // 10)
            chunk.line_offsets.append(offset + chunk.num_bytes)
            chunk.num_bytes += len(text.encode()) + 1
        msg_id = f"{job_id}:1:{rank}:log:{offset}"
        await bus.publish(subjects.logs("default", job_id, 1, rank), chunk.SerializeToString(), msg_id)
        offset += chunk.num_bytes
    return offset
