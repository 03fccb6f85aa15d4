"""Reads a trainer's log onwards in whole lines and packs them into chunks.

Each line comes with its level, the step it was written after, and without secrets. Of a line without end only
the beginning is shown, however long it is: the rest is counted, not read into memory at once.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_agent.levels import LevelReader
from tunesmith_agent.redaction import Redactor

_CHUNK_BYTES = 256 * 1024
_MOST_LINES = 8000  # 14 bytes each beside its text: a message may have 1 MB
_LONGEST_LINE = 16 * 1024
_ENOUGH_BYTES = _LONGEST_LINE + 8 * 1024  # a secret that begins within a line's first 16 KiB ends before
_CUT = " …[cut]"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class LogTail:
    """A log as chunks. Offsets count bytes of the file, so a chunk sent twice is known as the same.

    Args:
        step: tells the step after which is written what is read now.
    """

    def __init__(
        self,
        path: Path,
        job_id: str,
        epoch: int,
        rank: int,
        redactor: Redactor | None = None,
        step: Callable[[], int] = lambda: 0,
    ) -> None:
        self._path, self._job_id, self._epoch, self._rank = path, job_id, epoch, rank
        self._redactor, self._step = redactor or Redactor(), step
        self._enough = _ENOUGH_BYTES + self._redactor.longest
        self._levels, self._reached = LevelReader(), 0
        self.offset = 0

    def read(self, ended: bool) -> events_pb2.LogChunk | None:
        """Returns the next lines. A line without its end waits, unless all has `ended` or it is too long."""
        try:
            with self._path.open("rb") as file:
                file.seek(max(self.offset - 1, 0))
                before = file.read(1) if self.offset else b"\n"
                data = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return None
        whole = self._whole(data, ended)
        if whole == 0:
            return None
        if self.offset != self._reached:  # sent again from before, or by an agent that starts here
            self._levels = LevelReader()
        chunk = events_pb2.LogChunk(
            job_id=self._job_id,
            epoch=self._epoch,
            rank=self._rank,
            offset=self.offset,
            num_bytes=whole,
            time_us=time.time_ns() // 1000,
        )
        self._fill(chunk, data[:whole], inside=before not in (b"\n", b"\r"))
        self.offset += whole
        self._reached = self.offset
        return chunk

    def _whole(self, data: bytes, ended: bool) -> int:
        """How many bytes to take: to the last line's end, or of a line without one what there is."""
        whole = len(data) if ended and len(data) < _CHUNK_BYTES else data.rfind(b"\n") + 1
        if whole == 0 and (ended or len(data) >= self._enough):
            # A progress bar is written over and over in its line: each form of it is a line of its own.
            whole = data.rfind(b"\r") + 1 or len(data)
        surplus = data[:whole].split(b"\n", _MOST_LINES)[_MOST_LINES:]
        return whole - len(surplus[0]) if surplus else whole

    def _fill(self, chunk: events_pb2.LogChunk, data: bytes, inside: bool) -> None:
        at = chunk.offset
        lines: list[str] = []
        for line in _lines(data):
            # Of a line whose beginning is shown the rest is not, but for the next form of a progress bar.
            if not inside or b"\r" in line.rstrip(b"\r\n"):
                lines.append(_text(line))
                chunk.line_offsets.append(at)
            inside = False
            at += len(line)
        # No secret reaches over a line's end: all lines are cleaned in one go, and cut only then.
        cleaned = self._redactor.clean("\n".join(lines)).split("\n") if lines else []
        chunk.lines.extend(map(_short, cleaned))
        chunk.levels.extend(map(self._levels.read, chunk.lines))
        chunk.steps.extend([self._step()] * len(lines))


def _lines(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _text(line: bytes) -> str:
    """Returns a line as text without colours or control characters; of a progress bar its last form."""
    shown = line.rstrip(b"\r\n").rpartition(b"\r")[2]
    return _CONTROL.sub("", shown.decode(errors="replace"))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_LINE else text[:_LONGEST_LINE] + _CUT
