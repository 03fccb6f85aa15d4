"""Whatever comes twice, late or cut differently, with compaction in between: the curves are as in order."""

import asyncio
import hashlib
import random
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.metrics.support import JOB, running_metrics, send
from tests.support.postgres import running
from tests.support.wait import until_async
from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_agent.spool import Record, pack
from tunesmith_kit import migrate
from tunesmith_kit.db import Database
from tunesmith_metrics import chunks, store, summaries
from tunesmith_metrics.compact import Compactor
from tunesmith_metrics.events import Rank
from tunesmith_metrics.series import Curve, Points
from tunesmith_metrics.tables import METADATA

KEYS = ("train/loss", "eval/loss", "gpu0/power")
Story = dict[tuple[int, int], list[Record]]  # what each epoch and rank logged
_numbers = count()

values = st.floats(width=64) | st.integers(-3, 900).map(float) | st.sampled_from([0.1, 61.5, -0.0])
steps = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.sampled_from(KEYS), unique=True, max_size=3), values),
    min_size=1,
    max_size=25,
)
stories = st.dictionaries(st.tuples(st.integers(1, 3), st.integers(0, 1)), steps, min_size=1, max_size=4).map(
    lambda found: {
        rank: [
            Record(seq, step, 1000 * seq, tuple(keys), tuple(value + at for at in range(len(keys))))
            for seq, (step, keys, value) in enumerate(logged, 1)
        ]
        for rank, logged in found.items()
    }
)


def expected(story: Story) -> dict[str, dict[int, float]]:
    """The rule itself: highest epoch, then lowest rank, then latest record."""
    best: dict[str, dict[int, tuple[tuple[int, int, int], float]]] = {}
    for (epoch, rank), records in story.items():
        for record in records:
            for key, value in zip(record.keys, record.values, strict=True):
                weight = (epoch, -rank, record.seq)
                known = best.setdefault(key, {}).get(record.step)
                if known is None or weight > known[0]:
                    best[key][record.step] = (weight, value)
    return {key: {step: value for step, (_, value) in sorted(found.items())} for key, found in best.items()}


def table_hash(curves: dict[str, Curve]) -> str:
    """One digest over all curves, bit by bit."""
    found = hashlib.sha256()
    for key, curve in curves.items():
        found.update(key.encode())
        for column in (curve.steps, curve.times_us, curve.values, curve.epochs, curve.ranks):
            found.update(column.tobytes())
    return found.hexdigest()


def messages(story: Story, job_id: str, most: int) -> list[events_pb2.MetricBatch]:
    """The story as agents send it, at most so many points a message."""
    return [
        batch
        for (epoch, rank), records in sorted(story.items())
        for batch in pack(job_id, epoch, rank, records, most)
    ]


def scrambled(story: Story, job_id: str, rng: random.Random) -> list[list[events_pb2.MetricBatch]]:
    """The same in other pieces: some lost, all sent again with other cuts, in any order, by commits."""
    first = [batch for batch in messages(story, job_id, rng.randint(1, 9)) if rng.random() < 0.6]
    again = messages(story, job_id, rng.randint(1, 9)) + rng.sample(first, len(first) // 2)
    whole = first + again
    rng.shuffle(whole)
    commits: list[list[events_pb2.MetricBatch]] = []
    while whole:
        size = rng.randint(1, 6)
        commits.append(whole[:size])
        del whole[:size]
    return commits


async def deliver(db: Database, batches: list[events_pb2.MetricBatch]) -> None:
    rows = [
        (Rank("default", batch.job_id, batch.epoch, batch.rank), batch, batch.SerializeToString())
        for batch in batches
    ]
    await db.write(lambda session: store.add_batches(session, rows))


async def play(db: Database, story: Story, seed: int) -> None:
    rng = random.Random(seed)
    calm, wild = (f"{kind}{next(_numbers)}" for kind in ("calm", "wild"))
    await deliver(db, messages(story, calm, 1000))
    compactor = Compactor(db)
    for commit in scrambled(story, wild, rng):
        await deliver(db, commit)
        if rng.random() < 0.3:
            await compactor.once()
    in_order, found = [await db.read(partial(store.curves, job_id=job)) for job in (calm, wild)]
    assert table_hash(found) == table_hash(in_order)
    await compactor.once()
    assert table_hash(await db.read(lambda session: store.curves(session, wild))) == table_hash(in_order)
    curves = {key: dict(zip(c.steps.tolist(), c.values.tolist(), strict=True)) for key, c in found.items()}
    assert str(curves) == str(dict(sorted(expected(story).items())))  # as texts NaN is NaN
    watched, _ = await db.read(lambda session: store.points_after(session, wild, 0, 2**30))
    assert table_hash(watched) == table_hash(in_order)
    counted = await db.read(lambda session: summaries.stored(session, wild))
    assert not any(row["stale"] for row in counted)
    assert counted == await db.read(lambda session: store.fresh_summaries(session, wild))
    for row in counted:
        curve = in_order[row["key"]]
        assert (row["num_points"], row["last_step"]) == (len(curve.steps), curve.steps[-1])
        assert str(store.from_column(row["last_value"])) == str(float(curve.values[-1]))


def run_stories(url: str, num_examples: int) -> None:
    migrate.upgrade(url, "metrics", METADATA)

    async def opened() -> Database:
        return Database(url, "metrics")

    with asyncio.Runner() as runner:
        db = runner.run(opened())

        @settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(stories, st.integers(0, 2**32))
        def check(story: Story, seed: int) -> None:
            runner.run(play(db, story, seed))

        run: Callable[[], None] = check
        run()
        runner.run(db.close())


def test_any_delivery_gives_the_curves_of_delivery_in_order(tmp_path: Path) -> None:
    run_stories(f"sqlite:///{tmp_path / 'metrics.db'}", 30)


def test_any_delivery_gives_the_curves_of_delivery_in_order_on_postgresql() -> None:
    with running() as server:
        run_stories(server.url, 6)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**62), 2**62), st.integers(0, 2**60), values), min_size=1, max_size=60)
)
def test_a_chunk_keeps_every_bit(rows: list[tuple[int, int, float]]) -> None:
    columns = list(zip(*rows, strict=True))
    points = Points(
        np.array(columns[0], dtype=np.int64),
        np.array(columns[1], dtype=np.int64),
        np.array(columns[2], dtype=np.float64),
        np.arange(1, len(rows) + 1),
    )
    again = chunks.decode(chunks.encode(points))
    for name in ("steps", "times_us", "values", "seqs"):
        assert getattr(again, name).tobytes() == getattr(points, name).tobytes()


async def test_any_delivery_over_the_real_bus_gives_the_same(tmp_path: Path) -> None:
    rng = random.Random(11)
    story: Story = {
        (epoch, 0): [
            Record(
                seq,
                base + seq,
                1000 * seq,
                KEYS[: 1 + seq % 3],
                tuple(rng.random() for _ in range(1 + seq % 3)),
            )
            for seq in range(1, 200)
        ]
        for epoch, base in ((1, 0), (2, 120))
    }
    async with running_metrics(tmp_path) as service:
        sending = [batch for commit in scrambled(story, JOB, rng) for batch in commit]
        for start in range(0, len(sending), 40):
            some = enumerate(sending[start : start + 40], start)
            await asyncio.gather(*(send(service.bus, batch, f"wild-{number}") for number, batch in some))

        async def complete() -> bool:
            marks = [await service.watermark(epoch) for epoch in (1, 2)]
            return all(mark.metrics_seq == 199 for mark in marks)

        await until_async(complete, "all records")
        answer = await service.series()
        found = {each.key: dict(zip(each.steps, each.values, strict=True)) for each in answer.series}
        assert found == dict(sorted(expected(story).items()))
