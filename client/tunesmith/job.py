"""One job: follow it, look into it, and everything that can be asked of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tunesmith import names
from tunesmith.api.jobs.v1 import jobs_pb2, queue_pb2, spec_pb2, state_pb2, verbs_pb2
from tunesmith.api.jobs.v1.events_pb2 import JobEvent
from tunesmith.api.metrics.v1 import metrics_pb2, trace_pb2
from tunesmith.api.metrics.v1.metrics_pb2 import ErrorLine, LogLine
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.blobs import OnProgress
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import DeadlineExceeded, InvalidArgument, TunesmithError
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.metrics import Curves, View, export, join_lineage, query
from tunesmith.tail import LogFilter, log_pages, tail_log
from tunesmith.watch import follow

_STATES = state_pb2.DESCRIPTOR.enum_types_by_name["JobState"]
_PAGE = 200
OnGap = Callable[[TunesmithError | None], None]


class Job(Handle[Face]):
    """One job: `proto` is the job as last seen, the methods ask the server."""

    _core: Connection

    def __init__(self, core: Connection, proto: jobs_pb2.Job) -> None:
        super().__init__(core)
        self.proto = proto

    def __repr__(self) -> str:
        return f"<Job {self.proto.display_name or self.id} {self.state}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from tunesmith import notebook

        return notebook.job(self.proto, self.state)

    @property
    def id(self) -> str:
        """The job's ULID."""
        return self.proto.job_id

    @property
    def name(self) -> str:
        """Resource name, `projects/{project}/jobs/{id}`."""
        return self.proto.name

    @property
    def display_name(self) -> str:
        """Readable name, for example `demo-k3f9`."""
        return self.proto.display_name

    @property
    def state(self) -> str:
        """State as last seen, for example `RUNNING`."""
        return names.short(_STATES, self.proto.state)

    @property
    def terminal(self) -> bool:
        """True once the state is final."""
        return self.proto.terminal

    @property
    def succeeded(self) -> bool:
        """True once the job's model version is registered."""
        return self.proto.state == state_pb2.JOB_STATE_SUCCEEDED

    @both
    async def refresh(self) -> Job[Face]:
        """Reads the job anew; returns itself."""
        self.proto = await get_job(self._core, self.proto.name)
        return self

    @stream
    async def watch(self, *, on_gap: OnGap = lambda error: None) -> AsyncGenerator[jobs_pb2.Job, None]:
        """Yields the job now and at each change, up to its terminal state, across disconnects.

        `on_gap` hears when the connection broke and is being made again.
        """
        async with contextlib.aclosing(self._watch(on_gap)) as updates:
            async for update in updates:
                yield update

    @both
    async def wait(self, timeout: float | None = None) -> Job[Face]:  # noqa: ASYNC109 - has a sync face too
        """Waits for the terminal state and returns itself; look at `state` for the outcome.

        Raises DeadlineExceeded when `timeout` seconds pass before.
        """
        await self._wait_until(lambda job: job.terminal, timeout)
        return self

    @both
    async def validated(self, timeout: float | None = None) -> Job[Face]:  # noqa: ASYNC109 - as wait
        """Waits until the inputs are checked and returns itself: QUEUED or beyond, or FAILED with the reason.

        Raises DeadlineExceeded when `timeout` seconds pass before.
        """
        await self._wait_until(lambda job: job.state != state_pb2.JOB_STATE_VALIDATING, timeout)
        return self

    @both
    async def reaches(self, *states: str, timeout: float | None = None) -> Job[Face]:  # noqa: ASYNC109 - as wait
        """Waits until the job is in one of `states` (such as `paused`) or final; returns itself.

        Raises DeadlineExceeded when `timeout` seconds pass before.
        """
        wanted = {state_number(text) for text in states}
        await self._wait_until(lambda job: job.terminal or job.state in wanted, timeout)
        return self

    @both
    async def pause(
        self, *, latest: bool = False, deadline: float | None = None, reason: str = ""
    ) -> Job[Face]:
        """Lets the job rest: with a new checkpoint, or at once with the `latest`. Returns itself at once.

        After `deadline` seconds its processes are killed, and the last committed checkpoint counts.
        """
        mode = verbs_pb2.PAUSE_MODE_LATEST if latest else verbs_pb2.PAUSE_MODE_SAVE
        request = verbs_pb2.PauseJobRequest(
            name=self.proto.name,
            mode=mode,
            deadline=span(deadline),
            reason=reason,
            request_id=new_request_id(),
        )
        self.proto = (await self._core.call(self._core.jobs.PauseJob, request)).job
        return self

    @both
    async def resume(self, *, accept_drift: bool = False) -> Job[Face]:
        """Queues a paused job again; returns itself.

        `accept_drift` lets it go on in another environment: recorded, and no longer bit-identical.
        """
        request = verbs_pb2.ResumeJobRequest(
            name=self.proto.name, accept_drift=accept_drift, request_id=new_request_id()
        )
        self.proto = (await self._core.call(self._core.jobs.ResumeJob, request)).job
        return self

    @both
    async def checkpoint(self) -> Job[Face]:
        """Asks for a durable checkpoint while the job goes on; `checkpoints()` shows it once it is there."""
        request = verbs_pb2.CheckpointJobRequest(name=self.proto.name, request_id=new_request_id())
        self.proto = (await self._core.call(self._core.jobs.CheckpointJob, request)).job
        return self

    @both
    async def fork(
        self,
        *,
        step: int | None = None,
        overrides: Iterable[str] = (),
        accept_drift: bool = False,
        request_id: str | None = None,
    ) -> Job[Face]:
        """Makes a new job that goes on from the checkpoint of `step` (default: the newest); returns it.

        `overrides` change its spec, like `training.learning_rate=1e-4`; base model, method and adapter stay.
        """
        from tunesmith import jobfile  # with YAML, which only edits need

        edits, paths = jobfile.edits(overrides, self.proto.spec)
        request = verbs_pb2.ForkJobRequest(
            name=self.proto.name,
            step=step,
            spec=edits,
            update_mask=FieldMask(paths=paths),
            accept_drift=accept_drift,
            request_id=request_id or new_request_id(),
        )
        return Job(self._core, (await self._core.call(self._core.jobs.ForkJob, request)).job)

    @both
    async def move(self, node: str) -> Job[Face]:
        """Takes the running job to another node, which fetches what it needs first; returns itself."""
        request = verbs_pb2.MoveJobRequest(
            name=self.proto.name, node=names.last_part(node), request_id=new_request_id()
        )
        self.proto = (await self._core.call(self._core.jobs.MoveJob, request)).job
        return self

    @both
    async def update(
        self,
        *,
        priority: int | None = None,
        labels: Mapping[str, str] | None = None,
        queue_deadline: float | None = None,
        run_deadline: float | None = None,
        stop_deadline: float | None = None,
    ) -> Job[Face]:
        """Changes what is given: priority, labels (an empty value removes one), deadlines in seconds."""
        deadlines = spec_pb2.DeadlineSpec(
            queue=span(queue_deadline), run=span(run_deadline), stop=span(stop_deadline)
        )
        request = verbs_pb2.UpdateJobRequest(
            name=self.proto.name,
            priority=priority,
            labels=labels,
            deadlines=deadlines if deadlines.ListFields() else None,
            request_id=new_request_id(),
        )
        self.proto = (await self._core.call(self._core.jobs.UpdateJob, request)).job
        return self

    @both
    async def delete(self) -> None:
        """Hides a finished job for good. Its metrics and logs are deleted, its model versions stay."""
        request = verbs_pb2.DeleteJobRequest(name=self.proto.name, request_id=new_request_id())
        await self._core.call(self._core.jobs.DeleteJob, request)

    @both
    async def explain(self) -> queue_pb2.ExplainJobResponse:
        """Tells why the job does not run: the rule that blocks it, and the smallest change that starts it."""
        request = queue_pb2.ExplainJobRequest(name=self.proto.name)
        return await self._core.call(self._core.jobs.ExplainJob, request)

    @both
    async def cancel(self, *, now: bool = False, reason: str = "") -> Job[Face]:
        """Asks for the end of the job: with a checkpoint first, or `now`. Returns itself at once."""
        mode = jobs_pb2.CANCEL_MODE_NOW if now else jobs_pb2.CANCEL_MODE_GRACEFUL
        request = jobs_pb2.CancelJobRequest(
            name=self.proto.name, mode=mode, reason=reason, request_id=new_request_id()
        )
        self.proto = (await self._core.call(self._core.jobs.CancelJob, request)).job
        return self

    @stream
    async def logs(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        contains: str = "",
        pattern: str = "",
        ignore_case: bool = False,
        level: str = "",
        ranks: Sequence[int] = (),
        epoch: int = 0,
        since: datetime | timedelta | None = None,
        min_step: int = 0,
    ) -> AsyncGenerator[LogLine, None]:
        """Yields log lines, oldest first: all, or the last `tail`; with `follow` on to the end of the job.

        The others narrow them: a text or a regular expression (RE2) in the line, its level (`warning` means
        that and worse), rank and attempt, when it was read and after which step it was written.
        """
        wanted = LogFilter(contains, pattern, ignore_case, level, ranks, epoch, since, min_step)
        revision = 0
        async for page in log_pages(self._core, wanted.request(self.proto.name), tail):
            revision = page.revision
            for line in page.lines:
                yield line
        if follow:
            end = self._wait_until(lambda job: job.terminal, None)
            tailing = tail_log(
                self._core, self.proto.name, wanted, revision, end, lambda: self.proto.terminal
            )
            async with contextlib.aclosing(tailing) as lines:
                async for line in lines:
                    yield line

    @both
    async def error_lines(self, limit: int = 20) -> list[ErrorLine]:
        """Returns the lines that tell of errors, one a distinct text, the one that came last first."""
        request = metrics_pb2.ListErrorLinesRequest(parent=self.proto.name, page_size=limit)
        return list((await self._core.call(self._core.logs.ListErrorLines, request)).lines)

    @both
    async def series(
        self,
        *keys: str,
        max_points: int = 0,
        lineage: bool = False,
        reduction: str = "",
        smoothing: float = 0.0,
        axis: str = "",
        min_step: int = 0,
        max_step: int = 0,
    ) -> Curves:
        """Returns curves by key: those named, or all. `max_points` reduces long ones; 0: every point.

        With `lineage` the curves of a forked job begin where its oldest ancestor's do: each ancestor's up to
        the step of the fork. `max_points` then counts for each of them. The other arguments are those of
        `Metrics.series`, and are for the job's own curves only.
        """
        view = View(max_points, reduction, smoothing, axis, min_step, max_step)
        own = await query(self._core, self.proto.name, keys, view)
        if not lineage:
            return own
        return await join_lineage(self._core, self.proto, own, keys, max_points)

    @both
    async def export(self, path: str | Path, *, format: str = "", keys: Iterable[str] | str = ()) -> Path:
        """Writes every point of the curves, or of those named, into a file and returns its path.

        `format` is `arrow`, `parquet`, `csv`, `jsonl` or `tensorboard`; without it the end of the name tells
        (`.arrows`, `.parquet`, `.csv`, `.jsonl`, `.tfevents`). A folder receives a TensorBoard event file.
        """
        return await export(self._core, self.proto.name, path, format, keys)

    @both
    async def attempts(self) -> list[state_pb2.Attempt]:
        """Returns the attempts, newest first."""
        request = jobs_pb2.ListAttemptsRequest(parent=self.proto.name, page_size=1000)
        return list((await self._core.call(self._core.jobs.ListAttempts, request)).attempts)

    @stream
    async def events(self) -> AsyncGenerator[JobEvent, None]:
        """Yields what happened to the job, oldest first."""
        request = jobs_pb2.ListJobEventsRequest(parent=self.proto.name, page_size=_PAGE)
        async for page in self._core.pages(self._core.jobs.ListJobEvents, request):
            for event in page.events:
                yield event

    @both
    async def trace(self) -> trace_pb2.GetTraceResponse:
        """Returns the job's trace: what each process did for it and when, spans by their beginning.

        A span hangs below the one that its `parent_span_id` names. The trace's id is that of OTLP.
        """
        return await self._core.call(
            self._core.traces.GetTrace, trace_pb2.GetTraceRequest(name=self.proto.name)
        )

    @both
    async def checkpoints(self, *, show_expired: bool = False) -> list[models_pb2.Checkpoint]:
        """Returns the committed checkpoints, newest first; expired ones can no longer be forked."""
        request = models_pb2.ListCheckpointsRequest(parent=self.proto.name, page_size=1000)
        found = [
            point
            async for page in self._core.pages(self._core.models.ListCheckpoints, request)
            for point in page.checkpoints
        ]
        return [point for point in found if show_expired or not point.expired]

    @both
    async def download_checkpoint(
        self, folder: str | Path, step: int | None = None, *, on_progress: OnProgress | None = None
    ) -> Path:
        """Writes the files of the newest checkpoint, or that of a step, into a folder and returns it."""
        from tunesmith.unpacking import unpack

        return await unpack(self._core, self.id, step, Path(folder), on_progress)

    @both
    async def pin(self, step: int, *, unpin: bool = False) -> state_pb2.CheckpointRef:
        """Keeps the checkpoint of `step` whatever the retention rules say, or (`unpin`) no longer."""
        request = verbs_pb2.PinCheckpointRequest(
            name=self.proto.name, step=step, unpin=unpin, request_id=new_request_id()
        )
        return (await self._core.call(self._core.jobs.PinCheckpoint, request)).checkpoint

    async def _watch(self, on_gap: OnGap = lambda error: None) -> AsyncGenerator[jobs_pb2.Job, None]:
        def opened(revision: int) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
            request = jobs_pb2.WatchJobRequest(name=self.proto.name, from_revision=revision)
            return aiter(self._core.jobs.WatchJob(request, metadata=self._core.metadata))

        # A terminal job that was seen before is sent again: from_revision 0 means "first as it is".
        seen = follow(self._core, opened, finished=lambda: self.proto.terminal, on_gap=on_gap)
        async with contextlib.aclosing(seen):
            async for message in seen:
                if message.HasField("job"):
                    self.proto = message.job
                    yield message.job
                    if message.job.terminal:
                        return

    async def _wait_until(self, reached: Callable[[jobs_pb2.Job], bool], seconds: float | None) -> None:
        if reached(self.proto):
            return
        try:
            async with asyncio.timeout(seconds), contextlib.aclosing(self._watch()) as updates:
                async for job in updates:
                    if reached(job):
                        return
        except TimeoutError:
            raise DeadlineExceeded(
                "DEADLINE_EXCEEDED",
                f"job {self.proto.display_name} was still {self.state} after {seconds:g} s",
                remedy="wait longer, or look at it with `tunesmith show`",
            ) from None


async def get_job(core: Connection, name: str) -> jobs_pb2.Job:
    """Reads one job."""
    return (await core.call(core.jobs.GetJob, jobs_pb2.GetJobRequest(name=name))).job


def span(seconds: float | None) -> Duration | None:
    """Returns a time in seconds as the contract has it."""
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def state_number(text: str) -> state_pb2.JobState.ValueType:
    """Returns the state that a user wrote, such as `running`. Raises InvalidArgument when it is none."""
    number = names.value_of(_STATES, text)
    if not number:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"{text} is no state of a job",
            field="states",
            value=text,
            remedy="use one of " + ", ".join(names.choices(_STATES)),
        )
    return state_pb2.JobState.ValueType(number)
