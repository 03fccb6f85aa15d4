"""Alert rules, what they found, and who is told."""

from __future__ import annotations

import builtins
import contextlib
import datetime
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tunesmith import names
from tunesmith.api.metrics.v1 import alerts_pb2, rules_pb2
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import TunesmithError
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.watch import follow

_STATES = rules_pb2.DESCRIPTOR.enum_types_by_name["AlertState"]
_FIELDS = ("description", "severity", "selector", "condition", "hold", "channels", "labels")
_MORE_FIELDS = ("repeat_interval", "disabled")


@dataclass(frozen=True)
class Applied:
    """What `apply` did, or would do: `created`, `changed`, `unchanged` or `deleted`."""

    kind: str
    name: str
    change: str
    fields: tuple[str, ...] = ()


class Alerts(Handle[Face]):
    """Alerts of the client's project, their rules, silences and channels."""

    _core: Connection

    @stream
    async def list(
        self, *, states: Iterable[str] = (), rule: str = "", subject: str = ""
    ) -> AsyncGenerator[rules_pb2.Alert, None]:
        """Yields alerts, newest first; `states` are like `firing`, `subject` is a resource name."""
        request = alerts_pb2.ListAlertsRequest(
            parent=self._core.parent,
            states=[names.number("state", _STATES, state) for state in states],  # type: ignore[misc]
            rule=self._name("alertRules", rule) if rule else "",
            subject=subject,
            page_size=500,
        )
        async for page in self._core.pages(self._core.alerts.ListAlerts, request):
            for alert in page.alerts:
                yield alert

    @stream
    async def watch(
        self, *, from_revision: int = 0, on_gap: Callable[[TunesmithError | None], None] = lambda error: None
    ) -> AsyncGenerator[rules_pb2.Alert, None]:
        """Yields alerts as they change, for ever, across disconnects; first those that are kept."""

        def opened(revision: int) -> AsyncIterator[alerts_pb2.WatchAlertsResponse]:
            request = alerts_pb2.WatchAlertsRequest(parent=self._core.parent, from_revision=revision)
            return aiter(self._core.alerts.WatchAlerts(request, metadata=self._core.metadata))

        messages = follow(self._core, opened, from_revision=from_revision, on_gap=on_gap)
        async with contextlib.aclosing(messages):
            async for message in messages:
                for alert in message.alerts:
                    yield alert

    @stream
    async def rules(self) -> AsyncGenerator[rules_pb2.AlertRule, None]:
        """Yields rules by name."""
        request = alerts_pb2.ListAlertRulesRequest(parent=self._core.parent, page_size=500)
        async for page in self._core.pages(self._core.alerts.ListAlertRules, request):
            for rule in page.rules:
                yield rule

    @both
    async def rule(self, name: str) -> rules_pb2.AlertRule:
        """Returns one rule."""
        request = alerts_pb2.GetAlertRuleRequest(name=self._name("alertRules", name))
        return (await self._core.call(self._core.alerts.GetAlertRule, request)).rule

    @both
    async def create(self, rule_id: str, rule: rules_pb2.AlertRule) -> rules_pb2.AlertRule:
        """Makes a rule; it counts from now on."""
        return await self._create(rule_id, rule)

    @both
    async def update(self, rule: rules_pb2.AlertRule, fields: Iterable[str] = ()) -> rules_pb2.AlertRule:
        """Changes the fields named of a rule, or all; with an etag only if nobody changed it meanwhile."""
        return await self._update(rule, fields)

    @both
    async def delete(self, name: str) -> None:
        """Deletes a rule; its alerts are resolved."""
        await self._delete(name)

    @both
    async def test(
        self,
        rule: rules_pb2.AlertRule,
        *,
        start: datetime.datetime | None = None,
        end: datetime.datetime | None = None,
    ) -> alerts_pb2.TestAlertRuleResponse:
        """Runs a rule over what is stored and returns the alerts it would have made. Nobody is told."""
        request = alerts_pb2.TestAlertRuleRequest(parent=self._core.parent, rule=rule)
        if start is not None:
            request.start_time.FromDatetime(start)
        if end is not None:
            request.end_time.FromDatetime(end)
        return await self._core.call(self._core.alerts.TestAlertRule, request, 60.0)

    @both
    async def silence(
        self,
        duration: datetime.timedelta,
        *,
        rules: Iterable[str] = (),
        subjects: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        comment: str = "",
    ) -> rules_pb2.Silence:
        """Keeps channels quiet about matching alerts from now on; what is not given matches all."""
        silence = rules_pb2.Silence(
            rules=[self._name("alertRules", rule) for rule in rules],
            subjects=list(subjects),
            labels=dict(labels or {}),
            comment=comment,
        )
        silence.end_time.FromDatetime(datetime.datetime.now(datetime.UTC) + duration)
        request = alerts_pb2.CreateSilenceRequest(
            parent=self._core.parent, silence=silence, request_id=new_request_id()
        )
        return (await self._core.call(self._core.alerts.CreateSilence, request)).silence

    @stream
    async def silences(self, *, ended: bool = False) -> AsyncGenerator[rules_pb2.Silence, None]:
        """Yields silences, those that end last first."""
        request = alerts_pb2.ListSilencesRequest(parent=self._core.parent, show_ended=ended, page_size=500)
        async for page in self._core.pages(self._core.alerts.ListSilences, request):
            for silence in page.silences:
                yield silence

    @both
    async def end_silence(self, name: str) -> rules_pb2.Silence:
        """Ends a silence now; firing alerts it held back are told at once."""
        request = alerts_pb2.EndSilenceRequest(name=self._name("silences", name))
        return (await self._core.call(self._core.alerts.EndSilence, request)).silence

    @both
    async def set_channel(self, channel_id: str, channel: rules_pb2.AlertChannel) -> rules_pb2.AlertChannel:
        """Makes or replaces a channel; secrets that are left out stay as they are."""
        return await self._set_channel(self._name("alertChannels", channel_id), channel)

    @both
    async def channels(self) -> Sequence[rules_pb2.AlertChannel]:
        """Returns the channels by name, without their secrets."""
        return await self._channels()

    @both
    async def delete_channel(self, name: str) -> None:
        """Deletes a channel; what it has not been told is dropped."""
        request = alerts_pb2.DeleteAlertChannelRequest(name=self._name("alertChannels", name))
        await self._core.call(self._core.alerts.DeleteAlertChannel, request)

    @both
    async def test_channel(self, name: str) -> rules_pb2.Notification:
        """Sends a test notification through a channel and returns what came of it."""
        request = alerts_pb2.TestAlertChannelRequest(name=self._name("alertChannels", name))
        return (await self._core.call(self._core.alerts.TestAlertChannel, request)).notification

    @stream
    async def notifications(self, *, alert: str = "") -> AsyncGenerator[rules_pb2.Notification, None]:
        """Yields what channels were told, newest first."""
        request = alerts_pb2.ListNotificationsRequest(parent=self._core.parent, page_size=500)
        request.alert = self._name("alerts", alert) if alert else ""
        async for page in self._core.pages(self._core.alerts.ListNotifications, request):
            for notification in page.notifications:
                yield notification

    @both
    async def apply(
        self, path: str | Path, *, prune: bool = False, dry_run: bool = False
    ) -> Sequence[Applied]:
        """Brings channels and rules in line with a YAML file and returns what was done; again, nothing is.

        With `prune` rules that the file does not have are deleted; with `dry_run` nothing is changed. Raises
        InvalidArgument with every mistake of the file.
        """
        from tunesmith import alertfile  # with YAML, which only rule files need

        said = alertfile.read(Path(path), self._core.project)
        done: builtins.list[Applied] = []
        known_channels = {channel.name: channel for channel in await self._channels()}
        for ident, channel in said.channels.items():
            change, changed = _compare(
                known_channels.get(channel.name), _public(channel), ("webhook", "apprise", "send_resolved")
            )
            if change == "unchanged" and channel.webhook.secret:
                change, changed = "changed", ("webhook.secret",)
            if change != "unchanged" and not dry_run:
                await self._set_channel(channel.name, channel)
            done.append(Applied("channel", ident, change, changed))
        known = {rule.name: rule for rule in await self._rules()}
        for ident, rule in said.rules.items():
            change, changed = _compare(known.get(rule.name), rule, (*_FIELDS, *_MORE_FIELDS))
            if change == "created" and not dry_run:
                await self._create(ident, rule)
            elif change == "changed" and not dry_run:
                rule.etag = known[rule.name].etag
                await self._update(rule, changed)
            done.append(Applied("rule", ident, change, changed))
        for name in sorted(set(known) - {rule.name for rule in said.rules.values()} if prune else ()):
            if not dry_run:
                await self._delete(name)
            done.append(Applied("rule", names.last_part(name), "deleted"))
        return done

    async def _create(self, rule_id: str, rule: rules_pb2.AlertRule) -> rules_pb2.AlertRule:
        request = alerts_pb2.CreateAlertRuleRequest(
            parent=self._core.parent, rule_id=rule_id, rule=rule, request_id=new_request_id()
        )
        return (await self._core.call(self._core.alerts.CreateAlertRule, request)).rule

    async def _update(self, rule: rules_pb2.AlertRule, fields: Iterable[str]) -> rules_pb2.AlertRule:
        request = alerts_pb2.UpdateAlertRuleRequest(rule=rule, update_mask=FieldMask(paths=fields))
        return (await self._core.call(self._core.alerts.UpdateAlertRule, request)).rule

    async def _delete(self, name: str) -> None:
        request = alerts_pb2.DeleteAlertRuleRequest(name=self._name("alertRules", name))
        await self._core.call(self._core.alerts.DeleteAlertRule, request)

    async def _set_channel(self, name: str, said: rules_pb2.AlertChannel) -> rules_pb2.AlertChannel:
        channel = rules_pb2.AlertChannel()
        channel.CopyFrom(said)
        channel.name = name
        request = alerts_pb2.SetAlertChannelRequest(channel=channel)
        return (await self._core.call(self._core.alerts.SetAlertChannel, request)).channel

    async def _channels(self) -> Sequence[rules_pb2.AlertChannel]:
        request = alerts_pb2.ListAlertChannelsRequest(parent=self._core.parent)
        return [*(await self._core.call(self._core.alerts.ListAlertChannels, request)).channels]

    async def _rules(self) -> Sequence[rules_pb2.AlertRule]:
        request = alerts_pb2.ListAlertRulesRequest(parent=self._core.parent, page_size=500)
        return [
            r
            async for page in self._core.pages(self._core.alerts.ListAlertRules, request)
            for r in page.rules
        ]

    def _name(self, collection: str, name: str) -> str:
        return names.resource(self._core.project, collection, name)


def _public(channel: rules_pb2.AlertChannel) -> rules_pb2.AlertChannel:
    """A channel as the server shows it."""
    copy = rules_pb2.AlertChannel()
    copy.CopyFrom(channel)
    if copy.HasField("webhook"):
        copy.webhook.ClearField("secret")
    return copy


def _compare(known: Message | None, wanted: Message, fields: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """What is to be done, and which fields differ."""
    if known is None:
        return "created", ()
    changed = tuple(name for name in fields if getattr(known, name) != getattr(wanted, name))
    return ("changed" if changed else "unchanged"), changed
