"""Content that somebody needs and no database of the registry mentions: empty files beside the blob store,
`holds/<owner>/<digest>`. All functions block: use a thread.
"""

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tunesmith.errors import InvalidArgument
from tunesmith_kit.blobs import check_digest, disk, sync_folder

_OWNER = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Holds(ABC):
    """What is held at a blob store. `Holds.open(url)` takes what `BlobStore.open` takes."""

    @staticmethod
    def open(url: str) -> "Holds":
        """Opens the holds of a store."""
        if "://" in url and not url.startswith("file://"):
            return _RemoteHolds(url)
        return _FolderHolds(Path(url.removeprefix("file://")) / "holds")

    @abstractmethod
    def hold(self, owner: str, digest: str) -> None:
        """Keeps content from garbage collection, stored or not yet, until its owner is released."""

    @abstractmethod
    def release(self, owner: str) -> None:
        """Lets go of everything that is held for an owner, if anything is."""

    @abstractmethod
    def held(self) -> set[str]:
        """The digests of everything that is held for somebody."""


class _FolderHolds(Holds):
    def __init__(self, root: Path) -> None:
        self._root = root

    def hold(self, owner: str, digest: str) -> None:
        folder = self._root / _checked(owner)
        with disk(self._root):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / check_digest(digest)).touch()
            sync_folder(folder)

    def release(self, owner: str) -> None:
        with disk(self._root), suppress(FileNotFoundError):
            shutil.rmtree(self._root / _checked(owner))

    def held(self) -> set[str]:
        with disk(self._root):
            return _digests(path.name for path in self._root.glob("*/*"))


class _RemoteHolds(Holds):
    def __init__(self, url: str) -> None:
        import fsspec

        with disk(url):
            self._fs, root = fsspec.core.url_to_fs(url)
        self._root = f"{root.rstrip('/')}/holds"

    def hold(self, owner: str, digest: str) -> None:
        with disk(self._root):
            self._fs.pipe_file(f"{self._root}/{_checked(owner)}/{check_digest(digest)}", b"")

    def release(self, owner: str) -> None:
        with disk(self._root), suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            self._fs.rm(f"{self._root}/{_checked(owner)}", recursive=True)

    def held(self) -> set[str]:
        with disk(self._root):
            self._fs.invalidate_cache()
            return _digests(str(key).rpartition("/")[2] for key in self._fs.find(self._root))


def _digests(names: Iterable[str]) -> set[str]:
    return {name for name in names if _DIGEST.fullmatch(name)}


def _checked(owner: str) -> str:
    if _OWNER.fullmatch(owner) is None:
        raise InvalidArgument("FIELD_INVALID", "this is no id of an owner", field="owner", value=owner)
    return owner
