"""Two replicas of the metrics service on one PostgreSQL share the work and store each record once."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.metrics.support import Metrics, batch, losses, send
from tests.support.bus import connected, running_nats
from tests.support.postgres import running
from tests.support.stubs import running_service, stub
from tests.support.wait import until_async
from tunesmith.api.metrics.v1 import metrics_pb2_grpc


@pytest.mark.distributed
async def test_two_replicas_store_each_record_once_and_any_of_them_answers(tmp_path: Path) -> None:
    rng = random.Random(3)
    with running() as database:
        async with (
            running_nats(tmp_path) as server,
            running_service("metrics", server, tmp_path, database_url=database.url) as one,
            running_service("metrics", server, tmp_path, database_url=database.url) as two,
            connected(server, "agent") as bus,
            stub(metrics_pb2_grpc.MetricsServiceStub, one) as metrics_one,
            stub(metrics_pb2_grpc.MetricsServiceStub, two) as metrics_two,
        ):
            first = Metrics(server, bus, one, metrics_one, None)  # type: ignore[arg-type]
            second = Metrics(server, bus, two, metrics_two, None)  # type: ignore[arg-type]
            cuts = []
            for attempt in range(2):
                seq = 1
                while seq <= 2000:
                    end = min(2000, seq + rng.randrange(1, 20))
                    cuts.append((seq, end, attempt))
                    seq = end + 1
            rng.shuffle(cuts)
            await asyncio.gather(
                *(send(bus, batch(low, losses(low, high)), f"{low}-{high}-{n}") for low, high, n in cuts)
            )

            async def complete() -> bool:
                return (await second.watermark()).metrics_seq == 2000

            await until_async(complete, "all records")
            for replica in (first, second):
                assert list((await replica.loss()).values) == [float(seq) for seq in range(1, 2001)]
