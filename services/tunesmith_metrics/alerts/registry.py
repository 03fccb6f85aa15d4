"""Rules, silences and channels: make, change, end."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy import delete as remove
from sqlalchemy import update as change
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import rules_pb2 as pb
from tunesmith.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted
from tunesmith_kit.db import next_revision
from tunesmith_kit.ids import new_ulid
from tunesmith_metrics.alerts import notices, rules, store
from tunesmith_metrics.alerts.tables import CHANNELS, RULES, SILENCES
from tunesmith_metrics.store import upsert
from tunesmith_metrics.tables import REVISION

_SET_BY_SERVER = ("name", "etag", "create_time", "update_time", "problem")
# What a rule looks for: a change of these begins anew.
_MEANING = ("condition", "selector", "hold", "disabled")


def message(row: Row[Any]) -> pb.AlertRule:
    """A rule as the contract has it."""
    rule = pb.AlertRule.FromString(row.body)
    rule.etag = str(row.revision)
    return rule


def page(session: Session, project: str, after: str, size: int) -> tuple[list[pb.AlertRule], str]:
    """Rules of a project by id, and the cursor to the next page; empty when this was the last."""
    query = select(RULES).where(RULES.c.project == project, RULES.c.id > after).order_by(RULES.c.id)
    rows = session.execute(query.limit(size + 1)).all()
    return [message(row) for row in rows[:size]], rows[size - 1].id if len(rows) > size else ""


def create(session: Session, project: str, rule_id: str, said: pb.AlertRule, now_us: int) -> pb.AlertRule:
    """Enters a checked rule."""
    if store.has_rule(session, project, rule_id):
        raise AlreadyExists(
            "NAME_TAKEN",
            f"there is an alert rule {rule_id} already",
            field="rule_id",
            value=rule_id,
            remedy="choose another id, or change the rule",
        )
    if store.num_rules(session, project) >= rules.MOST_RULES:
        raise ResourceExhausted(
            "RULES_TOO_MANY",
            f"a project has at most {rules.MOST_RULES} alert rules",
            field="rule_id",
            value=rule_id,
            remedy="delete rules that nobody needs; `tunesmith alerts rules` lists them",
        )
    body = _cleaned(said)
    body.name = f"projects/{project}/alertRules/{rule_id}"
    body.create_time.FromMicroseconds(now_us)
    _check_channels(session, project, body)
    return _write(session, project, rule_id, body, new_ulid(), now_us)


def update(
    session: Session, project: str, rule_id: str, said: pb.AlertRule, paths: Sequence[str], now_us: int
) -> pb.AlertRule:
    """Changes the fields named of a rule, or all; what stood is resolved when it looks for something else."""
    row = store.rule_row(session, project, rule_id)
    if said.etag and said.etag != str(row.revision):
        raise FailedPrecondition(
            "REVISION_STALE",
            "the rule was changed since you read it",
            field="rule.etag",
            value=said.etag,
            remedy="read the rule again and repeat the change",
        )
    before = pb.AlertRule.FromString(row.body)
    after = _merged(before, said, paths)
    rules.check_rule(after, project)
    _check_channels(session, project, after)
    if after == before:
        return message(row)
    uid: str = row.uid
    since: Row[Any] | None = row
    if any(_field(before, name) != _field(after, name) for name in _MEANING):
        notices.resolve(session, row, now_us)
        uid, since = new_ulid(), None
    return _write(session, project, rule_id, after, uid, now_us, since)


def _merged(before: pb.AlertRule, said: pb.AlertRule, paths: Sequence[str]) -> pb.AlertRule:
    known = {field.name for field in said.DESCRIPTOR.fields} - set(_SET_BY_SERVER)
    unknown = sorted(set(paths) - known)
    if unknown:
        raise InvalidArgument(
            "FIELD_INVALID",
            "the mask names a field that cannot be changed",
            field="update_mask",
            value=", ".join(unknown),
            remedy=f"the fields are {', '.join(sorted(known))}",
        )
    after = pb.AlertRule()
    after.CopyFrom(before)
    for name in paths or known:
        after.ClearField(name)  # type: ignore[arg-type]
    chosen = pb.AlertRule()
    chosen.CopyFrom(said)
    for name in {field.name for field in said.DESCRIPTOR.fields} - set(paths or known):
        chosen.ClearField(name)  # type: ignore[arg-type]
    after.MergeFrom(chosen)
    return after


def _field(rule: pb.AlertRule, name: str) -> Any:
    return getattr(rule, name)


def _cleaned(said: pb.AlertRule) -> pb.AlertRule:
    body = pb.AlertRule()
    body.CopyFrom(said)
    for name in _SET_BY_SERVER:
        body.ClearField(name)  # type: ignore[arg-type]
    return body


def _check_channels(session: Session, project: str, rule: pb.AlertRule) -> None:
    for name in rule.channels:
        store.channel(session, project, name.rpartition("/")[2])


def _write(
    session: Session,
    project: str,
    rule_id: str,
    body: pb.AlertRule,
    uid: str,
    now_us: int,
    since: Row[Any] | None = None,
) -> pb.AlertRule:
    """Writes a rule; it counts from now on, or as `since` says."""
    revision = next_revision(session, REVISION)
    body.ClearField("etag")
    body.update_time.FromMicroseconds(now_us)
    row = {
        "project": project,
        "id": rule_id,
        "uid": uid,
        "since_revision": since.since_revision if since is not None else revision,
        "since_us": since.since_us if since is not None else now_us,
        "disabled": body.disabled,
        "revision": revision,
        "body": body.SerializeToString(),
    }
    upsert(session, RULES, [row])
    store.rules_changed(session)
    return message(store.rule_row(session, project, rule_id))


def delete(session: Session, project: str, rule_id: str, now_us: int) -> None:
    """Deletes a rule; its alerts are resolved."""
    row = store.rule_row(session, project, rule_id)
    notices.resolve(session, row, now_us)
    session.execute(remove(RULES).where(RULES.c.project == project, RULES.c.id == rule_id))
    store.rules_changed(session)


def silence(session: Session, project: str, said: pb.Silence, actor: str, now_us: int) -> pb.Silence:
    """Enters a checked silence."""
    ident = new_ulid()
    made = pb.Silence()
    made.CopyFrom(said)
    made.name, made.creator = f"projects/{project}/silences/{ident}", actor
    if not made.HasField("start_time"):
        made.start_time.FromMicroseconds(now_us)
    session.execute(
        insert(SILENCES).values(
            project=project,
            id=ident,
            start_us=made.start_time.ToMicroseconds(),
            end_us=made.end_time.ToMicroseconds(),
            body=made.SerializeToString(),
        )
    )
    return made


def silences(
    session: Session, project: str, end_us: int | None, cursor: str, size: int
) -> tuple[list[pb.Silence], str]:
    """Silences that end after a time (None: all), those that end last first."""
    where = [SILENCES.c.project == project]
    if end_us is not None:
        where.append(SILENCES.c.end_us > end_us)
    rows, after = store.newest_first(session, SILENCES, "end_us", where, cursor, size)
    return [pb.Silence.FromString(row.body) for row in rows], after


def end_silence(session: Session, project: str, silence_id: str, now_us: int) -> pb.Silence:
    """Ends a silence now; one that has ended stays as it is."""
    of = SILENCES.c
    mine = (of.project == project, of.id == silence_id)
    row = session.execute(select(SILENCES).where(*mine)).one_or_none()
    if row is None:
        remedy = "`tunesmith alerts silences` lists them"
        raise store.missing("SILENCE_NOT_FOUND", "silence", silence_id, remedy)
    found = pb.Silence.FromString(row.body)
    if row.end_us > now_us:
        found.end_time.FromMicroseconds(now_us)
        session.execute(change(SILENCES).where(*mine).values(end_us=now_us, body=found.SerializeToString()))
    return found


def set_channel(
    session: Session, project: str, channel_id: str, said: pb.AlertChannel, private: bool
) -> pb.AlertChannel:
    """Makes or replaces a channel; secrets that are left out stay as they are."""
    made = pb.AlertChannel()
    made.CopyFrom(said)
    before = store.channel_row(session, project, channel_id)
    if before is not None and before.WhichOneof("target") == made.WhichOneof("target"):
        if made.WhichOneof("target") == "webhook":
            made.webhook.url = made.webhook.url or before.webhook.url
            # A secret is not handed to another address.
            if made.webhook.url == before.webhook.url:
                made.webhook.secret = made.webhook.secret or before.webhook.secret
        elif not made.apprise.urls:
            made.apprise.urls.extend(before.apprise.urls)
    if made.WhichOneof("target") == "apprise" and not made.apprise.urls:
        raise InvalidArgument("FIELD_INVALID", "is required", field="channel.apprise.urls")
    rules.check_channel(made, private)
    row = {"project": project, "id": channel_id, "body": made.SerializeToString()}
    upsert(session, CHANNELS, [row])
    return made


def shown(channel: pb.AlertChannel) -> pb.AlertChannel:
    """A channel without its secrets."""
    copy = pb.AlertChannel()
    copy.CopyFrom(channel)
    copy.webhook.ClearField("secret") if copy.HasField("webhook") else copy.apprise.ClearField("urls")
    return copy


def test_notice(project: str, channel_id: str, now_us: int) -> SimpleNamespace:
    """A notification that only tries a channel, as a row of the outbox."""
    ident = new_ulid()
    alert = pb.Alert(
        name=f"projects/{project}/alerts/{ident}",
        rule=f"projects/{project}/alertRules/test",
        subject=f"projects/{project}/jobs/test",
        subject_name="test",
        state=pb.ALERT_STATE_FIRING,
        severity=pb.ALERT_SEVERITY_INFO,
        summary="This is a test: the channel works when you read it.",
    )
    alert.pending_time.FromMicroseconds(now_us)
    alert.firing_time.FromMicroseconds(now_us)
    return SimpleNamespace(
        id=ident,
        project=project,
        alert_id=ident,
        channel_id=channel_id,
        state=pb.ALERT_STATE_FIRING,
        delivery=notices.WAITING,
        num_tries=0,
        problem="",
        create_us=now_us,
        deliver_us=0,
        next_try_us=0,
        alert=alert.SerializeToString(),
    )
