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

        def whole() -> dict[tuple[str, str], list[Span]] | None:
            ours: dict[tuple[str, str], list[Span]] = {}
            for service, span in receiver.spans:
                if span.trace_id.hex() == trace:
                    ours.setdefault((service, span.name), []).append(span)
            done = len(ours.get(("tunesmith-trainer", "checkpoint"), [])) >= 2
            return ours if done and ("tunesmith-registry", "verify_output") in ours else None

        found = wait_for(
            whole, 20, f"the trace; received: {sorted({(s, p.name) for s, p in receiver.spans})}"
        )
    by_id = {span.span_id: span for spans in found.values() for span in spans}
    last = found[("tunesmith-trainer", "checkpoint")][-1]
    path = [last.name]
    above = last
    while above.parent_span_id in by_id:
        above = by_id[above.parent_span_id]
        path.append(above.name)
    assert path[0] == "checkpoint"
    assert "launch" in path
    assert path[-1] == "POST /api/v1"
    services = {service for service, _ in found}
    assert services >= {f"tunesmith-{name}" for name in ("gateway", "jobs", "registry", "agent", "trainer")}
    assert {name for service, name in found if service == "tunesmith-trainer"} >= {
        "load_model",
        "first_step",
        "export",
    }
