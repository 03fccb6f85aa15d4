"""Traces: spans stored once, found below the request that made a job, bounded, and gone with the job."""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext

import pytest
import pytest_asyncio
from sqlalchemy import func, select

from tests.metrics.support import Metrics, running_metrics
from tests.support.postgres import running as running_postgres
from tests.support.stubs import stub
from tests.support.wait import until_async
from tunesmith.api.jobs.v1 import events_pb2, state_pb2
from tunesmith.api.metrics.v1 import policy_pb2, trace_pb2, trace_pb2_grpc
from tunesmith_kit import subjects
from tunesmith_kit.db import Database
from tunesmith_metrics import traces
from tunesmith_metrics.retention import Policy, Retention
from tunesmith_metrics.tables import SPANS

pytestmark = pytest.mark.asyncio(loop_scope="module")
_PROJECT = "projects/default"
_numbers = itertools.count(1)


class Bench:
    """The service, and one job's trace after the other."""

    def __init__(self, service: Metrics, stub: "trace_pb2_grpc.TraceServiceAsyncStub", database: str) -> None:
        self.service, self.database = service, database
        self._stub = stub

    async def get(self, job_id: str, project: str = _PROJECT) -> trace_pb2.GetTraceResponse:
        return await self._stub.GetTrace(trace_pb2.GetTraceRequest(name=f"{project}/jobs/{job_id}"))

    async def publish(self, *spans: trace_pb2.TraceSpan, payload: bytes = b"") -> None:
        """Sends a batch under a message id of its own."""
        content = payload or trace_pb2.SpanBatch(spans=spans).SerializeToString()
        await self.service.bus.publish(subjects.spans("agent"), content, f"batch-{next(_numbers)}")

    async def tell(self, job_id: str, kind: str, traceparent: str = "", **event: object) -> None:
        message = events_pb2.JobEvent(
            event_id=f"event-{next(_numbers)}",
            revision=next(_numbers),
            job=f"{_PROJECT}/jobs/{job_id}",
            traceparent=traceparent,
            **event,  # type: ignore[arg-type]
        )
        message.time.FromSeconds(1_790_000_000)
        subject = subjects.job_event("default", job_id, kind)
        await self.service.bus.publish(subject, message.SerializeToString(), message.event_id)

    async def made(self, job_id: str, trace_id: str, span_id: str) -> None:
        """Tells of a job that was made in a span."""
        changed = events_pb2.JobStateChanged(to_state=state_pb2.JOB_STATE_QUEUED)
        await self.tell(job_id, "state_changed", f"00-{trace_id}-{span_id}-01", state_changed=changed)

    async def until(
        self, job_id: str, right: Callable[[trace_pb2.GetTraceResponse], object]
    ) -> trace_pb2.GetTraceResponse:
        """Returns the trace of a job once it is as it should be."""

        async def there() -> bool:
            return bool(right(await self.get(job_id)))

        await until_async(there, f"the trace of {job_id}")
        return await self.get(job_id)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.distributed)],
)
async def bench(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("traces")
    with running_postgres() if request.param == "postgresql" else nullcontext() as server:
        url = server.url if server else f"sqlite:///{folder / 'metrics.db'}"
        async with (
            running_metrics(folder, database_url=url) as service,
            stub(trace_pb2_grpc.TraceServiceStub, service.running) as traced,
        ):
            yield Bench(service, traced, url)


def trace_of(number: int) -> str:
    return f"{number:032x}"


def span(
    trace: int, number: int, parent: int = 0, job: str = "", name: str = "work", second: int = 0
) -> trace_pb2.TraceSpan:
    found = trace_pb2.TraceSpan(
        trace_id=trace_of(trace),
        span_id=f"{number:016x}",
        parent_span_id=f"{parent:016x}" if parent else "",
        service="agent",
        name=name,
        kind=trace_pb2.TRACE_SPAN_KIND_INTERNAL,
        status=trace_pb2.TRACE_SPAN_STATUS_OK,
        job=f"{_PROJECT}/jobs/{job}" if job else "",
        attributes={"step": str(number)},
    )
    found.start_time.FromSeconds(1_790_000_000 + (second or number))
    found.end_time.FromNanoseconds(found.start_time.ToNanoseconds() + 123_456_789)
    return found


def numbers(spans: Sequence[trace_pb2.TraceSpan]) -> list[int]:
    return [int(each.span_id, 16) for each in spans]


async def test_a_span_that_comes_twice_is_stored_once_as_it_was(bench: Bench) -> None:
    first = [span(1, 3, 2, "twice"), span(1, 1), span(1, 2, 1)]
    await bench.publish(*first)
    await bench.made("twice", trace_of(1), f"{2:016x}")
    await bench.publish(*first, span(1, 4, 3, "twice"))
    found = await bench.until("twice", lambda answer: len(answer.spans) > 3)
    assert found.trace_id == trace_of(1)
    assert numbers(found.spans) == [1, 2, 3, 4]
    assert list(found.spans) == [first[1], first[2], first[0], span(1, 4, 3, "twice")]
    assert (await bench.get("twice", "projects/other")).spans == []


async def test_jobs_of_one_trace_each_show_their_own(bench: Bench) -> None:
    """A program submits two jobs in one trace: 1 is its own span, 2 and 3 the requests that made them."""
    await bench.publish(span(2, 1), span(2, 2, 1), span(2, 3, 1), span(2, 4, 1))
    await bench.publish(span(2, 20, 2, "left"), span(2, 30, 3, "right"), span(2, 21, 2))
    await bench.made("left", trace_of(2), f"{2:016x}")
    await bench.made("right", trace_of(2), f"{3:016x}")
    left = await bench.until("left", lambda answer: len(answer.spans) == 4)
    right = await bench.until("right", lambda answer: len(answer.spans) == 3)
    assert numbers(left.spans) == [1, 2, 20, 21]
    assert numbers(right.spans) == [1, 3, 30]


async def test_what_is_no_span_is_a_dead_letter_and_holds_up_nothing(bench: Bench) -> None:
    bad = [span(3, 9) for _ in range(5)]
    bad[0].trace_id = "no trace"
    bad[1].start_time.seconds = 2**62
    bad[2].name = "two\nlines"
    bad[3].job = "projects/default"
    bad[4].attributes["much"] = "x" * 20_000
    for each in bad:
        await bench.publish(span(3, 8), each)
    await bench.publish(payload=b"\xff\xff")
    await bench.publish(span(3, 1))
    await bench.made("good", trace_of(3), f"{1:016x}")
    found = await bench.until("good", lambda answer: answer.spans)
    assert numbers(found.spans) == [1]

    async def letters() -> bool:
        answer = await bench.service.metrics.ListDeadLetters(policy_pb2.ListDeadLettersRequest())
        return sum(each.stream == "SPANS" for each in answer.letters) == 6

    await until_async(letters, "six dead letters")


async def test_of_very_many_spans_the_first_of_each_name_and_the_newest_stay(bench: Bench) -> None:
    await bench.made("month", trace_of(4), f"{1:016x}")
    await bench.publish(span(4, 1))
    await bench.until("month", lambda answer: answer.spans)
    last = traces.MOST_SPANS + 150
    made = [span(4, at, 1, "month", "checkpoint") for at in range(3, last + 1)]
    for start in range(0, len(made), 500):
        await bench.publish(span(4, 2, 1, "month", "load_model"), *made[start : start + 500])
    found = await bench.until(
        "month", lambda answer: answer.num_left_out and numbers(answer.spans)[-1] == last
    )
    kept = numbers(found.spans)
    assert kept[:3] == [1, 2, 3], "the request, the model's loading and the first checkpoint"
    assert kept[3:] == list(range(last - len(kept) + 4, last + 1)), "the newest, without a hole"
    assert len(kept) + found.num_left_out == last
    assert len(kept) <= traces.MOST_SPANS + 1


async def test_a_deleted_job_has_no_trace_and_gets_none(bench: Bench) -> None:
    await bench.publish(span(5, 1), span(5, 2, 1, "gone"))
    await bench.publish(span(6, 1), span(6, 2, 1, "stays"))
    await bench.made("gone", trace_of(5), f"{1:016x}")
    await bench.made("stays", trace_of(6), f"{1:016x}")
    await bench.until("gone", lambda answer: len(answer.spans) == 2)
    await bench.tell("gone", "deleted", deleted=events_pb2.JobDeleted())
    await bench.until("gone", lambda answer: not answer.trace_id)
    await bench.publish(span(5, 3, 1, "gone"), span(6, 3, 1, "stays"))
    found = await bench.until("stays", lambda answer: len(answer.spans) == 3)
    assert numbers(found.spans) == [1, 2, 3]
    assert await _stored(bench, 5) == 0


async def test_spans_that_no_job_has_go_after_an_hour(bench: Bench) -> None:
    await bench.publish(span(7, 1), span(8, 1))
    await bench.made("kept", trace_of(8), f"{1:016x}")
    await bench.until("kept", lambda answer: answer.spans)
    db = Database(bench.database, "metrics")
    hour_us = 3600 * 1_000_000
    now = time.time_ns() // 1000
    try:
        keeper = Retention(db, Policy())
        await keeper.sweep(now + hour_us // 2)
        assert await _stored(bench, 7) == 1
        await keeper.sweep(now + 2 * hour_us)
        assert (await _stored(bench, 7), await _stored(bench, 8)) == (0, 1)
    finally:
        await db.close()


async def _stored(bench: Bench, trace: int) -> int:
    db = Database(bench.database, "metrics")
    query = select(func.count()).select_from(SPANS).where(SPANS.c.trace_id == trace_of(trace))
    try:
        return await db.read(lambda session: session.execute(query).scalar_one())
    finally:
        await db.close()
