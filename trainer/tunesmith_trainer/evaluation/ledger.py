"""What was judged so far, a line a row and target: it outlives the trainer, and goes with checkpoints.

The file lies in memory that outlives the process (or in the run folder where there is none), one an attempt.
An attempt begins with the longest whole file that belongs to it: of an earlier attempt here, or of the
checkpoint it was given.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith_trainer import artifact
from tunesmith_trainer.artifact import DamagedError
from tunesmith_trainer.report import Reporter, log
from tunesmith_trainer.run import Run

FILE = "judged.jsonl"
SUFFIX = ".judged"
_SYNC_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Judged:
    """One row under one target."""

    target: int
    row: int
    text: str
    num_tokens: int
    scores: Mapping[str, float] = field(default_factory=dict)
    stats: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


class Ledger:
    """Appends what is judged; `found` is what was there at the start."""

    def __init__(self, run: Run, identity: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._run = run
        self._head: dict[str, Any] = {
            "version": 1,
            "identity": dict(identity),
            "environment": dict(environment),
        }
        folder = run.snapshots if run.snapshots is not None and run.snapshots.is_dir() else run.folder
        self.path = folder / f"{run.epoch}{SUFFIX}"
        self.found: list[Judged] = []
        self.origin = ""
        self.drift: list[str] = []
        self._number = 0
        self._synced = time.monotonic()
        self._take_up(folder)
        self._file = self._begin(folder)

    def add(self, judged: Sequence[Judged]) -> None:
        """Appends what a batch gave; on the disk now and then, in memory that outlives us at once."""
        self._file.write(b"".join(_line(asdict(item)) for item in judged))
        self._file.flush()
        self._number += len(judged)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def checkpoint(self, reporter: Reporter, keep: int) -> None:
        """Writes what is judged so far as a checkpoint, from which any node can go on."""
        name = f"checkpoints/step-{self._number:08d}"
        identity = self._head["identity"]
        properties = {"holds": "evaluation", "step": str(self._number), **_texts(identity)}
        data = self.path.read_bytes()
        made = artifact.write(
            self._run.folder / name,
            "checkpoint",
            properties,
            lambda folder: _write(folder / FILE, data),
        )
        reporter.event(
            "checkpoint", path=name, step=self._number, digest=made.digest, size_bytes=made.size_bytes
        )
        _remove_older(self._run.folder / "checkpoints", keep)

    def close(self) -> None:
        """Closes the file; it stays for a next attempt until the agent removes it."""
        self._file.close()

    def _take_up(self, folder: Path) -> None:
        """Finds the longest file that belongs to this evaluation."""
        places: list[tuple[str, Callable[[], Path]]] = [
            ("snapshot", lambda path=path: path)  # type: ignore[misc]
            for path in sorted(folder.glob(f"*{SUFFIX}"))
        ]
        if self._run.checkpoint is not None:
            places.append(("checkpoint", self._given))
        for origin, place in places:
            try:
                head, judged = read(place())
            except (OSError, ValueError, KeyError, TypeError, DamagedError):
                continue
            if head.get("identity") == self._head["identity"] and len(judged) > len(self.found):
                self.found, self.origin = judged, origin
                self.drift = _differences(head.get("environment") or {}, self._head["environment"])
        self._number = len(self.found)

    def _given(self) -> Path:
        assert self._run.checkpoint is not None
        artifact.verify(self._run.checkpoint.path, self._run.checkpoint.digest)
        return self._run.checkpoint.path / FILE

    def _begin(self, folder: Path) -> Any:
        """Writes what was found under this attempt's name, whole or not at all, and removes the others."""
        hidden = self.path.with_name(f".{self.path.name}.tmp")
        _write(hidden, b"".join([_line(self._head), *(_line(asdict(item)) for item in self.found)]))
        hidden.rename(self.path)
        for path in folder.glob(f"*{SUFFIX}"):
            if path != self.path:
                path.unlink(missing_ok=True)
        return self.path.open("ab")


def read(path: Path) -> tuple[dict[str, Any], list[Judged]]:
    """The head and the whole lines of a file; a torn line at its end was never written."""
    lines = _lines(path)
    head = next(lines, None)
    if not isinstance(head, dict):
        raise ValueError(f"{path} has no head")
    return head, [Judged(**line) for line in lines]


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                return


def _line(value: object) -> bytes:
    return artifact.canonical_json(value) + b"\n"


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _texts(identity: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in identity.items() if isinstance(value, str)}


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = sorted({*before, *now})
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _remove_older(folder: Path, keep: int) -> None:
    found = sorted(path.parent for path in folder.glob(f"step-*/{artifact.MANIFEST}"))
    for path in found[: -1 - keep]:
        shutil.rmtree(path, ignore_errors=True)


def drift(reporter: Reporter, ledger: Ledger) -> None:
    """Tells where the attempt goes on, and what differs from the one before."""
    if ledger.found:
        log(reporter, "info", f"goes on behind {len(ledger.found):,} judged answers ({ledger.origin})")
    if ledger.drift:
        reporter.event("drift", items=ledger.drift)
