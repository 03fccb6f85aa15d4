"""Curves as a picture needs them: a range of steps, smoothed, on an axis, reduced to a few points."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunesmith.api.metrics.v1 import export_pb2, metrics_pb2
from tunesmith.errors import InvalidArgument, ResourceExhausted
from tunesmith_metrics import reduction
from tunesmith_metrics.axis import SOURCES, Axis
from tunesmith_metrics.curves import Reader
from tunesmith_metrics.reduction import View
from tunesmith_metrics.series import Curve

# A response stays below the 16 MiB a message may have.
_MAX_BYTES = 14 * 1024 * 1024
_POINT_BYTES, _COLUMN_BYTES = 22, 8
_MOST_POINTS = 150_000  # of a part of what a watcher gets: gRPC takes 4 MB, and a point has up to 20 bytes
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def steps_of(min_step: int, max_step: int) -> tuple[int | None, int | None]:
    """Returns the bounds of a range of steps as requests have it (0: open); None: open.

    Raises:
        InvalidArgument: the last step is before the first.
    """
    if max_step and min_step > max_step:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"min_step is after max_step, {max_step}",
            field="min_step",
            value=min_step,
            remedy="give a first step that is not after the last, or no last step (0)",
        )
    return min_step or None, max_step or None


@dataclass(frozen=True, slots=True)
class Drawing:
    """How curves are to be drawn."""

    low: int | None
    high: int | None
    max_points: int
    reduction: int
    smoothing: float
    axis: int

    @classmethod
    def of(
        cls,
        request: metrics_pb2.QuerySeriesRequest | metrics_pb2.CompareSeriesRequest,
        default_points: int = 0,
    ) -> "Drawing":
        """What a request asks for."""
        low, high = steps_of(request.min_step, request.max_step)
        points = request.max_points or default_points
        return cls(low, high, points, request.reduction, request.smoothing, request.axis)

    def axis_of(self, reader: Reader) -> Axis:
        """The axis for the curves of one job."""
        name = SOURCES.get(self.axis)
        return Axis(self.axis, reader.one(name) if name else None)

    def draw(self, curve: Curve, axis: Axis) -> View | None:
        """One curve; None when it has no point in the range."""
        # Smoothed before it is cut: a part looks as it does in the whole.
        values = reduction.smooth(curve.values, self.smoothing)
        view = reduction.view(curve, values, axis.places(curve), self.low, self.high)
        if not view.num_points:
            return None
        if not self.max_points:
            return view
        if self.reduction == metrics_pb2.REDUCTION_LTTB:
            return reduction.lttb(view, self.max_points)
        return reduction.envelope(view, self.max_points)


class Response:
    """Curves that go into one response, counted as they come."""

    def __init__(self) -> None:
        self.size = 0

    def series(
        self, drawing: Drawing, reader: Reader, keys: Iterable[str] | None
    ) -> list[metrics_pb2.Series]:
        """Draws the curves named, or all, of one job.

        Raises:
            ResourceExhausted: the response would be too large.
            InvalidArgument: the job has not what the axis is made from.
        """
        axis = drawing.axis_of(reader)
        found = []
        for key, curve in reader.each(keys):
            if not axis.usable:
                raise _unusable(drawing.axis)
            view = drawing.draw(curve, axis)
            if view is not None:
                self._count(view)
                found.append(message(key, view))
        return found

    def _count(self, view: View) -> None:
        columns = sum(column is not None for column in (view.places, view.lows, view.highs))
        self.size += len(view.steps) * (_POINT_BYTES + columns * _COLUMN_BYTES)
        if self.size > _MAX_BYTES:
            raise ResourceExhausted(
                "MESSAGE_TOO_LARGE",
                "the answer would hold more points than fit into a message",
                field="max_points",
                remedy="set max_points, ask for fewer keys or a range of steps, or use ExportSeries",
            )


def _unusable(kind: int) -> InvalidArgument:
    return InvalidArgument(
        "FIELD_INVALID",
        f"the job has not logged {SOURCES[kind]}, which this axis is made from",
        field="axis",
        value=metrics_pb2.Axis.Name(metrics_pb2.Axis.ValueType(kind)),
        remedy="choose another axis, for example AXIS_STEP",
    )


def message(key: str, view: View) -> metrics_pb2.Series:
    """Returns a curve as the contract has it."""
    return metrics_pb2.Series(
        key=key,
        steps=view.steps.tolist(),
        values=view.values.tolist(),
        times_us=view.times_us.tolist(),
        min_values=() if view.lows is None else view.lows.tolist(),
        max_values=() if view.highs is None else view.highs.tolist(),
        num_points=view.num_points,
        x_values=() if view.places is None else view.places.tolist(),
    )


def between(curve: Curve, low: int | None, high: int | None) -> Curve:
    """Returns the points of a curve between two steps, both included."""
    rows = reduction.between(curve.steps, low, high)
    return Curve(
        curve.steps[rows], curve.times_us[rows], curve.values[rows], curve.epochs[rows], curve.ranks[rows]
    )


def whole(curves: Mapping[str, Curve]) -> list[metrics_pb2.Series]:
    """Returns every point of curves as the contract has them, none with more than fit into a message."""
    found = []
    for key, curve in curves.items():
        for start in range(0, len(curve.steps), _MOST_POINTS):
            rows = slice(start, start + _MOST_POINTS)
            part = View(curve.steps[rows], curve.times_us[rows], curve.values[rows], None, None, None, 0)
            found.append(message(key, replace(part, num_points=len(part.steps))))
    return found


def parts(series: Sequence[metrics_pb2.Series]) -> list[Sequence[metrics_pb2.Series]]:
    """Returns series in groups that fit into a message each; at least one group."""
    groups: list[list[metrics_pb2.Series]] = [[]]
    size = 0
    for each in series:
        if size + len(each.steps) > _MOST_POINTS and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append(each)
        size += len(each.steps)
    return list(groups)


def description(key: str, curve: Curve) -> export_pb2.SeriesDescription:
    """Returns what a curve is like; NaN is counted and otherwise left out."""
    there = ~np.isnan(curve.values)
    values, steps = curve.values[there], curve.steps[there]
    found = export_pb2.SeriesDescription(
        key=key,
        num_points=len(curve.steps),
        num_nan=len(curve.steps) - len(values),
        first_step=int(curve.steps[0]),
        last_step=int(curve.steps[-1]),
        first_value=float(curve.values[0]),
        last_value=float(curve.values[-1]),
        mean=np.nan,
        stddev=np.nan,
        min_value=np.nan,
        max_value=np.nan,
    )
    if not len(values):
        return found
    lowest, highest = int(values.argmin()), int(values.argmax())
    found.min_value, found.min_step = float(values[lowest]), int(steps[lowest])
    found.max_value, found.max_step = float(values[highest]), int(steps[highest])
    with np.errstate(invalid="ignore", over="ignore"):  # infinities
        found.mean = float(values.mean())
        found.stddev = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        found.quantiles.extend(np.quantile(values, _QUANTILES).tolist())
    return found
