"""Content by digest: sends local files to the blob store, each content once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.api.registry.v1 import blobs_pb2
from tunesmith.connection import Connection
from tunesmith.errors import FailedPrecondition, InvalidArgument

CHUNK_BYTES = 1 << 20
# Larger files are sent so that a broken upload goes on; below it a second round of calls costs more.
WORTH_RESUMING = 16 << 20
OnProgress = Callable[[int, int], None]
"""Hears (bytes done, bytes in all) while files are sent."""


@dataclass(frozen=True)
class LocalFile:
    """A file to send: its place, size in bytes and SHA-256."""

    path: Path
    size_bytes: int
    sha256: str


async def inspect(path: Path) -> LocalFile:
    """Reads a file once for its size and digest. Raises InvalidArgument when it cannot be read."""
    try:
        return await asyncio.to_thread(_inspect, path)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> InvalidArgument:
    """Returns the error of a local file that cannot be read."""
    return InvalidArgument(
        "FILE_UNREADABLE",
        f"cannot read {path}: {error.strerror or error}",
        field="path",
        value=path,
        remedy="give the path of a file that you may read",
    )


def _inspect(path: Path) -> LocalFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return LocalFile(path, file.tell(), digest)


async def upload(
    connection: Connection, files: list[LocalFile], on_progress: OnProgress | None = None
) -> None:
    """Sends those files whose content is not stored yet. Known content counts as done at once."""
    done, total = 0, sum(file.size_bytes for file in files)

    def report(more: int) -> None:
        if on_progress is not None:
            on_progress(done + more, total)

    for file in files:
        request = blobs_pb2.StatBlobRequest(digest=file.sha256)
        known = await connection.call(connection.blobs.StatBlob, request)
        if not known.exists:
            await _send(connection, file, report)
        done += file.size_bytes
        report(0)


async def _send(connection: Connection, file: LocalFile, report: Callable[[int], None]) -> None:
    try:
        if file.size_bytes < WORTH_RESUMING:
            await connection.repeat(lambda: _whole(connection, file, report))
        else:
            await _in_parts(connection, file, report)
    except OSError as error:
        raise unreadable(file.path, error) from None


async def _whole(connection: Connection, file: LocalFile, report: Callable[[int], None]) -> None:
    messages = _Chunks(_blob_chunks(file, report))
    await _stream(connection, connection.blocking_blobs.UploadBlob, messages, file.size_bytes)


async def _in_parts(connection: Connection, file: LocalFile, report: Callable[[int], None]) -> None:
    """Goes on where an upload of the same content stopped, of this process or of one that died.

    The digest is the request id, so the same content finds its upload again.
    """
    start = blobs_pb2.StartUploadRequest(total_bytes=file.size_bytes, request_id=file.sha256)
    upload = (await connection.call(connection.blobs.StartUpload, start)).upload
    ask = blobs_pb2.GetUploadRequest(upload=upload.upload)

    async def attempt() -> None:
        known = (await connection.blobs.GetUpload(ask, timeout=30, metadata=connection.metadata)).upload
        report(known.size_bytes)
        if known.size_bytes < file.size_bytes:
            messages = _Chunks(_part_chunks(file, known, report))
            rest = file.size_bytes - known.size_bytes
            await _stream(connection, connection.blocking_blobs.UploadPart, messages, rest)

    await connection.repeat(attempt)
    finish = blobs_pb2.FinishUploadRequest(upload=upload.upload, sha256=file.sha256, request_id=file.sha256)
    try:
        await connection.call(connection.blobs.FinishUpload, finish, seconds=_seconds(file.size_bytes))
    except InvalidArgument:  # what arrived is another file's: it must not be gone on with
        abort = blobs_pb2.AbortUploadRequest(upload=upload.upload, request_id=file.sha256)
        await connection.call(connection.blobs.AbortUpload, abort)
        raise


def _seconds(size_bytes: int) -> float:
    # 1 MB/s is slower than any network this is used on; the floor covers the server's fsync.
    return 60 + size_bytes / 1e6


async def _stream(connection: Connection, method: Any, messages: _Chunks, size_bytes: int) -> None:
    """Sends messages on the blocking interface without blocking the loop."""
    call = method.future(messages, timeout=_seconds(size_bytes), metadata=connection.metadata)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake(_: object) -> None:
        loop.call_soon_threadsafe(ended.set)

    call.add_done_callback(wake)
    try:
        await ended.wait()
    finally:
        call.cancel()
    if messages.error is not None:
        raise messages.error
    call.result()


async def download(
    connection: Connection, digest: str, to: Path, on_progress: OnProgress | None = None
) -> LocalFile:
    """Writes the content of a digest into a file; one broken off before, `to` with `.part`, is gone on with.

    Raises FailedPrecondition when what came has not the digest; then nothing is kept.
    """
    stat = await connection.call(connection.blobs.StatBlob, blobs_pb2.StatBlobRequest(digest=digest))
    partial = to.with_name(f"{to.name}.part")

    async def attempt() -> str:
        offset = partial.stat().st_size if partial.exists() else 0
        request = blobs_pb2.DownloadBlobRequest(digest=digest, offset=min(offset, stat.size_bytes))
        seconds = _seconds(stat.size_bytes)
        # One thread reads, hashes and writes: a loop between them would cost half of the speed.
        call = connection.blocking_blobs.DownloadBlob(request, timeout=seconds, metadata=connection.metadata)
        taking = asyncio.ensure_future(asyncio.to_thread(_take, call, partial, stat.size_bytes, on_progress))
        try:
            return await asyncio.shield(taking)
        finally:
            call.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    try:
        found = await connection.repeat(attempt)
    except OSError as error:
        raise unreadable(to, error) from None
    if found != digest:
        partial.unlink(missing_ok=True)
        raise FailedPrecondition(
            "DIGEST_MISMATCH",
            f"what came has the SHA-256 {found}",
            field="digest",
            value=digest,
            remedy="download it again",
        )
    partial.replace(to)
    return LocalFile(to, stat.size_bytes, digest)


def _take(call: Any, partial: Path, total: int, on_progress: OnProgress | None) -> str:
    """Appends what comes to a file; returns the SHA-256 of all of it."""
    with partial.open("a+b", buffering=0) as file:
        file.seek(0)
        hasher = hashlib.file_digest(file, "sha256")  # of what an earlier try left
        done = file.tell()
        for part in call:
            view = memoryview(part.chunk)
            hasher.update(view)
            done += len(view)
            while view:
                view = view[file.write(view) :]
            if on_progress is not None:
                on_progress(done, total)
    return hasher.hexdigest()


class _Chunks:
    """Messages of an upload. gRPC swallows what an iterator of requests raises; `error` keeps it."""

    def __init__(self, messages: Iterator[Any]) -> None:
        self.error: Exception | None = None
        self._messages = messages

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise


def _blob_chunks(file: LocalFile, report: Callable[[int], None]) -> Iterator[blobs_pb2.UploadBlobRequest]:
    """The digest first, so that a file changed meanwhile is refused."""
    yield blobs_pb2.UploadBlobRequest(sha256=file.sha256)
    sent = 0
    with file.path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield blobs_pb2.UploadBlobRequest(chunk=chunk)
            sent += len(chunk)
            report(sent)


def _part_chunks(
    file: LocalFile, known: blobs_pb2.Upload, report: Callable[[int], None]
) -> Iterator[blobs_pb2.UploadPartRequest]:
    sent = known.size_bytes
    with file.path.open("rb") as source:
        source.seek(sent)
        yield blobs_pb2.UploadPartRequest(upload=known.upload, offset=sent, chunk=source.read(CHUNK_BYTES))
        while chunk := source.read(CHUNK_BYTES):
            sent += CHUNK_BYTES
            report(sent)
            yield blobs_pb2.UploadPartRequest(chunk=chunk)
    report(file.size_bytes)
