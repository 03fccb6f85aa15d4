"""How fast curves and tables of runs are answered: the metrics service in a process of its own, over gRPC.

`python -m bench.metrics_query [--points N] [--runs N]`. A curve of a million points and a project of ten
thousand runs with twenty metrics each go in through the bus, on SQLite. Then each figure is the median of
several requests after a first one, from the call to the last byte, parsed; some also through the gateway's
REST. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa

from tests.support.wait import until_async
from tunesmith.api.jobs.v1 import events_pb2 as job_events_pb2
from tunesmith.api.jobs.v1 import spec_pb2
from tunesmith.api.metrics.v1 import events_pb2, export_pb2, metrics_pb2, metrics_pb2_grpc, runs_pb2
from tunesmith_kit import rpc, subjects
from tunesmith_kit.bus import Bus, PubAck
from tunesmith_kit.nats_server import EmbeddedNats

_TOKEN, _ADMIN = "bench-token", "ts_bench-admin-token"
_SERVE = "import sys; from tunesmith_kit.host import serve; sys.exit(serve(sys.argv[1]))"
_LONG, _PARENT = "01k0000000000000000000long", "projects/default"
_NUM_KEYS, _ROUNDS = 20, 15
_ROWS = 1000
TARGETS = {
    "chart_1m_ms": "<= 20",
    "export_1m_arrow_ms": "<= 150",
    "table_10k_runs_ms": "<= 50",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000, help="points of the long curve")
    parser.add_argument("--runs", type=int, default=10_000, help="runs of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), options.points, options.runs))
    for name, value in found.items():
        target = TARGETS.get(name, "")
        sys.stdout.write(f"{name:<28} {value:>10} {target}\n")
    sys.stdout.write(json.dumps(found) + "\n")


async def measure(folder: Path, num_points: int, num_runs: int) -> dict[str, float]:
    """Fills a service and asks it."""
    nats = EmbeddedNats(folder / "nats", token=_TOKEN)
    await nats.start()
    try:
        with serving("metrics", folder, nats, TUNESMITH_METRICS_PORT="17473") as process:
            bus = await Bus.connect(nats.url, _TOKEN, "bench")
            await fill(bus, num_points, num_runs)
            async with rpc.connect("127.0.0.1:17473") as channel:
                await asyncio.wait_for(channel.channel_ready(), 60)
                stub = metrics_pb2_grpc.MetricsServiceStub(channel)
                await stored(stub, num_points, num_runs)
                resident = psutil.Process(process.pid).memory_info
                filled = round(resident().rss / 1e6)
                found = await ask(stub)
                found |= {"rss_filled_mb": filled, "rss_asked_mb": round(resident().rss / 1e6)}
            await bus.close()
            with serving(
                "gateway", folder, nats, TUNESMITH_METRICS_ADDRESS="127.0.0.1:17473",
                TUNESMITH_GATEWAY_METRICS_ADDRESS="127.0.0.1:17473", TUNESMITH_GATEWAY_WEB_PORT="17460",
                TUNESMITH_GATEWAY_ADMIN_TOKEN=_ADMIN,
            ):  # fmt: skip
                found |= await ask_rest()
            return found
    finally:
        await nats.stop()


@contextmanager
def serving(
    name: str, folder: Path, nats: EmbeddedNats, **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A service in a process of its own."""
    own = {
        "TUNESMITH_DATA_DIR": str(folder),
        "TUNESMITH_NATS_URL": nats.url,
        "TUNESMITH_NATS_TOKEN": _TOKEN,
        "TUNESMITH_INTERNAL_TOKEN": _TOKEN,
        "TUNESMITH_LOG_LEVEL": "warning",
    }
    process = subprocess.Popen([sys.executable, "-c", _SERVE, name], env=os.environ | own | settings)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


async def fill(bus: Bus, num_points: int, num_runs: int) -> None:
    """Publishes what agents and the jobs service would."""
    values = np.random.default_rng(0).normal(size=num_points).cumsum()
    waiting = []
    for start in range(0, num_points, _ROWS):
        rows = values[start : start + _ROWS].tolist()
        waiting.append(await publish(bus, _LONG, start + 1, rows, ("train/loss",)))
    rng = np.random.default_rng(1)
    keys = tuple(f"train/metric{index:02d}" for index in range(_NUM_KEYS))
    for index in range(num_runs):
        job_id = f"01k0000000000000000{index:07d}"
        waiting.append(await publish(bus, job_id, 1, rng.normal(size=_NUM_KEYS).tolist(), keys))
        event = job_events_pb2.JobEvent(
            event_id=f"created-{index}", revision=index + 1, job=f"{_PARENT}/jobs/{job_id}",
            display_name=f"bench-{index}",
        )  # fmt: skip
        event.time.FromSeconds(1_790_000_000 + index)
        spec = event.created.spec
        spec.CopyFrom(spec_pb2.JobSpec(experiment="bench", base_model="tiny", dataset="chat"))
        spec.adapter.lora.r = 2 ** (index % 6)
        spec.training.learning_rate = 10.0 ** -(1 + index % 5)
        subject = subjects.job_event("default", job_id, "created")
        waiting.append(await bus.publish_soon(subject, event.SerializeToString(), event.event_id))
    await asyncio.gather(*waiting)


async def publish(
    bus: Bus, job_id: str, first_seq: int, values: list[float], keys: tuple[str, ...]
) -> asyncio.Future[PubAck]:
    """Publishes a batch as an agent does."""
    num = len(values) // len(keys)
    matrix = events_pb2.MetricMatrix(
        key_indices=range(len(keys)),
        step_deltas=[first_seq] + [1] * (num - 1),
        time_deltas_us=[1_790_000_000_000_000 + first_seq * 1000] + [1000] * (num - 1),
        values=values,
    )
    message = events_pb2.MetricBatch(
        job_id=job_id, epoch=1, first_seq=first_seq, num_records=num, keys=keys, matrices=[matrix]
    )
    subject = subjects.metrics("default", job_id, 1, 0)
    return await bus.publish_soon(subject, message.SerializeToString(), f"{job_id}:1:0:{first_seq}")


async def stored(stub: metrics_pb2_grpc.MetricsServiceAsyncStub, num_points: int, num_runs: int) -> None:
    """Waits until all is stored and counted."""
    mark = metrics_pb2.GetWatermarkRequest(job=f"{_PARENT}/jobs/{_LONG}", epoch=1)
    table = runs_pb2.QueryRunsRequest(parent=_PARENT, filter="has train/metric00 and has created")

    async def complete() -> bool:
        if (await stub.GetWatermark(mark, metadata=_metadata())).metrics_seq < num_points:
            return False
        return (await stub.QueryRuns(table, metadata=_metadata())).total_size == num_runs

    await until_async(complete, "all is stored", 600)


def _metadata() -> tuple[tuple[str, str], ...]:
    return rpc.as_service(_TOKEN, "bench")


async def timed(call: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Milliseconds of the first call, and the median of the others."""
    times = []
    for _ in range(_ROUNDS + 1):
        began = time.perf_counter()
        await call()
        times.append(1e3 * (time.perf_counter() - began))
    return round(times[0], 1), round(statistics.median(times[1:]), 1)


async def ask(stub: metrics_pb2_grpc.MetricsServiceAsyncStub) -> dict[str, float]:
    """Every figure through the service's own door."""
    found: dict[str, float] = {}
    long = f"{_PARENT}/jobs/{_LONG}"

    def chart(**fields: object) -> Callable[[], Awaitable[object]]:
        request = metrics_pb2.QuerySeriesRequest(parent=long, keys=["train/loss"], max_points=2000, **fields)  # type: ignore[arg-type]
        return lambda: stub.QuerySeries(request, metadata=_metadata())

    found["chart_1m_cold_ms"], found["chart_1m_ms"] = await timed(chart())
    _, found["chart_1m_lttb_ms"] = await timed(chart(reduction=metrics_pb2.REDUCTION_LTTB))
    _, found["chart_1m_smoothed_ms"] = await timed(chart(smoothing=0.9))
    _, found["chart_1m_wall_time_ms"] = await timed(chart(axis=metrics_pb2.AXIS_WALL_TIME))

    async def export() -> None:
        request = export_pb2.ExportSeriesRequest(parent=long, format=export_pb2.EXPORT_FORMAT_ARROW)
        parts = [part.data async for part in stub.ExportSeries(request, metadata=_metadata())]
        assert pa.ipc.open_stream(b"".join(parts)).read_all().num_rows > 0

    _, found["export_1m_arrow_ms"] = await timed(export)

    async def stream() -> None:
        request = export_pb2.StreamSeriesRequest(parent=_PARENT, jobs=[long])
        async for _ in stub.StreamSeries(request, metadata=_metadata()):
            pass

    _, found["stream_1m_ms"] = await timed(stream)

    async def table() -> None:
        request = runs_pb2.QueryRunsRequest(
            parent=_PARENT,
            filter="train/metric00 < 0.5 and adapter.lora.r >= 4 and not training.learning_rate = 0.1",
            order_by="train/metric01 desc, created",
            page_size=100,
        )
        assert len((await stub.QueryRuns(request, metadata=_metadata())).runs) > 0

    _, found["table_10k_runs_ms"] = await timed(table)
    return found


async def ask_rest() -> dict[str, float]:
    """The chart and the table through the gateway, as JSON."""
    async with httpx.AsyncClient(
        base_url="http://127.0.0.1:17460/api/v1", headers={"authorization": f"Bearer {_ADMIN}"},
        trust_env=False, timeout=30,
    ) as client:  # fmt: skip
        while True:
            try:
                (await client.get(f"/{_PARENT}/runColumns")).raise_for_status()
                break
            except httpx.HTTPError:
                await asyncio.sleep(0.2)
        chart = f"/{_PARENT}/jobs/{_LONG}/series?keys=train/loss&max_points=2000"
        file = f"/{_PARENT}/jobs/{_LONG}/series:export?format=arrow"
        table = f"/{_PARENT}/runs?filter=train/metric00%20%3C%200.5&order_by=train/metric01"
        found = {}
        for name, path in (
            ("rest_chart_1m", chart),
            ("rest_export_1m_arrow", file),
            ("rest_table_10k", table),
        ):
            _, found[f"{name}_ms"] = await timed(lambda path=path: _get(client, path))  # type: ignore[misc]
        return found


async def _get(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    answer.raise_for_status()
    assert answer.content


if __name__ == "__main__":
    main()
