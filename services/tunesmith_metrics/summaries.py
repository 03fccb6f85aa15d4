"""Summaries: last value, count and extremes of each metric, kept beside the points.

They are counted some moments after the points are stored, many segments at once: done for each message, it
would be most of the work of storing it. Who asks gets what was counted and adds what is newer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tunesmith_kit.db import current_revision, next_revision
from tunesmith_metrics import segments
from tunesmith_metrics.points import curves, tail
from tunesmith_metrics.rows import MOST_PARAMETERS, to_column, upsert
from tunesmith_metrics.series import Curve, Points, extremes
from tunesmith_metrics.tables import REVISION, RUNS, SEGMENTS, SUMMARIES, SUMMED

_MOST_SEGMENTS = 5000  # counted at once
_MOST_ROWS = 5000

_COLUMNS = tuple(column.name for column in SUMMARIES.columns)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stat:
    """What points add to one key. `regular`: steps ascend strictly."""

    epoch: int
    first_step: int
    last_step: int
    last_value: float
    num_points: int
    min_value: float
    max_value: float
    regular: bool


@dataclass(frozen=True, slots=True)
class Sums:
    """What the segments between two revisions add, by job and key."""

    after: int
    until: int
    stats: Mapping[str, Mapping[str, list[Stat]]]


def stat(points: Points, epoch: int) -> Stat:
    """What points of one rank add to their key; NaN counts for no extreme."""
    steps = points.steps
    regular = bool((steps[1:] > steps[:-1]).all())
    # Of equal steps the later record counts.
    last = len(steps) - 1 if regular else len(steps) - 1 - int(np.argmax(steps[::-1]))
    return Stat(
        epoch,
        int(steps[0] if regular else steps.min()),
        int(steps[last]),
        float(points.values[last]),
        len(steps),
        float(np.fmin.reduce(points.values)),
        float(np.fmax.reduce(points.values)),
        regular,
    )


def summed(session: Session) -> int:
    """The revision up to which segments are counted."""
    return int(session.execute(select(SUMMED.c.revision)).scalar_one_or_none() or 0)


def gather(session: Session) -> Sums:
    """Reads what is not counted yet, or the first part of it."""
    after, newest = summed(session), current_revision(session, REVISION)
    of = SEGMENTS.c
    new = (of.revision > after, of.revision <= newest)
    revisions = list(
        session.execute(
            select(of.revision).where(*new).order_by(of.revision).limit(_MOST_SEGMENTS + 1)
        ).scalars()
    )
    # Whole revisions only, and at least one.
    until = newest
    if len(revisions) > _MOST_SEGMENTS:
        until = max(revisions[-1] - 1, revisions[0])
    query = (
        select(of.job_id, of.epoch, of.rank, of.payload)
        .where(of.revision > after, of.revision <= until)
        .order_by(of.revision)
    )
    payloads: dict[tuple[str, int, int], list[bytes]] = {}
    for job_id, epoch, rank, payload in session.execute(query):
        payloads.setdefault((job_id, epoch, rank), []).append(payload)
    stats: dict[str, dict[str, list[Stat]]] = {}
    for (job_id, epoch, _), found in sorted(payloads.items()):
        _count(stats.setdefault(job_id, {}), epoch, found)
    return Sums(after, until, stats)


def _count(stats: dict[str, list[Stat]], epoch: int, payloads: Sequence[bytes]) -> None:
    for key, points in segments.columns(payloads):
        stats.setdefault(key, []).append(stat(points, epoch))


def enter(session: Session, sums: Sums) -> bool:
    """Adds sums to the summaries; False when another replica did so meanwhile."""
    revision = next_revision(session, REVISION)  # makes the writers of all replicas queue
    if summed(session) != sums.after:
        return False
    jobs = sorted(sums.stats)
    for start in range(0, len(jobs), MOST_PARAMETERS):
        some = jobs[start : start + MOST_PARAMETERS]
        known: dict[str, dict[str, Row]] = {job_id: {} for job_id in some}
        query = select(SUMMARIES).where(SUMMARIES.c.job_id.in_(some))
        for values in session.execute(query):
            row = dict(zip(_COLUMNS, values, strict=True))  # a third of what a mapping of it costs
            known[row["job_id"]][row["key"]] = row
        changed: list[Row] = []
        for job_id in some:
            changed += extended(job_id, known[job_id], sums.stats[job_id])
        upsert(session, SUMMARIES, changed)
        session.execute(update(RUNS).where(RUNS.c.job_id.in_(some)).values(revision=revision))
    if sums.after:
        session.execute(update(SUMMED).values(revision=sums.until))
    else:
        upsert(session, SUMMED, [{"id": 1, "revision": sums.until}])
    return True


def extended(job_id: str, rows: dict[str, Row], stats: Mapping[str, Iterable[Stat]]) -> list[Row]:
    """The rows of a job that stats change, with them added."""
    for key, found in stats.items():
        for each in found:
            if key in rows:
                _extend(rows[key], each)
            else:
                rows[key] = _first(job_id, key, each)
    return [rows[key] for key in stats]


def _first(job_id: str, key: str, stat: Stat) -> Row:
    return {
        "job_id": job_id,
        "key": key,
        "last_step": stat.last_step,
        "last_epoch": stat.epoch,
        "last_value": to_column(stat.last_value),
        "num_points": stat.num_points,
        "min_value": to_column(stat.min_value),
        "max_value": to_column(stat.max_value),
        "stale": not stat.regular,
    }


def _extend(row: Row, stat: Stat) -> None:
    if not stat.regular or stat.first_step <= row["last_step"]:
        row["stale"] = True
    row["num_points"] += stat.num_points
    row["min_value"] = _extreme(min, row["min_value"], to_column(stat.min_value))
    row["max_value"] = _extreme(max, row["max_value"], to_column(stat.max_value))
    if (stat.last_step, stat.epoch) >= (row["last_step"], row["last_epoch"]):
        row.update(last_step=stat.last_step, last_epoch=stat.epoch, last_value=to_column(stat.last_value))


def _extreme(choose: Any, one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return choose(known) if known else None


def stored(session: Session, job_id: str) -> list[Row]:
    """The summaries of a job by key, as they were counted last."""
    query = select(SUMMARIES).where(SUMMARIES.c.job_id == job_id).order_by(SUMMARIES.c.key)
    return [dict(row) for row in session.execute(query).mappings()]


def counted(session: Session, job_id: str) -> list[Row]:
    """The summaries of a job by key, with all that is stored."""
    stats: dict[str, list[Stat]] = {}
    newer = tail(session, job_id, [SEGMENTS.c.revision > summed(session)])
    for (epoch, _), payloads in sorted(newer.items()):
        _count(stats, epoch, payloads)
    rows = {row["key"]: row for row in stored(session, job_id)}
    extended(job_id, rows, stats)
    return [rows[key] for key in sorted(rows)]


def fresh(session: Session, job_id: str) -> list[Row]:
    """As `counted`; those that went stale are taken from the points."""
    rows = counted(session, job_id)
    stale = frozenset(row["key"] for row in rows if row["stale"])
    again = curves(session, job_id, stale) if stale else {}
    return [_recount(row, again[row["key"]]) if row["key"] in again else row for row in rows]


def stale_jobs(session: Session, revision: int, limit: int) -> list[str]:
    """Jobs with stale summaries that have not changed since a revision."""
    query = (
        select(SUMMARIES.c.job_id)
        .join(RUNS, RUNS.c.job_id == SUMMARIES.c.job_id)
        .where(SUMMARIES.c.stale, RUNS.c.revision <= revision)
        .distinct()
        .limit(limit)
    )
    return list(session.execute(query).scalars())


def recounted(session: Session, job_id: str) -> tuple[int, list[Row]]:
    """Stale summaries of a job taken from its points, and the revision up to which segments were counted
    then; none while some are not counted yet."""
    until = summed(session)
    if tail(session, job_id, [SEGMENTS.c.revision > until]):
        return until, []
    rows = [row for row in stored(session, job_id) if row["stale"]]
    again = curves(session, job_id, {row["key"] for row in rows}) if rows else {}
    return until, [_recount(row, again[row["key"]]) for row in rows if row["key"] in again]


def enter_recounted(session: Session, until: int, rows: list[Row]) -> None:
    """Replaces summaries by those of `recounted`, unless more was counted meanwhile."""
    revision = next_revision(session, REVISION)
    if summed(session) == until:
        upsert(session, SUMMARIES, rows)
        session.execute(update(RUNS).where(RUNS.c.job_id == rows[0]["job_id"]).values(revision=revision))


def _recount(row: Row, curve: Curve) -> Row:
    low, high = extremes(curve)
    return row | {
        "last_step": int(curve.steps[-1]),
        "last_epoch": int(curve.epochs[-1]),
        "last_value": to_column(float(curve.values[-1])),
        "num_points": len(curve.steps),
        "min_value": to_column(low),
        "max_value": to_column(high),
        "stale": False,
    }
