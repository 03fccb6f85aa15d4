"""What the platform on one machine costs: start, memory at rest, the way from a submission to the first step.

`python -m bench.embedded [--starts N] [--jobs N]`. A figure is the median of several; the last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import httpx
import psutil

from tests.support.platform import Platform, embedded, tiny_model
from tests.support.processes import BIN, clean_environment, wait_for
from tunesmith import Client
from tunesmith.api.jobs.v1 import state_pb2

_TRAINER = "tunesmith_trainer.worker"
_MIB = 1024 * 1024
# A standby trainer that has used no processor time for so long waits for work.
_REST_SECONDS = 1.0
_DEADLINE_SECONDS = 120.0
TARGETS = {
    "import_ms": "50",
    "cli_help_ms": "250",
    "cli_list_10000_ms": "400",
    "up_ready_s": "3",
    "idle_rss_mb": "300",
    "submit_to_spawn_ms": "300",
    "submit_to_first_step_s": "1.5",
}
JOB = {
    "experiment": "bench",
    "base_model": "tiny",
    "dataset": "sums",
    "training": {"max_steps": 4, "micro_batch_size": 4, "max_length": 64},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=3, help="platforms started")
    parser.add_argument("--jobs", type=int, default=2, help="jobs submitted to each")
    parser.add_argument("--listed", type=int, default=10_000, help="jobs that wait while they are listed")
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    figures = chain(
        client_figures(), platform_figures(options.starts, options.jobs), list_figures(options.listed)
    )
    for name, value in figures:
        found.setdefault(name, []).append(value)
    report(found, TARGETS)


def client_figures(rounds: int = 9) -> Iterator[tuple[str, float]]:
    """Times of the light client. The first round warms the disk's cache and is left out."""
    for number in range(rounds + 1):
        imported = run_python("import tunesmith")
        with_client = run_python("from tunesmith import Client")
        helped = timed(lambda: subprocess.run([BIN / "tunesmith", "--help"], check=True, capture_output=True))
        if number:
            yield "import_ms", imported
            yield "import_client_ms", with_client
            yield "cli_help_ms", helped * 1e3


def list_figures(num_jobs: int, rounds: int = 9) -> Iterator[tuple[str, float]]:
    """Times of `tunesmith list` while so many jobs wait for GPUs that no node has."""
    spec = {**JOB, "resources": {"gpus_per_node": 8}}
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder)) as platform:
        platform.load_inputs()
        with platform.client() as client, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: client.jobs.submit(spec), range(num_jobs)))
        for number in range(rounds + 1):
            shown = timed(lambda: platform.run("list"))
            if number:
                yield f"cli_list_{num_jobs}_ms", shown * 1e3


def run_python(statement: str) -> float:
    """Milliseconds a fresh interpreter takes for one statement; its own start is not counted."""
    lines = ["import time", "began = time.perf_counter()", statement, "print(time.perf_counter() - began)"]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=clean_environment({}), cwd="/"
    )
    return float(done.stdout) * 1e3


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def platform_figures(starts: int, jobs: int) -> Iterator[tuple[str, float]]:
    """Times and memory of `starts` platforms, each started on an empty folder."""
    tiny_model()
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            with embedded(Path(folder)) as platform:
                wait_for(lambda p=platform: is_ready(p), 30, "the platform is ready")  # type: ignore[misc]
                yield "up_ready_s", time.perf_counter() - began
                platform.load_inputs()
                await_standby(platform)
                yield from memory(platform)
                for _ in range(jobs):
                    yield from submission(platform)
                    await_standby(platform)


def is_ready(platform: Platform) -> bool:
    """Whether every service says that it can serve."""
    with contextlib.suppress(httpx.HTTPError), platform.rest() as rest:
        return rest.get("/readyz").status_code == 200
    return False


def tree(platform: Platform) -> list[psutil.Process]:
    """Every process of the platform, the standby trainer too."""
    root = psutil.Process(platform.processes["up"].pid)
    return [root, *root.children(recursive=True)]


def is_trainer(process: psutil.Process) -> bool:
    """Whether it is a trainer, standing by or at work."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return _TRAINER in process.cmdline()
    return False


def await_standby(platform: Platform) -> None:
    """Waits until the next trainer has its imports done: only then does it rest."""

    def rests() -> bool:
        trainers = [process for process in tree(platform) if is_trainer(process)]
        if len(trainers) != 1:
            return False
        before = trainers[0].cpu_times()
        time.sleep(_REST_SECONDS)
        after = trainers[0].cpu_times()
        return before[:2] == after[:2] and after.user > _REST_SECONDS

    wait_for(rests, _DEADLINE_SECONDS, "the standby trainer is ready")


def memory(platform: Platform) -> Iterator[tuple[str, float]]:
    """Memory at rest without the trainer: with shared pages divided (PSS), and with all of them (RSS)."""
    rollups = [rollup(process.pid) for process in tree(platform) if not is_trainer(process)]
    yield "idle_rss_mb", sum(each["Pss"] for each in rollups) / _MIB
    yield "idle_rss_with_shared_mb", sum(each["Rss"] for each in rollups) / _MIB


def rollup(pid: int) -> dict[str, int]:
    """Sizes of a process's memory in bytes, by name."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def submission(platform: Platform) -> Iterator[tuple[str, float]]:
    """One job: from the answer to the submission to the trainer, and from the call to the first step.

    Both ends are times that the platform itself noted: events of the job, and the trainer's first record.
    """
    with platform.client() as client:
        called = time.time()
        job = client.jobs.submit(JOB)
        answered = time.time()
        job.wait(_DEADLINE_SECONDS)
        assert job.succeeded, job.proto.failure
        yield "submit_ms", (answered - called) * 1e3
        yield (
            "submit_to_spawn_ms",
            (ready_time(client, job.id) - job.proto.create_time.ToNanoseconds() / 1e9) * 1e3,
        )
        first = job.series("train/loss")["train/loss"]
        assert first.steps[0] == 1
        yield "submit_to_first_step_s", float(first.times[0]) - called


def ready_time(client: Client, job: str) -> float:
    """When the agent said that the trainer runs, Unix time in seconds."""
    for event in client.jobs.get(job).events():
        if event.attempt_state_changed.to_state == state_pb2.ATTEMPT_STATE_READY:
            return event.time.ToNanoseconds() / 1e9
    raise AssertionError("the job had no trainer")


def report(found: dict[str, list[float]], targets: Mapping[str, str]) -> None:
    """Prints a table and, as the last line, the medians as JSON."""
    write = sys.stdout.write
    write(f"{'figure':<26}{'median':>10}{'least':>10}{'most':>10}{'runs':>6}{'target':>8}\n")
    for name, values in found.items():
        middle = statistics.median(values)
        row = f"{name:<26}{middle:>10.2f}{min(values):>10.2f}{max(values):>10.2f}{len(values):>6}"
        write(f"{row}{targets.get(name, ''):>8}\n")
    write(json.dumps({name: round(statistics.median(values), 3) for name, values in found.items()}) + "\n")


if __name__ == "__main__":
    main()
