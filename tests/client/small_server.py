"""A small gRPC server of the contract, in memory: what the client is tested against alone.

It serves real RPCs on a real port and can be told to be away, to cut streams, and to refuse. The tests in
`tests/system` drive the same client against the whole platform.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from tunesmith.api.gateway.v1 import fleet_pb2, fleet_pb2_grpc
from tunesmith.api.jobs.v1 import external_pb2, external_pb2_grpc, jobs_pb2, jobs_pb2_grpc, state_pb2
from tunesmith.api.metrics.v1 import metrics_pb2, metrics_pb2_grpc, records_pb2, records_pb2_grpc
from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith.api.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from tunesmith.errors import (
    STATUS_KEY,
    InvalidArgument,
    NotFound,
    TunesmithError,
    Unauthenticated,
    Unavailable,
)
from tunesmith.faces import LoopThread
from tunesmith.status import to_status

TOKEN = "a-good-token"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def refuse(context: Any, error: TunesmithError) -> None:
    """Ends the call with an error as the platform's servers do."""
    metadata = ((STATUS_KEY, to_status(error).SerializeToString()),)
    await context.abort(_CODES[error.code], error.message, metadata)


class State:
    """What the server holds, and the faults it is told to make."""

    def __init__(self) -> None:
        self.jobs: dict[str, jobs_pb2.Job] = {}
        self.requests: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.datasets: list[datasets_pb2.DatasetVersion] = []
        self.base_models: list[models_pb2.BaseModel] = []
        self.log: list[metrics_pb2.LogLine] = []
        self.curve: list[tuple[int, float]] = []
        self.records: dict[int, float] = {}
        self.revision = 0
        self.changed = asyncio.Event()
        self.calls: list[str] = []
        self.uploads = 0
        self.imports: list[datasets_pb2.ImportDatasetRequest] = []
        self.refusals: list[TunesmithError] = []
        self.refused: dict[str, list[TunesmithError]] = {}  # by the call they are of
        self.pause_ms = 0
        self.checkpoints: dict[str, external_pb2.CommitExternalCheckpointRequest] = {}
        self.cut_streams_after: int | None = None
        self.validate: Callable[[jobs_pb2.Job], None] = lambda job: None

    def put(self, job: jobs_pb2.Job) -> None:
        """Stores a job under a new revision and wakes the watchers."""
        self.revision += 1
        job.revision = self.revision
        job.terminal = job.state in (
            state_pb2.JOB_STATE_SUCCEEDED,
            state_pb2.JOB_STATE_FAILED,
            state_pb2.JOB_STATE_CANCELLED,
        )
        self.jobs[job.job_id] = job
        self.wake()

    def wake(self) -> None:
        """Wakes the watchers."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def begin(self, context: Any, call: str) -> None:
        """Notes a call, checks its token, and makes the next fault asked for."""
        self.calls.append(call)
        self.wake()
        tokens = [value for key, value in context.invocation_metadata() if key == "authorization"]
        if tokens != [f"Bearer {TOKEN}"]:
            error = Unauthenticated("TOKEN_INVALID", "the token is not known", remedy="ask for a new token")
            await refuse(context, error)
        if self.refusals:
            await refuse(context, self.refusals.pop(0))
        if self.refused.get(call):
            await refuse(context, self.refused[call].pop(0))

    async def cut(self, context: Any, sent: int) -> None:
        """Cuts a stream that has sent as many messages as asked for, as a server that goes away does."""
        if self.cut_streams_after is not None and sent >= self.cut_streams_after:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


class _Jobs(jobs_pb2_grpc.JobServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def CreateJob(self, request: jobs_pb2.CreateJobRequest, context: Any) -> jobs_pb2.CreateJobResponse:
        await self.state.begin(context, "CreateJob")
        known = self.state.requests.get(request.request_id)
        if known is None:
            known = f"{len(self.state.jobs) + 1:026d}"
            self.state.requests[request.request_id] = known
            job = jobs_pb2.Job(
                name=f"{request.parent}/jobs/{known}",
                job_id=known,
                display_name=f"{request.spec.experiment or 'job'}-{len(self.state.jobs) + 1}",
                spec=request.spec,
                state=state_pb2.JOB_STATE_VALIDATING,
                active=True,
            )
            self.state.put(job)
            answer = jobs_pb2.Job()
            answer.CopyFrom(job)
            self.state.validate(job)
            return jobs_pb2.CreateJobResponse(job=answer)
        return jobs_pb2.CreateJobResponse(job=self.state.jobs[known])

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Any) -> jobs_pb2.GetJobResponse:
        await self.state.begin(context, "GetJob")
        wanted = request.name.rpartition("/")[2]
        for job in self.state.jobs.values():
            if wanted in (job.job_id, job.display_name):
                return jobs_pb2.GetJobResponse(job=job)
        error = NotFound("JOB_NOT_FOUND", f"there is no job {wanted}", field="name", value=request.name)
        await refuse(context, error)
        raise AssertionError

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Any) -> jobs_pb2.ListJobsResponse:
        await self.state.begin(context, "ListJobs")
        found = [
            job
            for job in reversed(self.state.jobs.values())
            if not request.states or job.state in request.states
        ]
        start, size = int(request.page_token or 0), request.page_size or 50
        token = str(start + size) if start + size < len(found) else ""
        return jobs_pb2.ListJobsResponse(jobs=found[start : start + size], next_page_token=token)

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Any) -> jobs_pb2.CancelJobResponse:
        await self.state.begin(context, "CancelJob")
        job = self.state.jobs[request.name.rpartition("/")[2]]
        now = request.mode == jobs_pb2.CANCEL_MODE_NOW
        job.state = state_pb2.JOB_STATE_CANCELLED if now else state_pb2.JOB_STATE_CANCELLING
        self.state.put(job)
        return jobs_pb2.CancelJobResponse(job=job)

    async def ListAttempts(
        self, request: jobs_pb2.ListAttemptsRequest, context: Any
    ) -> jobs_pb2.ListAttemptsResponse:
        await self.state.begin(context, "ListAttempts")
        return jobs_pb2.ListAttemptsResponse()

    async def WatchJobs(
        self, request: jobs_pb2.WatchJobsRequest, context: Any
    ) -> AsyncIterator[jobs_pb2.WatchJobsResponse]:
        await self.state.begin(context, f"WatchJobs from {request.from_revision}")
        revision, sent = request.from_revision, 0
        while True:
            changed = self.state.changed
            news = [job for job in self.state.jobs.values() if job.revision > revision]
            if news:
                revision, sent = self.state.revision, sent + 1
                yield jobs_pb2.WatchJobsResponse(jobs=news, revision=revision)
                await self.state.cut(context, sent)
            await changed.wait()

    async def WatchJob(
        self, request: jobs_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        await self.state.begin(context, f"WatchJob from {request.from_revision}")
        job_id, revision, sent = request.name.rpartition("/")[2], request.from_revision, 0
        while True:
            changed = self.state.changed
            job = self.state.jobs[job_id]
            if job.revision > revision:
                revision, sent = job.revision, sent + 1
                yield jobs_pb2.WatchJobResponse(job=job, revision=revision)
                await self.state.cut(context, sent)
                if job.terminal:
                    return
                continue
            await changed.wait()


class _External(external_pb2_grpc.ExternalRunServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def StartExternalRun(
        self, request: external_pb2.StartExternalRunRequest, context: Any
    ) -> external_pb2.StartExternalRunResponse:
        await self.state.begin(context, "StartExternalRun")
        job = jobs_pb2.Job(
            job_id=request.job_id, display_name="mine-1", state=state_pb2.JOB_STATE_RUNNING, active=True
        )
        self.state.put(job)
        return external_pb2.StartExternalRunResponse(job=job, epoch=1)

    async def RenewExternalRun(
        self, request: external_pb2.RenewExternalRunRequest, context: Any
    ) -> external_pb2.RenewExternalRunResponse:
        await self.state.begin(context, "RenewExternalRun")
        return external_pb2.RenewExternalRunResponse(desired=state_pb2.DESIRED_RUN)

    async def CommitExternalCheckpoint(
        self, request: external_pb2.CommitExternalCheckpointRequest, context: Any
    ) -> external_pb2.CommitExternalCheckpointResponse:
        await self.state.begin(context, "CommitExternalCheckpoint")
        self.state.checkpoints[request.digest] = request
        return external_pb2.CommitExternalCheckpointResponse()

    async def FinishExternalRun(
        self, request: external_pb2.FinishExternalRunRequest, context: Any
    ) -> external_pb2.FinishExternalRunResponse:
        await self.state.begin(context, "FinishExternalRun")
        return external_pb2.FinishExternalRunResponse()


class _Records(records_pb2_grpc.RecordServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def WriteRecords(
        self, request: records_pb2.WriteRecordsRequest, context: Any
    ) -> records_pb2.WriteRecordsResponse:
        await self.state.begin(context, "WriteRecords")
        for seq, record in enumerate(request.records, start=request.first_seq):
            self.state.records[seq] = record.values["loss"]
        answer = records_pb2.WriteRecordsResponse(metrics_seq=len(self.state.records))
        if self.state.pause_ms:
            answer.pause.FromMilliseconds(self.state.pause_ms)
        return answer


class _Logs(metrics_pb2_grpc.LogServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def QueryLogs(
        self, request: metrics_pb2.QueryLogsRequest, context: Any
    ) -> metrics_pb2.QueryLogsResponse:
        await self.state.begin(context, "QueryLogs")
        found = [line for line in self.state.log if request.contains in line.text]
        lines = found[-request.page_size :] if request.tail else found
        return metrics_pb2.QueryLogsResponse(lines=lines, revision=len(self.state.log))

    async def TailLogs(
        self, request: metrics_pb2.TailLogsRequest, context: Any
    ) -> AsyncIterator[metrics_pb2.TailLogsResponse]:
        await self.state.begin(context, f"TailLogs from {request.from_revision}")
        revision = request.from_revision
        while True:
            changed = self.state.changed
            if len(self.state.log) > revision:
                lines = self.state.log[revision:]
                revision = len(self.state.log)
                yield metrics_pb2.TailLogsResponse(lines=lines, revision=revision)
            await changed.wait()


class _Metrics(metrics_pb2_grpc.MetricsServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def QuerySeries(
        self, request: metrics_pb2.QuerySeriesRequest, context: Any
    ) -> metrics_pb2.QuerySeriesResponse:
        await self.state.begin(context, "QuerySeries")
        series = metrics_pb2.Series(
            key="train/loss",
            steps=[step for step, _ in self.state.curve],
            values=[value for _, value in self.state.curve],
            times_us=[1_000_000 * step for step, _ in self.state.curve],
            num_points=len(self.state.curve),
        )
        return metrics_pb2.QuerySeriesResponse(series=[series] if self.state.curve else [])


class _Blobs(blobs_pb2_grpc.BlobServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def StatBlob(self, request: blobs_pb2.StatBlobRequest, context: Any) -> blobs_pb2.StatBlobResponse:
        await self.state.begin(context, "StatBlob")
        return blobs_pb2.StatBlobResponse(exists=request.digest in self.state.blobs)

    async def UploadBlob(
        self, request_iterator: AsyncIterator[blobs_pb2.UploadBlobRequest], context: Any
    ) -> blobs_pb2.UploadBlobResponse:
        await self.state.begin(context, "UploadBlob")
        content, said = b"", ""
        async for request in request_iterator:
            assert len(request.chunk) <= 1 << 20
            content, said = content + request.chunk, said or request.sha256
        digest = hashlib.sha256(content).hexdigest()
        assert said == digest
        self.state.blobs[digest] = content
        self.state.uploads += 1
        return blobs_pb2.UploadBlobResponse(digest=digest, size_bytes=len(content))


class _Datasets(datasets_pb2_grpc.DatasetServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def ImportDataset(
        self, request: datasets_pb2.ImportDatasetRequest, context: Any
    ) -> datasets_pb2.ImportDatasetResponse:
        await self.state.begin(context, "ImportDataset")
        self.state.imports.append(request)
        rows = self.state.blobs[request.source_digest].splitlines() if request.source_digest else []
        for number, row in enumerate(rows, start=1):
            if not row.startswith(b"{"):
                error = InvalidArgument(
                    "DATASET_ROW_INVALID",
                    f"line {number} is no JSON object",
                    field=f"line {number}",
                    value=row.decode(),
                    remedy="write a JSON object a line",
                )
                await refuse(context, error)
        version = datasets_pb2.DatasetVersion(
            name=f"{request.parent}/datasets/{request.dataset_id}/versions/1",
            version=1,
            num_rows=len(rows),
            source=request.source,
        )
        if not request.validate_only:
            self.state.datasets.append(version)
        report = datasets_pb2.ValidationReport(num_rows=len(rows))
        return datasets_pb2.ImportDatasetResponse(version=version, report=report)

    async def RunImport(
        self, request: datasets_pb2.RunImportRequest, context: Any
    ) -> AsyncIterator[datasets_pb2.RunImportResponse]:
        result = await self.ImportDataset(request.import_request, context)
        yield datasets_pb2.RunImportResponse(progress=datasets_pb2.ImportProgress(phase="checking"))
        done = datasets_pb2.ImportProgress(phase="done", num_rows=result.report.num_rows)
        yield datasets_pb2.RunImportResponse(progress=done, result=result)


class _Models(models_pb2_grpc.ModelServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def ImportBaseModel(
        self, request: models_pb2.ImportBaseModelRequest, context: Any
    ) -> models_pb2.ImportBaseModelResponse:
        await self.state.begin(context, "ImportBaseModel")
        base = models_pb2.BaseModel(base_model_id=request.base_model_id, architecture="LlamaForCausalLM")
        base.manifest.files.extend(request.files)
        self.state.base_models.append(base)
        return models_pb2.ImportBaseModelResponse(base_model=base)


class _Fleet(fleet_pb2_grpc.FleetServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def GetServerInfo(
        self, request: fleet_pb2.GetServerInfoRequest, context: Any
    ) -> fleet_pb2.GetServerInfoResponse:
        await self.state.begin(context, "GetServerInfo")
        return fleet_pb2.GetServerInfoResponse(version="9.9.9", principal="ada", role="admin")


class _Nodes(nodes_pb2_grpc.NodeServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def ListNodes(
        self, request: nodes_pb2.ListNodesRequest, context: Any
    ) -> nodes_pb2.ListNodesResponse:
        await self.state.begin(context, "ListNodes")
        return nodes_pb2.ListNodesResponse()


class SmallServer:
    """The server on a thread of its own, so that blocking clients can be tested."""

    def __init__(self) -> None:
        self._thread = LoopThread()
        self._server: grpc.aio.Server | None = None
        self.port = 0
        self.state = self.do(State)
        self.start()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def do(self, action: Callable[[], Any]) -> Any:
        """Runs `action` on the server's event loop and returns its result."""

        async def run() -> Any:
            return action()

        return self._thread.run(run())

    def change(self, job_id: str, **fields: Any) -> None:
        """Changes a job and wakes its watchers."""

        def apply() -> None:
            job = jobs_pb2.Job()
            job.CopyFrom(self.state.jobs[job_id])
            job.MergeFrom(jobs_pb2.Job(**fields))
            self.state.put(job)

        self.do(apply)

    def wait_for_call(self, call: str, times: int) -> None:
        """Waits until a call was made so many times."""

        async def wait() -> None:
            async with asyncio.timeout(60):
                changed = self.state.changed
                while self.state.calls.count(call) < times:
                    await changed.wait()
                    changed = self.state.changed

        self._thread.run(wait())

    def log(self, *lines: str) -> None:
        """Adds lines to the log and wakes its readers."""

        def add() -> None:
            self.state.log.extend(metrics_pb2.LogLine(epoch=1, text=line) for line in lines)
            self.state.wake()

        self.do(add)

    def start(self) -> None:
        """Serves on a free port, after `stop` on the same port again."""
        self._thread.run(self._start())

    def stop(self) -> None:
        """Goes away at once; the state is kept."""
        self._thread.run(self._stop())

    def close(self) -> None:
        """Stops for good."""
        self._thread.stop(self._stop)

    async def _start(self) -> None:
        # Only the rpcs that the tests call are served; the others answer UNIMPLEMENTED.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        jobs_pb2_grpc.add_JobServiceServicer_to_server(_Jobs(self.state), self._server)  # type: ignore[abstract]
        external_pb2_grpc.add_ExternalRunServiceServicer_to_server(_External(self.state), self._server)
        records_pb2_grpc.add_RecordServiceServicer_to_server(_Records(self.state), self._server)
        metrics_pb2_grpc.add_LogServiceServicer_to_server(_Logs(self.state), self._server)  # type: ignore[abstract]
        metrics_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(self.state), self._server)  # type: ignore[abstract]
        blobs_pb2_grpc.add_BlobServiceServicer_to_server(_Blobs(self.state), self._server)  # type: ignore[abstract]
        datasets_pb2_grpc.add_DatasetServiceServicer_to_server(_Datasets(self.state), self._server)  # type: ignore[abstract]
        models_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self.state), self._server)  # type: ignore[abstract]
        nodes_pb2_grpc.add_NodeServiceServicer_to_server(_Nodes(self.state), self._server)  # type: ignore[abstract]
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(_Fleet(self.state), self._server)  # type: ignore[abstract]
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None


def away() -> Unavailable:
    """Returns what a server says that is about to go away."""
    return Unavailable("SHUTTING_DOWN", "the server is shutting down")
