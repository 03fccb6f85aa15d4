"""The node's daemon: registers, holds the lease, hears commands, fences, and drives its attempts."""

import asyncio
import logging
import platform as machine
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from tunesmith import __version__
from tunesmith.api.nodes.v1 import events_pb2, nodes_pb2, nodes_pb2_grpc
from tunesmith.errors import InvalidArgument, TunesmithError
from tunesmith_agent.attempt import Attempt, Tools
from tunesmith_agent.endings import declined, no_folder, no_inputs
from tunesmith_agent.folder import Notes, RunFolder, find_runs
from tunesmith_agent.gpus import Gpus
from tunesmith_agent.reporter import Fenced
from tunesmith_agent.telemetry import Running, Sampler
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus
from tunesmith_kit.consumer import Delivery
from tunesmith_kit.tasks import Tasks

log = logging.getLogger(__name__)
_KEPT_RUNS = 20  # closed run folders, for people who look


@dataclass(frozen=True)
class NodeFacts:
    """What a node is told to say of itself."""

    node_id: str
    address: str
    labels: Mapping[str, str]
    slots: int


class Agent:
    """Runs the attempts of one node. All its memory is in the run folders."""

    def __init__(
        self,
        facts: NodeFacts,
        runs: Path,
        bus: Bus,
        stub: "nodes_pb2_grpc.NodeServiceAsyncStub",
        metadata: tuple[tuple[str, str], ...],
        tools: Tools,
        gpus: Gpus,
        sampler: Sampler,
    ) -> None:
        self._facts, self._runs, self._bus, self._tools, self._gpus = facts, runs, bus, tools, gpus
        self._sampler = sampler
        self._stub, self._metadata = stub, metadata
        self._attempts: dict[str, Attempt] = {}  # by job id: the newest epoch this node knows
        self._tasks = Tasks()

    async def start(self) -> None:
        """Takes up what an earlier agent left, enters the fleet, and begins to hear commands."""
        self._runs.mkdir(parents=True, exist_ok=True)
        found = [
            Attempt(folder, notes, self._tools, folder.assign())
            for folder, notes in sorted(find_runs(self._runs), key=lambda run: run[1].epoch)
            if not notes.closed
        ]
        self._attempts = {attempt.notes.job_id: attempt for attempt in found}
        await self._register()
        for attempt in found:
            if attempt is not self._attempts[attempt.notes.job_id]:
                attempt.kill()  # an earlier agent died while it replaced this one
            self._drive(attempt)
        self._tools.standby.warm()
        await self._bus.consume(
            "CMD",
            f"node-{self._facts.node_id}",
            self._hear,
            filter_subjects=[subjects.any_command(self._facts.node_id)],
        )
        self._tasks.spawn("sample", lambda: self._sampler.run(self._running, self._backlog))

    async def stop(self) -> None:
        """Lets go. Trainers go on; the next agent adopts them."""
        await self._tasks.stop()
        await self._sampler.stop()
        self._tools.standby.stop()

    async def _register(self) -> None:
        request = nodes_pb2.RegisterNodeRequest(
            node_id=self._facts.node_id,
            address=self._facts.address,
            labels=self._facts.labels,
            capacity=self._capacity(),
            agent_version=__version__,
            attempts={a.notes.job: a.notes.epoch for a in self._attempts.values() if not a.notes.ended},
        )
        while True:
            try:
                answer = await self._stub.RegisterNode(request, timeout=10, metadata=self._metadata)
                break
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                log.warning("the gateway does not answer; trying again", extra={"error": error.details()})
                await asyncio.sleep(1)
        for job in answer.stale_attempts:
            log.warning("an attempt was replaced while the agent was away", extra={"job": job})
            self._attempts[job.rpartition("/")[2]].kill()

    def _capacity(self) -> nodes_pb2.NodeCapacity:
        return nodes_pb2.NodeCapacity(
            slots=self._facts.slots,
            gpus=self._gpus.inventory(),
            num_cpus=psutil.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
        )

    async def _hear(self, message: Delivery) -> None:
        """Applies a command. One of an older epoch than is known is old news; one heard twice acts once."""
        command = events_pb2.NodeCommand.FromString(message.payload)
        kind = command.WhichOneof("command")
        if kind is None:
            raise InvalidArgument("MESSAGE_MALFORMED", "the command is of a kind this agent does not know")
        job_id = command.job.rpartition("/")[2]
        known = self._attempts.get(job_id)
        if kind == "assign":
            self._consider(command, known)
            return
        if kind == "prepare":
            self._tasks.once(f"prepare {job_id}", self._prepare(command))
            return
        if known is None or known.notes.epoch != command.epoch or known.notes.ended:
            return
        if kind == "kill":
            known.kill()
        elif kind == "stop":
            given = command.stop.HasField("deadline")
            known.stop(*([command.stop.deadline.ToTimedelta().total_seconds()] if given else []))
        else:
            known.checkpoint(command.checkpoint.request)

    async def _prepare(self, command: events_pb2.NodeCommand) -> None:
        """Fetches what a job will need here; its present attempt trains on elsewhere meanwhile."""
        wanted = command.prepare
        assign = events_pb2.AssignAttempt(
            base_model_digest=wanted.base_model_digest,
            dataset_digest=wanted.dataset_digest,
            checkpoint_digest=wanted.checkpoint_digest,
            prompt_template_digest=wanted.prompt_template_digest,
            targets=wanted.targets,
        )
        report = nodes_pb2.ReportPreparedRequest(job=command.job, epoch=command.epoch)
        try:
            await self._tools.inputs.gather(assign)
        except (TunesmithError, OSError) as error:
            report.failure.CopyFrom(no_inputs(error).failure)
        await self._tools.reporter.send_prepared(report)

    def _consider(self, command: events_pb2.NodeCommand, known: Attempt | None) -> None:
        # A folder without notes was never made whole: an earlier agent died over it.
        newer = known is None or known.notes.epoch < command.epoch
        if newer and self._folder(command).notes() is None:
            self._assign(command)
        elif known is None or known.notes.epoch != command.epoch or known.notes.ended:
            # Silence would leave the job STARTING for ever; if this is old news, the answer is refused.
            self._tell(command, declined(command.epoch))

    def _tell(self, command: events_pb2.NodeCommand, report: nodes_pb2.ReportAttemptRequest) -> None:
        async def send() -> None:
            report.job, report.epoch = command.job, command.epoch
            try:
                await self._tools.reporter.send(report)
            except Fenced:
                log.info("an old command was heard again", extra={"job": command.job, "epoch": command.epoch})

        self._tasks.once("report", send())

    def _folder(self, command: events_pb2.NodeCommand) -> RunFolder:
        job_id = command.job.rpartition("/")[2]
        return RunFolder(self._runs / f"{subjects.token(job_id, 'job')}-{command.epoch}")

    def _assign(self, command: events_pb2.NodeCommand) -> None:
        folder = self._folder(command)
        older = self._attempts.get(command.job.rpartition("/")[2])
        if older is not None:
            older.kill()  # two writers of one job on one node: the newer epoch wins at once
        notes = Notes(command.job, command.epoch, self._facts.node_id, command.traceparent)
        try:
            folder.make(notes, command.assign)
        except OSError as error:
            self._tell(command, no_folder(error))
            return
        attempt = Attempt(folder, notes, self._tools, command.assign)
        self._attempts[notes.job_id] = attempt
        self._drive(attempt)

    def _drive(self, attempt: Attempt) -> None:
        async def drive() -> None:
            await attempt.drive()
            if attempt.over and self._attempts.get(attempt.notes.job_id) is attempt:
                self._tools.snapshots.drop(attempt.notes.job_id)
            self._tools.standby.warm()
            await attempt.settle()
            self._tidy()

        self._tasks.once(f"attempt {attempt.notes.job_id}-{attempt.notes.epoch}", drive())

    def _tidy(self) -> None:
        closed = [(folder, notes) for folder, notes in find_runs(self._runs) if notes.closed]
        for folder, notes in closed[:-_KEPT_RUNS]:
            shutil.rmtree(folder.path, ignore_errors=True)
            if self._attempts.get(notes.job_id) and self._attempts[notes.job_id].notes.closed:
                del self._attempts[notes.job_id]
        self._give_memory_back()

    def _give_memory_back(self) -> None:
        running = {a.notes.job_id for a in self._attempts.values() if not a.notes.ended}
        self._tools.snapshots.tidy(running)

    def _running(self) -> dict[str, Running]:
        self._give_memory_back()  # a job that failed for good may have been the last one here
        return {job_id: each for job_id, each in self._attempts.items() if not each.notes.ended}

    def _backlog(self) -> int:
        return sum(a.backlog_bytes() for a in self._attempts.values() if not a.notes.closed)


def default_node_id() -> str:
    """Returns the machine's name in the form the contract wants."""
    name = machine.node().split(".")[0].lower()
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-")[:63] or "node"
