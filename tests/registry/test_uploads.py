"""Uploads that break off: gone on with at the byte, whatever died meanwhile, and nothing left behind."""

import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.registry.data import Data, running_data
from tests.support.bus import running_nats
from tests.support.wait import until
from tunesmith.api.registry.v1 import blobs_pb2 as pb
from tunesmith.errors import TunesmithError
from tunesmith.status import from_rpc_error

CONTENT = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


async def _fails(call: object) -> TunesmithError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


async def _start(data: Data, total: int = len(CONTENT), request_id: str = "r1") -> pb.Upload:
    request = pb.StartUploadRequest(total_bytes=total, request_id=request_id)
    return (await data.blobs.StartUpload(request)).upload


async def _send(data: Data, upload: str, offset: int, *chunks: bytes) -> pb.Upload:
    async def messages() -> AsyncIterator[pb.UploadPartRequest]:
        yield pb.UploadPartRequest(upload=upload, offset=offset)
        for chunk in chunks:
            yield pb.UploadPartRequest(chunk=chunk)

    return (await data.blobs.UploadPart(messages())).upload


async def _finish(data: Data, upload: str, sha256: str = DIGEST) -> pb.FinishUploadResponse:
    return await data.blobs.FinishUpload(pb.FinishUploadRequest(upload=upload, sha256=sha256))


async def test_an_upload_goes_on_at_the_byte_after_the_registry_was_started_anew(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server:
        async with running_data(tmp_path, server) as data:
            upload = (await _start(data)).upload
            assert (await _send(data, upload, 0, CONTENT[:7], CONTENT[7:1_000_001])).size_bytes == 1_000_001
        async with running_data(tmp_path, server) as data:
            again = await _start(data)
            assert (again.upload, again.size_bytes) == (upload, 1_000_001)
            error = await _fails(_send(data, upload, 1_000_000, b"x"))
            assert (error.reason, "1000001" in error.remedy) == ("UPLOAD_OFFSET", True)
            assert (await _fails(_finish(data, upload))).reason == "UPLOAD_INCOMPLETE"
            await _send(data, upload, 1_000_001, CONTENT[1_000_001:])
            assert (await _fails(_finish(data, upload, "0" * 64))).reason == "DIGEST_MISMATCH"
            assert (await _finish(data, upload)).digest == DIGEST
            assert (await _finish(data, upload)).digest == DIGEST, "asked again after the answer was lost"
            stat = await data.blobs.StatBlob(pb.StatBlobRequest(digest=DIGEST))
            assert stat.size_bytes == len(CONTENT)


async def test_what_arrived_before_a_call_broke_stays(tmp_path: Path) -> None:
    async with running_data(tmp_path) as data:
        upload = (await _start(data)).upload
        call = data.blobs.UploadPart()
        await call.write(pb.UploadPartRequest(upload=upload, chunk=CONTENT[:500_000]))
        path = tmp_path / "blobs" / "uploads" / f"{upload}.part"
        await until(lambda: path.stat().st_size == 500_000, "the bytes")
        assert (await _fails(_send(data, upload, 500_000, b"x"))).reason == "UPLOAD_BUSY"
        call.cancel()
        get = pb.GetUploadRequest(upload=upload)
        assert (await data.blobs.GetUpload(get)).upload.size_bytes == 500_000

        async def free() -> bool:
            try:
                await _send(data, upload, 500_000, CONTENT[500_000:])
            except grpc.aio.AioRpcError as error:
                if from_rpc_error(error).reason != "UPLOAD_BUSY":
                    raise
                return False
            return True

        while not await free():
            continue
        assert (await _finish(data, upload)).digest == DIGEST


async def test_sizes_are_capped_and_names_are_checked(tmp_path: Path) -> None:
    async with running_data(tmp_path, max_upload_bytes=1000) as data:
        assert (await _fails(_start(data, 1001))).reason == "UPLOAD_TOO_LARGE"
        small = (await _start(data, 10, "small")).upload
        assert (await _fails(_send(data, small, 0, b"x" * 11))).reason == "UPLOAD_TOO_LARGE"
        unknown = (await _start(data, 0, "unknown")).upload
        assert (await _fails(_send(data, unknown, 0, b"x" * 1001))).reason == "UPLOAD_TOO_LARGE"
        assert (await _fails(_send(data, "0" * 26, 0, b"x"))).reason == "UPLOAD_NOT_FOUND"
        for bad in ("../../etc/passwd", "A" * 26, ""):
            assert (await _fails(_send(data, bad, 0, b"x"))).reason == "FIELD_INVALID"
            assert (await _fails(_finish(data, bad))).reason == "FIELD_INVALID"
        await data.blobs.AbortUpload(pb.AbortUploadRequest(upload=small))
        assert (
            await _fails(data.blobs.GetUpload(pb.GetUploadRequest(upload=small)))
        ).reason == "UPLOAD_NOT_FOUND"


async def test_what_nobody_goes_on_with_is_swept_and_what_is_young_is_not(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server:
        async with running_data(tmp_path, server) as data:
            old, young = (await _start(data)).upload, (await _start(data, 5, "young")).upload
            await _send(data, old, 0, CONTENT)
        folders = [tmp_path / "blobs" / name for name in ("uploads", "tmp")]
        left = folders[1] / "writer-that-died"
        left.write_bytes(b"half an import")
        for path in [left, *folders[0].glob(f"{old}.*")]:
            os.utime(path, (time.time() - 100 * 3600,) * 2)
        async with running_data(tmp_path, server) as data:
            await until(lambda: not left.exists() and not list(folders[0].glob(f"{old}.*")), "the sweep")
            assert (await data.blobs.GetUpload(pb.GetUploadRequest(upload=young))).upload.total_bytes == 5
            stored = [path for path in (tmp_path / "blobs" / "sha256").rglob("*") if path.is_file()]
            assert not stored, "nothing half-arrived is visible"
