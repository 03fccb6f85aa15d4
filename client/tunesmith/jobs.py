"""The jobs of a project: submit, list, follow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import names
from tunesmith.api.jobs.v1 import jobs_pb2, spec_pb2
from tunesmith.connection import Connection, new_request_id
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.job import Job, OnGap, get_job, state_number
from tunesmith.watch import follow

if TYPE_CHECKING:
    from tunesmith.api.gateway.v1 import quotes_pb2

__all__ = ["Job", "Jobs"]

_PAGE = 200
Spec = spec_pb2.JobSpec | Mapping[str, Any] | str | Path


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
            spec=await asyncio.to_thread(_job_spec, spec, overrides),
            request_id=request_id or new_request_id(),
            validate_only=validate_only,
        )
        return Job(self._core, (await self._core.call(self._core.jobs.CreateJob, request)).job)

    @both
    async def quote(self, spec: Spec, *, overrides: Iterable[str] = ()) -> quotes_pb2.QuoteJobResponse:
        """Returns what a job would take: memory, steps, time, which nodes would have it, place in the queue.

        Nothing is created. What the job refers to and is not there, and what contradicts itself, stands in
        `mistakes`. `spec` and `overrides` are those of `submit`; raises InvalidArgument as it does.
        """
        from tunesmith.api.gateway.v1 import quotes_pb2

        full = await asyncio.to_thread(_job_spec, spec, overrides)
        request = quotes_pb2.QuoteJobRequest(parent=self._core.parent, spec=full)
        return await self._core.call(self._core.quotes.QuoteJob, request)

    @both
    async def get(self, name: str) -> Job[Face]:
        """Returns one job by its id, readable name or resource name."""
        return Job(self._core, await get_job(self._core, names.resource(self._core.project, "jobs", name)))

    @stream
    async def list(
        self, *, states: Iterable[str] = (), experiment: str = "", limit: int | None = None
    ) -> AsyncGenerator[Job[Face], None]:
        """Yields jobs, newest first: those in one of `states` (such as `running`), of one experiment."""
        request = jobs_pb2.ListJobsRequest(
            parent=self._core.parent,
            page_size=min(limit or _PAGE, _PAGE),
            states=[state_number(text) for text in states],
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


def _job_spec(spec: Spec, overrides: Iterable[str]) -> spec_pb2.JobSpec:
    from tunesmith import jobfile  # with YAML, which only a submission needs

    return jobfile.job_spec(spec, overrides)
