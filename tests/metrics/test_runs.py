"""The table of runs: what the jobs service tells and what the jobs log, filtered, sorted, paged."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.metrics.support import Metrics, batch, running_metrics, send
from tests.support.postgres import running as running_postgres
from tests.support.wait import until_async
from tunesmith.api.jobs.v1 import events_pb2, spec_pb2, state_pb2
from tunesmith.api.metrics.v1 import events_pb2 as metric_events_pb2
from tunesmith.api.metrics.v1 import metrics_pb2, runs_pb2
from tunesmith.errors import TunesmithError
from tunesmith.status import from_rpc_error
from tunesmith_kit import subjects
from tunesmith_kit.bus import Message

PROJECT = "projects/default"


def job_id(index: int) -> str:
    return f"01k00000000000000000000{index:03d}"


async def tell(service: Metrics, index: int, revision: int, kind: str, **event: object) -> None:
    """Publishes an event as the jobs service does."""
    message = events_pb2.JobEvent(
        event_id=f"{index}-{revision}-{kind}",
        revision=revision,
        job=f"{PROJECT}/jobs/{job_id(index)}",
        display_name=f"demo-{index:03d}",
        **event,  # type: ignore[arg-type]
    )
    message.time.FromSeconds(1_790_000_000 + index)
    subject = subjects.job_event("default", job_id(index), kind)
    await service.bus.publish(subject, message.SerializeToString(), message.event_id)


def spec(index: int) -> spec_pb2.JobSpec:
    found = spec_pb2.JobSpec(experiment="demo", base_model="tiny", dataset="chat@1")
    found.labels.update({"team": "search" if index % 2 else "ads"})
    found.adapter.lora.r = 8 * (1 + index % 3)
    found.adapter.lora.target_modules.extend(["q_proj", "v_proj"])
    found.training.learning_rate = 10.0 ** -(1 + index)
    found.training.lr_scheduler = spec_pb2.LR_SCHEDULER_LINEAR
    return found


async def query(service: Metrics, text: str = "", **fields: object) -> runs_pb2.QueryRunsResponse:
    request = runs_pb2.QueryRunsRequest(parent=PROJECT, filter=text, **fields)  # type: ignore[arg-type]
    return await service.metrics.QueryRuns(request)


async def names(service: Metrics, text: str = "", **fields: object) -> list[int]:
    """Numbers of the jobs found, in their order."""
    return [int(run.job[-3:]) for run in (await query(service, text, **fields)).runs]


@asynccontextmanager
async def six_runs(folder: Path, **settings: Any) -> AsyncIterator[Metrics]:
    """Jobs 0 to 5; job 4 logs NaN, job 5 nothing; job 6 logs, but nobody told of it."""
    async with running_metrics(folder, **settings) as service:
        for index in range(6):
            await tell(
                service, index, 10 * index + 1, "created", created=events_pb2.JobCreated(spec=spec(index))
            )
        changed = events_pb2.JobStateChanged(to_state=state_pb2.JOB_STATE_SUCCEEDED)
        await tell(service, 1, 12, "state_changed", state_changed=changed)
        for index in (0, 1, 2, 3, 4, 6):
            last = math.nan if index == 4 else 1.0 + index / 10
            rows = [[5.0 + index, 0.5], [0.25 + index, 0.5], [last, 0.5]]
            keys = ("train/loss", "odd name") if index < 2 else ("train/loss", "eval/loss")
            await send(service.bus, batch(1, rows, job_id=job_id(index), keys=keys))

        async def complete() -> bool:
            found = await query(service, "has train/loss")
            states = await names(service, "state = SUCCEEDED")
            return found.total_size == 6 and states == [1] and (await query(service)).total_size == 7

        await until_async(complete, "all is in the table")
        yield service


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.distributed)])
async def test_runs_are_filtered_sorted_and_paged(tmp_path: Path, database: str) -> None:
    with running_postgres() if database == "postgresql" else nullcontext() as server:
        settings = {"database_url": server.url} if server else {}
        async with six_runs(tmp_path, **settings) as service:
            await _filters(service)
            await _order_and_pages(service)
            await _rows(service)
            await _later_changes(service)


async def _filters(service: Metrics) -> None:
    expected: dict[str, set[int]] = {
        "train/loss < 1.2": {0, 1},
        "train/loss < 1.2 and adapter.lora.r = 16": {1},
        "train/loss = NaN": {4},
        "not train/loss > 1": {0, 4, 5},
        "train/loss != 1.1": {0, 2, 3, 4, 5, 6},
        "min(train/loss) < 1 or max(train/loss) >= 11": {0, 6},
        "has `odd name`": {0, 1},
        "has eval/loss and not state = validating": {6},
        "state in (SUCCEEDED, FAILED)": {1},
        "label.team = search and train/loss < 10": {1, 3},
        "training.learning_rate <= 1e-4 and training.lr_scheduler = linear": {3, 4, 5},
        "adapter.lora.r in (8, 24.0)": {0, 2, 3, 5},
        "name ~ '^demo-00[24]$'": {2, 4},
        "adapter.lora.target_modules ~ v_proj and experiment = 'demo' and name != demo-000": {1, 2, 3, 4, 5},
        "created > 2026-09-21T14:13:23Z": {4, 5},
        "has created and not has train/loss": {5},
        "surely.not.there = 1": set(),
    }
    found = {text: set(await names(service, text)) for text in expected}
    assert found == expected


async def _order_and_pages(service: Metrics) -> None:
    assert await names(service) == [5, 4, 3, 2, 1, 0, 6], "the newest first; 6 has no time"
    assert await names(service, order_by="train/loss desc") == [6, 3, 2, 1, 0, 5, 4]
    assert await names(service, order_by="label.team, train/loss") == [0, 2, 4, 1, 3, 5, 6]
    assert await names(service, order_by="adapter.lora.r desc, name") == [2, 5, 1, 4, 0, 3, 6]
    pages, token = [], ""
    while True:
        answer = await query(service, "has train/loss", order_by="train/loss", page_size=4, page_token=token)
        assert answer.total_size == 6
        pages.append([int(run.job[-3:]) for run in answer.runs])
        token = answer.next_page_token
        if not token:
            break
    assert pages == [[0, 1, 2, 3], [6, 4]]


async def _rows(service: Metrics) -> None:
    (run,) = (await query(service, "name = demo-001")).runs
    assert (run.job, run.display_name, run.state) == (f"{PROJECT}/jobs/{job_id(1)}", "demo-001", "SUCCEEDED")
    assert dict(run.metrics) == {"train/loss": 1.1, "odd name": 0.5}
    assert dict(run.labels) == {"team": "search"}
    assert run.config["adapter.lora.r"] == "16"
    assert run.config["training.learning_rate"] == "0.01"
    assert run.config["training.lr_scheduler"] == "linear"
    assert (run.last_step, run.num_points, run.create_time.seconds) == (3, 6, 1_790_000_001)
    (run,) = (await query(service, "name = demo-001", metrics=["train/loss"], config=["base_model"])).runs
    assert (dict(run.metrics), dict(run.config)) == ({"train/loss": 1.1}, {"base_model": "tiny"})
    columns = await service.metrics.ListRunColumns(runs_pb2.ListRunColumnsRequest(parent=PROJECT))
    assert [(each.name, each.num_runs) for each in columns.metrics] == [
        ("train/loss", 6),
        ("eval/loss", 4),
        ("odd name", 2),
    ]
    differing = [each.name for each in columns.config if each.num_values > 1]
    assert differing == [each.name for each in columns.config][: len(differing)]
    assert set(differing) == {"adapter.lora.r", "training.learning_rate"}


async def _later_changes(service: Metrics) -> None:
    """What comes late, twice or takes a job away."""
    changed = spec(0)
    changed.labels["team"] = "speech"
    await tell(service, 0, 5, "updated", updated=events_pb2.JobUpdated(spec=changed))
    stale = events_pb2.JobStateChanged(to_state=state_pb2.JOB_STATE_RUNNING)
    await tell(service, 1, 2, "state_changed", state_changed=stale)  # older than what is known
    await tell(service, 2, 99, "deleted", deleted=events_pb2.JobDeleted())
    await service.bus.publish(subjects.job_event("default", job_id(3), "created"), b"\xff\xff", "broken")
    await send(service.bus, batch(4, [[9.0]], job_id=job_id(0)))

    async def settled() -> bool:
        return await names(service, "train/loss = 9 and label.team = speech") == [0] and await names(
            service, "adapter.lora.r = 24"
        ) == [5]

    await until_async(settled, "the changes are in the table")
    assert await names(service, "state = SUCCEEDED") == [1]
    assert sorted(await names(service)) == [0, 1, 3, 4, 5, 6]
    assert await names(service, "has train/loss", order_by="train/loss") == [1, 3, 6, 0, 4]
    columns = await service.metrics.ListRunColumns(runs_pb2.ListRunColumnsRequest(parent=PROJECT))
    assert {each.name: each.num_runs for each in columns.metrics} == {
        "train/loss": 5,
        "eval/loss": 3,
        "odd name": 2,
    }
    series = metrics_pb2.QuerySeriesRequest(parent=f"{PROJECT}/jobs/{job_id(2)}")
    assert not (await service.metrics.QuerySeries(series)).series, "a deleted job has no curves"
    await _late(service, 2)


async def _late(service: Metrics, index: int) -> None:
    """An agent that was away sends records of a deleted job: it hears that all is done, nothing is stored."""
    told: asyncio.Queue[metric_events_pb2.WatermarkAdvanced] = asyncio.Queue()

    async def hear(message: Message) -> None:
        await told.put(metric_events_pb2.WatermarkAdvanced.FromString(message.payload))

    await service.bus.subscribe(subjects.any_watermark("default", job_id(index)), hear)
    await send(service.bus, batch(4, [[9.0], [8.0]], job_id=job_id(index)))
    assert (await asyncio.wait_for(told.get(), 90)).metrics_seq == 5
    line = metric_events_pb2.LogChunk(
        job_id=job_id(index), epoch=1, rank=0, num_bytes=5, lines=["late"], line_offsets=[0]
    )
    await send(service.bus, line)
    assert (await asyncio.wait_for(told.get(), 90)).log_offset > 1
    await tell(service, index, 98, "updated", updated=events_pb2.JobUpdated(spec=spec(index)))
    await tell(service, 6, 1, "created", created=events_pb2.JobCreated(spec=spec(6)))

    async def heard() -> bool:
        return 6 in await names(service, "adapter.lora.r = 8")

    await until_async(heard, "the event after the late one is in the table")
    assert index not in await names(service)
    series = metrics_pb2.QuerySeriesRequest(parent=f"{PROJECT}/jobs/{job_id(index)}")
    assert not (await service.metrics.QuerySeries(series)).series


async def _refusal(service: Metrics, text: str = "", **fields: object) -> TunesmithError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await query(service, text, **fields)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return from_rpc_error(caught.value)


@pytest.mark.asyncio(loop_scope="module")
async def test_wrong_filters_orders_and_tokens_say_what_is_wrong(service: Metrics) -> None:
    async def there() -> bool:
        return (await query(service, "has train/loss")).total_size == 1

    await until_async(there, "the job is in the table")
    for text, words in {
        "train/loss <": "column 13",
        "train/los < 1": "column 1: no job has train/los; did you mean train/loss?",
        "train/loss ~ x": "~ is for texts",
        "train/loss < high": "compared with a number",
        "created > yesterday": "a date such as",
        "name < demo": "wants a number",
    }.items():
        error = await _refusal(service, text)
        assert (error.reason, error.field) == ("FILTER_INVALID", "filter")
        assert words in error.message
    error = await _refusal(service, order_by="train/loss up")
    assert (error.reason, error.field) == ("FILTER_INVALID", "order_by")
    for token in ("forged", "Zm9yZ2VkADUwMA"):
        assert (await _refusal(service, page_token=token)).reason == "PAGE_TOKEN_INVALID"
    assert (await _refusal(service, page_size=100_000)).field == "page_size"
    answers = await asyncio.gather(*(query(service, "train/loss > 0") for _ in range(10)))
    assert {answer.total_size for answer in answers} == {1}
