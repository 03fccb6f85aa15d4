"""Parcels: checkpoints that wait in a run's folder until the server has them.

    parcels/000001/          appears whole, and goes when its checkpoint is entered
        parcel.json          step, time, how many to keep, evaluation loss
        manifest.json        which files it holds, as the platform's manifests are written
        0, 1, 2 …            their contents, in the order of the manifest

Contents are copied, never linked: a program may write its next checkpoint into the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.blobs import LocalFile, unreadable
from tunesmith.errors import InvalidArgument, ResourceExhausted
from tunesmith.logged import wrong

_MOST_FILES = 1000
_PART = re.compile(r"[^/\\\x00-\x1f]{1,255}")
_CHUNK = 1 << 20
_LOSSES = ("eval/loss", "eval_loss", "val/loss", "val_loss")


@dataclass(frozen=True)
class Facts:
    """What is said of a checkpoint: its step, when it was made (Unix microseconds), how many of the newest
    the run keeps (0: all), and the loss of an evaluation, if there was one."""

    step: int
    time: int
    keep: int = 0
    eval_loss: float | None = None


class Parcel:
    """A checkpoint that waits."""

    def __init__(self, folder: Path, facts: Facts, files: list[LocalFile], manifest: LocalFile) -> None:
        self.folder, self.facts, self.files, self.manifest = folder, facts, files, manifest

    @property
    def size_bytes(self) -> int:
        """Size of its files together."""
        return sum(file.size_bytes for file in self.files)

    @classmethod
    def open(cls, folder: Path) -> Parcel:
        """Opens one that was packed.

        Raises:
            InvalidArgument: it is none, as when somebody changed it.
        """
        try:
            facts = Facts(**json.loads((folder / "parcel.json").read_text("utf-8")))
            if not all(type(number) is int for number in (facts.step, facts.time, facts.keep)):
                raise ValueError("parcel.json holds no numbers where there should be")
            data = (folder / "manifest.json").read_bytes()
            files = [
                LocalFile(folder / str(at), int(file["size_bytes"]), str(file["sha256"]))
                for at, file in enumerate(json.loads(data)["files"])
            ]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InvalidArgument(
                "FILE_UNREADABLE", f"{folder} is no checkpoint that waits: {error}", field="folder",
                value=folder, remedy="remove it",
            ) from None  # fmt: skip
        digest = hashlib.sha256(data).hexdigest()
        return cls(folder, facts, files, LocalFile(folder / "manifest.json", len(data), digest))

    def remove(self) -> None:
        """Removes it; nothing in it is needed any more."""
        # Renamed first: what is killed in the middle leaves no parcel without its files.
        gone = self.folder.with_name(f".gone-{self.folder.name}")
        self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


class Parcels:
    """The parcels of a run's folder. At most `most_bytes` of them and of pictures wait."""

    def __init__(self, folder: Path, most_bytes: int = 1 << 62) -> None:
        self._root, self._media, self._most_bytes = folder / "parcels", folder / "media", most_bytes

    def waiting(self) -> list[Path]:
        """Returns their folders, the oldest first."""
        try:
            return sorted(path for path in self._root.iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            return []

    def check_room(self, source: object, size_bytes: int) -> None:
        """Raises ResourceExhausted when so much may not wait beside what waits already."""
        waiting = sum(_size(path) for root in (self._root, self._media) for path in root.rglob("*"))
        if waiting + size_bytes > self._most_bytes:
            raise too_full(source, f"{waiting:,} bytes wait already, and {self._most_bytes:,} may")

    def pack(self, source: Path, step: int, metrics: Mapping[str, float], keep: int = 0) -> Parcel:
        """Copies a file, or a folder with all in it, into a parcel, which outlives the program.

        Raises:
            InvalidArgument: it cannot be read, or holds what no checkpoint may hold.
            ResourceExhausted: the disk is full, or too much waits already.
        """
        found = list(_files(source))
        self.check_room(source, sum(_size(path) for _, path in found))
        number = max((int(path.name) for path in self.waiting()), default=0) + 1
        self._root.mkdir(exist_ok=True)
        hidden = self._root / f".new-{os.urandom(4).hex()}"
        hidden.mkdir()
        try:
            files = [_copy(path, name, hidden / str(at)) for at, (name, path) in enumerate(found)]
            _write(hidden, files, Facts(step, time.time_ns() // 1000, keep, _loss(metrics)), metrics)
            while True:  # a number that was removed meanwhile is not taken by two
                folder = self._root / f"{number:06d}"
                if not folder.exists():
                    hidden.rename(folder)
                    return Parcel.open(folder)
                number += 1
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise

    def remove(self) -> None:
        """Removes them all."""
        shutil.rmtree(self._root, ignore_errors=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # it was sent meanwhile
        return 0


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """Yields the files of a checkpoint in the order of their names within it."""
    try:
        if source.is_file():
            yield _name(source.name), source
            return
        found = sorted(source.rglob("*")) if source.is_dir() else []
        strange = [path for path in found if not path.is_file() and (path.is_symlink() or not path.is_dir())]
    except OSError as error:
        raise unreadable(source, error) from None
    if strange:
        raise wrong("path", strange[0], "is neither a file nor a folder", "leave it out")
    names = sorted((_name(path.relative_to(source).as_posix()), path) for path in found if path.is_file())
    if not 1 <= len(names) <= _MOST_FILES:
        problem = f"holds {len(names)} files" if source.exists() else "does not exist"
        raise wrong("path", source, problem, f"give a file, or a folder of 1 to {_MOST_FILES} files")
    folded = {name.casefold() for name, _ in names}
    if len(folded) < len(names) or "manifest.json" in folded:
        problem = "holds a manifest.json, or names that differ in case alone"
        raise wrong("path", source, problem, "give the files other names")
    yield from names


def _name(name: str) -> str:
    if not all(_PART.fullmatch(part) for part in name.split("/")) or not name.isprintable():
        raise wrong("path", ascii(name), "is a name that no checkpoint can hold", "rename the file")
    return name


def _copy(path: Path, name: str, to: Path) -> dict[str, Any]:
    """Copies a file and hashes what it copies; returns its entry in the manifest."""
    hasher, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as source:
            try:
                with to.open("xb") as target:
                    while chunk := source.read(_CHUNK):
                        hasher.update(chunk)
                        size += target.write(chunk)
            except OSError as error:
                raise too_full(path, error.strerror or str(error)) from None
    except OSError as error:
        raise unreadable(path, error) from None
    return {"path": name, "sha256": hasher.hexdigest(), "size_bytes": size}


def _write(folder: Path, files: list[dict[str, Any]], facts: Facts, metrics: Mapping[str, float]) -> None:
    properties = {"source": "external", **{f"metric.{key}": repr(value) for key, value in metrics.items()}}
    body = {"files": files, "kind": "checkpoint", "properties": properties}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        (folder / "manifest.json").write_bytes(text.encode())
        (folder / "parcel.json").write_text(json.dumps(asdict(facts)), "utf-8")
    except OSError as error:
        raise too_full(folder, error.strerror or str(error)) from None


def _loss(metrics: Mapping[str, float]) -> float | None:
    return next((metrics[key] for key in _LOSSES if key in metrics), None)


def too_full(path: object, problem: str) -> ResourceExhausted:
    """Returns the error about something that finds no room in a run's folder."""
    return ResourceExhausted(
        "SPOOL_FULL",
        f"{path} finds no room beside the run's records: {problem}",
        field="path",
        value=path,
        remedy="wait until the server has taken what waits, save less often, or give "
        "tunesmith.init a folder on a larger disk and a larger max_waiting_bytes",
    )
