"""The node's own series stay in memory until the metrics service has stored them."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.bus import connected, running_nats
from tests.support.stubs import running_service, stub
from tests.support.wait import until_async
from tunesmith.api.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from tunesmith_agent import nodeseries
from tunesmith_agent.nodeseries import NodeSeries
from tunesmith_kit.bus import Bus
from tunesmith_kit.nats_server import EmbeddedNats


@asynccontextmanager
async def asked(
    server: EmbeddedNats, folder: Path
) -> AsyncIterator["metrics_pb2_grpc.MetricsServiceAsyncStub"]:
    async with (
        running_service("metrics", server, folder) as running,
        stub(metrics_pb2_grpc.MetricsServiceStub, running) as metrics,
    ):
        yield metrics


async def values(metrics: "metrics_pb2_grpc.MetricsServiceAsyncStub") -> list[float]:
    request = metrics_pb2.QueryNodeSeriesRequest(name="nodes/box", keys=["cpu/percent"])
    found = (await metrics.QueryNodeSeries(request)).series
    return list(found[0].values) if found else []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodeseries, "_SEND_SECONDS", 0.0)
    monkeypatch.setattr(nodeseries, "_STILL_SECONDS", 0.05)


async def _add(series: NodeSeries, count: int) -> list[float]:
    """Adds samples that are a second apart, the last of them now."""
    begin = int(time.time()) - count
    for index in range(count):
        await series.add(begin + index, {"cpu/percent": float(index)})
    return [float(index) for index in range(count)]


@pytest.mark.usefixtures("impatient")
async def test_samples_wait_for_a_service_that_is_away_and_are_let_go_once_stored(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server, "agent") as bus:
        series = NodeSeries("box", bus)
        await series.start()
        sent = await _add(series, 50)
        assert series.num_waiting == 50
        async with asked(server, tmp_path) as metrics:

            async def let_go() -> bool:
                return series.num_waiting == 0

            await until_async(let_go, "the watermark")
            assert await values(metrics) == sent
        await series.stop()


@pytest.mark.usefixtures("impatient")
async def test_what_the_bus_lost_is_sent_again(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server, "agent") as bus:
        series = NodeSeries("box", bus)
        await series.start()
        sent = await _add(series, 20)
        await _purge(bus, 20)
        async with asked(server, tmp_path) as metrics:

            async def let_go() -> bool:
                await series.add(time.time(), {"load/1min": 1.0})  # samples go on
                return await values(metrics) == sent

            await until_async(let_go, "what was lost")
        await series.stop()


async def _purge(bus: Bus, num_messages: int) -> None:
    """Loses what the bus holds, once it holds so many messages."""

    async def all_there() -> bool:
        answer = await bus.request("$JS.API.STREAM.INFO.METRICS", b"")
        return int(json.loads(answer.payload)["state"]["messages"]) >= num_messages

    await until_async(all_there, "the bus has all")
    answer = await bus.request("$JS.API.STREAM.PURGE.METRICS", b"{}")
    assert b'"success":true' in answer.payload


@pytest.mark.usefixtures("impatient")
async def test_memory_is_bounded_and_what_stays_is_numbered_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodeseries, "_MOST_RECORDS", 100)
    async with running_nats(tmp_path) as server, connected(server, "agent") as bus:
        series = NodeSeries("box", bus)
        await series.start()
        sent = await _add(series, 245)
        await _purge(bus, 245)
        kept = series.num_waiting
        assert 90 <= kept <= 100
        async with asked(server, tmp_path) as metrics:
            tries = 0

            async def let_go() -> bool:
                nonlocal tries
                tries += 1
                if tries <= 5:  # samples go on
                    await series.add(time.time(), {"load/1min": 1.0})
                return series.num_waiting == 0

            await until_async(let_go, "the watermark of the numbers given anew")
            assert await values(metrics) == sent[-kept:]
        await series.stop()
