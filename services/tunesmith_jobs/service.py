"""The rpcs of the jobs service: check, call, reply; no rules."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from tunesmith.api.jobs.v1 import (
    external_pb2,
    external_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    queue_pb2,
    verbs_pb2,
)
from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith_jobs import leases
from tunesmith_jobs.explain import Explainer
from tunesmith_jobs.external import ExternalRuns
from tunesmith_jobs.fleet import FleetStore
from tunesmith_jobs.forks import Forks
from tunesmith_jobs.quotas import QuotaStore
from tunesmith_jobs.reports import Reports
from tunesmith_jobs.store import Caller, JobStore
from tunesmith_jobs.verbs import Verbs
from tunesmith_kit import names
from tunesmith_kit.rpc import principal
from tunesmith_kit.telemetry import current_traceparent
from tunesmith_kit.watch import CommitSignal, follow

Context = Any


class JobService(jobs_pb2_grpc.JobServiceServicer):
    """JobService of the contract."""

    def __init__(
        self,
        store: JobStore,
        verbs: Verbs,
        forks: Forks,
        explainer: Explainer,
        quotas: QuotaStore,
        signal: CommitSignal,
    ) -> None:
        self._store, self._verbs, self._forks, self._signal = store, verbs, forks, signal
        self._explainer, self._quotas = explainer, quotas

    async def CreateJob(
        self, request: jobs_pb2.CreateJobRequest, context: Context
    ) -> jobs_pb2.CreateJobResponse:
        answer = jobs_pb2.CreateJobResponse(job=await self._store.create(request, _caller()))
        if request.validate_only:
            answer.forecast.CopyFrom(await self._explainer.foresee(answer.job))
        return answer

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.GetJobResponse:
        return jobs_pb2.GetJobResponse(job=await self._store.get(request.name))

    async def ListJobs(
        self, request: jobs_pb2.ListJobsRequest, context: Context
    ) -> jobs_pb2.ListJobsResponse:
        return await self._store.list(request)

    async def PauseJob(
        self, request: verbs_pb2.PauseJobRequest, context: Context
    ) -> jobs_pb2.PauseJobResponse:
        return await self._verbs.pause(request, _caller())

    async def ResumeJob(
        self, request: verbs_pb2.ResumeJobRequest, context: Context
    ) -> jobs_pb2.ResumeJobResponse:
        return await self._verbs.resume(request, _caller())

    async def CancelJob(
        self, request: jobs_pb2.CancelJobRequest, context: Context
    ) -> jobs_pb2.CancelJobResponse:
        return await self._verbs.cancel(request, _caller())

    async def CheckpointJob(
        self, request: verbs_pb2.CheckpointJobRequest, context: Context
    ) -> jobs_pb2.CheckpointJobResponse:
        return await self._verbs.checkpoint(request, _caller())

    async def MoveJob(self, request: verbs_pb2.MoveJobRequest, context: Context) -> jobs_pb2.MoveJobResponse:
        return await self._verbs.move(request, _caller())

    async def UpdateJob(
        self, request: verbs_pb2.UpdateJobRequest, context: Context
    ) -> jobs_pb2.UpdateJobResponse:
        return await self._verbs.update(request, _caller())

    async def DeleteJob(
        self, request: verbs_pb2.DeleteJobRequest, context: Context
    ) -> verbs_pb2.DeleteJobResponse:
        return await self._verbs.delete(request, _caller())

    async def PinCheckpoint(
        self, request: verbs_pb2.PinCheckpointRequest, context: Context
    ) -> verbs_pb2.PinCheckpointResponse:
        return await self._verbs.pin(request, _caller())

    async def ForkJob(self, request: verbs_pb2.ForkJobRequest, context: Context) -> jobs_pb2.ForkJobResponse:
        return await self._forks.fork(request, _caller())

    async def ExplainJob(
        self, request: queue_pb2.ExplainJobRequest, context: Context
    ) -> queue_pb2.ExplainJobResponse:
        return await self._explainer.explain(request)

    async def GetQuota(
        self, request: queue_pb2.GetQuotaRequest, context: Context
    ) -> queue_pb2.GetQuotaResponse:
        return await self._quotas.get(request)

    async def SetQuota(
        self, request: queue_pb2.SetQuotaRequest, context: Context
    ) -> queue_pb2.SetQuotaResponse:
        return await self._quotas.set(request, _caller())

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


class ExternalRunService(external_pb2_grpc.ExternalRunServiceServicer):
    """ExternalRunService of the contract."""

    def __init__(self, runs: ExternalRuns) -> None:
        self._runs = runs

    async def StartExternalRun(
        self, request: external_pb2.StartExternalRunRequest, context: Context
    ) -> external_pb2.StartExternalRunResponse:
        return await self._runs.start(request, _caller())

    async def RenewExternalRun(
        self, request: external_pb2.RenewExternalRunRequest, context: Context
    ) -> external_pb2.RenewExternalRunResponse:
        return await self._runs.renew(request, _caller())

    async def CommitExternalCheckpoint(
        self, request: external_pb2.CommitExternalCheckpointRequest, context: Context
    ) -> external_pb2.CommitExternalCheckpointResponse:
        return await self._runs.commit(request, _caller())

    async def FinishExternalRun(
        self, request: external_pb2.FinishExternalRunRequest, context: Context
    ) -> external_pb2.FinishExternalRunResponse:
        return await self._runs.finish(request, _caller())


class NodeService(nodes_pb2_grpc.NodeServiceServicer):
    """NodeService of the contract."""

    def __init__(self, fleet: FleetStore, reports: Reports, jobs: JobStore, signal: CommitSignal) -> None:
        self._fleet, self._reports, self._jobs, self._signal = fleet, reports, jobs, signal

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
        return await self._reports.take(request)

    async def ReportPrepared(
        self, request: nodes_pb2.ReportPreparedRequest, context: Context
    ) -> nodes_pb2.ReportPreparedResponse:
        await self._reports.prepared(request)
        return nodes_pb2.ReportPreparedResponse()

    async def CordonNode(
        self, request: nodes_pb2.CordonNodeRequest, context: Context
    ) -> nodes_pb2.CordonNodeResponse:
        return nodes_pb2.CordonNodeResponse(node=await self._fleet.cordon(request, _caller()))

    async def UncordonNode(
        self, request: nodes_pb2.UncordonNodeRequest, context: Context
    ) -> nodes_pb2.UncordonNodeResponse:
        return nodes_pb2.UncordonNodeResponse(node=await self._fleet.uncordon(request, _caller()))

    async def DrainNode(
        self, request: nodes_pb2.DrainNodeRequest, context: Context
    ) -> nodes_pb2.DrainNodeResponse:
        return nodes_pb2.DrainNodeResponse(node=await self._fleet.drain(request, _caller()))


def _caller() -> Caller:
    return Caller(principal().name, current_traceparent())
