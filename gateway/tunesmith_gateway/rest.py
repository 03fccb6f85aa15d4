"""The REST face: every rpc with a route in the contract, server streams as server-sent events, files as they
are, blobs raw.

Requests go through our own gRPC server, so authentication, permissions and limits are checked in one
place only.
"""

import logging
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tunesmith.api.registry.v1 import blobs_pb2, blobs_pb2_grpc
from tunesmith.errors import InvalidArgument, ResourceExhausted, TunesmithError, Unauthenticated
from tunesmith.status import from_rpc_error
from tunesmith_gateway import transcode
from tunesmith_kit import access, rpc
from tunesmith_kit.rpc import known_error
from tunesmith_kit.telemetry import METRICS, Telemetry, current_traceparent

log = logging.getLogger(__name__)
MAX_BODY_BYTES = 8 * 1024 * 1024
_CHUNK = 512 * 1024
_UPLOAD = re.compile(r"uploads/([a-z0-9]{26})")
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\*|\d+)")
_FROM = re.compile(r"bytes=(\d{1,18})-")
_TAG = re.compile(r'"(\d{1,18})-[0-9a-f]+"')
_LONGEST_SECONDS = 60.0


def problem(error: TunesmithError, status: int = 0) -> JSONResponse:
    """Returns an error as problem details (RFC 9457), with its own HTTP status or another."""
    status = status or error.http_status
    content: dict[str, Any] = {
        "type": f"https://tunesmith.dev/errors/{error.reason}",
        "title": type(error).__name__,
        "status": status,
        "detail": error.message,
        "reason": error.reason,
        **error.metadata(),
    }
    if error.violations:
        content["errors"] = [
            {"field": v.path, "value": v.value, "detail": v.problem, "remedy": v.remedy}
            for v in error.violations
        ]
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if status == 503:
        headers["retry-after"] = "2"
    return JSONResponse(content, status, headers, media_type="application/problem+json")


class Rest:
    """Answers everything below `/api/v1/`."""

    def __init__(self, channel: grpc.aio.Channel, services: Sequence[str], telemetry: Telemetry) -> None:
        self._channel, self._telemetry = channel, telemetry
        self._routes = transcode.routes(services)
        self._blobs = blobs_pb2_grpc.BlobServiceStub(channel)

    async def answer(self, request: Request) -> Response:
        """Answers one request; every error becomes problem details."""
        path = request.path_params["path"]
        began = time.perf_counter()
        answer = await self._safe(request, path)
        METRICS.http_duration.labels(
            route=self._route(request.method, path), code=answer.status_code
        ).observe(time.perf_counter() - began)
        return answer

    def _route(self, method: str, path: str) -> str:
        """Returns the form of a path, so that figures have few labels."""
        try:
            return transcode.match(self._routes, method, path)[0].http_path
        except TunesmithError:
            return "blobs" if path == "blobs" else "unknown"

    def _mutates(self, method: str, path: str) -> bool:
        """Whether the trace of a request is worth keeping."""
        try:
            return method != "GET" and access.mutates(transcode.match(self._routes, method, path)[0].path)
        except TunesmithError:
            return False

    async def _safe(self, request: Request, path: str) -> Response:
        try:
            with self._telemetry.span(
                f"{request.method} /api/v1", parent=request.headers.get(rpc.TRACE_KEY), kind="server",
                attributes={"http.request.method": request.method, "url.path": request.url.path},
                keep=self._mutates(request.method, path),
            ):  # fmt: skip
                return await self._answer(request, path)
        except grpc.aio.AioRpcError as error:
            return problem(from_rpc_error(error))
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            return problem(known_error(error, path))

    async def _answer(self, request: Request, path: str) -> Response:
        metadata = self._metadata(request)
        if path == "blobs" and request.method == "POST":
            return await self._upload(request, metadata)
        if request.method == "PUT" and (upload := _UPLOAD.fullmatch(path)):
            return await self._part(request, upload[1], metadata)
        found, captured = transcode.match(self._routes, request.method, path)
        body = await _body(request)
        message = transcode.request_of(found, captured, request.query_params.multi_items(), body)
        if transcode.is_file(found):
            return await self._file(found, message, metadata, request.headers)
        if found.server_streaming:
            return await self._events(found, message, request, metadata)
        call = self._channel.unary_unary(found.path, _serialize, found.response.FromString)
        expected = _expect(message, request.headers.get("if-match", ""))
        try:
            answer = await call(message, timeout=_LONGEST_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            known = from_rpc_error(error)
            if expected and known.reason == "REVISION_STALE":
                return problem(known, status=412)
            raise
        return _answered(request, answer)

    def _metadata(self, request: Request) -> tuple[tuple[str, str], ...]:
        given = request.headers.get("authorization")
        if not given:
            raise Unauthenticated(
                "TOKEN_MISSING", "no token was sent", field="authorization",
                remedy="send the header Authorization: Bearer TOKEN",
            )  # fmt: skip
        return (("authorization", given), (rpc.TRACE_KEY, current_traceparent()))

    async def _upload(self, request: Request, metadata: tuple[tuple[str, str], ...]) -> Response:
        async def chunks() -> AsyncIterator[blobs_pb2.UploadBlobRequest]:
            async for data in _chunks(request.stream()):
                yield blobs_pb2.UploadBlobRequest(chunk=data)

        answer = await self._blobs.UploadBlob(chunks(), metadata=metadata)
        return Response(transcode.to_json(answer), media_type="application/json")

    async def _part(self, request: Request, upload: str, metadata: tuple[tuple[str, str], ...]) -> Response:
        """Appends the body to an upload; what arrived stays when the connection breaks."""
        offset = _offset(request)

        async def parts() -> AsyncIterator[blobs_pb2.UploadPartRequest]:
            yield blobs_pb2.UploadPartRequest(upload=upload, offset=offset)
            async for data in _chunks(_arrived(request)):
                yield blobs_pb2.UploadPartRequest(chunk=data)

        answer = await self._blobs.UploadPart(parts(), metadata=metadata)
        return Response(transcode.to_json(answer), media_type="application/json")

    async def _events(
        self, found: access.Rpc, message: Any, request: Request, metadata: tuple[tuple[str, str], ...]
    ) -> Response:
        last = request.headers.get("last-event-id", "")
        if last and "from_revision" in message.DESCRIPTOR.fields_by_name:
            if not last.isdigit():
                raise InvalidArgument(
                    "FIELD_INVALID", "Last-Event-ID is not a revision", field="Last-Event-ID", value=last
                )
            message.from_revision = int(last)
        call = self._channel.unary_stream(found.path, _serialize, found.response.FromString)
        stream = call(message, metadata=metadata)
        first = await stream.read()  # so that a refusal is an answer with its status, not a broken stream

        async def events() -> AsyncIterator[bytes]:
            response: Any = first
            try:
                while response is not grpc.aio.EOF:
                    revision = getattr(response, "revision", 0)
                    yield b"id: %d\nevent: message\ndata: %s\n\n" % (revision, transcode.to_json(response))
                    response = await stream.read()
                yield b"event: end\ndata: {}\n\n"
            except grpc.aio.AioRpcError as error:
                yield b"event: error\ndata: %s\n\n" % problem(from_rpc_error(error)).body
            finally:
                stream.cancel()

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    async def _file(
        self, found: access.Rpc, message: Any, metadata: tuple[tuple[str, str], ...], asked: Headers
    ) -> Response:
        begin = _resume(message, asked)
        call = self._channel.unary_stream(found.path, _serialize, found.response.FromString)
        stream = call(message, metadata=metadata)
        first: Any = await stream.read()  # a refusal is an answer with its status

        async def parts() -> AsyncIterator[bytes]:
            response: Any = first
            try:
                while response is not grpc.aio.EOF:
                    yield response.data
                    response = await stream.read()
            finally:
                # What breaks here breaks the connection: a file that is cut off must not look whole.
                stream.cancel()

        name = quote(first.file_name, safe="")
        headers = {
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "content-disposition": f"attachment; filename*=UTF-8''{name}",
        }
        total = getattr(first, "total_bytes", 0)
        if total:  # of these the end is known, so a download can go on
            headers |= {"accept-ranges": "bytes", "etag": f'"{first.etag}"'}
            headers["content-length"] = str(total - message.offset)
        if begin:
            headers["content-range"] = f"bytes {message.offset}-{total - 1}/{total}"
        media_type = first.content_type or None
        return StreamingResponse(parts(), 206 if begin else 200, headers, media_type)


def _answered(request: Request, answer: Message) -> Response:
    """Returns an answer as JSON; of a GET with an ETag, and nothing else when the caller has it already."""
    if request.method != "GET":
        return Response(transcode.to_json(answer), media_type="application/json")
    tag = transcode.etag(answer)
    headers = {"etag": tag, "cache-control": "private, no-cache", "vary": "authorization"}
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(transcode.to_json(answer), headers=headers, media_type="application/json")


def _expect(message: Any, tag: str) -> bool:
    """Takes `If-Match` into a request that acts only on the revision its caller saw; tells whether it did."""
    if not tag or tag == "*":
        return False
    found = _TAG.fullmatch(tag)
    if found is None or "revision" not in message.DESCRIPTOR.fields_by_name:
        raise InvalidArgument(
            "FIELD_INVALID", "If-Match has no effect here, or is no ETag of one resource", field="If-Match",
            value=tag, remedy="send the ETag of the resource's GET with a call that takes a revision",
        )  # fmt: skip
    message.revision = int(found[1])
    return True


async def _arrived(request: Request) -> AsyncIterator[bytes]:
    """The body, as far as it comes."""
    with suppress(ClientDisconnect):
        async for data in request.stream():
            yield data


async def _chunks(stream: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in messages worth sending: a socket gives them in pieces of 64 KiB and less."""
    held = bytearray()
    async for data in stream:
        held += data
        if len(held) >= _CHUNK:
            for at in range(0, len(held), _CHUNK):
                yield bytes(held[at : at + _CHUNK])
            held.clear()
    if held:
        yield bytes(held)


async def _body(request: Request) -> bytes:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise ResourceExhausted(
                "MESSAGE_TOO_LARGE", f"the body is larger than {MAX_BODY_BYTES} bytes", field="body",
                remedy="upload files with POST /api/v1/blobs, which streams",
            )  # fmt: skip
    return data


def _resume(message: Any, asked: Headers) -> bool:
    """Takes `Range: bytes=FIRST-` into a request that can begin anywhere; other ranges count as none, which
    HTTP allows. With `If-Range` another archive than before is an error, not a file of two halves."""
    found = _FROM.fullmatch(asked.get("range", ""))
    if found is None or "offset" not in message.DESCRIPTOR.fields_by_name:
        return False
    message.offset = int(found[1])
    message.etag = asked.get("if-range", "").strip('"')
    return True


def _offset(request: Request) -> int:
    """Where the part begins: of `Content-Range: bytes FIRST-LAST/*`, else of the parameter `offset`."""
    given = request.headers.get("content-range", "")
    found = _RANGE.fullmatch(given) if given else None
    text = found[1] if found else request.query_params.get("offset", "" if given else "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidArgument(
            "FIELD_INVALID", "it is not said where the part begins", field="Content-Range",
            value=given or text, remedy="send Content-Range: bytes FIRST-LAST/*, or ?offset=FIRST",
        )  # fmt: skip
    return int(text)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
