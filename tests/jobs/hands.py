"""The hands of the jobs service's tests: a client, a registry that answers, nodes that hear commands."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import grpc

from tests.support.service import Harness, until
from tunesmith.api.jobs.v1 import jobs_pb2, jobs_pb2_grpc, queue_pb2, spec_pb2, state_pb2, verbs_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith.api.registry.v1 import events_pb2 as registry_events_pb2
from tunesmith.status import from_rpc_error
from tunesmith_kit import subjects
from tunesmith_kit.connection import Message
from tunesmith_kit.envelope import event_headers
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.lease import Lease, lease_key

PARENT = "projects/default"


class Jobs:
    """The test's hands: a client, a registry that answers, and a node that hears commands."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.jobs = jobs_pb2_grpc.JobServiceStub(harness.channel)
        self.nodes = nodes_pb2_grpc.NodeServiceStub(harness.channel)
        self.commands: list[node_events_pb2.NodeCommand] = []
        self.leases: dict[str, Lease] = {}

    async def call(self, method: object, request: object) -> object:
        try:
            return await method(request, metadata=self.harness.metadata, timeout=60)  # type: ignore[operator]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def submit(self, request_id: str = "", **spec: object) -> jobs_pb2.Job:
        full = spec_pb2.JobSpec(**{"base_model": "tiny", "dataset": "sums", **spec})  # type: ignore[arg-type]
        request = jobs_pb2.CreateJobRequest(parent=PARENT, spec=full, request_id=request_id)
        answer = await self.call(self.jobs.CreateJob, request)
        assert isinstance(answer, jobs_pb2.CreateJobResponse)
        return answer.job

    async def get(self, name: str) -> jobs_pb2.Job:
        answer = await self.call(self.jobs.GetJob, jobs_pb2.GetJobRequest(name=name))
        assert isinstance(answer, jobs_pb2.GetJobResponse)
        return answer.job

    async def reaches(self, name: str, state: state_pb2.JobState.ValueType) -> jobs_pb2.Job:
        async def look() -> jobs_pb2.Job | None:
            job = await self.get(name)
            return job if job.state == state else None

        return await until(look, f"{name} in {state_pb2.JobState.Name(state)}")

    async def answer(self, job: jobs_pb2.Job, event: str, **kind: object) -> None:
        """Says what the registry would say about a job."""
        message = registry_events_pb2.RegistryEvent(event_id=new_ulid(), resource=job.name, **kind)  # type: ignore[arg-type]
        headers = event_headers(message.event_id, message.DESCRIPTOR.full_name, "tests", datetime.now(UTC))
        subject = subjects.job_event("default", job.job_id, event)
        await self.harness.bus.publish(subject, message.SerializeToString(), message.event_id, headers)

    async def validate(self, job: jobs_pb2.Job) -> None:
        good = registry_events_pb2.JobInputsValidated(
            job=job.name, base_model_digest="a" * 64, dataset_digest="b" * 64
        )
        await self.answer(job, "inputs_validated", job_inputs_validated=good)

    async def join(self, node: str = "n1", slots: int = 1) -> None:
        """Enters a node into the fleet, holds its lease, and begins to hear its commands."""

        async def hear(message: Message) -> None:
            self.commands.append(node_events_pb2.NodeCommand.FromString(message.payload))

        await self.harness.bus.consume(
            "CMD", f"node-{node}", hear, filter_subjects=[subjects.any_command(node)]
        )
        self.leases[node] = Lease(self.harness.bus, lease_key("node", node), f"node/{node}")
        self.leases[node].start()  # without it the node is given up after some seconds
        await self.register(node, slots)

    async def register(
        self, node: str = "n1", slots: int = 1, attempts: Mapping[str, int] | None = None
    ) -> nodes_pb2.RegisterNodeResponse:
        request = nodes_pb2.RegisterNodeRequest(
            node_id=node, capacity=nodes_pb2.NodeCapacity(slots=slots, memory_bytes=1 << 34)
        )
        for job, epoch in (attempts or {}).items():
            request.attempts[f"{PARENT}/jobs/{job}"] = epoch
        answer = await self.call(self.nodes.RegisterNode, request)
        assert isinstance(answer, nodes_pb2.RegisterNodeResponse)
        return answer

    async def command(self, kind: str, num: int = 1) -> node_events_pb2.NodeCommand:
        async def look() -> node_events_pb2.NodeCommand | None:
            found: dict[tuple[str, int], node_events_pb2.NodeCommand] = {}
            for each in self.commands:  # one that is not answered in seconds comes again: it counts once
                if each.WhichOneof("command") == kind:
                    found.setdefault((each.job, each.epoch), each)
            return list(found.values())[num - 1] if len(found) >= num else None

        return await until(look, f"command {kind} number {num}")

    async def report(
        self, job: jobs_pb2.Job, epoch: int = 1, **what: object
    ) -> nodes_pb2.ReportAttemptResponse:
        request = nodes_pb2.ReportAttemptRequest(job=job.name, epoch=epoch, **{"node": "n1", **what})  # type: ignore[arg-type]
        answer = await self.call(self.nodes.ReportAttempt, request)
        assert isinstance(answer, nodes_pb2.ReportAttemptResponse)
        return answer

    async def running(self, **spec: object) -> jobs_pb2.Job:
        """Returns a job that trains on n1."""
        job = await self.submit(**spec)  # type: ignore[arg-type]
        await self.validate(job)
        await self.command("assign")
        for state in ("LAUNCHING", "READY", "RUNNING"):
            await self.report(job, state=f"ATTEMPT_STATE_{state}")
        return await self.reaches(job.name, state_pb2.JOB_STATE_RUNNING)

    async def verb(self, name: str, job: jobs_pb2.Job, **fields: Any) -> Any:
        """Calls `PauseJob`, `ForkJob`… on a job and returns the response."""
        kind = f"{name}Request"
        holder = next(module for module in (jobs_pb2, verbs_pb2, queue_pb2) if hasattr(module, kind))
        request = getattr(holder, kind)(name=job.name, **fields)
        return await self.call(getattr(self.jobs, name), request)

    async def node_verb(self, name: str, node: str, **fields: Any) -> nodes_pb2.Node:
        """Calls `CordonNode`, `UncordonNode` or `DrainNode`."""
        request = getattr(nodes_pb2, f"{name}Request")(name=f"nodes/{node}", **fields)
        answer: Any = await self.call(getattr(self.nodes, name), request)
        return answer.node  # type: ignore[no-any-return]

    async def node(self, node: str) -> nodes_pb2.Node:
        answer: Any = await self.call(self.nodes.GetNode, nodes_pb2.GetNodeRequest(name=f"nodes/{node}"))
        return answer.node  # type: ignore[no-any-return]

    async def events(self, job: jobs_pb2.Job, kind: str) -> list[Any]:
        """Returns the events of one kind that happened to a job, oldest first."""
        request = jobs_pb2.ListJobEventsRequest(parent=job.name, page_size=1000)
        page: Any = await self.call(self.jobs.ListJobEvents, request)
        return [getattr(e, kind) for e in page.events if e.WhichOneof("event") == kind]

    async def attempts(self, job: jobs_pb2.Job) -> list[state_pb2.Attempt]:
        """Returns a job's attempts, newest first."""
        page: Any = await self.call(self.jobs.ListAttempts, jobs_pb2.ListAttemptsRequest(parent=job.name))
        return list(page.attempts)

    async def commit(self, job: jobs_pb2.Job, step: int, epoch: int = 1, **fields: Any) -> None:
        """Reports a checkpoint whose digest tells its step and epoch."""
        ref = state_pb2.CheckpointRef(
            step=step, epoch=epoch, digest=f"{epoch:032x}{step:032x}", size_bytes=10, **fields
        )
        await self.report(job, epoch=epoch, checkpoint=ref)
