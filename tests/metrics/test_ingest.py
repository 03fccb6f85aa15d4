"""Ingest: every record exactly once, whatever the bus and the agent do."""

import asyncio
import math
import random
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from tests.metrics.support import JOB, PARENT, batch, losses, running_metrics, send
from tests.support.bus import connected, running_nats
from tests.support.wait import until, until_async
from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Message
from tunesmith_metrics.events import Rank
from tunesmith_metrics.store import add_batches
from tunesmith_metrics.tables import METADATA


async def test_batches_in_any_order_any_cut_and_any_number_of_times_give_each_record_once(
    tmp_path: Path,
) -> None:
    rng = random.Random(7)
    async with running_metrics(tmp_path) as service:
        cuts = []
        for attempt in range(3):  # as after restarts of the agent: other boundaries, same records
            seq = 1
            while seq <= 500:
                end = min(500, seq + rng.randrange(1, 40))
                cuts.append((seq, end, attempt))
                seq = end + 1
        rng.shuffle(cuts)
        await asyncio.gather(
            *(
                send(service.bus, batch(low, losses(low, high)), f"{low}-{high}-{attempt}")
                for low, high, attempt in cuts
            )
        )

        async def complete() -> bool:
            return (await service.watermark()).metrics_seq == 500

        await until_async(complete, "the watermark")
        curve = await service.loss()
        assert list(curve.steps) == list(range(1, 501))
        assert list(curve.values) == [float(seq) for seq in range(1, 501)]
        listed = await service.metrics.ListMetrics(metrics_pb2.ListMetricsRequest(parent=PARENT))
        assert [(m.key, m.num_points, m.last_step, m.last_value) for m in listed.metrics] == [
            ("train/loss", 500, 500, 500.0)
        ]


async def test_the_watermark_stops_at_the_first_gap(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, losses(1, 10)))
        await send(service.bus, batch(21, losses(21, 30)))

        async def both_stored() -> bool:
            return len((await service.loss()).steps if (await service.series()).series else []) == 20

        await until_async(both_stored, "both batches")
        assert (await service.watermark()).metrics_seq == 10
        await send(service.bus, batch(11, losses(11, 20)))

        async def closed() -> bool:
            return (await service.watermark()).metrics_seq == 30

        await until_async(closed, "the gap to close")


async def test_agents_hear_the_watermark_after_the_commit(tmp_path: Path) -> None:
    heard: list[events_pb2.WatermarkAdvanced] = []

    async def hear(message: Message) -> None:
        heard.append(events_pb2.WatermarkAdvanced.FromString(message.payload))

    async with running_metrics(tmp_path) as service:
        await service.bus.subscribe(subjects.any_watermark("default", JOB), hear)
        await send(service.bus, batch(1, losses(1, 5)))
        await until(lambda: heard, "a watermark")
        assert (heard[0].job_id, heard[0].epoch, heard[0].rank, heard[0].metrics_seq) == (JOB, 1, 0, 5)
        await send(service.bus, batch(1, losses(1, 5)), "again")
        await until(lambda: len(heard) > 1, "a watermark for records known already")
        assert heard[1].metrics_seq == 5


async def test_a_bad_message_goes_to_the_dead_letters_and_blocks_nobody(tmp_path: Path) -> None:
    dead: list[Message] = []

    async def bury(message: Message) -> None:
        dead.append(message)

    async with running_metrics(tmp_path) as service:
        await service.bus.subscribe(subjects.dead("METRICS"), bury)
        subject = subjects.metrics("default", JOB, 1, 0)
        liar = batch(1, losses(1, 2), job_id="01k000000000000000000other")
        short = batch(1, losses(1, 3))
        short.matrices[0].values.pop()
        wrong_project = subjects.metrics("other", JOB, 1, 0)
        await send(service.bus, batch(1, losses(1, 1)))
        for index, payload in enumerate((b"\xff\xff", liar.SerializeToString(), short.SerializeToString())):
            await service.bus.publish(subject, payload, f"bad-{index}")
        await service.bus.publish(wrong_project, batch(2, losses(2, 2)).SerializeToString(), "bad-project")
        await send(service.bus, batch(2, losses(2, 9)))
        await until(lambda: len(dead) == 4, "the dead letters")
        assert {message.headers["dead-reason"] for message in dead} == {"MESSAGE_MALFORMED"}
        assert {message.headers["dead-message-id"] for message in dead} == {
            "bad-0",
            "bad-1",
            "bad-2",
            "bad-project",
        }

        async def stored() -> bool:
            return (await service.watermark()).metrics_seq == 9

        await until_async(stored, "the good messages")


async def test_killing_nats_and_wiping_its_disk_loses_nothing_an_agent_still_has(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, running_metrics(tmp_path, server) as service:
        for seq in range(1, 101, 10):
            await send(service.bus, batch(seq, losses(seq, seq + 9)))
        sending = asyncio.gather(
            *(send(service.bus, batch(seq, losses(seq, seq + 9))) for seq in range(101, 3001, 10))
        )
        await server.kill()
        server.wipe()
        await server.start()
        await sending
        # The agent sends again from the watermark, as it does after each reconnect.
        low = (await service.watermark()).metrics_seq + 1
        for seq in range(low, 3001, 50):
            high = min(3000, seq + 49)
            await send(service.bus, batch(seq, losses(seq, high)), f"again-{seq}")

        async def complete() -> bool:
            return (await service.watermark()).metrics_seq == 3000

        await until_async(complete, "all records")
        assert list((await service.loss()).values) == [float(seq) for seq in range(1, 3001)]


async def test_a_restart_of_the_service_goes_on_where_it_was(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as bus:
        async with running_metrics(tmp_path, server):
            await send(bus, batch(1, losses(1, 50)))
        await send(bus, batch(51, losses(51, 100)))  # nobody is there: the stream keeps it
        async with running_metrics(tmp_path, server) as service:

            async def complete() -> bool:
                return (await service.watermark()).metrics_seq == 100

            await until_async(complete, "the rest")
            assert len((await service.loss()).steps) == 100


async def test_nan_and_infinities_are_kept(tmp_path: Path) -> None:
    values = [1.0, math.nan, math.inf, -math.inf, 2.0, math.nan]
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, [[value] for value in values]))

        async def stored() -> bool:
            return (await service.watermark()).metrics_seq == len(values)

        await until_async(stored, "the values")
        curve = await service.loss()
        assert [str(value) for value in curve.values] == [str(value) for value in values]
        listed = await service.metrics.ListMetrics(metrics_pb2.ListMetricsRequest(parent=PARENT))
        only = listed.metrics[0]
        assert math.isnan(only.last_value)
        assert (only.min_value, only.max_value) == (-math.inf, math.inf)


def test_storing_a_batch_costs_the_same_however_much_its_job_has_stored(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'metrics.db'}")
    METADATA.create_all(engine)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def store_one(seq: int) -> int:
        """Stores a batch, and returns how much SQLite did for it, in hundreds of its instructions."""
        nonlocal steps
        one = batch(seq, losses(seq, seq))
        with Session(engine) as session, session.begin():
            connection = session.connection().connection.driver_connection
            assert connection is not None
            steps = 0
            connection.set_progress_handler(count, 100)
            add_batches(session, [(Rank("default", JOB, 1, 0), one, one.SerializeToString())])
            connection.set_progress_handler(None, 0)
        return steps

    costs = [store_one(seq) for seq in range(1, 301)]
    assert sum(costs[-20:]) <= 2 * sum(costs[:20]), (costs[:20], costs[-20:])
