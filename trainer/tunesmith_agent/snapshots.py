"""Folders in memory for the trainers' snapshots: ours, so that they outlive a trainer and its attempt."""

import contextlib
import hashlib
import logging
import math
import shutil
import time
from collections.abc import Collection
from pathlib import Path

log = logging.getLogger(__name__)
_KEPT_SECONDS = 900.0  # for a next attempt on this node; memory is dearer than the steps since a checkpoint


class SnapshotMemory:
    """One folder a job below a root in shared memory, named after the node's home so that agents on one
    machine do not meet."""

    def __init__(self, root: str, home: Path) -> None:
        mark = hashlib.sha256(str(home).encode()).hexdigest()[:12]
        self._root = Path(root) / f"tunesmith-{mark}" if root and Path(root).is_dir() else None

    def folder(self, job_id: str) -> Path | None:
        """Makes and returns a job's folder; None when there is no such memory."""
        if self._root is None:
            return None
        path = self._root / job_id
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            log.warning("no memory for snapshots", extra={"folder": str(path), "error": str(error)})
            return None
        return path

    def drop(self, job_id: str) -> None:
        """Gives a job's memory back: nobody will go on from it on this node."""
        if self._root is not None:
            shutil.rmtree(self._root / job_id, ignore_errors=True)
            self._leave()

    def tidy(self, running: Collection[str]) -> None:
        """Drops what no attempt has touched for a while: its job went on elsewhere, or never."""
        if self._root is None or not self._root.is_dir():
            return
        for path in self._root.iterdir():
            if path.name not in running and _idle_seconds(path) >= _KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        self._leave()

    def _leave(self) -> None:
        """Removes the node's folder when no job has one: an agent that never comes back leaves nothing."""
        assert self._root is not None
        with contextlib.suppress(OSError):  # it holds something, or is not there
            self._root.rmdir()


def _idle_seconds(folder: Path) -> float:
    """Seconds since a job's memory was written; endless when there is none to go on from."""
    try:
        return min((time.time() - item.stat().st_mtime for item in folder.iterdir()), default=math.inf)
    except FileNotFoundError:  # it changes right now
        return 0.0
