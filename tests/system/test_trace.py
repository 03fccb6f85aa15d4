"""One trace from the HTTP request to the checkpoint in the trainer: received over OTLP, and asked for."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.jobs import spec, wait_state
from tests.support.platform import Platform, embedded
from tests.support.processes import wait_for
from tunesmith.api.metrics.v1 import trace_pb2
from tunesmith_kit.bus import Bus
from tunesmith_kit.streams import SPANS


class Receiver:
    """An OTLP/HTTP receiver that keeps (service, span) pairs."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = [
                        a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
                    ]
                    receiver.spans += [
                        (names[0], span) for scope in resource.scope_spans for span in scope.spans
                    ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def of(self, trace: str) -> list[tuple[str, Span]]:
        return [(service, span) for service, span in self.spans if span.trace_id.hex() == trace]

    def ids(self, trace: str) -> set[tuple[str, str, str]]:
        """Id, id above and name of each span of a trace."""
        return {(s.span_id.hex(), s.parent_span_id.hex(), s.name) for _, s in self.of(trace)}

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


def test_one_trace_runs_from_the_request_to_the_last_checkpoint(tmp_path: Path, receiver: Receiver) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with embedded(tmp_path, {"TUNESMITH_OTLP_ENDPOINT": receiver.endpoint}) as platform:
        platform.load_inputs()
        with platform.rest() as rest:
            answer = rest.post(
                "/api/v1/projects/default/jobs",
                json={"spec": spec(10, checkpoint_every_steps=5)},
                headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
            )
            job = answer.json()["job"]
        assert job["traceparent"][3:35] == trace
        with platform.client() as client:
            wait_state(client, job["name"], "SUCCEEDED")

        # Each service sends its spans when it likes: none of them is surely there when another is.
        wait_for(lambda: not missing(receiver.of(trace)), 90, "the trace")
        with platform.client() as client:
            stored = client.jobs.get(job["name"])
            kept = wait_for(lambda: _many(stored.trace()), 60, "spans are stored too")
        shown = {(span.span_id, span.parent_span_id, span.name) for span in kept.spans}
        wait_for(lambda: shown <= receiver.ids(trace), 60, "what is shown leaves over OTLP too")


def _many(found: trace_pb2.GetTraceResponse) -> trace_pb2.GetTraceResponse | None:
    return found if len(found.spans) > 5 else None


def missing(found: list[tuple[str, Span]]) -> list[str]:
    """What a whole trace of a job has, and these spans have not."""
    trainer = ("load_model", "first_step", "checkpoint", "export")
    wanted = {("tunesmith-trainer", name) for name in trainer} | {("tunesmith-registry", "verify_output")}
    lacks = [
        f"{service} {name}" for service, name in wanted - {(service, span.name) for service, span in found}
    ]
    services = {f"tunesmith-{name}" for name in ("gateway", "jobs", "registry", "agent", "trainer")}
    lacks += services - {service for service, _ in found}
    saved = [span for _, span in found if span.name == "checkpoint"]
    if len(saved) < 2:
        return [*lacks, "two checkpoints"]
    path = above(saved[-1], {span.span_id: span for _, span in found})
    return lacks if "launch" in path and path[-1] == "POST /api/v1" else [*lacks, f"more above {path}"]


def above(span: Span, by_id: dict[bytes, Span]) -> list[str]:
    """Names of a span and of those above it, the outermost last."""
    path = [span.name]
    while span.parent_span_id in by_id:
        span = by_id[span.parent_span_id]
        path.append(span.name)
    return path


TRACE = "7bf92f3577b34da6a3ce929d0e0e4711"


def test_the_trace_of_a_job_can_be_asked_for_and_goes_with_it(embedded_platform: Platform) -> None:
    platform = embedded_platform
    wanted = {
        "gateway POST /api/v1", "gateway CreateJob", "jobs CreateJob", "jobs queued",
        "registry check_inputs", "registry verify_output",
        "agent launch", "agent fetch_inputs", "agent await_trainer", "agent run", "agent store_output",
        "trainer load_model", "trainer first_step", "trainer checkpoint", "trainer export",
    }  # fmt: skip
    with platform.rest() as rest, platform.client() as client:
        rest.headers["traceparent"] = f"00-{TRACE}-00f067aa0ba902b7-01"
        made = rest.post(
            "/api/v1/projects/default/jobs", json={"spec": spec(12, checkpoint_every_steps=2)}
        ).json()["job"]
        job = client.jobs.get(made["name"])
        assert rest.get(f"/api/v1/{job.name}").json()["job"]["name"] == job.name
        rest.post(
            "/api/v1/projects/default/series:compare", json={"jobs": [job.name], "keys": ["train/loss"]}
        )
        wait_state(client, job.name, "SUCCEEDED")
        wait_for(lambda: wanted <= {_words(span) for span in job.trace().spans}, 60, "the whole trace")
        found = job.trace()
        asked = rest.get(f"/api/v1/{job.name}:trace").json()

    assert {_words(span) for span in found.spans} == wanted
    told = [span for span in asyncio.run(_published(platform)) if span.trace_id == TRACE]
    assert {_words(span) for span in told} == wanted, "reads and reports do not even travel"
    assert found.trace_id == asked["trace_id"] == TRACE
    assert {span.trace_id for span in found.spans} == {TRACE}
    by_id = {span.span_id: span for span in found.spans}
    assert len(by_id) == len(found.spans) == len(asked["spans"])
    roots = [span for span in found.spans if span.parent_span_id not in by_id]
    assert [_words(span) for span in roots] == ["gateway POST /api/v1"], "all hang below the request"
    assert roots[0].parent_span_id == "00f067aa0ba902b7", "which is part of the caller's span"
    saved = [span for span in found.spans if span.name == "checkpoint"]
    assert [span.attributes["step"] for span in saved] == ["2", "4", "6", "8", "10", "12"]
    assert {by_id[span.parent_span_id].name for span in saved} == {"launch"}
    assert all(span.start_time.ToNanoseconds() <= span.end_time.ToNanoseconds() for span in found.spans)

    printed = platform.run("trace", job.display_name)
    assert printed.returncode == 0, printed.stderr
    assert f"trace {TRACE}  {len(found.spans)} spans" in printed.stdout
    assert "checkpoint x 6" in printed.stdout, "spans that are alike share a line"
    listed = json.loads(platform.run("trace", job.display_name, "--json").stdout)
    assert [span["span_id"] for span in listed] == [span.span_id for span in found.spans]

    with platform.client() as client:
        job = client.jobs.get(job.name)
        job.delete()
        wait_for(lambda: not job.trace().trace_id, 60, "nothing is left of it")


async def _published(platform: Platform) -> list[trace_pb2.TraceSpan]:
    """The spans that the processes published last."""
    (ports,) = (platform.root / "data" / "nats").glob("*.ports")
    (url, *_) = json.loads(ports.read_text())["nats"]
    bus = await Bus.connect(url, platform.nats_token, "test", ensure_streams=False)
    try:
        messages, _ = await bus.newest(SPANS, 300)
    finally:
        await bus.close()
    return [span for each in messages for span in trace_pb2.SpanBatch.FromString(each.payload).spans]


def _words(span: trace_pb2.TraceSpan) -> str:
    return f"{span.service} {span.name.rpartition('/')[2] if '.' in span.name else span.name}"
