"""What it costs to go on at a late step: how long a trainer takes to its first step, beside a fresh run.

`python -m bench.resume_start [--step N] [--rounds N]`: times from the start of the process. The ratio is that
of the starts of the first step: the fresh run's is process start, imports, model load and tokenisation, and
nothing else. The position in the data should not matter. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.trainer import support
from tunesmith_trainer import tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=2000, help="step that is gone on from")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each kind; the least time counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.make(folder / "tiny")
        data = support.write_dataset(folder / "data", support.CONVERSATIONS * 50)
        every = str(options.step)
        job = support.spec(max_steps=str(options.step + 1), checkpoint_every_steps=every)
        late = support.make_run(folder / "late", folder / "tiny", data, job)
        started(late, time.time())
        checkpoint = support.checkpoint_of(late / "checkpoints" / f"step-{options.step:08d}", options.step)
        fresh: list[dict[str, float]] = []
        resumed: list[dict[str, float]] = []
        for number in range(options.rounds):
            once = {**job, "training": {**job["training"], "max_steps": "1"}}
            path = support.make_run(folder / f"fresh-{number}", folder / "tiny", data, once)
            fresh.append(started(path, time.time()))
            path = support.make_run(
                folder / f"resumed-{number}", folder / "tiny", data, job, checkpoint=checkpoint
            )
            resumed.append(started(path, time.time()))
    figures = {
        "start_and_load_s": least(fresh, "start"),
        "resume_to_first_step_s": least(resumed, "start"),
        "first_step_s": round(least(fresh, "end") - least(fresh, "start"), 3),
        "resume_ratio": round(least(resumed, "start") / least(fresh, "start"), 3),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def least(times: list[dict[str, float]], name: str) -> float:
    """The least of a time over all rounds, seconds."""
    return round(min(each[name] for each in times), 3)


def started(run: Path, began: float) -> dict[str, float]:
    """Runs a trainer to its end; seconds from `began` to the start and end of its first step."""
    command = [sys.executable, "-m", "tunesmith_trainer.worker", str(run)]
    subprocess.run(command, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    (span,) = [event for event in support.events(run, "span") if event["name"] == "first_step"]
    return {"start": span["start"] - began, "end": span["end"] - began}


if __name__ == "__main__":
    main()
