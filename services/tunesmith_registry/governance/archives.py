"""A version as a tar archive whose layout is known before it is read: a download can go on anywhere."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import lineage_pb2, models_pb2
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import MANIFEST, Manifest, ManifestFile
from tunesmith_registry.governance import cards, chain
from tunesmith_registry.governance.keys import SigningKey

CARD, RECEIPTS, KEY = "README.md", "receipts.jsonl", "signing-key.pub"
_BLOCK = 512
_CHUNK = 1024 * 1024
# Two empty blocks end an archive; tar fills it up to whole records.
_RECORD = 20 * _BLOCK


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of an archive: bytes at hand, or a stored content."""

    size: int
    data: bytes = b""
    digest: str = ""


@dataclass
class Archive:
    """The parts of an archive in order. `etag` names exactly these bytes."""

    parts: list[Part] = field(default_factory=list)
    etag: str = ""

    @property
    def size(self) -> int:
        """Bytes of the whole archive."""
        return sum(part.size for part in self.parts)

    def read(self, store: BlobStore, offset: int) -> Iterator[bytes]:
        """Yields the bytes from an offset on. Blocks."""
        for part in self.parts:
            if offset >= part.size:
                offset -= part.size
                continue
            yield from _bytes(store, part, offset)
            offset = 0


def _bytes(store: BlobStore, part: Part, offset: int) -> Iterator[bytes]:
    if not part.digest:
        yield part.data[offset:]
        return
    with store.read(part.digest) as file:
        file.seek(offset)
        while chunk := file.read(_CHUNK):
            yield chunk


def build(session: Session, version: models_pb2.ModelVersion, key: SigningKey) -> Archive:
    """Lays out the archive of a version: folder `{model}-{version}` with files, manifest, card, receipts."""
    _, project, _, model_id, *_ = version.name.split("/")
    proto = version.manifest
    files = tuple(ManifestFile(f.path, f.size_bytes, f.sha256) for f in proto.files)
    manifest = Manifest(proto.kind, files, dict(proto.properties))
    card = cards.card(session, version).markdown
    named = [version.name, f"projects/{project}/models/{model_id}"]
    proofs = chain.about(session, project, named)
    lines = [_line(proof) for proof in proofs if _concerns(proof, version)]
    extra = {
        MANIFEST: manifest.canonical(),
        CARD: card.encode(),
        RECEIPTS: "".join(lines).encode(),
        KEY: f"{key.public}\n".encode(),
    }
    # What the model brought itself is part of its digest and stays; the card goes beside it.
    own = {file.path for file in files}
    if CARD in own:
        extra["MODEL_CARD.md"] = extra.pop(CARD)
    extra = {path: data for path, data in extra.items() if path not in own}
    return _laid_out(f"{model_id}-{version.version}", files, extra)


def _concerns(proof: lineage_pb2.Receipt, version: models_pb2.ModelVersion) -> bool:
    """Receipts of the model (its policy, its card) are about all versions; those of aliases name theirs."""
    return proof.kind != "model_alias_changed" or f'"{version.name}"' in proof.body


def _line(proof: lineage_pb2.Receipt) -> str:
    names = ("body", "digest", "key_id", "signature")
    return json.dumps({name: getattr(proof, name) for name in names}, sort_keys=True) + "\n"


def _laid_out(folder: str, files: tuple[ManifestFile, ...], extra: dict[str, bytes]) -> Archive:
    archive, hasher = Archive(), hashlib.sha256()
    for path in sorted([*(file.path for file in files), *extra]):
        data = extra.get(path)
        file = next((each for each in files if each.path == path), None) if data is None else None
        size = len(data) if data is not None else (file.size_bytes if file else 0)
        archive.parts.append(_memory(_header(f"{folder}/{path}", size)))
        if file is not None:
            archive.parts.append(Part(size, digest=file.sha256))
        else:
            archive.parts.append(_memory(data or b""))
        archive.parts.append(_memory(bytes(-size % _BLOCK)))
    ending = 2 * _BLOCK
    archive.parts.append(_memory(bytes(ending + -(archive.size + ending) % _RECORD)))
    for part in archive.parts:
        hasher.update(part.digest.encode() or part.data)
    archive.etag = hasher.hexdigest()[:32]
    return archive


def _memory(data: bytes) -> Part:
    return Part(len(data), data=data)


def _header(name: str, size: int) -> bytes:
    """The header of a plain file without owner and time: they would differ from call to call."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
