"""Traces: spans heard on the bus, and the rpc of TraceService."""

import re
import time
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import trace_pb2, trace_pb2_grpc
from tunesmith.errors import InvalidArgument, TunesmithError
from tunesmith_kit import names
from tunesmith_kit.bus import Bus, Consumer, Delivery
from tunesmith_kit.consumer import Rejected
from tunesmith_kit.db import Database
from tunesmith_kit.streams import SPANS
from tunesmith_metrics import traces
from tunesmith_metrics.store import belongs
from tunesmith_metrics.traces import Found

Context = Any
_JOB = "projects/*/jobs/*"
_BATCH = 20
_MOST_SPANS, _MOST_BYTES = 1000, 16 * 1024
_LONGEST_NAME, _LONGEST_SERVICE, _LONGEST_JOB = 256, 64, 64
_LAST_SECOND = 2**33
_TRACE = re.compile(r"[0-9a-f]{32}")
_SPAN = re.compile(r"[0-9a-f]{16}")


class TraceService(trace_pb2_grpc.TraceServiceServicer):
    """TraceService of the contract."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def GetTrace(
        self, request: trace_pb2.GetTraceRequest, context: Context
    ) -> trace_pb2.GetTraceResponse:
        """Returns the trace of a job."""
        project, job_id = names.parse(_JOB, request.name)

        def read(session: Session) -> trace_pb2.GetTraceResponse:
            if not belongs(session, project, job_id):
                return trace_pb2.GetTraceResponse()
            return traces.trace(session, job_id)

        return await self._db.read(read)


class SpanEvents:
    """Hears what all processes publish of their spans."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def start(self, bus: Bus) -> Consumer:
        """Begins to hear."""
        return await bus.consume_batches(SPANS, "metrics-spans", self._hear, batch=_BATCH)

    async def _hear(self, items: Sequence[Delivery]) -> Rejected:
        good: list[Found] = []
        refused: dict[int, TunesmithError] = {}
        for index, item in enumerate(items):
            try:
                good += read(item)
            except InvalidArgument as error:
                refused[index] = error
        if good:
            now_us = time.time_ns() // 1000
            await self._db.write(lambda session: traces.store(session, good, now_us))
        return refused


def read(item: Delivery) -> list[Found]:
    """Returns the spans of a message; `InvalidArgument` when one of them is not as the contract says."""
    try:
        batch = trace_pb2.SpanBatch.FromString(item.payload)
    except DecodeError as error:
        raise _malformed("not a SpanBatch", item) from error
    if len(batch.spans) > _MOST_SPANS:
        raise _malformed(f"more than {_MOST_SPANS} spans", item)
    for span in batch.spans:
        if problem := _problem(span):
            raise _malformed(problem, item)
    return [Found(span, _job_id(span, item)) for span in batch.spans]


def _problem(span: trace_pb2.TraceSpan) -> str:
    """What is wrong with a span; empty: nothing."""
    if not _TRACE.fullmatch(span.trace_id) or not _SPAN.fullmatch(span.span_id):
        return "a span has no ids"
    if span.parent_span_id and not _SPAN.fullmatch(span.parent_span_id):
        return "the id of a span's parent is none"
    if not 1 <= len(span.name) <= _LONGEST_NAME or not span.name.isprintable():
        return "the name of a span has 1 to 256 printable characters"
    if not 1 <= len(span.service) <= _LONGEST_SERVICE:
        return "the service of a span has 1 to 64 characters"
    if not _is_time(span.start_time) or not _is_time(span.end_time):
        return "a span has no times"
    return "" if span.ByteSize() <= _MOST_BYTES else "a span has more than 16 KiB"


def _is_time(stamp: Timestamp) -> bool:
    # Beyond these no column holds it, and no answer could be written as JSON.
    return 0 < stamp.seconds < _LAST_SECOND and 0 <= stamp.nanos < 10**9


def _job_id(span: trace_pb2.TraceSpan, item: Delivery) -> str:
    if not span.job:
        return ""
    _, job_id = names.parse(_JOB, span.job, "job")
    if len(job_id) > _LONGEST_JOB:
        raise _malformed("the job id of a span is too long", item)
    return job_id


def _malformed(problem: str, item: Delivery) -> InvalidArgument:
    return InvalidArgument(
        "MESSAGE_MALFORMED", problem, field=item.subject, value=item.message_id, remedy="mend the sender"
    )
