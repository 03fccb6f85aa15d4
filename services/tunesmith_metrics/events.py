"""What the metrics service hears and says on the bus: batches and chunks come in, watermarks go out."""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, Delivery

_MAX_KEY_LENGTH = 256


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """Who sent something: a rank of an attempt of a job."""

    project: str
    job_id: str
    epoch: int
    rank: int


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a rank's records are stored without a gap."""

    sender: Rank
    metrics_seq: int
    log_offset: int


def read_batch(delivery: Delivery) -> tuple[Rank, events_pb2.MetricBatch]:
    """Returns sender and batch; `InvalidArgument` when the message is not what the contract says."""
    sender = _sender(delivery)
    try:
        batch = events_pb2.MetricBatch.FromString(delivery.payload)
    except DecodeError as error:
        raise _malformed("not a MetricBatch", delivery) from error
    _same_sender(sender, batch, delivery)
    if batch.first_seq < 1 or any(not key or len(key) > _MAX_KEY_LENGTH for key in batch.keys):
        raise _malformed("first_seq counts from 1 and keys have 1 to 256 characters", delivery)
    num_records = sum(_num_records(matrix, len(batch.keys), delivery) for matrix in batch.matrices)
    if num_records == 0 or num_records != batch.num_records:
        raise _malformed(f"num_records is {batch.num_records}, but there are {num_records}", delivery)
    return sender, batch


def _num_records(matrix: events_pb2.MetricMatrix, num_keys: int, delivery: Delivery) -> int:
    rows = len(matrix.step_deltas)
    if len(matrix.time_deltas_us) != rows or len(matrix.values) != rows * len(matrix.key_indices):
        raise _malformed("a matrix has not records x columns values", delivery)
    if any(index >= num_keys for index in matrix.key_indices):
        raise _malformed("a matrix names a key that is not there", delivery)
    return rows


def read_chunk(delivery: Delivery) -> tuple[Rank, events_pb2.LogChunk]:
    """Returns sender and chunk; `InvalidArgument` when the message is not what the contract says."""
    sender = _sender(delivery)
    try:
        chunk = events_pb2.LogChunk.FromString(delivery.payload)
    except DecodeError as error:
        raise _malformed("not a LogChunk", delivery) from error
    _same_sender(sender, chunk, delivery)
    if chunk.offset < 0 or chunk.num_bytes <= 0 or len(chunk.lines) != len(chunk.line_offsets):
        raise _malformed("offset, num_bytes and line_offsets do not fit", delivery)
    end = chunk.offset + chunk.num_bytes
    if any(not chunk.offset <= offset < end for offset in chunk.line_offsets):
        raise _malformed("a line begins outside the chunk", delivery)
    return sender, chunk


def _sender(delivery: Delivery) -> Rank:
    parts = subjects.parse_rank(delivery.subject)
    if len(parts.project) > 64 or len(parts.job_id) > 64:
        raise _malformed("project or job id is too long", delivery)
    return Rank(parts.project, parts.job_id, parts.epoch, parts.rank)


def _same_sender(
    sender: Rank, message: events_pb2.MetricBatch | events_pb2.LogChunk, delivery: Delivery
) -> None:
    # Permissions on the bus are by subject: the content must not speak for another job.
    if (message.job_id, message.epoch, message.rank) != (sender.job_id, sender.epoch, sender.rank):
        raise _malformed("the message speaks for another rank than its subject", delivery)


def _malformed(problem: str, delivery: Delivery) -> InvalidArgument:
    return InvalidArgument(
        "MESSAGE_MALFORMED",
        problem,
        field=delivery.subject,
        value=delivery.message_id,
        remedy="mend the sender",
    )


async def announce(bus: Bus, marks: list[Watermark]) -> None:
    """Tells agents how far their records are stored; a lost announcement is made good by the next."""
    for mark in marks:
        who = mark.sender
        message = events_pb2.WatermarkAdvanced(
            job_id=who.job_id,
            epoch=who.epoch,
            rank=who.rank,
            metrics_seq=mark.metrics_seq,
            log_offset=mark.log_offset,
        )
        subject = subjects.watermark(who.project, who.job_id, who.epoch, who.rank)
        await bus.publish_core(subject, message.SerializeToString())
