"""Spans on their way to the store: gathered whatever the bus does, published once, dropped last."""

import time
from pathlib import Path

from tests.support.bus import connected, running_nats
from tests.support.wait import until
from tunesmith.api.metrics.v1 import trace_pb2
from tunesmith_kit import spans, streams
from tunesmith_kit.meters import METRICS
from tunesmith_kit.spans import Recorder
from tunesmith_kit.telemetry import Telemetry, current_traceparent, setup


async def test_a_bus_that_is_away_costs_nobody_anything(tmp_path: Path) -> None:
    """Work goes on, memory is bounded, what did not fit is counted, and the rest comes once afterwards."""
    telemetry = Telemetry("jobs", None, Recorder())
    recorder = telemetry.recorder
    assert recorder is not None
    before = METRICS.spans_dropped._value.get()
    async with running_nats(tmp_path) as server, connected(server) as bus:
        publisher = telemetry.publish(bus)
        with telemetry.span("first"):
            pass
        await until(lambda: not recorder.held, "the first span is stored")
        await server.stop()
        await until(lambda: not bus.connected, "the bus is away")
        for number in range(spans.MOST_HELD + 7):
            with telemetry.span(f"work-{number}"):
                pass
        assert len(recorder.held) == spans.MOST_HELD
        assert METRICS.spans_dropped._value.get() - before == 7
        await server.start()
        await until(lambda: not recorder.held, "all that was kept is stored")
        await publisher.stop()
        stored, _ = await bus.newest(streams.SPANS, 1000)
    found = [span.name for m in reversed(stored) for span in trace_pb2.SpanBatch.FromString(m.payload).spans]
    assert found == ["first", *(f"work-{number}" for number in range(spans.MOST_HELD))]


async def test_the_end_of_a_process_sends_what_is_left(tmp_path: Path) -> None:
    telemetry = Telemetry("jobs", None, Recorder())
    async with running_nats(tmp_path) as server, connected(server) as bus:
        publisher = telemetry.publish(bus)
        with telemetry.span("last"):
            pass
        await publisher.stop()
        (message,), total = await bus.newest(streams.SPANS, 5)
    assert total == 1
    (span,) = trace_pb2.SpanBatch.FromString(message.payload).spans
    assert (span.name, span.service) == ("last", "jobs")


def test_kept_spans_hang_together_and_those_that_are_not_kept_leave_no_hole() -> None:
    recorder = Recorder()
    telemetry = setup("jobs", log_format="text", recorder=recorder)
    with telemetry.span("outer", kind="server", job="projects/p/jobs/j") as outer:
        outer.set("step", 3)
        with telemetry.span("read", keep=False), telemetry.span("inner"):
            inner = current_traceparent()
    ends = {span.name: span for span in recorder.held}
    assert list(ends) == ["inner", "outer"]
    assert ends["inner"].parent_span_id == ends["outer"].span_id == outer.traceparent[36:52]
    assert ends["inner"].span_id == inner[36:52] != ends["outer"].span_id
    assert ends["inner"].trace_id == ends["outer"].trace_id == outer.traceparent[3:35]
    assert dict(ends["outer"].attributes) == {"step": "3"}
    assert ends["outer"].job == "projects/p/jobs/j"
    assert abs(ends["outer"].end_time.ToNanoseconds() - time.time_ns()) < 60e9


def test_an_error_is_on_the_span_and_long_texts_are_cut() -> None:
    recorder = Recorder()
    telemetry = Telemetry("jobs", None, recorder)
    try:
        with telemetry.span("work", attributes={"k": "v" * 10_000}):
            raise ValueError("no " * 10_000)
    except ValueError:
        pass
    (span,) = recorder.held
    assert span.status == trace_pb2.TRACE_SPAN_STATUS_ERROR
    assert span.error.startswith("no no")
    assert span.ByteSize() < 1000


def test_off_keeps_nothing_and_makes_no_ids() -> None:
    telemetry = setup("jobs", log_format="text")
    with telemetry.span("outer") as outer, telemetry.span("inner") as inner:
        assert inner.traceparent == outer.traceparent
    assert telemetry.recorder is None
