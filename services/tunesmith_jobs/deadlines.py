"""Deadlines of jobs: how long one may wait for its first start, and how long it may train.

What counts is the time that passes, not the time of day: a job's age is read once, when this process first
sees it, and measured on from there. So a clock that is set, forward or back, ends no job.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2
from tunesmith_jobs import machine
from tunesmith_jobs.tables import AttemptRow
from tunesmith_kit.clock import Clock

QUEUE, RUN = state_pb2.FAILURE_CLASS_QUEUE_DEADLINE, state_pb2.FAILURE_CLASS_RUN_DEADLINE


@dataclass(frozen=True, slots=True)
class Due:
    """A deadline that has passed. `epoch` is the attempt it ends; 0: the job waits."""

    job_id: str
    kind: state_pb2.FailureClass.ValueType
    epoch: int


@dataclass(frozen=True, slots=True)
class _Timer:
    kind: state_pb2.FailureClass.ValueType
    epoch: int
    began: float  # when its time began to count, on the monotonic clock; may lie before the process's start
    at: float


class Deadlines:
    """The running timers, at most one a job: a job either waits or trains."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timers: dict[str, _Timer] = {}

    def take(self, job: jobs_pb2.Job, trained_seconds: float, attempt: AttemptRow | None) -> None:
        """Sets, changes or removes the timer of a job. `trained_seconds` are those of its ended attempts."""
        limits = job.spec.deadlines
        if job.state == machine.QUEUED and not job.epoch and limits.HasField("queue"):
            self._set(job.job_id, QUEUE, 0, job.create_time, _length(limits.queue))
        elif job.state == machine.RUNNING and attempt is not None and limits.HasField("run"):
            started = state_pb2.Attempt.FromString(attempt.body).start_time
            self._set(job.job_id, RUN, attempt.epoch, started, _length(limits.run) - trained_seconds)
        else:
            self.drop(job.job_id)

    def drop(self, job_id: str) -> None:
        """Removes a job's timer."""
        self._timers.pop(job_id, None)

    def due(self) -> Iterator[Due]:
        """Yields what has passed. It is yielded again until the job has changed."""
        now = self._clock.monotonic()
        for job_id, timer in sorted(self._timers.items()):
            if timer.at <= now:
                yield Due(job_id, timer.kind, timer.epoch)

    def _set(
        self,
        job_id: str,
        kind: state_pb2.FailureClass.ValueType,
        epoch: int,
        began: Timestamp,
        seconds: float,
    ) -> None:
        old = self._timers.get(job_id)
        if old is not None and (old.kind, old.epoch) == (kind, epoch):
            start = old.began
        else:
            age = (self._clock.now() - began.ToDatetime(UTC)).total_seconds()
            start = self._clock.monotonic() - max(age, 0.0)
        self._timers[job_id] = _Timer(kind, epoch, start, start + seconds)


def _length(duration: Duration) -> float:
    return duration.ToTimedelta().total_seconds()


def failure(kind: state_pb2.FailureClass.ValueType, job: jobs_pb2.Job) -> state_pb2.Failure:
    """Returns what a job fails with that waited too long."""
    assert kind == QUEUE
    limit = job.spec.deadlines.queue.ToJsonString()
    why = next((c.message for c in job.conditions if c.type == "Scheduled"), "")
    return state_pb2.Failure(
        failure_class=QUEUE,
        reason="QUEUE_DEADLINE",
        message=f"it waited longer than spec.deadlines.queue ({limit})" + (f": {why}" if why else ""),
        remedy="submit it again with a longer deadline or a higher priority",
    )
