"""What was stored after a revision, over all jobs, in the order in which it was stored."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, Table, func, select
from sqlalchemy.orm import Session

from tunesmith_kit.db import current_revision
from tunesmith_kit.subjects import FLEET
from tunesmith_metrics.alerts.tables import HISTORY
from tunesmith_metrics.tables import LOG_CHUNKS, REVISION, RUNS, SEGMENTS, WATERMARKS

_MOST_ROWS = 4000  # of each kind in one pass: some 20 MB at most
METRICS, LOGS = "met", "log"


@dataclass(frozen=True, slots=True)
class Part:
    """Records or log of one rank that follow each other: sequence numbers or bytes `[first, end)`."""

    revision: int
    subject: str
    project: str
    kind: str
    job_id: str
    epoch: int
    rank: int
    first: int
    end: int
    payload: bytes
    mark: str  # which rank's records of which kind: `met.{epoch}.{rank}` or `log.…`


@dataclass(frozen=True, slots=True)
class Heard:
    """An event of a job or node."""

    revision: int
    subject: str
    time_us: int
    kind: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Everything of interest up to a revision; `more` when that is not the newest."""

    items: list[Part | Heard]
    revision: int
    more: bool


def subject_name(project: str, job_id: str) -> str:
    """Resource name of who sent something."""
    if project == FLEET:
        return f"nodes/{job_id.removeprefix('node.')}"
    return f"projects/{project}/jobs/{job_id}"


def page(session: Session, revision: int, history_revision: int, wanted: dict[str, Set[str]]) -> Page:
    """Reads on; `wanted` says of which projects which kind of parts is of interest."""
    newest = current_revision(session, REVISION)
    heard, reached = _whole(session, HISTORY, _history(history_revision, newest), newest)
    items: list[Part | Heard] = [
        Heard(row.revision, row.subject, row.time_us, row.kind, row.payload)
        for row in heard
        if row.revision <= reached
    ]
    for kind, table in ((METRICS, SEGMENTS), (LOGS, LOG_CHUNKS)):
        if wanted.get(kind) and revision < reached:
            query = _parts(table, kind, revision, reached, wanted[kind])
            rows, reached = _whole(session, table, query, reached)
            items.extend(_part(kind, row) for row in rows)
    items = [item for item in items if item.revision <= reached]
    items.sort(key=lambda item: item.revision)
    return Page(items, reached, reached < newest)


def _history(after: int, newest: int) -> Select[Any]:
    of = HISTORY.c
    return (
        select(HISTORY).where(of.revision > after, of.revision <= newest).order_by(of.revision, of.event_id)
    )


def _parts(table: Table, kind: str, after: int, newest: int, projects: Set[str]) -> Select[Any]:
    of = table.c
    first = of.first_seq if kind == METRICS else of.offset
    length = of.num_records if kind == METRICS else of.num_bytes
    return (
        select(of.revision, of.job_id, RUNS.c.project, of.epoch, of.rank, first, length, of.payload)
        .join(RUNS, RUNS.c.job_id == of.job_id)
        .where(of.revision > after, of.revision <= newest, RUNS.c.project.in_(projects))
        .order_by(of.revision)
    )


def _part(kind: str, row: Any) -> Part:
    revision, job_id, project, epoch, rank, first, length, payload = row
    name = subject_name(project, job_id)
    mark = f"{kind}.{epoch}.{rank}"
    return Part(revision, name, project, kind, job_id, epoch, rank, first, first + length, payload, mark)


def _whole(session: Session, table: Table, query: Select[Any], newest: int) -> tuple[Sequence[Any], int]:
    """Rows of whole revisions, about as many as one pass takes, and the revision reached."""
    rows = session.execute(query.limit(_MOST_ROWS + 1)).all()
    if len(rows) <= _MOST_ROWS:
        return rows, newest
    last = rows[-1].revision
    if rows[0].revision == last:  # one transaction stored more than a pass takes
        return session.execute(query.where(table.c.revision == last)).all(), last
    kept = [row for row in rows if row.revision < last]
    return kept, kept[-1].revision


def begins_at(session: Session, part: Part, revision: int) -> int:
    """Where a rank that was not looked at before begins to count: behind what was stored before a revision,
    unless something in between is still to come."""
    table = SEGMENTS if part.kind == METRICS else LOG_CHUNKS
    start = table.c.first_seq if part.kind == METRICS else table.c.offset
    mine = (table.c.job_id == part.job_id, table.c.epoch == part.epoch, table.c.rank == part.rank)
    low = session.execute(select(func.min(start)).where(*mine, table.c.revision > revision)).scalar()
    of = WATERMARKS.c
    stored = session.execute(
        select(of.metrics_seq + 1 if part.kind == METRICS else of.log_offset).where(
            of.job_id == part.job_id, of.epoch == part.epoch, of.rank == part.rank
        )
    ).scalar_one_or_none()
    return min(part.first if low is None else low, part.first if stored is None else stored)
