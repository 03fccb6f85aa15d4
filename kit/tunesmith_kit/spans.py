"""Finished spans on their way to the store, so that the trace of a job can be shown without any collector.

    recorder = Recorder()                                # gathers, never waits, never fails
    sending = SpanPublisher(recorder, "jobs", bus)       # a batch a second at most, over the bus
    sending.start(); ...; await sending.stop()

Spans are for people to look at: when the bus is away for long the newest are dropped and counted, and nobody
waits for them.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice

from tunesmith.api.metrics.v1 import trace_pb2
from tunesmith.errors import TunesmithError
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.meters import METRICS

log = logging.getLogger(__name__)

KINDS = {
    "internal": trace_pb2.TRACE_SPAN_KIND_INTERNAL,
    "server": trace_pb2.TRACE_SPAN_KIND_SERVER,
    "client": trace_pb2.TRACE_SPAN_KIND_CLIENT,
    "producer": trace_pb2.TRACE_SPAN_KIND_PRODUCER,
    "consumer": trace_pb2.TRACE_SPAN_KIND_CONSUMER,
}
MOST_HELD = 4000  # some 2 MB; a busy gateway accepts a few hundred jobs a second
MOST_ATTRIBUTES, LONGEST_ATTRIBUTE, LONGEST_TEXT = 16, 256, 500
_BATCH = 100  # at its largest 0.7 MB: the bus takes one
_PAUSE_SECONDS = 0.5
_RETRY_SECONDS = 5.0
_PUBLISH_SECONDS = 20.0
_LAST_SECONDS = 1.0


class Recorder:
    """Spans that ended and are not stored yet, of all services that share it."""

    def __init__(self) -> None:
        self.held: deque[trace_pb2.TraceSpan] = deque()

    def add(
        self,
        service: str,
        name: str,
        traceparent: str,
        parent: str,
        kind: str,
        start_ns: int,
        end_ns: int,
        *,
        job: str = "",
        error: str = "",
        attributes: Mapping[str, object] | None = None,
    ) -> None:
        """Takes a span over. `parent` is a traceparent or empty; times are Unix times in nanoseconds."""
        if len(self.held) >= MOST_HELD:
            METRICS.spans_dropped.inc()
            return
        span = trace_pb2.TraceSpan(
            trace_id=traceparent[3:35],
            span_id=traceparent[36:52],
            parent_span_id=parent[36:52],
            service=service,
            name=name[:LONGEST_ATTRIBUTE],
            kind=KINDS[kind],
            status=trace_pb2.TRACE_SPAN_STATUS_ERROR if error else trace_pb2.TRACE_SPAN_STATUS_OK,
            error=error[:LONGEST_TEXT],
            job=job,
        )
        span.start_time.FromNanoseconds(start_ns)
        span.end_time.FromNanoseconds(max(start_ns, end_ns))
        for key, value in islice((attributes or {}).items(), MOST_ATTRIBUTES):
            span.attributes[key[:LONGEST_ATTRIBUTE]] = str(value)[:LONGEST_ATTRIBUTE]
        self.held.append(span)


class SpanPublisher:
    """Publishes what a recorder holds; made by `Telemetry.publish`, and by the gateway, which has no bus."""

    def __init__(
        self, recorder: Recorder | None, service: str, bus: Bus | Callable[[], Awaitable[Bus]]
    ) -> None:
        """`recorder` None: spans are not kept, and nothing happens here. `bus`: the process's own, or what
        connects to one once there is something to send; that one is closed at the end."""
        self._recorder, self._service = recorder, service
        self._bus = bus if isinstance(bus, Bus) else None
        self._connect = None if isinstance(bus, Bus) else bus
        self._task: asyncio.Task[None] | None = None
        self._batch_id, self._batch_size = "", 0  # of what is at the front and not known to be stored

    def start(self) -> None:
        """Begins to publish, until `stop`."""
        if self._recorder is not None and self._task is None:
            self._task = asyncio.create_task(self._run(self._recorder), name="spans")

    async def stop(self) -> None:
        """Sends what is left if the bus takes it at once. Call it before the bus is closed."""
        if self._task is None or self._recorder is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task], timeout=_LAST_SECONDS)
        self._task = None
        if self._bus is None:
            return
        if self._bus.connected:
            with contextlib.suppress(TunesmithError, TimeoutError):
                async with asyncio.timeout(_LAST_SECONDS):
                    await self._send_all(self._recorder, self._bus)
        if self._connect is not None:
            await self._bus.close()

    async def _run(self, recorder: Recorder) -> None:
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            if not recorder.held:
                continue
            try:
                if self._bus is None:
                    assert self._connect is not None, "one of the two is there"
                    self._bus = await self._connect()
                await self._send_all(recorder, self._bus)
            except TunesmithError as error:
                log.debug("spans wait", extra={"service": self._service, "problem": error.message})
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:  # a trace is worth no service
                log.exception("spans cannot be published", extra={"service": self._service})
                await asyncio.sleep(_RETRY_SECONDS)

    async def _send_all(self, recorder: Recorder, bus: Bus) -> None:
        while recorder.held:
            # What is at the front stays there until it is stored: sent again it has the same id and content.
            size = self._batch_size if self._batch_id else _BATCH
            batch = trace_pb2.SpanBatch(spans=islice(recorder.held, size))
            self._batch_id, self._batch_size = self._batch_id or new_ulid(), len(batch.spans)
            subject = subjects.spans(self._service)
            await bus.publish(subject, batch.SerializeToString(), self._batch_id, deadline=_PUBLISH_SECONDS)
            for _ in batch.spans:
                recorder.held.popleft()
            self._batch_id = ""
