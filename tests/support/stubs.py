"""One service on a bus of the test's own, and clients that prove themselves as the gateway does."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc

from tests.support.bus import TOKEN
from tunesmith_kit import rpc
from tunesmith_kit.host import Running, start
from tunesmith_kit.nats_server import EmbeddedNats

INTERNAL_TOKEN = "internal-test-token"
Stub = TypeVar("Stub")


@asynccontextmanager
async def running_service(
    name: str, server: EmbeddedNats, folder: Path, **settings: object
) -> AsyncIterator[Running]:
    """A service that runs for the time of the block, on SQLite in `folder`."""
    own: dict[str, object] = {
        "data_dir": folder,
        "nats_url": server.url,
        "nats_token": TOKEN,
        "internal_token": INTERNAL_TOKEN,
        "http_port": -1,
        "log_format": "text",
        "log_level": "warning",
    }
    if name == "registry":
        own["encoder"] = "none"  # few tests search by meaning, and all would pay for it
    running = await start(name, own | settings)
    try:
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def stub(make: Callable[[grpc.aio.Channel], Stub], running: Running) -> AsyncIterator[Stub]:
    """A client of a service."""
    channel = grpc.aio.insecure_channel(running.address, interceptors=[_Unary(), _Stream(), _Upload()])
    try:
        yield make(channel)
    finally:
        await channel.close()


def _with_token(details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*rpc.as_service(INTERNAL_TOKEN, "test"))
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


class _Unary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with_token(details), request)


class _Stream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with_token(details), request)


class _Upload(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(_with_token(details), requests)
