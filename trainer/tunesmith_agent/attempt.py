"""One attempt on this node, from the command to its end: prepare, launch, follow, report.

All that matters lies in the run folder, so an agent that starts anew takes up every attempt where it stands:
`drive` asks the folder what was done already.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.api.jobs.v1 import spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2, nodes_pb2
from tunesmith.errors import TunesmithError
from tunesmith_agent import ranks
from tunesmith_agent.endings import Remains, died_early, end_of, infra, no_inputs, no_output
from tunesmith_agent.folder import CHECKPOINT, RUN, STOP, EventTail, Notes, RunFolder, local_ranks
from tunesmith_agent.inputs import InputCache
from tunesmith_agent.memory import num_oom_kills
from tunesmith_agent.process import ForkServer
from tunesmith_agent.reporter import Fenced, Reporter
from tunesmith_agent.shipper import Shipper
from tunesmith_agent.snapshots import SnapshotMemory
from tunesmith_agent.trainer_status import progress_of
from tunesmith_agent.uploads import Uploads
from tunesmith_agent.watchdog import Watchdog
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.telemetry import METRICS, Span, Telemetry, Value

log = logging.getLogger(__name__)
_TICK_SECONDS = 0.05
_IMPORT_SECONDS = 120.0
_PROGRESS_SECONDS = 1.0
_STOP_SECONDS = 60.0  # a graceful stop that takes longer falls back to the last checkpoint
_DRAIN_SECONDS = 5.0
_SILENT_SECONDS = 5.0  # without a report before we ask what is wanted: a hung trainer makes no progress
_GONE_SECONDS = 10.0
_STACK_SECONDS = 1.0  # for every thread's stack to reach the log
_SURVIVOR_SECONDS = 2.0  # for the other ranks to say why they end when one is gone
_DONE = ("completed", "checkpointed")
_DAMAGED = ("INPUT_DAMAGED", "CHECKPOINT_DAMAGED")
_OVER = frozenset({state_pb2.ATTEMPT_STATE_COMPLETED, state_pb2.ATTEMPT_STATE_CHECKPOINTED})


@dataclass(frozen=True)
class Tools:
    """What every attempt of a node uses."""

    node: str
    blobs: BlobStore
    inputs: InputCache
    snapshots: SnapshotMemory
    reporter: Reporter
    standby: ForkServer
    telemetry: Telemetry
    trainer_telemetry: Telemetry
    shipper: Callable[[Notes, RunFolder, int], Shipper]
    judges: str = ""  # file that lists the endpoints an evaluation may ask
    gpu_peak_tflops: float = 0.0  # of one of the node's GPUs; 0: the trainer goes by its name


class Attempt:
    """Drives one run folder."""

    def __init__(
        self, folder: RunFolder, notes: Notes, tools: Tools, assign: events_pb2.AssignAttempt | None
    ) -> None:
        self.folder, self.notes, self._tools, self._assign = folder, notes, tools, assign
        self._spec = assign.spec if assign is not None else spec_pb2.JobSpec()
        self._ranks = local_ranks(assign) if assign is not None else range(1)
        # Of a job over several nodes the first one's agent speaks for all; the others look after their ranks.
        self._leads = self._ranks[0] == 0
        self.shippers = [tools.shipper(notes, folder, rank) for rank in self._ranks]
        self._tail = EventTail(folder, notes)
        self._uploads = Uploads(folder, notes, tools.blobs, self._report_checkpoint)
        self._watchdog = Watchdog(self._spec.retry.stall_timeout.ToTimedelta())
        self._group = ranks.adopt(notes)
        self._stop_deadline = self._broken_deadline = float("inf")
        self._first_dead = 0
        self._oom_kills, self._oom_time = num_oom_kills(), 0.0
        self._reported = state_pb2.ATTEMPT_STATE_UNSPECIFIED
        self._progress_time = 0.0
        self._sent_time = time.monotonic()
        self._drift: list[str] = []
        self.over = False  # nobody will go on from this attempt's memory on this node
        self.began = time.time()

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """Asks for a checkpoint and the end; after `seconds` the processes are killed."""
        if not self._leads:  # rank 0 is told, and tells the others
            self._stop_deadline = min(self._stop_deadline, time.monotonic() + seconds)
            return
        if not self.notes.told_to_stop:
            self.notes.told_to_stop = True
            self.folder.save(self.notes)
        if self._stop_deadline == float("inf"):
            self.folder.command(STOP)
        self._stop_deadline = min(self._stop_deadline, time.monotonic() + seconds)

    def checkpoint(self, request: int) -> None:
        """Asks for a checkpoint, once for each request."""
        if request > self.notes.checkpoint_request and self._leads:
            self.folder.command(CHECKPOINT)
            self.notes.checkpoint_request = request
            self.folder.save(self.notes)

    def kill(self) -> None:
        """Ends the processes at once."""
        self._group.kill()
        if not self.notes.told_to_kill:
            self.notes.told_to_kill = True
            try:
                self.folder.save(self.notes)
            except OSError as error:  # the next agent is told again: its attempt was replaced
                log.warning("an end cannot be noted", extra={"job": self.notes.job, "problem": str(error)})

    async def drive(self) -> None:
        """Sees the attempt through. Returns when its end was reported, or when it was found replaced."""
        uploader = asyncio.create_task(self._uploads.run(self._fenced))
        try:
            for shipper in self.shippers:
                await shipper.start()
            if self.notes.ended:
                return
            if self.notes.started:  # an earlier agent may have died before these were stored
                for left in self.folder.checkpoints(self.notes.reported_step):
                    self._uploads.add(left)
            if not self.notes.started and not await self._launch():
                return
            with self._span("run", attempt=self.notes.epoch):
                await self._follow()
            await self._uploads.all_done()
            await self._finish()
        except Fenced as error:
            self._fenced(error)
        except Exception as error:
            # Whatever it is, the job must not wait for ever for an attempt that nobody drives.
            log.exception(
                "an attempt cannot be driven", extra={"job": self.notes.job, "epoch": self.notes.epoch}
            )
            self.kill()
            await self._give_up(infra("AGENT_ERROR", f"the node's agent failed: {error}"))
        finally:
            uploader.cancel()
        self.notes.ended = True
        self.folder.save(self.notes)
        await self._gone()

    async def settle(self) -> None:
        """Ships what is left until all of it is stored, however long the bus or the store is away."""
        try:
            while not await self._drained():
                log.info("what is not stored yet waits", extra={"job": self.notes.job})
        finally:
            for shipper in self.shippers:
                await shipper.stop()
        self.notes.closed = True
        self.folder.save(self.notes)

    def process_groups(self) -> list[int]:
        """Returns the ids of the process groups of its ranks here."""
        return [rank.pid for rank in self._group.ranks]

    async def send_node_series(self, step: int, values: dict[str, float]) -> None:
        """Puts a sample of the node beside the curves; `step` is seconds since the attempt began here."""
        await self.shippers[0].send_node_series(step, values)

    def backlog_bytes(self) -> int:
        """Returns the bytes not yet known to be stored."""
        return sum(shipper.backlog_bytes() for shipper in self.shippers)

    def _fenced(self, error: BaseException) -> bool:
        if not isinstance(error, Fenced):
            return False
        log.warning("fenced", extra={"job": self.notes.job, "epoch": self.notes.epoch, "why": str(error)})
        self.over = True
        self.kill()
        return True

    async def _drained(self) -> bool:
        found = [await shipper.drained(_DRAIN_SECONDS) for shipper in self.shippers]
        return all(found)

    async def _gone(self) -> None:
        """Waits until the killed processes are gone (and no zombies), but not for one the kernel holds."""
        for _ in range(round(_GONE_SECONDS / _TICK_SECONDS)):
            if not self._group.alive():
                return
            await asyncio.sleep(_TICK_SECONDS)

    async def _launch(self) -> bool:
        """Brings the inputs and starts the trainer; False when the attempt ended before that."""
        if self._assign is None or self.notes.told_to_kill or self.notes.told_to_stop:
            await self._report_end(died_early(self.notes, self._assign))
            return False
        # The span stands for what the agent does; the trainer's spans hang below it.
        with self._span("launch", kind="consumer", attempt=self.notes.epoch) as span:
            await self._report(state_pb2.ATTEMPT_STATE_LAUNCHING)
            self.notes.traceparent = span.traceparent
            try:
                with self._span("fetch_inputs"):
                    inputs = await self._gather(self._assign)
                if inputs is None:
                    await self._report_end(died_early(self.notes, self._assign))
                    return False
                inputs["judges"] = self._tools.judges or None
                peak = self._tools.gpu_peak_tflops
                self.folder.write_run(self.notes, self._assign, inputs, self._memory(), peak)
                self.folder.command(STOP if self.notes.told_to_stop else RUN)
            except (TunesmithError, OSError) as error:
                await self._report_end(no_inputs(error))
                return False
            with self._span("await_trainer"):
                ready = await self._await_imports()
            if not ready:
                await self._report_end(died_early(self.notes, self._assign))
                return False
            self._group = await ranks.start(self.folder, self.notes, self._assign, self._tools.standby)
            if self.notes.told_to_kill:  # meanwhile
                self._group.kill()
            await self._report(state_pb2.ATTEMPT_STATE_READY)
        return True

    def _span(self, name: str, kind: str = "internal", **attributes: Value) -> AbstractContextManager[Span]:
        return self._tools.telemetry.span(
            name, parent=self.notes.traceparent, kind=kind, job=self.notes.job, attributes=attributes
        )

    async def _await_imports(self) -> bool:
        """Waits for the process that trainers are forked from; False when the end is wanted meanwhile.

        Two processes that import at once need twice as long, so a trainer of its own is no way round.
        """
        deadline = time.monotonic() + _IMPORT_SECONDS
        while self._tools.standby.alive() and not self._tools.standby.ready() and not self._on_gpus():
            if self.notes.told_to_kill or self.notes.told_to_stop:
                return False
            if time.monotonic() > deadline:
                log.warning("the standby trainer does not get ready", extra={"pid": self._tools.standby.pid})
                self._tools.standby.stop()
            await asyncio.sleep(_TICK_SECONDS)
            await self._ask()
        return True

    def _on_gpus(self) -> bool:
        return self._assign is not None and bool(self._assign.gpus)

    def _memory(self) -> Path | None:
        if self._spec.training.snapshots == spec_pb2.SNAPSHOT_MODE_OFF:
            return None
        return self._tools.snapshots.folder(self.notes.job_id)

    async def _gather(self, assign: events_pb2.AssignAttempt) -> dict[str, object] | None:
        """Brings the inputs; None when the end is wanted meanwhile, for a large model may take an hour."""
        fetching = asyncio.create_task(self._tools.inputs.gather(assign))
        while not fetching.done():
            if self.notes.told_to_kill or self.notes.told_to_stop:
                # It goes on by itself: what it brings is of use to the next attempt.
                fetching.add_done_callback(lambda done: done.cancelled() or done.exception())
                return None
            await asyncio.wait({fetching}, timeout=_TICK_SECONDS)
            await self._ask()
        return fetching.result()

    async def _follow(self) -> None:
        """Ships and reports until the processes are gone and everything they wrote was read."""
        if self.notes.told_to_stop:
            self.stop()  # an earlier agent may have died before the trainer was told
        while self._group.alive():
            await self._tick()
            nothing_to_keep = self.notes.told_to_stop and not self._training()
            late = time.monotonic() > min(self._stop_deadline, self._broken_deadline)
            if self.notes.told_to_kill or nothing_to_keep or late:
                self._group.kill()
            self._look_at_ranks()
            await self._look_for_stall()
            await asyncio.sleep(_TICK_SECONDS)
        self._look_at_ranks()  # all may have gone since the last look
        await self._tick()

    def _look_at_ranks(self) -> None:
        """Ends the group when a rank is gone that had not finished: the others would wait for it for ever."""
        if time.monotonic() - self._oom_time > 1.0 and not self._group.dead():
            self._oom_kills, self._oom_time = num_oom_kills(), time.monotonic()
        if self._broken_deadline < float("inf"):
            return
        told = {place: self.folder.words(self._ranks[place]).get("finished") for place in self._group.dead()}
        broken = [p for p, word in told.items() if (word or {}).get("result") not in _DONE]
        if broken:
            # Whoever died without a word was lost first: its peers could still say that they lost it.
            self._first_dead = next((place for place in broken if not told[place]), broken[0])
            self._broken_deadline = time.monotonic() + _SURVIVOR_SECONDS

    async def _look_for_stall(self) -> None:
        if not self._leads:
            return  # the progress of all shows at rank 0
        seconds = self._watchdog.stalled_for(self.folder.status() or {}, time.monotonic())
        if not seconds or self.notes.told_to_kill or self.notes.stalled:
            return
        log.error("a trainer stands still", extra={"job": self.notes.job, "seconds": round(seconds)})
        METRICS.stalls.inc()
        self.notes.stalled = True
        self.folder.save(self.notes)
        self._group.dump_stacks()
        await asyncio.sleep(_STACK_SECONDS)
        self._group.kill()

    async def _tick(self) -> None:
        for shipper in self.shippers:
            await shipper.tick()
        events = self._tail.read()
        for event in events:
            self._hear(event)
        if events:
            self.folder.save(self.notes)
        if self._drift:
            drift, self._drift = self._drift, []
            await self._send(nodes_pb2.ReportAttemptRequest(drift=drift))
        await self._ask()
        status = self._training()
        if status is None:
            return
        if self._reported != state_pb2.ATTEMPT_STATE_RUNNING:
            await self._report(state_pb2.ATTEMPT_STATE_RUNNING, status)
        elif status["time"] > self._progress_time and time.time() - self._progress_time > _PROGRESS_SECONDS:
            self._progress_time = time.time()
            report = nodes_pb2.ReportAttemptRequest(progress=progress_of(status), samples=self._samples())
            await self._send(report, patient=False)

    def _training(self) -> dict[str, Any] | None:
        """Returns what the trainer says of itself, or None while it only gets ready."""
        status = self.folder.status()
        return None if status is None or status.get("phase", "INIT") == "INIT" else status

    async def _ask(self) -> None:
        """Asks what is wanted when nothing was reported for a while: the command may have been lost."""
        if time.monotonic() - self._sent_time > _SILENT_SECONDS:
            await self._send(nodes_pb2.ReportAttemptRequest(), patient=False)

    def _hear(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "checkpoint":
            self._uploads.add(event)
        elif kind == "drift":
            self._drift.extend(str(item) for item in event.get("items", []))
        elif kind == "span":
            start, end = (datetime.fromtimestamp(event[key], UTC) for key in ("start", "end"))
            self._tools.trainer_telemetry.record_span(
                event["name"],
                start,
                end,
                parent=self.notes.traceparent,
                job=self.notes.job,
                attributes=event.get("attributes", {}),
            )
        elif kind == "sample":
            self.notes.samples.setdefault(event["prompt"], {})[event["when"]] = event["text"]

    def _samples(self) -> list[state_pb2.Sample]:
        return [
            state_pb2.Sample(prompt=prompt, before=texts.get("before", ""), after=texts.get("after", ""))
            for prompt, texts in self.notes.samples.items()
        ]

    async def _report_checkpoint(self, checkpoint: state_pb2.CheckpointRef) -> None:
        await self._send(nodes_pb2.ReportAttemptRequest(checkpoint=checkpoint))

    async def _finish(self) -> None:
        """Reports the end, once metrics and logs are stored (or their store is away)."""
        status = self.folder.status() or {}
        report = end_of(self._remains(), self.notes)
        if report.state == state_pb2.ATTEMPT_STATE_COMPLETED and self._leads:
            try:
                with self._span("store_output"):
                    report.output_digest = await asyncio.to_thread(
                        manifest.put_folder, self._tools.blobs, self.folder.path / "output"
                    )
            except (TunesmithError, OSError) as error:
                report = no_output(error)
        if report.failure.reason in _DAMAGED and self._assign is not None:
            await self._tools.inputs.forget(self._assign)
        await self._drained()
        if status:
            report.progress.CopyFrom(progress_of(status))
        report.samples.extend(self._samples())
        if self._leads:  # one that ended before its first step has not told it yet
            report.environment.update(self.folder.environment())
        await self._report_end(report)

    def _remains(self) -> Remains:
        return Remains(
            words=[self.folder.words(rank) for rank in self._ranks],
            first_rank=self._ranks[0],
            exit_codes=[rank.exit_code for rank in self._group.ranks],
            first_dead=self._first_dead,
            disk_free_bytes=shutil.disk_usage(self.folder.path).free,
            oom_killed=num_oom_kills() > self._oom_kills,
            spec=self._spec,
        )

    async def _report_end(self, report: nodes_pb2.ReportAttemptRequest) -> None:
        await self._send(report)
        # One that was to stop and died, or was too slow, saved nothing: its last snapshot is kept.
        self.over = report.state in _OVER or self.notes.told_to_kill
        self.notes.ended = True
        self.folder.save(self.notes)

    async def _give_up(self, report: nodes_pb2.ReportAttemptRequest) -> None:
        try:
            await self._report_end(report)
        except Fenced:
            log.info("the attempt had been replaced already", extra={"job": self.notes.job})

    async def _report(
        self, state: state_pb2.AttemptState.ValueType, status: dict[str, Any] | None = None
    ) -> None:
        report = nodes_pb2.ReportAttemptRequest(state=state, samples=self._samples())
        if status is not None:
            report.progress.CopyFrom(progress_of(status))
            report.resumed_step = int(status.get("resumed_step") or 0)
            report.resumed_from = str(status.get("resumed_from") or "")
            report.environment.update(self.folder.environment())
        await self._send(report)
        self._reported = state

    async def _send(self, report: nodes_pb2.ReportAttemptRequest, *, patient: bool = True) -> None:
        report.job, report.epoch = self.notes.job, self.notes.epoch
        self._sent_time = time.monotonic()
        answer = await self._tools.reporter.send(report, patient=patient)
        if answer is None:
            return
        # A command may have been lost with the bus: what is wanted comes with every answer too.
        self.checkpoint(answer.checkpoint_request)
        if answer.desired == state_pb2.DESIRED_KILL:
            self.kill()
        elif answer.desired in (state_pb2.DESIRED_CANCEL, state_pb2.DESIRED_PAUSE):
            given = answer.HasField("stop_deadline")
            self.stop(answer.stop_deadline.ToTimedelta().total_seconds() if given else _STOP_SECONDS)
