"""Rules, alerts, silences and channels in the database: find, list, change."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Table, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith.errors import InvalidArgument, NotFound
from tunesmith_kit.db import current_revision
from tunesmith_metrics.alerts.tables import (
    ALERTS,
    CHANNELS,
    CURSOR,
    HISTORY,
    NOTICES,
    RULES,
    SILENCES,
    SUBJECTS,
)
from tunesmith_metrics.store import upsert
from tunesmith_metrics.tables import REVISION

_AT_ONCE = 500  # parameters of one statement


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the engine came, and who it is."""

    revision: int = 0
    history_revision: int = 0
    version: int = 0
    rules_version: int = 0
    holder: str = ""
    holder_until_us: int = 0


def cursor(session: Session, lock: bool = False) -> Cursor:
    """The engine's row; with `lock` no other replica changes it before this transaction ends."""
    query = select(CURSOR).where(CURSOR.c.id == 1)
    row = session.execute(query.with_for_update() if lock else query).one_or_none()
    return Cursor(*row[1:]) if row is not None else Cursor()


def save_cursor(session: Session, value: Cursor) -> None:
    """Writes the engine's row."""
    row = {name: getattr(value, name) for name in Cursor.__slots__}
    upsert(session, CURSOR, [{"id": 1, **row}])


def rules_changed(session: Session) -> None:
    """Notes that rules changed, so that what the engine judged by the old ones is judged again."""
    insert_new(session, CURSOR, [{"id": 1, **{name: getattr(Cursor(), name) for name in Cursor.__slots__}}])
    session.execute(update(CURSOR).values(rules_version=CURSOR.c.rules_version + 1))


def safe_revision(session: Session) -> int:
    """Up to which revision the engine needs segments no more as they are, so that they may be merged."""
    rules = session.execute(select(func.count()).select_from(RULES).where(~RULES.c.disabled)).scalar_one()
    return cursor(session).revision if rules else current_revision(session, REVISION)


def insert_new(session: Session, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows; those whose primary key is there already are left as they are."""
    if rows:
        dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
        session.execute(dialect.insert(table).on_conflict_do_nothing(), list(rows))


def enabled_rules(session: Session) -> Sequence[Row[Any]]:
    """All rules that are switched on."""
    return session.execute(select(RULES).where(~RULES.c.disabled)).all()


def rule_row(session: Session, project: str, rule_id: str) -> Row[Any]:
    """A rule's row; `NotFound` when there is none."""
    row = session.execute(_rule(project, rule_id)).one_or_none()
    if row is None:
        raise missing("ALERT_RULE_NOT_FOUND", "alert rule", rule_id, "`tunesmith alerts rules` lists them")
    return row


def has_rule(session: Session, project: str, rule_id: str) -> bool:
    """Whether there is such a rule."""
    return session.execute(_rule(project, rule_id)).one_or_none() is not None


def _rule(project: str, rule_id: str) -> Any:
    return select(RULES).where(RULES.c.project == project, RULES.c.id == rule_id)


def num_rules(session: Session, project: str) -> int:
    """How many rules a project has."""
    query = select(func.count()).select_from(RULES).where(RULES.c.project == project)
    return int(session.execute(query).scalar_one())


def subjects(session: Session, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """What was kept of jobs and nodes: of those named, or of all that have not ended."""
    if names is None:
        rows = session.execute(select(SUBJECTS).where(SUBJECTS.c.ended_us < 0)).all()
        return {row.subject: json.loads(row.body) for row in rows}
    found: dict[str, dict[str, Any]] = {}
    todo = list(names)
    for start in range(0, len(todo), _AT_ONCE):
        query = select(SUBJECTS).where(SUBJECTS.c.subject.in_(todo[start : start + _AT_ONCE]))
        found |= {row.subject: json.loads(row.body) for row in session.execute(query)}
    return found


def save_subjects(session: Session, kept: Mapping[str, tuple[int, dict[str, Any]]]) -> None:
    """Writes what is known of jobs and nodes: when each ended (-1: it did not), and its state."""
    rows = [
        {"subject": name, "ended_us": ended_us, "body": json.dumps(body).encode()}
        for name, (ended_us, body) in kept.items()
    ]
    upsert(session, SUBJECTS, rows)


def forget_subject(session: Session, subject: str) -> None:
    """Deletes what is known of a job that was deleted."""
    session.execute(delete(SUBJECTS).where(SUBJECTS.c.subject == subject))
    session.execute(delete(HISTORY).where(HISTORY.c.subject == subject))


def active_silences(session: Session, project: str, now_us: int) -> list[rules_pb2.Silence]:
    """The silences of a project in force at a time."""
    of = SILENCES.c
    query = select(of.body).where(of.project == project, of.end_us > now_us, of.start_us <= now_us)
    return [rules_pb2.Silence.FromString(body) for body in session.execute(query).scalars()]


def silences_of(alert: rules_pb2.Alert, silences: Iterable[rules_pb2.Silence]) -> list[str]:
    """Names of the silences that an alert matches."""
    return [
        each.name
        for each in silences
        if (not each.rules or alert.rule in each.rules)
        and (not each.subjects or alert.subject in each.subjects)
        and all(alert.labels.get(key) == value for key, value in each.labels.items())
    ]


def alert_rows(session: Session, ids: Sequence[str]) -> dict[str, Row[Any]]:
    """Rows of alerts by id."""
    found: dict[str, Row[Any]] = {}
    for start in range(0, len(ids), _AT_ONCE):
        query = select(ALERTS).where(ALERTS.c.id.in_(ids[start : start + _AT_ONCE]))
        found |= {row.id: row for row in session.execute(query)}
    return found


def changed_alerts(session: Session, project: str, revision: int, size: int) -> tuple[list[Row[Any]], int]:
    """Alerts that changed after a revision, of whole revisions, and the revision reached."""
    of = ALERTS.c
    query = select(ALERTS).where(of.project == project, of.revision > revision).order_by(of.revision, of.id)
    rows = list(session.execute(query.limit(size + 1)))
    if len(rows) > size:
        last = rows[-1].revision
        if rows[0].revision == last:
            rows = list(session.execute(query.where(of.revision == last)))
        else:
            rows = [row for row in rows if row.revision < last]
    return rows, rows[-1].revision if rows else revision


def save_alert(session: Session, alert: rules_pb2.Alert, **columns: Any) -> None:
    """Writes changed columns of an alert together with its body."""
    ident = alert.name.rpartition("/")[2]
    values = {"state": alert.state, "revision": alert.revision, "body": alert.SerializeToString(), **columns}
    session.execute(update(ALERTS).where(ALERTS.c.id == ident).values(values))


def channel_row(session: Session, project: str, channel_id: str) -> rules_pb2.AlertChannel | None:
    """A channel with its secrets, or None."""
    of = CHANNELS.c
    query = select(of.body).where(of.project == project, of.id == channel_id)
    body = session.execute(query).scalar_one_or_none()
    return None if body is None else rules_pb2.AlertChannel.FromString(body)


def channel(session: Session, project: str, channel_id: str) -> rules_pb2.AlertChannel:
    """A channel with its secrets; `NotFound` when there is none."""
    found = channel_row(session, project, channel_id)
    if found is None:
        remedy = "`tunesmith alerts channels` lists them"
        raise missing("ALERT_CHANNEL_NOT_FOUND", "alert channel", channel_id, remedy)
    return found


def channels(session: Session, project: str) -> list[rules_pb2.AlertChannel]:
    """The channels of a project by name, with their secrets."""
    query = select(CHANNELS.c.body).where(CHANNELS.c.project == project).order_by(CHANNELS.c.id)
    return [rules_pb2.AlertChannel.FromString(body) for body in session.execute(query).scalars()]


def drop_channel(session: Session, project: str, channel_id: str) -> None:
    """Deletes a channel and what it has not been told."""
    channel(session, project, channel_id)
    session.execute(delete(CHANNELS).where(CHANNELS.c.project == project, CHANNELS.c.id == channel_id))
    of = NOTICES.c
    waiting = of.delivery == rules_pb2.NOTIFICATION_STATE_WAITING
    session.execute(delete(NOTICES).where(of.project == project, of.channel_id == channel_id, waiting))


def newest_first(
    session: Session, table: Table, time: str, where: Sequence[Any], cursor: str, size: int
) -> tuple[list[Row[Any]], str]:
    """A page of rows by time, newest first, and the cursor of the next; empty when this was the last."""
    of = table.c
    query = select(table).where(*where).order_by(of[time].desc(), of.id.desc()).limit(size + 1)
    if cursor:
        at, ident = _place(cursor)
        query = query.where((of[time] < at) | ((of[time] == at) & (of.id < ident)))
    rows = list(session.execute(query))
    if len(rows) <= size:
        return rows, ""
    last = rows[size - 1]
    return rows[:size], f"{getattr(last, time)}.{last.id}"


def _place(cursor: str) -> tuple[int, str]:
    time, dot, ident = cursor.partition(".")
    if not dot or not time.isdecimal() or len(time) > 18:
        raise InvalidArgument(
            "PAGE_TOKEN_INVALID",
            "the page token was not made for this list",
            field="page_token",
            value=cursor,
            remedy="give back next_page_token as it was, or leave it out for the first page",
        )
    return int(time), ident


def missing(reason: str, noun: str, name: str, remedy: str) -> NotFound:
    """The error for something that is not there."""
    return NotFound(reason, f"there is no {noun} {name}", field="name", value=name, remedy=remedy)


def add_history(session: Session, row: Mapping[str, Any]) -> None:
    """Enters an event of a job or node."""
    session.execute(insert(HISTORY).values(**row))
