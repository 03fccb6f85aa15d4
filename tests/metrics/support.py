"""Agents as the metrics service sees them: batches and chunks on the bus."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.bus import connected, running_nats
from tests.support.stubs import running_service, stub
from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2, metrics_pb2_grpc
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, PubAck
from tunesmith_kit.host import Running
from tunesmith_kit.nats_server import EmbeddedNats

JOB = "01k0000000000000000000test"
PARENT = f"projects/default/jobs/{JOB}"
TIME_US = 1_790_000_000_000_000


@dataclass
class Metrics:
    """The running service with its clients and a bus to feed it."""

    server: EmbeddedNats
    bus: Bus
    running: Running
    metrics: "metrics_pb2_grpc.MetricsServiceAsyncStub"
    logs: "metrics_pb2_grpc.LogServiceAsyncStub"

    async def watermark(self, epoch: int = 1, rank: int = 0) -> metrics_pb2.GetWatermarkResponse:
        """How far the service has stored what a rank sent."""
        request = metrics_pb2.GetWatermarkRequest(job=PARENT, epoch=epoch, rank=rank)
        return await self.metrics.GetWatermark(request)

    async def series(self, **fields: object) -> metrics_pb2.QuerySeriesResponse:
        """Curves of the job."""
        return await self.metrics.QuerySeries(metrics_pb2.QuerySeriesRequest(parent=PARENT, **fields))  # type: ignore[arg-type]

    async def loss(self, **fields: object) -> metrics_pb2.Series:
        """The curve of `train/loss`."""
        answer = await self.series(keys=["train/loss"], **fields)
        return answer.series[0]


@asynccontextmanager
async def running_metrics(
    folder: Path, server: EmbeddedNats | None = None, **settings: object
) -> AsyncIterator[Metrics]:
    """The service on its own nats-server, or on one that runs already."""
    if server is None:
        async with running_nats(folder) as own, running_metrics(folder, own, **settings) as metrics:
            yield metrics
        return
    async with (
        running_service("metrics", server, folder, **settings) as running,
        connected(server, "agent") as bus,
        stub(metrics_pb2_grpc.MetricsServiceStub, running) as metrics_stub,
        stub(metrics_pb2_grpc.LogServiceStub, running) as logs_stub,
    ):
        yield Metrics(server, bus, running, metrics_stub, logs_stub)


def batch(
    first_seq: int,
    rows: Sequence[Sequence[float]],
    *,
    first_step: int | None = None,
    keys: Sequence[str] = ("train/loss",),
    epoch: int = 1,
    rank: int = 0,
    job_id: str = JOB,
) -> events_pb2.MetricBatch:
    """A batch of consecutive steps; without `first_step` the step equals the sequence number."""
    step = first_seq if first_step is None else first_step
    matrix = events_pb2.MetricMatrix(
        key_indices=range(len(keys)),
        step_deltas=[step] + [1] * (len(rows) - 1),
        time_deltas_us=[TIME_US + first_seq * 1000] + [1000] * (len(rows) - 1),
        values=[value for row in rows for value in row],
    )
    return events_pb2.MetricBatch(
        job_id=job_id,
        epoch=epoch,
        rank=rank,
        first_seq=first_seq,
        num_records=len(rows),
        keys=keys,
        matrices=[matrix],
    )


def losses(first: int, last: int) -> list[list[float]]:
    """Rows for sequence numbers first to last, whose value tells which it is."""
    return [[float(seq)] for seq in range(first, last + 1)]


async def send(bus: Bus, message: events_pb2.MetricBatch | events_pb2.LogChunk, msg_id: str = "") -> PubAck:
    """Publishes as an agent does; `msg_id` to get past the stream's own deduplication."""
    build, start = (
        (subjects.metrics, message.first_seq)
        if isinstance(message, events_pb2.MetricBatch)
        else (subjects.logs, message.offset)
    )
    subject = build("default", message.job_id, message.epoch, message.rank)
    own_id = f"{message.job_id}:{message.epoch}:{message.rank}:{start}"
    return await bus.publish(subject, message.SerializeToString(), msg_id or own_id)


def chunk(
    offset: int,
    lines: Sequence[str],
    *,
    epoch: int = 1,
    rank: int = 0,
    time_us: int = TIME_US,
    levels: Sequence[events_pb2.LogLevel.ValueType] = (),
    steps: Sequence[int] = (),
) -> events_pb2.LogChunk:
    """A chunk of whole lines that begins at a byte of the log."""
    message = events_pb2.LogChunk(
        job_id=JOB, epoch=epoch, rank=rank, offset=offset, time_us=time_us, levels=levels, steps=steps
    )
    for line in lines:
        message.lines.append(line)
        message.line_offsets.append(offset + message.num_bytes)
        message.num_bytes += len(line.encode()) + 1
    return message
