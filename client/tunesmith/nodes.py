"""The fleet: nodes, and everything at a glance."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import datetime, timedelta

from tunesmith import names
from tunesmith.api.gateway.v1 import fleet_pb2
from tunesmith.api.metrics.v1 import metrics_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import DeadlineExceeded, TunesmithError
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.metrics import Series, to_series
from tunesmith.tail import moment
from tunesmith.watch import follow


class Nodes(Handle[Face]):
    """The nodes of the fleet."""

    _core: Connection

    @both
    async def get(self, name: str) -> nodes_pb2.Node:
        """Returns one node by its name."""
        request = nodes_pb2.GetNodeRequest(name=_node(name))
        return (await self._core.call(self._core.nodes.GetNode, request)).node

    @stream
    async def list(self) -> AsyncGenerator[nodes_pb2.Node, None]:
        """Yields nodes by name."""
        request = nodes_pb2.ListNodesRequest(page_size=200)
        async for page in self._core.pages(self._core.nodes.ListNodes, request):
            for node in page.nodes:
                yield node

    @both
    async def cordon(self, name: str, *, reason: str = "") -> nodes_pb2.Node:
        """Gives a node no new attempts; those it holds go on."""
        request = nodes_pb2.CordonNodeRequest(name=_node(name), reason=reason, request_id=new_request_id())
        return (await self._core.call(self._core.nodes.CordonNode, request)).node

    @both
    async def uncordon(self, name: str) -> nodes_pb2.Node:
        """Lets a cordoned or drained node take attempts again."""
        request = nodes_pb2.UncordonNodeRequest(name=_node(name), request_id=new_request_id())
        return (await self._core.call(self._core.nodes.UncordonNode, request)).node

    @both
    async def drain(self, name: str, *, reason: str = "") -> nodes_pb2.Node:
        """Cordons a node and sends its jobs away, each with a checkpoint; `emptied()` waits for the end."""
        request = nodes_pb2.DrainNodeRequest(name=_node(name), reason=reason, request_id=new_request_id())
        return (await self._core.call(self._core.nodes.DrainNode, request)).node

    @both
    async def series(
        self,
        name: str,
        *keys: str,
        since: datetime | timedelta | None = None,
        until: datetime | None = None,
        max_points: int = 0,
    ) -> dict[str, Series]:
        """Returns curves of a node by key: those named, or all; `gpu*/power_watts` means every GPU.

        They go from `since` (an hour ago, if not given) to `until` (now). Steps are Unix seconds. Of longer
        spans each point stands for a bucket, with its mean and extremes. `max_points` 0: 600.
        """
        request = metrics_pb2.QueryNodeSeriesRequest(name=_node(name), keys=keys, max_points=max_points)
        for field, time in ((request.start_time, moment(since)), (request.end_time, moment(until))):
            if time is not None:
                field.CopyFrom(time)
        response = await self._core.call(self._core.metrics.QueryNodeSeries, request)
        return {proto.key: to_series(proto) for proto in response.series}

    @both
    async def emptied(self, name: str, timeout: float | None = None) -> nodes_pb2.Node:  # noqa: ASYNC109 - has a sync face too
        """Waits until a node holds no attempt and returns it.

        Raises DeadlineExceeded when `timeout` seconds pass before.
        """

        def opened(revision: int) -> AsyncIterator[nodes_pb2.WatchNodesResponse]:
            request = nodes_pb2.WatchNodesRequest(from_revision=revision)
            return aiter(self._core.nodes.WatchNodes(request, metadata=self._core.metadata))

        try:
            async with asyncio.timeout(timeout), contextlib.aclosing(follow(self._core, opened)) as messages:
                async for message in messages:
                    for node in message.nodes:
                        if node.name == _node(name) and not node.jobs:
                            return node
        except TimeoutError:
            raise DeadlineExceeded(
                "DEADLINE_EXCEEDED",
                f"node {names.last_part(name)} still held jobs after {timeout:g} s",
                remedy="wait longer; `tunesmith nodes show` names them",
            ) from None
        raise AssertionError("a watch of nodes never ends")


def _node(name: str) -> str:
    return f"nodes/{names.last_part(name)}"


class Fleet(Handle[Face]):
    """Nodes and unfinished jobs together, as the gateway gathers them."""

    _core: Connection

    @both
    async def get(self) -> fleet_pb2.GetFleetResponse:
        """Returns nodes, unfinished jobs and counts."""
        return await self._core.call(self._core.fleet.GetFleet, fleet_pb2.GetFleetRequest())

    @stream
    async def watch(
        self, *, from_revision: int = 0, on_gap: Callable[[TunesmithError | None], None] = lambda error: None
    ) -> AsyncGenerator[fleet_pb2.WatchFleetResponse, None]:
        """Yields changes of jobs and nodes for ever, across disconnects; first a snapshot."""

        def opened(revision: int) -> AsyncIterator[fleet_pb2.WatchFleetResponse]:
            request = fleet_pb2.WatchFleetRequest(from_revision=revision)
            return aiter(self._core.fleet.WatchFleet(request, metadata=self._core.metadata))

        messages = follow(self._core, opened, from_revision=from_revision, on_gap=on_gap)
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield message

    @both
    async def server(self) -> fleet_pb2.GetServerInfoResponse:
        """Tells the server's version, and who the caller is to it."""
        return await self._core.call(self._core.fleet.GetServerInfo, fleet_pb2.GetServerInfoRequest())
