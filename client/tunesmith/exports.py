"""Taking models away, and deleting what nobody needs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import grpc

from tunesmith import drawing, gguf, hub, names, proof, pushing
from tunesmith.api.registry.v1 import exports_pb2, models_pb2
from tunesmith.blobs import OnProgress
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import FailedPrecondition, NotFound
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.metrics import View, query

# Something may be said of a version while it is downloaded, and then the archive is another.
_ATTEMPTS = 3
_LOSSES = ("train/loss", "eval/loss")
_MOST_POINTS = 600
_PICTURE = "curves.svg"
_AFTER_CURVES = ("## Training metrics\n", "## Evaluation\n", "## Use\n")


class Exports(Handle[Face]):
    """Downloads and garbage collection."""

    _core: Connection

    @both
    async def download(self, name: str, to: str | Path, *, on_progress: OnProgress | None = None) -> Path:
        """Downloads a version as a tar archive into the file `to`.

        What was interrupted, by a lost connection or a killed program, goes on where it stopped. Raises
        FailedPrecondition when something is said of the version again and again meanwhile.
        """
        return await self._download(name, Path(to), on_progress)

    async def _download(self, name: str, to: Path, on_progress: OnProgress | None) -> Path:
        partial = _Partial(to)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._core.repeat(lambda: self._fetch(name, partial, on_progress))
                return await asyncio.to_thread(partial.finish)
            except FailedPrecondition as error:
                if error.reason != "REVISION_STALE" or attempt == _ATTEMPTS:
                    raise
                await asyncio.to_thread(partial.forget)
        raise AssertionError("the last attempt returns or raises")

    @both
    async def save(self, name: str, to: str | Path, *, on_progress: OnProgress | None = None) -> Path:
        """Downloads a version into the new folder `to`, with its card as README.md, and the curves of its
        training as curves.svg when there are any. Raises as `download`."""
        return await self._save(name, Path(to), on_progress)

    @both
    async def save_gguf(
        self, name: str, to: str | Path, *, weights: str = "bfloat16", on_progress: OnProgress | None = None
    ) -> Path:
        """Writes a version that holds a whole model (not an adapter: merge it before) as one GGUF file. That
        is done here, with the trainer's libraries. `weights` are float32, bfloat16, float16 or q8_0.

        Raises InvalidArgument when the model cannot be said as GGUF, Unavailable without the libraries.
        """
        target = Path(to)
        gguf.need_writer(target)
        with tempfile.TemporaryDirectory(prefix=".gguf-", dir=target.parent) as made:
            called = names.model_version(self._core.project, name).partition("/models/")[2].split("/")[0]
            folder = await self._save(name, Path(made) / called, on_progress)
            await asyncio.to_thread(gguf.write, folder, target, weights)
        return target

    @both
    async def push(
        self, name: str, to: str, *, public: bool = False, on_progress: OnProgress | None = None
    ) -> str:
        """Copies a version to `hf:ORG/NAME` (needs the library huggingface_hub) or to an address such as
        `s3://bucket/folder` (needs fsspec); returns where it is.

        Raises InvalidArgument for another address, AlreadyExists when something is there (a hub keeps what
        was there in its history), PermissionDenied or Unavailable as the place says.
        """
        with tempfile.TemporaryDirectory(prefix="tunesmith-push-") as made:
            folder = Path(made) / "model"
            if to.startswith(hub.PREFIX):
                repo = hub.Repo.parse(to)
                await self._save(name, folder, on_progress)
                return await asyncio.to_thread(hub.push, folder, repo, f"Add {name}", public=public)
            pushing.check(to)
            await self._save(name, folder, on_progress)
            return await asyncio.to_thread(pushing.put, folder, to, on_progress)

    async def _save(self, name: str, to: Path, on_progress: OnProgress | None) -> Path:
        proof.need_empty(to)
        archive = to.with_name(to.name + ".tar")
        await self._download(name, archive, on_progress)
        picture = await self._curves(name)
        await asyncio.to_thread(proof.unpack, archive, to)
        await asyncio.to_thread(archive.unlink)
        if picture:
            await asyncio.to_thread(_add_picture, to, picture)
        return to

    async def _curves(self, name: str) -> str:
        """Draws the loss of the job behind a version; empty when it left no curve."""
        job = await self._trained_by(name)
        if not job:
            return ""
        view = View(max_points=_MOST_POINTS, reduction="lttb")
        try:
            found = await query(self._core, job, _LOSSES, view)
        except NotFound:
            return ""
        columns = {key: (list(found[key].steps), list(found[key].values)) for key in _LOSSES if key in found}
        return drawing.curves(columns, "Training and evaluation loss")

    async def _trained_by(self, name: str) -> str:
        """Returns the job that trained a version, or what the version was converted from."""
        full = names.model_version(self._core.project, name)
        for _ in range(_ATTEMPTS):
            request = models_pb2.GetModelVersionRequest(name=full)
            version = (await self._core.call(self._core.models.GetModelVersion, request)).version
            origin = version.derived_from
            if "/jobs/" in origin or not origin:
                return origin.partition("/checkpoints/")[0] or version.job
            full = origin
        return ""

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


def _add_picture(folder: Path, picture: str) -> None:
    """Puts the picture beside the card and names it there, before the numbers it shows."""
    (folder / _PICTURE).write_text(picture, "utf-8")
    readme = folder / "README.md"
    card = readme.read_text("utf-8")
    part = f"## Training curves\n\n![Training and evaluation loss by step]({_PICTURE})\n\n"
    place = next((found for found in map(card.find, _AFTER_CURVES) if found >= 0), len(card))
    readme.write_text(card[:place] + part + card[place:], "utf-8")


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
