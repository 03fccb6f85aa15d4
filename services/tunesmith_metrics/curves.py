"""Curves in memory: merged once, then only what was stored since is read.

A curve of a million points takes some 50 ms to decode and merge, and less than one to reduce. So the curves
asked for last stay, within a bound of bytes, with the revision up to which they are known. A job's requests
come one after another: of many that ask for the same at once, the first reads and the others find.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith_kit.db import Database, current_revision
from tunesmith_metrics import store
from tunesmith_metrics.series import Curve
from tunesmith_metrics.tables import METRIC_KEYS, REVISION, SUMMARIES

T = TypeVar("T")
_PAGE_BYTES = 4 * 1024 * 1024  # of what was stored since
_GROUP_POINTS = 2_000_000  # curves read in one go; some 40 bytes a point
_TOGETHER = 10  # jobs in one session: it and its first question cost as much as a curve that is there
_SHARED = ("steps", "times_us", "epochs", "ranks")
_Array = NDArray[Any]


@dataclass(slots=True)
class _Kept:
    """What is kept of a job: curves as they were at a revision, those used last at the end."""

    revision: int
    curves: OrderedDict[str, Curve] = field(default_factory=OrderedDict)
    size: int = 0
    busy: bool = False


class Reader:
    """The curves of one job as a request sees them. `revision`: they are complete up to there."""

    def __init__(
        self, session: Session, job_id: str, kept: _Kept, sizes: Mapping[str, int], keep: Callable[[], None]
    ) -> None:
        self._session, self._job_id, self._kept = session, job_id, kept
        self.sizes, self._keep = sizes, keep
        self._absent: set[str] = set()

    def one(self, key: str) -> Curve | None:
        """Returns a curve; None when there is none."""
        return next((curve for _, curve in self.each([key])), None)

    def each(self, keys: Iterable[str] | None = None) -> Iterator[tuple[str, Curve]]:
        """Yields the curves named, or all, by key. They come one after another and need not fit together."""
        curves, wanted = self._kept.curves, sorted(self.sizes if keys is None else set(keys))
        for at, key in enumerate(wanted):
            if key not in curves and key not in self._absent:
                self._read([each for each in wanted[at:] if each not in curves])
            if key not in curves:
                continue  # there is no such metric
            curves.move_to_end(key)
            curve = curves[key]
            self._keep()
            yield key, curve

    def _read(self, keys: Sequence[str]) -> None:
        some = group(keys, self.sizes)
        read = store.curves(self._session, self._job_id, frozenset(some))
        self._absent.update(set(some) - read.keys())
        columns = _Columns(self._kept.curves.values())
        self._kept.curves.update({name: columns.shared(curve) for name, curve in read.items()})


class Curves:
    """The curves of jobs, out of memory where they are there, else out of the store."""

    def __init__(self, db: Database, max_bytes: int) -> None:
        self._db, self._max_bytes = db, max_bytes
        self._jobs: OrderedDict[str, _Kept] = OrderedDict()
        self._size = 0
        self._turns: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of all curves kept."""
        with self._lock:
            return self._size

    def forget(self, job_id: str) -> None:
        """Drops what is kept of a job."""
        with self._lock:
            gone = self._jobs.pop(job_id, None)
            self._size -= gone.size if gone else 0

    async def visit(self, project: str, job_id: str, work: Callable[[Reader], T]) -> tuple[T, int]:
        """Runs `work` in a thread over the curves of a job and returns what it returned, with the revision up
        to which they are complete. A job of another project has none."""
        async with _Turn(self._turns, job_id):
            return await self._db.read(lambda session: self._visit(session, project, job_id, work))

    async def visit_each(
        self, jobs: Sequence[tuple[str, str]], work: Callable[[Reader], T]
    ) -> AsyncIterator[tuple[T, int]]:
        """The same for many jobs (project and id), in their order, some at a time."""
        for start in range(0, len(jobs), _TOGETHER):
            some = jobs[start : start + _TOGETHER]
            async with AsyncExitStack() as turns:
                for job_id in sorted({job_id for _, job_id in some}):  # so that no two wait for each other
                    await turns.enter_async_context(_Turn(self._turns, job_id))
                found = await self._db.read(partial(self._visit_all, some, work))
            for each in found:
                yield each

    async def each(
        self, project: str, job_id: str, keys: Iterable[str] | None
    ) -> AsyncIterator[tuple[str, Curve]]:
        """Yields the curves named, or all, by key, without holding more of them than are read in one go."""
        sizes, _ = await self.visit(project, job_id, lambda reader: dict(reader.sizes))
        wanted = sorted(sizes if keys is None else set(keys))
        while wanted:
            some = group(wanted, sizes)
            found, _ = await self.visit(project, job_id, lambda reader, some=some: list(reader.each(some)))  # type: ignore[misc]
            for key, curve in found:
                yield key, curve
            wanted = wanted[len(some) :]

    def _visit_all(
        self, jobs: Sequence[tuple[str, str]], work: Callable[[Reader], T], session: Session
    ) -> list[tuple[T, int]]:
        return [self._visit(session, project, job_id, work) for project, job_id in jobs]

    def _visit(
        self, session: Session, project: str, job_id: str, work: Callable[[Reader], T]
    ) -> tuple[T, int]:
        revision = current_revision(session, REVISION)
        if not store.belongs(session, project, job_id):
            self.forget(job_id)
            return work(Reader(session, job_id, _Kept(revision), {}, lambda: None)), revision
        kept = self._taken(job_id, revision)
        try:
            _bring_up(session, job_id, kept, revision)
            sizes = _sizes(session, job_id)
            return work(Reader(session, job_id, kept, sizes, lambda: self._keep(job_id, kept))), revision
        finally:
            kept.busy = False

    def _taken(self, job_id: str, revision: int) -> _Kept:
        with self._lock:
            kept = self._jobs.get(job_id)
            if kept is None or kept.revision > revision:  # newer than the store: a backup was restored
                self._size -= kept.size if kept else 0
                kept = self._jobs[job_id] = _Kept(revision)
            kept.busy = True
            return kept

    def _keep(self, job_id: str, kept: _Kept) -> None:
        """Lets go what was not used for longest, but nothing of other jobs that are being read."""
        with self._lock:
            if self._jobs.get(job_id) is not kept:
                return  # deleted meanwhile
            self._jobs.move_to_end(job_id)
            before, kept.size = kept.size, _size(kept.curves.values())
            self._size += kept.size - before
            if self._size <= self._max_bytes:
                return
            for name, old in list(self._jobs.items()):
                if not old.busy or old is kept:
                    self._size -= _drop(old, self._size - self._max_bytes)
                if not old.curves and old is not kept:
                    del self._jobs[name]
                if self._size <= self._max_bytes:
                    return


def _drop(kept: _Kept, excess: int) -> int:
    """Lets go curves of a job until that many bytes are free or none is left; returns the bytes."""
    before = kept.size
    while kept.curves and before - kept.size < excess:
        kept.curves.popitem(last=False)
        kept.size = _size(kept.curves.values())
    return before - kept.size


def _bring_up(session: Session, job_id: str, kept: _Kept, revision: int) -> None:
    """Adds to the curves of a job what was stored since."""
    while kept.revision < revision and kept.curves:
        new, reached = store.points_after(session, job_id, kept.revision, _PAGE_BYTES, frozenset(kept.curves))
        columns = _Columns()
        for key, curve in new.items():
            longer = extended(kept.curves[key], curve, columns)
            if longer is None:
                del kept.curves[key]  # to be read anew
            else:
                kept.curves[key] = longer
        if reached <= kept.revision:
            break
        kept.revision = reached
    kept.revision = max(kept.revision, revision)


class _Turn:
    """A lock of a job that goes away when nobody waits for it."""

    def __init__(self, turns: dict[str, tuple[asyncio.Lock, list[None]]], job_id: str) -> None:
        self._turns, self._job_id = turns, job_id

    async def __aenter__(self) -> None:
        lock, users = self._turns.setdefault(self._job_id, (asyncio.Lock(), []))
        users.append(None)
        try:
            await lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._turns[self._job_id][0].release()
        self._leave()

    def _leave(self) -> None:
        users = self._turns[self._job_id][1]
        users.pop()
        if not users:
            del self._turns[self._job_id]


def _sizes(session: Session, job_id: str) -> dict[str, int]:
    """The keys of a job with how many points each has, as they were counted last."""
    query = (
        select(METRIC_KEYS.c.key, SUMMARIES.c.num_points)
        .join_from(
            METRIC_KEYS,
            SUMMARIES,
            (SUMMARIES.c.job_id == METRIC_KEYS.c.job_id) & (SUMMARIES.c.key == METRIC_KEYS.c.key),
            isouter=True,
        )
        .where(METRIC_KEYS.c.job_id == job_id)
    )
    return {key: count or 0 for key, count in session.execute(query)}


def group(keys: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    """Returns the first keys whose curves can be held together; at least one."""
    found: list[str] = []
    total = 0
    for key in keys:
        total += sizes.get(key, 0)
        if found and total > _GROUP_POINTS:
            break
        found.append(key)
    return found


class _Columns:
    """Arrays that curves of a job have in common: one record fills many curves, so their steps, times and
    ranks are alike, and are kept once."""

    def __init__(self, curves: Iterable[Curve] = ()) -> None:
        self._known: dict[str, list[_Array]] = {name: [] for name in _SHARED}
        self._joined: dict[str, list[tuple[_Array, _Array, _Array]]] = {name: [] for name in _SHARED}
        for curve in curves:
            for name in _SHARED:
                column = getattr(curve, name)
                if not any(column is known for known in self._known[name]):
                    self._known[name].append(column)

    def shared(self, curve: Curve) -> Curve:
        """Returns the curve with arrays that are there already."""
        return Curve(values=curve.values, **{n: self._one(n, getattr(curve, n)) for n in _SHARED})

    def _one(self, name: str, column: _Array) -> _Array:
        if name in ("epochs", "ranks") and column[0] == column[-1] and (column == column[0]).all():
            return np.broadcast_to(column[:1].copy(), column.shape)  # takes no memory
        known = self._known[name]
        for other in known:
            if len(other) == len(column) and other[-1] == column[-1] and np.array_equal(other, column):
                return other
        known.append(column)
        return column

    def join(self, name: str, old: _Array, new: _Array) -> _Array:
        """Returns one array after the other; the same for the same."""
        for one, other, both in self._joined[name]:
            if one is old and np.array_equal(other, new):
                return both
        both = self._one(name, np.concatenate([old, new]))
        self._joined[name].append((old, new, both))
        return both


def extended(old: Curve, new: Curve, columns: _Columns) -> Curve | None:
    """Returns a curve with what came since; None when that cannot be told from the two alone: the same rank
    logged a step twice, and what was read first may be the later record."""
    if old.steps[-1] < new.steps[0]:
        joined = {name: columns.join(name, getattr(old, name), getattr(new, name)) for name in _SHARED}
        return Curve(values=np.concatenate([old.values, new.values]), **joined)
    places = np.searchsorted(old.steps, new.steps)
    inside = np.minimum(places, len(old.steps) - 1)
    there = old.steps[inside] == new.steps
    mine, theirs = _rows(old, inside[there]), _rows(new, np.flatnonzero(there))
    alike = (theirs.epochs == mine.epochs) & (theirs.ranks == mine.ranks)
    same = (theirs.values == mine.values) | (np.isnan(theirs.values) & np.isnan(mine.values))
    if (alike & ~(same & (theirs.times_us == mine.times_us))).any():
        return None
    wins = (theirs.epochs > mine.epochs) | ((theirs.epochs == mine.epochs) & (theirs.ranks < mine.ranks))
    made = {}
    for name in (*_SHARED, "values"):
        column = getattr(old, name).copy()
        column[inside[there][wins]] = getattr(theirs, name)[wins]
        made[name] = np.insert(column, places[~there], getattr(new, name)[~there])
    return columns.shared(Curve(**made))


def _rows(curve: Curve, chosen: _Array) -> Curve:
    return Curve(**{name: getattr(curve, name)[chosen] for name in (*_SHARED, "values")})


def _size(curves: Iterable[Curve]) -> int:
    arrays = {id(column): column for curve in curves for column in _arrays(curve)}
    return sum(column.strides[0] * len(column) for column in arrays.values())


def _arrays(curve: Curve) -> Iterator[_Array]:
    for name in (*_SHARED, "values"):
        yield getattr(curve, name)
