"""Records the run of a program of your own: metrics, lines of a log, and how it ended.

    import tunesmith

    tunesmith.init(experiment="mnist", config={"lr": 1e-3}, total_steps=1000)
    for step in range(1000):
        tunesmith.log({"train/loss": loss}, step=step)

What is logged goes to the end of a file at once, and from there to the server in the background. So a server
that is away costs nothing: the rest is sent when it is back, or by `tunesmith sync`. At the program's end the
run ends too; an exception that nobody caught makes it FAILED.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    TunesmithError,
    Unavailable,
)
from tunesmith.profile import resolve
from tunesmith.spool import Identity, Pen, Spool, new_id

_MOST_KEYS = 5000
_LONGEST_KEY = 256
_LONGEST_LINE = 16_000
_LONGEST_STEP = 2**53
_FLUSH_SECONDS = 0.2
_RENEW_SECONDS = 10.0
_LONGEST_PAUSE = 5.0
_END_SECONDS = 30.0
# What passes: the server is away or slow, was asked by two at once, or the project is full for now.
_PASSING = (Unavailable, DeadlineExceeded, Aborted, ResourceExhausted)
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Recording:
    """A run that is being recorded. Any thread may log. Make one with `tunesmith.init`.

    As a context manager it ends with its block; an exception makes the run FAILED.
    """

    def __init__(self, spool: Spool, profile: tuple[str, str, str] | None) -> None:
        self._spool, self._profile = spool, profile
        self._pen = Pen(spool.folder)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._seq = self._offset = 0
        self._step = -1
        self._wake, self._stop = threading.Event(), threading.Event()
        self._renewed = float("-inf")
        self._ended = self._cancelled = self._warned = False
        self._failure = ""
        self._name = ""
        self._thread = threading.Thread(target=self._work, name="tunesmith-recording", daemon=True)

    @property
    def id(self) -> str:
        """The run's id."""
        return self._spool.identity.job_id

    @property
    def name(self) -> str:
        """The run's readable name, such as `mnist-k3f9`; its id while the server has not been reached."""
        return self._name or self.id

    @property
    def folder(self) -> Path:
        """Where the records lie until they are stored."""
        return self._spool.folder

    @property
    def cancelled(self) -> bool:
        """True once somebody cancelled the run; the next `log` raises Aborted."""
        return self._cancelled

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Records numbers by key at a step; without one, at the step after the last.

        Values are numbers, or have `item()` like tensors with one element.

        Raises:
            InvalidArgument: a key or value is none.
            Aborted: somebody cancelled the run. Let it end the program.
        """
        clean = _numbers(values)
        with self._lock:
            self._check()
            number = self._step + 1 if step is None else _step(step)
            record = {"seq": self._seq + 1, "step": number, "time": time.time_ns() // 1000, "values": clean}
            self._pen.write(record)
            self._seq, self._step = self._seq + 1, max(self._step, number)

    def write(self, text: str, level: str = "info") -> None:
        """Records a text in the run's log, a line for each of its lines.

        Raises:
            InvalidArgument: `level` is none of debug, info, warning, error, critical.
        """
        word = level.upper()
        if word not in _LEVELS:
            raise _wrong("level", level, "is no level", f"use one of {', '.join(_LEVELS).lower()}")
        with self._lock:
            self._check(even_cancelled=True)
            for line in text.splitlines() or [""]:
                plain = line[:_LONGEST_LINE].encode("utf-8", "replace").decode()
                self._pen.write(
                    {"offset": self._offset, "text": plain, "level": word, "step": max(self._step, 0)}
                )
                self._offset += len(plain.encode()) + 1

    def handler(self, level: int = logging.INFO) -> logging.Handler:
        """Returns a handler that records what Python's `logging` gives it."""
        return _Handler(self, level)

    def finish(self, *, failed: bool = False, message: str = "", seconds: float = _END_SECONDS) -> bool:
        """Ends the run and sends what is left, for so many seconds at most. Harmless when repeated.

        Tells whether the server has everything; if not, `tunesmith sync` sends the rest later.
        """
        global _present
        with self._lock:
            if self._ended or os.getpid() != self._pid:
                return True
            self._ended = True
            self._pen.write({"end": {"failed": failed, "message": message[:4000]}})
            self._pen.close()
        if _present is self:
            _present = None
        atexit.unregister(self._at_exit)
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return self._report()

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
        self.finish(failed=kind is not None, message=_sentence(kind, error))

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
        if self._cancelled and not even_cancelled:
            raise Aborted(
                "RUN_CANCELLED",
                f"somebody cancelled run {self.name}",
                field="run",
                value=self.name,
                remedy="let the program end",
            )

    def _start(self, *, offline: bool) -> None:
        atexit.register(self._at_exit)
        _hook_exceptions()
        if not offline:
            self._thread.start()

    def _at_exit(self) -> None:
        self.finish(failed=bool(self._failure), message=self._failure)

    def _work(self) -> None:
        """The background thread: sends and renews until the run has ended and all is stored."""
        from tunesmith.client import Client
        from tunesmith.sending import Sender

        assert self._profile is not None
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        with Client(*self._profile) as client:
            sender, pause = Sender(client, self._spool), _FLUSH_SECONDS
            while True:
                ending = self._stop.is_set()
                try:
                    self._round(sender)
                    pause = _FLUSH_SECONDS
                    if ending:
                        said = self._spool.sent.end or {}
                        sender.finish(bool(said.get("failed")), str(said.get("message", "")))
                        self._spool.remove()
                        return
                except _PASSING as error:
                    self._warn(f"{error.message}; it goes on without the server")
                    pause = min(2 * pause, _LONGEST_PAUSE)
                except TunesmithError as error:
                    self._give_up(error)
                    return
                if not ending:  # at the end it tries on until `finish` waits no longer
                    self._wake.wait(pause)
                else:
                    time.sleep(_FLUSH_SECONDS)

    def _round(self, sender: Any) -> None:
        if not self._spool.sent.epoch:
            sender.begin()
            self._renewed = time.monotonic()
        self._name = sender.job.display_name if sender.job is not None else self._name
        self._renew(sender)  # first: records that are not taken do not mean that the program is gone
        while sender.send():
            self._renew(sender)

    def _renew(self, sender: Any) -> None:
        if time.monotonic() - self._renewed >= _RENEW_SECONDS and not self._stop.is_set():
            sender.renew()
            self._renewed = time.monotonic()
            self._cancelled = sender.cancelled

    def _give_up(self, error: TunesmithError) -> None:
        self._warn(f"{error.message}; its records stay in {self._spool.folder}", again=True)

    def _warn(self, words: str, *, again: bool = False) -> None:
        if not self._warned or again:
            self._warned = True
            print(f"tunesmith: run {self.name}: {words}", file=sys.stderr)  # noqa: T201 - as above


_present: Recording | None = None
_hooked = False


def init(
    *,
    experiment: str = "",
    config: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    total_steps: int = 0,
    resume: str = "",
    project: str | None = None,
    address: str | None = None,
    token: str | None = None,
    folder: str | Path | None = None,
    offline: bool = False,
) -> Recording:
    """Begins a run of this program and returns it; `tunesmith.log` and `tunesmith.finish` then mean it.

    Args:
        experiment: what the run belongs to; its name begins with it. Default: the program's name.
        config: settings to filter and compare runs by; nested mappings become paths such as `optimizer.lr`.
        labels: labels for filters and for people.
        total_steps: steps in all, if that is known: progress and time left are shown then.
        resume: id or readable name of a run to take up, whose program stopped without an end.
        project, address, token: as of `tunesmith.Client`.
        folder: where records lie until they are stored. Default: TUNESMITH_RUNS_DIR, else `tunesmith-runs`.
        offline: talk to no server; `tunesmith sync` sends everything later.

    Raises:
        Unauthenticated: the token is missing or wrong. A server that is away is no error.
        FailedPrecondition: a run of this program has not ended yet, or the one to take up has.
    """
    global _present
    if _present is not None:
        raise FailedPrecondition(
            "STATE_CONFLICT",
            "this program records a run already",
            field="run",
            value=_present.name,
            remedy="end it with tunesmith.finish() first",
        )
    profile = None if offline else resolve(address, token, project)
    identity = Identity(
        job_id=new_id(),
        project=profile.project if profile else project or os.environ.get("TUNESMITH_PROJECT", "default"),
        experiment=experiment or _program_name(),
        address=profile.address if profile else "",
        config=_texts(config or {}),
        labels={str(key): str(value) for key, value in (labels or {}).items()},
        host=platform.node()[:255],
        program=shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])[:2000],
        total_steps=_step(total_steps),
    )
    chosen = Path(folder or os.environ.get("TUNESMITH_RUNS_DIR") or "tunesmith-runs").absolute()
    if profile is None:
        if resume:
            raise _wrong("resume", resume, "needs the server", "leave out `offline`")
        spool, name = Spool.create(chosen, identity), ""
        connection = None
    else:
        connection = (profile.address, profile.token, profile.project)
        spool, name = _begin(connection, chosen, identity, resume)
    _present = Recording(spool, connection)
    _present._name = name
    _present._start(offline=offline)
    return _present


def log(values: Mapping[str, Any], step: int | None = None) -> None:
    """Records numbers by key at a step of the run that `tunesmith.init` began. See `Recording.log`."""
    current().log(values, step)


def finish(*, failed: bool = False, message: str = "") -> bool:
    """Ends the run that `tunesmith.init` began. See `Recording.finish`."""
    return current().finish(failed=failed, message=message)


def current() -> Recording:
    """Returns the run that `tunesmith.init` began.

    Raises:
        FailedPrecondition: there is none.
    """
    if _present is None:
        raise FailedPrecondition(
            "RUN_NOT_BEGUN",
            "no run was begun in this program",
            field="run",
            remedy="call tunesmith.init(…) first",
        )
    return _present


def _begin(
    connection: tuple[str, str, str], folder: Path, identity: Identity, resume: str
) -> tuple[Spool, str]:
    """Makes the folder and begins the run, so that what is wrong with it is said at once; a server that is
    away may come later."""
    from dataclasses import replace

    from tunesmith.client import Client
    from tunesmith.sending import Sender

    with Client(*connection) as client:
        if resume:
            identity = replace(identity, job_id=client.jobs.get(resume).id)
        spool = Spool.create(folder, identity)
        try:
            return spool, Sender(client, spool).begin().display_name
        except (Unavailable, DeadlineExceeded):
            return spool, ""
        except BaseException:
            spool.remove()
            raise


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    clean: dict[str, float] = {}
    for key, value in values.items():
        if type(value) is not float:
            value = _number(key, value)
        if type(key) is not str or not 1 <= len(key) <= _LONGEST_KEY or not key.isprintable():
            raise _wrong("values", key, "is no name of a metric", "use 1 to 256 printable characters")
        clean[key] = value
    if not 1 <= len(clean) <= _MOST_KEYS:
        raise _wrong("values", len(clean), "values are none or too many", f"log 1 to {_MOST_KEYS} at once")
    return clean


def _number(key: str, value: Any) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise _wrong(f"values[{key}]", value, "is no number", "log numbers, or tensors of one") from None


def _step(step: Any) -> int:
    try:
        number = int(step)
    except (TypeError, ValueError, OverflowError):
        raise _wrong("step", step, "is no whole number", "count steps from 0") from None
    if not 0 <= number <= _LONGEST_STEP:
        raise _wrong("step", step, "is below 0 or too large", "count steps from 0")
    return number


def _texts(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _texts(value, f"{path}.")
        elif value is not None:
            flat[path] = ("true" if value else "false") if isinstance(value, bool) else str(value)[:2000]
    return flat


def _program_name() -> str:
    """Returns the program's name in the letters an experiment may have."""
    stem = Path(sys.argv[0] or "").stem.lower()
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem)
    return plain.strip("-")[:40].rstrip("-") or "run"


def _sentence(kind: type[BaseException] | None, error: BaseException | None) -> str:
    return f"{kind.__name__}: {error}"[:4000] if kind is not None else ""


def _hook_exceptions() -> None:
    """Sees to it that an exception nobody catches makes the run FAILED."""
    global _hooked
    if _hooked:
        return
    _hooked = True
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if _present is not None:
            _present._failure = _sentence(kind, error)
        before(kind, error, trace)

    sys.excepthook = hook


class _Handler(logging.Handler):
    """Gives records of `logging` to a run."""

    def __init__(self, recording: Recording, level: int) -> None:
        super().__init__(level)
        self._recording = recording

    def emit(self, record: logging.LogRecord) -> None:
        """Records one."""
        try:
            level = record.levelname.lower()
            self._recording.write(self.format(record), level if level.upper() in _LEVELS else "info")
        except Exception:
            self.handleError(record)


def _wrong(field: str, value: object, problem: str, remedy: str) -> InvalidArgument:
    return InvalidArgument("FIELD_INVALID", f"{field} {problem}", field=field, value=value, remedy=remedy)
