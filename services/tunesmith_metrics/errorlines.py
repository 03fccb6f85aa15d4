"""Error lines: counted as they are stored, one row a distinct text, so that a page shows them at once.

Texts that differ in numbers only are one. Of a traceback only its last line counts: the others tell where.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Row, delete, func, insert, select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2
from tunesmith_metrics.tables import ERROR_LINES

_MAX_TEXTS = 500  # kept a job; the one that came last longest ago goes
_MAX_TEXT = 2000
_ALL = ""  # the digest of the row that counts all
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(?:[.,:]\d+)*")
_RANK = re.compile(r"\[rank\d+\]:\s?")
_WHERE = (
    "Traceback (most recent call last)",
    "During handling of the above exception",
    "The above exception was the direct cause",
)


def note(session: Session, chunks: Sequence[events_pb2.LogChunk]) -> None:
    """Counts the error lines of chunks that are stored now for the first time."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for chunk in chunks:
        for row in _rows(chunk):
            of_job = found.setdefault(chunk.job_id, {})
            for digest in (row["digest"], _ALL):
                _join(of_job, row | {"digest": digest})
    for job_id, rows in found.items():
        _save(session, job_id, rows)


def _rows(chunk: events_pb2.LogChunk) -> Iterator[dict[str, Any]]:
    if max(chunk.levels, default=0) < events_pb2.LOG_LEVEL_ERROR:
        return
    for index, level in enumerate(chunk.levels):
        if level < events_pb2.LOG_LEVEL_ERROR:
            continue
        text = chunk.lines[index][:_MAX_TEXT]
        bare = _RANK.sub("", text, count=1)
        if not bare.strip() or bare[0].isspace() or bare.startswith(_WHERE):
            continue
        masked = _NUMBER.sub("#", bare)
        yield {
            "job_id": chunk.job_id,
            "digest": hashlib.blake2b(masked.encode(errors="replace"), digest_size=16).hexdigest(),
            "count": 1,
            "first_time_us": chunk.time_us,
            "last_time_us": chunk.time_us,
            "epoch": chunk.epoch,
            "rank": chunk.rank,
            "offset": chunk.line_offsets[index],
            "level": level,
            "step": chunk.steps[index] if chunk.steps else 0,
            "text": text,
        }


def _join(rows: dict[str, dict[str, Any]], row: dict[str, Any]) -> None:
    """Puts a row to those of its text: counts add up, and what came last is shown."""
    known = rows.get(row["digest"])
    if known is None:
        rows[row["digest"]] = row
        return
    newer = row if row["last_time_us"] >= known["last_time_us"] else known
    rows[row["digest"]] = newer | {
        "count": known["count"] + row["count"],
        "first_time_us": min(known["first_time_us"], row["first_time_us"]),
    }


def _save(session: Session, job_id: str, rows: dict[str, dict[str, Any]]) -> None:
    line = ERROR_LINES.c
    mine = select(ERROR_LINES).where(line.job_id == job_id, line.digest.in_(rows))
    known = {row.digest: dict(row._mapping) for row in session.execute(mine)}
    for row in rows.values():
        _join(known, row)
    session.execute(delete(ERROR_LINES).where(line.job_id == job_id, line.digest.in_(rows)))
    session.execute(insert(ERROR_LINES), [known[digest] for digest in rows])
    of_job = select(line.digest).where(line.job_id == job_id, line.digest != _ALL)
    oldest = of_job.order_by(line.last_time_us.desc(), line.digest).offset(_MAX_TEXTS)
    gone = list(session.execute(oldest).scalars())
    session.execute(delete(ERROR_LINES).where(line.job_id == job_id, line.digest.in_(gone)))


def newest(session: Session, job_id: str, limit: int) -> metrics_pb2.ListErrorLinesResponse:
    """Returns the error lines of a job, the one that came last first, and how many there were in all."""
    line = ERROR_LINES.c
    total = session.execute(
        select(func.coalesce(func.sum(line.count), 0)).where(line.job_id == job_id, line.digest == _ALL)
    ).scalar_one()
    query = (
        select(ERROR_LINES)
        .where(line.job_id == job_id, line.digest != _ALL)
        .order_by(line.last_time_us.desc(), line.epoch.desc(), line.rank, line.offset.desc())
        .limit(limit)
    )
    lines = [_message(row) for row in session.execute(query)]
    return metrics_pb2.ListErrorLinesResponse(lines=lines, total_size=int(total))


def _message(row: Row[Any]) -> metrics_pb2.ErrorLine:
    line = metrics_pb2.LogLine(
        epoch=row.epoch, rank=row.rank, offset=row.offset, text=row.text, level=row.level, step=row.step
    )
    line.time.FromMicroseconds(row.last_time_us)
    found = metrics_pb2.ErrorLine(line=line, count=row._mapping["count"])
    found.first_time.FromMicroseconds(row.first_time_us)
    return found
