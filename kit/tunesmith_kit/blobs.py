"""The blob store: content under its SHA-256, in a folder or in S3.

Layout `sha256/ab/<digest>`. Content is there whole or not at all (temporary file, fsync, rename, fsync of the
folder), is never changed, and anybody may check it against its name. All functions block: use a thread.
"""

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from tunesmith_kit import flow

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1024 * 1024
# Half of the shortest grace a garbage collection gives.
_FRESH_SECONDS = 1800.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Blob:
    """Stored content."""

    digest: str
    size_bytes: int


def check_digest(digest: str, field: str = "digest") -> str:
    """The digest itself if it is a lower-case SHA-256; else `InvalidArgument`."""
    if _DIGEST.fullmatch(digest) is None:
        raise InvalidArgument(
            "FIELD_INVALID",
            "not a SHA-256 in lower-case hexadecimal",
            field=field,
            value=digest,
            remedy="give the 64 digits that the upload returned",
        )
    return digest


def sha256_file(path: Path) -> Blob:
    """Digest and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(digest, file.tell())


@contextmanager
def disk(where: object) -> Iterator[None]:
    """Turns what the disk says into `ResourceExhausted` (full) or `Unavailable`; a missing file stays one."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceExhausted(
                "DISK_FULL",
                f"the disk is full: {where}",
                field="blobs",
                value=where,
                remedy="free some space, then try again; nothing was kept",
            ) from error
        raise Unavailable(
            "STORE_UNAVAILABLE",
            f"the blob store cannot be used: {error.strerror or error}",
            field="blobs",
            value=where,
            remedy="check that it exists, may be written, and is reachable",
        ) from error


def missing(digest: str) -> NotFound:
    """The error for content that is not stored."""
    return NotFound("BLOB_NOT_FOUND", "no content is stored under this digest", field="digest", value=digest)


def corrupt(digest: str, found: str) -> FailedPrecondition:
    """The error for content that does not have its digest."""
    return FailedPrecondition(
        "ARTIFACT_CORRUPT",
        f"stored content does not match its digest (it is {found})",
        field="digest",
        value=digest,
        remedy="delete the damaged file from the blob store and upload the content again",
    )


class BlobWriter:
    """Content on its way into a store: `write`, then `commit` or `abort`."""

    def __init__(self, store: "BlobStore", path: Path) -> None:
        self._store = store
        self._path = path
        self._hash = hashlib.sha256()
        self._size = 0
        with disk(path.parent):
            self._file = path.open("xb")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends bytes. Raises `ResourceExhausted` when the disk is full."""
        with disk(self._path.parent):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def commit(self, expected: str = "") -> Blob:
        """Keeps the content under its digest; `InvalidArgument` when that is not `expected` (empty: any)."""
        blob = Blob(self._hash.hexdigest(), self._size)
        try:
            if expected and blob.digest != expected:
                raise InvalidArgument(
                    "DIGEST_MISMATCH",
                    f"the content has the SHA-256 {blob.digest}",
                    field="sha256",
                    value=expected,
                    remedy="send the file again",
                )
            with disk(self._path.parent):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
            self._store.adopt(self._path, blob)
        finally:
            self.abort()
        return blob

    def abort(self) -> None:
        """Forgets the content, unless it was kept."""
        with suppress(OSError):  # closing flushes, which may find the disk full again
            self._file.close()
        self._path.unlink(missing_ok=True)


class BlobStore(ABC):
    """Content by digest. `BlobStore.open(url)` takes a folder or `s3://bucket/prefix`."""

    @staticmethod
    def open(url: str) -> "BlobStore":
        """Opens a store; a folder is made when it is missing."""
        if "://" in url and not url.startswith("file://"):
            return RemoteStore(url)
        return FolderStore(Path(url.removeprefix("file://")))

    @abstractmethod
    def stat(self, digest: str) -> Blob | None:
        """Size of stored content; None when it is not there."""

    @abstractmethod
    def read(self, digest: str) -> BinaryIO:
        """Opens content for reading; `NotFound` when it is not there."""

    @abstractmethod
    def adopt(self, path: Path, blob: Blob) -> None:
        """Keeps a finished file whose digest is known, by moving or copying it."""

    @abstractmethod
    def fetch(self, digest: str, to: Path) -> None:
        """Puts content into the read-only file `to`; what is copied is checked, what is linked is not.

        Raises `NotFound`, or `FailedPrecondition` when the copied content is damaged.
        """

    @abstractmethod
    def scratch(self) -> Path:
        """A name for a temporary file that `adopt` can take over cheaply."""

    @abstractmethod
    def partials(self) -> Path:
        """The folder of content that arrives in parts (uploads.py)."""

    def sweep(self, before: float) -> int:
        """Deletes temporary files not written to since `before` (seconds of the epoch): their writers died.

        Returns how many there were.
        """
        count = 0
        for path in self._left_over():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    count += 1
        return count

    @abstractmethod
    def _left_over(self) -> list[Path]:
        """Temporary files and folders, those in use among them."""

    @abstractmethod
    def stored(self) -> Iterator[tuple[Blob, datetime]]:
        """Everything stored, with when it was put or renewed, in any order."""

    @abstractmethod
    def renew(self, digest: str) -> bool:
        """Makes stored content young again, so that no garbage collection takes it from whoever relies on it
        next. False when it is not stored, or so old and the store so simple that it must be put anew."""

    @abstractmethod
    def remove(self, digest: str, before: datetime) -> bool:
        """Deletes content that was not put or renewed since `before`; False when it was, or is gone."""

    def exists(self, digest: str) -> bool:
        """Whether the content is stored."""
        return self.stat(digest) is not None

    def writer(self) -> BlobWriter:
        """Begins to take in content of unknown digest."""
        return BlobWriter(self, self.scratch())

    def put_bytes(self, data: bytes) -> Blob:
        """Stores bytes."""
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        if not self.renew(blob.digest):
            writer = self.writer()
            try:
                writer.write(data)
            except BaseException:
                writer.abort()
                raise
            writer.commit()
        return blob

    def put_file(self, path: Path) -> Blob:
        """Stores a copy of a file; known content is only hashed."""
        blob = sha256_file(path)
        if self.renew(blob.digest):
            return blob
        writer = self.writer()
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    writer.write(chunk)
        except BaseException:
            writer.abort()
            raise
        return writer.commit()

    async def put_stream(self, chunks: AsyncIterator[bytes], expected: Callable[[], str] = str) -> Blob:
        """Stores what a stream brings; `expected()` is asked at its end. The disk work is done in threads."""
        writer = await asyncio.to_thread(self.writer)
        try:
            await flow.drain(chunks, writer.write)
        except BaseException:
            writer.abort()
            raise
        return await asyncio.to_thread(writer.commit, expected())

    def read_range(self, digest: str, offset: int, num_bytes: int) -> bytes:
        """Part of the content, shorter at its end."""
        with self.read(digest) as file:
            file.seek(offset)
            return file.read(num_bytes)

    def read_bytes(self, digest: str) -> bytes:
        """The whole content, checked; for small content such as manifests."""
        with self.read(digest) as file:
            data = file.read()
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise corrupt(digest, found)
        return data

    def verify(self, digest: str) -> Blob:
        """Hashes stored content again. Raises `NotFound`, `FailedPrecondition` when it is damaged."""
        with self.read(digest) as file:
            hasher, size = hashlib.sha256(), 0
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
                size += len(chunk)
        if hasher.hexdigest() != digest:
            raise corrupt(digest, hasher.hexdigest())
        return Blob(digest, size)


class FolderStore(BlobStore):
    """A store in a folder, shared by all processes of a machine or by a network file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with disk(root):
            (root / "tmp").mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where content lies."""
        check_digest(digest)
        return self._root / "sha256" / digest[:2] / digest

    def stat(self, digest: str) -> Blob | None:
        try:
            return Blob(digest, self.path(digest).stat().st_size)
        except FileNotFoundError:
            return None

    def stored(self) -> Iterator[tuple[Blob, datetime]]:
        for folder in sorted((self._root / "sha256").glob("[0-9a-f][0-9a-f]")):
            for path in folder.iterdir():
                with suppress(FileNotFoundError):
                    found = path.stat()
                    if _DIGEST.fullmatch(path.name):
                        changed = datetime.fromtimestamp(found.st_mtime, UTC)
                        yield Blob(path.name, found.st_size), changed

    def renew(self, digest: str) -> bool:
        path = self.path(digest)
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except PermissionError:  # another user's, on a shared store: read only, so putting it anew tells
            return path.stat().st_mtime > time.time() - _FRESH_SECONDS
        return True

    def remove(self, digest: str, before: datetime) -> bool:
        path = self.path(digest)
        # Out of sight first: whoever renews it from now on is told that it is not there, and puts it anew.
        hidden = self.scratch()
        try:
            path.rename(hidden)
        except FileNotFoundError:
            return False
        if hidden.stat().st_mtime >= before.timestamp():
            hidden.replace(path)
            return False
        hidden.unlink()
        return True

    def read(self, digest: str) -> BinaryIO:
        try:
            with disk(self._root):
                return self.path(digest).open("rb")
        except FileNotFoundError:
            raise missing(digest) from None

    def scratch(self) -> Path:
        return self._root / "tmp" / secrets.token_hex(12)

    def partials(self) -> Path:
        folder = self._root / "uploads"
        with disk(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def _left_over(self) -> list[Path]:
        return list((self._root / "tmp").iterdir())

    def adopt(self, path: Path, blob: Blob) -> None:
        target = self.path(blob.digest)
        with disk(self._root):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o444)
            path.replace(target)
            sync_folder(target.parent)

    def fetch(self, digest: str, to: Path) -> None:
        source = self.path(digest)
        try:
            to.unlink(missing_ok=True)
            os.link(source, to)  # no copy: stored files never change and may not be written
        except FileNotFoundError:
            raise missing(digest) from None
        except OSError:  # another file system
            _copy_checked(self.read(digest), digest, to)


class RemoteStore(BlobStore):
    """A store behind fsspec, in production S3; credentials and endpoint come from the usual AWS settings."""

    def __init__(self, url: str) -> None:
        import fsspec

        with disk(url):
            self._fs, root = fsspec.core.url_to_fs(url)
        self._root = root.rstrip("/")

    def _key(self, digest: str) -> str:
        check_digest(digest)
        return f"{self._root}/sha256/{digest[:2]}/{digest}"

    def stat(self, digest: str) -> Blob | None:
        try:
            with disk(self._root):
                info: dict[str, Any] = self._fs.info(self._key(digest))
        except FileNotFoundError:
            return None
        return Blob(digest, int(info["size"]))

    def stored(self) -> Iterator[tuple[Blob, datetime]]:
        with disk(self._root):
            found = self._fs.find(f"{self._root}/sha256", detail=True)
        for key, info in found.items():
            name = str(key).rpartition("/")[2]
            if _DIGEST.fullmatch(name):
                yield Blob(name, int(info["size"])), _changed(info)

    def renew(self, digest: str) -> bool:
        # An object's time cannot be set: what is old is put once more, which is what makes it young.
        try:
            with disk(self._root):
                self._fs.invalidate_cache()
                changed = _changed(self._fs.info(self._key(digest)))
        except FileNotFoundError:
            return False
        return changed.timestamp() > time.time() - _FRESH_SECONDS

    def remove(self, digest: str, before: datetime) -> bool:
        try:
            with disk(self._root):
                self._fs.invalidate_cache()
                if _changed(self._fs.info(self._key(digest))) >= before:
                    return False
                self._fs.rm_file(self._key(digest))
        except FileNotFoundError:
            return False
        return True

    def read(self, digest: str) -> BinaryIO:
        try:
            with disk(self._root):
                return cast(BinaryIO, self._fs.open(self._key(digest), "rb"))
        except FileNotFoundError:
            raise missing(digest) from None

    def scratch(self) -> Path:
        return Path(tempfile.gettempdir()) / f"tunesmith-blob-{secrets.token_hex(12)}"

    def partials(self) -> Path:
        # Of this process's machine: with several replicas and S3, an upload is taken up where it was begun.
        folder = Path(tempfile.gettempdir()) / "tunesmith-uploads"
        with disk(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _left_over(self) -> list[Path]:
        return list(Path(tempfile.gettempdir()).glob("tunesmith-blob-*"))

    def adopt(self, path: Path, blob: Blob) -> None:
        # An object appears whole at the end of its upload, so no rename is needed.
        with disk(self._root):
            key = self._key(blob.digest)
            self._fs.makedirs(key.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(path), key)

    def fetch(self, digest: str, to: Path) -> None:
        _copy_checked(self.read(digest), digest, to)


def _changed(info: dict[str, Any]) -> datetime:
    """When an object was put, by what the store says of it; a store that does not say has young ones only."""
    found = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(found, datetime):
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.fromtimestamp(found, UTC) if isinstance(found, int | float) else datetime.now(UTC)


def _copy_checked(source: BinaryIO, digest: str, to: Path) -> None:
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
    hasher = hashlib.sha256()
    try:
        with source, disk(to.parent), temporary.open("xb") as file:
            while chunk := source.read(_CHUNK):
                hasher.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if hasher.hexdigest() != digest:
            raise corrupt(digest, hasher.hexdigest())
        temporary.chmod(0o444)
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Deletes a folder of fetched content, if it is there."""
    shutil.rmtree(path, ignore_errors=True)
