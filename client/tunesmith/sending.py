"""Sends what lies in the folder of an external run to the server: while its program runs, and afterwards."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.metrics.v1 import events_pb2, records_pb2
from tunesmith.errors import FailedPrecondition
from tunesmith.spool import Spool

if TYPE_CHECKING:
    from tunesmith.api.jobs.v1.jobs_pb2 import Job
    from tunesmith.client import Client

_MOST_BYTES = 256 * 1024  # of a folder, in one call
_MOST_VALUES = 50_000
_LOSSES = ("train/loss", "loss", "train_loss", "train.loss")


@dataclass
class Pace:
    """How far a program is, as its records tell: step, loss, and the time to the end when that is known."""

    total_steps: int = 0
    step: int = 0
    loss: float = math.nan
    first_loss: float = math.nan
    _began: tuple[int, int] | None = None  # step and time of the first record
    _now: tuple[int, int] = (0, 0)

    def take(self, record: dict[str, Any]) -> None:
        """Takes a metric record in."""
        now = (int(record["step"]), int(record["time"]))
        self._began = self._began or now
        self.step, self._now = max(self.step, now[0]), now
        for key in _LOSSES:
            if key in record["values"]:
                self.loss = float(record["values"][key])
                if math.isnan(self.first_loss):
                    self.first_loss = self.loss
                break

    def progress(self) -> state_pb2.Progress | None:
        """Returns it as the contract has it; None before the first record."""
        if self._began is None:
            return None
        total = self.total_steps if self.total_steps >= self.step else 0  # it went further than it said
        progress = state_pb2.Progress(step=self.step, total_steps=total, time=_stamp(self._now[1]))
        if not math.isnan(self.loss):
            progress.loss, progress.first_loss = self.loss, self.first_loss
        steps, micros = self._now[0] - self._began[0], self._now[1] - self._began[1]
        if self.total_steps > self.step and steps > 0 and micros > 0:
            rest = (self.total_steps - self.step) * micros // steps
            progress.eta.CopyFrom(Duration(seconds=rest // 1_000_000))
        return progress


@dataclass
class _Load:
    """What one call sends."""

    records: list[records_pb2.LoggedRecord] = field(default_factory=list)
    first_seq: int = 0
    lines: list[records_pb2.LoggedLine] = field(default_factory=list)
    log_offset: int = 0
    num_values: int = 0
    next_offset: int = 0

    def fits(self, record: dict[str, Any]) -> bool:
        """Whether a record follows those at hand without a gap, and there is room for it."""
        if "seq" in record:
            follows = not self.records or record["seq"] == self.first_seq + len(self.records)
            return follows and self.num_values + len(record["values"]) <= _MOST_VALUES
        return not self.lines or record["offset"] == self.next_offset

    def add(self, record: dict[str, Any]) -> None:
        """Takes a record in."""
        if "seq" in record:
            self.first_seq = self.first_seq or record["seq"]
            values = {key: float(value) for key, value in record["values"].items()}
            self.records.append(
                records_pb2.LoggedRecord(step=record["step"], time=_stamp(record["time"]), values=values)
            )
            self.num_values += len(values)
            return
        if not self.lines:
            self.log_offset = record["offset"]
        level = events_pb2.LogLevel.Value(f"LOG_LEVEL_{record['level']}")
        self.lines.append(
            records_pb2.LoggedLine(text=record["text"], level=level, step=max(record["step"], 0))
        )
        self.next_offset = record["offset"] + len(record["text"].encode()) + 1


class Sender:
    """Sends one folder. Its methods raise what the server says; all of them may be repeated."""

    def __init__(self, client: Client, spool: Spool) -> None:
        self._client, self._spool = client, spool
        self.job: Job | None = None
        self.pace = Pace(spool.identity.total_steps)
        self.cancelled = False

    @property
    def name(self) -> str:
        """Resource name of the run."""
        return f"projects/{self._spool.identity.project}/jobs/{self._spool.identity.job_id}"

    def begin(self) -> Job:
        """Begins the run, or takes it up again, and returns its job."""
        who = self._spool.identity
        answer = self._client.external.start(
            job_id=who.job_id,
            experiment=who.experiment,
            config=who.config,
            labels=who.labels,
            host=who.host,
            program=who.program,
        )
        self._spool.note(data_epoch=self._spool.sent.data_epoch or answer.epoch, epoch=answer.epoch)
        self.job = answer.job
        return answer.job

    def send(self) -> bool:
        """Sends the next part of what is not stored yet; tells whether there was any."""
        position = self._spool.sent.position
        found, end = self._spool.read(position, _MOST_BYTES)
        if end == position:
            return False
        load, said = _Load(), self._spool.sent.end
        for record in found:
            if isinstance(record.get("end"), dict):
                said = record["end"]
                continue
            if not _is_sound(record):
                continue
            if not load.fits(record):
                self._write(load)
                load = _Load()
            load.add(record)
            if "seq" in record:
                self.pace.take(record)
        self._write(load)
        self._spool.note(position=end, end=said)
        return True

    def _write(self, load: _Load) -> None:
        if load.records or load.lines:
            self._client.external.write(
                self.name,
                self._spool.sent.data_epoch,
                records=load.records,
                first_seq=load.first_seq,
                lines=load.lines,
                log_offset=load.log_offset,
            )

    def renew(self) -> None:
        """Says that the program lives; takes the run up again when it was given up meanwhile.

        Raises:
            FailedPrecondition: another program took the run up, or it has ended.
        """
        try:
            answer = self._client.external.renew(self.name, self._spool.sent.epoch, self.pace.progress())
        except FailedPrecondition as error:
            if error.reason != "STALE_EPOCH" or not self._given_up():
                raise
            self.begin()
            return
        self.job = answer.job
        self.cancelled |= answer.desired in (state_pb2.DESIRED_CANCEL, state_pb2.DESIRED_KILL)

    def _given_up(self) -> bool:
        """Whether the run waits for its program; else somebody ended it or took it up."""
        self.job = self._client.jobs.get(self.name).proto
        self.cancelled |= self.job.state == state_pb2.JOB_STATE_CANCELLED
        return self.job.state == state_pb2.JOB_STATE_PAUSED and self.job.epoch == self._spool.sent.epoch

    def finish(self, failed: bool, message: str) -> Job:
        """Ends the run and returns its job."""
        sent = self._spool.sent
        self.job = self._client.external.finish(
            self.name, sent.epoch, failed=failed, message=message, progress=self.pace.progress()
        )
        self._spool.note(ended=True)
        return self.job


def _is_sound(record: dict[str, Any]) -> bool:
    """Whether a record is one that a program of ours wrote."""
    whole = type(record.get("step")) is int
    if "seq" in record:
        values = record.get("values")
        return (
            whole
            and all(type(record.get(name)) is int for name in ("seq", "time"))
            and isinstance(values, dict)
            and all(isinstance(value, int | float) for value in values.values())
        )
    return (
        whole
        and type(record.get("offset")) is int
        and isinstance(record.get("text"), str)
        and events_pb2.LogLevel.DESCRIPTOR.values_by_name.get(f"LOG_LEVEL_{record.get('level')}") is not None
    )


def _stamp(micros: int) -> Timestamp:
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def send_all(sender: Sender, seconds: float) -> bool:
    """Sends all that waits, for so many seconds at most; tells whether nothing is left."""
    deadline = time.monotonic() + seconds
    while sender.send():
        if time.monotonic() > deadline:
            return False
    return True
