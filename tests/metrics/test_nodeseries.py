"""Series of nodes: folded into blocks and buckets, not a point changed; kept for a while; and asked for."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from sqlalchemy import func, select

from tests.metrics.support import Metrics, running_metrics
from tests.support.postgres import running
from tests.support.wait import until_async
from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2
from tunesmith_kit import subjects
from tunesmith_kit.db import Database
from tunesmith_metrics.rollup import RollUp
from tunesmith_metrics.tables import NODE_SERIES, SEGMENTS

NODE = "gpu-box-1".ljust(63, "x")  # as long as a name may be
HOUR, DAY = 3600, 86400
BEGIN = 1_790_000_000 // DAY * DAY
KEYS = ("cpu/percent", "gpu0/power_watts", "gpu10/power_watts")
KEEP = {1: DAY, 60: 30 * DAY, 3600: 730 * DAY}


class Fleet:
    """A service that hears a node, its database, and a clock for the roll-up."""

    def __init__(self, service: Metrics, db: Database) -> None:
        self.service, self.db, self.now = service, db, float(BEGIN)
        self._rollup = RollUp(db, KEEP, lambda: self.now)
        self._seq = 0

    async def send(
        self, steps: Sequence[int], values: Sequence[Sequence[float]], epoch: int = BEGIN * 1000
    ) -> None:
        """Publishes records as an agent does, some hundred a message, and waits until they are stored."""
        for start in range(0, len(steps), 300):
            part, rows = steps[start : start + 300], values[start : start + 300]
            await self.publish(part, rows, self._seq + 1, epoch)
            self._seq += len(part)
        await self.stored(self._seq, epoch)

    async def publish(
        self, steps: Sequence[int], rows: Sequence[Sequence[float]], first_seq: int, epoch: int = BEGIN * 1000
    ) -> None:
        matrix = events_pb2.MetricMatrix(
            key_indices=range(len(KEYS)),
            step_deltas=np.diff(steps, prepend=0).tolist(),
            time_deltas_us=(np.diff(steps, prepend=0) * 1_000_000).tolist(),
            values=[value for row in rows for value in row],
        )
        batch = events_pb2.MetricBatch(
            job_id=f"node.{NODE}",
            epoch=epoch,
            rank=subjects.NODE_RANK,
            first_seq=first_seq,
            num_records=len(steps),
            keys=KEYS,
            matrices=[matrix],
        )
        subject = subjects.node_metrics(NODE, epoch)
        await self.service.bus.publish(
            subject, batch.SerializeToString(), f"{epoch}:{first_seq}:{len(steps)}"
        )

    async def stored(self, seq: int, epoch: int = BEGIN * 1000) -> None:
        request = metrics_pb2.GetWatermarkRequest(
            job=f"projects/fleet/jobs/node.{NODE}", epoch=epoch, rank=subjects.NODE_RANK
        )

        async def there() -> bool:
            return (await self.service.metrics.GetWatermark(request)).metrics_seq == seq

        await until_async(there, "the records")

    async def fold(self, now: float) -> int:
        self.now = now
        return await self._rollup.once()

    async def ask(
        self, start: int, end: int, *keys: str, max_points: int = 100_000
    ) -> metrics_pb2.QueryNodeSeriesResponse:
        request = metrics_pb2.QueryNodeSeriesRequest(name=f"nodes/{NODE}", keys=keys, max_points=max_points)
        request.start_time.seconds, request.end_time.seconds = start, end
        return await self.service.metrics.QueryNodeSeries(request)

    async def rows(self, resolution: int) -> int:
        query = select(func.count()).select_from(NODE_SERIES).where(NODE_SERIES.c.resolution == resolution)
        return await self.db.read(lambda session: session.execute(query).scalar_one())

    async def segments(self) -> int:
        return await self.db.read(
            lambda session: session.execute(select(func.count()).select_from(SEGMENTS)).scalar_one()
        )


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's own roll-up, by the time of day, must not come in between on a slow machine."""

    async def never(_: RollUp) -> None:
        """Nothing."""

    monkeypatch.setattr(RollUp, "run", never)


@asynccontextmanager
async def fleet(folder: Path, database: str = "sqlite") -> AsyncIterator[Fleet]:
    if database == "postgresql":
        with running() as server:
            async with running_metrics(folder, database_url=server.url) as service:
                db = Database(server.url, "metrics")
                yield Fleet(service, db)
                await db.close()
        return
    async with running_metrics(folder) as service:
        db = Database(f"sqlite:///{folder / 'metrics.db'}", "metrics")
        yield Fleet(service, db)
        await db.close()


def walk(num: int) -> list[list[float]]:
    """Figures as a node measures them: percent, and watts with their thousandths."""
    rng = np.random.default_rng(4)
    percent = np.round(np.clip(50 + np.cumsum(rng.normal(0, 1, num)), 0, 100), 1)
    watts = np.round(250 + rng.normal(0, 5, (num, 2)), 3)
    rows: list[list[float]] = np.column_stack([percent, watts]).tolist()
    return rows


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.distributed)])
async def test_folding_changes_no_point_and_buckets_hold_mean_and_extremes(
    tmp_path: Path, database: str
) -> None:
    num = 2 * HOUR
    steps, values = list(range(BEGIN, BEGIN + num)), walk(num)
    percents = np.array(values)[:, 0]
    async with fleet(tmp_path, database) as node:
        await node.send(steps, values)
        before = await node.ask(BEGIN, BEGIN + num)
        assert before.resolution_seconds == 1
        assert [each.key for each in before.series] == sorted(KEYS)
        assert list(before.series[0].values) == percents.tolist()
        assert await node.fold(BEGIN + num + 90) == num * len(KEYS)
        assert await node.segments() == 0
        assert (await node.ask(BEGIN, BEGIN + num)).series == before.series
        minutes = (await node.ask(BEGIN, BEGIN + num, "cpu/percent", max_points=120)).series[0]
        by_minute = percents.reshape(-1, 60)
        assert list(minutes.steps) == [BEGIN + 60 * index + 59 for index in range(120)]
        assert np.allclose(minutes.values, by_minute.mean(axis=1))
        assert list(minutes.min_values) == by_minute.min(axis=1).tolist()
        assert list(minutes.max_values) == by_minute.max(axis=1).tolist()
        hours = await node.ask(BEGIN, BEGIN + num, "cpu/percent", max_points=2)
        assert hours.resolution_seconds == HOUR
        assert list(hours.series[0].max_values) == percents.reshape(2, -1).max(axis=1).tolist()
        few = (await node.ask(BEGIN, BEGIN + num - 1, "cpu/percent", max_points=500)).series[0]
        assert len(few.steps) <= 500
        assert (min(few.min_values), max(few.max_values)) == (percents.min(), percents.max())
        assert few.num_points == num


async def test_smooth_points_take_three_bytes_at_most(tmp_path: Path) -> None:
    num = HOUR
    async with fleet(tmp_path) as node:
        await node.send(range(BEGIN, BEGIN + num), walk(num))
        await node.fold(BEGIN + num + 90)
        size = select(func.sum(func.length(NODE_SERIES.c.payload))).where(NODE_SERIES.c.resolution == 1)
        num_bytes = await node.db.read(lambda session: session.execute(size).scalar_one())
        assert num_bytes / (num * len(KEYS)) <= 3


async def test_what_comes_late_twice_or_beyond_a_gap_counts_once(tmp_path: Path) -> None:
    num = HOUR // 2
    steps, values = list(range(BEGIN, BEGIN + num)), walk(num)
    async with fleet(tmp_path) as node:
        await node.publish(steps[:100], values[:100], 1)
        await node.publish(steps[200:300], values[200:300], 201)  # 101 to 200 are missing
        await node.stored(100)
        await node.fold(BEGIN + num + 90)
        assert await node.segments() == 1, "what lies beyond a gap stays until that is closed"
        await node.publish(steps[100:200], values[100:200], 101)
        await node.stored(300)
        # Another start of the agent sends most of it once more, and the rest.
        await node.publish(steps[50:], values[50:], 1, BEGIN * 1000 + 5)
        await node.stored(num - 50, BEGIN * 1000 + 5)
        await node.fold(BEGIN + 2 * num + 90)
        found = (await node.ask(BEGIN, BEGIN + num, "cpu/percent")).series[0]
        assert list(found.steps) == steps
        assert list(found.values) == [row[0] for row in values]
        (hour,) = (await node.ask(BEGIN, BEGIN + HOUR - 1, "cpu/percent", max_points=1)).series
        assert hour.num_points == num
        assert hour.values[0] == pytest.approx(np.mean([row[0] for row in values]))


async def test_what_is_old_goes_on_by_the_minute_and_then_by_the_hour(tmp_path: Path) -> None:
    async with fleet(tmp_path) as node:
        for day in (0, 40, 41):  # a quarter of an hour each, from half past on
            start = BEGIN + day * DAY + HOUR // 2
            await node.send(range(start, start + 900), walk(900))
            await node.fold(start + HOUR)
        await node.fold(BEGIN + 41 * DAY + 2 * HOUR)
        whole = await node.ask(BEGIN, BEGIN + 42 * DAY, "cpu/percent")
        assert [await node.rows(resolution) for resolution in (1, 60, 3600)] == [3, 6, 6]
        assert whole.resolution_seconds == 1
        assert len(whole.series[0].steps) == 1 + 15 + 900
        assert whole.series[0].num_points == 3 * 900
        assert (np.diff(whole.series[0].steps) > 0).all()
        minutes = await node.ask(BEGIN, BEGIN + 42 * DAY, "cpu/percent", max_points=20_000)
        assert (minutes.resolution_seconds, len(minutes.series[0].steps)) == (60, 1 + 15 + 15)


async def test_a_star_means_every_gpu_and_an_unknown_node_has_nothing(tmp_path: Path) -> None:
    async with fleet(tmp_path) as node:
        await node.send([BEGIN, BEGIN + 1], walk(2))
        found = await node.ask(BEGIN, BEGIN + 9, "gpu*/power_watts")
        assert [each.key for each in found.series] == list(KEYS[1:])
        assert not (await node.ask(BEGIN, BEGIN + 9, "gpu*", "power_watts")).series
        other = metrics_pb2.QueryNodeSeriesRequest(name="nodes/other")
        assert not (await node.service.metrics.QueryNodeSeries(other)).series
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await node.ask(BEGIN + 9, BEGIN)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
