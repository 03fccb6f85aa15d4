"""Taking models away, and deleting what nobody needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import grpc

from tunesmith import names
from tunesmith.api.registry.v1 import exports_pb2
from tunesmith.blobs import OnProgress
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import FailedPrecondition
from tunesmith.faces import Face, Handle, both, stream

# Something may be said of a version while it is downloaded, and then the archive is another.
_ATTEMPTS = 3


class Exports(Handle[Face]):
    """Downloads and garbage collection."""

    _core: Connection

    @both
    async def download(self, name: str, to: str | Path, *, on_progress: OnProgress | None = None) -> Path:
        """Downloads a version as a tar archive into the file `to`.

        What was interrupted, by a lost connection or a killed program, goes on where it stopped. Raises
        FailedPrecondition when something is said of the version again and again meanwhile.
        """
        partial = _Partial(Path(to))
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._core.repeat(lambda: self._fetch(name, partial, on_progress))
                return await asyncio.to_thread(partial.finish)
            except FailedPrecondition as error:
                if error.reason != "REVISION_STALE" or attempt == _ATTEMPTS:
                    raise
                await asyncio.to_thread(partial.forget)
        raise AssertionError("the last attempt returns or raises")

    async def _fetch(self, name: str, partial: _Partial, on_progress: OnProgress | None) -> None:
        etag, done = await asyncio.to_thread(partial.begin)
        total = 0
        request = exports_pb2.DownloadModelVersionRequest(
            name=names.model_version(self._core.project, name), offset=done, etag=etag
        )
        call = self._core.exports.DownloadModelVersion(request, metadata=self._core.metadata)
        try:
            async for answer in call:
                if answer.etag:
                    partial.note(answer.etag)
                    total = answer.total_bytes
                partial.write(answer.data)
                done += len(answer.data)
                if on_progress is not None:
                    on_progress(done, total)
        finally:
            call.cancel()
            partial.pause()

    @stream
    async def collect_garbage(
        self, *, dry_run: bool = True
    ) -> AsyncGenerator[exports_pb2.CollectGarbageResponse, None]:
        """Deletes stored content that nothing refers to, or only tells of it; yields how far it is."""
        request = exports_pb2.CollectGarbageRequest(
            parent=self._core.parent, dry_run=dry_run, request_id=new_request_id()
        )
        call = self._core.exports.CollectGarbage(request, metadata=self._core.metadata)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as failure:
            raise self._core.explain(failure) from None
        finally:
            call.cancel()


class _Partial:
    """A download on its way: the bytes so far beside the file they will be, and the etag they belong to."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._part = target.with_name(target.name + ".part")
        self._note = target.with_name(target.name + ".part.etag")

    def begin(self) -> tuple[str, int]:
        """Opens the file; returns the etag and the bytes there are of it."""
        known = self._note.exists() and self._part.exists()
        etag = self._note.read_text() if known else ""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("ab" if etag else "wb")
        return etag, self._file.tell()

    def note(self, etag: str) -> None:
        """Keeps the etag."""
        self._note.write_text(etag)

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        self._file.write(data)

    def pause(self) -> None:
        """Closes the file; what is there stays."""
        self._file.close()

    def finish(self) -> Path:
        """Gives the whole file its name."""
        self._part.replace(self._target)
        self._note.unlink(missing_ok=True)
        return self._target

    def forget(self) -> None:
        """Drops what is there."""
        self._part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
