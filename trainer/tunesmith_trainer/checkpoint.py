"""Keeping the state of a run: snapshots in memory after commits, checkpoints on the disk beside the run."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from tunesmith_trainer import writer
from tunesmith_trainer.identity import Identity
from tunesmith_trainer.pace import Pace
from tunesmith_trainer.report import Reporter, log
from tunesmith_trainer.resume import Found
from tunesmith_trainer.run import Run, SnapshotMode
from tunesmith_trainer.side import SideProcess
from tunesmith_trainer.snapshot import SUFFIX, Slots
from tunesmith_trainer.state import PARTIAL, Progress, Tensors

_LEAST_INTERVAL_SECONDS = 10.0
_RETRY_SECONDS = 30.0
# The side process may take a tenth of a core: what it takes beside the run is not free either.
_WRITING_SHARE = 0.1


class Keeper:
    """Copies the state into slots, and has the side process make checkpoints of them, one at a time."""

    def __init__(self, run: Run, identity: Identity, reporter: Reporter) -> None:
        training = run.spec.training
        self.identity = identity
        self._run = run
        self._training = training
        self._folder = run.folder / "checkpoints"
        self._reporter = reporter
        # Snapshots and checkpoints hold training up, each for half of what is allowed.
        share = training.max_checkpoint_overhead / (1 if training.max_checkpoint_overhead >= 1 else 2)
        self._snapshot_pace = Pace(share)
        self._checkpoint_pace = Pace(share, _LEAST_INTERVAL_SECONDS)
        self._slots = self._open_slots(run)
        self._staging = Slots(None, count=1)
        self._side = SideProcess()
        self._thread: threading.Thread | None = None
        self._pinned: int | None = None
        self._error: OSError | None = None
        self._again = False
        self._durable_time: float | None = None
        self.saved_step = -1
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    def _open_slots(self, run: Run) -> Slots | None:
        if run.snapshots is None or self._training.snapshots is SnapshotMode.OFF:
            return None
        if not run.snapshots.is_dir():
            log(self._reporter, "warning", f"no snapshots: {run.snapshots} is not a folder")
            return None
        return Slots(run.snapshots / f"{run.epoch}{SUFFIX}")

    @property
    def seconds(self) -> float:
        """How long snapshots and checkpoints have held training up."""
        return self._snapshot_pace.total_seconds + self._checkpoint_pace.total_seconds

    @property
    def age_seconds(self) -> float | None:
        """Seconds since the newest checkpoint of this attempt was durable."""
        return None if self._durable_time is None else time.monotonic() - self._durable_time

    def resumed(self, found: Found | None) -> None:
        """Take note of where the attempt begins, and tell what differs from there."""
        drift = list(found.drift) if found is not None else []
        divisor = self._run.micro_batch_divisor
        if found is None and divisor > 1:
            drift.append(f"micro_batch_divisor: none -> {divisor}")
        if drift:
            self._reporter.event("drift", items=drift)
        if found is not None and found.own:
            self.saved_step = found.progress.step

    def is_best(self, progress: Progress) -> bool:
        """Whether the evaluation that just ended is among the best that are to be kept."""
        keep = self._training.keep_best_checkpoints
        if not keep or progress.evaluated_step != progress.step or progress.judged is None:
            return False
        figures = [
            figure for _, path in writer.own(self._folder) if (figure := writer.judged(path)) is not None
        ]
        return len(figures) < keep or progress.judged < sorted(figures)[keep - 1]

    def snapshot_due(self) -> bool:
        """Whether the state is to be copied into memory now."""
        return self._slots is not None and self._snapshot_pace.due()

    def checkpoint_due(self) -> bool:
        """Whether the controller wants a checkpoint now."""
        self.poll()
        if self._thread is not None:
            return False
        return (self._again or not self._training.checkpoint_every_steps) and self._checkpoint_pace.due()

    def snapshot(self, progress: Progress, tensors: Tensors) -> None:
        """Copy the state into memory that outlives the process."""
        slots = self._slots
        assert slots is not None
        self.poll()
        before = slots.area
        pace = self._snapshot_pace
        try:
            with pace.spending(measured=before is not None):
                slots.write(self._record(progress), tensors, _shape(tensors), progress.position, self._pinned)
        except OSError as error:
            self._slots = None
            log(self._reporter, "warning", f"no snapshots: {error}; a kill costs the work since a checkpoint")
            return
        if before is None:
            self._remove_older()

    def _remove_older(self) -> None:
        assert self._run.snapshots is not None
        for path in self._run.snapshots.glob(f"*{SUFFIX}"):
            if path.name != f"{self._run.epoch}{SUFFIX}":
                path.unlink(missing_ok=True)

    def save(self, progress: Progress, tensors: Tensors, epoch: float) -> None:
        """Begin to make a checkpoint of the present state; it is copied before this returns."""
        if self.saved_step == progress.step:
            return
        with self._checkpoint_pace.spending():
            self.wait()
            try:
                slots = self._slots or self._staging
                at = slots.write(self._record(progress), tensors, _shape(tensors), progress.position)
            except OSError as error:
                if self._slots is None:
                    self._failed(error)
                    return
                slots, self._slots = self._staging, None
                at = slots.write(self._record(progress), tensors, _shape(tensors), progress.position)
            assert slots.area is not None
            self._pinned = at if slots is self._slots else None
            self._again = False
            self.saved_step = progress.step
            self._side.start()
            request = self._request(progress, epoch, slots.area.source, at)
            memory = slots.area.memory
            self._thread = threading.Thread(
                target=self._write, args=(progress.step, request, memory), name="checkpoint"
            )
            self._thread.start()

    def _record(self, progress: Progress) -> dict[str, Any]:
        return {
            "version": 1,
            "job": self._run.job,
            "progress": progress.to_json(),
            **self.identity.record,
        }

    def _request(self, progress: Progress, epoch: float, source: str, at: int) -> dict[str, Any]:
        properties = {"step": str(progress.step), "epoch": f"{epoch:.6g}", **self.identity.properties}
        if progress.eval_loss is not None and progress.evaluated_step == progress.step:
            properties["eval_loss"] = repr(progress.eval_loss)
            if progress.judged is not None and progress.judged != progress.eval_loss:
                properties["judged"] = repr(progress.judged)
        return {
            "source": source,
            "at": at,
            "target": str(self._folder / f"step-{progress.step:08d}"),
            "properties": properties,
            "keep": self._training.keep_checkpoints,
            "keep_best": self._training.keep_best_checkpoints,
        }

    def _write(self, step: int, request: dict[str, Any], memory: Any) -> None:
        """In a thread that only waits: for the side process, or for the disk if there can be none."""
        try:
            answer = self._side.ask(request) if request["source"] else None
            if answer is None:
                answer = writer.perform(request, memory)
            if "error" in answer:
                raise OSError(answer["error"], answer["message"])
            self._announce(step, answer, Path(request["target"]).name)
        except OSError as error:
            self._error = error
        except Exception as error:  # told where the checkpoint is waited for
            self._error = OSError(errno.EIO, repr(error))

    def _announce(self, step: int, answer: dict[str, Any], name: str) -> None:
        self._durable_time = time.monotonic()
        self._checkpoint_pace.put_off(
            max((answer["end"] - answer["start"]) / _WRITING_SHARE, self._checkpoint_pace.interval())
        )
        self._reporter.event(
            "span",
            name="checkpoint",
            start=answer["start"],
            end=answer["end"],
            attributes={"step": step},
        )
        self._reporter.event(
            "checkpoint",
            path=f"{self._folder.name}/{name}",
            step=step,
            digest=answer["digest"],
            size_bytes=answer["size_bytes"],
        )

    def poll(self) -> None:
        """Take note of a checkpoint that has been made, or could not be; costs next to nothing."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self, *, must: bool = False) -> None:
        """Wait until the last checkpoint is on the disk.

        One that could not be written is told as a warning and tried again later, for the run is worth more
        than the checkpoint; if it `must` be there, raises OSError.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._pinned = None
        error, self._error = self._error, None
        if error is not None:
            self._failed(error)
            if must:
                raise error

    def _failed(self, error: OSError) -> None:
        self.saved_step = -1
        self._again = True
        self._checkpoint_pace.put_off(_RETRY_SECONDS)
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        log(self._reporter, "warning", f"no checkpoint could be written ({reason}); the run goes on without")

    def close(self) -> None:
        """Let the last checkpoint finish and end the side process."""
        if self._thread is not None:
            self._thread.join()
        self._side.close()


def _shape(tensors: Tensors) -> tuple[Any, ...]:
    """Equal for equal sets of tensors: only the partial gradients come and go."""
    prefix = f"{PARTIAL}/"
    parts = tuple((name, tuple(item.shape)) for name, item in tensors.items() if name.startswith(prefix))
    return len(tensors), parts
