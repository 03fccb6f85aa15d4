"""How fluent the page of a job with a million points and a million lines is: `python -m bench.page`.

The whole platform, Chromium without a screen, and a job whose points (of 50 metrics) and lines are put on the
bus as an agent does. Frames are recorded in the page while it is scrolled, zoomed, given more charts and
smoothed, and while the log is scrolled to either side of a step. The last line is JSON.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.clients import test_page
from tests.support.jobs import wait_state
from tests.support.logs import agents_bus, write_log
from tests.support.platform import Platform, embedded
from tests.support.processes import wait_for
from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus

_LONG, _NUM_LONG = "train/loss", 1_000_000
_OTHERS, _NUM_OTHERS = [f"train/layer{number:02}" for number in range(49)], 20_000
_ROWS = 10_000
_NUM_LINES, _NEEDLE = 1_000_000, 1234


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium here: apt-get install chromium")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        embedded(Path(folder)) as platform,
    ):
        job = fill(platform)
        command = ["node", "frames.mjs", platform.http, platform.token, chromium, job, folder]
        done = subprocess.run(command, cwd=test_page.FOLDER, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        shutil.copy(Path(folder) / "million.png", Path(tempfile.gettempdir()) / "million.png")
    for name, value in found.items():
        sys.stdout.write(f"{name:16} {value}\n")
    sys.stdout.write(json.dumps({"page": found}) + "\n")


def fill(platform: Platform) -> str:
    """Makes a job that ended, and gives it the points of a long run; returns its name."""
    with platform.client() as client:
        job = client.jobs.submit({"experiment": "long", "base_model": "none", "dataset": "none"})
        wait_state(client, job.name, "FAILED")
        asyncio.run(send(platform, job.id))

        def stored() -> bool:
            found = {each.key: each.num_points for each in client.metrics.list(job.name)}
            return found.get(_LONG) == _NUM_LONG and found.get(_OTHERS[-1]) == _NUM_OTHERS

        wait_for(stored, 120, "every point is stored")

        def logged() -> bool:
            return any(line.text.startswith(f"{_NUM_LINES - 1} ") for line in job.logs(tail=1))

        wait_for(logged, 120, "every line is stored")
    return str(job.name)


async def send(platform: Platform, job_id: str) -> None:
    """Publishes the points in messages as an agent packs them."""
    bus = await agents_bus(platform)
    rng = np.random.default_rng(1)
    for first in range(0, _NUM_LONG, _ROWS):
        steps = np.arange(first, first + _ROWS)
        loss = 3 * np.exp(-steps / 2e5) + rng.normal(scale=0.1, size=_ROWS) + 5.0 * (steps == 654_321)
        await publish(bus, job_id, 0, first, [_LONG], loss.reshape(-1, 1))
    for first in range(0, _NUM_OTHERS, _ROWS // 10):
        values = rng.normal(size=(_ROWS // 10, len(_OTHERS))).cumsum(axis=0)
        await publish(bus, job_id, 1, first, _OTHERS, values)
    await write_log(bus, job_id, 0, _NUM_LINES, line)
    await bus.close()


def line(number: int) -> tuple[str, str]:
    """A line of the log, and its level."""
    if number == _NEEDLE:
        return "WARNING", f"{number} a needle"
    return "INFO", f"{number} TRAIN_BATCH_END step {number // 10}/100000 loss 1.2345 tokens/s 1234"


async def publish(bus: Bus, job_id: str, rank: int, first: int, keys: list[str], values: Any) -> None:
    matrix = events_pb2.MetricMatrix(
        key_indices=range(len(keys)),
        step_deltas=[first + 1] + [1] * (len(values) - 1),
        time_deltas_us=[1_790_000_000_000_000 + first * 10_000] + [10_000] * (len(values) - 1),
        values=values.ravel().tolist(),
    )
    batch = events_pb2.MetricBatch(
        job_id=job_id, epoch=1, rank=rank, first_seq=first + 1, num_records=len(values), keys=keys,
        matrices=[matrix],
    )  # fmt: skip
    msg_id = f"{job_id}:1:{rank}:{first + 1}"
    await bus.publish(subjects.metrics("default", job_id, 1, rank), batch.SerializeToString(), msg_id)


if __name__ == "__main__":
    main()
