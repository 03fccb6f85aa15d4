"""Sends what lies in the folder of an external run to the server: while its program runs, and afterwards."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.blobs import LocalFile
from tunesmith.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
)
from tunesmith.load import Load, is_sound
from tunesmith.pace import Pace
from tunesmith.spool import Spool

if TYPE_CHECKING:
    from tunesmith.api.jobs.v1.jobs_pb2 import Job
    from tunesmith.api.metrics.v1 import records_pb2
    from tunesmith.client import Client
    from tunesmith.parcel import Parcel

_MOST_BYTES = 256 * 1024  # of a folder, in one call
# What passes: the server is away or slow, was asked by two at once, or the project is full for now.
PASSING = (Unavailable, DeadlineExceeded, Aborted, ResourceExhausted)
_PAUSE_SECONDS = 0.2  # where the server does not say how long to gather
_LONGEST_PAUSE = 5.0
# A server that takes long has many to serve: who is not looked at asks for a fifth of its time at most.
_PATIENCE = 4


class Sender:
    """Sends one folder. Its methods raise what the server says; all of them may be repeated."""

    def __init__(self, client: Client, spool: Spool) -> None:
        self._client, self._spool = client, spool
        self.job: Job | None = None
        self.pace = Pace(spool.identity.total_steps)
        self.cancelled = False
        self.pause = _PAUSE_SECONDS  # how long the server wants records to be gathered
        self.behind = False  # whether more may wait than the last call could take

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
        self.behind = 2 * (end - position) > _MOST_BYTES
        if end == position:
            return False
        load, said = Load(), self._spool.sent.end
        for record in found:
            if isinstance(record.get("end"), dict):
                said = record["end"]
                continue
            if not is_sound(record):
                continue
            if not load.fits(record):
                self._write(load)
                load = Load()
            load.add(record)
            if "values" in record:
                self.pace.take(record)
        self._write(load)
        self._spool.note(position=end, end=said)
        return True

    def _write(self, load: Load) -> None:
        if not load.records and not load.lines:
            return
        for digest in load.pictures:  # before what names them: whoever reads that finds them
            self._client.external.put_picture(self.name, digest, self._picture(digest))
        began = time.monotonic()
        answer = self._client.external.write(
            self.name,
            self._spool.sent.data_epoch,
            records=load.records,
            first_seq=load.first_seq,
            lines=load.lines,
            log_offset=load.log_offset,
        )
        self.pause = _pause(answer, time.monotonic() - began)
        for digest in load.pictures:
            self._spool.drop_picture(digest)

    def _picture(self, digest: str) -> LocalFile | None:
        # Read here, not on the loop's executor: at the program's end there is none any more.
        path = self._spool.picture(digest)
        try:
            return LocalFile(path, path.stat().st_size, digest)
        except FileNotFoundError:
            return None  # an earlier record named it, and it is stored

    def deliver(self, parcel: Parcel, on_progress: Any = None) -> None:
        """Uploads a checkpoint, enters it and removes what waited of it. Content that is stored is not sent
        again, and the same checkpoint is entered once."""
        self._client.external.put_checkpoint(self.name, self._spool.sent.data_epoch, parcel, on_progress)
        parcel.remove()

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


def _pause(answer: records_pb2.WriteRecordsResponse, took: float) -> float:
    """Returns how long to gather records after a call that took so many seconds."""
    told = answer.pause.ToMilliseconds() / 1000 if answer.HasField("pause") else _PAUSE_SECONDS
    if told < _PAUSE_SECONDS:  # somebody looks
        return told
    return min(max(told, _PATIENCE * took), _LONGEST_PAUSE)
