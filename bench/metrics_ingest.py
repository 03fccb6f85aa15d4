"""How fast metrics become durable: spool, agent's reader, bus, ingest with real commits, watermark.

`python -m bench.metrics_ingest [--runs N --seconds N]`. Three processes: this one, which reads spool files
and publishes as an agent does, nats-server, and the metrics service on SQLite. The clock runs from the first
byte read of the spool until the watermarks say that all of it is stored. With `--runs`, so many runs log 10
values 10 times a second, each shipped as often as an agent does. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import uvloop
from numpy.typing import NDArray
from sqlalchemy import text

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_agent.shipper import FLUSH_SECONDS
from tunesmith_agent.spool import Block, Record, SpoolReader, pack
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, Message
from tunesmith_kit.db import Database
from tunesmith_kit.nats_server import EmbeddedNats
from tunesmith_metrics.compact import Compactor
from tunesmith_trainer.report import MetricSpool

Floats = NDArray[np.float64]
_TOKEN = "bench-token"
_KEYS = tuple(f"train/layer{i:02d}/some_metric" for i in range(10))
_RANKS = 4
_NUM_POINTS = {1000: 8_000_000, 100: 2_000_000, 10: 400_000}
_SERVE = "import sys; from tunesmith_kit.host import serve; sys.exit(serve('metrics'))"
TARGETS = {
    "durable_1000": ">= 4,000,000 points/s",
    "durable_100": ">= 1,200,000 points/s",
    "durable_10": ">= 200,000 points/s",
    "bytes_per_point": "<= 9",
    "bytes_per_point_smooth": "<= 3",
    "step_cost_us": "<= 5",
    "soak_lost": "0",
    "soak_lag_p99_s": "<= 1",
    "soak_cores": "<= 1",
    "soak_rss_mb": "<= 400",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=0, help="runs of the soak; 0: no soak")
    parser.add_argument("--seconds", type=float, default=60, help="how long the soak takes")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(_NUM_POINTS), help="points a message")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the points of a full measurement")
    options = parser.parse_args()
    found: dict[str, object] = {"step_cost_us": step_cost_us()}
    durable = {}
    for size in options.sizes:
        rate = uvloop.run(durable_points_per_s(size, int(_NUM_POINTS[size] * options.scale)))
        durable[str(size)] = round(rate)
        show(f"durable_{size}", f"{rate:,.0f}")
    found["durable_points_per_s"] = durable
    found["bytes_per_point"] = uvloop.run(bytes_per_point(noisy))
    found["bytes_per_point_smooth"] = uvloop.run(bytes_per_point(smooth))
    if options.runs:
        found |= uvloop.run(soak(options.runs, options.seconds))
    for name, value in found.items():
        if name != "durable_points_per_s":
            show(name, str(value))
    sys.stdout.write(json.dumps(found) + "\n")


def show(name: str, value: str) -> None:
    sys.stdout.write(f"{name:24} {value:>14}   {TARGETS.get(name, '')}\n")
    sys.stdout.flush()


def step_cost_us() -> float:
    """What 10 values a step cost the training process, microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        spool = MetricSpool(Path(folder))
        times = []
        for _ in range(20):
            began = time.perf_counter()
            for step in range(1000):
                spool.write(step, _KEYS, (1.25,) * 10)
            times.append((time.perf_counter() - began) * 1000)
        spool.close()
    return round(statistics.median(times), 2)


@asynccontextmanager
async def platform(folder: Path) -> AsyncIterator[tuple[Bus, psutil.Process]]:
    """nats-server, the metrics service as a process of its own, and a bus as an agent has it."""
    nats = EmbeddedNats(folder / "nats", token=_TOKEN)
    await nats.start()
    try:
        with service(folder, nats.url) as child:
            bus = await Bus.connect(nats.url, _TOKEN, "agent", window=512)
            await asyncio.wait_for(answers(bus), 30)
            yield bus, child
            await bus.close()
    finally:
        await nats.stop()


@contextmanager
def service(folder: Path, url: str) -> Iterator[psutil.Process]:
    own = {"DATA_DIR": str(folder), "NATS_URL": url, "NATS_TOKEN": _TOKEN, "INTERNAL_TOKEN": "bench"}
    own |= {"HTTP_PORT": "-1", "LOG_LEVEL": "warning", "PORT": "0"}
    env = os.environ | {f"TUNESMITH_{name}": value for name, value in own.items()}
    child = subprocess.Popen([sys.executable, "-c", _SERVE], env=env)
    try:
        yield psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


class Watermarks:
    """What the metrics service says is stored, by job and rank."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, int], int] = {}
        self.heard = asyncio.Event()

    async def hear(self, message: Message) -> None:
        mark = events_pb2.WatermarkAdvanced.FromString(message.payload)
        self.stored[mark.job_id, mark.rank] = mark.metrics_seq
        self.heard.set()

    async def reach(self, wanted: dict[tuple[str, int], int]) -> None:
        while any(self.stored.get(rank, 0) < seq for rank, seq in wanted.items()):
            self.heard.clear()
            await self.heard.wait()


async def answers(bus: Bus) -> None:
    """Waits until the service stores something."""
    marks = Watermarks()
    await bus.subscribe(subjects.any_watermark("bench", "first"), marks.hear)
    await send(bus, next(pack("first", 1, 0, [Record(1, 1, 1, ("a",), (1.0,))])))
    await marks.reach({("first", 0): 1})


async def send(bus: Bus, batch: events_pb2.MetricBatch) -> asyncio.Future[object]:
    subject = subjects.metrics("bench", batch.job_id, batch.epoch, batch.rank)
    msg_id = f"{batch.job_id}:{batch.epoch}:{batch.rank}:{batch.first_seq}"
    return await bus.publish_soon(subject, batch.SerializeToString(), msg_id)  # type: ignore[return-value]


async def durable_points_per_s(points_a_message: int, num_points: int) -> float:
    """Points a second from spool files to committed rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_steps = num_points // _RANKS // len(_KEYS)
        for rank in range(_RANKS):
            write_spool(folder / f"spool-{rank}", num_steps)
        async with platform(folder) as (bus, child):
            marks = Watermarks()
            await bus.subscribe(subjects.any_watermark("bench", "run"), marks.hear)
            server = next(p for p in psutil.Process().children(recursive=True) if "nats-server" in p.name())
            before = (_own_cpu(), _cpu(child), _cpu(server))
            began = time.perf_counter()
            readers = [SpoolReader(folder / f"spool-{rank}") for rank in range(_RANKS)]
            seqs = [0] * _RANKS
            busy = True
            while busy:
                busy = False
                for rank, reader in enumerate(readers):
                    for batch in pack("run", 1, rank, reader.read(seqs[rank]), points_a_message):
                        await send(bus, batch)
                        seqs[rank] = batch.first_seq + batch.num_records - 1
                        busy = True
            await marks.reach({("run", rank): num_steps for rank in range(_RANKS)})
            seconds = time.perf_counter() - began
            after = (_own_cpu(), _cpu(child), _cpu(server))
            agent, metrics, nats = (
                (now - then) * 1e6 * points_a_message / num_points
                for now, then in zip(after, before, strict=True)
            )
            sys.stdout.write(
                f"  processor time a message: agent {agent:.0f} us, metrics {metrics:.0f} us, "
                f"nats-server {nats:.0f} us\n"
            )
            return num_points / seconds


def write_spool(folder: Path, num_steps: int) -> None:
    spool, rng = MetricSpool(folder), np.random.default_rng(1)
    for step, row in enumerate(rng.normal(size=(num_steps, len(_KEYS))).tolist()):
        spool.write(step, _KEYS, row)
    spool.close()


def noisy(rng: np.random.Generator, num_steps: int) -> Floats:
    """Values with all their digits, as losses and norms are: nothing in them repeats."""
    values: Floats = rng.normal(size=(num_steps, 10)).cumsum(axis=0) * 0.01 + rng.normal(size=(num_steps, 10))
    return values


def smooth(rng: np.random.Generator, num_steps: int) -> Floats:
    """Telemetry: percents, degrees, watts and megabytes that move slowly, read with few digits."""
    walk = rng.normal(size=(num_steps, 10)).cumsum(axis=0) * np.array([0.2] * 5 + [1.0] * 5) + 60
    rounded: Floats = np.round(walk, 1)
    return rounded


async def bytes_per_point(
    values: Callable[[np.random.Generator, int], Floats], num_steps: int = 50_000
) -> float:
    """Bytes of the whole database file a point, after compaction."""
    rng = np.random.default_rng(3)
    seqs = np.arange(1, num_steps + 1)
    # Once a second, give or take what an operating system does to a timer.
    times = 1_790_000_000_000_000 + np.cumsum(1_000_000 + rng.normal(scale=150, size=num_steps)).astype(
        np.int64
    )
    block = Block(_KEYS, seqs, seqs, times, values(rng, num_steps))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with platform(folder) as (bus, _):
            marks = Watermarks()
            await bus.subscribe(subjects.any_watermark("bench", "run"), marks.hear)
            for batch in pack("run", 1, 0, [block], 1000):
                await send(bus, batch)
            await marks.reach({("run", 0): num_steps})
        db = Database(f"sqlite:///{folder / 'metrics.db'}", "metrics")
        while await Compactor(db).once():
            pass
        sizes = (
            "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count"
        )
        query = text(f"{sizes}, pragma_page_size")
        size = await db.read(lambda session: session.execute(query).scalar_one())
        await db.close()
    return round(int(size) / (num_steps * len(_KEYS)), 2)


_STEP_SECONDS = 0.1
_STEPS_A_FLUSH = round(FLUSH_SECONDS / _STEP_SECONDS)


async def soak(num_runs: int, seconds: float) -> dict[str, object]:
    """Many runs at once: lag from logging to the watermark, processor time and memory of the service."""
    with tempfile.TemporaryDirectory() as name:
        async with platform(Path(name)) as (bus, child):
            load = Load(bus, num_runs)
            await bus.subscribe(f"{subjects.ROOT}.bench.job.*.wm.*.*", load.hear)
            before, began = child.cpu_times(), time.perf_counter()
            rss = [child.memory_info().rss]
            flush = 0
            while time.perf_counter() - began < seconds:
                await load.flush(flush, began)
                flush += 1
                if flush % 25 == 0:
                    rss.append(child.memory_info().rss)
            used, passed = child.cpu_times(), time.perf_counter() - began
            lost = await load.lost(flush, 30)
            cores = (used.user + used.system - before.user - before.system) / passed
            lags = np.array(load.lags)
            return {
                "soak_points_per_s": round(flush * num_runs * _STEPS_A_FLUSH * len(_KEYS) / passed),
                "soak_lost": lost,
                "soak_lag_p50_s": round(float(np.quantile(lags, 0.5)), 3),
                "soak_lag_p99_s": round(float(np.quantile(lags, 0.99)), 3),
                "soak_cores": round(cores, 2),
                "soak_rss_mb": round(max(rss) / 1e6),
                "soak_rss_first_last_mb": [round(rss[len(rss) // 4] / 1e6), round(rss[-1] / 1e6)],
                "soak_publisher_cores": round(_own_cpu() / passed, 2),
            }


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Load:
    """Runs that each log 10 values every 100 ms and ship them as often as an agent does."""

    def __init__(self, bus: Bus, num_runs: int) -> None:
        self._bus, self._num_runs = bus, num_runs
        self._sent: dict[str, dict[int, float]] = {self._job(run): {} for run in range(num_runs)}
        self._stored = dict.fromkeys(self._sent, 0)
        self._rng = np.random.default_rng(5)
        self._heard = asyncio.Event()
        self.lags: list[float] = []

    def _job(self, run: int) -> str:
        return f"run{run:05d}"

    async def flush(self, flush: int, began: float) -> None:
        """Ships what each run logged since the last time, in ten groups."""
        rows = np.arange(1, _STEPS_A_FLUSH + 1) + flush * _STEPS_A_FLUSH
        times = 1_790_000_000_000_000 + rows * 100_000
        values = self._rng.normal(size=(len(rows), len(_KEYS)))
        for group in range(10):
            wait = began + (flush + group / 10) * FLUSH_SECONDS - time.perf_counter()
            await asyncio.sleep(max(0.0, wait))
            for run in range(group, self._num_runs, 10):
                batch = next(pack(self._job(run), 1, 0, [Block(_KEYS, rows, rows, times, values)]))
                self._sent[batch.job_id][int(rows[-1])] = time.perf_counter()
                await send(self._bus, batch)

    async def hear(self, message: Message) -> None:
        mark = events_pb2.WatermarkAdvanced.FromString(message.payload)
        now, sent = time.perf_counter(), self._sent.get(mark.job_id)
        if sent is None:
            return
        for seq in range(self._stored[mark.job_id] + _STEPS_A_FLUSH, mark.metrics_seq + 1, _STEPS_A_FLUSH):
            waited = now - sent.pop(seq)  # of the newest step in the message; the others were logged before
            self.lags += [waited + _STEP_SECONDS * before for before in range(_STEPS_A_FLUSH)]
        self._stored[mark.job_id] = mark.metrics_seq
        self._heard.set()

    async def lost(self, num_flushes: int, seconds: float) -> int:
        """Points that were not stored within some seconds."""
        wanted = num_flushes * _STEPS_A_FLUSH
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(seq < wanted for seq in self._stored.values()):
                    self._heard.clear()
                    await self._heard.wait()
        return sum(wanted - seq for seq in self._stored.values()) * len(_KEYS)


if __name__ == "__main__":
    main()
