"""What is kept beside a log chunk so that a query reads few of them: its place, and its extremes."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_metrics import errorlines
from tunesmith_metrics.tables import LOG_CHUNKS

_Rank = tuple[str, int, int]


def enter(session: Session, rows: Sequence[dict[str, Any]], chunks: Sequence[events_pb2.LogChunk]) -> None:
    """Completes the rows of chunks that are about to be stored, and counts their error lines."""
    orders: dict[_Rank, _Order] = {}
    for row, chunk in zip(rows, chunks, strict=True):
        rank = (row["job_id"], row["epoch"], row["rank"])
        if rank not in orders:
            orders[rank] = _Order(session, rank)
        row["sort_us"] = orders[rank].place(row["offset"], chunk.time_us)
        row["max_level"] = max(chunk.levels, default=0)
        row["max_step"] = max(chunk.steps, default=0)
    errorlines.note(session, chunks)


class _Order:
    """The chunks of a rank by offset with times that never go back, whenever each of them came.

    Lines of several ranks are shown as they were read. A chunk that was sent again was read later than those
    behind it, and a clock may be set back: neither may bring a rank's own lines out of their order.
    """

    def __init__(self, session: Session, rank: _Rank) -> None:
        self._session, chunk = session, LOG_CHUNKS.c
        job_id, epoch, number = rank
        self._mine = (chunk.job_id == job_id, chunk.epoch == epoch, chunk.rank == number)
        last = self._stored(chunk.offset.desc())
        self._end = last[0] if last is not None else -1
        self._places: list[tuple[int, int]] = [last] if last is not None else []

    def place(self, offset: int, time_us: int) -> int:
        """Returns the time at which a new chunk is shown, and remembers it."""
        if offset < self._end:  # rare: it fills a gap
            self._know(self._stored(LOG_CHUNKS.c.offset.desc(), LOG_CHUNKS.c.offset < offset))
            self._know(self._stored(LOG_CHUNKS.c.offset, LOG_CHUNKS.c.offset > offset))
        at = bisect_left(self._places, (offset, 0))
        if at < len(self._places):
            time_us = min(time_us, self._places[at][1])
        if at > 0:
            time_us = max(time_us, self._places[at - 1][1])
        self._know((offset, time_us))
        return time_us

    def _know(self, place: tuple[int, int] | None) -> None:
        if place is None:
            return
        at = bisect_left(self._places, place)
        if self._places[at : at + 1] != [place]:
            self._places.insert(at, place)

    def _stored(self, order: Any, *conditions: Any) -> tuple[int, int] | None:
        query = select(LOG_CHUNKS.c.offset, LOG_CHUNKS.c.sort_us).where(*self._mine, *conditions)
        row = self._session.execute(query.order_by(order).limit(1)).one_or_none()
        return (row.offset, row.sort_us) if row is not None else None
