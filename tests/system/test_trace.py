"""One trace from the HTTP request to the checkpoint in the trainer, received over OTLP."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.jobs import spec, wait_state
from tests.support.platform import embedded
from tests.support.processes import wait_for


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
