"""Blobs and manifests: content is what its name says, whole or not there."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore, BlobWriter, FolderStore
from tunesmith_kit.manifest import ManifestFile

DATA = bytes(range(256)) * 5000


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    """A store in a folder, and one behind fsspec as S3 is."""
    if request.param == "folder":
        yield BlobStore.open(str(tmp_path / "store"))
        return
    yield BlobStore.open(f"memory://{tmp_path.name}/prefix")


def test_content_comes_back_under_its_sha256(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    blob = store.put_file(tmp_path / "file")
    assert (blob.digest, blob.size_bytes) == (hashlib.sha256(DATA).hexdigest(), len(DATA))
    assert store.put_bytes(DATA) == blob
    assert store.stat(blob.digest) == blob
    assert store.verify(blob.digest) == blob
    assert store.read_range(blob.digest, 1000, 10) == DATA[1000:1010]
    assert store.read_range(blob.digest, len(DATA) - 3, 10) == DATA[-3:]
    store.fetch(blob.digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o444


def test_what_is_not_there_is_not_found(store: BlobStore, tmp_path: Path) -> None:
    nothing = "0" * 64
    assert not store.exists(nothing)
    for access in (store.read, store.read_bytes, store.verify, lambda d: store.fetch(d, tmp_path / "x")):
        with pytest.raises(NotFound):
            access(nothing)
    for bad in ("../../etc/passwd", "A" * 64, "0" * 63, ""):
        with pytest.raises(InvalidArgument):
            store.stat(bad)


async def test_a_stream_is_kept_only_when_it_is_whole_and_has_the_digest_given(store: BlobStore) -> None:
    async def chunks(fail: bool = False) -> AsyncIterator[bytes]:
        yield DATA[:1000]
        if fail:
            raise ConnectionError("gone")
        yield DATA[1000:]

    blob = await store.put_stream(chunks(), lambda: hashlib.sha256(DATA).hexdigest())
    assert await asyncio.to_thread(store.exists, blob.digest)
    with pytest.raises(InvalidArgument) as caught:
        await store.put_stream(chunks(), lambda: "1" * 64)
    assert caught.value.reason == "DIGEST_MISMATCH"
    with pytest.raises(ConnectionError):
        await store.put_stream(chunks(fail=True))
    if isinstance(store, FolderStore):
        assert not list(store.scratch().parent.iterdir())


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    blob = store.put_bytes(DATA)
    path = store.path(blob.digest)
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + b"\x00")
    for access in (store.verify, store.read_bytes):
        with pytest.raises(FailedPrecondition) as caught:
            access(blob.digest)
        assert caught.value.reason == "ARTIFACT_CORRUPT"


def test_fetching_from_a_folder_copies_no_bytes(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    blob = store.put_bytes(DATA)
    store.fetch(blob.digest, tmp_path / "linked")
    assert (tmp_path / "linked").stat().st_ino == store.path(blob.digest).stat().st_ino


def test_a_full_disk_is_said_clearly_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path / "store")
    writer = store.writer()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer.write(DATA)
    monkeypatch.setattr(os, "fsync", full)  # the edge of the disk: a real one cannot be filled here
    with pytest.raises(ResourceExhausted, match="the disk is full") as caught:
        writer.commit()
    assert (caught.value.reason, bool(caught.value.remedy)) == ("DISK_FULL", True)
    assert not store.exists(hashlib.sha256(DATA).hexdigest())
    assert not list((tmp_path / "store" / "tmp").iterdir())


def test_a_truly_full_disk_is_said_clearly(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    writer = BlobWriter(store, store.scratch())
    writer._file.close()
    writer._file = Path("/dev/full").open("wb")  # noqa: SIM115  # the kernel's full device
    with pytest.raises(ResourceExhausted):
        writer.write(DATA)
    writer.abort()


def _folder(root: Path, kind: str = "model") -> Path:
    (root / "sub").mkdir(parents=True)
    (root / "b.json").write_text("{}")
    (root / "sub" / "a.bin").write_bytes(DATA)
    made = manifest.build(root, kind, {"step": "3", "ü": "ö"})
    (root / "manifest.json").write_bytes(made.canonical())
    return root


def test_an_artifact_travels_whole(store: BlobStore, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "made")
    digest = manifest.put_folder(store, folder)
    assert digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert manifest.verify(store, digest).properties == {"step": "3", "ü": "ö"}
    fetched = manifest.fetch_folder(store, digest, tmp_path / "fetched")
    assert [file.path for file in fetched.files] == ["b.json", "sub/a.bin"]
    assert manifest.build(tmp_path / "fetched", "model", fetched.properties).digest == digest
    assert (tmp_path / "fetched" / "manifest.json").read_bytes() == fetched.canonical()


def test_an_incomplete_or_changed_folder_is_not_stored(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    with pytest.raises(FailedPrecondition, match="not complete"):
        manifest.put_folder(store, tmp_path / "open")
    folder = _folder(tmp_path / "changed")
    (folder / "b.json").write_text("[]")
    with pytest.raises(FailedPrecondition, match="not what the manifest says"):
        manifest.put_folder(store, folder)
    (folder / "b.json").unlink()
    with pytest.raises(FailedPrecondition, match="missing"):
        manifest.put_folder(store, folder)


def test_a_fetch_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    digest = manifest.put_folder(store, _folder(tmp_path / "made"))
    store.path(hashlib.sha256(DATA).hexdigest()).unlink()
    with pytest.raises(NotFound):
        manifest.fetch_folder(store, digest, tmp_path / "fetched")
    with pytest.raises(NotFound):
        manifest.verify(store, digest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "store"]


@pytest.mark.parametrize(
    "path", ["../up", "/root", "a//b", "a/./b", "a\\b", "", "manifest.json", "a/../../b", "a\x00b"]
)
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument):
        manifest.create("model", [ManifestFile(path, 1, "0" * 64)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"files":[],"kind":"virus","properties":{}}',
        b'{"files": [], "kind": "model", "properties": {}}',
        b'{"files":[{"path":"../x","sha256":"'
        + b"0" * 64
        + b'","size_bytes":1}],"kind":"model","properties":{}}',
        b'{"files":5,"kind":"model","properties":{}}',
        b"\xff",
    ],
)
def test_only_canonical_manifests_are_read(data: bytes) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        manifest.parse(data)
    assert caught.value.reason == "ARTIFACT_CORRUPT"


def test_links_do_not_smuggle_files_into_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArgument, match="plain files"):
        manifest.build(tmp_path, "model")
