"""Artifacts: folders with a manifest of hashes, complete or absent, never half written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete folder: its digest is the SHA-256 of the manifest's bytes."""

    path: Path
    digest: str
    size_bytes: int
    kind: str
    properties: Mapping[str, str]


class DamagedError(Exception):
    """A folder is not what its manifest says."""


def canonical_json(value: object) -> bytes:
    """Keys sorted, no white space, UTF-8: equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(target: Path, kind: str, properties: Mapping[str, str], fill: Callable[[Path], None]) -> Artifact:
    """Make the artifact `target`; `fill` puts the files into the folder it is given.

    Everything happens in a hidden folder beside the target, is synced and then renamed, with the manifest
    written last: a kill at any instant leaves the old target or the new one.
    """
    hidden = target.parent / f".{target.name}.tmp"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    try:
        fill(hidden)
        manifest = seal(hidden, kind, properties)
        if target.exists():
            # A folder cannot be renamed onto a full one. The old one goes first: it is either incomplete or
            # about to be replaced by equal bytes, so a kill in between costs a replay, not the result.
            shutil.rmtree(target)
        hidden.rename(target)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    sync(target.parent)
    return Artifact(target, hashlib.sha256(manifest).hexdigest(), _size(target), kind, dict(properties))


def seal(folder: Path, kind: str, properties: Mapping[str, str]) -> bytes:
    """Sync every file of a folder and write its manifest; gives the manifest's bytes."""
    (folder / MANIFEST).unlink(missing_ok=True)
    files = []
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        path.chmod(0o644)  # safetensors writes 0600, and the agent may be another user
        sync(path)
        name = path.relative_to(folder).as_posix()
        files.append({"path": name, "sha256": sha256_of(path), "size_bytes": path.stat().st_size})
    files.sort(key=lambda entry: str(entry["path"]))
    manifest = canonical_json({"files": files, "kind": kind, "properties": dict(properties)})
    (folder / MANIFEST).write_bytes(manifest)
    sync(folder / MANIFEST)
    sync(folder)
    return manifest


def verify(folder: Path, digest: str = "") -> Artifact:
    """Check a folder against its manifest, and the manifest against `digest` if one is given.

    Raises DamagedError naming the first file that differs.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise DamagedError(f"{folder} has no readable {MANIFEST}: it is not a complete artifact") from error
    actual = hashlib.sha256(raw).hexdigest()
    if digest and actual != digest:
        raise DamagedError(f"{folder / MANIFEST} has the digest {actual}, expected {digest}")
    manifest = _parse(folder, raw)
    listed = set()
    size = 0
    for entry in manifest["files"]:
        listed.add(_check(folder, entry))
        size += int(entry["size_bytes"])
    present = {item.relative_to(folder).as_posix() for item in folder.rglob("*") if not item.is_dir()}
    if extra := sorted(present - listed - {MANIFEST}):
        raise DamagedError(f"{folder / extra[0]} is not listed in {MANIFEST}")
    return Artifact(folder, actual, size + len(raw), manifest["kind"], manifest["properties"])


@contextmanager
def steady(*artifacts: tuple[Path, str]) -> Iterator[None]:
    """Check folders against their digests, and afterwards that the block has read what was checked.

    Whatever goes wrong in the block, a folder that has changed meanwhile is the reason.
    Raises DamagedError.
    """
    marks = [_marks(folder) for folder, _ in artifacts]
    for folder, digest in artifacts:
        verify(folder, digest)
    try:
        yield
    finally:
        for (folder, digest), before in zip(artifacts, marks, strict=True):
            after = _marks(folder)
            if after.keys() != before.keys():
                raise DamagedError(f"{folder} was changed while it was read")
            if after != before:  # whoever shares the blobs may have touched them, which changes nothing
                verify(folder, digest)


def _marks(folder: Path) -> dict[tuple[str, int, int], int]:
    """What tells that a file was replaced (name, inode, size) or written to (its last time, nanoseconds)."""
    found = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            found[path.relative_to(folder).as_posix(), stat.st_ino, stat.st_size] = stat.st_mtime_ns
    return found


def _parse(folder: Path, raw: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(raw)
        for entry in manifest["files"]:
            if not (isinstance(entry["path"], str) and isinstance(entry["sha256"], str)):
                raise TypeError("path and sha256 of a file are strings")
            int(entry["size_bytes"])
        manifest = {"kind": str(manifest["kind"]), "properties": dict(manifest["properties"]), **manifest}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{folder / MANIFEST} cannot be read: {error!r}") from error
    return dict(manifest)


def _check(folder: Path, entry: Mapping[str, Any]) -> str:
    name = str(entry["path"])
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or pure.as_posix() != name:
        raise DamagedError(f"{folder / MANIFEST} lists the unsafe path {name!r}")
    path = folder / name
    if not path.is_file():
        raise DamagedError(f"{path} is missing")
    if path.stat().st_size != int(entry["size_bytes"]) or sha256_of(path) != entry["sha256"]:
        raise DamagedError(f"{path} is not what {MANIFEST} says")
    return name


def _size(folder: Path) -> int:
    return sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())
