"""The rpcs of the jobs service: check, call, reply; no rules."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from tunesmith.api.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith_jobs import leases
from tunesmith_jobs.fleet import FleetStore
from tunesmith_jobs.store import Caller, JobStore
from tunesmith_kit import names
from tunesmith_kit.rpc import principal
from tunesmith_kit.telemetry import current_traceparent
from tunesmith_kit.watch import CommitSignal, follow

Context = Any


class JobService(jobs_pb2_grpc.JobServiceServicer):
    """JobService of the contract."""

    def __init__(self, store: JobStore, signal: CommitSignal) -> None:
        self._store, self._signal = store, signal

    async def CreateJob(
        self, request: jobs_pb2.CreateJobRequest, context: Context
    ) -> jobs_pb2.CreateJobResponse:
        return jobs_pb2.CreateJobResponse(job=await self._store.create(request, _caller()))

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.GetJobResponse:
        return jobs_pb2.GetJobResponse(job=await self._store.get(request.name))

    async def ListJobs(
        self, request: jobs_pb2.ListJobsRequest, context: Context
    ) -> jobs_pb2.ListJobsResponse:
        return await self._store.list(request)

    async def CancelJob(
        self, request: jobs_pb2.CancelJobRequest, context: Context
    ) -> jobs_pb2.CancelJobResponse:
        return jobs_pb2.CancelJobResponse(job=await self._store.cancel(request, _caller()))

    async def WatchJobs(
        self, request: jobs_pb2.WatchJobsRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.WatchJobsResponse]:
        project = (
            "-" if request.parent == "projects/-" else names.parse("projects/*", request.parent, "parent")[0]
        )
        changes = follow(
            self._signal, lambda revision: self._store.changed_jobs(project, revision), request.from_revision
        )
        async for jobs, revision in changes:
            yield jobs_pb2.WatchJobsResponse(jobs=jobs, revision=revision)

    async def WatchJob(
        self, request: jobs_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        name = (await self._store.get(request.name)).name

        async def fetch(revision: int) -> tuple[list[jobs_pb2.Job], int]:
            job = await self._store.get(name)
            return ([job], job.revision) if job.revision > revision or job.terminal else ([], revision)

        async for jobs, revision in follow(self._signal, fetch, request.from_revision):
            yield jobs_pb2.WatchJobResponse(job=jobs[0] if jobs else None, revision=revision)
            if jobs and jobs[0].terminal:
                return

    async def ListAttempts(
        self, request: jobs_pb2.ListAttemptsRequest, context: Context
    ) -> jobs_pb2.ListAttemptsResponse:
        return await self._store.attempts(request)

    async def ListJobEvents(
        self, request: jobs_pb2.ListJobEventsRequest, context: Context
    ) -> jobs_pb2.ListJobEventsResponse:
        return await self._store.events(request)


class NodeService(nodes_pb2_grpc.NodeServiceServicer):
    """NodeService of the contract."""

    def __init__(self, fleet: FleetStore, jobs: JobStore, signal: CommitSignal) -> None:
        self._fleet, self._jobs, self._signal = fleet, jobs, signal

    async def RegisterNode(
        self, request: nodes_pb2.RegisterNodeRequest, context: Context
    ) -> nodes_pb2.RegisterNodeResponse:
        node, stale = await self._fleet.register(request)
        answer = nodes_pb2.RegisterNodeResponse(node=node, stale_attempts=stale)
        answer.lease_ttl.FromTimedelta(timedelta(seconds=leases.TTL_SECONDS))
        return answer

    async def GetNode(self, request: nodes_pb2.GetNodeRequest, context: Context) -> nodes_pb2.GetNodeResponse:
        return nodes_pb2.GetNodeResponse(node=await self._fleet.get(request.name))

    async def ListNodes(
        self, request: nodes_pb2.ListNodesRequest, context: Context
    ) -> nodes_pb2.ListNodesResponse:
        return await self._fleet.list(request)

    async def WatchNodes(
        self, request: nodes_pb2.WatchNodesRequest, context: Context
    ) -> AsyncIterator[nodes_pb2.WatchNodesResponse]:
        async for nodes, revision in follow(self._signal, self._jobs.changed_nodes, request.from_revision):
            yield nodes_pb2.WatchNodesResponse(nodes=nodes, revision=revision)

    async def ReportAttempt(
        self, request: nodes_pb2.ReportAttemptRequest, context: Context
    ) -> nodes_pb2.ReportAttemptResponse:
        return nodes_pb2.ReportAttemptResponse(desired=await self._fleet.report(request))


def _caller() -> Caller:
    return Caller(principal().name, current_traceparent())
