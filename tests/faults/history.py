"""What was promised to whom: one line a fact, on the disk before the next call is made."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class History:
    """An append-only file of what clients were told and what faults were made; several threads write."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, kind: str, **facts: Any) -> None:
        """Appends one fact and syncs it."""
        line = json.dumps({"time": time.time(), "kind": kind, **facts}) + "\n"
        with self._lock:
            os.write(self._descriptor, line.encode())
            os.fsync(self._descriptor)

    def read(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Yields the facts of some kinds in their order."""
        for line in self._path.read_text().splitlines():
            fact: dict[str, Any] = json.loads(line)
            if fact["kind"] in kinds:
                yield fact

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)
