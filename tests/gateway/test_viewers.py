"""Many who watch one job: one stream behind them, each gets every point, and a slow one holds up nobody."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.metrics.support import JOB, PARENT, Metrics, batch, losses, running_metrics, send
from tests.support.stubs import INTERNAL_TOKEN, running_service
from tests.support.wait import until, until_async
from tunesmith.api.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from tunesmith_kit import subjects
from tunesmith_kit.connection import Message
from tunesmith_kit.telemetry import METRICS
from tunesmith_metrics import drawing

ADMIN = "admin-test-token"
TOKEN = (("authorization", f"Bearer {ADMIN}"),)


@asynccontextmanager
async def behind_a_gateway(
    folder: Path,
) -> AsyncIterator[tuple[Metrics, "metrics_pb2_grpc.MetricsServiceAsyncStub"]]:
    """The metrics service, and a stub that goes through a gateway."""
    async with running_metrics(folder / "metrics") as metrics:
        settings = {
            "admin_token": ADMIN,
            "internal_token": INTERNAL_TOKEN,
            "metrics_address": metrics.running.address,
            "host": "127.0.0.1",
            "port": 0,
        }
        async with running_service("gateway", metrics.server, folder / "gateway", **settings) as gateway:
            # A client that does not read holds the stream up at once, not behind megabytes of buffers.
            options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
            channel = grpc.aio.insecure_channel(gateway.address, options=options)
            try:
                yield metrics, metrics_pb2_grpc.MetricsServiceStub(channel)
            finally:
                await channel.close()


def watch(
    stub: "metrics_pb2_grpc.MetricsServiceAsyncStub", revision: int = 0, keys: Sequence[str] = ()
) -> Any:
    """Begins to watch the job."""
    request = metrics_pb2.WatchSeriesRequest(parent=PARENT, from_revision=revision, keys=keys)
    return stub.WatchSeries(request, metadata=TOKEN)


async def read(stream: Any) -> metrics_pb2.WatchSeriesResponse:
    """The next message."""
    message: metrics_pb2.WatchSeriesResponse = await stream.read()
    return message


async def read_until(stream: Any, last: int, key: str = "train/loss") -> list[int]:
    """Reads a stream until a step came; returns the steps of a key in the order in which they came."""
    steps: list[int] = []
    while not steps or steps[-1] < last:
        message = await read(stream)
        steps += [step for series in message.series if series.key == key for step in series.steps]
    return steps


def gauge(name: str) -> float:
    return float(getattr(METRICS, name)._value.get())


async def test_viewers_share_one_stream_and_each_gets_every_point(tmp_path: Path) -> None:
    async with behind_a_gateway(tmp_path) as (metrics, gateway):
        await send(metrics.bus, batch(1, losses(1, 10)))
        await until_async(lambda: stored(metrics, 10), "ten points")
        viewers = [watch(gateway) for _ in range(5)]
        assert [await read_until(viewer, 10) for viewer in viewers] == [list(range(1, 11))] * 5
        assert (gauge("live_streams"), gauge("live_viewers")) == (1, 5)
        for first in range(11, 41, 10):
            await send(metrics.bus, batch(first, losses(first, first + 9)))
        ends = await asyncio.gather(*(read_until(viewer, 40) for viewer in viewers))
        assert all(steps == list(range(11, 41)) for steps in ends)
        revision = (await metrics.series()).revision
        late = watch(gateway, revision)  # it knows everything: it hears at once where it stands
        assert (await read(late)).revision >= revision
        for viewer in (*viewers, late):
            viewer.cancel()
        await until(lambda: (gauge("live_streams"), gauge("live_viewers")) == (0, 0), "every stream ended")


async def stored(metrics: Metrics, seq: int) -> bool:
    return (await metrics.watermark()).metrics_seq >= seq


async def test_a_viewer_of_one_key_gets_no_other(tmp_path: Path) -> None:
    async with behind_a_gateway(tmp_path) as (metrics, gateway):
        viewer, other = watch(gateway, keys=["eval/loss"]), watch(gateway)
        await read(viewer)
        await read(other)
        await send(metrics.bus, batch(1, [[0.5]]))
        await send(metrics.bus, batch(2, [[0.25]], keys=["eval/loss"]))
        message = await read(viewer)
        while not message.series:
            message = await read(viewer)
        assert [(each.key, list(each.steps), list(each.values)) for each in message.series] == [
            ("eval/loss", [2], [0.25])
        ]
        assert await read_until(other, 1) == [1]


async def test_a_slow_viewer_holds_up_nobody_and_misses_nothing(tmp_path: Path) -> None:
    async with behind_a_gateway(tmp_path) as (metrics, gateway):
        slow, quick = watch(gateway), watch(gateway)
        await read(slow)
        await read(quick)
        # 10 MB: more than the gateway keeps for a viewer.
        keys = [f"train/{number:03}" for number in range(400)]
        rows, num_batches = 20, 100
        for seq in range(1, rows * num_batches, rows):
            await send(metrics.bus, batch(seq, [[float(seq)] * len(keys)] * rows, keys=keys))
        expected = list(range(1, rows * num_batches + 1))
        # What was merged in the store while a viewer fell behind may come to it a second time.
        assert sorted(set(await read_until(quick, expected[-1], keys[0]))) == expected
        assert sorted(set(await read_until(slow, expected[-1], keys[0]))) == expected


async def test_a_page_of_several_messages_reaches_a_viewer_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_MOST_POINTS", 10)
    keys = [f"train/{number}" for number in range(4)]
    async with behind_a_gateway(tmp_path) as (metrics, gateway):
        viewer = watch(gateway)
        await read(viewer)
        await send(metrics.bus, batch(1, [[1.0] * len(keys)] * 10, keys=keys))
        messages: list[metrics_pb2.WatchSeriesResponse] = []
        while len(messages) < len(keys):
            message = await read(viewer)
            messages += [message] if message.series else []  # a viewer hears of silence too
        assert [(series.key, len(series.steps)) for each in messages for series in each.series] == [
            (key, 10) for key in keys
        ]
        before, *between, last = [each.revision for each in messages]
        assert set(between) == {before}  # a viewer that goes away in between asks for all again
        assert last > before


async def test_the_agents_hear_that_a_job_is_watched(tmp_path: Path) -> None:
    async with behind_a_gateway(tmp_path) as (metrics, gateway):
        heard: asyncio.Queue[Message] = asyncio.Queue()
        subscription = await metrics.bus.subscribe(subjects.viewed("default", JOB), heard.put)
        viewer = watch(gateway)
        await read(viewer)
        async with asyncio.timeout(90):
            await heard.get()
        await subscription.close()


async def test_a_viewer_hears_that_the_metrics_service_went_away(tmp_path: Path) -> None:
    async with behind_a_gateway(tmp_path) as (metrics, gateway):
        viewer = watch(gateway)
        await read(viewer)
        await metrics.running.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_until(viewer, 1)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
