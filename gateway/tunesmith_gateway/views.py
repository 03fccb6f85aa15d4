"""The whole platform in one call and one stream: jobs and nodes together."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from tunesmith import __version__
from tunesmith.api.gateway.v1 import fleet_pb2, fleet_pb2_grpc
from tunesmith.api.jobs.v1 import jobs_pb2, jobs_pb2_grpc, state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith_gateway.proxy import Backends
from tunesmith_kit.rpc import principal

_ALL = "projects/-"


class FleetService(fleet_pb2_grpc.FleetServiceServicer):
    """FleetService of the contract."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._jobs = jobs_pb2_grpc.JobServiceStub(backends.channel("jobs"))
        self._nodes = nodes_pb2_grpc.NodeServiceStub(backends.channel("jobs"))

    async def GetServerInfo(
        self, request: fleet_pb2.GetServerInfoRequest, context: Any
    ) -> fleet_pb2.GetServerInfoResponse:
        caller = principal()
        answer = fleet_pb2.GetServerInfoResponse(version=__version__, principal=caller.name, role=caller.role)
        answer.time.GetCurrentTime()
        return answer

    async def GetFleet(self, request: fleet_pb2.GetFleetRequest, context: Any) -> fleet_pb2.GetFleetResponse:
        async for snapshot in self._follow(0):
            states = Counter(state_pb2.JobState.Name(job.state) for job in snapshot.jobs)
            return fleet_pb2.GetFleetResponse(
                nodes=snapshot.nodes,
                jobs=snapshot.jobs,
                num_jobs_by_state=states,
                revision=snapshot.revision,
            )
        raise AssertionError("a watch always begins with a snapshot")

    async def WatchFleet(
        self, request: fleet_pb2.WatchFleetRequest, context: Any
    ) -> AsyncIterator[fleet_pb2.WatchFleetResponse]:
        async for change in self._follow(request.from_revision):
            yield change

    async def _follow(self, revision: int) -> AsyncIterator[fleet_pb2.WatchFleetResponse]:
        """Joins the two watches. Jobs and nodes share one count of revisions, so the smaller one is a safe
        place to go on from: what the other stream repeats then is state, not an event."""
        metadata = self._backends.metadata()
        jobs = self._jobs.WatchJobs(
            jobs_pb2.WatchJobsRequest(parent=_ALL, from_revision=revision), metadata=metadata
        )
        nodes = self._nodes.WatchNodes(nodes_pb2.WatchNodesRequest(from_revision=revision), metadata=metadata)
        reading: dict[str, asyncio.Future[Any]] = {
            "jobs": asyncio.ensure_future(jobs.read()),
            "nodes": asyncio.ensure_future(nodes.read()),
        }
        try:
            first_jobs, first_nodes = await reading["jobs"], await reading["nodes"]
            reached = {"jobs": first_jobs.revision, "nodes": first_nodes.revision}
            yield fleet_pb2.WatchFleetResponse(
                jobs=first_jobs.jobs, nodes=first_nodes.nodes, revision=min(reached.values())
            )
            calls: dict[str, Any] = {"jobs": jobs, "nodes": nodes}
            reading = {name: asyncio.ensure_future(call.read()) for name, call in calls.items()}
            while True:
                await asyncio.wait(reading.values(), return_when=asyncio.FIRST_COMPLETED)
                change = fleet_pb2.WatchFleetResponse()
                for name in [name for name, read in reading.items() if read.done()]:
                    message = reading[name].result()
                    reached[name] = message.revision
                    getattr(change, name).extend(getattr(message, name))
                    reading[name] = asyncio.ensure_future(calls[name].read())
                change.revision = min(reached.values())
                yield change
        finally:
            for read in reading.values():
                read.cancel()
            jobs.cancel()
            nodes.cancel()
