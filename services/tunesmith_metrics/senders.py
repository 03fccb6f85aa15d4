"""Who may store what it sends: a job belongs to the project of its first message; a deleted one is over."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from tunesmith.errors import InvalidArgument
from tunesmith_metrics.events import Rank
from tunesmith_metrics.retention import forgotten
from tunesmith_metrics.tables import RUNS


@dataclass(frozen=True, slots=True)
class Senders:
    """Ranks whose records are stored; why those of others are refused; and those whose job was deleted."""

    welcome: frozenset[Rank]
    strangers: Mapping[Rank, InvalidArgument]
    late: frozenset[Rank]


def enter(session: Session, senders: Collection[Rank], revision: int) -> Senders:
    """Notes each new job's project, and sorts the senders."""
    ids = {who.job_id for who in senders}
    rows = session.execute(select(RUNS.c.job_id, RUNS.c.project).where(RUNS.c.job_id.in_(ids)))
    known: dict[str, str] = {job_id: project for job_id, project in rows}  # rows are no tuples
    unknown = ids.difference(known)
    gone = forgotten(session, unknown) if unknown else frozenset()
    new: list[dict[str, Any]] = []
    strangers: dict[Rank, InvalidArgument] = {}
    late = frozenset(who for who in senders if who.job_id in gone)
    for who in sorted(set(senders) - late):
        if who.job_id not in known:
            known[who.job_id] = who.project
            new.append({"job_id": who.job_id, "project": who.project, "revision": revision})
        elif known[who.job_id] != who.project:
            strangers[who] = InvalidArgument(
                "MESSAGE_MALFORMED", "the job belongs to another project", field="project", value=who.project
            )
    if new:
        session.execute(insert(RUNS), new)
    return Senders(frozenset(senders) - late - strangers.keys(), strangers, late)
