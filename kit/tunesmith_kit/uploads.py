"""Uploads that can be broken off: content that arrives in parts and goes on at the byte where it stopped.

An upload is a file in the store's folder of partials, its size is how far it has come, and nothing else
need be remembered: whatever dies, the file tells. At its end it becomes a blob by a rename.
"""

import base64
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from tunesmith_kit.blobs import Blob, BlobStore, disk
from tunesmith_kit.ids import new_ulid

_READ = 4 * 1024 * 1024
_ID = re.compile(r"[a-z0-9]{26}")
_MOST_HASHES = 256


@dataclass(frozen=True, slots=True)
class Partial:
    """How far an upload has come. `total_bytes` 0: not said."""

    upload: str
    size_bytes: int
    total_bytes: int
    expires: float


class Uploads:
    """The uploads under way in a store. All methods block: use a thread."""

    def __init__(self, store: BlobStore, max_bytes: int, kept_seconds: float) -> None:
        self._store, self._max, self._kept = store, max_bytes, kept_seconds
        self._folder = store.partials()
        # Hashes of what arrived, so that the end need not read it again; a restart only costs that reading.
        self._hashes: dict[str, tuple[Any, int]] = {}

    def start(self, owner: str, request_id: str, total_bytes: int) -> Partial:
        """Begins an upload, or returns the one the owner began with this request id.

        Raises:
            ResourceExhausted: it would be larger than uploads may be.
        """
        self._check_size(total_bytes)
        upload = _id_of(owner, request_id) if request_id else new_ulid()
        with disk(self._folder):
            if not self._done(upload).exists():
                facts = json.dumps({"total_bytes": total_bytes})
                with suppress(FileExistsError), self._facts(upload).open("x") as file:
                    file.write(facts)
                self._path(upload).touch()
        return self.get(upload)

    def get(self, upload: str) -> Partial:
        """How far an upload has come. Raises `NotFound` when there is none, or none any more."""
        with suppress(FileNotFoundError):
            known = json.loads(self._done(upload).read_bytes())
            return Partial(upload, known["size_bytes"], known["size_bytes"], time.time() + self._kept)
        try:
            stat = self._path(upload).stat()
            total = int(json.loads(self._facts(upload).read_bytes())["total_bytes"])
        except (FileNotFoundError, ValueError):
            raise NotFound(
                "UPLOAD_NOT_FOUND",
                "there is no such upload, or it was forgotten",
                field="upload",
                value=upload,
                remedy="begin a new one (StartUpload)",
            ) from None
        return Partial(upload, stat.st_size, total, stat.st_mtime + self._kept)

    @contextmanager
    def appending(self, upload: str, offset: int) -> Iterator["Appending"]:
        """Takes parts of an upload in, from `offset` on.

        Raises:
            FailedPrecondition: the upload does not stand at this offset.
            Aborted: another call appends to it.
        """
        known = self.get(upload)
        try:
            file = self._path(upload).open("ab", buffering=0)
        except FileNotFoundError:
            raise _wrong_offset(offset, known.size_bytes) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Aborted(
                    "UPLOAD_BUSY", "another call appends to this upload", field="upload", value=upload,
                    remedy="ask how far it has come (GetUpload) and go on from there",
                ) from error  # fmt: skip
            size = os.fstat(file.fileno()).st_size
            if size != offset:
                raise _wrong_offset(offset, size)
            part = Appending(
                file, size, min(self._max, known.total_bytes or self._max), self._hash(upload, size)
            )
            try:
                yield part
            finally:
                if part.hash is not None and len(self._hashes) < _MOST_HASHES:
                    self._hashes[upload] = (part.hash, part.size_bytes)

    def finish(self, upload: str, expected: str = "") -> Blob:
        """Stores what arrived under its digest; asked again, it returns the same.

        Raises:
            FailedPrecondition: less arrived than was announced.
            InvalidArgument: the content has not the digest expected; what arrived is kept.
        """
        known = self.get(upload)
        with suppress(FileNotFoundError):
            done = json.loads(self._done(upload).read_bytes())
            return _expect(Blob(done["digest"], done["size_bytes"]), expected)
        if known.total_bytes and known.size_bytes != known.total_bytes:
            raise FailedPrecondition(
                "UPLOAD_INCOMPLETE",
                f"{known.size_bytes} of {known.total_bytes} bytes arrived",
                field="upload",
                value=upload,
                remedy=f"go on from offset {known.size_bytes}",
            )
        path = self._path(upload)
        with disk(self._folder), path.open("rb") as file:
            hasher = self._hash(upload, known.size_bytes) or _hash_of(file)
            os.fsync(file.fileno())
        blob = _expect(Blob(hasher.hexdigest(), known.size_bytes), expected)
        with disk(self._folder):
            note = self._done(upload).with_suffix(".new")
            note.write_text(json.dumps({"digest": blob.digest, "size_bytes": blob.size_bytes}))
            self._store.adopt(path, blob)
            note.replace(self._done(upload))
        self.abort(upload, even_done=False)
        return blob

    def abort(self, upload: str, even_done: bool = True) -> None:
        """Forgets an upload; harmless when there is none."""
        self._hashes.pop(upload, None)
        for path in (self._path(upload), self._facts(upload), *([self._done(upload)] if even_done else [])):
            path.unlink(missing_ok=True)

    def sweep(self) -> int:
        """Forgets uploads nobody went on with, and temporary files of writers that died; returns how many."""
        before = time.time() - self._kept
        count = self._store.sweep(before)
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                content = path.with_suffix(".part")
                newest = max(item.stat().st_mtime for item in (path, content) if item.exists())
                if newest < before:
                    path.unlink()
                    count += 1
        return count

    def _check_size(self, size: int) -> None:
        if size > self._max:
            raise too_large(self._max)

    def _hash(self, upload: str, size: int) -> Any:
        """The hash of the first `size` bytes, if it is at hand."""
        if not size:
            return hashlib.sha256()
        hasher, done = self._hashes.get(upload, (None, 0))
        return hasher if done == size else None

    def _path(self, upload: str) -> Path:
        return self._folder / f"{_checked(upload)}.part"

    def _facts(self, upload: str) -> Path:
        return self._folder / f"{_checked(upload)}.json"

    def _done(self, upload: str) -> Path:
        return self._folder / f"{_checked(upload)}.done"


class Appending:
    """An upload open for more bytes; `hash` is None when the beginning was not hashed by this process."""

    def __init__(self, file: Any, size: int, most: int, hasher: Any) -> None:
        self._file, self._most = file, most
        self.size_bytes, self.hash = size, hasher

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes. Raises `ResourceExhausted` when they are too many, or the disk is full."""
        if self.size_bytes + len(data) > self._most:
            raise too_large(self._most)
        view = memoryview(data)
        with disk(self._file.name):
            while view:
                done = self._file.write(view)
                if self.hash is not None:
                    self.hash.update(view[:done])
                self.size_bytes += done
                view = view[done:]


def _checked(upload: str) -> str:
    """The id itself; limits of the contract are not checked within streams, and it becomes part of a path."""
    if _ID.fullmatch(upload) is None:
        raise InvalidArgument(
            "FIELD_INVALID",
            "this is no id of an upload",
            field="upload",
            value=upload,
            remedy="give the id that StartUpload returned",
        )
    return upload


def too_large(most: int) -> ResourceExhausted:
    """The error for an upload larger than it may be, or than it was announced."""
    return ResourceExhausted(
        "UPLOAD_TOO_LARGE",
        f"the upload may have {most} bytes",
        field="total_bytes",
        value=most,
        remedy="announce its real size; the operator can raise max_upload_bytes",
    )


def _wrong_offset(offset: int, size: int) -> FailedPrecondition:
    return FailedPrecondition(
        "UPLOAD_OFFSET",
        f"the upload stands at {size}",
        field="offset",
        value=offset,
        remedy=f"go on from offset {size}",
    )


def _expect(blob: Blob, expected: str) -> Blob:
    if expected and blob.digest != expected:
        raise InvalidArgument(
            "DIGEST_MISMATCH",
            f"the content has the SHA-256 {blob.digest}",
            field="sha256",
            value=expected,
            remedy="abort the upload and send the file again",
        )
    return blob


def _hash_of(file: BinaryIO) -> Any:
    hasher = hashlib.sha256()
    while data := file.read(_READ):
        hasher.update(data)
    return hasher


def _id_of(owner: str, request_id: str) -> str:
    digest = hashlib.sha256(f"{owner}\0{request_id}".encode()).digest()
    return base64.b32encode(digest).decode().lower()[:26]
