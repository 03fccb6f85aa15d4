"""Compaction changes how points lie, never the points."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.metrics.support import batch, losses, running_metrics, send
from tests.support.wait import until_async
from tunesmith_kit import migrate
from tunesmith_kit.db import Database
from tunesmith_metrics import compact
from tunesmith_metrics.compact import Compactor
from tunesmith_metrics.events import Rank
from tunesmith_metrics.store import add_batches
from tunesmith_metrics.tables import METADATA, SEGMENTS


async def test_merged_segments_hold_the_same_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: Compactor) -> None:
        """The service's own must not take the segments away while we count them."""

    monkeypatch.setattr(Compactor, "run", never)
    async with running_metrics(tmp_path) as service:
        for seq in range(1, 301, 2):  # keys change now and then, as with evaluations in between
            message = (
                batch(seq, [[float(seq), -1.0]] * 2, keys=("train/loss", "eval/loss"))
                if seq % 50 == 1
                else batch(seq, losses(seq, seq + 1))
            )
            await send(service.bus, message)

        async def complete() -> bool:
            return (await service.watermark()).metrics_seq == 300

        await until_async(complete, "all records")
        before = await service.series()
        db = Database(f"sqlite:///{tmp_path / 'metrics.db'}", "metrics")
        count = select(func.count()).select_from(SEGMENTS)
        rows = await db.read(lambda session: session.execute(count).scalar_one())
        assert await Compactor(db).once() == rows
        assert await db.read(lambda session: session.execute(count).scalar_one()) == 0
        after = await service.series()
        assert after.series == before.series
        # What came before is still known as stored; what comes next joins on.
        await asyncio.gather(
            send(service.bus, batch(1, losses(1, 40)), "again"),
            send(service.bus, batch(301, losses(301, 302))),
        )

        async def more() -> bool:
            return (await service.watermark()).metrics_seq == 302

        await until_async(more, "the next records")
        assert len((await service.loss()).steps) == 302
        assert list((await service.loss(max_step=300)).values) == list(before.series[1].values)
        await db.close()


async def test_a_job_has_its_turn_though_others_fill_up_again_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "_MOST_JOBS", 1)
    url = f"sqlite:///{tmp_path / 'metrics.db'}"
    migrate.upgrade(url, "metrics", METADATA)
    db = Database(url, "metrics")
    compactor = Compactor(db)

    async def fill(job_id: str, first: int) -> None:
        for seq in range(first, first + 64):
            one = batch(seq, losses(seq, seq), job_id=job_id)
            item = (Rank("default", job_id, 1, 0), one, one.SerializeToString())
            await db.write(lambda session, item=item: add_batches(session, [item]))  # type: ignore[misc]

    async def one_pass() -> None:
        await compactor.sum_up()
        assert await compactor.compact() == 64

    await fill("a", 1)
    await fill("b", 1)
    await one_pass()
    await fill("a", 65)
    await one_pass()
    query = select(SEGMENTS.c.job_id).distinct()
    assert await db.read(lambda session: list(session.execute(query).scalars())) == ["a"]
    await db.close()
