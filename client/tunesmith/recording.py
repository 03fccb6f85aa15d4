"""Records the run of a program of your own: metrics, lines of a log, checkpoints, and how it ended.

    import tunesmith

    run = tunesmith.init(experiment="mnist", config={"lr": 1e-3}, total_steps=1000)
    for step in range(1000):
        tunesmith.log({"train/loss": loss}, step=step)
    run.checkpoint("model.safetensors", metrics={"eval/loss": 0.3})

What is logged goes to the end of a file at once, and from there to the server in the background. So a server
that is away costs nothing: the rest is sent when it is back, or by `tunesmith sync`. At the program's end the
run ends too; an exception that nobody caught makes it FAILED.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.courier import Courier
from tunesmith.errors import Aborted, FailedPrecondition
from tunesmith.logged import LEVELS, histogram_of, key_of, numbers, step_of, text_of, wrong
from tunesmith.parcel import too_full
from tunesmith.pictures import picture_of
from tunesmith.spool import Pen, Spool

_LONGEST_LINE = 16_000
_END_SECONDS = 30.0


class Recording:
    """A run that is being recorded. Any thread may log. Make one with `tunesmith.init`.

    As a context manager it ends with its block; an exception makes the run FAILED.
    """

    def __init__(self, spool: Spool, profile: tuple[str, str, str] | None, name: str = "") -> None:
        """Begins to record. `profile` is address, token and project of the server; None: it hears later."""
        self._spool = spool
        self._pen = Pen(spool.folder)
        self._lock, self._packing = threading.Lock(), threading.Lock()
        self._pid = os.getpid()
        self._seq = self._offset = 0
        self._step = -1
        self._ended = False
        self._failure = ""
        self._courier = Courier(spool, profile, name or self.id) if profile is not None else None
        atexit.register(self._at_exit)
        if self._courier is not None:
            self._courier.start()

    @property
    def id(self) -> str:
        """The run's id."""
        return self._spool.identity.job_id

    @property
    def name(self) -> str:
        """The run's readable name, such as `mnist-k3f9`; its id while the server has not been reached."""
        return self._courier.name if self._courier is not None else self.id

    @property
    def folder(self) -> Path:
        """Where the records lie until they are stored."""
        return self._spool.folder

    @property
    def cancelled(self) -> bool:
        """True once somebody cancelled the run; the next `log` raises Aborted."""
        return self._courier is not None and self._courier.cancelled

    @property
    def ended(self) -> bool:
        """True once `finish` was called."""
        return self._ended

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Records numbers by key at a step; without one, at the step after the last.

        Values are numbers, or have `item()` like tensors with one element.

        Raises:
            InvalidArgument: a key or value is none.
            Aborted: somebody cancelled the run. Let it end the program.
        """
        clean = numbers(values)
        with self._lock:
            self._check()
            number = self._step + 1 if step is None else step_of(step)
            self._write({"step": number, "values": clean})
            self._step = max(self._step, number)

    def log_text(self, key: str, text: str, step: int | None = None) -> None:
        """Records a text, such as what a model answers; without a step, at the last. Cut at 64 KiB."""
        self._log_rich(key, {"text": text_of(text)}, step)

    def log_histogram(self, key: str, values: Any, step: int | None = None, *, buckets: int = 64) -> None:
        """Records how numbers are distributed: those of a list, array or tensor, or a pair (edges, counts).

        Raises:
            InvalidArgument: there is no finite number, or edges and counts do not fit.
        """
        self._log_rich(key, {"histogram": histogram_of(values, buckets)}, step)

    def log_image(self, key: str, image: Any, step: int | None = None, *, caption: str = "") -> None:
        """Records a picture: the path or bytes of a PNG, JPEG or WebP file, a figure, or an array of uint8.

        Raises:
            InvalidArgument: it is no picture, or larger than 16 MiB.
            ResourceExhausted: too much waits for the server already.
        """
        found = picture_of(image)
        self._spool.parcels.check_room("the picture", len(found.data))
        try:
            self._spool.keep_picture(found.digest, found.data)
        except OSError as error:
            raise too_full("the picture", error.strerror or str(error)) from None
        facts = {"digest": found.digest, "media_type": found.media_type, "size_bytes": len(found.data)}
        facts |= {"width": found.width, "height": found.height, "caption": str(caption)[:1000]}
        self._log_rich(key, {"picture": facts}, step)

    def checkpoint(
        self,
        path: str | Path,
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        keep: int = 0,
    ) -> None:
        """Saves a file, or a folder with all in it, as a checkpoint of the run; without a step, at the last.

        When this returns, its files are copied into the run's folder: they reach the server whatever becomes
        of the program. The server keeps them as they are and never loads them.

        Args:
            path: the file or folder. Any format: what loads pickles is nobody's business but yours.
            step: a later checkpoint of the same step takes the place of an earlier one.
            metrics: numbers noted with it; one of `eval/loss`, `eval_loss`, `val/loss`, `val_loss` is shown.
            keep: how many of the newest checkpoints the run keeps, beside pinned ones. 0: all.

        Raises:
            InvalidArgument: it cannot be read, or has more than 1,000 files.
            ResourceExhausted: the disk is full, or too much waits for the server already.
        """
        noted, kept = numbers(metrics) if metrics else {}, step_of(keep)
        with self._lock:
            self._check(even_cancelled=True)
            number = self._here(step)
        with self._packing:  # not under the lock: others log meanwhile
            self._spool.parcels.pack(Path(path), number, noted, kept)
        self._tell()

    def _log_rich(self, key: str, value: Mapping[str, Any], step: int | None) -> None:
        name = key_of(key)
        with self._lock:
            self._check()
            self._write({"step": self._here(step), "key": name, **value})

    def _here(self, step: int | None) -> int:
        return max(self._step, 0) if step is None else step_of(step)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._pen.write({"seq": self._seq + 1, "time": time.time_ns() // 1000, **record})
        self._seq += 1
        self._tell()

    def _tell(self) -> None:
        if self._courier is not None:
            self._courier.tell()

    def write(self, text: str, level: str = "info") -> None:
        """Records a text in the run's log, a line for each of its lines.

        Raises:
            InvalidArgument: `level` is none of debug, info, warning, error, critical.
        """
        word = level.upper()
        if word not in LEVELS:
            raise wrong("level", level, "is no level", f"use one of {', '.join(LEVELS).lower()}")
        with self._lock:
            self._check(even_cancelled=True)
            for line in text.splitlines() or [""]:
                plain = line[:_LONGEST_LINE].encode("utf-8", "replace").decode()
                self._pen.write(
                    {"offset": self._offset, "text": plain, "level": word, "step": max(self._step, 0)}
                )
                self._offset += len(plain.encode()) + 1
            self._tell()

    def handler(self, level: int = logging.INFO) -> logging.Handler:
        """Returns a handler that records what Python's `logging` gives it."""
        return _Handler(self, level)

    def finish(self, *, failed: bool = False, message: str = "", seconds: float = _END_SECONDS) -> bool:
        """Ends the run and sends what is left, for so many seconds at most, and as long as checkpoints move.
        Harmless when repeated.

        Tells whether the server has everything; if not, `tunesmith sync` sends the rest later.
        """
        with self._lock:
            if self._ended or os.getpid() != self._pid:
                return True
            self._ended = True
            self._pen.write({"end": {"failed": failed, "message": message[:4000]}})
            self._pen.close()
        atexit.unregister(self._at_exit)
        if self._courier is not None:
            self._courier.finish(seconds)
        return self._report()

    def note_failure(self, message: str) -> None:
        """Says of what the program dies: at its end the run is FAILED."""
        self._failure = message

    def _report(self) -> bool:
        if not self._spool.folder.exists():
            return True
        print(  # noqa: T201 - the program's own output is the only place left
            f"tunesmith: not all of run {self.name} has reached the server; "
            f"`tunesmith sync {self._spool.folder}` sends the rest",
            file=sys.stderr,
        )
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(failed=kind is not None, message=sentence(kind, error))

    def _check(self, *, even_cancelled: bool = False) -> None:
        if self._ended:
            raise FailedPrecondition(
                "RUN_NOT_BEGUN", "the run has ended", field="run", value=self.name, remedy="begin another"
            )
        if os.getpid() != self._pid:
            raise FailedPrecondition(
                "RUN_NOT_BEGUN",
                "the run belongs to the process this one was forked from",
                field="run",
                value=self.name,
                remedy="log in the process that called tunesmith.init",
            )
        if self.cancelled and not even_cancelled:
            raise Aborted(
                "RUN_CANCELLED",
                f"somebody cancelled run {self.name}",
                field="run",
                value=self.name,
                remedy="let the program end",
            )

    def _at_exit(self) -> None:
        self.finish(failed=bool(self._failure), message=self._failure)


def sentence(kind: type[BaseException] | None, error: BaseException | None) -> str:
    """Returns what a run failed of."""
    return f"{kind.__name__}: {error}"[:4000] if kind is not None else ""


class _Handler(logging.Handler):
    """Gives records of `logging` to a run."""

    def __init__(self, recording: Recording, level: int) -> None:
        super().__init__(level)
        self._recording = recording

    def emit(self, record: logging.LogRecord) -> None:
        """Records one."""
        try:
            level = record.levelname.lower()
            self._recording.write(self.format(record), level if level.upper() in LEVELS else "info")
        except Exception:
            self.handleError(record)
