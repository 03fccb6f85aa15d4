"""Nodes and the registry as the contract describes them: what the jobs service has to live with."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tunesmith.api.jobs.v1 import events_pb2 as job_events_pb2
from tunesmith.api.jobs.v1 import state_pb2 as s
from tunesmith.api.nodes.v1 import events_pb2, nodes_pb2
from tunesmith.api.registry.v1 import events_pb2 as registry_pb2
from tunesmith.errors import FailedPrecondition, NotFound, Unavailable
from tunesmith_kit import subjects
from tunesmith_kit.lease import lease_key

T = TypeVar("T")
Call = Callable[[Callable[[Any], Awaitable[T]]], Awaitable[T]]
_RENEW_SECONDS = 3.0
_ENDS = (
    (s.ATTEMPT_STATE_COMPLETED, s.FAILURE_CLASS_UNSPECIFIED, 12),
    (s.ATTEMPT_STATE_FAILED, s.FAILURE_CLASS_INFRA, 3),
    (s.ATTEMPT_STATE_FAILED, s.FAILURE_CLASS_STALLED, 1),
    (s.ATTEMPT_STATE_FAILED, s.FAILURE_CLASS_USER_ERROR, 2),
    (s.ATTEMPT_STATE_FAILED, s.FAILURE_CLASS_OOM, 1),
    (s.ATTEMPT_STATE_FAILED, s.FAILURE_CLASS_NAN_LOSS, 0.5),
)


@dataclass
class Run:
    """A run folder: what a node knows of an attempt over the death of its agent."""

    job: str
    epoch: int
    said: int = s.ATTEMPT_STATE_RESERVED
    step: int = 0
    stop: bool = False
    kill: bool = False
    over: bool = False


class SimNode:
    """A node's agent and trainers. `partitioned`: nobody hears it and it hears nobody, and it trains on."""

    def __init__(self, name: str, rng: random.Random, services: Any, bus: Any) -> None:
        self.name, self._rng, self._services, self._bus = name, rng, services, bus
        self.partitioned = False
        self.runs: dict[tuple[str, int], Run] = {}
        self.begun: list[tuple[str, int]] = []  # every start of a trainer on this disk
        self.refused = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._live = False

    def start(self) -> None:
        """An agent starts, adopts its runs, and enters the fleet."""
        if not self._live:
            self._live = True
            self._spawn(self._serve())

    def die(self, with_disk: bool) -> None:
        """The agent is killed; with its disk go the trainers and their folders."""
        self._live = False
        for task in list(self._tasks):
            task.cancel()
        if with_disk:
            self.runs.clear()
            self.begun.clear()  # nothing of them is left: to begin again is right

    async def hear(self, subject: str, payload: bytes) -> None:
        """Takes a command."""
        if not self._live or self.partitioned:
            raise Unavailable("BUS_UNAVAILABLE", "the node cannot be reached: simulated")
        command = events_pb2.NodeCommand.FromString(payload)
        kind, key = command.WhichOneof("command"), (command.job, command.epoch)
        if kind == "assign" and key not in self.runs:
            if any(job == command.job and epoch > command.epoch for job, epoch in self.runs):
                return
            for run in self.runs.values():
                run.kill |= run.job == command.job
            self._begin(Run(*key))
        elif key in self.runs:
            self.runs[key].stop |= kind == "stop"
            self.runs[key].kill |= kind == "kill"

    def _begin(self, run: Run) -> None:
        self.runs[run.job, run.epoch] = run
        self.begun.append((run.job, run.epoch))
        self._spawn(self._drive(run))

    async def _serve(self) -> None:
        live = [run for run in self.runs.values() if not run.over]
        request = nodes_pb2.RegisterNodeRequest(
            node_id=self.name,
            capacity=nodes_pb2.NodeCapacity(slots=2),
            attempts={run.job: run.epoch for run in live},
        )
        answer = await self._patiently(lambda api: api.register(request))
        for run in live:
            run.kill |= run.job in answer
            self._spawn(self._drive(run))
        while True:
            if not self.partitioned:
                await self._bus.publish_core(f"$KV.lease.{lease_key('node', self.name)}", b"renewed")
            await asyncio.sleep(_RENEW_SECONDS)

    async def _drive(self, run: Run) -> None:
        """Trains step by step; the end is decided by dice, and reported until it is taken."""
        try:
            for state in (s.ATTEMPT_STATE_LAUNCHING, s.ATTEMPT_STATE_READY, s.ATTEMPT_STATE_RUNNING):
                if run.said < state and not run.kill and not run.stop:
                    await asyncio.sleep(self._rng.uniform(0, 0.5))
                    await self._report(run, state=state)
                    run.said = state
            length = self._rng.randrange(1, 6)
            while run.step % 6 < length and not run.kill and not run.stop:
                await asyncio.sleep(self._rng.uniform(0.2, 2))
                run.step += 1
                if self._rng.random() < 0.4:
                    checkpoint = s.CheckpointRef(
                        step=run.step, epoch=run.epoch, digest=f"{self._rng.getrandbits(256):064x}"
                    )
                    await self._report(run, checkpoint=checkpoint)
                else:
                    await self._report(run, progress=s.Progress(step=run.step))
            await self._end(run)
        except FailedPrecondition as error:
            if error.reason != "STALE_EPOCH":
                raise
            self.refused += 1
        except NotFound:
            self.refused += 1
        run.over = True

    async def _end(self, run: Run) -> None:
        if run.kill:
            await self._report(run, state=s.ATTEMPT_STATE_KILLED)
        elif run.stop:
            await self._report(run, state=s.ATTEMPT_STATE_CHECKPOINTED)
        else:
            state, kind, _ = self._rng.choices(_ENDS, [weight for _, _, weight in _ENDS])[0]
            fields: dict[str, Any] = {"state": state}
            if state == s.ATTEMPT_STATE_COMPLETED:
                damaged = self._rng.random() < 0.1
                fields["output_digest"] = ("bad" if damaged else "good").ljust(64, "0")
            else:
                fields["failure"] = s.Failure(failure_class=kind, reason="SIMULATED")
            await self._report(run, **fields)

    async def _report(self, run: Run, **fields: Any) -> None:
        request = nodes_pb2.ReportAttemptRequest(job=run.job, epoch=run.epoch, node=self.name, **fields)
        desired = await self._patiently(lambda api: api.report(request))
        run.kill |= desired == s.DESIRED_KILL
        run.stop |= desired in (s.DESIRED_PAUSE, s.DESIRED_CANCEL)

    async def _patiently(self, call: Callable[[Any], Awaitable[T]]) -> T:
        """Calls until it is answered. Requests and answers get lost."""
        while True:
            try:
                if self.partitioned:
                    raise Unavailable("BUS_UNAVAILABLE", "cut off: simulated")
                answer = await call(self._services())
                if self.partitioned or self._rng.random() < self._bus.trouble:
                    raise Unavailable("BUS_UNAVAILABLE", "the answer was lost: simulated")
                return answer
            except Unavailable:
                await asyncio.sleep(self._rng.uniform(0.1, 1.5))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_event_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            raise AssertionError(f"{self.name} failed") from task.exception()


class SimRegistry:
    """Answers each event once, by its id; answers go over the bus until they are stored there."""

    def __init__(self, rng: random.Random, bus: Any) -> None:
        self._rng, self._bus = rng, bus
        self._answers: dict[str, tuple[str, registry_pb2.RegistryEvent]] = {}
        self.verified: dict[str, str] = {}  # job -> version

    async def hear(self, subject: str, payload: bytes) -> None:
        """Takes an event of a job."""
        event = job_events_pb2.JobEvent.FromString(payload)
        if event.event_id in self._answers:
            return
        kind = event.WhichOneof("event")
        job_id = event.job.rpartition("/")[2]
        answer = registry_pb2.RegistryEvent(event_id=f"{len(self._answers):026d}")
        if kind == "created":
            if event.created.spec.base_model == "missing":
                answer.job_inputs_rejected.job = event.job
                answer.job_inputs_rejected.errors.add(reason="BASE_MODEL_NOT_FOUND", message="simulated")
                name = "inputs_rejected"
            else:
                answer.job_inputs_validated.job = event.job
                answer.job_inputs_validated.base_model_digest = "b" * 64
                answer.job_inputs_validated.dataset_digest = "d" * 64
                name = "inputs_validated"
        elif kind == "output_ready":
            if event.output_ready.manifest_digest.startswith("good"):
                version = self.verified.setdefault(event.job, f"{event.job}-version")
                answer.model_version_registered.job = event.job
                answer.model_version_registered.version.name = version
                name = "version_registered"
            else:
                answer.model_version_rejected.job = event.job
                answer.model_version_rejected.error.reason = "ARTIFACT_CORRUPT"
                name = "version_rejected"
        else:
            return
        self._answers[event.event_id] = (subjects.event("default", "job", job_id, name), answer)

    async def run(self) -> None:
        """The registry's own relay: sends every answer again and again; the hearer must not mind."""
        while True:
            for subject, answer in list(self._answers.values()):
                message_id = f"registry-{answer.event_id}"
                if message_id not in self._bus.known():
                    try:
                        await self._bus.publish(subject, answer.SerializeToString(), msg_id=message_id)
                    except Unavailable:
                        break
            await asyncio.sleep(0.3)
