"""The run of this program: `tunesmith.init` begins it, `tunesmith.log` and `tunesmith.finish` mean it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from tunesmith.logged import step_of, texts, wrong
from tunesmith.parcel import Parcels
from tunesmith.profile import resolve
from tunesmith.recording import Recording, sentence
from tunesmith.spool import Identity, Spool, new_id

# So that checkpoints of a server that is away for long do not fill the disk.
_MOST_WAITING_BYTES = 64 << 30

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
    max_waiting_bytes: int = _MOST_WAITING_BYTES,
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
        max_waiting_bytes: how much of checkpoints may wait in the folder. Default: 64 GiB.

    Raises:
        Unauthenticated: the token is missing or wrong. A server that is away is no error.
        FailedPrecondition: a run of this program has not ended yet, or the one to take up has.
    """
    global _present
    if _present is not None and not _present.ended:
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
        config=texts(config or {}),
        labels={str(key): str(value) for key, value in (labels or {}).items()},
        host=platform.node()[:255],
        program=shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])[:2000],
        total_steps=step_of(total_steps),
    )
    chosen = Path(folder or os.environ.get("TUNESMITH_RUNS_DIR") or "tunesmith-runs").absolute()
    if profile is None:
        if resume:
            raise wrong("resume", resume, "needs the server", "leave out `offline`")
        spool, name = Spool.create(chosen, identity), ""
        connection = None
    else:
        connection = (profile.address, profile.token, profile.project)
        spool, name = _begin(connection, chosen, identity, resume)
    spool.parcels = Parcels(spool.folder, max_waiting_bytes)
    _present = Recording(spool, connection, name)
    _hook_exceptions()
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
    if _present is None or _present.ended:
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


def _program_name() -> str:
    """Returns the program's name in the letters an experiment may have."""
    stem = Path(sys.argv[0] or "").stem.lower()
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem)
    return plain.strip("-")[:40].rstrip("-") or "run"


def _hook_exceptions() -> None:
    """Sees to it that an exception nobody catches makes the run FAILED."""
    global _hooked
    if _hooked:
        return
    _hooked = True
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if _present is not None:
            _present.note_failure(sentence(kind, error))
        before(kind, error, trace)

    sys.excepthook = hook
