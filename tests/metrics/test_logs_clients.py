"""Logs as people get them: the SDK through a gateway, and REST."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.metrics.support import PARENT, Metrics, chunk, running_metrics, send
from tests.metrics.test_logs_search import ERROR, INFO, SECOND, WARNING, stored
from tests.support.stubs import INTERNAL_TOKEN, running_service
from tunesmith import AsyncClient
from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2
from tunesmith.errors import InvalidArgument
from tunesmith.faces import Async
from tunesmith.job import Job
from tunesmith.tail import LogFilter, tail_log
from tunesmith_metrics import logs

ADMIN = "admin-test-token"


async def texts(job: Job[Async], **wanted: object) -> list[str]:
    return [line.text async for line in job.logs(**wanted)]  # type: ignore[arg-type]


async def test_a_log_is_searched_followed_and_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_MAX_SCAN_BYTES", 500)  # a search comes in several pages
    now = datetime.now(UTC)
    async with running_metrics(tmp_path) as service:
        parts, offset = [], 0
        for index in range(20):
            lines = [
                f"step {index} fine",
                f"Error: {index} odd" if index % 5 == 0 else "WARNING: " + "x" * 50,
            ]
            part = chunk(
                offset, lines, levels=[INFO, ERROR if index % 5 == 0 else WARNING], steps=[index] * 2,
                time_us=int(now.timestamp() * SECOND) - (19 - index) * 3600 * SECOND,
            )  # fmt: skip
            parts.append(part)
            offset += part.num_bytes
        await stored(service, *parts)
        settings = {
            "admin_token": ADMIN, "internal_token": INTERNAL_TOKEN, "metrics_address": service.running.address
        }  # fmt: skip
        async with (
            running_service("gateway", service.server, tmp_path / "gateway", **settings) as gateway,
            AsyncClient(gateway.address, ADMIN) as client,
        ):
            proto = jobs_pb2.Job(name=PARENT, state=state_pb2.JOB_STATE_SUCCEEDED)
            job: Job[Async] = Job(client._core, proto)
            assert len(await texts(job)) == 40
            assert await texts(job, level="error") == [f"Error: {index} odd" for index in (0, 5, 10, 15)]
            assert await texts(job, contains="Error", tail=3) == [
                f"Error: {index} odd" for index in (5, 10, 15)
            ]
            assert await texts(job, pattern=r"step 1\d") == [f"step {index} fine" for index in range(10, 20)]
            assert await texts(job, min_step=18, level="info", contains="step", ranks=[0]) == [
                "step 18 fine", "step 19 fine",
            ]  # fmt: skip
            assert len(await texts(job, since=timedelta(hours=3, minutes=30))) == 8
            assert len(await texts(job, since=now - timedelta(hours=3, minutes=30))) == 8
            with pytest.raises(InvalidArgument):
                await texts(job, level="loud")
            with pytest.raises(InvalidArgument) as wrong:
                await texts(job, pattern="(")
            assert wrong.value.field == "pattern"
            (error,) = await job.error_lines()
            assert (error.line.text, error.count) == ("Error: 15 odd", 4)
            await _follow(client, service, offset)
            async with httpx.AsyncClient(
                base_url=f"http://{gateway.facts['http_address']}", trust_env=False
            ) as rest:
                answer = await rest.get(
                    f"/api/v1/{PARENT}/errorLines", headers={"authorization": f"Bearer {ADMIN}"}
                )
                assert answer.json()["lines"][0]["count"] == "4"


async def _follow(client: AsyncClient, service: Metrics, offset: int) -> None:
    wanted = LogFilter(level="error", min_step=21)

    async def never() -> None:
        await asyncio.Event().wait()

    got = []
    part = chunk(
        offset, ["Error: too early", "no error", "Error: it"], levels=[ERROR, INFO, ERROR], steps=[20, 21, 21]
    )
    await send(service.bus, part)
    async for line in tail_log(client._core, PARENT, wanted, 0, never(), lambda: False):
        got.append(line.text)
        break
    assert got == ["Error: it"]
