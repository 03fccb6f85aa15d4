"""The rpcs of BlobService."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tunesmith.api.registry.v1 import blobs_pb2 as pb
from tunesmith.api.registry.v1 import blobs_pb2_grpc
from tunesmith.errors import InvalidArgument
from tunesmith_kit import flow, names
from tunesmith_kit.blobs import BlobStore, check_digest, missing
from tunesmith_kit.holds import Holds
from tunesmith_kit.rpc import principal
from tunesmith_kit.uploads import Partial, Uploads
from tunesmith_registry.data.wire import Chunk

Context = Any
_CHUNK = 1024 * 1024


class BlobService(blobs_pb2_grpc.BlobServiceServicer):
    """BlobService of the contract."""

    def __init__(self, blobs: BlobStore, uploads: Uploads, holds: Holds) -> None:
        self._blobs, self._uploads, self._holds = blobs, uploads, holds

    async def UploadBlob(
        self, request_iterator: AsyncIterator[pb.UploadBlobRequest], context: Context
    ) -> pb.UploadBlobResponse:
        """Stores what the client sends under its SHA-256."""
        expected: list[str] = []

        async def chunks() -> AsyncIterator[bytes]:
            async for request in request_iterator:
                if request.sha256:
                    expected.append(check_digest(request.sha256, "sha256"))
                if request.chunk:
                    yield request.chunk

        blob = await self._blobs.put_stream(chunks(), lambda: expected[-1] if expected else "")
        return pb.UploadBlobResponse(digest=blob.digest, size_bytes=blob.size_bytes)

    async def StatBlob(self, request: pb.StatBlobRequest, context: Context) -> pb.StatBlobResponse:
        """Tells whether content is stored."""
        blob = await asyncio.to_thread(self._blobs.stat, request.digest)
        if blob is not None and not await asyncio.to_thread(self._blobs.renew, request.digest):
            blob = None  # so old that it is to be sent once more, before somebody relies on it
        return pb.StatBlobResponse(exists=blob is not None, size_bytes=blob.size_bytes if blob else 0)

    async def HoldBlob(self, request: pb.HoldBlobRequest, context: Context) -> pb.HoldBlobResponse:
        """Keeps content until the job is deleted."""
        (_, job_id) = names.parse("projects/*/jobs/*", request.parent, "parent")
        await asyncio.to_thread(self._holds.hold, job_id, request.digest)
        return pb.HoldBlobResponse()

    async def DownloadBlob(self, request: pb.DownloadBlobRequest, context: Context) -> AsyncIterator[Any]:
        """Streams the content of a digest."""
        blob = await asyncio.to_thread(self._blobs.stat, request.digest)
        if blob is None:
            raise missing(request.digest)
        if request.offset > blob.size_bytes:
            raise InvalidArgument(
                "FIELD_INVALID",
                f"the content has only {blob.size_bytes} bytes",
                field="offset",
                value=request.offset,
                remedy="begin within the content",
            )
        file = await asyncio.to_thread(self._blobs.read, request.digest)
        try:
            await asyncio.to_thread(file.seek, request.offset)
            async with aclosing(flow.pump(partial(file.read, _CHUNK))) as chunks:
                async for chunk in chunks:
                    yield Chunk(chunk)
        finally:
            file.close()

    async def StartUpload(self, request: pb.StartUploadRequest, context: Context) -> pb.StartUploadResponse:
        """Begins an upload, or returns the one begun with this request id."""
        owner = principal().name
        started = await asyncio.to_thread(self._uploads.start, owner, request.request_id, request.total_bytes)
        return pb.StartUploadResponse(upload=_proto(started))

    async def UploadPart(
        self, request_iterator: AsyncIterator[pb.UploadPartRequest | Chunk], context: Context
    ) -> pb.UploadPartResponse:
        """Appends bytes; what arrived stays, whatever ends the call."""
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.upload:
            raise InvalidArgument(
                "FIELD_INVALID", "the first message names no upload", field="upload",
                remedy="give the id that StartUpload returned",
            )  # fmt: skip
        context_of = self._uploads.appending(first.upload, first.offset)
        part = await asyncio.to_thread(context_of.__enter__)
        try:
            await asyncio.to_thread(part.write, first.chunk)
            await flow.drain(request_iterator, lambda request: part.write(request.chunk))
        finally:
            context_of.__exit__(None, None, None)
        return pb.UploadPartResponse(upload=_proto(await asyncio.to_thread(self._uploads.get, first.upload)))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        """Tells how far an upload has come."""
        return pb.GetUploadResponse(upload=_proto(await asyncio.to_thread(self._uploads.get, request.upload)))

    async def FinishUpload(
        self, request: pb.FinishUploadRequest, context: Context
    ) -> pb.FinishUploadResponse:
        """Stores the content of an upload."""
        blob = await asyncio.to_thread(self._uploads.finish, request.upload, request.sha256)
        return pb.FinishUploadResponse(digest=blob.digest, size_bytes=blob.size_bytes)

    async def AbortUpload(self, request: pb.AbortUploadRequest, context: Context) -> pb.AbortUploadResponse:
        """Forgets an upload."""
        await asyncio.to_thread(self._uploads.abort, request.upload)
        return pb.AbortUploadResponse()


def _proto(known: Partial) -> pb.Upload:
    expires = Timestamp()
    expires.FromSeconds(int(known.expires))
    return pb.Upload(
        upload=known.upload,
        size_bytes=known.size_bytes,
        total_bytes=known.total_bytes,
        expire_time=expires,
    )
