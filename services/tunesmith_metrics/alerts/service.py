"""The rpcs of rules and alerts: check, call, reply."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import alerts_pb2, alerts_pb2_grpc
from tunesmith.api.metrics.v1 import rules_pb2 as pb
from tunesmith_kit import names
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database, current_revision
from tunesmith_kit.idempotency import once
from tunesmith_kit.rpc import principal
from tunesmith_kit.watch import CommitSignal
from tunesmith_metrics.alerts import notices, registry, replay, rules, store
from tunesmith_metrics.alerts.engine import Engine
from tunesmith_metrics.alerts.sender import Sender
from tunesmith_metrics.alerts.tables import ALERTS, NOTICES, REQUESTS
from tunesmith_metrics.changes import changes
from tunesmith_metrics.tables import REVISION

Context = Any
_PROJECT = "projects/*"
_RULE = "projects/*/alertRules/*"
_CHANNEL = "projects/*/alertChannels/*"
_SILENCE = "projects/*/silences/*"
_WATCHED = 500  # alerts in one message


class AlertService(alerts_pb2_grpc.AlertServiceServicer):
    """AlertService of the contract. `private`: webhooks may go to private addresses."""

    def __init__(
        self,
        db: Database,
        signal: CommitSignal,
        clock: Clock,
        engine: Engine,
        sender: Sender,
        private: bool,
    ) -> None:
        self._db, self._signal, self._clock = db, signal, clock
        self._engine, self._sender, self._private = engine, sender, private

    def _now_us(self) -> int:
        return int(self._clock.now().timestamp() * 1_000_000)

    async def CreateAlertRule(
        self, request: alerts_pb2.CreateAlertRuleRequest, context: Context
    ) -> alerts_pb2.CreateAlertRuleResponse:
        """Makes a rule."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        rules.check_rule(request.rule, project)
        actor, now_us = principal().name, self._now_us()

        def write(session: Session) -> alerts_pb2.CreateAlertRuleResponse:
            def act() -> alerts_pb2.CreateAlertRuleResponse:
                made = registry.create(session, project, request.rule_id, request.rule, now_us)
                return alerts_pb2.CreateAlertRuleResponse(rule=made)

            return once(session, REQUESTS, actor, request, act, alerts_pb2.CreateAlertRuleResponse)

        response = await self._db.write(write)
        self._engine.poke()
        return response

    async def GetAlertRule(
        self, request: alerts_pb2.GetAlertRuleRequest, context: Context
    ) -> alerts_pb2.GetAlertRuleResponse:
        """Returns one rule."""
        project, rule_id = names.parse(_RULE, request.name)
        found = await self._db.read(lambda s: registry.message(store.rule_row(s, project, rule_id)))
        return alerts_pb2.GetAlertRuleResponse(rule=found)

    async def ListAlertRules(
        self, request: alerts_pb2.ListAlertRulesRequest, context: Context
    ) -> alerts_pb2.ListAlertRulesResponse:
        """Lists rules by name."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        after = names.page_cursor(request.parent, request.page_token)
        size = names.page_size(request.page_size, 100)
        found, cursor = await self._db.read(lambda s: registry.page(s, project, after, size))
        token = names.page_token(request.parent, cursor) if cursor else ""
        return alerts_pb2.ListAlertRulesResponse(rules=found, next_page_token=token)

    async def UpdateAlertRule(
        self, request: alerts_pb2.UpdateAlertRuleRequest, context: Context
    ) -> alerts_pb2.UpdateAlertRuleResponse:
        """Changes a rule."""
        project, rule_id = names.parse(_RULE, request.rule.name, "rule.name")
        now_us = self._now_us()
        paths = list(request.update_mask.paths)
        changed = await self._db.write(
            lambda s: registry.update(s, project, rule_id, request.rule, paths, now_us)
        )
        self._engine.poke()
        return alerts_pb2.UpdateAlertRuleResponse(rule=changed)

    async def DeleteAlertRule(
        self, request: alerts_pb2.DeleteAlertRuleRequest, context: Context
    ) -> alerts_pb2.DeleteAlertRuleResponse:
        """Deletes a rule."""
        project, rule_id = names.parse(_RULE, request.name)
        now_us = self._now_us()
        await self._db.write(lambda s: registry.delete(s, project, rule_id, now_us))
        self._engine.poke()
        return alerts_pb2.DeleteAlertRuleResponse()

    async def TestAlertRule(
        self, request: alerts_pb2.TestAlertRuleRequest, context: Context
    ) -> alerts_pb2.TestAlertRuleResponse:
        """Runs a rule over what is stored."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        rules.check_rule(request.rule, project)
        start_us = request.start_time.ToMicroseconds() if request.HasField("start_time") else 0
        end_us = request.end_time.ToMicroseconds() if request.HasField("end_time") else self._now_us()
        rule, found = await replay.run(self._db, request.rule, project, start_us, end_us)
        return alerts_pb2.TestAlertRuleResponse(
            alerts=found.alerts(rule), num_subjects=found.num_subjects, num_samples=found.num_samples
        )

    async def ListAlerts(
        self, request: alerts_pb2.ListAlertsRequest, context: Context
    ) -> alerts_pb2.ListAlertsResponse:
        """Lists alerts, newest first."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        scope = f"{request.parent}|{sorted(request.states)}|{request.rule}|{request.subject}"
        cursor = names.page_cursor(scope, request.page_token)
        where = [ALERTS.c.project == project]
        if request.states:
            where.append(ALERTS.c.state.in_(list(request.states)))
        if request.rule:
            where.append(ALERTS.c.rule_id == request.rule.rpartition("/")[2])
        if request.subject:
            where.append(ALERTS.c.subject == request.subject)
        now_us = self._now_us()

        def read(session: Session) -> alerts_pb2.ListAlertsResponse:
            revision = current_revision(session, REVISION)
            size = names.page_size(request.page_size, 100)
            rows, after = store.newest_first(session, ALERTS, "begin_us", where, cursor, size)
            token = names.page_token(scope, after) if after else ""
            found = _alerts(session, project, rows, now_us)
            return alerts_pb2.ListAlertsResponse(alerts=found, next_page_token=token, revision=revision)

        return await self._db.read(read)

    async def WatchAlerts(
        self, request: alerts_pb2.WatchAlertsRequest, context: Context
    ) -> AsyncIterator[alerts_pb2.WatchAlertsResponse]:
        """Streams alerts as they change."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")

        async def fetch(revision: int) -> tuple[Sequence[pb.Alert], int]:
            return await self._db.read(lambda s: self._changed(s, project, revision))

        async for found, revision in changes(self._db, self._signal, fetch, request.from_revision):
            yield alerts_pb2.WatchAlertsResponse(alerts=found, revision=revision)

    def _changed(self, session: Session, project: str, revision: int) -> tuple[Sequence[pb.Alert], int]:
        newest = current_revision(session, REVISION)
        rows, reached = store.changed_alerts(session, project, revision, _WATCHED)
        return _alerts(session, project, rows, self._now_us()), max(reached, revision) if rows else newest

    async def CreateSilence(
        self, request: alerts_pb2.CreateSilenceRequest, context: Context
    ) -> alerts_pb2.CreateSilenceResponse:
        """Keeps channels quiet for a while."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        actor, now_us = principal().name, self._now_us()
        rules.check_silence(request.silence, project, now_us)

        def write(session: Session) -> alerts_pb2.CreateSilenceResponse:
            def act() -> alerts_pb2.CreateSilenceResponse:
                made = registry.silence(session, project, request.silence, actor, now_us)
                return alerts_pb2.CreateSilenceResponse(silence=made)

            return once(session, REQUESTS, actor, request, act, alerts_pb2.CreateSilenceResponse)

        return await self._db.write(write)

    async def ListSilences(
        self, request: alerts_pb2.ListSilencesRequest, context: Context
    ) -> alerts_pb2.ListSilencesResponse:
        """Lists silences, those that end last first."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        scope = f"{request.parent}|{request.show_ended}"
        cursor = names.page_cursor(scope, request.page_token)
        size, now_us = names.page_size(request.page_size, 100), self._now_us()
        end = None if request.show_ended else now_us
        found, after = await self._db.read(lambda s: registry.silences(s, project, end, cursor, size))
        token = names.page_token(scope, after) if after else ""
        return alerts_pb2.ListSilencesResponse(silences=found, next_page_token=token)

    async def EndSilence(
        self, request: alerts_pb2.EndSilenceRequest, context: Context
    ) -> alerts_pb2.EndSilenceResponse:
        """Ends a silence; the sender then tells what it held back."""
        project, silence_id = names.parse(_SILENCE, request.name)
        now_us = self._now_us()
        ended = await self._db.write(lambda s: registry.end_silence(s, project, silence_id, now_us))
        return alerts_pb2.EndSilenceResponse(silence=ended)

    async def SetAlertChannel(
        self, request: alerts_pb2.SetAlertChannelRequest, context: Context
    ) -> alerts_pb2.SetAlertChannelResponse:
        """Makes or replaces a channel."""
        project, channel_id = names.parse(_CHANNEL, request.channel.name, "channel.name")
        private = self._private
        made = await self._db.write(
            lambda s: registry.set_channel(s, project, channel_id, request.channel, private)
        )
        return alerts_pb2.SetAlertChannelResponse(channel=registry.shown(made))

    async def ListAlertChannels(
        self, request: alerts_pb2.ListAlertChannelsRequest, context: Context
    ) -> alerts_pb2.ListAlertChannelsResponse:
        """Lists channels by name."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        found = await self._db.read(lambda s: store.channels(s, project))
        return alerts_pb2.ListAlertChannelsResponse(channels=[registry.shown(each) for each in found])

    async def DeleteAlertChannel(
        self, request: alerts_pb2.DeleteAlertChannelRequest, context: Context
    ) -> alerts_pb2.DeleteAlertChannelResponse:
        """Deletes a channel."""
        project, channel_id = names.parse(_CHANNEL, request.name)
        await self._db.write(lambda s: store.drop_channel(s, project, channel_id))
        return alerts_pb2.DeleteAlertChannelResponse()

    async def TestAlertChannel(
        self, request: alerts_pb2.TestAlertChannelRequest, context: Context
    ) -> alerts_pb2.TestAlertChannelResponse:
        """Sends a test notification."""
        project, channel_id = names.parse(_CHANNEL, request.name)
        channel = await self._db.read(lambda s: store.channel(s, project, channel_id))
        row = registry.test_notice(project, channel_id, self._now_us())
        problem = await self._sender.send(channel, row)
        row.num_tries, row.problem = 1, problem[:1000]
        row.delivery = notices.FAILED if problem else notices.DELIVERED
        row.deliver_us = 0 if problem else self._now_us()
        await self._db.write(lambda s: store.insert_new(s, NOTICES, [vars(row)]))
        return alerts_pb2.TestAlertChannelResponse(notification=notices.message(row))

    async def ListNotifications(
        self, request: alerts_pb2.ListNotificationsRequest, context: Context
    ) -> alerts_pb2.ListNotificationsResponse:
        """Lists notifications, newest first."""
        (project,) = names.parse(_PROJECT, request.parent, "parent")
        scope = f"{request.parent}|{request.alert}"
        cursor = names.page_cursor(scope, request.page_token)
        where = [NOTICES.c.project == project]
        if request.alert:
            where.append(NOTICES.c.alert_id == request.alert.rpartition("/")[2])
        size = names.page_size(request.page_size, 100)
        rows, after = await self._db.read(
            lambda s: store.newest_first(s, NOTICES, "create_us", where, cursor, size)
        )
        token = names.page_token(scope, after) if after else ""
        found = [notices.message(row) for row in rows]
        return alerts_pb2.ListNotificationsResponse(notifications=found, next_page_token=token)


def _alerts(session: Session, project: str, rows: Sequence[Any], now_us: int) -> list[pb.Alert]:
    """Alerts with the silences that keep them quiet now."""
    silences = store.active_silences(session, project, now_us) if rows else []
    found = []
    for row in rows:
        alert = pb.Alert.FromString(row.body)
        if silences and alert.state != pb.ALERT_STATE_RESOLVED:
            alert.silences.extend(store.silences_of(alert, silences))
        found.append(alert)
    return found
