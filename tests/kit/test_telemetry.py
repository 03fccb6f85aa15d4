"""Telemetry: one trace across services, logs that name it, figures that are all in the table."""

import gzip
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import generate_latest

from tunesmith.errors import InvalidArgument
from tunesmith_kit import logs
from tunesmith_kit.meters import METRICS, REGISTRY
from tunesmith_kit.spans import Recorder
from tunesmith_kit.telemetry import current_traceparent, setup, trace_id


class Receiver:
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[str, object]] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keeps spans by name with the service that sent them."""
        for resource in request.resource_spans:
            service = next(
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            )
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.name] = (service, span)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A running receiver."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


def test_spans_of_several_services_in_one_process_make_one_trace(receiver: Receiver) -> None:
    jobs = setup("jobs", otlp_endpoint=receiver.url)
    agent = setup("agent", otlp_endpoint=receiver.url + "/")
    with jobs.span("submit", kind="server", attributes={"job": "j1"}) as submit:
        assert current_traceparent() == submit.traceparent
        with jobs.span("schedule"):
            pass
    with pytest.raises(ValueError, match="no"), agent.span("start", parent=submit.traceparent):
        raise ValueError("no")
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    agent.record_span("checkpoint", begin, begin.replace(second=2), parent=submit.traceparent)
    with agent.span("consume", links=[submit.traceparent, "rubbish"]):
        pass
    jobs.shutdown()
    agent.shutdown()
    services = {name: service for name, (service, _) in receiver.spans.items()}
    assert services == {
        "submit": "tunesmith-jobs",
        "schedule": "tunesmith-jobs",
        "start": "tunesmith-agent",
        "checkpoint": "tunesmith-agent",
        "consume": "tunesmith-agent",
    }
    spans = {name: span for name, (_, span) in receiver.spans.items()}
    root = spans["submit"]
    assert submit.traceparent.split("-")[1] == root.trace_id.hex()  # type: ignore[attr-defined]
    for name in ("schedule", "start", "checkpoint"):
        assert (spans[name].trace_id, spans[name].parent_span_id) == (root.trace_id, root.span_id)  # type: ignore[attr-defined]
    assert spans["start"].status.message == "no"  # type: ignore[attr-defined]
    lasted = spans["checkpoint"].end_time_unix_nano - spans["checkpoint"].start_time_unix_nano  # type: ignore[attr-defined]
    assert lasted == 2 * 10**9
    assert spans["consume"].links[0].span_id == root.span_id  # type: ignore[attr-defined]
    assert spans["consume"].trace_id != root.trace_id  # type: ignore[attr-defined]


def test_kept_spans_have_the_ids_they_have_over_otlp(receiver: Receiver) -> None:
    recorder = Recorder()
    telemetry = setup("jobs", otlp_endpoint=receiver.url, recorder=recorder)
    with telemetry.span("request") as request, telemetry.span("read", keep=False), telemetry.span("work"):
        pass
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    telemetry.record_span("checkpoint", begin, begin.replace(second=2), parent=request.traceparent)
    telemetry.shutdown()
    exported = {name: span for name, (_, span) in receiver.spans.items()}
    assert set(exported) == {"request", "read", "work", "checkpoint"}
    assert [kept.name for kept in recorder.held] == ["work", "request", "checkpoint"]
    for kept in recorder.held:
        span = exported[kept.name]
        ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())  # type: ignore[attr-defined]
        assert (kept.trace_id, kept.span_id, kept.parent_span_id) == ids
    assert recorder.held[2].end_time.ToNanoseconds() == exported["checkpoint"].end_time_unix_nano  # type: ignore[attr-defined]


def test_without_a_receiver_traces_still_have_ids_and_otel_is_not_loaded() -> None:
    program = (
        "import sys\n"
        "from tunesmith_kit.telemetry import setup, trace_id, current_traceparent\n"
        "telemetry = setup('jobs', log_format='text')\n"
        "with telemetry.span('a') as outer:\n"
        "    assert len(trace_id()) == 32\n"
        "    with telemetry.span('b') as inner:\n"
        "        assert inner.traceparent[:35] == outer.traceparent[:35]\n"
        "assert current_traceparent() == ''\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_logs_are_json_with_fields_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = setup("jobs")
    formatter = logs.JsonFormatter(trace_id)
    with telemetry.span("work"):
        record = logging.makeLogRecord(
            {"name": "tunesmith", "levelname": "INFO", "msg": "job done", "job": "j1"}
        )
        line = json.loads(formatter.format(record))
        assert line["trace_id"] == trace_id()
    assert (line["message"], line["level"], line["logger"], line["job"]) == (
        "job done",
        "info",
        "tunesmith",
        "j1",
    )
    try:
        raise ValueError("broken")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: broken" in json.loads(formatter.format(record))["exception"]
    assert "job done  job=j1" in logs.TextFormatter().format(record)


@pytest.mark.parametrize(
    "settings",
    [{"log_format": "xml"}, {"log_level": "loud"}, {"otlp_endpoint": "localhost:4318"}],
)
def test_wrong_settings_are_named(settings: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        setup("jobs", **settings)  # type: ignore[arg-type]
    assert (caught.value.field, bool(caught.value.remedy)) == (next(iter(settings)), True)


def test_prometheus_shows_every_figure_of_the_table() -> None:
    METRICS.task_failure.labels(failure_class="OOM").inc()
    METRICS.rpc_duration.labels(method="/x/Y", code="OK").observe(0.2)
    text = generate_latest(REGISTRY).decode()
    for name in (
        "tunesmith_queue_length",
        "tunesmith_task_success_total",
        'tunesmith_task_failure_total{failure_class="OOM"}',
        "tunesmith_lease_expiries_total",
        "tunesmith_spool_backlog_bytes",
        "tunesmith_points_ingested_total",
        "tunesmith_process_cpu_seconds_total",
        "tunesmith_process_resident_memory_bytes",
    ):
        assert name in text
