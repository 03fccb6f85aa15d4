"""The metrics service is killed in mid-stream: no alert is missed, none doubled, each told under one id."""

import asyncio
import random
from pathlib import Path

import grpc
import pytest

from tests.metrics.alerting import CHANNEL, PROJECT, Alerting, high_loss
from tests.metrics.receiver import receiving
from tests.support import postgres
from tests.support.bus import TOKEN, connected, running_nats
from tests.support.processes import BIN, Process, free_port
from tests.support.stubs import INTERNAL_TOKEN, _Stream, _Unary
from tests.support.wait import until, until_async
from tunesmith.api.metrics.v1 import alerts_pb2, alerts_pb2_grpc
from tunesmith.api.metrics.v1 import rules_pb2 as pb

JOBS = [f"01k00000000000000000000{n:03d}" for n in range(4)]
LAST = 200


def _values(seed: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.choice((0.0, 1.0, 1.0, 3.0)) for _ in range(LAST)]


def _peaks(values: list[float]) -> list[tuple[int, int]]:
    """Steps at which the loss rises above the limit, and those at which it falls below it again."""
    found, begun = [], 0
    for step, value in enumerate(values, 1):
        if value > 2 and not begun:
            begun = step
        elif value <= 2 and begun:
            found.append((begun, step))
            begun = 0
    return found


async def _feed(found: Alerting, job_id: str, values: list[float], rng: random.Random) -> None:
    cuts, seq = [], 1
    while seq <= LAST:
        end = min(LAST, seq + rng.randrange(1, 12))
        cuts.append((seq, end))
        seq = end + 1
    for at in range(0, len(cuts), 4):  # the window of an agent: a few arrive in any order
        window = cuts[at : at + 4]
        rng.shuffle(window)
        for low, high in window:
            await found.losses(low, *values[low - 1 : high], job_id=job_id)
        await asyncio.sleep(0.02)  # the feed goes on while the service is killed and comes back


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.distributed)])
async def test_killed_in_mid_stream_nothing_is_missed_and_nothing_doubled(tmp_path: Path, kind: str) -> None:
    if kind == "sqlite":
        await _storm(tmp_path, {})
    else:
        with postgres.running() as database:
            await _storm(tmp_path, {"TUNESMITH_METRICS_DATABASE_URL": database.url})


async def _storm(folder: Path, env: dict[str, str]) -> None:
    rng, port = random.Random(7), free_port()
    values = {job_id: _values(n) for n, job_id in enumerate(JOBS)}
    expected = sum(len(_peaks([*each, 0.0])) for each in values.values())
    with receiving() as receiver:
        async with running_nats(folder) as server, connected(server, "agent") as bus:
            own = {
                "TUNESMITH_DATA_DIR": str(folder),
                "TUNESMITH_NATS_URL": server.url,
                "TUNESMITH_NATS_TOKEN": TOKEN,
                "TUNESMITH_INTERNAL_TOKEN": INTERNAL_TOKEN,
                "TUNESMITH_METRICS_PORT": str(port),
                "TUNESMITH_METRICS_WEBHOOK_PRIVATE": "true",
            }
            process = Process(
                "metrics", [str(BIN / "tunesmith"), "serve", "metrics"], folder / "log", own | env
            )
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=[_Unary(), _Stream()])
            try:
                await asyncio.wait_for(channel.channel_ready(), 180)
                found = Alerting(bus, alerts_pb2_grpc.AlertServiceStub(channel))
                await found.channel(receiver.url)
                await found.rule("loss", high_loss(channels=[CHANNEL]))
                receiver.answers = [503] * 5
                feeds = [asyncio.create_task(_feed(found, job, values[job], rng)) for job in JOBS]
                await until(lambda: len(receiver.requests) > 5, "notifications", 120)
                process.kill()
                process.start()
                await asyncio.gather(*feeds)
                for job in JOBS:
                    await found.losses(LAST + 1, 0.0, job_id=job)
                await _settled(found, expected)
                await _compare(found, values)
            finally:
                await channel.close()
                process.stop()
            alerts = {body["alert"]["name"] for body in receiver.bodies() if body["type"] == "alert.firing"}
            assert len(alerts) == expected
            ids = {(body["alert"]["name"], body["type"], body["id"]) for body in receiver.bodies()}
            assert len(ids) == 2 * expected  # each told, each under one id however often


async def _settled(found: Alerting, expected: int) -> None:
    async def delivered() -> bool:
        try:
            alerts = await _all_alerts(found)
            asked = alerts_pb2.ListNotificationsRequest(parent=PROJECT, page_size=1000)
            notices = [n async for n in _notices(found, asked)]
        except grpc.aio.AioRpcError:
            return False
        done = [n for n in notices if n.delivery == pb.NOTIFICATION_STATE_DELIVERED]
        return len(alerts) >= expected and len(done) == 2 * expected

    await until_async(delivered, "all alerts are told", 180)


async def _notices(found: Alerting, asked: alerts_pb2.ListNotificationsRequest):  # type: ignore[no-untyped-def]
    while True:
        page = await found.alerts.ListNotifications(asked)
        for notice in page.notifications:
            yield notice
        if not page.next_page_token:
            return
        asked.page_token = page.next_page_token


async def _all_alerts(found: Alerting) -> list[pb.Alert]:
    asked = alerts_pb2.ListAlertsRequest(parent=PROJECT, page_size=1000)
    alerts: list[pb.Alert] = []
    while True:
        page = await found.alerts.ListAlerts(asked)
        alerts += page.alerts
        if not page.next_page_token:
            return alerts
        asked.page_token = page.next_page_token


async def _compare(found: Alerting, values: dict[str, list[float]]) -> None:
    alerts = await _all_alerts(found)
    for job_id, each in values.items():
        mine = [a for a in alerts if a.subject.endswith(job_id)]
        assert sorted(a.step for a in mine) == [begin for begin, _ in _peaks([*each, 0.0])]
        assert {a.state for a in mine} == {pb.ALERT_STATE_RESOLVED}
    test = alerts_pb2.TestAlertRuleRequest(parent=PROJECT, rule=high_loss())
    replayed = (await found.alerts.TestAlertRule(test)).alerts
    facts = [
        (a.subject, a.step, a.firing_time.ToMicroseconds(), a.resolve_time.ToMicroseconds()) for a in alerts
    ]
    again = [
        (a.subject, a.step, a.firing_time.ToMicroseconds(), a.resolve_time.ToMicroseconds()) for a in replayed
    ]
    assert sorted(facts) == sorted(again)
