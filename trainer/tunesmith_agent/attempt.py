"""One attempt on this node, from the command to its end: prepare, launch, follow, report.

All that matters lies in the run folder, so an agent that starts anew takes up every attempt where it stands:
`drive` asks the folder what was done already.
"""

import asyncio
import errno
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.nodes.v1 import events_pb2, nodes_pb2
from tunesmith.errors import TunesmithError
from tunesmith_agent import process
from tunesmith_agent.folder import RUN, STOP, EventTail, Notes, RunFolder
from tunesmith_agent.inputs import InputCache
from tunesmith_agent.process import Standby, TrainerProcess, start_ticks
from tunesmith_agent.reporter import Fenced, Reporter
from tunesmith_agent.shipper import Shipper
from tunesmith_agent.trainer_status import end_of, progress_of
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.telemetry import Telemetry

log = logging.getLogger(__name__)
_TICK_SECONDS = 0.05
_PROGRESS_SECONDS = 1.0
_STOP_SECONDS = 60.0  # a graceful stop that takes longer falls back to the last checkpoint
_DRAIN_SECONDS = 5.0
_SILENT_SECONDS = 5.0  # without a report before we ask what is wanted: a hung trainer makes no progress
_GONE_SECONDS = 10.0
_DAMAGED = ("INPUT_DAMAGED", "CHECKPOINT_DAMAGED")


@dataclass(frozen=True)
class Tools:
    """What every attempt of a node uses."""

    node: str
    blobs: BlobStore
    inputs: InputCache
    reporter: Reporter
    standby: Standby
    telemetry: Telemetry
    trainer_telemetry: Telemetry
    shipper: Callable[[Notes, RunFolder], Shipper]


class Attempt:
    """Drives one run folder."""

    def __init__(
        self, folder: RunFolder, notes: Notes, tools: Tools, assign: events_pb2.AssignAttempt | None
    ) -> None:
        self.folder, self.notes, self._tools, self._assign = folder, notes, tools, assign
        self.shipper = tools.shipper(notes, folder)
        self._tail = EventTail(folder, notes)
        self._process = self._adopt()
        self._stop_deadline = float("inf")
        self._reported = state_pb2.ATTEMPT_STATE_UNSPECIFIED
        self._progress_time = 0.0
        self._sent_time = time.monotonic()
        self._uploads: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.began = time.time()

    def stop(self) -> None:
        """Asks for a checkpoint and the end."""
        if not self.notes.told_to_stop:
            self.notes.told_to_stop = True
            self.folder.save(self.notes)
        if self._stop_deadline == float("inf"):
            self._stop_deadline = time.monotonic() + _STOP_SECONDS
            self.folder.command(STOP)

    def kill(self) -> None:
        """Ends the processes at once."""
        if not self.notes.told_to_kill:
            self.notes.told_to_kill = True
            self.folder.save(self.notes)
        if self._process is not None:
            self._process.kill()

    async def drive(self) -> None:
        """Sees the attempt through. Returns when its end was reported, or when it was found replaced."""
        uploader = asyncio.create_task(self._upload_checkpoints())
        try:
            await self.shipper.start()
            if self.notes.ended:
                return
            newest = self.folder.newest_checkpoint() if self.notes.started else None
            if newest is not None:
                self._uploads.put_nowait(newest)  # an earlier agent may have died before it was stored
            if not self.notes.started and not await self._launch():
                return
            await self._follow()
            await self._uploads.join()
            await self._finish()
        except Fenced as error:
            log.warning("fenced", extra={"job": self.notes.job, "epoch": self.notes.epoch, "why": str(error)})
            self.kill()
        except Exception as error:
            # Whatever it is, the job must not wait for ever for an attempt that nobody drives.
            log.exception(
                "an attempt cannot be driven", extra={"job": self.notes.job, "epoch": self.notes.epoch}
            )
            self.kill()
            await self._give_up(_infra("AGENT_ERROR", f"the node's agent failed: {error}"))
        finally:
            uploader.cancel()
        self.notes.ended = True
        self.folder.save(self.notes)
        await self._gone()

    async def settle(self) -> None:
        """Ships what is left until all of it is stored, however long the bus or the store is away."""
        try:
            while not await self.shipper.drained(_DRAIN_SECONDS):
                log.info("what is not stored yet waits", extra={"job": self.notes.job})
        finally:
            await self.shipper.stop()
        self.notes.closed = True
        self.folder.save(self.notes)

    async def _gone(self) -> None:
        """Waits until the killed processes are gone (and no zombies), but not for one the kernel holds."""
        for _ in range(round(_GONE_SECONDS / _TICK_SECONDS)):
            if self._process is None or not self._process.alive():
                return
            await asyncio.sleep(_TICK_SECONDS)

    def _adopt(self) -> TrainerProcess | None:
        if self.notes.pid and start_ticks(self.notes.pid) == self.notes.start_ticks:
            log.info("adopted a running trainer", extra={"job": self.notes.job, "pid": self.notes.pid})
            return TrainerProcess(self.notes.pid, self.notes.start_ticks)
        return None

    async def _launch(self) -> bool:
        """Brings the inputs and starts the trainer; False when the attempt ended before that."""
        if self._assign is None or self.notes.told_to_kill or self.notes.told_to_stop:
            await self._report_end(_died_early(self.notes, self._assign))
            return False
        # The span stands for what the agent does; the trainer's spans hang below it.
        with self._tools.telemetry.span("launch", parent=self.notes.traceparent, kind="consumer") as span:
            await self._report(state_pb2.ATTEMPT_STATE_LAUNCHING)
            self.notes.traceparent = span.traceparent
            try:
                inputs = await self._gather(self._assign)
                if inputs is None:
                    await self._report_end(_died_early(self.notes, self._assign))
                    return False
                self.folder.write_run(self.notes, self._assign, inputs)
                self.folder.command(STOP if self.notes.told_to_stop else RUN)
            except (TunesmithError, OSError) as error:
                await self._report_end(_no_inputs(error))
                return False
            gpus = list(self._assign.gpus)
            waiting = None if gpus else self._tools.standby.take()
            if waiting is None or not self._begin(waiting):
                self._begin(process.launch(self.folder.path, gpus))
            await self._report(state_pb2.ATTEMPT_STATE_READY)
        return True

    async def _gather(self, assign: events_pb2.AssignAttempt) -> dict[str, dict[str, object] | None] | None:
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

    def _begin(self, trainer: TrainerProcess) -> bool:
        self._process = trainer
        self.notes.pid, self.notes.start_ticks = trainer.pid, trainer.ticks
        self.notes.started = True
        self.folder.save(self.notes)
        return trainer.begin(self.folder.path)

    async def _follow(self) -> None:
        """Ships and reports until the process is gone and everything it wrote was read."""
        if self.notes.told_to_stop:
            self.stop()  # an earlier agent may have died before the trainer was told
        while self._process is not None and self._process.alive():
            await self._tick()
            nothing_to_keep = self.notes.told_to_stop and not self._training()
            if self.notes.told_to_kill or nothing_to_keep or time.monotonic() > self._stop_deadline:
                self._process.kill()
            await asyncio.sleep(_TICK_SECONDS)
        await self._tick()

    async def _tick(self) -> None:
        await self.shipper.tick()
        events = self._tail.read()
        for event in events:
            self._hear(event)
        if events:
            self.folder.save(self.notes)
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
            self._uploads.put_nowait(event)
        elif kind == "span":
            start, end = (datetime.fromtimestamp(event[key], UTC) for key in ("start", "end"))
            self._tools.trainer_telemetry.record_span(
                event["name"],
                start,
                end,
                parent=self.notes.traceparent,
                attributes=event.get("attributes", {}),
            )
        elif kind == "sample":
            self.notes.samples.setdefault(event["prompt"], {})[event["when"]] = event["text"]

    def _samples(self) -> list[state_pb2.Sample]:
        return [
            state_pb2.Sample(prompt=prompt, before=texts.get("before", ""), after=texts.get("after", ""))
            for prompt, texts in self.notes.samples.items()
        ]

    async def _upload_checkpoints(self) -> None:
        """Brings checkpoints into the blob store in order and reports each once it lies there whole."""
        while True:
            event = await self._uploads.get()
            try:
                await self._upload(event)
            except Fenced:
                self.kill()
            finally:
                self._uploads.task_done()

    async def _upload(self, event: dict[str, Any]) -> None:
        path = self.folder.path / event["path"]
        while True:
            if not (path / "manifest.json").exists():
                log.info("a checkpoint was replaced before it was uploaded", extra={"path": event["path"]})
                return
            try:
                digest = await asyncio.to_thread(manifest.put_folder, self._tools.blobs, path)
                break
            except (TunesmithError, OSError) as error:
                log.warning(
                    "a checkpoint cannot be stored now", extra={"path": event["path"], "error": str(error)}
                )
                if self.notes.told_to_kill:
                    return  # who wants the end at once does not wait for the store
                await asyncio.sleep(2)
        checkpoint = state_pb2.CheckpointRef(
            step=event["step"], epoch=self.notes.epoch, digest=digest, size_bytes=event["size_bytes"]
        )
        checkpoint.create_time.FromMilliseconds(int(event["time"] * 1000))
        await self._send(nodes_pb2.ReportAttemptRequest(checkpoint=checkpoint))
        self.notes.reported_digest = digest

    async def _finish(self) -> None:
        """Reports the end, once metrics and logs are stored (or their store is away)."""
        status = self.folder.status() or {}
        free = shutil.disk_usage(self.folder.path).free
        report = end_of(status, self.notes, self._process.exit_code if self._process else None, free)
        if report.state == state_pb2.ATTEMPT_STATE_COMPLETED:
            try:
                report.output_digest = await asyncio.to_thread(
                    manifest.put_folder, self._tools.blobs, self.folder.path / "output"
                )
            except (TunesmithError, OSError) as error:
                report = _no_output(error)
        if report.failure.reason in _DAMAGED and self._assign is not None:
            await self._tools.inputs.forget(self._assign)
        await self.shipper.drained(_DRAIN_SECONDS)
        if status:
            report.progress.CopyFrom(progress_of(status))
        report.samples.extend(self._samples())
        await self._report_end(report)

    async def _report_end(self, report: nodes_pb2.ReportAttemptRequest) -> None:
        await self._send(report)
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
        await self._send(report)
        self._reported = state

    async def _send(self, report: nodes_pb2.ReportAttemptRequest, *, patient: bool = True) -> None:
        report.job, report.epoch = self.notes.job, self.notes.epoch
        self._sent_time = time.monotonic()
        desired = await self._tools.reporter.send(report, patient=patient)
        # A command may have been lost with the bus: what is wanted comes with every answer too.
        if desired == state_pb2.DESIRED_KILL:
            self.kill()
        elif desired in (state_pb2.DESIRED_CANCEL, state_pb2.DESIRED_PAUSE):
            self.stop()


def _died_early(notes: Notes, assign: events_pb2.AssignAttempt | None) -> nodes_pb2.ReportAttemptRequest:
    if notes.told_to_kill or notes.told_to_stop:
        return nodes_pb2.ReportAttemptRequest(state=state_pb2.ATTEMPT_STATE_KILLED)
    assert assign is None
    return _infra("AGENT_RESTARTED", "the agent ended before the trainer had started")


def _no_inputs(error: Exception) -> nodes_pb2.ReportAttemptRequest:
    return _infra(
        _reason(error, "INPUTS_UNAVAILABLE"), f"model or data cannot be brought to the node: {error}"
    )


def no_folder(error: OSError) -> nodes_pb2.ReportAttemptRequest:
    """Returns the end of an attempt whose run folder cannot be made."""
    return _infra(_reason(error, "FOLDER_NOT_MADE"), f"the node cannot make the run folder: {error}")


def _reason(error: Exception, otherwise: str) -> str:
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return "DISK_FULL" if full or getattr(error, "reason", "") == "DISK_FULL" else otherwise


def _no_output(error: Exception) -> nodes_pb2.ReportAttemptRequest:
    return _infra(_reason(error, "OUTPUT_NOT_STORED"), f"the output cannot be stored: {error}")


def _infra(reason: str, message: str) -> nodes_pb2.ReportAttemptRequest:
    failure = state_pb2.Failure(
        failure_class=state_pb2.FAILURE_CLASS_INFRA,
        reason=reason,
        message=message,
        remedy="check the node's log, its free space and the blob store",
    )
    return nodes_pb2.ReportAttemptRequest(state=state_pb2.ATTEMPT_STATE_FAILED, failure=failure)


def declined(epoch: int) -> nodes_pb2.ReportAttemptRequest:
    """Returns the end of an attempt whose epoch this node has used up: the database forgot it (a restored
    backup). The job goes on under the next epoch."""
    failure = state_pb2.Failure(
        failure_class=state_pb2.FAILURE_CLASS_INFRA,
        reason="EPOCH_USED",
        message=f"the node has had attempt {epoch} of this job or a later one already",
    )
    return nodes_pb2.ReportAttemptRequest(state=state_pb2.ATTEMPT_STATE_KILLED, failure=failure)
