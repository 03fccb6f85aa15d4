"""What the metrics service hears and says on the bus: batches and chunks come in, watermarks go out."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from google.protobuf.message import DecodeError

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, Delivery

_MAX_KEY_LENGTH = 256
_MAX_TEXT = 64 * 1024
_MAX_BUCKETS = 512
MAX_SEQ = 2**62  # sums of numbers below it stay within 64 bits
MAX_EPOCH = 2**31  # of jobs; a node's own series have the time their agent started


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
    if not 1 <= batch.first_seq <= MAX_SEQ:
        raise _malformed("first_seq counts from 1", delivery)
    if problem := _known_problem(tuple(batch.keys)):
        raise _malformed(problem, delivery)
    num_records = len(batch.rich)
    if num_records and batch.matrices:
        raise _malformed("a batch holds either matrices or rich values", delivery)
    for matrix in batch.matrices:
        num_records += _num_records(matrix, len(batch.keys), delivery)
    for value in batch.rich:
        if problem := rich_problem(value, len(batch.keys)):
            raise _malformed(problem, delivery)
    if num_records == 0 or num_records != batch.num_records:
        raise _malformed(f"num_records is {batch.num_records}, but there are {num_records}", delivery)
    return sender, batch


def key_problem(keys: tuple[str, ...]) -> str:
    """Tells what is wrong with keys; empty: nothing."""
    for key in keys:
        if not 1 <= len(key) <= _MAX_KEY_LENGTH:
            return "keys have 1 to 256 characters"
        if not key.isprintable():
            return "a key holds control characters"
    return "" if len(set(keys)) == len(keys) else "a key comes twice"


# Of agents only, whose keys are the same in nearly all batches of a job; what anybody may send stays nowhere.
_known_problem = lru_cache(maxsize=4096)(key_problem)


def _num_records(matrix: events_pb2.MetricMatrix, num_keys: int, delivery: Delivery) -> int:
    rows = len(matrix.step_deltas)
    if len(matrix.time_deltas_us) != rows or len(matrix.values) != rows * len(matrix.key_indices):
        raise _malformed("a matrix has not records x columns values", delivery)
    if matrix.key_indices and max(matrix.key_indices) >= num_keys:
        raise _malformed("a matrix names a key that is not there", delivery)
    return rows


def rich_problem(value: events_pb2.RichValue, num_keys: int) -> str:
    """What is wrong with a rich value; empty: nothing."""
    kind = value.WhichOneof("value")
    if value.key_index >= num_keys:
        return "a value names a key that is not there"
    if kind is None:
        return "a value is neither histogram nor text nor picture"
    if kind == "text" and len(value.text.encode()) > _MAX_TEXT:
        return "a text has more than 64 KiB"
    if kind == "histogram":
        edges, counts = value.histogram.edges, value.histogram.counts
        if not 1 <= len(counts) <= _MAX_BUCKETS or len(edges) != len(counts) + 1 or min(counts) < 0:
            return "a histogram has 1 to 512 counts, none below 0, and one edge more"
        if not all(low < high for low, high in pairwise(edges)):
            return "the edges of a histogram do not ascend"
    if kind == "picture" and re.fullmatch("[0-9a-f]{64}", value.picture.digest) is None:
        return "a picture has no SHA-256"
    return ""


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
    if len(chunk.levels) not in (0, len(chunk.lines)) or len(chunk.steps) not in (0, len(chunk.lines)):
        raise _malformed("there is not one level and one step a line", delivery)
    end = chunk.offset + chunk.num_bytes
    if any(not chunk.offset <= offset < end for offset in chunk.line_offsets):
        raise _malformed("a line begins outside the chunk", delivery)
    return sender, chunk


def _sender(delivery: Delivery) -> Rank:
    return _rank(delivery.subject)


@lru_cache(maxsize=16_384)
def _rank(subject: str) -> Rank:
    parts = subjects.parse_rank(subject)
    too_long = len(parts.project) > 64 or len(parts.job_id) > 72  # as the tables have it
    if too_long or parts.epoch < 1 or parts.rank > subjects.NODE_RANK:
        raise InvalidArgument(
            "MESSAGE_MALFORMED",
            "project, job id, epoch or rank cannot be",
            field=subject,
            remedy="mend the sender",
        )
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


async def announce(bus: Bus, marks: Iterable[Watermark]) -> None:
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
        await bus.publish_core(_watermark_subject(who), message.SerializeToString())


@lru_cache(maxsize=16_384)
def _watermark_subject(who: Rank) -> str:
    node = who.job_id.removeprefix("node.")
    if node != who.job_id:
        return subjects.node_watermark(node, who.epoch)
    return subjects.watermark(who.project, who.job_id, who.epoch, who.rank)
