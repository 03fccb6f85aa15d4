"""What the agent wants now: the control file and SIGTERM."""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from pathlib import Path
from types import FrameType


class Wish(StrEnum):
    """The words of the control file."""

    RUN = "run"
    CHECKPOINT = "checkpoint"
    STOP = "stop"


class StopWanted(Exception):
    """The run is to write a checkpoint and end."""


class Control:
    """Reads the control file when it has changed; one `stat` a look, about 1 µs."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "control")
        self._seen: tuple[int, int] | None = None
        self._terminated = False
        self.stop = False
        self.checkpoint = False

    def listen(self) -> None:
        """Take SIGTERM as `stop`. The handler only sets a flag: it may run between any two instructions."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def look(self) -> None:
        """Bring `stop` and `checkpoint` up to date."""
        try:
            stat = os.stat(self._path)  # noqa: PTH116 - a Path would double the cost of the most frequent call
        except OSError:
            self.stop = self._terminated
            return
        # Renames give a new inode, so the same word written again is a new wish.
        seen = (stat.st_ino, stat.st_mtime_ns)
        if seen != self._seen:
            self._seen = seen
            self._read()
        self.stop = self.stop or self._terminated

    def _read(self) -> None:
        try:
            word = Path(self._path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return
        self.stop = word == Wish.STOP
        self.checkpoint = self.checkpoint or word == Wish.CHECKPOINT

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True
