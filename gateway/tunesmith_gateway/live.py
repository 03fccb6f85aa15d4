"""Live curves: one stream from the metrics service a job, shared by all who watch it.

What goes out was stored before, in the order of revisions: a viewer who comes late or was too slow reads what
it missed from the store and joins again: it costs nobody else anything, and no point is missed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tunesmith.api.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from tunesmith_gateway.proxy import Backends
from tunesmith_kit.telemetry import METRICS

PATH = "/tunesmith.api.metrics.v1.MetricsService/WatchSeries"
_WAITING_BYTES = 2 * 1024 * 1024  # how much may wait for a viewer
_SILENT_SECONDS = 10.0
_NO_KEY = "-"

Keys = frozenset[str]


class _Message:
    """What was stored after one revision (`after`) and up to another (`revision`), as it came.

    What viewers of the same keys get is made once.
    """

    def __init__(self, responses: Sequence[metrics_pb2.WatchSeriesResponse], after: int) -> None:
        self._responses = responses
        self._parts: dict[Keys, list[bytes]] = {}
        self.after = after
        self.revision: int = responses[-1].revision
        self.num_bytes = sum(response.ByteSize() for response in responses)

    def parts(self, keys: Keys) -> list[bytes]:
        """The messages with the series of these keys, all when none are named; none if they hold nothing."""
        if keys not in self._parts:
            chosen = [_of_keys(response, keys) for response in self._responses]
            self._parts[keys] = [response.SerializeToString() for response in chosen if response.series]
        return self._parts[keys]


def _of_keys(response: metrics_pb2.WatchSeriesResponse, keys: Keys) -> metrics_pb2.WatchSeriesResponse:
    if not keys:
        return response
    series = [each for each in response.series if each.key in keys]
    return metrics_pb2.WatchSeriesResponse(series=series, revision=response.revision)


class _Seat:
    """A viewer's place: what it has not yet been sent, and whether it fell too far behind."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[_Message | grpc.aio.AioRpcError] = asyncio.Queue()
        self._num_bytes = 0
        self.late = False

    def offer(self, item: _Message | grpc.aio.AioRpcError) -> None:
        """Puts something in line, or marks the viewer as too slow."""
        if isinstance(item, _Message):
            self.late = self.late or self._num_bytes > _WAITING_BYTES
            if self.late:
                return
            self._num_bytes += item.num_bytes
        self._waiting.put_nowait(item)

    async def next(self) -> _Message | None:
        """Returns the next message; None after some seconds without one. Raises what ended the stream."""
        try:
            async with asyncio.timeout(_SILENT_SECONDS):
                item = await self._waiting.get()
        except TimeoutError:
            return None
        if isinstance(item, grpc.aio.AioRpcError):
            raise item
        self._num_bytes -= item.num_bytes
        return item

    def clear(self) -> None:
        """Forgets what waits; the viewer reads it from the store."""
        self.late, self._num_bytes = False, 0
        while not self._waiting.empty():
            item = self._waiting.get_nowait()
            if isinstance(item, grpc.aio.AioRpcError):
                raise item


class _Broadcast:
    """The shared stream of one job."""

    def __init__(
        self, parent: str, metrics: "metrics_pb2_grpc.MetricsServiceAsyncStub", metadata: Any
    ) -> None:
        self._parent, self._metrics, self._metadata = parent, metrics, metadata
        self.seats: set[_Seat] = set()
        self._started = asyncio.get_running_loop().create_future()
        self.revision = 0
        self.task = asyncio.create_task(self._run())

    async def started(self) -> None:
        """Waits until the stream stands. Raises what kept it from doing so."""
        await asyncio.shield(self._started)

    async def _run(self) -> None:
        METRICS.live_streams.inc()
        try:
            # Of a key that does not exist there is nothing to read but how far the store is.
            where = metrics_pb2.QuerySeriesRequest(parent=self._parent, keys=[_NO_KEY], max_points=1)
            answer = await self._metrics.QuerySeries(where, timeout=10, metadata=self._metadata)
            self.revision = answer.revision
            self._started.set_result(None)
            request = metrics_pb2.WatchSeriesRequest(parent=self._parent, from_revision=self.revision)
            parts = []
            async for response in self._metrics.WatchSeries(request, metadata=self._metadata):
                parts.append(response)
                if response.series and response.revision == self.revision:
                    continue  # the last message of a page has the revision that it reaches
                message = _Message(parts, self.revision)
                self.revision, parts = message.revision, []
                for seat in self.seats:
                    seat.offer(message)
            # The server ended the stream in order: viewers come again.
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                "the metrics service ended the stream",
            )
        except grpc.aio.AioRpcError as error:
            if not self._started.done():
                self._started.set_exception(error)
                self._started.exception()  # seen, though nobody may wait any more
            for seat in self.seats:
                seat.offer(error)
        finally:
            METRICS.live_streams.dec()


class LiveSeries:
    """WatchSeries as the gateway serves it."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._metrics = metrics_pb2_grpc.MetricsServiceStub(backends.channel("metrics"))
        self._broadcasts: dict[str, _Broadcast] = {}

    def handler(self) -> "grpc.RpcMethodHandler[Any, Any]":
        """Returns the rpc's handler."""
        parse = metrics_pb2.WatchSeriesRequest.FromString
        return grpc.unary_stream_rpc_method_handler(self.watch, request_deserializer=parse)

    async def watch(self, request: metrics_pb2.WatchSeriesRequest, context: Any) -> AsyncIterator[bytes]:
        """Streams serialised `WatchSeriesResponse`: what the store has after a revision, then what comes."""
        revision, keys = request.from_revision, frozenset(request.keys)
        async with self._join(request.parent) as (broadcast, seat):
            while True:
                seat.clear()
                async for response in self._stored(request, revision, broadcast.revision):
                    revision = response.revision
                    yield response.SerializeToString()
                sent = time.monotonic()
                while not seat.late:
                    message = await seat.next()
                    if message is not None and message.after < revision < message.revision:
                        break  # half of it was read from the store: so is the rest
                    parts = []
                    if message is not None and message.revision > revision:
                        parts, revision = message.parts(keys), message.revision
                    if not parts and time.monotonic() - sent > _SILENT_SECONDS:
                        parts = [metrics_pb2.WatchSeriesResponse(revision=revision).SerializeToString()]
                    for part in parts:
                        yield part
                        sent = time.monotonic()

    async def _stored(
        self, request: metrics_pb2.WatchSeriesRequest, revision: int, until: int
    ) -> AsyncGenerator[metrics_pb2.WatchSeriesResponse, None]:
        """What is stored after a revision, at least up to another; the first message comes at once."""
        wanted = metrics_pb2.WatchSeriesRequest()
        wanted.CopyFrom(request)
        wanted.from_revision = revision
        stream = self._metrics.WatchSeries(wanted, metadata=self._backends.metadata())
        try:
            async for response in stream:
                yield response
                if response.revision >= until:
                    return
        finally:
            stream.cancel()

    @asynccontextmanager
    async def _join(self, parent: str) -> AsyncIterator[tuple[_Broadcast, _Seat]]:
        broadcast = self._broadcasts.get(parent)
        if broadcast is None or broadcast.task.done():
            broadcast = _Broadcast(parent, self._metrics, self._backends.own_metadata())
            self._broadcasts[parent] = broadcast
        seat = _Seat()
        broadcast.seats.add(seat)
        METRICS.live_viewers.inc()
        try:
            await broadcast.started()
            yield broadcast, seat
        finally:
            METRICS.live_viewers.dec()
            broadcast.seats.discard(seat)
            if not broadcast.seats:
                broadcast.task.cancel()
                if self._broadcasts.get(parent) is broadcast:
                    del self._broadcasts[parent]
