"""What the engine found, as rows: alerts, and whom they are told to."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith_kit.db import next_revision
from tunesmith_metrics.alerts import notices, store
from tunesmith_metrics.alerts.machine import Found, Rule
from tunesmith_metrics.alerts.tables import ALERTS
from tunesmith_metrics.store import upsert
from tunesmith_metrics.tables import REVISION


def enter(
    session: Session,
    news: Mapping[str, tuple[str, Found]],
    rules: Mapping[str, Rule],
    names: Mapping[str, str],
    now_us: int,
) -> None:
    """Writes alerts that changed, under one revision, and decides whom to tell."""
    changed = [(subject, found) for subject, found in news.values() if found.rule_uid in rules]
    if not changed:
        return
    revision = next_revision(session, REVISION)
    known = store.alert_rows(session, [found.id for _, found in changed])
    silences = {
        project: store.active_silences(session, project, now_us)
        for project in {rules[found.rule_uid].project for _, found in changed}
    }
    rows: list[dict[str, Any]] = []
    due: list[notices.Notice] = []
    for subject, found in changed:
        rule = rules[found.rule_uid]
        alert = alert_of(rule, subject, names.get(subject, ""), found, revision)
        before = known.get(found.id)
        silenced = bool(store.silences_of(alert, silences[rule.project]))
        due += notices.due(rule.body.channels, alert, before, silenced, now_us)
        rows.append(_row(rule, alert, found, before, silenced, now_us))
    upsert(session, ALERTS, rows)
    notices.enter(session, due)


def _row(
    rule: Rule, alert: rules_pb2.Alert, found: Found, before: Row[Any] | None, silenced: bool, now_us: int
) -> dict[str, Any]:
    told_us = before.told_us if before is not None else 0
    held = before is not None and before.held
    if found.firing_us >= 0 and not told_us and not held:
        told_us, held = (0, True) if silenced else (now_us, False)
    held = held and found.resolve_us < 0
    return {
        "id": found.id,
        "project": rule.project,
        "rule_id": rule.rule_id,
        "rule_uid": rule.uid,
        "subject": alert.subject,
        "state": alert.state,
        "held": held,
        "told_us": told_us,
        "begin_us": found.pending_us,
        "end_us": found.resolve_us,
        "revision": alert.revision,
        "body": alert.SerializeToString(),
    }


def alert_of(rule: Rule, subject: str, subject_name: str, found: Found, revision: int) -> rules_pb2.Alert:
    """An alert as the contract has it."""
    shown = subject_name or subject.rpartition("/")[2]
    alert = rules_pb2.Alert(
        name=f"projects/{rule.project}/alerts/{found.id}",
        rule=f"projects/{rule.project}/alertRules/{rule.rule_id}",
        subject=subject,
        subject_name=shown,
        state=found.state,
        severity=rule.body.severity or rules_pb2.ALERT_SEVERITY_WARNING,
        summary=f"{shown}: {found.finding.text}",
        value=found.finding.value,
        step=found.finding.step,
        labels=rule.body.labels,
        revision=revision,
    )
    alert.pending_time.FromMicroseconds(found.pending_us)
    if found.firing_us >= 0:
        alert.firing_time.FromMicroseconds(found.firing_us)
    if found.resolve_us >= 0:
        alert.resolve_time.FromMicroseconds(found.resolve_us)
    return alert
