"""Tells the jobs service what becomes of attempts, for as long as it takes."""

import asyncio
import logging
import random
import time

import grpc

from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith.errors import TunesmithError
from tunesmith.status import from_rpc_error
from tunesmith_agent.redaction import Redactor

log = logging.getLogger(__name__)
_LONGEST_PAUSE = 5.0
_COMPLAIN_SECONDS = 30.0


class Fenced(Exception):
    """The attempt was replaced: whatever it still does is refused; its processes must end."""


class Reporter:
    """Sends reports of one node. Reports are idempotent, so they are repeated until an answer comes."""

    def __init__(
        self,
        node: str,
        stub: "nodes_pb2_grpc.NodeServiceAsyncStub",
        metadata: tuple[tuple[str, str], ...],
        redactor: Redactor,
    ) -> None:
        self._node, self._stub, self._metadata = node, stub, metadata
        self._redactor = redactor
        self._complained = -_COMPLAIN_SECONDS

    async def send(
        self, report: nodes_pb2.ReportAttemptRequest, *, patient: bool = True
    ) -> nodes_pb2.ReportAttemptResponse | None:
        """Sends a report and returns what is wanted of the attempt; None when nobody answered.

        Args:
            patient: try until it is answered; otherwise once (progress is soon out of date).

        Raises:
            Fenced: the attempt is no longer in force.
        """
        report.node = self._node
        if report.HasField("failure"):  # it may quote data or a setting
            report.failure.message = self._redactor.clean(report.failure.message)
        pause = 0.1
        while True:
            try:
                answer = await self._stub.ReportAttempt(report, timeout=10, metadata=self._metadata)
                self._complained = -_COMPLAIN_SECONDS
                return answer
            except grpc.aio.AioRpcError as error:
                known = from_rpc_error(error)
            if known.reason in ("STALE_EPOCH", "JOB_NOT_FOUND"):
                raise Fenced(known.message)
            self._complain(known, report)
            if not patient:
                return None
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def send_prepared(self, report: nodes_pb2.ReportPreparedRequest) -> None:
        """Says that what a job needs to move here is here, or cannot be. Once: the command comes again."""
        report.node = self._node
        try:
            await self._stub.ReportPrepared(report, timeout=10, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            log.warning(
                "a move's preparation was not taken", extra={"job": report.job, "error": error.details()}
            )

    def _complain(self, error: TunesmithError, report: nodes_pb2.ReportAttemptRequest) -> None:
        if time.monotonic() - self._complained < _COMPLAIN_SECONDS:
            return  # an outage of an hour needs no thousand lines
        self._complained = time.monotonic()
        log.warning(
            "a report was not taken", extra={"job": report.job, "epoch": report.epoch, "error": error.message}
        )
