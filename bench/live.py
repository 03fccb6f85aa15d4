"""From a step that is logged to the event that a viewer of the page gets: `python -m bench.live`.

The whole platform in one process, a real job on the tiny model, and a client that reads the same stream of
server-sent events as the page. A point carries the time at which the trainer wrote it. The last line is JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.jobs import spec, wait_step
from tests.support.platform import Platform, embedded

TARGETS = {"live_p50_ms": "<= 80", "live_p99_ms": "<= 200"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="steps of the job")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder)) as platform:
        platform.load_inputs()
        times = delays(platform, options.steps)
    found = {
        "live_p50_ms": percentile(times, 50),
        "live_p99_ms": percentile(times, 99),
        "live_points": len(times),
    }
    for name, value in found.items():
        sys.stdout.write(f"{name:24} {value:>14}   {TARGETS.get(name, '')}\n")
    sys.stdout.write(json.dumps(found) + "\n")


def delays(platform: Platform, steps: int) -> list[float]:
    """Milliseconds from the writing of a step's record to its event, for each step after the stream stood."""
    found: list[float] = []
    with platform.client() as client, platform.rest() as rest:
        job = client.jobs.submit(spec(steps, log_every_steps=1))
        wait_step(client, job.name, 20)
        path = f"/api/v1/{job.name}/series:watch"
        with rest.stream("GET", path, params={"keys": "train/loss"}, timeout=None) as stream:
            began, last = time.time_ns() // 1000, 0
            for line in stream.iter_lines():
                if not line.startswith("data: "):
                    continue
                now = time.time_ns() // 1000
                for series in json.loads(line[6:])["series"]:
                    for step, at in zip(series["steps"], series["times_us"], strict=True):
                        if int(at) > began + 1_000_000:  # the agent has heard that somebody watches
                            found.append((now - int(at)) / 1000)
                        last = max(last, int(step))
                if last >= steps - 1:
                    return found
    return found


def percentile(values: list[float], which: int) -> float:
    return round(statistics.quantiles(values, n=100, method="inclusive")[which - 1], 1)


if __name__ == "__main__":
    main()
