"""Curves as pictures need them: smoothed, on an axis, reduced; kept in memory and never out of date."""

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.metrics.support import PARENT, TIME_US, Metrics, batch, losses, running_metrics, send
from tests.support.wait import until_async
from tunesmith.api.metrics.v1 import events_pb2, export_pb2, metrics_pb2
from tunesmith.status import from_rpc_error
from tunesmith_metrics import store
from tunesmith_metrics.reduction import View, lttb, smooth
from tunesmith_metrics.series import Curve

OTHER = "01k0000000000000000000next"


async def stored(service: Metrics, seq: int, epoch: int = 1, rank: int = 0) -> None:
    async def there() -> bool:
        return (await service.watermark(epoch, rank)).metrics_seq >= seq

    await until_async(there, f"records up to {seq}")


def attempt(
    epoch: int, steps: range, began_s: float, values: dict[str, list[float]], first_seq: int = 1
) -> events_pb2.MetricBatch:
    """A batch with a record a second."""
    num = len(steps)
    return events_pb2.MetricBatch(
        job_id=PARENT.rpartition("/")[2],
        epoch=epoch,
        first_seq=first_seq,
        num_records=num,
        keys=list(values),
        matrices=[
            events_pb2.MetricMatrix(
                key_indices=range(len(values)),
                step_deltas=[steps[0]] + [1] * (num - 1),
                time_deltas_us=[TIME_US + int(began_s * 1e6)] + [1_000_000] * (num - 1),
                values=[value for row in zip(*values.values(), strict=True) for value in row],
            )
        ],
    )


def test_smoothing_is_the_corrected_mean_and_lets_nan_pass() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=3000)
    values[[0, 7, 2999]] = np.nan, np.inf, np.nan
    for weight in (1e-9, 0.3, 0.9, 0.9999):
        mean, num, expected = 0.0, 0, []
        for value in values.tolist():
            if not math.isfinite(value):
                expected.append(value)
                continue
            num += 1
            mean = weight * mean + (1 - weight) * value
            expected.append(mean / (1 - weight**num))
        assert np.allclose(smooth(values, weight), expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert smooth(values, 0.0) is values
    assert np.array_equal(smooth(values, 1e-320), values, equal_nan=True)


def test_largest_triangles_are_those_of_the_plain_algorithm() -> None:
    rng = np.random.default_rng(1)
    num, wanted = 1000, 40
    values = rng.normal(size=num).cumsum()
    steps = np.arange(num, dtype=np.int64) * 3
    found = lttb(View(steps, steps, values, None, None, None, num), wanted)
    edges = np.linspace(1, num - 1, wanted - 1).astype(int)
    chosen = [0]
    for low, high, after in zip(edges[:-1], edges[1:], [*edges[2:], num], strict=True):
        mean_x, mean_y = steps[high:after].mean(), values[high:after].mean()
        x, y = steps[chosen[-1]], values[chosen[-1]]
        areas = [
            abs((x - mean_x) * (values[i] - y) - (x - steps[i]) * (mean_y - y)) for i in range(low, high)
        ]
        chosen.append(low + int(np.argmax(areas)))
    assert found.steps.tolist() == steps[[*chosen, num - 1]].tolist()
    assert found.num_points == num


async def test_axes_of_a_resumed_job(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        # The first attempt dies after step 9; the second goes on from step 6 an hour later.
        for epoch, steps, began in ((1, range(1, 10), 0.0), (2, range(6, 13), 3600.0)):
            values = {
                "train/loss": [1.0 / step for step in steps],
                "train/num_tokens": [100.0 * step for step in steps],
                "train/epoch": [step / 4 for step in steps],
            }
            await send(service.bus, attempt(epoch, steps, began, values))
            await stored(service, len(steps), epoch)
        tokens = await service.loss(axis=metrics_pb2.AXIS_TOKENS)
        assert list(tokens.x_values) == [100.0 * step for step in range(1, 13)]
        epochs = await service.loss(axis=metrics_pb2.AXIS_EPOCH)
        assert list(epochs.x_values) == [step / 4 for step in range(1, 13)]
        wall = await service.loss(axis=metrics_pb2.AXIS_WALL_TIME)
        assert wall.x_values[5] - wall.x_values[4] == 3600 - 4
        # Steps 1 to 5 count of the first attempt, then the second follows without the pause.
        relative = await service.loss(axis=metrics_pb2.AXIS_RELATIVE_TIME)
        assert list(relative.x_values) == [0.0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10]
        assert not (await service.loss()).x_values
        reduced = await service.loss(axis=metrics_pb2.AXIS_TOKENS, max_points=4)
        assert len(reduced.steps) == len(reduced.x_values) == len(reduced.min_values) == 4
        shape = await service.loss(reduction=metrics_pb2.REDUCTION_LTTB, max_points=5)
        assert (shape.steps[0], shape.steps[-1], len(shape.steps)) == (1, 12, 5)
        smoothed = await service.loss(smoothing=0.5, min_step=3, max_step=4)
        whole = await service.loss(smoothing=0.5)
        assert list(smoothed.values) == list(whole.values)[2:4], "a part looks as it does in the whole"


async def test_a_curve_in_memory_grows_and_is_replaced_as_in_the_store(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        expected: dict[int, float] = {}
        seqs = {1: 0, 2: 0}

        async def add(epoch: int, steps: range) -> None:
            rows = [[epoch * 100.0 + step] for step in steps]
            await send(service.bus, batch(seqs[epoch] + 1, rows, first_step=steps[0], epoch=epoch))
            seqs[epoch] += len(steps)
            await stored(service, seqs[epoch], epoch)
            for step in steps:
                if expected.get(step, 0.0) < epoch * 100 + 100:  # a higher epoch stays
                    expected[step] = epoch * 100.0 + step
            curve = await service.loss()
            assert dict(zip(curve.steps, curve.values, strict=True)) == expected
            assert list(curve.steps) == sorted(expected)

        await add(1, range(1, 11))
        await add(1, range(11, 21))
        await add(2, range(15, 18))  # replaces
        await add(2, range(18, 26))  # replaces and goes beyond
        await add(1, range(21, 30))  # late ones of the old attempt
        await add(1, range(40, 42))
        await add(2, range(30, 41))
        # The same rank logs a step twice: the later record counts.
        rows = [[7.0]]
        await send(service.bus, batch(seqs[2] + 1, rows, first_step=35, epoch=2))
        await stored(service, seqs[2] + 1, 2)
        curve = await service.loss()
        assert curve.values[list(curve.steps).index(35)] == 7.0


async def test_a_cache_too_small_for_anything_answers_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_metrics.curves._GROUP_POINTS", 600)  # one curve at a time
    async with running_metrics(tmp_path, curve_cache_bytes=1000) as service:
        keys = ("a", "b", "c")
        await send(service.bus, batch(1, [[float(i), -float(i), 0.0] for i in range(1, 501)], keys=keys))
        await stored(service, 500)
        for _ in range(2):
            found = await service.series()
            assert [(each.key, len(each.steps)) for each in found.series] == [(key, 500) for key in keys]


async def test_many_who_ask_at_once_make_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    read = store.curves

    def counted(*arguments: Any) -> dict[str, Curve]:
        reads.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(store, "curves", counted)
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, losses(1, 100)))
        await stored(service, 100)
        answers = await asyncio.gather(*(service.series(max_points=10) for _ in range(20)))
        assert all(answer.series == answers[0].series for answer in answers)
        assert len(reads) == 1


async def test_a_watcher_gets_long_histories_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith_metrics.drawing._MOST_POINTS", 7)
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, losses(1, 50)))
        await stored(service, 50)
        steps: list[int] = []
        revisions: list[int] = []
        async for message in service.metrics.WatchSeries(metrics_pb2.WatchSeriesRequest(parent=PARENT)):
            assert sum(len(each.steps) for each in message.series) <= 7
            steps += [step for each in message.series for step in each.steps]
            revisions.append(message.revision)
            if len(steps) == 50:
                break
        assert steps == list(range(1, 51))
        assert len(set(revisions[:-1])) == 1
        assert revisions[-2] < revisions[-1], "who breaks off before the last part gets them all again"


async def test_many_jobs_and_keys_in_one_call_as_lists_and_as_arrays(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        keys = ("train/loss", "eval/loss")
        await send(service.bus, batch(1, [[float(i), 2.0 * i] for i in range(1, 101)], keys=keys))
        await send(service.bus, batch(1, losses(1, 50), job_id=OTHER))
        await stored(service, 100)
        names = [PARENT.replace(PARENT.rpartition("/")[2], OTHER), PARENT, PARENT + "x"]

        async def compared() -> metrics_pb2.CompareSeriesResponse:
            return await service.metrics.CompareSeries(
                metrics_pb2.CompareSeriesRequest(
                    parent="projects/default",
                    jobs=names,
                    keys=["train/loss", "eval/loss", "none"],
                    max_points=10,
                )
            )

        async def both() -> bool:
            return len((await compared()).jobs) == 2

        await until_async(both, "both jobs are stored")
        found = await compared()
        assert [each.job for each in found.jobs] == names[:2]
        assert [[series.key for series in each.series] for each in found.jobs] == [
            ["train/loss"],
            ["eval/loss", "train/loss"],
        ]
        assert all(len(series.steps) == 10 for each in found.jobs for series in each.series)
        request = export_pb2.StreamSeriesRequest(
            parent="projects/default", jobs=names, keys=["train/loss"], min_step=11
        )
        parts = [part async for part in service.metrics.StreamSeries(request)]
        assert [(part.job, part.key) for part in parts] == [(name, "train/loss") for name in names[:2]]
        assert np.frombuffer(parts[1].values, "<f8").tolist() == [float(i) for i in range(11, 101)]
        assert np.frombuffer(parts[1].steps, "<i8").tolist() == list(range(11, 101))
        foreign = metrics_pb2.CompareSeriesRequest(
            parent="projects/default", jobs=["projects/other/jobs/x"], keys=["a"]
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.metrics.CompareSeries(foreign)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_descriptions_leave_nan_out_and_count_it(tmp_path: Path) -> None:
    values = [3.0, math.nan, 1.0, 5.0, 1.0]
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, [[value, math.nan] for value in values], keys=("a", "b")))
        await stored(service, 5)
        answer = await service.metrics.DescribeSeries(export_pb2.DescribeSeriesRequest(parent=PARENT))
        one, other = answer.descriptions
        numbers = [value for value in values if not math.isnan(value)]
        assert (one.num_points, one.num_nan, one.first_value, one.last_step) == (5, 1, 3.0, 5)
        assert (one.min_value, one.min_step, one.max_value, one.max_step) == (1.0, 3, 5.0, 4)
        assert one.mean == pytest.approx(np.mean(numbers))
        assert one.stddev == pytest.approx(np.std(numbers, ddof=1))
        assert list(one.quantiles) == pytest.approx(np.quantile(numbers, [0.05, 0.25, 0.5, 0.75, 0.95]))
        assert (other.num_nan, len(other.quantiles)) == (5, 0)
        assert math.isnan(other.mean)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"min_step": 10, "max_step": 9}, "min_step"),
        ({"max_points": 1_000_000_000}, "max_points"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"smoothing": math.nan}, "smoothing"),
        ({"axis": metrics_pb2.AXIS_TOKENS}, "axis"),
        ({"parent": "projects/default"}, "parent"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_wrong_request_names_its_field(
    service: Metrics, fields: dict[str, object], field: str
) -> None:
    request = metrics_pb2.QuerySeriesRequest(**({"parent": PARENT} | fields))  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.metrics.QuerySeries(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert from_rpc_error(caught.value).field == field


@pytest.mark.asyncio(loop_scope="module")
async def test_a_key_that_nobody_logged_has_no_curve(service: Metrics) -> None:
    assert [each.key for each in (await service.series(keys=["none", "train/loss"])).series] == ["train/loss"]
