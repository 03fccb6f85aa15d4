"""Jobs: submit, list, follow, end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith import jobfile, names
from tunesmith.api.jobs.v1 import jobs_pb2, spec_pb2, state_pb2
from tunesmith.api.jobs.v1.events_pb2 import JobEvent
from tunesmith.api.metrics.v1 import metrics_pb2
from tunesmith.api.metrics.v1.metrics_pb2 import LogLine
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import DeadlineExceeded, InvalidArgument, TunesmithError
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.metrics import Series, query
from tunesmith.watch import follow

_STATES = state_pb2.DESCRIPTOR.enum_types_by_name["JobState"]
_PAGE = 200
# The agent ships a log within 0.2 s; so long after the end of a job nothing more can come.
_QUIET_SECONDS = 2.0
Spec = spec_pb2.JobSpec | Mapping[str, Any] | str | Path
OnGap = Callable[[TunesmithError | None], None]


class Job(Handle[Face]):
    """One job: `proto` is the job as last seen, the methods ask the server."""

    _core: Connection

    def __init__(self, core: Connection, proto: jobs_pb2.Job) -> None:
        super().__init__(core)
        self.proto = proto

    def __repr__(self) -> str:
        return f"<Job {self.proto.display_name or self.id} {self.state}>"

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
        self.proto = await _get(self._core, self.proto.name)
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
        self, *, follow: bool = False, contains: str = "", tail: int | None = None, epoch: int = 0
    ) -> AsyncGenerator[LogLine, None]:
        """Yields log lines, oldest first: all, or the last `tail`; with `follow` on to the end of the job.

        `contains` keeps the lines with that text, `epoch` those of one attempt.
        """
        request = metrics_pb2.QueryLogsRequest(parent=self.proto.name, epoch=epoch, contains=contains)
        revision = 0
        async for page in self._log_pages(request, tail):
            revision = page.revision
            for line in page.lines:
                yield line
        if follow:
            async with contextlib.aclosing(self._tail(revision)) as lines:
                async for line in lines:
                    if contains in line.text and epoch in (0, line.epoch):
                        yield line

    @both
    async def series(self, *keys: str, max_points: int = 0) -> dict[str, Series]:
        """Returns curves by key: those named, or all. `max_points` reduces long ones; 0: every point."""
        return await query(self._core, self.proto.name, keys, max_points)

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
    async def checkpoints(self) -> list[models_pb2.Checkpoint]:
        """Returns the committed checkpoints, newest first."""
        request = models_pb2.ListCheckpointsRequest(parent=self.proto.name, page_size=1000)
        return list((await self._core.call(self._core.models.ListCheckpoints, request)).checkpoints)

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

    async def _log_pages(
        self, request: metrics_pb2.QueryLogsRequest, tail: int | None
    ) -> AsyncIterator[metrics_pb2.QueryLogsResponse]:
        request.page_size = 10_000 if tail is None else min(max(tail, 1), 10_000)
        request.tail = tail is not None
        async for page in self._core.pages(self._core.logs.QueryLogs, request):
            yield page
            if tail is not None:
                return

    async def _tail(self, revision: int) -> AsyncGenerator[LogLine, None]:
        """Yields new lines until the job is terminal and its log quiet (or ended by the server)."""

        def opened(after: int) -> AsyncIterator[metrics_pb2.TailLogsResponse]:
            request = metrics_pb2.TailLogsRequest(parent=self.proto.name, from_revision=after)
            return aiter(self._core.logs.TailLogs(request, metadata=self._core.metadata))

        ending = asyncio.ensure_future(self._wait_until(lambda job: job.terminal, None))
        lines = follow(self._core, opened, from_revision=revision, finished=lambda: self.proto.terminal)
        try:
            async for message in _until_quiet(lines, ending):
                for line in message.lines:
                    yield line
        finally:
            ending.cancel()
            await lines.aclose()


async def _until_quiet(
    messages: AsyncGenerator[metrics_pb2.TailLogsResponse, None], ending: asyncio.Future[None]
) -> AsyncGenerator[metrics_pb2.TailLogsResponse, None]:
    """Passes messages on until `ending` is done and then no line has come for `_QUIET_SECONDS`."""
    clock = asyncio.get_running_loop().time
    following = asyncio.ensure_future(_next(messages))
    last_line = clock()
    try:
        while True:
            waiting: set[asyncio.Future[Any]] = {following} if ending.done() else {following, ending}
            patience = max(0.0, last_line + _QUIET_SECONDS - clock()) if ending.done() else None
            done, _ = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if following in done:
                message = following.result()
                if message is None:
                    return
                if message.lines:
                    last_line = clock()
                    yield message
                following = asyncio.ensure_future(_next(messages))
            elif ending in done:
                ending.result()
                last_line = clock()
            else:
                return
    finally:
        following.cancel()
        await asyncio.wait({following})


async def _next(
    messages: AsyncGenerator[metrics_pb2.TailLogsResponse, None],
) -> metrics_pb2.TailLogsResponse | None:
    return await anext(messages, None)


async def _get(core: Connection, name: str) -> jobs_pb2.Job:
    return (await core.call(core.jobs.GetJob, jobs_pb2.GetJobRequest(name=name))).job


class Jobs(Handle[Face]):
    """The jobs of the project."""

    _core: Connection

    @both
    async def submit(
        self,
        spec: Spec,
        *,
        overrides: Iterable[str] = (),
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Job[Face]:
        """Submits a job and returns it, in state VALIDATING; `validated()` and `wait()` follow it.

        `spec` is the path of a YAML job file, a mapping of the same form, or a JobSpec; `overrides` are like
        `training.learning_rate=1e-4`. Repeating a call with the same `request_id` makes one job only.
        Raises InvalidArgument with every wrong field in `violations`.
        """
        request = jobs_pb2.CreateJobRequest(
            parent=self._core.parent,
            spec=await asyncio.to_thread(jobfile.job_spec, spec, overrides),
            request_id=request_id or new_request_id(),
            validate_only=validate_only,
        )
        return Job(self._core, (await self._core.call(self._core.jobs.CreateJob, request)).job)

    @both
    async def get(self, name: str) -> Job[Face]:
        """Returns one job by its id, readable name or resource name."""
        return Job(self._core, await _get(self._core, names.resource(self._core.project, "jobs", name)))

    @stream
    async def list(
        self, *, states: Iterable[str] = (), experiment: str = "", limit: int | None = None
    ) -> AsyncGenerator[Job[Face], None]:
        """Yields jobs, newest first: those in one of `states` (such as `running`), of one experiment."""
        request = jobs_pb2.ListJobsRequest(
            parent=self._core.parent,
            page_size=min(limit or _PAGE, _PAGE),
            states=[_state(text) for text in states],
            experiment=experiment,
        )
        num_jobs = 0
        async for page in self._core.pages(self._core.jobs.ListJobs, request):
            for proto in page.jobs:
                if num_jobs == limit:
                    return
                num_jobs += 1
                yield Job(self._core, proto)

    @stream
    async def watch(
        self, *, from_revision: int = 0, on_gap: OnGap = lambda error: None
    ) -> AsyncGenerator[jobs_pb2.WatchJobsResponse, None]:
        """Yields changes of all jobs for ever, across disconnects: first the unfinished jobs as they are."""

        def opened(revision: int) -> AsyncIterator[jobs_pb2.WatchJobsResponse]:
            request = jobs_pb2.WatchJobsRequest(parent=self._core.parent, from_revision=revision)
            return aiter(self._core.jobs.WatchJobs(request, metadata=self._core.metadata))

        messages = follow(self._core, opened, from_revision=from_revision, on_gap=on_gap)
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield message


def _state(text: str) -> state_pb2.JobState.ValueType:
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
