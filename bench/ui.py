"""`make bench-ui`: how quick the page is, from its size to the pixel; the last line is JSON.

The whole platform, Chromium without a screen, a run of a million points put on the bus as an agent does,
programs that record their runs with `tunesmith.log`, and a thousand runs in a table and in pictures.
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.page import fill, publish
from tests.clients.test_page import FOLDER, STATIC
from tests.support.platform import Platform, embedded
from tests.support.processes import clean_environment, wait_for
from tunesmith_kit.bus import Bus

TARGETS = {
    "bundle_kib_gz": "<= 150",
    "first_chart_ms": "<= 1000",
    "log_to_pixel_p95_ms": "<= 300",
    "first_draw_1m_ms": "<= 300",
    "zoom_1m_ms": "<= 100",
    "live_fps": ">= 50",
    "table_worst_frame_ms": "<= 32",
    "compare_1000_ms": "<= 2000",
    "compare_worst_frame_ms": "<= 32",
}
# A program of somebody's own. It logs until its input ends, then tells when each value was logged.
_PROGRAM = """
import json, sys, threading, time, tunesmith
keys, pause = json.loads(sys.argv[1]), float(sys.argv[2])
run = tunesmith.init(experiment="live")
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
print(run.id, flush=True)
times = []
while not ended.wait(pause):
    times.append(1000 * time.time())
    tunesmith.log({key: len(times) + at / 10 for at, key in enumerate(keys)}, step=len(times))
print(json.dumps(times), flush=True)
tunesmith.finish()
"""
_PAUSE = 0.1
_SETTINGS: dict[str, list[float] | list[int]] = {
    "learning_rate": [1e-4, 3e-4, 1e-3],
    "warmup_steps": [0, 10, 100],
    "weight_decay": [0.0, 0.01, 0.1],
    "max_grad_norm": [0.5, 1.0, 2.0],
    "micro_batch_size": [4, 8, 16],
    "max_steps": [100, 200, 400],
    "max_length": [128, 256, 512],
}
WIDE = [f"s{series}/m{chart}" for chart in range(10) for series in range(10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--live-runs", type=int, default=20, help="programs that log at once")
    parser.add_argument("--seconds", type=float, default=15, help="how long live charts are watched")
    parser.add_argument("--runs", type=int, default=1000, help="rows of the table")
    parser.add_argument("--only-runs", action="store_true", help="only the thousand runs")
    options = parser.parse_args()
    found: dict[str, Any] = {"bundle_kib_gz": bundle_kib()}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        embedded(Path(folder)) as platform,
    ):
        if not options.only_runs:
            found |= look(platform, "long", fill(platform).rsplit("/", 1)[-1])
            found |= live(platform, options.live_runs, options.seconds)
        runs(platform, options.runs)
        found |= look(platform, "table", str(options.runs))
        compared = look(platform, "compare", str(options.runs))
        sys.stdout.write(f"compare: {json.dumps(compared)}\n")
        found |= compared
    for name, target in TARGETS.items():
        sys.stdout.write(f"{name:24} {found.get(name, '-'):>10}   {target}\n")
    sys.stdout.write(json.dumps({name: found[name] for name in TARGETS if name in found}) + "\n")


def bundle_kib() -> float:
    """KiB of all files of the built page, each packed as a server sends it."""
    files = [path for path in STATIC.parent.rglob("*") if path.is_file()]
    return round(sum(len(gzip.compress(path.read_bytes(), 9)) for path in files) / 1024, 1)


def look(platform: Platform, part: str, *arguments: str) -> dict[str, Any]:
    """Runs a part of the script in the browser and returns what it found."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or not STATIC.exists():
        raise SystemExit("a Chromium (apt-get install chromium) and the built page (make web) are needed")
    command = ["node", "speed.mjs", platform.http, platform.token, chromium, part, *arguments]
    done = subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@contextlib.contextmanager
def logging_program(platform: Platform, keys: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A program that records a run; its first line is the run's id."""
    env = clean_environment(
        {
            "TUNESMITH_ADDRESS": platform.address,
            "TUNESMITH_TOKEN": platform.token,
            "TUNESMITH_RUNS_DIR": str(platform.root / "runs"),
        }
    )
    command = [sys.executable, "-c", _PROGRAM, json.dumps(keys), str(_PAUSE)]
    program = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def live(platform: Platform, num_runs: int, seconds: float) -> dict[str, Any]:
    """Log call to pixel with so many live runs, and frames of ten live charts with ten curves each."""
    with contextlib.ExitStack() as stack:
        keys = [["train/loss", "train/learning_rate"]] * (num_runs - 1)
        programs = [stack.enter_context(logging_program(platform, each)) for each in [*keys, WIDE]]
        ids = []
        for program in programs:
            assert program.stdout is not None
            ids.append(program.stdout.readline().strip())
        seen = look(platform, "live", ids[0], ids[-1], str(seconds))
        logged: list[float] = json.loads(programs[0].communicate("", timeout=60)[0].splitlines()[-1])
    if seen["lines"] != len(WIDE):
        raise SystemExit(f"{len(WIDE)} curves were to be live, {seen['lines']} were")
    delays = delays_of(seen["shown"], logged)
    sys.stdout.write(
        f"{len(delays)} values, p50 {statistics.median(delays):.0f} ms, worst {max(delays):.0f} ms; "
        f"{seen['drawn']} curves drawn, worst frame {seen['worst_ms']} ms\n"
    )
    p95 = statistics.quantiles(delays, n=20, method="inclusive")[-1]
    return {"log_to_pixel_p95_ms": round(p95, 1), "live_fps": round(seen["fps"], 1)}


def delays_of(shown: list[tuple[float, float]], logged: list[float]) -> list[float]:
    """Milliseconds from each log call to the frame that showed its value or a later one.

    Args:
        shown: (value, when) in order; the value of the n-th call is n.
        logged: when each call was made. All times in milliseconds of the clock.
    """
    found: list[float] = []
    for (before, _), (value, when) in pairwise(shown):
        found += [when - logged[call - 1] for call in range(int(before) + 1, int(value) + 1)]
    return found


def runs(platform: Platform, number: int) -> None:
    """Makes runs with ten settings and last values of their own; without a base model they end at once."""
    rng = np.random.default_rng(1)
    with platform.client() as client:
        ids = []
        for at in range(number):
            training = {"seed": at} | {name: rng.choice(some).item() for name, some in _SETTINGS.items()}
            lora = {"r": rng.choice([4, 8, 16, 32]).item(), "dropout": rng.choice([0.0, 0.05, 0.1]).item()}
            spec = {
                "experiment": "table",
                "base_model": "none",
                "dataset": "none",
                "training": training,
                "adapter": {"lora": lora},
                "labels": {"sweep": f"sweep-{at % 20}"},
            }
            ids.append(client.jobs.submit(spec).id)
        asyncio.run(_points(platform, ids, rng))

        def stored() -> bool:
            return client.runs.query("experiment = table and has `train/loss`", limit=1).total >= number

        wait_for(stored, 300, f"the points of {number} runs are stored")


async def _points(platform: Platform, ids: list[str], rng: np.random.Generator) -> None:
    (ports,) = (platform.root / "data" / "nats").glob("*.ports")
    url = json.loads(ports.read_text())["nats"][0]
    bus = await Bus.connect(url, platform.nats_token, "agent", ensure_streams=False)
    keys = ["train/loss", "eval/loss", "train/grad_norm", "train/tokens_per_second", "eval/accuracy"]
    for job_id in ids:
        await publish(bus, job_id, 0, 0, keys, 1 + rng.normal(scale=0.1, size=(50, len(keys))))
    await bus.close()


if __name__ == "__main__":
    main()
