"""Curves of jobs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import names
from tunesmith.api.jobs.v1 import jobs_pb2
from tunesmith.api.metrics.v1 import export_pb2, metrics_pb2
from tunesmith.connection import Connection
from tunesmith.errors import InvalidArgument, NotFound, ResourceExhausted
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.watch import follow

if TYPE_CHECKING:
    import numpy as np
    import pandas

    from tunesmith.job import Job


_FORMATS = export_pb2.DESCRIPTOR.enum_types_by_name["ExportFormat"]
_REDUCTIONS = metrics_pb2.DESCRIPTOR.enum_types_by_name["Reduction"]
_AXES = metrics_pb2.DESCRIPTOR.enum_types_by_name["Axis"]
# How names of files end, by format.
_SUFFIXES = {
    ".arrow": "arrow", ".arrows": "arrow", ".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl",
    ".tfevents": "tensorboard",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A curve. All columns have the same length: numpy arrays when numpy is installed, else lists.

    Of a reduced curve (`max_points`) each point stands for a bucket: its last step and value, and in
    `min_values` and `max_values` its extremes, which are empty in full resolution. Times are Unix seconds.
    `places` are where the points stand on the axis asked for; empty when that is the step.
    """

    key: str
    steps: Sequence[int] | np.ndarray[Any, Any]
    values: Sequence[float] | np.ndarray[Any, Any]
    times: Sequence[float] | np.ndarray[Any, Any]
    min_values: Sequence[float] | np.ndarray[Any, Any]
    max_values: Sequence[float] | np.ndarray[Any, Any]
    num_points: int
    places: Sequence[float] | np.ndarray[Any, Any] = ()

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """Returns a structured array with the fields step, time and value, shape (n,)."""
        numpy = _module("numpy")
        table: np.ndarray[Any, Any] = numpy.empty(
            len(self.steps), dtype=[("step", "i8"), ("time", "f8"), ("value", "f8")]
        )
        table["step"], table["time"], table["value"] = self.steps, self.times, self.values
        return table

    def to_pandas(self) -> pandas.Series[float]:
        """Returns the values as a pandas Series, indexed by step."""
        pandas = _module("pandas")
        return pandas.Series(self.values, index=pandas.Index(self.steps, name="step"), name=self.key)


class Curves(dict[str, Series]):
    """Curves by key."""

    def _repr_html_(self) -> str:
        """What a notebook shows: pictures."""
        from tunesmith import notebook

        return notebook.curves(self)

    def to_numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """Returns a structured array a key, with the fields step, time and value. See `Series.to_numpy`."""
        return {key: each.to_numpy() for key, each in self.items()}

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a pandas DataFrame with a column a key, indexed by step; NaN where a key has none."""
        pandas = _module("pandas")
        if not self:
            return pandas.DataFrame()
        return pandas.concat([each.to_pandas() for each in self.values()], axis=1).sort_index()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ModuleNotFoundError(f"this needs {name}: pip install {name}") from None


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
        places=_column(proto.x_values, "float64"),
    )


def _column(values: Iterable[Any], dtype: str) -> Any:
    try:
        numpy = importlib.import_module("numpy")
    except ImportError:
        return list(values)
    return numpy.array(values, dtype=dtype)


@dataclass(frozen=True)
class View:
    """How curves are wanted: how many points, how reduced (`envelope` or `lttb`), the weight of smoothing,
    the axis (`step`, `relative_time`, `wall_time`, `tokens`, `epoch`), the first and last step (0: open)."""

    max_points: int = 0
    reduction: str = ""
    smoothing: float = 0.0
    axis: str = ""
    min_step: int = 0
    max_step: int = 0

    def fields(self) -> dict[str, Any]:
        """Returns the fields of a request. Raises InvalidArgument for a word that is not known."""
        return {
            "max_points": self.max_points,
            "reduction": names.number("reduction", _REDUCTIONS, self.reduction) if self.reduction else 0,
            "smoothing": self.smoothing,
            "axis": names.number("axis", _AXES, self.axis) if self.axis else 0,
            "min_step": self.min_step,
            "max_step": self.max_step,
        }


async def query(core: Connection, parent: str, keys: Iterable[str], view: View) -> Curves:
    """Returns curves by key; both faces and the job come through here."""
    request = metrics_pb2.QuerySeriesRequest(parent=parent, keys=keys, **view.fields())
    try:
        response = await core.call(core.metrics.QuerySeries, request)
    except ResourceExhausted:
        if view != View(min_step=view.min_step, max_step=view.max_step):
            raise
        return await _whole(core, request)
    return Curves({proto.key: to_series(proto) for proto in response.series})


async def _whole(core: Connection, request: metrics_pb2.QuerySeriesRequest) -> Curves:
    """Returns curves that are too long for one message, as they come in parts."""
    wanted = export_pb2.StreamSeriesRequest(
        parent=request.parent.rpartition("/jobs/")[0],
        jobs=[request.parent],
        keys=request.keys,
        min_step=request.min_step,
        max_step=request.max_step,
    )

    async def read() -> dict[str, list[array[Any]]]:
        found: dict[str, list[array[Any]]] = {}
        async for part in core.metrics.StreamSeries(wanted, metadata=core.metadata):
            columns = found.setdefault(part.key, [array("q"), array("q"), array("d")])
            for column, content in zip(columns, (part.steps, part.times_us, part.values), strict=True):
                column.frombytes(content)
        return found

    curves = Curves()
    for key, (steps, times, values) in (await core.repeat(read)).items():
        if sys.byteorder == "big":
            for column in (steps, times, values):
                column.byteswap()
        curves[key] = Series(
            key=key,
            steps=_column(steps, "int64"),
            values=_column(values, "float64"),
            times=_column([time / 1e6 for time in times], "float64"),
            min_values=_column((), "float64"),
            max_values=_column((), "float64"),
            num_points=len(steps),
        )
    return curves


async def join_lineage(
    core: Connection, job: jobs_pb2.Job, own: Curves, keys: Iterable[str], max_points: int
) -> Curves:
    """Returns the curves of a forked job with its ancestors' before them, each up to the step of the fork."""
    curves, origin = Curves(own), job.forked_from
    last_step = origin.step
    while origin.job and last_step:
        before = await query(core, origin.job, keys, View(max_points, max_step=last_step))
        joined = {key: _joined(before.get(key), curves.get(key), last_step) for key in {*before, *curves}}
        curves = Curves(sorted(joined.items()))
        try:
            parent = (await core.call(core.jobs.GetJob, jobs_pb2.GetJobRequest(name=origin.job))).job
        except NotFound:
            break  # it was deleted: nobody knows what it came from
        origin = parent.forked_from
        last_step = min(last_step, origin.step)
    return curves


async def export(
    core: Connection, parent: str, path: str | Path, format: str, keys: Iterable[str] | str
) -> Path:
    """Writes a file with the curves of a job; what is not whole does not stay under its name."""
    target = Path(path)
    if await asyncio.to_thread(target.is_dir):
        target = target / f"events.out.tfevents.{names.last_part(parent)}"
    word = format or _SUFFIXES.get(target.suffix, "tensorboard" if ".tfevents." in target.name else "")
    request = export_pb2.ExportSeriesRequest(
        parent=parent,
        keys=_keys(keys),
        format=export_pb2.ExportFormat.ValueType(names.number("format", _FORMATS, word)),
    )
    partial = target.with_name(f"{target.name}.part")

    async def read() -> None:
        with partial.open("wb") as file:
            async for part in core.metrics.ExportSeries(request, metadata=core.metadata):
                file.write(part.data)

    try:
        await core.repeat(read)
        partial.replace(target)
    except OSError as error:
        raise InvalidArgument(
            "FILE_UNREADABLE",
            f"the file cannot be written: {error.strerror}",
            field="path",
            value=target,
            remedy="give a path in a folder that is there and that you may write",
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def _keys(keys: Iterable[str] | str) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys)


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
        self,
        job: str | Job[Any],
        keys: Iterable[str] | str = (),
        *,
        max_points: int = 0,
        reduction: str = "",
        smoothing: float = 0.0,
        axis: str = "",
        min_step: int = 0,
        max_step: int = 0,
    ) -> Curves:
        """Returns curves by key: those named, or all. `max_points` reduces long ones; 0: every point.

        `reduction` is `envelope` (buckets with their extremes) or `lttb` (points that keep the shape).
        `smoothing` is the weight of what came before, from 0 to less than 1. `axis` fills `places`: `step`,
        `relative_time`, `wall_time`, `tokens` or `epoch`.
        """
        view = View(max_points, reduction, smoothing, axis, min_step, max_step)
        return await query(self._core, await self._parent(job), _keys(keys), view)

    @both
    async def compare(
        self,
        jobs: Iterable[str | Job[Any]],
        keys: Iterable[str] | str,
        *,
        max_points: int = 500,
        reduction: str = "",
        smoothing: float = 0.0,
        axis: str = "",
    ) -> dict[str, Curves]:
        """Returns curves of several jobs by the jobs' ids. Arguments as in `series`."""
        view = View(max_points, reduction, smoothing, axis)
        request = metrics_pb2.CompareSeriesRequest(
            parent=self._core.parent,
            jobs=[await self._parent(job) for job in jobs],
            keys=_keys(keys),
            **view.fields(),
        )
        answer = await self._core.call(self._core.metrics.CompareSeries, request)
        return {
            names.last_part(each.job): Curves({proto.key: to_series(proto) for proto in each.series})
            for each in answer.jobs
        }

    @both
    async def describe(
        self, job: str | Job[Any], keys: Iterable[str] | str = ()
    ) -> Sequence[export_pb2.SeriesDescription]:
        """Returns mean, deviation, extremes and quantiles of curves: those named, or all."""
        request = export_pb2.DescribeSeriesRequest(parent=await self._parent(job), keys=_keys(keys))
        return (await self._core.call(self._core.metrics.DescribeSeries, request)).descriptions

    @stream
    async def rich(
        self, job: str | Job[Any], keys: Iterable[str] | str = ()
    ) -> AsyncGenerator[export_pb2.RichPoint, None]:
        """Yields histograms, texts and pictures by step."""
        request = export_pb2.QueryRichSeriesRequest(parent=await self._parent(job), keys=_keys(keys))
        async for page in self._core.pages(self._core.metrics.QueryRichSeries, request):
            for point in page.points:
                yield point

    @both
    async def export(
        self, job: str | Job[Any], path: str | Path, *, format: str = "", keys: Iterable[str] | str = ()
    ) -> Path:
        """Writes every point into a file and returns its path. See `Job.export`."""
        return await export(self._core, await self._parent(job), path, format, keys)

    @stream
    async def watch(
        self, job: str | Job[Any], keys: Iterable[str] | str = (), *, from_revision: int = 0
    ) -> AsyncGenerator[Series, None]:
        """Yields new points as they are stored, for ever and across disconnects.

        After a resume of the job a step may come again; the later point replaces the earlier.
        """
        parent = await self._parent(job)
        wanted = _keys(keys)

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
