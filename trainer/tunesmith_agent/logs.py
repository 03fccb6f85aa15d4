"""Reads a trainer's log onwards in whole lines and packs them into chunks."""

import io
import re
import time
from pathlib import Path

from tunesmith.api.metrics.v1 import events_pb2

_CHUNK_BYTES = 256 * 1024
_LONGEST_LINE = 16 * 1024
_CUT = " …[cut]"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class LogTail:
    """A log as chunks. Offsets count bytes of the file, so a chunk sent twice is known as the same."""

    def __init__(self, path: Path, job_id: str, epoch: int, rank: int) -> None:
        self._path, self._job_id, self._epoch, self._rank = path, job_id, epoch, rank
        self.offset = 0

    def read(self, ended: bool) -> events_pb2.LogChunk | None:
        """Returns the next lines. A line without its end waits, unless all has `ended` or it is too long."""
        try:
            with self._path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return None
        whole = data.rfind(b"\n") + 1
        if whole == 0 and (ended or len(data) >= _LONGEST_LINE):
            whole = len(data)
        if whole == 0:
            return None
        if ended and len(data) < _CHUNK_BYTES:
            whole = len(data)
        chunk = events_pb2.LogChunk(
            job_id=self._job_id,
            epoch=self._epoch,
            rank=self._rank,
            offset=self.offset,
            num_bytes=whole,
            time_us=time.time_ns() // 1000,
        )
        at = self.offset
        for line in io.BytesIO(data[:whole]):
            chunk.lines.append(_clean(line))
            chunk.line_offsets.append(at)
            at += len(line)
        self.offset += whole
        return chunk


def _clean(line: bytes) -> str:
    """Returns a line as text: cut, without colours or control characters; of a progress bar its last form."""
    text = line.rstrip(b"\r\n")[-(1 << 20) :].rpartition(b"\r")[2]
    shown = _CONTROL.sub("", text[: _LONGEST_LINE + 1].decode(errors="replace"))
    return shown if len(text) <= _LONGEST_LINE else shown[:_LONGEST_LINE] + _CUT
