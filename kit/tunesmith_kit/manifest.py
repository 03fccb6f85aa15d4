"""Manifests: what an artifact consists of. A manifest's digest is the artifact's identity.

The canonical form is JSON with sorted keys and no white space; files are sorted by path. The manifest itself
is stored as a blob under its digest, so a digest is all that others need to know of an artifact.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.api.common.v1 import common_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument
from tunesmith_kit.blobs import BlobStore, check_digest, disk, remove_tree, sha256_file, sync_folder

MANIFEST = "manifest.json"
KINDS = ("dataset", "base_model", "checkpoint", "model", "prompt", "evaluation")
_MAX_FILES = 10_000
_MAX_BYTES = 8 * 1024 * 1024
_PART = re.compile(r"[^/\\\x00-\x1f]{1,255}")


@dataclass(frozen=True, slots=True, order=True)
class ManifestFile:
    """A file of an artifact; `path` is relative, with `/` between parts."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact consists of."""

    kind: str
    files: tuple[ManifestFile, ...]
    properties: Mapping[str, str] = field(default_factory=dict)

    def canonical(self) -> bytes:
        """The bytes whose SHA-256 is the digest."""
        files = [{"path": f.path, "sha256": f.sha256, "size_bytes": f.size_bytes} for f in self.files]
        body = {"files": files, "kind": self.kind, "properties": dict(self.properties)}
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def digest(self) -> str:
        """Identity of the artifact."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size_bytes for file in self.files)

    def proto(self) -> common_pb2.Manifest:
        """The same as a message of the contract."""
        files = [
            common_pb2.ManifestFile(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in self.files
        ]
        return common_pb2.Manifest(kind=self.kind, files=files, properties=dict(self.properties))


def create(kind: str, files: Iterable[ManifestFile], properties: Mapping[str, str] | None = None) -> Manifest:
    """Makes a manifest of known files.

    Raises:
        InvalidArgument: a path could leave the artifact's folder, comes twice, or a digest is none.
    """
    assert kind in KINDS, kind
    ordered = tuple(sorted(files))
    seen: set[str] = set()
    for file in ordered:
        _check_file(file)
        if file.path.casefold() in seen:
            raise _bad("two files have the same path", file.path)
        seen.add(file.path.casefold())
    if len(ordered) > _MAX_FILES:
        raise _bad(f"more than {_MAX_FILES} files", str(len(ordered)))
    return Manifest(kind, ordered, dict(properties or {}))


def _check_file(file: ManifestFile) -> None:
    parts = file.path.split("/")
    if file.path == MANIFEST or any(part in ("", ".", "..") or not _PART.fullmatch(part) for part in parts):
        raise _bad("a path must be relative and stay inside the artifact", file.path)
    if file.size_bytes < 0:
        raise _bad("a size cannot be negative", str(file.size_bytes))
    check_digest(file.sha256, f"files[{file.path}].sha256")


def _bad(problem: str, value: str) -> InvalidArgument:
    return InvalidArgument(
        "FIELD_INVALID",
        problem,
        field="files",
        value=value,
        remedy="list plain files of one folder, each once",
    )


def parse(data: bytes) -> Manifest:
    """Reads a manifest; only the canonical form is accepted.

    Raises:
        FailedPrecondition: these bytes are no manifest.
    """
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError("too large")
        body = json.loads(data)
        files = [ManifestFile(str(f["path"]), int(f["size_bytes"]), str(f["sha256"])) for f in body["files"]]
        if body["kind"] not in KINDS:
            raise ValueError(f"unknown kind {body['kind']}")
        manifest = create(body["kind"], files, {str(k): str(v) for k, v in body["properties"].items()})
        if manifest.canonical() != data:
            raise ValueError("not in canonical form")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidArgument) as error:
        raise FailedPrecondition(
            "ARTIFACT_CORRUPT", f"this is no manifest: {error}", remedy="store the artifact again"
        ) from error
    return manifest


def build(folder: Path, kind: str, properties: Mapping[str, str] | None = None) -> Manifest:
    """Makes the manifest of a folder by hashing every file in it but `manifest.json`."""
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_symlink() or (not path.is_file() and not path.is_dir()):
            raise _bad("an artifact holds plain files only", relative)
        if path.is_file() and relative != MANIFEST:
            blob = sha256_file(path)
            files.append(ManifestFile(relative, blob.size_bytes, blob.digest))
    return create(kind, files, properties)


def put_folder(store: BlobStore, folder: Path) -> str:
    """Stores a complete folder (one with `manifest.json`) and returns its digest; the manifest goes last.

    Raises:
        FailedPrecondition: the folder is not complete, or a file is not what the manifest says.
        ResourceExhausted: the disk is full.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise FailedPrecondition(
            "ARTIFACT_CORRUPT", "the folder has no manifest.json, so it is not complete", value=folder
        ) from error
    manifest = parse(data)
    for file in manifest.files:
        try:
            blob = store.put_file(folder / file.path)
        except FileNotFoundError as error:
            raise FailedPrecondition(
                "ARTIFACT_CORRUPT", "a file of the manifest is missing", field=file.path, value=folder
            ) from error
        if blob.digest != file.sha256:
            raise FailedPrecondition(
                "ARTIFACT_CORRUPT",
                f"a file is not what the manifest says (it is {blob.digest})",
                field=file.path,
                value=file.sha256,
            )
    return store.put_bytes(data).digest


def read(store: BlobStore, digest: str) -> Manifest:
    """The manifest stored under a digest. Raises `NotFound`, or `FailedPrecondition` when it is damaged."""
    return parse(store.read_bytes(check_digest(digest)))


def fetch_folder(store: BlobStore, digest: str, to: Path) -> Manifest:
    """Materialises an artifact as the folder `to`, whole or not at all; a folder already there is kept.

    Raises:
        NotFound: the artifact, or a file of it, is not stored.
        FailedPrecondition: something stored is damaged.
    """
    manifest = read(store, digest)
    if (to / MANIFEST).exists():
        return manifest
    hidden = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
    try:
        with disk(to.parent):
            hidden.mkdir(parents=True)
            for file in manifest.files:
                target = hidden / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                store.fetch(file.sha256, target)
            (hidden / MANIFEST).write_bytes(manifest.canonical())
            sync_folder(hidden)
            if to.exists():  # left over from a time when it was not complete
                remove_tree(to)
            hidden.rename(to)
            sync_folder(to.parent)
    finally:
        remove_tree(hidden)
    return manifest


def verify(store: BlobStore, digest: str) -> Manifest:
    """Hashes every file of a stored artifact again.

    Raises:
        NotFound: a part is missing.
        FailedPrecondition: a part is damaged or has another size.
    """
    manifest = read(store, digest)
    for file in manifest.files:
        blob = store.verify(file.sha256)
        if blob.size_bytes != file.size_bytes:
            raise FailedPrecondition(
                "ARTIFACT_CORRUPT",
                f"a file has {blob.size_bytes} bytes instead of {file.size_bytes}",
                field=file.path,
                value=file.sha256,
            )
    return manifest
