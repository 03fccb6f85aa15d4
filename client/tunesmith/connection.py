"""The connection of a client: one gRPC channel, its stubs, deadlines and retries."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import grpc
import grpc.aio

from tunesmith.errors import STATUS_KEY, TunesmithError, Unavailable
from tunesmith.faces import LoopThread
from tunesmith.profile import Profile
from tunesmith.status import from_rpc_error

if TYPE_CHECKING:
    from tunesmith.api.gateway.v1.fleet_pb2_grpc import FleetServiceAsyncStub
    from tunesmith.api.gateway.v1.quotes_pb2_grpc import QuoteServiceAsyncStub
    from tunesmith.api.jobs.v1.external_pb2_grpc import ExternalRunServiceAsyncStub
    from tunesmith.api.jobs.v1.jobs_pb2_grpc import JobServiceAsyncStub
    from tunesmith.api.metrics.v1.alerts_pb2_grpc import AlertServiceAsyncStub
    from tunesmith.api.metrics.v1.metrics_pb2_grpc import LogServiceAsyncStub, MetricsServiceAsyncStub
    from tunesmith.api.metrics.v1.records_pb2_grpc import RecordServiceAsyncStub
    from tunesmith.api.metrics.v1.trace_pb2_grpc import TraceServiceAsyncStub
    from tunesmith.api.nodes.v1.nodes_pb2_grpc import NodeServiceAsyncStub
    from tunesmith.api.registry.v1.blobs_pb2_grpc import BlobServiceAsyncStub, BlobServiceStub
    from tunesmith.api.registry.v1.cards_pb2_grpc import CardServiceAsyncStub
    from tunesmith.api.registry.v1.chat_pb2_grpc import ChatServiceAsyncStub
    from tunesmith.api.registry.v1.datasets_pb2_grpc import DatasetServiceAsyncStub
    from tunesmith.api.registry.v1.derivations_pb2_grpc import DerivationServiceAsyncStub
    from tunesmith.api.registry.v1.evaluations_pb2_grpc import EvaluationServiceAsyncStub
    from tunesmith.api.registry.v1.exports_pb2_grpc import ExportServiceAsyncStub
    from tunesmith.api.registry.v1.lineage_pb2_grpc import LineageServiceAsyncStub
    from tunesmith.api.registry.v1.models_pb2_grpc import ModelServiceAsyncStub
    from tunesmith.api.registry.v1.prompts_pb2_grpc import PromptServiceAsyncStub
    from tunesmith.api.registry.v1.search_pb2_grpc import SearchServiceAsyncStub
    from tunesmith.api.registry.v1.stages_pb2_grpc import StageServiceAsyncStub
    from tunesmith.api.registry.v1.statistics_pb2_grpc import StatisticsServiceAsyncStub
    from tunesmith.api.registry.v1.versions_pb2_grpc import VersionServiceAsyncStub

Request = TypeVar("Request")
Response = TypeVar("Response")
R = TypeVar("R")


class Paged(Protocol):
    """A request for one page of a listing."""

    page_token: str


class Page(Protocol):
    """An answer with one page of a listing."""

    @property
    def next_page_token(self) -> str: ...


PagedRequest = TypeVar("PagedRequest", bound=Paged)
PageResponse = TypeVar("PageResponse", bound=Page)

# Four retries wait 1.5 s on average and 3 s at most: a server that restarts is back, one that is not
# there is reported before the user wonders.
ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A curve of a million points in full resolution is 20 MB.
    ("grpc.max_receive_message_length", 64 << 20),
]


def pauses() -> Iterator[float]:
    """Yields how long to wait before each further try, in seconds: full jitter over doubling steps."""
    step = _FIRST_PAUSE
    while True:
        yield random.uniform(0, step)
        step = min(2 * step, _LONGEST_PAUSE)


def new_request_id() -> str:
    """Returns an id that makes a repeated mutation act once."""
    return uuid.uuid4().hex


class Connection:
    """A channel to the gateway, opened at the first call, on the event loop of that call.

    `timeout` is the deadline of a unary call in seconds. `loop` is the thread of the sync face, or None.
    """

    def __init__(self, profile: Profile, timeout: float, loop: LoopThread | None) -> None:
        self.profile = profile
        self.loop = loop
        self._timeout = timeout
        self.metadata = (("authorization", f"Bearer {profile.token}"),)

    @property
    def project(self) -> str:
        """Project that unqualified names belong to."""
        return self.profile.project

    @property
    def parent(self) -> str:
        """Resource name of the project."""
        return f"projects/{self.profile.project}"

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.profile.address, options=_OPTIONS)

    @cached_property
    def jobs(self) -> JobServiceAsyncStub:
        """Stub of JobService."""
        from tunesmith.api.jobs.v1.jobs_pb2_grpc import JobServiceStub

        return JobServiceStub(self._channel)

    @cached_property
    def external(self) -> ExternalRunServiceAsyncStub:
        """Stub of ExternalRunService."""
        from tunesmith.api.jobs.v1.external_pb2_grpc import ExternalRunServiceStub

        return ExternalRunServiceStub(self._channel)

    @cached_property
    def records(self) -> RecordServiceAsyncStub:
        """Stub of RecordService."""
        from tunesmith.api.metrics.v1.records_pb2_grpc import RecordServiceStub

        return RecordServiceStub(self._channel)

    @cached_property
    def nodes(self) -> NodeServiceAsyncStub:
        """Stub of NodeService."""
        from tunesmith.api.nodes.v1.nodes_pb2_grpc import NodeServiceStub

        return NodeServiceStub(self._channel)

    @cached_property
    def quotes(self) -> QuoteServiceAsyncStub:
        """Stub of QuoteService."""
        from tunesmith.api.gateway.v1.quotes_pb2_grpc import QuoteServiceStub

        return QuoteServiceStub(self._channel)

    @cached_property
    def fleet(self) -> FleetServiceAsyncStub:
        """Stub of FleetService."""
        from tunesmith.api.gateway.v1.fleet_pb2_grpc import FleetServiceStub

        return FleetServiceStub(self._channel)

    @cached_property
    def metrics(self) -> MetricsServiceAsyncStub:
        """Stub of MetricsService."""
        from tunesmith.api.metrics.v1.metrics_pb2_grpc import MetricsServiceStub

        return MetricsServiceStub(self._channel)

    @cached_property
    def logs(self) -> LogServiceAsyncStub:
        """Stub of LogService."""
        from tunesmith.api.metrics.v1.metrics_pb2_grpc import LogServiceStub

        return LogServiceStub(self._channel)

    @cached_property
    def traces(self) -> TraceServiceAsyncStub:
        """Stub of TraceService."""
        from tunesmith.api.metrics.v1.trace_pb2_grpc import TraceServiceStub

        return TraceServiceStub(self._channel)

    @cached_property
    def alerts(self) -> AlertServiceAsyncStub:
        """Stub of AlertService."""
        from tunesmith.api.metrics.v1.alerts_pb2_grpc import AlertServiceStub

        return AlertServiceStub(self._channel)

    @cached_property
    def models(self) -> ModelServiceAsyncStub:
        """Stub of ModelService."""
        from tunesmith.api.registry.v1.models_pb2_grpc import ModelServiceStub

        return ModelServiceStub(self._channel)

    @cached_property
    def evaluations(self) -> EvaluationServiceAsyncStub:
        """Stub of EvaluationService."""
        from tunesmith.api.registry.v1.evaluations_pb2_grpc import EvaluationServiceStub

        return EvaluationServiceStub(self._channel)

    @cached_property
    def chat(self) -> ChatServiceAsyncStub:
        """Stub of ChatService."""
        from tunesmith.api.registry.v1.chat_pb2_grpc import ChatServiceStub

        return ChatServiceStub(self._channel)

    @cached_property
    def datasets(self) -> DatasetServiceAsyncStub:
        """Stub of DatasetService."""
        from tunesmith.api.registry.v1.datasets_pb2_grpc import DatasetServiceStub

        return DatasetServiceStub(self._channel)

    @cached_property
    def versions(self) -> VersionServiceAsyncStub:
        """Stub of VersionService."""
        from tunesmith.api.registry.v1.versions_pb2_grpc import VersionServiceStub

        return VersionServiceStub(self._channel)

    @cached_property
    def stages(self) -> StageServiceAsyncStub:
        """Stub of StageService."""
        from tunesmith.api.registry.v1.stages_pb2_grpc import StageServiceStub

        return StageServiceStub(self._channel)

    @cached_property
    def cards(self) -> CardServiceAsyncStub:
        """Stub of CardService."""
        from tunesmith.api.registry.v1.cards_pb2_grpc import CardServiceStub

        return CardServiceStub(self._channel)

    @cached_property
    def lineage(self) -> LineageServiceAsyncStub:
        """Stub of LineageService."""
        from tunesmith.api.registry.v1.lineage_pb2_grpc import LineageServiceStub

        return LineageServiceStub(self._channel)

    @cached_property
    def search(self) -> SearchServiceAsyncStub:
        """Stub of SearchService."""
        from tunesmith.api.registry.v1.search_pb2_grpc import SearchServiceStub

        return SearchServiceStub(self._channel)

    @cached_property
    def exports(self) -> ExportServiceAsyncStub:
        """Stub of ExportService."""
        from tunesmith.api.registry.v1.exports_pb2_grpc import ExportServiceStub

        return ExportServiceStub(self._channel)

    @cached_property
    def prompts(self) -> PromptServiceAsyncStub:
        """Stub of PromptService."""
        from tunesmith.api.registry.v1.prompts_pb2_grpc import PromptServiceStub

        return PromptServiceStub(self._channel)

    @cached_property
    def derivations(self) -> DerivationServiceAsyncStub:
        """Stub of DerivationService."""
        from tunesmith.api.registry.v1.derivations_pb2_grpc import DerivationServiceStub

        return DerivationServiceStub(self._channel)

    @cached_property
    def statistics(self) -> StatisticsServiceAsyncStub:
        """Stub of StatisticsService."""
        from tunesmith.api.registry.v1.statistics_pb2_grpc import StatisticsServiceStub

        return StatisticsServiceStub(self._channel)

    @cached_property
    def blobs(self) -> BlobServiceAsyncStub:
        """Stub of BlobService."""
        from tunesmith.api.registry.v1.blobs_pb2_grpc import BlobServiceStub

        return BlobServiceStub(self._channel)

    @cached_property
    def _blocking_channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.profile.address, options=_OPTIONS)

    @cached_property
    def blocking_blobs(self) -> BlobServiceStub:
        """Stub of BlobService for uploads, on gRPC's blocking interface.

        With the asyncio one a server that ends an upload before its last chunk (disk full) shows as
        "Internal error from Core" as often as not, and what it said is lost.
        """
        from tunesmith.api.registry.v1.blobs_pb2_grpc import BlobServiceStub

        return BlobServiceStub(self._blocking_channel)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        seconds: float | None = None,
    ) -> Response:
        """Calls `method` with a deadline (in `seconds`) and repeats it while the server is unavailable.

        Every rpc of the contract either reads or carries a request id, so a repetition does no harm.
        Raises the TunesmithError that the server sent.
        """
        timeout = seconds or self._timeout
        return await self.repeat(lambda: method(request, timeout=timeout, metadata=self.metadata))

    async def pages(
        self, method: grpc.aio.UnaryUnaryMultiCallable[PagedRequest, PageResponse], request: PagedRequest
    ) -> AsyncGenerator[PageResponse, None]:
        """Yields the pages of a listing, each asked for when the one before is used up."""
        while True:
            page = await self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def repeat(self, attempt: Callable[[], Awaitable[R]]) -> R:
        """Awaits `attempt()`, up to `ATTEMPTS` times with pauses while the server is unavailable."""
        for number, pause in enumerate(pauses(), start=1):
            try:
                return await attempt()
            except grpc.RpcError as failure:
                error = self.explain(failure)
            if not isinstance(error, Unavailable) or number == ATTEMPTS:
                raise error
            await asyncio.sleep(pause)
        raise AssertionError("pauses() never ends")

    def explain(self, failure: grpc.RpcError) -> TunesmithError:
        """Returns the error behind a failed call; one without our details comes from the network."""
        error = from_rpc_error(failure)
        trailers = cast(Iterable[tuple[str, Any]], failure.trailing_metadata() or ())
        from_server = any(key == STATUS_KEY for key, _ in trailers)
        if isinstance(error, Unavailable) and not from_server:
            return Unavailable(
                "SERVICE_UNAVAILABLE",
                f"cannot reach Tunesmith at {self.profile.address}",
                field="address",
                value=self.profile.address,
                remedy="start it with `tunesmith up`, or set TUNESMITH_ADDRESS to where it runs",
            )
        return error

    async def close(self) -> None:
        """Closes the channel; calls under way end as cancelled."""
        if "_channel" in self.__dict__:
            await self._channel.close()
        if "_blocking_channel" in self.__dict__:
            self._blocking_channel.close()
