"""What the trainer says: metric records, events and the status, as docs/run-folder.md defines them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

SEGMENT_BYTES = 4 * 1024 * 1024
STATUS_INTERVAL_SECONDS = 0.5
_STATUS_FIELDS = (
    "phase",
    "step",
    "total_steps",
    "epoch",
    "loss",
    "first_loss",
    "eval_loss",
    "tokens_per_second",
    "tflops",
    "mfu",
    "gpu_memory_peak_bytes",
    "gpu_memory_total_bytes",
    "resident_bytes",
    "eta_seconds",
    "resumed_step",
    "resumed_from",
    "seconds_per_step",
    "checkpoint_seconds",
    "training_seconds",
    "skipped_steps",
    "stopped_early",
    "checkpoint_age_seconds",
)
_MAGIC = b"TSMETR01"
_KEY, _STEP, _RICH = 1, 2, 3
_HISTOGRAM, _TEXT, _PICTURE = 1, 2, 3
_KEY_BYTES, _TEXT_BYTES, _MOST_COUNTS, _MOST_IDS = 256, 64 * 1024, 512, 2**16 - 1
_PICTURES = ("image/png", "image/jpeg", "image/webp")
_HEAD = struct.Struct("<II")
_HEAD_BYTES = _HEAD.size


class Reporter(Protocol):
    """What checkpoint, evaluation and samples need to speak."""

    def event(self, kind: str, **fields: Any) -> None:
        """Say one event; `fields` are those of its type."""


class _Segments:
    """Files `PREFIX-NNNNNNNN.SUFFIX` of a folder, of which only the newest is ever appended to."""

    def __init__(self, folder: Path, prefix: str, suffix: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._prefix, self._suffix = folder, prefix, suffix
        old = self.paths()
        self._number = int(old[-1].stem.rpartition("-")[2]) if old else 0
        self._descriptor = -1
        self._size = 0

    def paths(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._prefix}-*.{self._suffix}"))

    def full(self) -> bool:
        return self._descriptor < 0 or self._size >= SEGMENT_BYTES

    def roll(self, first: bytes = b"") -> None:
        """Start a new segment; a torn record of a former writer so stays the last of its file."""
        self.close()
        self._number += 1
        path = self._folder / f"{self._prefix}-{self._number:08d}.{self._suffix}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._size = 0
        if first:
            self.append(first)

    def append(self, data: bytes | bytearray) -> None:
        written = os.write(self._descriptor, data)
        self._size += written
        if written != len(data):
            # A full disk can cut a write short. What follows a torn record is lost, so nothing may follow.
            self.close()
            raise OSError(28, f"short write to the spool in {self._folder}")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Layout(NamedTuple):
    """How records of one set of keys are packed: into a buffer that is used again and again."""

    pack_into: Callable[..., None]
    ids: tuple[int, ...]
    buffer: bytearray
    body: memoryview


class MetricSpool:
    """Appends records: one `write(2)` each, about 4 µs for 10 values."""

    def __init__(self, folder: Path) -> None:
        self._segments = _Segments(folder, "metrics", "bin")
        self._media = folder.parent / "media"
        self._seq = max((seq for path in self._segments.paths() for seq in _last_seq(path)), default=0)
        self._ids: dict[str, int] = {}
        self._named: set[str] = set()  # in the segment that is being written
        self._layouts: dict[tuple[str, ...], _Layout] = {}

    def write(self, step: int, keys: tuple[str, ...], values: Sequence[float]) -> None:
        """Append the values of `keys` at `step`. Raises ValueError for a key that cannot be."""
        layout = self._layouts.get(keys)
        if layout is None or self._segments.full():
            layout = self._prepare(keys)
        pack_into, ids, buffer, body = layout
        self._seq += 1
        pack_into(
            buffer, _HEAD_BYTES, _STEP, self._seq, step, time.time_ns() // 1000, len(keys), *ids, *values
        )
        _HEAD.pack_into(buffer, 0, len(buffer) - 4, zlib.crc32(body))
        self._segments.append(buffer)

    def histogram(self, step: int, key: str, edges: Sequence[float], counts: Sequence[int]) -> None:
        """Append a distribution: how many numbers lie between each two of `edges`, at most 512 counts."""
        if not 1 <= len(counts) <= _MOST_COUNTS or len(edges) != len(counts) + 1:
            raise ValueError(f"a histogram has 1 to {_MOST_COUNTS} counts and one edge more")
        if not all(low < high for low, high in pairwise(edges)) or min(counts) < 0:
            raise ValueError("the edges of a histogram ascend, and no count is below 0")
        form = f"<H{len(edges)}d{len(counts)}q"
        self._write_rich(step, key, _HISTOGRAM, struct.pack(form, len(counts), *edges, *counts))

    def text(self, step: int, key: str, text: str) -> None:
        """Append a text; what goes beyond 64 KiB is cut."""
        data = text.encode(errors="replace")
        if len(data) > _TEXT_BYTES:
            data = data[: _TEXT_BYTES - 4].decode(errors="ignore").encode() + "…".encode()
        self._write_rich(step, key, _TEXT, data)

    def picture(
        self,
        step: int,
        key: str,
        data: bytes,
        media_type: str,
        *,
        size: tuple[int, int] = (0, 0),
        caption: str = "",
    ) -> None:
        """Append a picture, the bytes of a PNG, JPEG or WebP file; `size` is width and height, if known."""
        if media_type not in _PICTURES:
            raise ValueError(f"a picture is one of {', '.join(_PICTURES)}, not {media_type}")
        digest = hashlib.sha256(data).hexdigest()
        path = self._media / digest
        if not path.exists():  # before the record: whoever reads that finds the file whole
            self._media.mkdir(exist_ok=True)
            hidden = self._media / f".{digest}.tmp"
            hidden.write_bytes(data)
            hidden.replace(path)
        facts = {"digest": digest, "media_type": media_type, "width": size[0], "height": size[1]}
        facts |= {"size_bytes": len(data), "caption": caption[:1000]}
        self._write_rich(step, key, _PICTURE, json.dumps(facts, ensure_ascii=False).encode())

    def close(self) -> None:
        """Close the segment; the next writer begins a new one."""
        self._segments.close()

    def _write_rich(self, step: int, key: str, kind: int, data: bytes) -> None:
        self._begin()
        key_id = self._name(key)
        self._seq += 1
        head = struct.pack("<BQqqHB", _RICH, self._seq, step, time.time_ns() // 1000, key_id, kind)
        body = head + data
        self._segments.append(_HEAD.pack(len(body) + 4, zlib.crc32(body)) + body)

    def _begin(self) -> None:
        """Start a segment where one is needed; each names every key before its first use there."""
        if self._segments.full():
            self._segments.roll(_MAGIC)
            self._layouts.clear()
            self._named.clear()

    def _name(self, key: str) -> int:
        name = key.encode()
        if not 1 <= len(name) <= _KEY_BYTES or not key.isprintable():
            raise ValueError(
                f"a metric's key has 1 to {_KEY_BYTES} bytes and no control characters, not {key[:80]!r}"
            )
        key_id = self._ids.setdefault(key, len(self._ids))
        if key_id > _MOST_IDS:
            raise ValueError(f"an attempt logs at most {_MOST_IDS + 1} different metrics")
        if key not in self._named:
            body = struct.pack("<BH", _KEY, key_id) + name
            self._segments.append(_HEAD.pack(len(body) + 4, zlib.crc32(body)) + body)
            self._named.add(key)
        return key_id

    def _prepare(self, keys: tuple[str, ...]) -> _Layout:
        if len(set(keys)) != len(keys):
            raise ValueError("a key comes twice")
        self._begin()
        ids = tuple(map(self._name, keys))
        form = struct.Struct(f"<BQqqH{len(keys)}H{len(keys)}d")
        buffer = bytearray(_HEAD_BYTES + form.size)
        layout = _Layout(form.pack_into, ids, buffer, memoryview(buffer)[_HEAD_BYTES:])
        self._layouts[keys] = layout
        return layout


def _last_seq(path: Path) -> Iterator[int]:
    """The sequence numbers of the whole step records of a segment; a torn tail ends the reading."""
    data = path.read_bytes()
    at = len(_MAGIC)
    while at + _HEAD_BYTES < len(data):
        length, crc = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD_BYTES : at + 4 + length]
        if len(body) != length - 4 or zlib.crc32(body) != crc:
            return
        if body[0] in (_STEP, _RICH):
            yield int.from_bytes(body[1:9], "little")
        at += 4 + length


class EventSpool:
    """Appends events, one `write(2)` a line. Checkpoints speak from their own thread, hence the lock."""

    def __init__(self, folder: Path) -> None:
        self._segments = _Segments(folder, "events", "jsonl")
        self._lock = threading.Lock()
        self._seq = max((seq for path in self._segments.paths() for seq in _event_seqs(path)), default=0)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event; `fields` are those of its type."""
        with self._lock:
            if self._segments.full():
                self._segments.roll()
            self._seq += 1
            record = {"seq": self._seq, "time": time.time(), "type": kind, **fields}
            self._segments.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        """Close the segment; the next writer begins a new one."""
        self._segments.close()


def _event_seqs(path: Path) -> Iterator[int]:
    for line in path.read_bytes().splitlines():
        try:
            yield int(json.loads(line)["seq"])
        except (ValueError, KeyError, TypeError):
            return


def log(reporter: Reporter, level: str, message: str) -> None:
    """Say something that people should see besides the raw log."""
    reporter.event("log", level=level, message=message)


@contextmanager
def span(reporter: Reporter, name: str, **attributes: Any) -> Iterator[dict[str, Any]]:
    """Report how long the block took; it may add attributes. A block that raises reports no span."""
    start = time.time()
    yield attributes
    reporter.event("span", name=name, start=start, end=time.time(), attributes=attributes)


class Silent:
    """The reporter of a rank that does not write: rank 0 says it all."""

    def event(self, kind: str, **fields: Any) -> None:
        """Say nothing."""


class StatusFile:
    """status.json, or status-N.json of rank N, replaced atomically.

    Not synced while training: it is worth nothing after a power loss.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        name = f"status-{rank}.json" if rank else "status.json"
        self._path = folder / name
        self._hidden = folder / f".{name}.tmp"
        self.due = 0.0
        self._last: dict[str, Any] = {}

    def write(self, fields: Mapping[str, Any]) -> None:
        """Replace the status; `due` is the monotonic time of the next one."""
        self._replace({**fields, "finished": None}, sync=False)
        self.due = time.monotonic() + STATUS_INTERVAL_SECONDS

    def finish(self, fields: Mapping[str, Any], finished: Mapping[str, str]) -> None:
        """Write the last status of the attempt, on the disk when this returns."""
        self._replace({**self._last, **fields, "finished": dict(finished)}, sync=True)

    def _replace(self, fields: Mapping[str, Any], *, sync: bool) -> None:
        known = dict.fromkeys(_STATUS_FIELDS) | {key: _finite(value) for key, value in fields.items()}
        record = known | {"version": 1, "pid": os.getpid(), "time": time.time()}
        self._last = record
        with self._hidden.open("w", encoding="utf-8") as file:
            json.dump(record, file, ensure_ascii=False, allow_nan=False)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        self._hidden.replace(self._path)
        if sync:
            descriptor = os.open(self._path.parent, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _finite(value: Any) -> Any:
    # JSON has no NaN; readers in other languages would refuse the file.
    return None if isinstance(value, float) and not math.isfinite(value) else value
