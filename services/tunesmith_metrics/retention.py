"""How much projects may store and for how long, what they store, and how it goes."""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Table, delete, func, select, text
from sqlalchemy.orm import Session

from tunesmith.errors import TunesmithError
from tunesmith_kit.db import Database, next_revision
from tunesmith_metrics import traces
from tunesmith_metrics.rows import remove, upsert
from tunesmith_metrics.tables import (
    CHUNKS,
    FORGOTTEN,
    LOG_CHUNKS,
    METADATA,
    POLICIES,
    REVISION,
    RUNS,
    SEGMENTS,
    WATERMARKS,
)

log = logging.getLogger(__name__)

_DAY_US = 24 * 3600 * 1_000_000
_HOUR_US = 3600 * 1_000_000
_LATE_DAYS = 90  # longer than any agent keeps a spool of a job that is gone
_PAUSE_SECONDS = 5.0
_SWEEP_SECONDS = 3600.0
_MOST_JOBS = 100  # forgotten in one pass
_ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a project may store. 0: no limit, or, of a project's own policy, as the server is set."""

    max_points: int = 0
    max_keys_per_job: int = 5000
    keep_days: int = 0

    def over(self, default: "Policy") -> "Policy":
        """This policy with the default's values where it says nothing."""
        return Policy(
            self.max_points or default.max_points,
            self.max_keys_per_job or default.max_keys_per_job,
            self.keep_days or default.keep_days,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a project stores."""

    num_points: int
    metric_bytes: int
    log_bytes: int
    num_jobs: int


def policy(session: Session, project: str) -> Policy:
    """What is set for a project; zeros when nothing is."""
    return policies(session).get(project, Policy(0, 0, 0))


def policies(session: Session) -> Mapping[str, Policy]:
    """What is set, by project."""
    return {
        row.project: Policy(row.max_points, row.max_keys_per_job, row.keep_days)
        for row in session.execute(select(POLICIES))
    }


def set_policy(session: Session, project: str, chosen: Policy) -> None:
    """Sets what a project may store."""
    row = {
        "project": project,
        "max_points": chosen.max_points,
        "max_keys_per_job": chosen.max_keys_per_job,
        "keep_days": chosen.keep_days,
    }
    upsert(session, POLICIES, [row])


def usage(session: Session, project: str) -> Usage:
    """What a project stores now."""
    jobs = select(RUNS.c.job_id).where(RUNS.c.project == project)

    def total(table: Table, column: str) -> int:
        measure = func.length(table.c[column]) if column == "payload" else table.c[column]
        query = select(func.coalesce(func.sum(measure), 0)).where(table.c.job_id.in_(jobs))
        return int(session.execute(query).scalar_one())

    return Usage(
        total(WATERMARKS, "num_points"),
        total(CHUNKS, "payload") + total(SEGMENTS, "payload"),
        total(LOG_CHUNKS, "payload"),
        int(
            session.execute(
                select(func.count()).select_from(RUNS).where(RUNS.c.project == project)
            ).scalar_one()
        ),
    )


def points_by_project(session: Session) -> Mapping[str, int]:
    """Points stored, by project."""
    query = (
        select(RUNS.c.project, func.sum(WATERMARKS.c.num_points))
        .join(WATERMARKS, WATERMARKS.c.job_id == RUNS.c.job_id)
        .group_by(RUNS.c.project)
    )
    return {project: int(points) for project, points in session.execute(query)}


def forget(session: Session, job_id: str) -> int:
    """Deletes every row of a job, in every table that has rows of jobs; returns how many.

    What comes of the job later is not stored any more. Call `reclaim` afterwards.
    """
    next_revision(session, REVISION)
    upsert(session, FORGOTTEN, [{"job": job_id, "time_us": time.time_ns() // 1000}])
    gone, trace_ids = 0, traces.traces_of(session, job_id)
    for table in METADATA.sorted_tables:
        if "job_id" in table.c:
            gone += remove(session, delete(table).where(table.c.job_id == job_id))
    return gone + traces.drop(session, trace_ids)


def forgotten(session: Session, job_ids: Collection[str]) -> frozenset[str]:
    """Those of the jobs that were deleted."""
    of = FORGOTTEN.c.job
    return frozenset(session.execute(select(of).where(of.in_(job_ids))).scalars())


def expired(session: Session, default: Policy, now_us: int) -> list[str]:
    """Jobs that ended longer ago than their project keeps them; some of them if they are many."""
    found: list[str] = []
    own = policies(session)
    projects = session.execute(select(RUNS.c.project).distinct()).scalars().all()
    for project in projects:
        days = own.get(project, Policy(0, 0, 0)).over(default).keep_days
        if not days:
            continue
        last_log = (
            select(func.max(LOG_CHUNKS.c.time_us))
            .where(LOG_CHUNKS.c.job_id == RUNS.c.job_id)
            .scalar_subquery()
        )
        query = (
            select(RUNS.c.job_id)
            .where(RUNS.c.project == project, RUNS.c.state.in_(_ENDED), RUNS.c.create_time_us > 0)
            .where(func.coalesce(last_log, RUNS.c.create_time_us) < now_us - days * _DAY_US)
            .limit(_MOST_JOBS)
        )
        found += session.execute(query).scalars()
    return found


class Retention:
    """Looks which projects are full, and lets go what was kept long enough."""

    def __init__(self, db: Database, default: Policy) -> None:
        self._db, self.default = db, default
        self._policies: Mapping[str, Policy] = {}
        self._full: frozenset[str] = frozenset()
        self._swept = float("-inf")

    def effective(self, project: str) -> Policy:
        """What counts for a project, as it was some seconds ago."""
        return self._policies.get(project, self.default)

    def full(self, project: str) -> bool:
        """Whether a project has no room for more points, as it was some seconds ago."""
        return project in self._full

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            try:
                await self.refresh()
                if time.monotonic() - self._swept > _SWEEP_SECONDS:
                    self._swept = time.monotonic()
                    await self.sweep(int(time.time() * 1_000_000))
            except TunesmithError as error:  # the database is away
                log.warning("retention waits", extra={"problem": str(error)})
            await asyncio.sleep(_PAUSE_SECONDS)

    async def refresh(self) -> None:
        """Looks at policies and at what is stored."""
        own = await self._db.read(policies)
        self._policies = {project: chosen.over(self.default) for project, chosen in own.items()}
        if not self.default.max_points and not any(each.max_points for each in own.values()):
            self._full = frozenset()
            return
        points = await self._db.read(points_by_project)
        full = {p for p, n in points.items() if 0 < self.effective(p).max_points <= n}
        for project in sorted(full - self._full):
            log.warning("a project is full: its points wait at the agents", extra={"project": project})
        self._full = frozenset(full)

    async def sweep(self, now_us: int) -> int:
        """Forgets jobs kept long enough; returns how many."""
        gone = 0
        while jobs := await self._db.read(lambda session: expired(session, self.default, now_us)):
            for job_id in jobs:
                await self._db.write(partial(forget, job_id=job_id))
                log.info("a job's metrics and logs were kept long enough", extra={"job": job_id})
            gone += len(jobs)
        late = delete(FORGOTTEN).where(FORGOTTEN.c.time_us < now_us - _LATE_DAYS * _DAY_US)
        await self._db.write(lambda session: session.execute(late))
        await self._db.write(lambda session: traces.expire(session, now_us - _HOUR_US))
        if gone:
            await reclaim(self._db)
        return gone


async def reclaim(db: Database) -> None:
    """Gives the room of deleted rows back to the system, a little at a time; PostgreSQL does so by itself."""
    while db.dialect == "sqlite" and await db.write(_reclaim_some):
        pass


def _reclaim_some(session: Session) -> bool:
    before = session.execute(text("PRAGMA freelist_count")).scalar_one()
    # Each page is a row without columns, which SQLAlchemy takes for no rows at all: the driver fetches them.
    driver: Any = session.connection().connection.driver_connection
    driver.execute("PRAGMA incremental_vacuum(4000)").fetchall()
    after = session.execute(text("PRAGMA freelist_count")).scalar_one()
    return 0 < int(after) < int(before)
