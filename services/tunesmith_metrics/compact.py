"""Compaction: many small segments of a rank become few large ones.

An agent flushes every 200 ms, so a run of ten hours leaves 180,000 segments of some ten points, and reading a
curve would take seconds. Merged, the records stand as they were, under the newest revision of the parts: a
watcher may get old points once more, never miss one.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import and_, delete, func, insert, select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_kit.db import Database, next_revision
from tunesmith_metrics.tables import REVISION, SEGMENTS

log = logging.getLogger(__name__)

_SMALL_RECORDS = 1000
_LARGE_RECORDS = 10_000
_MIN_SEGMENTS = 64
_MAX_SEGMENTS = 1000
_PAUSE_SECONDS = 30.0

Key = tuple[str, int, int]


class Compactor:
    """Looks for ranks with many small segments and merges them, one transaction each."""

    def __init__(self, db: Database, pause_seconds: float = _PAUSE_SECONDS) -> None:
        self._db, self._pause_seconds = db, pause_seconds

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(self._pause_seconds)

    async def once(self) -> int:
        """Merges what there is now and returns how many segments went away."""
        gone = 0
        for key in await self._db.read(_crowded):
            merged = await self._db.write(partial(merge, key=key))
            gone += merged
            log.debug("segments merged", extra={"job": key[0], "segments": merged})
        return gone


def _crowded(session: Session) -> list[Key]:
    of = SEGMENTS.c
    query = (
        select(of.job_id, of.epoch, of.rank)
        .where(of.num_records < _SMALL_RECORDS)
        .group_by(of.job_id, of.epoch, of.rank)
        .having(func.count() >= _MIN_SEGMENTS)
    )
    return [(row.job_id, row.epoch, row.rank) for row in session.execute(query)]


def merge(session: Session, key: Key) -> int:
    """Merges neighbouring small segments of a rank; returns how many rows went away."""
    next_revision(session, REVISION)  # makes the writers of all replicas queue
    of = SEGMENTS.c
    mine = and_(of.job_id == key[0], of.epoch == key[1], of.rank == key[2])
    query = select(SEGMENTS).where(mine, of.num_records < _SMALL_RECORDS).order_by(of.first_seq)
    rows = session.execute(query.limit(_MAX_SEGMENTS)).all()
    gone = 0
    for group in _groups(rows):
        first_seqs = [row.first_seq for row in group]
        session.execute(delete(SEGMENTS).where(mine, of.first_seq.in_(first_seqs)))
        session.execute(insert(SEGMENTS).values(**_merged(group)))
        gone += len(group) - 1
    return gone


def _groups(rows: Sequence[Any]) -> list[list[Any]]:
    """Runs of rows without a gap between them, none larger than a large segment."""
    groups: list[list[Any]] = []
    records = 0
    for row in rows:
        last = groups[-1][-1] if groups else None
        adjoins = last is not None and last.first_seq + last.num_records == row.first_seq
        if adjoins and records + row.num_records <= _LARGE_RECORDS:
            groups[-1].append(row)
            records += row.num_records
        else:
            groups.append([row])
            records = row.num_records
    return [group for group in groups if len(group) > 1]


def _merged(rows: Sequence[Any]) -> dict[str, Any]:
    batch = join([events_pb2.MetricBatch.FromString(row.payload) for row in rows])
    return {
        "job_id": rows[0].job_id,
        "epoch": rows[0].epoch,
        "rank": rows[0].rank,
        "first_seq": batch.first_seq,
        "num_records": batch.num_records,
        "min_step": min(row.min_step for row in rows),
        "max_step": max(row.max_step for row in rows),
        "revision": max(row.revision for row in rows),
        "payload": batch.SerializeToString(),
    }


def join(batches: Sequence[events_pb2.MetricBatch]) -> events_pb2.MetricBatch:
    """Makes one batch of batches that follow each other; runs of equal keys become one matrix."""
    first = batches[0]
    joined = events_pb2.MetricBatch(
        job_id=first.job_id, epoch=first.epoch, rank=first.rank, first_seq=first.first_seq
    )
    indices: dict[str, int] = {}
    columns: tuple[int, ...] = ()
    step = time_us = 0  # of the last record of the last matrix
    for batch in batches:
        joined.num_records += batch.num_records
        for matrix in batch.matrices:
            steps, times = list(matrix.step_deltas), list(matrix.time_deltas_us)
            last_step, last_time_us = sum(steps), sum(times)
            these = tuple(indices.setdefault(batch.keys[i], len(indices)) for i in matrix.key_indices)
            if joined.matrices and these == columns:
                steps[0] -= step  # an absolute value becomes a difference
                times[0] -= time_us
            else:
                joined.matrices.append(events_pb2.MetricMatrix(key_indices=these))
            columns, step, time_us = these, last_step, last_time_us
            last = joined.matrices[-1]
            last.step_deltas.extend(steps)
            last.time_deltas_us.extend(times)
            last.values.extend(matrix.values)
    joined.keys.extend(indices)
    return joined
