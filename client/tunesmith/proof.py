"""Checks a model that was taken away, with nothing but its folder or archive: files, manifest, receipts."""

from __future__ import annotations

import hashlib
import importlib
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import InvalidArgument, Unavailable

MANIFEST, RECEIPTS, KEY = "manifest.json", "receipts.jsonl", "signing-key.pub"
_CHUNK = 4 * 1024 * 1024
_LARGEST = 64 * 1024 * 1024


@dataclass(frozen=True)
class Checked:
    """One thing that was checked; `problem` is empty when it is as it was."""

    path: str
    wanted: str
    found: str
    problem: str = ""


def verify(place: str | Path, public_key: str = "") -> Iterator[Checked]:
    """Yields everything checked of an exported folder or tar archive.

    `public_key` (64 hexadecimal digits) is the key that receipts must be signed with; without it the key that
    lies beside them is taken, which proves that they fit each other, not who signed them.
    Raises InvalidArgument when the place holds no exported model.
    """
    with _opened(Path(place)) as source:
        manifest = source.small(MANIFEST)
        if manifest is None:
            raise InvalidArgument(
                "FILE_UNREADABLE",
                f"{place} has no {MANIFEST}",
                field="folder",
                value=place,
                remedy="give a folder or tar archive that `tunesmith models export` wrote",
            )
        digest = hashlib.sha256(manifest).hexdigest()
        yield from _files(source, manifest)
        yield from _receipts(source, digest, public_key)


def _files(source: _Source, manifest: bytes) -> Iterator[Checked]:
    try:
        files = [(str(file["path"]), str(file["sha256"])) for file in json.loads(manifest)["files"]]
    except (ValueError, KeyError, TypeError):
        yield Checked(MANIFEST, "a manifest", "", "it cannot be read")
        return
    for path, wanted in files:
        found = source.digest(path)
        problem = "" if found == wanted else ("it was changed" if found else "it is missing")
        yield Checked(path, wanted, found, problem)


def _receipts(source: _Source, digest: str, public_key: str) -> Iterator[Checked]:
    lines, kept = source.small(RECEIPTS), source.small(KEY)
    key = public_key or (kept or b"").decode("ascii", "replace").strip()
    if not lines or not key:
        yield Checked(RECEIPTS, "receipts and a key", "", "there are none")
        return
    registered = False
    for number, line in enumerate(lines.splitlines(), start=1):
        place = f"{RECEIPTS}:{number}"
        try:
            receipt = json.loads(line)
            body = json.loads(receipt["body"])
            found = hashlib.sha256(receipt["body"].encode()).hexdigest()
            wanted, signature = str(receipt["digest"]), str(receipt["signature"])
        except (ValueError, KeyError, TypeError, AttributeError):
            yield Checked(place, "a receipt", "", "it cannot be read")
            continue
        problem = "" if found == wanted else "it was changed"
        problem = problem or (
            "" if _is_signed(key, wanted, signature) else "the signature does not fit the key"
        )
        yield Checked(place, wanted, found, problem)
        registered = registered or _registers(body, digest)
    said = "" if registered else "no receipt says that this manifest was registered"
    yield Checked(MANIFEST, digest, digest if registered else "", said)


def _registers(body: Any, digest: str) -> bool:
    if not isinstance(body, dict) or body.get("kind") != "model_version_registered":
        return False
    version = body.get("event", {}).get("version", {})
    return bool(version.get("digest") == digest)


def _is_signed(key: str, digest: str, signature: str) -> bool:
    try:
        keys = importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
        unfit = importlib.import_module("cryptography.exceptions").InvalidSignature
    except ImportError:
        raise Unavailable(
            "PROGRAM_MISSING",
            "signatures cannot be checked: the library `cryptography` is not installed",
            remedy="pip install cryptography",
        ) from None
    try:
        public = keys.Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(signature), digest.encode())
    except (unfit, ValueError):
        return False
    return True


class _Source(ABC):
    """Files of an exported model by their path in it."""

    @abstractmethod
    def open(self, path: str) -> IO[bytes] | None:
        """Opens a file, or returns None when it is not there."""

    def small(self, path: str) -> bytes | None:
        """Returns the content of a small file."""
        file = self.open(path)
        if file is None:
            return None
        with file:
            return file.read(_LARGEST)

    def digest(self, path: str) -> str:
        """Returns the SHA-256 of a file; empty when it is not there."""
        file = self.open(path)
        if file is None:
            return ""
        hasher = hashlib.sha256()
        with file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
        return hasher.hexdigest()


class _Folder(_Source):
    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def open(self, path: str) -> IO[bytes] | None:
        full = (self._root / path).resolve()
        inside = full.is_relative_to(self._root)
        return full.open("rb") if inside and full.is_file() else None


class _Archive(_Source):
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        # Below the one folder of the archive.
        self._members = {m.name.partition("/")[2]: m for m in archive.getmembers() if m.isfile()}

    def open(self, path: str) -> IO[bytes] | None:
        member = self._members.get(path)
        return self._archive.extractfile(member) if member is not None else None


@contextmanager
def _opened(place: Path) -> Iterator[_Source]:
    if place.is_dir():
        yield _Folder(place)
        return
    try:
        with tarfile.open(place, "r:") as archive:
            yield _Archive(archive)
    except (OSError, tarfile.TarError) as error:
        raise InvalidArgument(
            "FILE_UNREADABLE",
            f"cannot read {place}: {error}",
            field="folder",
            value=place,
            remedy="give a folder or tar archive that `tunesmith models export` wrote",
        ) from None


def need_empty(folder: Path) -> None:
    """Raises InvalidArgument when there is something in the way of a new folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgument(
            "FIELD_INVALID",
            f"{folder} is not empty",
            field="folder",
            value=folder,
            remedy="give a new folder, or an empty one",
        )


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpacks an exported archive into `folder`, without the folder it has inside; nothing leaves `folder`.

    Raises InvalidArgument when it is no such archive, or the folder holds something.
    """
    target = Path(folder)
    need_empty(target)
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "r:") as opened:
        for member in opened.getmembers():
            member.name = member.name.partition("/")[2]
            if member.isfile() and member.name:
                opened.extract(member, target, filter="data")
    return target
