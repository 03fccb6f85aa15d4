"""The fleet: nodes, and everything at a glance."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from tunesmith import names
from tunesmith.api.gateway.v1 import fleet_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.connection import Connection
from tunesmith.errors import TunesmithError
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.watch import follow


class Nodes(Handle[Face]):
    """The nodes of the fleet."""

    _core: Connection

    @both
    async def get(self, name: str) -> nodes_pb2.Node:
        """Returns one node by its name."""
        request = nodes_pb2.GetNodeRequest(name=f"nodes/{names.last_part(name)}")
        return (await self._core.call(self._core.nodes.GetNode, request)).node

    @stream
    async def list(self) -> AsyncGenerator[nodes_pb2.Node, None]:
        """Yields nodes by name."""
        request = nodes_pb2.ListNodesRequest(page_size=200)
        async for page in self._core.pages(self._core.nodes.ListNodes, request):
            for node in page.nodes:
                yield node


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
