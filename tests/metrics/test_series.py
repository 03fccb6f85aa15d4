"""Curves: one point a step, buckets with exact extremes, and streams that miss nothing."""

import asyncio
import math
import random
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.metrics.support import PARENT, Metrics, batch, losses, running_metrics, send
from tests.support.wait import until_async
from tunesmith.api.metrics.v1 import metrics_pb2


async def _stored(service: Metrics, seq: int, epoch: int = 1, rank: int = 0) -> None:
    async def there() -> bool:
        return (await service.watermark(epoch, rank)).metrics_seq >= seq

    await until_async(there, f"records up to {seq}")


async def test_after_a_resume_the_later_attempt_replaces_the_steps_it_ran_again(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, [[10.0 + step] for step in range(1, 11)]))
        await send(service.bus, batch(1, [[20.0 + step] for step in range(7, 13)], first_step=7, epoch=2))
        await _stored(service, 10)
        await _stored(service, 6, epoch=2)
        await send(service.bus, batch(11, [[999.0]], first_step=8))  # a late one of the old attempt
        await _stored(service, 11)
        curve = await service.loss()
        expected = [10.0 + step for step in range(1, 7)] + [20.0 + step for step in range(7, 13)]
        assert (list(curve.steps), list(curve.values)) == (list(range(1, 13)), expected)
        listed = await service.metrics.ListMetrics(metrics_pb2.ListMetricsRequest(parent=PARENT))
        only = listed.metrics[0]
        assert (only.num_points, only.last_step, only.last_value) == (12, 12, 32.0)
        assert (only.min_value, only.max_value) == (11.0, 32.0)


async def test_buckets_hold_exact_extremes_and_last_values(tmp_path: Path) -> None:
    rng = random.Random(1)
    values = [rng.gauss(0, 1) for _ in range(1000)]
    values[100], values[500], values[501] = math.nan, 50.0, -50.0
    async with running_metrics(tmp_path) as service:
        for start in range(0, 1000, 100):
            rows = [[value] for value in values[start : start + 100]]
            await send(service.bus, batch(start + 1, rows))
        await _stored(service, 1000)
        curve = await service.loss(max_points=37)
        assert len(curve.steps) <= 37
        assert curve.num_points == 1000
        low = 0
        for index, last in enumerate(curve.steps):
            inside = np.array(values[low:last])
            assert curve.values[index] == values[last - 1]
            assert curve.min_values[index] == np.nanmin(inside)
            assert curve.max_values[index] == np.nanmax(inside)
            low = last
        assert low == 1000
        exact = await service.loss(max_points=1000)
        assert (len(exact.steps), len(exact.min_values)) == (1000, 0)


async def test_ranges_and_keys_pick_what_is_asked_for(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        rows = [[float(step), -float(step)] for step in range(1, 101)]
        for start in range(0, 100, 10):
            message = batch(start + 1, rows[start : start + 10], keys=("train/loss", "eval/loss"))
            await send(service.bus, message)
        await _stored(service, 100)
        answer = await service.series(keys=["eval/loss"], min_step=15, max_step=34)
        assert [series.key for series in answer.series] == ["eval/loss"]
        assert list(answer.series[0].steps) == list(range(15, 35))
        assert list(answer.series[0].values) == [-float(step) for step in range(15, 35)]
        everything = await service.series()
        assert [series.key for series in everything.series] == ["eval/loss", "train/loss"]
        nothing = await service.metrics.QuerySeries(
            metrics_pb2.QuerySeriesRequest(parent=PARENT.replace("default", "other"))
        )
        assert not nothing.series, "another project sees the job"


async def test_a_watch_brings_every_point_once_and_goes_on_from_a_revision(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, losses(1, 50)))
        await _stored(service, 50)
        history = await service.loss()
        start = (await service.series()).revision
        assert len(history.steps) == 50
        steps: list[int] = []
        revisions: list[int] = []

        async def watch(from_revision: int, enough: int) -> None:
            request = metrics_pb2.WatchSeriesRequest(
                parent=PARENT, keys=["train/loss"], from_revision=from_revision
            )
            async for response in service.metrics.WatchSeries(request):
                revisions.append(response.revision)
                for series in response.series:
                    steps.extend(series.steps)
                if len(steps) >= enough:
                    return

        watching = asyncio.create_task(watch(start, 150))
        for seq in range(51, 201, 5):
            await send(service.bus, batch(seq, losses(seq, seq + 4)))
        await asyncio.wait_for(watching, 90)
        await asyncio.wait_for(watch(revisions[-1], 150) if len(steps) < 150 else asyncio.sleep(0), 90)
        assert steps == list(range(51, 201))
        assert revisions == sorted(revisions)
        steps.clear()
        await asyncio.wait_for(watch(0, 200), 90)  # the whole history
        assert steps == list(range(1, 201))


async def test_a_commit_wakes_the_watchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The poll is for the commits of other replicas; without it only the commit itself can bring the point.
    monkeypatch.setattr("tunesmith_kit.watch._POLL_SECONDS", 3600.0)
    arrived = asyncio.Event()
    async with running_metrics(tmp_path) as service:
        listening = asyncio.Event()

        async def watch() -> None:
            async for response in service.metrics.WatchSeries(metrics_pb2.WatchSeriesRequest(parent=PARENT)):
                listening.set()  # the first answer comes at once and is empty
                if response.series:
                    arrived.set()
                    return

        watching = asyncio.create_task(watch())
        await asyncio.wait_for(listening.wait(), 90)
        await send(service.bus, batch(1, losses(1, 1)))
        await asyncio.wait_for(arrived.wait(), 90)
        await watching


async def test_an_answer_that_is_too_large_says_what_to_do(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        keys = [f"k{index}" for index in range(40)]
        futures = [
            send(service.bus, batch(1 + start, [[1.0] * 40] * 1000, keys=keys))
            for start in range(0, 16_000, 1000)
        ]
        await asyncio.gather(*futures)
        await _stored(service, 16_000)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.series()
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len((await service.series(max_points=100)).series) == 40


async def test_two_ranks_of_an_attempt_do_not_mix(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, [[1.0]] * 5, rank=1))
        await send(service.bus, batch(1, [[0.0]] * 3, rank=0))
        await _stored(service, 5, rank=1)
        await _stored(service, 3)
        curve = await service.loss()
        assert list(curve.values) == [0.0, 0.0, 0.0, 1.0, 1.0]  # the lowest rank that has the step
