"""Compaction: segments become chunks, a compressed one for each key, and small chunks become large ones.

An agent flushes every half a second, so a run of ten hours leaves 72,000 segments of some ten points, and
reading a curve would take seconds. What is read, decoded and compressed outside any transaction is exchanged
in a short one, guarded: rows that are gone meanwhile undo it, and the next pass looks again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import and_, delete, func, insert, or_, select
from sqlalchemy.orm import Session

from tunesmith.errors import Aborted, TunesmithError
from tunesmith_kit.db import Database, current_revision
from tunesmith_metrics import chunks, segments, summaries
from tunesmith_metrics.rows import remove, to_column
from tunesmith_metrics.series import Points
from tunesmith_metrics.tables import CHUNKS, REVISION, SEGMENTS, WATERMARKS

log = logging.getLogger(__name__)

_MIN_SEGMENTS = 64  # rows of a job that are worth a pass
_OLD_SECONDS = 60.0  # after which fewer are compacted too
_MOST_SEGMENTS = 1000  # at once
_MOST_JOBS = 500  # a pass
_MOST_RECOUNTS = 20  # jobs a pass
_PAUSE_SECONDS = 5.0
_SUM_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 15.0
_REST = 8  # times as long as it counted
_PAUSES = {False: 1.0, True: 8.0}  # times as long as an exchange took, by whether ingest is busy
_GROWTH = 2  # a chunk is merged with what comes after it unless it is more than so many times as large

Row = Mapping[str, Any]
_Series = tuple[str, int, int]  # key, epoch, rank


def newest_revision(session: Session) -> int:
    """The revision up to which segments may be compacted when nobody else reads them in order."""
    return current_revision(session, REVISION)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Rows that go, and the chunks that stand for them."""

    job_id: str
    segments: Sequence[tuple[int, int, int]]  # epoch, rank, first_seq
    chunks: Sequence[tuple[str, int, int, int]]  # key, epoch, rank, first_seq
    rows: Sequence[Row]


class Compactor:
    """Counts what is new into the summaries, and compacts the jobs that have many segments.

    Segments above `safe_revision` stay: somebody has yet to read them in their order. Series of nodes are
    left to their roll-up. While ingest is `busy` it waits for some seconds.
    """

    def __init__(
        self,
        db: Database,
        safe_revision: Callable[[Session], int] = newest_revision,
        busy: Callable[[], bool] = lambda: False,
        pause_seconds: float = _PAUSE_SECONDS,
        old_seconds: float = _OLD_SECONDS,
    ) -> None:
        self._db, self._safe_revision, self._busy = db, safe_revision, busy
        self._pause_seconds, self._old_seconds = pause_seconds, old_seconds
        self._revisions: list[tuple[float, int]] = []  # when was which the newest

    async def run(self) -> None:
        """Works until it is cancelled."""
        due = 0.0
        while True:
            began = time.monotonic()
            await self._guarded(self.sum_up)
            took = time.monotonic() - began
            if time.monotonic() >= due:
                await self._guarded(self.compact)
                due = time.monotonic() + self._pause_seconds
            # A thousand runs have ten thousand rows to count into: it may not take more than its part.
            await asyncio.sleep(max(_SUM_SECONDS, min(_REST * took, _LONGEST_WAIT_SECONDS)))
            await self._give_way()

    async def _give_way(self) -> None:
        """Waits while ingest has more than enough to do, but not for ever: what is put off is not less."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_WAIT_SECONDS):
                while self._busy():  # noqa: ASYNC110  # what lies on the server tells nobody
                    await asyncio.sleep(_SUM_SECONDS)

    async def once(self) -> int:
        """Counts and compacts what there is now, be it little; returns how many segments went away."""
        await self.sum_up()
        revision = await self._db.read(newest_revision)
        gone = await self._compact(revision)
        await self._recount(revision)
        return gone

    async def sum_up(self) -> None:
        """Counts what is new now into the summaries; what comes meanwhile is the next time's."""
        newest = await self._db.read(newest_revision)
        while True:
            sums = await self._db.read(summaries.gather)
            if sums.stats:
                await self._db.write(partial(summaries.enter, sums=sums))
            if sums.until >= newest or not sums.stats:
                return

    async def compact(self) -> int:
        """Compacts the jobs that have many segments or old ones; returns how many segments went away."""
        now, newest = time.monotonic(), await self._db.read(newest_revision)
        self._revisions.append((now, newest))
        while len(self._revisions) > 1 and self._revisions[1][0] <= now - self._old_seconds:
            del self._revisions[0]
        since, old = self._revisions[0]
        if since > now - self._old_seconds:
            return await self._compact(0)
        gone = await self._compact(old)
        await self._recount(old)
        return gone

    async def _compact(self, old_revision: int) -> int:
        gone = 0
        for job_id in await self._db.read(partial(_crowded, old_revision=old_revision)):
            num_gone = _MOST_SEGMENTS
            while num_gone == _MOST_SEGMENTS:
                began = time.monotonic()
                num_gone = await self._exchange(job_id)
                gone += num_gone
                # A thousand runs reach their turn together: what waits for the store must not wait for all.
                await asyncio.sleep((time.monotonic() - began) * _PAUSES[self._busy()])
        return gone

    async def _exchange(self, job_id: str) -> int:
        """Compacts the oldest segments of a job; returns how many went away."""
        exchange = await self._db.read(partial(self._plan, job_id=job_id))
        if exchange is None:
            return 0
        try:
            await self._db.write(partial(apply, exchange=exchange))
        except Aborted:  # another replica was there first
            return 0
        return len(exchange.segments)

    async def _recount(self, revision: int) -> None:
        """Takes stale summaries of jobs that are quiet since a revision from their points."""
        stale = partial(summaries.stale_jobs, revision=revision, limit=_MOST_RECOUNTS)
        for job_id in await self._db.read(stale):
            until, rows = await self._db.read(partial(summaries.recounted, job_id=job_id))
            if rows:
                await self._db.write(partial(summaries.enter_recounted, until=until, rows=rows))

    def _plan(self, session: Session, job_id: str) -> Exchange | None:
        limit = min(self._safe_revision(session), summaries.summed(session))
        return plan(session, job_id, limit)

    async def _guarded(self, work: Callable[[], Any]) -> None:
        try:
            await work()
        except TunesmithError as error:  # the database is away: the next pass finds all of it again
            log.warning("compaction waits", extra={"problem": str(error)})


def _crowded(session: Session, old_revision: int) -> list[str]:
    """Jobs with many segments, or with some from before a revision; those that waited longest first."""
    of = SEGMENTS.c
    query = (
        select(of.job_id)
        .where(of.job_id.not_like("node.%"))
        .group_by(of.job_id)
        .having(or_(func.count() >= _MIN_SEGMENTS, func.min(of.revision) <= old_revision))
        .order_by(func.min(of.revision))  # a pass takes longer than a job needs to be crowded again
        .limit(_MOST_JOBS)
    )
    return list(session.execute(query).scalars())


def plan(session: Session, job_id: str, revision: int) -> Exchange | None:
    """Reads segments of a job up to a revision and makes chunks of them; None when there are none to take.

    Segments above a gap stay: they are the memory of what is stored there.
    """
    of, mark = SEGMENTS.c, WATERMARKS.c
    same = and_(of.job_id == mark.job_id, of.epoch == mark.epoch, of.rank == mark.rank)
    query = (
        select(of.epoch, of.rank, of.first_seq, of.revision, of.payload)
        .select_from(SEGMENTS.join(WATERMARKS, same))
        .where(of.job_id == job_id, of.revision <= revision, of.first_seq <= mark.metrics_seq)
        .order_by(of.epoch, of.rank, of.first_seq)
        .limit(_MOST_SEGMENTS)
    )
    taken = session.execute(query).all()
    if not taken:
        return None
    ranks: dict[tuple[int, int], list[Any]] = {}
    for row in taken:
        ranks.setdefault((row.epoch, row.rank), []).append(row)
    parts: dict[_Series, list[Points]] = {}
    newest: dict[_Series, int] = {}
    for (epoch, rank), rows in ranks.items():
        for key, points in segments.columns([row.payload for row in rows]):
            parts.setdefault((key, epoch, rank), []).append(points)
            newest[key, epoch, rank] = max(row.revision for row in rows)
    replaced = _absorb(session, job_id, parts, newest)
    rows_of = [
        _row(job_id, series, newest[series], points)
        for series, found in parts.items()
        for points in _slices(chunks.concatenate(found))
    ]
    return Exchange(job_id, [(row.epoch, row.rank, row.first_seq) for row in taken], replaced, rows_of)


def _absorb(
    session: Session, job_id: str, parts: dict[_Series, list[Points]], newest: dict[_Series, int]
) -> list[tuple[str, int, int, int]]:
    """Adds the points of small chunks before these parts to them; returns the keys of the chunks."""
    of = CHUNKS.c
    query = select(of.key, of.epoch, of.rank, of.first_seq, of.num_points, of.revision).where(
        of.job_id == job_id, of.num_points <= chunks.MOST_POINTS // 2
    )
    small: dict[_Series, list[Any]] = {}
    for row in session.execute(query):
        small.setdefault((row.key, row.epoch, row.rank), []).append(row)
    replaced = []
    for series, points in parts.items():
        total = sum(len(each.steps) for each in points)
        for row in sorted(small.get(series, ()), key=lambda row: -row.first_seq):
            if row.num_points > _GROWTH * total or row.num_points + total > chunks.MOST_POINTS:
                break
            total += row.num_points
            replaced.append((row.key, row.epoch, row.rank, row.first_seq))
            newest[series] = max(newest[series], row.revision)
    for key, epoch, rank, first_seq in replaced:
        payload = session.execute(select(of.payload).where(_chunk(job_id, key, epoch, rank, first_seq)))
        parts[key, epoch, rank].append(chunks.decode(payload.scalar_one()))
    return replaced


def _chunk(job_id: str, key: str, epoch: int, rank: int, first_seq: int) -> Any:
    of = CHUNKS.c
    return and_(
        of.job_id == job_id,
        of.key == key,
        of.epoch == epoch,
        of.rank == rank,
        of.first_seq == first_seq,
    )


def _slices(points: Points) -> list[Points]:
    most = chunks.MOST_POINTS
    return [chunks.take(points, slice(at, at + most)) for at in range(0, len(points.steps), most)]


def _row(job_id: str, series: _Series, revision: int, points: Points) -> Row:
    key, epoch, rank = series
    stat = summaries.stat(points, epoch)
    return {
        "job_id": job_id,
        "key": key,
        "epoch": epoch,
        "rank": rank,
        "first_seq": int(points.seqs[0]),
        "last_seq": int(points.seqs[-1]),
        "num_points": stat.num_points,
        "min_step": stat.first_step,
        "max_step": stat.last_step,
        "min_value": to_column(stat.min_value),
        "max_value": to_column(stat.max_value),
        "last_value": to_column(stat.last_value),
        "revision": revision,
        "payload": chunks.encode(points),
    }


def apply(session: Session, exchange: Exchange) -> None:
    """Exchanges rows. Raises `Aborted`, whereupon nothing is changed, when some are gone already."""
    of = SEGMENTS.c
    gone = 0
    by_rank: dict[tuple[int, int], list[int]] = {}
    for epoch, rank, first_seq in exchange.segments:
        by_rank.setdefault((epoch, rank), []).append(first_seq)
    for (epoch, rank), seqs in by_rank.items():
        mine = and_(of.job_id == exchange.job_id, of.epoch == epoch, of.rank == rank)
        gone += remove(session, delete(SEGMENTS).where(mine, of.first_seq.in_(seqs)))
    for key in exchange.chunks:
        gone += remove(session, delete(CHUNKS).where(_chunk(exchange.job_id, *key)))
    if gone != len(exchange.segments) + len(exchange.chunks):
        raise Aborted("REVISION_CONFLICT", "the rows were compacted by another process")
    if exchange.rows:
        session.execute(insert(CHUNKS), list(exchange.rows))
