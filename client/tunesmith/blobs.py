"""Content by digest: sends local files to the blob store, each content once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.api.registry.v1 import blobs_pb2
from tunesmith.connection import Connection
from tunesmith.errors import InvalidArgument

CHUNK_BYTES = 1 << 20
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
    # 1 MB/s is slower than any network this is used on; the floor covers the server's fsync.
    seconds = 60 + file.size_bytes / 1e6

    async def attempt() -> None:
        chunks = _Chunks(file, report)
        upload_blob = connection.blocking_blobs.UploadBlob
        call = upload_blob.future(chunks, timeout=seconds, metadata=connection.metadata)
        ended, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake(_: object) -> None:
            loop.call_soon_threadsafe(ended.set)

        call.add_done_callback(wake)
        try:
            await ended.wait()
        finally:
            call.cancel()
        if chunks.error is not None:
            raise chunks.error
        call.result()

    try:
        await connection.repeat(attempt)
    except OSError as error:
        raise unreadable(file.path, error) from None


class _Chunks:
    """The messages of UploadBlob, the digest first, so that a file changed meanwhile is refused.

    gRPC swallows what an iterator of requests raises; `error` keeps it.
    """

    def __init__(self, file: LocalFile, report: Callable[[int], None]) -> None:
        self.error: Exception | None = None
        self._messages = self._read(file, report)

    def __iter__(self) -> Iterator[blobs_pb2.UploadBlobRequest]:
        return self

    def __next__(self) -> blobs_pb2.UploadBlobRequest:
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise

    def _read(self, file: LocalFile, report: Callable[[int], None]) -> Iterator[blobs_pb2.UploadBlobRequest]:
        yield blobs_pb2.UploadBlobRequest(sha256=file.sha256)
        sent = 0
        with file.path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                yield blobs_pb2.UploadBlobRequest(chunk=chunk)
                sent += len(chunk)
                report(sent)
