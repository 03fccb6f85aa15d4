"""Rules, alerts and silences through the service's own door."""

import asyncio
import base64
import hashlib
import hmac
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.metrics.alerting import CHANNEL, PARENT, PROJECT, TIME_US, Alerting, alerting, high_loss
from tests.metrics.receiver import Receiver, receiving
from tests.metrics.support import batch, chunk, send
from tests.support.wait import until, until_async
from tunesmith.api.metrics.v1 import alerts_pb2
from tunesmith.api.metrics.v1 import rules_pb2 as pb
from tunesmith.errors import InvalidArgument
from tunesmith_kit import subjects
from tunesmith_metrics.alerts.rules import check_rule

PENDING, FIRING, RESOLVED = (
    pb.ALERT_STATE_PENDING,
    pb.ALERT_STATE_FIRING,
    pb.ALERT_STATE_RESOLVED,
)
UNKNOWN: Any = 77
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


async def told(receiver: Receiver, count: int) -> list[str]:
    """Waits until so many requests came; returns what they say."""
    await until(lambda: len(receiver.requests) >= count, f"{count} notifications")
    return [body["type"] for body in receiver.bodies()]


async def test_an_alert_fires_is_told_once_and_resolved(tmp_path: Path) -> None:
    with receiving() as receiver:
        async with alerting(tmp_path) as found:
            receiver.answers = [500, 302]  # tried again, under the same id; a redirect is no success
            await found.channel(receiver.url, secret=SECRET)
            rule = await found.rule("loss", high_loss(channels=[CHANNEL], labels={"team": "a"}))
            await found.created()
            await found.losses(1, 1.0, 3.0)
            (alert,) = await found.until([FIRING])
            assert (alert.rule, alert.subject, alert.step) == (rule.name, PARENT, 2)
            assert alert.summary == "name-test: train/loss is 3, above 2"
            assert alert.firing_time.ToMicroseconds() == TIME_US + 2000
            await found.losses(3, 1.0)
            await found.until([RESOLVED])
            kinds = await told(receiver, 4)
            first = next(i for i, kind in enumerate(kinds) if kind == "alert.firing")
            headers, body = receiver.requests[first]
            stamp = headers["webhook-timestamp"]
            text = f"{headers['webhook-id']}.{stamp}.".encode() + body
            proof = hmac.new(b"0123456789abcdef01234567", text, hashlib.sha256).digest()
            assert headers["webhook-signature"] == f"v1,{base64.b64encode(proof).decode()}"
            assert receiver.bodies()[first]["alert"]["labels"] == {"team": "a"}
            asked = alerts_pb2.ListNotificationsRequest(parent=PROJECT)

            async def delivered() -> bool:
                notices = (await found.alerts.ListNotifications(asked)).notifications
                return {n.delivery for n in notices} == {pb.NOTIFICATION_STATE_DELIVERED}

            await until_async(delivered, "both delivered")
            notices = (await found.alerts.ListNotifications(asked)).notifications
            assert {n.id for n in notices} == set(receiver.ids())
            assert (len(notices), sum(n.num_tries for n in notices)) == (2, 4)


async def test_what_came_before_the_rule_does_not_count_and_the_test_of_a_rule_finds_it(
    tmp_path: Path,
) -> None:
    async with alerting(tmp_path) as found:
        await found.created(experiment="big")
        await found.losses(1, 3.0, 1.0)
        test = alerts_pb2.TestAlertRuleRequest(parent=PROJECT, rule=high_loss())

        async def stored() -> bool:
            return (await found.alerts.TestAlertRule(test)).num_samples >= 3

        await until_async(stored, "points")
        await found.rule("loss", high_loss(selector=pb.AlertSelector(experiment="big")))
        await found.rule("other", high_loss(selector=pb.AlertSelector(experiment="small")))
        await found.losses(3, 5.0, 1.0, 7.0)
        live = await found.until([RESOLVED, FIRING])
        assert {alert.rule for alert in live} == {f"{PROJECT}/alertRules/loss"}
        answer = await found.alerts.TestAlertRule(test)
        assert answer.num_subjects == 1
        assert [alert.step for alert in answer.alerts] == [1, 3, 5]
        times = [(a.pending_time, a.firing_time, a.resolve_time, a.value) for a in answer.alerts]
        assert times[1:] == [(a.pending_time, a.firing_time, a.resolve_time, a.value) for a in live]
        test.start_time.FromMicroseconds(TIME_US + 3000)
        assert [a.step for a in (await found.alerts.TestAlertRule(test)).alerts] == [3, 5]


async def test_batches_that_come_late_are_judged_in_their_order(tmp_path: Path) -> None:
    async with alerting(tmp_path) as found:
        said = pb.MetricThreshold(key="train/loss", comparison=pb.COMPARISON_AT_LEAST, value=2, num_points=3)
        await found.rule("mean", pb.AlertRule(condition=pb.AlertCondition(threshold=said)))
        await found.rule("late", high_loss())
        await found.losses(4, 0.0, 0.0, 9.0)
        await found.losses(7, 0.0, 0.0, 0.0, 0.0)
        await found.losses(1, 0.0, 3.0, 3.0)  # 0 3 3 has the mean 2: in the order of coming it were missed
        alerts = await found.until([RESOLVED] * 4)
        where = [(alert.rule.rpartition("/")[2], alert.step) for alert in alerts]
        assert sorted(where) == [("late", 2), ("late", 6), ("mean", 3), ("mean", 6)]


async def test_points_of_a_job_that_is_not_known_yet_wait_for_its_first_event(tmp_path: Path) -> None:
    async with alerting(tmp_path) as found:
        await found.rule("big", high_loss(selector=pb.AlertSelector(labels={"size": "big"})))
        await found.rule("any", high_loss())
        other = "01k0000000000000000000other"
        await found.losses(1, 3.0, 1.0)
        await found.losses(1, 3.0, 1.0, job_id=other)
        await found.created(size="big")
        await found.created(job_id=other, size="small")
        alerts = await found.until([RESOLVED] * 3)
        about = sorted((alert.rule.rpartition("/")[2], alert.subject == PARENT) for alert in alerts)
        assert about == [("any", False), ("any", True), ("big", True)]


async def test_silences_hold_back_and_tell_at_their_end_what_still_fires(tmp_path: Path) -> None:
    with receiving() as receiver:
        async with alerting(tmp_path) as found:
            await found.channel(receiver.url)
            await found.rule("loss", high_loss(channels=[CHANNEL], labels={"team": "a"}))
            silence = pb.Silence(labels={"team": "a"}, comment="maintenance")
            silence.end_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
            request = alerts_pb2.CreateSilenceRequest(parent=PROJECT, silence=silence, request_id="one")
            made = (await found.alerts.CreateSilence(request)).silence
            assert (await found.alerts.CreateSilence(request)).silence.name == made.name
            await found.losses(1, 3.0)
            await found.losses(1, 3.0, 1.0, job_id="01k00000000000000000000two")
            alerts = await found.until([FIRING, RESOLVED], states=[FIRING, RESOLVED])
            (held,) = [alert for alert in alerts if alert.state == FIRING]
            assert list(held.silences) == [made.name]
            assert receiver.requests == []
            await found.alerts.EndSilence(alerts_pb2.EndSilenceRequest(name=made.name))
            assert await told(receiver, 1) == ["alert.firing"]  # the other one is over and was never told
            assert receiver.bodies()[0]["alert"]["name"] == held.name
            asked = alerts_pb2.ListNotificationsRequest(parent=PROJECT, alert=held.name)

            async def both() -> bool:
                notices = (await found.alerts.ListNotifications(asked)).notifications
                ends = {pb.NOTIFICATION_STATE_SILENCED, pb.NOTIFICATION_STATE_DELIVERED}
                return {n.delivery for n in notices} == ends

            await until_async(both, "one held back, one delivered")


async def test_states_of_jobs_and_nodes_logs_and_heat(tmp_path: Path) -> None:
    async with alerting(tmp_path) as found:
        failed = pb.AlertCondition(job_state=pb.JobStateIs(states=["FAILED"]))
        lost = pb.AlertCondition(node_state=pb.NodeStateIs(states=["LOST"]))
        text = pb.AlertCondition(log_matches=pb.LogMatches(pattern="(?i)out of memory"))
        hot = pb.NodeThreshold(key="gpu*/temperature_celsius", comparison=pb.COMPARISON_AT_LEAST, value=90)
        rules = {
            "failed": failed,
            "lost": lost,
            "oom": text,
            "hot": pb.AlertCondition(node_threshold=hot),
        }
        for name, condition in rules.items():
            await found.rule(name, pb.AlertRule(condition=condition))
        await found.created()
        await found.node("box", "LOST", time_us=TIME_US + 10)
        await send(found.bus, chunk(0, ["fine", "CUDA Out Of Memory: tried to allocate"]))
        heat = batch(
            1, [[50.0, 95.0]], keys=("gpu0/temperature_celsius", "gpu1/temperature_celsius"), rank=65535
        )
        heat.job_id = "node.hotbox"
        subject = subjects.node_metrics("hotbox", 1)
        await found.bus.publish(subject, heat.SerializeToString(), "heat")
        await until_async(lambda: _count(found, 3), "three alerts")
        await found.state("FAILED", time_us=TIME_US + 5_000_000)
        await until_async(lambda: _count(found, 4), "four alerts")
        alerts = {alert.rule.rpartition("/")[2]: alert for alert in await found.found()}
        assert alerts["lost"].subject == "nodes/box"
        assert alerts["hot"].subject == "nodes/hotbox"
        assert alerts["hot"].summary == "hotbox: gpu1/temperature_celsius is 95, at least 90"
        assert alerts["failed"].summary == "name-test: it is FAILED"
        assert alerts["oom"].subject == PARENT


async def _count(found: Alerting, count: int) -> bool:
    return len(await found.found()) == count


async def test_a_job_without_progress_fires_by_the_time_of_its_data_and_is_watched(tmp_path: Path) -> None:
    async with alerting(tmp_path) as found:
        stuck = pb.AlertRule(condition=pb.AlertCondition(no_progress=pb.NoProgress()))
        stuck.condition.no_progress.duration.FromSeconds(60)
        await found.rule("stuck", stuck)
        call = found.alerts.WatchAlerts(alerts_pb2.WatchAlertsRequest(parent=PROJECT))
        await found.created()
        await found.state("RUNNING")
        await found.losses(1, 1.0)
        async with asyncio.timeout(90):
            async for message in call:
                if message.alerts:
                    break
        call.cancel()
        (alert,) = message.alerts
        assert alert.state == FIRING
        assert alert.pending_time.ToMicroseconds() == TIME_US + 1000 + 60_000_000


async def test_changing_a_rule_resolves_what_it_found_and_needs_the_etag(tmp_path: Path) -> None:
    async with alerting(tmp_path) as found:
        rule = await found.rule("loss", high_loss())
        await found.losses(1, 3.0)
        await found.until([FIRING])
        rule.description = "mine"
        changed = (await found.alerts.UpdateAlertRule(alerts_pb2.UpdateAlertRuleRequest(rule=rule))).rule
        await found.until([FIRING])  # words change nothing
        with pytest.raises(grpc.aio.AioRpcError, match="changed since you read it"):
            await found.alerts.UpdateAlertRule(alerts_pb2.UpdateAlertRuleRequest(rule=rule))
        changed.condition.threshold.value = 10
        await found.alerts.UpdateAlertRule(alerts_pb2.UpdateAlertRuleRequest(rule=changed))
        await found.until([RESOLVED])
        await found.losses(2, 5.0, 20.0)
        await found.until([RESOLVED, FIRING])
        await found.alerts.DeleteAlertRule(alerts_pb2.DeleteAlertRuleRequest(name=rule.name))
        await found.until([RESOLVED, RESOLVED])


async def test_alertmanager_payload_and_secrets_that_stay_inside(tmp_path: Path) -> None:
    with receiving() as receiver:
        async with alerting(tmp_path) as found:
            shown = await found.channel(receiver.url, secret=SECRET, format=pb.WEBHOOK_FORMAT_ALERTMANAGER)
            assert shown.webhook.secret == ""
            again = await found.channel(receiver.url, format=pb.WEBHOOK_FORMAT_ALERTMANAGER)
            assert again.webhook.secret == ""
            listed = await found.alerts.ListAlertChannels(alerts_pb2.ListAlertChannelsRequest(parent=PROJECT))
            assert listed.channels[0].webhook.secret == ""
            tried = await found.alerts.TestAlertChannel(alerts_pb2.TestAlertChannelRequest(name=CHANNEL))
            assert tried.notification.delivery == pb.NOTIFICATION_STATE_DELIVERED
            headers, _ = receiver.requests[0]
            assert headers["webhook-signature"].startswith("v1,")  # the secret of before was kept
            body = receiver.bodies()[0]
            assert (body["version"], body["status"], body["receiver"]) == ("4", "firing", "default/hook")
            (entry,) = body["alerts"]
            assert entry["labels"]["alertname"] == "test"
            assert set(entry) == {
                "status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint",
            }  # fmt: skip
            assert entry["endsAt"] == "0001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (
            {"threshold": pb.MetricThreshold(key="a", comparison=UNKNOWN)},
            "threshold.comparison",
            "is not known",
        ),
        (
            {"threshold": pb.MetricThreshold(key="a", comparison=pb.COMPARISON_ABOVE, value=math.nan)},
            "threshold.value",
            "not_finite",
        ),
        ({"log_matches": pb.LogMatches(pattern="ab(c")}, "log_matches.pattern", "at character 3"),
        ({"log_matches": pb.LogMatches(pattern="x**")}, "log_matches.pattern", "at character 2"),
        ({"log_matches": pb.LogMatches()}, "log_matches", "fits every line"),
        ({"job_state": pb.JobStateIs(states=["FALED"])}, "job_state.states[0]", "FAILED"),
        (
            {"no_progress": pb.NoProgress(duration=Duration(seconds=-3))},
            "no_progress.duration",
            "longer than zero",
        ),
        ({}, "condition", "is empty"),
    ],
)
def test_rules_that_make_no_sense(change: dict[str, Any], field: str, words: str) -> None:
    rule = pb.AlertRule(condition=pb.AlertCondition(**change))
    with pytest.raises(InvalidArgument) as caught:
        check_rule(rule, "default")
    assert field in caught.value.field
    assert words in f"{caught.value.message} {caught.value.remedy}"


async def test_bad_requests_are_refused_with_what_to_do(tmp_path: Path) -> None:
    async with alerting(tmp_path, webhook_private=False) as found:
        for url in (
            "http://127.0.0.1/x",
            "http://[::ffff:10.0.0.1]/",
            "http://169.254.169.254/",
            "ftp://a/b",
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await found.channel(url)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await found.channel("http://localhost:1/hook")  # a name: it is refused when it is resolved
        tried = await found.alerts.TestAlertChannel(alerts_pb2.TestAlertChannelRequest(name=CHANNEL))
        assert "private address" in tried.notification.problem
        with pytest.raises(grpc.aio.AioRpcError, match="no alert channel other"):
            await found.rule("one", high_loss(channels=[f"{PROJECT}/alertChannels/other"]))
        silence = pb.Silence()
        silence.end_time.FromSeconds(1)
        with pytest.raises(grpc.aio.AioRpcError, match="end"):
            await found.alerts.CreateSilence(alerts_pb2.CreateSilenceRequest(parent=PROJECT, silence=silence))
        await asyncio.gather(*(found.rule(f"rule-{n}", high_loss()) for n in range(200)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await found.rule("one-more", high_loss())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        page = await found.alerts.ListAlertRules(
            alerts_pb2.ListAlertRulesRequest(parent=PROJECT, page_size=150)
        )
        assert len(page.rules) == 150
        assert page.next_page_token


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of apprise's plugins
async def test_chat_through_apprise(tmp_path: Path) -> None:
    with receiving() as receiver:
        async with alerting(tmp_path) as found:
            address = receiver.url.replace("http://", "json://")
            channel = pb.AlertChannel(name=CHANNEL, apprise=pb.AppriseTarget(urls=[address]))
            made = await found.alerts.SetAlertChannel(alerts_pb2.SetAlertChannelRequest(channel=channel))
            assert list(made.channel.apprise.urls) == []  # they hold secrets
            tried = await found.alerts.TestAlertChannel(alerts_pb2.TestAlertChannelRequest(name=CHANNEL))
            assert tried.notification.problem == ""
            (body,) = receiver.bodies()
            assert (body["title"], body["message"][:14]) == ("Firing: test", "This is a test")
            channel.apprise.urls[:] = ["nothing://at/all"]
            await found.alerts.SetAlertChannel(alerts_pb2.SetAlertChannelRequest(channel=channel))
            tried = await found.alerts.TestAlertChannel(alerts_pb2.TestAlertChannelRequest(name=CHANNEL))
            assert "does not know" in tried.notification.problem


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_chat_leads_to_no_private_host_without_leave(tmp_path: Path) -> None:
    async with alerting(tmp_path, webhook_private=False) as found:
        channel = pb.AlertChannel(name=CHANNEL, apprise=pb.AppriseTarget(urls=["json://127.0.0.1:9/x"]))
        await found.alerts.SetAlertChannel(alerts_pb2.SetAlertChannelRequest(channel=channel))
        tried = await found.alerts.TestAlertChannel(alerts_pb2.TestAlertChannelRequest(name=CHANNEL))
        assert "private host" in tried.notification.problem
