"""The folder of an external run: what its program logged, until the server has it.

    run.json        which run, and where it belongs (no token)
    records.jsonl   a line a record, in the order in which they were logged
    sent.json       the run's epoch, and up to which byte of records.jsonl the server has stored everything
    media/          pictures by the SHA-256 of their bytes, until they are stored
    parcels/        checkpoints, until they are entered (parcel.py)

A record is one write to the end of the file, so a program that is killed loses nothing it had logged. Keys
of a line: `seq`, `step`, `time` (Unix microseconds) and `values` of a metric record, or `key` and one of
`histogram`, `text`, `picture`; `offset`, `text`, `level` and `step` of a line of the log; `end` (`failed`,
`message`) of the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import InvalidArgument
from tunesmith.parcel import Parcels

_DIGEST = re.compile("[0-9a-f]{64}")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def new_id() -> str:
    """Returns a new id for a run: a lower-case ULID."""
    value = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10))
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


@dataclass(frozen=True)
class Identity:
    """Which run a folder is of. `address` is where it was to be sent; tokens are never written down."""

    job_id: str
    project: str
    experiment: str = ""
    address: str = ""
    config: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    program: str = ""
    total_steps: int = 0


@dataclass(frozen=True)
class Sent:
    """How far a folder was sent. `data_epoch` is the epoch its records are stored under, 0 before the run was
    begun; `epoch` the newest one its program held; `position` the bytes of records.jsonl that are stored."""

    data_epoch: int = 0
    epoch: int = 0
    position: int = 0
    end: Mapping[str, Any] | None = None  # what its program said at its end, once that was read
    ended: bool = False  # and the server has heard it


class Spool:
    """A run's folder."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder, self.identity = folder, identity
        self._sent = _read_sent(folder / "sent.json")
        self.parcels = Parcels(folder)

    @classmethod
    def create(cls, parent: Path, identity: Identity) -> Spool:
        """Makes a folder for a run below `parent`."""
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:  # a run that is taken up has a folder for each program
            folder = parent / (identity.job_id if number == 1 else f"{identity.job_id}-{number}")
            try:
                folder.mkdir(mode=0o700)
                break
            except FileExistsError:
                number += 1
        _replace(folder / "run.json", asdict(identity))
        return cls(folder, identity)

    @classmethod
    def open(cls, folder: Path) -> Spool:
        """Opens the folder of a run.

        Raises:
            InvalidArgument: it is none.
        """
        path = folder / "run.json"
        try:
            data = json.loads(path.read_text("utf-8"))
            known = {each.name for each in fields(Identity)}
            identity = Identity(**{key: value for key, value in data.items() if key in known})
            _check(identity)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InvalidArgument(
                "FILE_UNREADABLE",
                f"{folder} is no folder of a run: {error}",
                field="folder",
                value=folder,
                remedy="name a folder below tunesmith-runs, which tunesmith.init makes",
            ) from None
        return cls(folder, identity)

    @property
    def sent(self) -> Sent:
        """How far it was sent."""
        return self._sent

    def note(self, **changes: Any) -> Sent:
        """Writes down how far it was sent."""
        self._sent = replace(self._sent, **changes)
        _replace(self.folder / "sent.json", asdict(self._sent))
        return self._sent

    def read(self, position: int, max_bytes: int) -> tuple[list[dict[str, Any]], int]:
        """Returns the whole records after `position`, about `max_bytes` of them, and where they end.

        A record that cannot be read (the disk was full in the middle of it) is left out.
        """
        try:
            with (self.folder / "records.jsonl").open("rb") as file:
                file.seek(position)
                data = file.read(max_bytes)
                if data and b"\n" not in data:
                    data += file.readline()
        except FileNotFoundError:
            return [], position
        whole = data[: data.rfind(b"\n") + 1]
        return list(_records(whole)), position + len(whole)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Keeps everybody else away within the block; gives False if its program or another sync is at it.

        Two that begin one run would store its records twice, each under its own epoch.
        """
        with ExitStack() as held:
            try:
                file = held.enter_context((self.folder / "records.jsonl").open("r+b"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                yield self.folder.is_dir()
            except BlockingIOError:
                yield False
            else:
                self._sent = _read_sent(self.folder / "sent.json")  # as who was at it before left it
                yield True

    def keep_picture(self, digest: str, data: bytes) -> None:
        """Keeps a picture until it is stored. Raises OSError when the disk is full."""
        path = self.picture(digest)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            hidden = path.with_name(f".{digest}.new")
            hidden.write_bytes(data)
            hidden.replace(path)

    def picture(self, digest: str) -> Path:
        """Returns where a picture lies. What runs have written is not trusted to be a digest."""
        if _DIGEST.fullmatch(digest) is None:
            raise InvalidArgument(
                "FILE_UNREADABLE", "a picture has no SHA-256", field="folder", value=self.folder,
                remedy="the folder was changed: remove it",
            )  # fmt: skip
        return self.folder / "media" / digest

    def drop_picture(self, digest: str) -> None:
        """Removes a picture that is stored."""
        self.picture(digest).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the folder; nothing in it is needed any more."""
        self.parcels.remove()
        shutil.rmtree(self.folder / "media", ignore_errors=True)
        for name in ("records.jsonl", "sent.json", "run.json"):
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()


class Pen:
    """Appends records to a run's folder. Each is one write, by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(folder / "records.jsonl", flags, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # held until the program ends: `Spool.alone` sees it
        self._torn = False

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record. Raises OSError when the disk is full; what came before stays whole."""
        line = (_encode(record) + "\n").encode("utf-8", "replace")
        if self._torn:
            line = b"\n" + line
        written = os.write(self._file, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(28, "the disk is full")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def folders(parent: Path) -> Iterator[Path]:
    """Yields the folders of runs in `parent`, the oldest first; `parent` itself when it is one."""
    if (parent / "run.json").is_file():
        yield parent
        return
    if parent.is_dir():
        yield from sorted(each for each in parent.iterdir() if (each / "run.json").is_file())


def _records(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        try:
            record = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def _check(identity: Identity) -> None:
    texts = ("job_id", "project", "experiment", "address", "host", "program")
    maps = (identity.config, identity.labels)
    if not all(isinstance(getattr(identity, name), str) for name in texts):
        raise ValueError("run.json holds no texts where there should be")
    if not all(isinstance(each, dict) and all(map(_is_text, each.items())) for each in maps):
        raise ValueError("run.json holds no texts where there should be")


def _is_text(pair: tuple[Any, Any]) -> bool:
    return isinstance(pair[0], str) and isinstance(pair[1], str)


def _read_sent(path: Path) -> Sent:
    """Reads how far a folder was sent. Without it all is sent again, and stored once."""
    try:
        data = json.loads(path.read_text("utf-8"))
        sent = Sent(**data)
        numbers = (sent.data_epoch, sent.epoch, sent.position)
        if all(isinstance(number, int) and number >= 0 for number in numbers):
            return sent if isinstance(sent.end, dict | None) else replace(sent, end=None)
    except (OSError, ValueError, TypeError):
        pass
    return Sent()


def _replace(path: Path, data: Mapping[str, Any]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
