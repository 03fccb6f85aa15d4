"""The gRPC server and channel every process uses: who calls, whether they may, whether the request is right,
one span a call, and one place where errors become statuses."""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sqlalchemy.exc import IntegrityError

from tunesmith.errors import (
    STATUS_KEY,
    Aborted,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PermissionDenied,
    TunesmithError,
    Unauthenticated,
    Unavailable,
)
from tunesmith.status import LOST_STATUS, from_rpc_error, to_status
from tunesmith.validation import violations
from tunesmith_kit import access, memory
from tunesmith_kit.telemetry import METRICS, Telemetry

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_LONGEST_UNARY_SECONDS = 60.0
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
]
PRINCIPAL_KEY, ROLE_KEY, TRACE_KEY = "x-tunesmith-principal", "x-tunesmith-role", "traceparent"


@dataclass(frozen=True)
class Principal:
    """Who calls. `name` is a user, `node/{node}` or `service/{service}`."""

    name: str
    role: str
    permissions: frozenset[str]


Authenticate = Callable[[Mapping[str, str]], Awaitable[Principal]]
EVERYTHING = frozenset({"*"})
_principal: ContextVar[Principal] = ContextVar("principal")


def principal() -> Principal:
    """Returns who makes the call being handled."""
    return _principal.get()


def metadata_of(context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
    """Returns the text metadata of a call."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def internal_authenticator(token: str) -> Authenticate:
    """Returns the check of a service that only the gateway and its siblings may call: they prove themselves
    with the internal token and say for whom they act."""

    async def authenticate(metadata: Mapping[str, str]) -> Principal:
        given = metadata.get("authorization", "").removeprefix("Bearer ")
        if not given:
            raise Unauthenticated("TOKEN_MISSING", "this service is called through the gateway only")
        if not token or not hmac.compare_digest(given.encode(), token.encode()):
            raise Unauthenticated(
                "TOKEN_INVALID", "the internal token is wrong", remedy="set TUNESMITH_INTERNAL_TOKEN"
            )
        name = metadata.get(PRINCIPAL_KEY, "service/unknown")
        return Principal(name, metadata.get(ROLE_KEY, "service"), EVERYTHING)

    return authenticate


class RpcServer:
    """A gRPC server with health, reflection, authentication, permissions, limits, spans and rich errors."""

    def __init__(
        self,
        telemetry: Telemetry,
        authenticate: Authenticate,
        services: Sequence[tuple[Callable[[Any, grpc.aio.Server], None], object]],
        generic: Sequence[grpc.GenericRpcHandler] = (),
        names: Sequence[str] = (),
    ) -> None:
        self._server = grpc.aio.server(
            interceptors=[_Guard(telemetry, authenticate)], options=_OPTIONS, maximum_concurrent_rpcs=4096
        )
        for register, servicer in services:
            register(servicer, self._server)
        if generic:
            self._server.add_generic_rpc_handlers(tuple(generic))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*names, reflection.SERVICE_NAME, health.SERVICE_NAME], self._server
        )
        self.address = ""

    async def start(self, host: str, port: int) -> str:
        """Listens and returns `host:port`.

        Raises:
            Unavailable: the port is taken.
        """
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            bound = 0
        if not bound:
            raise Unavailable(
                "PORT_IN_USE",
                f"port {port} on {host} is taken by another program",
                field="port",
                value=port,
                remedy="stop that program or choose another port",
            )
        memory.keep_freed()
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.address = f"{host}:{bound}"
        return self.address

    async def stop(self, grace_seconds: float = 5) -> None:
        """Tells clients to go elsewhere, then ends what still runs after the grace."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)


def connect(address: str) -> grpc.aio.Channel:
    """Returns a channel that notices a dead peer within seconds; it connects on the first call."""
    return grpc.aio.insecure_channel(address, options=[*_OPTIONS, ("grpc.max_reconnect_backoff_ms", 2000)])


def as_service(token: str, name: str, traceparent: str = "") -> tuple[tuple[str, str], ...]:
    """Returns the metadata with which service `name` calls another in its own name."""
    metadata = (
        ("authorization", f"Bearer {token}"),
        (PRINCIPAL_KEY, f"service/{name}"),
        (ROLE_KEY, "service"),
    )
    return (*metadata, (TRACE_KEY, traceparent)) if traceparent else metadata


class _Malformed:
    """Stands for a request whose bytes are no message; grpcio itself would answer INTERNAL."""


def _lenient(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Malformed()

    return parse


class _Guard(grpc.aio.ServerInterceptor):
    def __init__(self, telemetry: Telemetry, authenticate: Authenticate) -> None:
        self._telemetry = telemetry
        self._authenticate = authenticate

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.split("/")[1] in (
            *access.OPEN_SERVICES,
            reflection.SERVICE_NAME,
        ):
            return handler
        path, parse = details.method, _lenient(handler.request_deserializer)
        if handler.unary_unary:
            wrapped = self._unary(path, handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(wrapped, parse, handler.response_serializer)
        if handler.stream_unary:
            wrapped = self._unary(path, handler.stream_unary)
            return grpc.stream_unary_rpc_method_handler(wrapped, parse, handler.response_serializer)
        if handler.unary_stream:
            stream = self._stream(path, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(stream, parse, handler.response_serializer)
        stream = self._stream(path, handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(stream, parse, handler.response_serializer)

    def _unary(self, path: str, handle: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        keep = access.mutates(path)

        async def guarded(request: Any, context: Any) -> Any:
            began, code = time.perf_counter(), "OK"
            rpc = access.find(path)
            streams_in = rpc is not None and rpc.client_streaming
            try:
                await self._admit(path, request, context)
                above = metadata_of(context).get(TRACE_KEY)
                with self._telemetry.span(path.strip("/"), parent=above, kind="server", keep=keep):
                    remaining = context.time_remaining()
                    # Long work (an import of gigabytes) brings its own deadline; a call without one ends too.
                    longest = None if streams_in else remaining or _LONGEST_UNARY_SECONDS
                    async with asyncio.timeout(longest):
                        return await handle(request, context)
            except Exception as error:
                status, details, trailers = abortion(error, path)
                code = status.name
                await context.abort(status, details, trailers)
            finally:
                METRICS.rpc_duration.labels(method=path, code=code).observe(time.perf_counter() - began)

        return guarded

    def _stream(
        self, path: str, handle: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                await self._admit(path, request, context)
                async for response in handle(request, context):
                    yield response
            except Exception as error:
                await context.abort(*abortion(error, path))

        return guarded

    async def _admit(self, path: str, request: Any, context: Any) -> None:
        caller = await self._authenticate(metadata_of(context))
        authorise(caller, access.find(path), path)
        _principal.set(caller)
        if isinstance(request, _Malformed):
            raise InvalidArgument("MESSAGE_MALFORMED", "the request is no valid message", field=path)
        if isinstance(request, Message):
            check(request)


def authorise(caller: Principal, rpc: access.Rpc | None, path: str) -> None:
    """Refuses what is not declared and what the caller's role does not hold."""
    if rpc is None or not rpc.permission:
        raise PermissionDenied("RPC_UNDECLARED", "the call declares no permission and is closed", value=path)
    if rpc.permission not in caller.permissions and caller.permissions is not EVERYTHING:
        raise PermissionDenied(
            "PERMISSION_MISSING",
            f"the role {caller.role} may not do this",
            field="permission",
            value=rpc.permission,
            remedy="use a token whose role holds the permission",
        )


def check(request: Message) -> None:
    """Refuses a request that breaks the limits of the contract, naming every field."""
    broken = violations(request)
    if broken:
        first = broken[0]
        raise InvalidArgument(
            "FIELD_INVALID",
            f"{first.path} {first.problem}" + (f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""),
            field=first.path,
            value=first.value,
            remedy=first.remedy,
            violations=broken,
        )


def known_error(error: Exception, path: str) -> TunesmithError:
    """Returns `error` as one of the error table; what is not known there is our bug and goes to the log."""
    if isinstance(error, TunesmithError):
        return error
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("DEADLINE_EXCEEDED", "the call took too long", remedy="try again")
    if isinstance(error, IntegrityError):
        return Aborted("REVISION_CONFLICT", "another request changed the same thing", remedy="try again")
    log.error("call failed", exc_info=error, extra={"rpc": path})
    return Internal(
        "INTERNAL", "a bug of ours; the server's log has the details", remedy="report it with the time"
    )


def abortion(error: Exception, path: str) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """Returns how a failed call ends: code, details, trailers; a forwarded status goes on as it is."""
    if isinstance(error, grpc.aio.AioRpcError):
        if error.details() != LOST_STATUS:
            return error.code(), error.details() or "", tuple(error.trailing_metadata() or ())
        error = from_rpc_error(error)
    known = known_error(error, path)
    code = next(c for c in grpc.StatusCode if c.value[0] == known.code)
    return code, known.message, ((STATUS_KEY, to_status(known).SerializeToString()),)
