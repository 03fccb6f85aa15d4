"""Forwards every rpc of the other services as bytes, in the caller's name."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from tunesmith_kit import access, flow, rpc
from tunesmith_kit.telemetry import current_traceparent

# Which process serves a contract; `main` imports the modules behind, so that their rpcs are known.
SERVED_BY: Mapping[str, str] = {
    "tunesmith.api.jobs.v1.JobService": "jobs",
    "tunesmith.api.nodes.v1.NodeService": "jobs",
    "tunesmith.api.jobs.v1.ExternalRunService": "jobs",
    "tunesmith.api.registry.v1.DatasetService": "registry",
    "tunesmith.api.registry.v1.StatisticsService": "registry",
    "tunesmith.api.registry.v1.PromptService": "registry",
    "tunesmith.api.registry.v1.DerivationService": "registry",
    "tunesmith.api.registry.v1.ModelService": "registry",
    "tunesmith.api.registry.v1.ExportService": "registry",
    "tunesmith.api.registry.v1.SearchService": "registry",
    "tunesmith.api.registry.v1.LineageService": "registry",
    "tunesmith.api.registry.v1.CardService": "registry",
    "tunesmith.api.registry.v1.StageService": "registry",
    "tunesmith.api.registry.v1.VersionService": "registry",
    "tunesmith.api.registry.v1.BlobService": "registry",
    "tunesmith.api.registry.v1.ChatService": "registry",
    "tunesmith.api.registry.v1.EvaluationService": "registry",
    "tunesmith.api.metrics.v1.MetricsService": "metrics",
    "tunesmith.api.metrics.v1.LogService": "metrics",
    "tunesmith.api.metrics.v1.RecordService": "metrics",
    "tunesmith.api.metrics.v1.AlertService": "metrics",
    "tunesmith.api.metrics.v1.TraceService": "metrics",
}


class Backends:
    """Channels to the other services."""

    def __init__(self, addresses: Mapping[str, str], token: str) -> None:
        self._channels = {name: rpc.connect(address) for name, address in addresses.items()}
        self._token = token

    def channel(self, service: str) -> grpc.aio.Channel:
        """Returns the channel to a service by its short name."""
        return self._channels[service]

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata of a call made for the present caller."""
        caller = rpc.principal()
        return (
            ("authorization", f"Bearer {self._token}"),
            (rpc.PRINCIPAL_KEY, caller.name),
            (rpc.ROLE_KEY, caller.role),
            (rpc.TRACE_KEY, current_traceparent()),
        )

    def own_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the metadata of a call the gateway makes in its own name."""
        return rpc.as_service(self._token, "gateway")

    async def ready(self) -> str:
        """Returns which services cannot be reached, or nothing."""
        missing = [
            name
            for name, channel in self._channels.items()
            if channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY
        ]
        return f"waiting for {', '.join(missing)}" if missing else ""

    async def close(self) -> None:
        """Closes all channels."""
        for channel in self._channels.values():
            await channel.close()


class Forwarder(grpc.GenericRpcHandler):
    """Serves the rpcs of `SERVED_BY` by passing bytes on, but those that have a handler of their own here."""

    def __init__(self, backends: Backends, own: "Mapping[str, grpc.RpcMethodHandler[Any, Any]]") -> None:
        self._backends, self._own = backends, own

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        if path in self._own:
            return self._own[path]
        found = access.find(path)
        backend = SERVED_BY.get(path.split("/")[1])
        if found is None or backend is None:
            return None
        channel = self._backends.channel(backend)
        if found.client_streaming:
            return grpc.stream_unary_rpc_method_handler(self._stream_unary(channel.stream_unary(path)))
        if found.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._unary_stream(channel.unary_stream(path)))
        return grpc.unary_unary_rpc_method_handler(self._unary_unary(channel.unary_unary(path)))

    def _unary_unary(self, call: Any) -> Any:
        async def forward(request: bytes, context: Any) -> bytes:
            timeout = context.time_remaining()
            answer: bytes = await call(request, timeout=timeout, metadata=self._backends.metadata())
            return answer

        return forward

    def _stream_unary(self, call: Any) -> Any:
        async def forward(requests: AsyncIterator[bytes], context: Any) -> bytes:
            timeout = context.time_remaining()
            async with aclosing(flow.Ahead(partial(_soon, context.read), grpc.aio.EOF)) as ahead:
                answer: bytes = await call(ahead, timeout=timeout, metadata=self._backends.metadata())
            return answer

        return forward

    def _unary_stream(self, call: Any) -> Any:
        async def forward(request: bytes, context: Any) -> AsyncIterator[bytes]:
            stream = call(request, timeout=context.time_remaining(), metadata=self._backends.metadata())
            try:
                # The next message is read while one is sent on: bytes move at twice the pace.
                async with aclosing(flow.Ahead(partial(_soon, stream.read), grpc.aio.EOF)) as responses:
                    async for response in responses:
                        yield response
            finally:
                stream.cancel()

        return forward


def _soon(read: Callable[[], Awaitable[Any]]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(read())
