"""Who is told what: notifications are decided in the transaction that finds the alert, and sent from the
table.

A notification has an id made of what it tells, so that nothing is decided twice. It is tried at growing
intervals for a day, always under this id: a receiver that hears it twice can tell.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith_kit.db import next_revision
from tunesmith_metrics.alerts import store
from tunesmith_metrics.alerts.tables import ALERTS, HISTORY, NOTICES, RULES, SUBJECTS
from tunesmith_metrics.tables import REVISION

WAITING = rules_pb2.NOTIFICATION_STATE_WAITING
DELIVERED = rules_pb2.NOTIFICATION_STATE_DELIVERED
FAILED = rules_pb2.NOTIFICATION_STATE_FAILED
SILENCED = rules_pb2.NOTIFICATION_STATE_SILENCED
_FIRING, _RESOLVED = rules_pb2.ALERT_STATE_FIRING, rules_pb2.ALERT_STATE_RESOLVED

DAY_US = 24 * 3600 * 1_000_000
_PAUSES_SECONDS = (1, 5, 30, 300, 900, 1800, 3600)
_CLAIM_US = 20_000_000  # longer than a try may take
_AT_ONCE = 8
_ALERTS_KEPT_US, _EVENTS_KEPT_US = 90 * DAY_US, 90 * DAY_US


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a channel is told: an alert as it stands, for the n-th time."""

    channel: str
    state: int
    alert: rules_pb2.Alert
    delivery: int
    now_us: int
    count: int = 0

    @property
    def id(self) -> str:
        """Made of what it tells."""
        text = f"{self.alert.name}|{self.channel}|{self.state}|{self.count}"
        return hashlib.sha256(text.encode()).hexdigest()[:26]


def due(
    channels: Iterable[str], alert: rules_pb2.Alert, before: Row[Any] | None, silenced: bool, now_us: int
) -> list[Notice]:
    """What channels are told of an alert that changed; `silenced`: they are kept quiet about it now."""
    if not alert.HasField("firing_time"):
        return []
    told = before is not None and before.told_us > 0
    first = not told and (before is None or not before.held)
    delivery = SILENCED if silenced else WAITING
    found = []
    for channel in channels:
        if first:
            shown = rules_pb2.Alert()
            shown.CopyFrom(alert)
            shown.state = _FIRING  # it may be resolved already: that is told after it
            shown.ClearField("resolve_time")
            found.append(Notice(channel, _FIRING, shown, delivery, now_us))
        # Who did not hear that it fires need not hear that it is over.
        if alert.state == _RESOLVED and (told or (first and not silenced)):
            found.append(Notice(channel, _RESOLVED, alert, delivery, now_us))
    return found


def enter(session: Session, due: Sequence[Notice]) -> None:
    """Puts notifications into the outbox, of channels that exist and want to hear it."""
    known: dict[str, rules_pb2.AlertChannel | None] = {}
    rows = []
    for notice in due:
        _, project, _, channel_id = notice.channel.split("/")
        if notice.channel not in known:
            known[notice.channel] = store.channel_row(session, project, channel_id)
        channel = known[notice.channel]
        if channel is None or (notice.state == _RESOLVED and not channel.send_resolved):
            continue
        rows.append(
            {
                "id": notice.id,
                "project": project,
                "alert_id": notice.alert.name.rpartition("/")[2],
                "channel_id": channel_id,
                "state": notice.state,
                "delivery": notice.delivery,
                "num_tries": 0,
                "problem": "",
                "create_us": notice.now_us,
                "deliver_us": 0,
                "next_try_us": notice.now_us,
                "alert": notice.alert.SerializeToString(),
            }
        )
    store.insert_new(session, NOTICES, rows)


def resolve(session: Session, rule: Row[Any], now_us: int) -> None:
    """Resolves what stands of a rule that is deleted, switched off or looks for something else now."""
    of = ALERTS.c
    standing = session.execute(select(ALERTS).where(of.rule_uid == rule.uid, of.state != _RESOLVED)).all()
    if not standing:
        return
    revision = next_revision(session, REVISION)
    channels = rules_pb2.AlertRule.FromString(rule.body).channels
    for row in standing:
        alert = rules_pb2.Alert.FromString(row.body)
        alert.state, alert.revision = _RESOLVED, revision
        alert.resolve_time.FromMicroseconds(max(now_us, row.begin_us))
        store.save_alert(session, alert, end_us=now_us, held=False)
        silences = store.active_silences(session, row.project, now_us)
        enter(session, due(channels, alert, row, bool(store.silences_of(alert, silences)), now_us))


def remind(session: Session, now_us: int) -> int:
    """Tells again of alerts that go on, and at last of those whose silence is over; returns how many."""
    of = ALERTS.c
    query = select(ALERTS, RULES.c.body.label("rule")).join(RULES, RULES.c.uid == of.rule_uid)
    count = 0
    for row in session.execute(query.where(of.state == _FIRING)).all():
        rule = rules_pb2.AlertRule.FromString(row.rule)
        pause = rule.repeat_interval.ToMicroseconds()
        if not row.held and (not pause or row.told_us + pause > now_us):
            continue
        alert = rules_pb2.Alert.FromString(row.body)
        if store.silences_of(alert, store.active_silences(session, row.project, now_us)):
            continue
        told = [Notice(channel, _FIRING, alert, WAITING, now_us, now_us) for channel in rule.channels]
        enter(session, told)
        session.execute(update(ALERTS).where(of.id == row.id).values(held=False, told_us=now_us))
        count += 1
    return count


def needs_reminder(session: Session, now_us: int) -> bool:
    """Whether `remind` may find something: asked first, because it only reads."""
    of = ALERTS.c
    query = select(of.held, of.told_us, RULES.c.body).join(RULES, RULES.c.uid == of.rule_uid)
    for row in session.execute(query.where(of.state == _FIRING)):
        pause = rules_pb2.AlertRule.FromString(row.body).repeat_interval.ToMicroseconds()
        if row.held or (pause and row.told_us + pause <= now_us):
            return True
    return False


def is_due(session: Session, now_us: int) -> bool:
    """Whether a notification waits to be tried."""
    of = NOTICES.c
    query = select(of.id).where(of.delivery == WAITING, of.next_try_us <= now_us).limit(1)
    return session.execute(query).first() is not None


def claim(session: Session, now_us: int) -> list[Row[Any]]:
    """Takes notifications that are due, so that no other replica tries them meanwhile."""
    of = NOTICES.c
    query = select(NOTICES).where(of.delivery == WAITING, of.next_try_us <= now_us)
    rows = session.execute(
        query.order_by(of.next_try_us).limit(_AT_ONCE).with_for_update(skip_locked=True)
    ).all()
    ids = [row.id for row in rows]
    session.execute(update(NOTICES).where(of.id.in_(ids)).values(next_try_us=now_us + _CLAIM_US))
    return list(rows)


def release(session: Session, now_us: int) -> None:
    """Lets everything be tried now: who had claimed it is dead."""
    of = NOTICES.c
    waits = (of.delivery == WAITING) & (of.next_try_us > now_us)
    session.execute(update(NOTICES).where(waits).values(next_try_us=now_us))


def settle(session: Session, row: Row[Any], problem: str, now_us: int) -> None:
    """Notes what came of a try; a failed one is repeated later, or given up after a day."""
    tries = row.num_tries + 1
    values: dict[str, Any] = {"num_tries": tries, "problem": problem[:1000]}
    if not problem:
        values |= {"delivery": DELIVERED, "deliver_us": now_us}
    elif now_us - row.create_us > DAY_US:
        values |= {"delivery": FAILED}
    else:
        pause = _PAUSES_SECONDS[min(tries, len(_PAUSES_SECONDS)) - 1]
        values |= {"next_try_us": now_us + pause * 1_000_000}
    session.execute(update(NOTICES).where(NOTICES.c.id == row.id).values(values))


def clean(session: Session, now_us: int) -> None:
    """Deletes what is old: alerts that are over, what was told, events, jobs that ended long ago."""
    alert, notice = ALERTS.c, NOTICES.c
    old = now_us - _ALERTS_KEPT_US
    session.execute(delete(ALERTS).where(alert.state == _RESOLVED, alert.begin_us < old))
    session.execute(delete(NOTICES).where(notice.create_us < old))
    session.execute(delete(HISTORY).where(HISTORY.c.time_us < now_us - _EVENTS_KEPT_US))
    ended = SUBJECTS.c.ended_us
    session.execute(delete(SUBJECTS).where(ended >= 0, ended < now_us - 30 * DAY_US))


def message(row: Any) -> rules_pb2.Notification:
    """A notification as the contract has it."""
    found = rules_pb2.Notification(
        id=row.id,
        alert=f"projects/{row.project}/alerts/{row.alert_id}",
        channel=f"projects/{row.project}/alertChannels/{row.channel_id}",
        state=row.state,
        delivery=row.delivery,
        num_tries=row.num_tries,
        problem=row.problem,
    )
    found.create_time.FromMicroseconds(row.create_us)
    if row.deliver_us:
        found.deliver_time.FromMicroseconds(row.deliver_us)
    return found
