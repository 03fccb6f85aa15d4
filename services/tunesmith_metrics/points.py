"""Points as they are stored: those of chunks, and those of segments that are not compacted yet."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from sqlalchemy import ColumnElement, Table, func, select, union_all
from sqlalchemy.orm import Session

from tunesmith_kit.db import current_revision
from tunesmith_metrics import chunks, segments
from tunesmith_metrics.series import Curve
from tunesmith_metrics.tables import CHUNKS, REVISION, SEGMENTS

_REVISIONS = 10_000  # looked at at once


def curves(
    session: Session,
    job_id: str,
    keys: Set[str] | None = None,
    low: int | None = None,
    high: int | None = None,
) -> dict[str, Curve]:
    """Curves of a job by key, one point a step, of all keys or those given, from step `low` to `high`.

    Of one step the highest epoch counts, of one epoch the lowest rank, of one rank the latest record.
    """
    conditions = []
    if low is not None:
        conditions.append(CHUNKS.c.max_step >= low)
    if high is not None:
        conditions.append(CHUNKS.c.min_step <= high)
    return _merged(session, job_id, keys, conditions, []).curves(low, high)


def points_after(
    session: Session, job_id: str, revision: int, max_bytes: int, keys: Set[str] | None = None
) -> tuple[dict[str, Curve], int]:
    """Points stored after a revision as curves, of whole revisions; and the revision reached.

    At least one revision is returned if there is one, however large; else about `max_bytes` as they are
    stored. What was compacted meanwhile may come with points from before the revision, never without one from
    after it.
    """
    newest = current_revision(session, REVISION)
    reached = _reach(session, job_id, revision, max_bytes)
    if reached is None:
        return {}, max(newest, revision)
    after: list[ColumnElement[bool]] = [CHUNKS.c.revision > revision, CHUNKS.c.revision <= reached]
    fresh: list[ColumnElement[bool]] = [SEGMENTS.c.revision > revision, SEGMENTS.c.revision <= reached]
    return _merged(session, job_id, keys, after, fresh).curves(), reached


def _reach(session: Session, job_id: str, revision: int, max_bytes: int) -> int | None:
    """The last revision of a page that begins after `revision`; None when nothing came after it."""
    sizes = union_all(*(_sizes(table, job_id, revision) for table in (CHUNKS, SEGMENTS))).subquery()
    query = (
        select(sizes.c.revision, func.sum(sizes.c.size))
        .group_by(sizes.c.revision)
        .order_by(sizes.c.revision)
        .limit(_REVISIONS)
    )
    reached, size = None, 0
    for found, bytes_of in session.execute(query):
        if reached is not None and size >= max_bytes:
            break
        reached, size = int(found), size + int(bytes_of)
    return reached


def _sizes(table: Table, job_id: str, revision: int) -> Any:
    of = table.c
    return select(of.revision, func.length(of.payload).label("size")).where(
        of.job_id == job_id, of.revision > revision
    )


def _merged(
    session: Session,
    job_id: str,
    keys: Set[str] | None,
    of_chunks: Sequence[ColumnElement[bool]],
    of_segments: Sequence[ColumnElement[bool]],
) -> chunks.Merger:
    merger = chunks.Merger()
    chunk = CHUNKS.c
    query = select(chunk.key, chunk.epoch, chunk.rank, chunk.payload).where(
        chunk.job_id == job_id, *of_chunks
    )
    if keys is not None:
        query = query.where(chunk.key.in_(keys))
    for key, epoch, rank, payload in session.execute(query):
        merger.add(key, epoch, rank, chunks.decode(payload))
    for (epoch, rank), payloads in tail(session, job_id, of_segments).items():
        for key, points in segments.columns(payloads, keys):
            merger.add(key, epoch, rank, points)
    return merger


def tail(
    session: Session, job_id: str, conditions: Sequence[ColumnElement[bool]] = ()
) -> Mapping[tuple[int, int], list[bytes]]:
    """Payloads of a job's segments that meet the conditions, by epoch and rank."""
    of = SEGMENTS.c
    query = select(of.epoch, of.rank, of.payload).where(of.job_id == job_id, *conditions)
    found: dict[tuple[int, int], list[bytes]] = {}
    for epoch, rank, payload in session.execute(query):
        found.setdefault((epoch, rank), []).append(payload)
    return found
