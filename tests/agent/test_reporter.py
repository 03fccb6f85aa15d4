"""What an agent tells of its attempts, as the jobs service gets it."""

import grpc

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith_agent.redaction import Redactor
from tunesmith_agent.reporter import Reporter


class Heard(nodes_pb2_grpc.NodeServiceServicer):
    """Keeps the last report."""

    async def ReportAttempt(
        self, request: nodes_pb2.ReportAttemptRequest, context: object
    ) -> nodes_pb2.ReportAttemptResponse:
        self.report = request
        return nodes_pb2.ReportAttemptResponse()


async def test_a_failure_that_quotes_a_secret_is_told_without_it() -> None:
    heard, server = Heard(), grpc.aio.server()  # type: ignore[abstract]
    nodes_pb2_grpc.add_NodeServiceServicer_to_server(heard, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        redactor = Redactor.of({"HUB_TOKEN": "opaque-value"})
        reporter = Reporter("n1", nodes_pb2_grpc.NodeServiceStub(channel), (), redactor)
        message = "401 for opaque-value at line 3, and for hf_abcdefghijklmnopqrstuv"
        failure = state_pb2.Failure(reason="HUB_REFUSED", message=message)
        await reporter.send(nodes_pb2.ReportAttemptRequest(job="projects/p/jobs/j", failure=failure))
    await server.stop(None)
    assert heard.report.node == "n1"
    assert heard.report.failure.message == "401 for [redacted] at line 3, and for [redacted]"
