"""What a metrics service that does not answer costs the training: `python -m bench.metrics_away`.

One job trains; its steps are timed while the platform's metrics service runs and while it is stopped, by
turns, from the times that the trainer itself wrote. The last line is JSON.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support import postgres
from tests.support.jobs import spec, wait_step
from tests.support.platform import Distributed, Platform

_TURN_SECONDS = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="turns of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, postgres.running() as server:
        site = Distributed(Path(folder), server, num_nats=1, nodes=("node-a",))
        with site.run() as platform:
            platform.load_inputs()
            ratio = step_ratio(platform, options.turns)
    sys.stdout.write(f"{'step_ratio_metrics_stopped':28} {ratio:>10}   <= 1.02\n")
    sys.stdout.write(json.dumps({"step_ratio_metrics_stopped": ratio}) + "\n")


def step_ratio(platform: Platform, turns: int) -> float:
    """Median step time with the service stopped over that with it running."""
    metrics = platform.processes["metrics"]
    spans: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    with platform.client() as client:
        job = client.jobs.submit(spec(1_000_000, log_every_steps=1))
        wait_step(client, job.name, 50)
        for _ in range(turns):
            for stopped in (False, True):
                os.kill(metrics.pid, signal.SIGSTOP if stopped else signal.SIGCONT)
                began = time.time_ns() // 1000
                time.sleep(_TURN_SECONDS)  # what is measured is what happens meanwhile
                spans[stopped].append((began, time.time_ns() // 1000))
        os.kill(metrics.pid, signal.SIGCONT)
        client.jobs.get(job.name).cancel()
        client.jobs.get(job.name).wait(60)
        series = client.metrics.series(job.name, ["train/loss"])["train/loss"]
        times = [round(at * 1e6) for at in series.times]
    took = {kind: statistics.median(steps_within(times, where)) for kind, where in spans.items()}
    return round(took[True] / took[False], 4)


def steps_within(times: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Microseconds of the steps that lie whole within one of the spans."""
    return [
        after - before
        for before, after in itertools.pairwise(times)
        if any(began <= before and after <= ended for began, ended in spans)
    ]


if __name__ == "__main__":
    main()
