"""Curves of jobs."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith import names
from tunesmith.api.jobs.v1 import jobs_pb2
from tunesmith.api.metrics.v1 import metrics_pb2
from tunesmith.connection import Connection
from tunesmith.errors import NotFound
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.watch import follow

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.job import Job


@dataclass(frozen=True)
class Series:
    """A curve. All columns have the same length: numpy arrays when numpy is installed, else lists.

    Of a reduced curve (`max_points`) each point stands for a bucket: its last step and value, and in
    `min_values` and `max_values` its extremes, which are empty in full resolution. Times are Unix seconds.
    """

    key: str
    steps: Sequence[int] | np.ndarray[Any, Any]
    values: Sequence[float] | np.ndarray[Any, Any]
    times: Sequence[float] | np.ndarray[Any, Any]
    min_values: Sequence[float] | np.ndarray[Any, Any]
    max_values: Sequence[float] | np.ndarray[Any, Any]
    num_points: int


def to_series(proto: metrics_pb2.Series) -> Series:
    """Returns a curve as received, in columns."""
    times = [time / 1e6 for time in proto.times_us]
    return Series(
        key=proto.key,
        steps=_column(proto.steps, "int64"),
        values=_column(proto.values, "float64"),
        times=_column(times, "float64"),
        min_values=_column(proto.min_values, "float64"),
        max_values=_column(proto.max_values, "float64"),
        num_points=proto.num_points,
    )


def _column(values: Iterable[Any], dtype: str) -> Any:
    try:
        numpy = importlib.import_module("numpy")
    except ImportError:
        return list(values)
    return numpy.array(values, dtype=dtype)


async def query(
    core: Connection, parent: str, keys: Iterable[str], max_points: int, max_step: int = 0
) -> dict[str, Series]:
    """Returns curves by key, up to `max_step` (0: to the end); both faces and the job come through here."""
    request = metrics_pb2.QuerySeriesRequest(
        parent=parent, keys=keys, max_points=max_points, max_step=max_step
    )
    response = await core.call(core.metrics.QuerySeries, request)
    return {proto.key: to_series(proto) for proto in response.series}


async def join_lineage(
    core: Connection, job: jobs_pb2.Job, own: dict[str, Series], keys: Iterable[str], max_points: int
) -> dict[str, Series]:
    """Returns the curves of a forked job with its ancestors' before them, each up to the step of the fork."""
    curves, origin = dict(own), job.forked_from
    last_step = origin.step
    while origin.job and last_step:
        before = await query(core, origin.job, keys, max_points, last_step)
        curves = {
            key: _joined(before.get(key), curves.get(key), last_step) for key in sorted({*before, *curves})
        }
        try:
            parent = (await core.call(core.jobs.GetJob, jobs_pb2.GetJobRequest(name=origin.job))).job
        except NotFound:
            break  # it was deleted: its curves stay, but nobody knows what it came from
        origin = parent.forked_from
        last_step = min(last_step, origin.step)
    return curves


def _joined(before: Series | None, after: Series | None, last_step: int) -> Series:
    """Returns one curve of two: the first up to `last_step`, then what the second has beyond it."""
    if before is None or after is None:
        found = before or after
        assert found is not None, "the key comes from one of them"
        return found
    first = next((i for i, step in enumerate(after.steps) if step > last_step), len(after.steps))

    def both_of(name: str, dtype: str) -> Any:
        return _column([*getattr(before, name), *list(getattr(after, name))[first:]], dtype)

    return Series(
        key=before.key,
        steps=both_of("steps", "int64"),
        values=both_of("values", "float64"),
        times=both_of("times", "float64"),
        min_values=both_of("min_values", "float64"),
        max_values=both_of("max_values", "float64"),
        num_points=before.num_points + after.num_points,
    )


class Metrics(Handle[Face]):
    """Curves of the project's jobs. `job` is a Job, or an id, readable name or resource name."""

    _core: Connection

    @both
    async def list(self, job: str | Job[Any]) -> Sequence[metrics_pb2.MetricSummary]:
        """Returns the metrics of a job by key, each with its last value, extremes and number of points."""
        request = metrics_pb2.ListMetricsRequest(parent=await self._parent(job))
        return (await self._core.call(self._core.metrics.ListMetrics, request)).metrics

    @both
    async def series(
        self, job: str | Job[Any], keys: Iterable[str] | str = (), *, max_points: int = 0
    ) -> dict[str, Series]:
        """Returns curves by key: those named, or all. `max_points` reduces long ones; 0: every point."""
        wanted = [keys] if isinstance(keys, str) else keys
        return await query(self._core, await self._parent(job), wanted, max_points)

    @stream
    async def watch(
        self, job: str | Job[Any], keys: Iterable[str] | str = (), *, from_revision: int = 0
    ) -> AsyncGenerator[Series, None]:
        """Yields new points as they are stored, for ever and across disconnects.

        After a resume of the job a step may come again; the later point replaces the earlier.
        """
        parent = await self._parent(job)
        wanted = [keys] if isinstance(keys, str) else list(keys)

        def opened(revision: int) -> AsyncIterator[metrics_pb2.WatchSeriesResponse]:
            request = metrics_pb2.WatchSeriesRequest(parent=parent, keys=wanted, from_revision=revision)
            return aiter(self._core.metrics.WatchSeries(request, metadata=self._core.metadata))

        messages = follow(self._core, opened, from_revision=from_revision)
        async with contextlib.aclosing(messages):
            async for message in messages:
                for proto in message.series:
                    yield to_series(proto)

    async def _parent(self, job: str | Job[Any]) -> str:
        if not isinstance(job, str):
            return job.name
        if names.is_id(names.last_part(job)):
            return names.resource(self._core.project, "jobs", job)
        # The metrics service knows ids only; the jobs service knows readable names too.
        request = jobs_pb2.GetJobRequest(name=names.resource(self._core.project, "jobs", job))
        return (await self._core.call(self._core.jobs.GetJob, request)).job.name
