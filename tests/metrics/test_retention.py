"""How much is kept: quotas, keys, deletion with the room given back, and letters that nobody could use."""

from functools import partial
from pathlib import Path

import grpc
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tests.metrics.support import JOB, PARENT, Metrics, batch, losses, running_metrics, send
from tests.support.wait import until, until_async
from tunesmith.api.metrics.v1 import metrics_pb2, policy_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Message
from tunesmith_kit.db import Database
from tunesmith_metrics import retention
from tunesmith_metrics.retention import Policy, Retention
from tunesmith_metrics.tables import METADATA, METRIC_KEYS, RUNS

PROJECT = "projects/default"


async def stored(service: Metrics, seq: int) -> None:
    async def there() -> bool:
        return (await service.watermark()).metrics_seq >= seq

    await until_async(there, f"records up to {seq}")


async def _both(service: Metrics, other: str) -> None:
    """Sends points of another job and waits until they are stored too."""
    await send(service.bus, batch(1, losses(1, 3), job_id=other))
    asked = metrics_pb2.GetWatermarkRequest(job=f"{PROJECT}/jobs/{other}", epoch=1)

    async def there() -> bool:
        return (await service.metrics.GetWatermark(asked)).metrics_seq == 3

    await until_async(there, "the other job's points")


async def set_policy(service: Metrics, **fields: int) -> None:
    policy = policy_pb2.MetricsPolicy(**fields)
    await service.metrics.SetMetricsPolicy(policy_pb2.SetMetricsPolicyRequest(parent=PROJECT, policy=policy))


async def test_a_full_project_waits_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    heard: list[Message] = []

    async def hear(message: Message) -> None:
        heard.append(message)

    async with running_metrics(tmp_path) as service:
        await service.bus.subscribe(subjects.any_watermark("other", "roomy"), hear)
        await send(service.bus, batch(1, losses(1, 50)))
        await stored(service, 50)
        await set_policy(service, max_points=50)
        answer = await service.metrics.GetMetricsPolicy(policy_pb2.GetMetricsPolicyRequest(parent=PROJECT))
        assert (answer.policy.max_points, answer.effective.max_keys_per_job) == (50, 5000)
        assert (answer.usage.num_points, answer.usage.num_jobs) == (50, 1)
        assert answer.usage.metric_bytes > 400
        await send(service.bus, batch(51, losses(51, 60)))
        # Another project behind it in the stream is not kept waiting.
        roomy = batch(1, losses(1, 5), job_id="roomy")
        await service.bus.publish(subjects.metrics("other", "roomy", 1, 0), roomy.SerializeToString(), "r")
        await until(lambda: heard, "the other project's watermark")
        assert (await service.watermark()).metrics_seq == 50
        await set_policy(service, max_points=1000)
        await send(service.bus, batch(51, losses(51, 60)), "again")  # as the agent does by itself
        await stored(service, 60)


async def test_keys_beyond_the_limit_lose_their_values_and_the_log_says_so(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        await set_policy(service, max_keys_per_job=2)
        await send(service.bus, batch(1, [[1.0, 2.0, 3.0]], keys=("a", "b", "c")))
        await send(service.bus, batch(2, [[4.0, 5.0]], keys=("d", "a")))
        await stored(service, 2)
        found = {each.key: list(each.values) for each in (await service.series()).series}
        assert found == {"a": [1.0, 5.0], "b": [2.0]}
        lines = (await service.logs.QueryLogs(metrics_pb2.QueryLogsRequest(parent=PARENT))).lines
        assert len(lines) == 1
        assert "more than 2 different metrics" in lines[0].text


async def test_a_restart_remembers_the_keys(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        await set_policy(service, max_keys_per_job=1)
        await send(service.bus, batch(1, [[1.0]], keys=("a",)))
        await stored(service, 1)
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(2, [[1.0, 2.0]], keys=("a", "b")))
        await stored(service, 2)
        assert [each.key for each in (await service.series()).series] == ["a"]


async def _dead(service: Metrics, num: int) -> None:
    """Waits for dead letters: they are put there after the good messages of their batch were stored."""

    async def there() -> bool:
        return (await service.metrics.ListDeadLetters(policy_pb2.ListDeadLettersRequest())).total_size == num

    await until_async(there, f"{num} dead letters")


@pytest.mark.parametrize("key", ["", "k" * 10_000, "line\nbreak", "bell\a"])
async def test_a_key_that_cannot_be_is_a_dead_letter(tmp_path: Path, key: str) -> None:
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, losses(1, 1), keys=(key,)), "bad")
        await send(service.bus, batch(1, losses(1, 1)), "good")
        await stored(service, 1)
        await _dead(service, 1)
        (letter,) = (await service.metrics.ListDeadLetters(policy_pb2.ListDeadLettersRequest())).letters
        assert (letter.stream, letter.message_id) == ("METRICS", "bad")
        assert letter.reason.startswith("MESSAGE_MALFORMED: ")
        assert letter.subject == subjects.metrics("default", JOB, 1, 0)
        assert letter.time.seconds > 0


async def test_dead_letters_come_by_pages_newest_first(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        subject = subjects.metrics("default", JOB, 1, 0)
        for number in range(5):
            await service.bus.publish(subject, b"\xff\xff", f"bad-{number}")
        await _dead(service, 5)
        found, token = [], ""
        while True:
            request = policy_pb2.ListDeadLettersRequest(page_size=2, page_token=token)
            page = await service.metrics.ListDeadLetters(request)
            assert page.total_size == 5
            found += [letter.message_id for letter in page.letters]
            token = page.next_page_token
            if not token:
                break
        assert found == [f"bad-{number}" for number in (4, 3, 2, 1, 0)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.metrics.ListDeadLetters(policy_pb2.ListDeadLettersRequest(page_token="forged"))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_forgotten_job_leaves_no_row_and_its_room_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.db"
    async with running_metrics(tmp_path) as service:
        keys = tuple(f"key{number}" for number in range(100))
        for seq in range(1, 401, 40):
            rows = [[seq * 1.1 + at] * 100 for at in range(40)]
            await send(service.bus, batch(seq, rows, keys=keys))
        await stored(service, 400)
        await _both(service, "kept")
    db = Database(f"sqlite:///{path}", "metrics")
    before = path.stat().st_size
    await db.write(lambda session: retention.forget(session, JOB))
    await retention.reclaim(db)

    def left(session: Session) -> dict[str, int]:
        return {
            table.name: session.execute(
                select(func.count()).select_from(table).where(table.c.job_id == JOB)
            ).scalar_one()
            for table in METADATA.sorted_tables
            if "job_id" in table.c
        }

    counts = await db.read(left)
    assert METRIC_KEYS.name in counts
    assert set(counts.values()) == {0}
    jobs = await db.read(lambda session: list(session.execute(select(RUNS.c.job_id)).scalars()))
    assert jobs == ["kept"]
    await db.close()  # the last connection writes the log back into the file
    assert path.stat().st_size < before / 2


async def test_ended_jobs_go_when_their_days_are_over(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        await send(service.bus, batch(1, losses(1, 3)))
        await set_policy(service, keep_days=2)
        await stored(service, 3)
        await _both(service, "runs")
    db = Database(f"sqlite:///{tmp_path / 'metrics.db'}", "metrics")
    day_us = 24 * 3600 * 1_000_000
    for job, state in ((JOB, "SUCCEEDED"), ("runs", "RUNNING")):
        change = RUNS.update().where(RUNS.c.job_id == job).values(state=state, create_time_us=day_us)
        await db.write(partial(Session.execute, statement=change))
    keeper = Retention(db, Policy())
    assert await keeper.sweep(2 * day_us) == 0
    assert await keeper.sweep(4 * day_us) == 1
    jobs = await db.read(lambda session: list(session.execute(select(RUNS.c.job_id)).scalars()))
    assert jobs == ["runs"]
    await db.close()
