"""Watermarks and coverage of the ranks that one write touches, read and written all at once."""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Table, and_, select
from sqlalchemy.orm import Session

from tunesmith_metrics.coverage import Coverage
from tunesmith_metrics.events import Rank, Watermark
from tunesmith_metrics.rows import MOST_PARAMETERS, upsert
from tunesmith_metrics.tables import LOG_CHUNKS, SEGMENTS, WATERMARKS

_Key = tuple[str, int, int]


class Marks:
    """Coverage of ranks by their metric records or by the bytes of their logs."""

    def __init__(
        self, session: Session, senders: Collection[Rank], table: Table, start: str, length: str, field: str
    ) -> None:
        self._session, self._field = session, field
        # Sequence numbers count from 1 and the mark is the last one stored; offsets are half-open.
        self._first = 1 if table is SEGMENTS else 0
        self._senders = {(who.job_id, who.epoch, who.rank): who for who in senders}
        self._rows: dict[_Key, dict[str, int]] = {}
        islands: dict[_Key, list[tuple[int, int]]] = {}
        jobs = iter({who.job_id for who in senders})
        while some := list(islice(jobs, MOST_PARAMETERS)):
            for key, low, high in self._read(some, table, start, length):
                islands.setdefault(key, []).append((low, high))
        for key in self._senders:
            self._rows.setdefault(key, {"metrics_seq": 0, "log_offset": 0, "num_points": 0})
        self._coverage = {
            key: Coverage(self._rows[key][field] + self._first, islands.get(key, ())) for key in self._senders
        }

    def of(self, who: Rank) -> Coverage:
        """Coverage of one of the ranks."""
        return self._coverage[who.job_id, who.epoch, who.rank]

    def count(self, who: Rank, num_points: int) -> None:
        """Counts points that a rank sent."""
        self._rows[who.job_id, who.epoch, who.rank]["num_points"] += num_points

    def save(self) -> list[Watermark]:
        """Writes the marks of all ranks and returns them."""
        rows = []
        for key, coverage in self._coverage.items():
            row = self._rows[key]
            row[self._field] = coverage.next - self._first
            rows.append({"job_id": key[0], "epoch": key[1], "rank": key[2], **row})
        upsert(self._session, WATERMARKS, rows)
        return [
            Watermark(who, self._rows[key]["metrics_seq"], self._rows[key]["log_offset"])
            for key, who in self._senders.items()
        ]

    def _read(
        self, job_ids: list[str], table: Table, start: str, length: str
    ) -> Iterator[tuple[_Key, int, int]]:
        """Reads the marks of jobs, and yields what is stored above them."""
        of, mark = table.c, WATERMARKS.c
        above = and_(
            of.job_id == mark.job_id,
            of.epoch == mark.epoch,
            of.rank == mark.rank,
            of[start] >= mark[self._field] + self._first,
        )
        # The outer join says where to begin: from the other side SQLite reads every row of the jobs.
        query = (
            select(WATERMARKS, of[start].label("low"), of[length].label("size"))
            .select_from(WATERMARKS.outerjoin(table, above))
            .where(mark.job_id.in_(job_ids))
        )
        for row in self._session.execute(query):
            key = (row.job_id, row.epoch, row.rank)
            if key not in self._senders:
                continue
            self._rows[key] = {
                "metrics_seq": row.metrics_seq,
                "log_offset": row.log_offset,
                "num_points": row.num_points,
            }
            if row.low is not None:
                yield key, row.low, row.low + row.size


def of_metrics(session: Session, senders: Collection[Rank]) -> Marks:
    """Marks of metric records."""
    return Marks(session, senders, SEGMENTS, "first_seq", "num_records", "metrics_seq")


def of_logs(session: Session, senders: Collection[Rank]) -> Marks:
    """Marks of logs."""
    return Marks(session, senders, LOG_CHUNKS, "offset", "num_bytes", "log_offset")


def rank_of(table: Table, who: Rank) -> Any:
    """The condition for rows of a rank."""
    return and_(table.c.job_id == who.job_id, table.c.epoch == who.epoch, table.c.rank == who.rank)
