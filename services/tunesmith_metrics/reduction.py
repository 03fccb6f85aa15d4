"""What is left of a long curve on a small picture: smoothing, buckets with extremes, largest triangles."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith_metrics.series import Curve, Floats, Ints

_SMALLEST = 1e-17  # what is weighed with less is lost in the rounding
_BLOCK = 4096
_LARGEST_EXPONENT = 200.0  # of e: far from the ends of a double


@dataclass(frozen=True, slots=True)
class View:
    """A curve on an axis; all arrays have shape (n,).

    `places` is None when the axis is the step. `lows` and `highs` are the extremes of buckets, None in full
    resolution. `num_points`: points behind the view.
    """

    steps: Ints
    times_us: Ints
    values: Floats
    places: Floats | None
    lows: Floats | None
    highs: Floats | None
    num_points: int


def view(curve: Curve, values: Floats, places: Floats | None, low: int | None, high: int | None) -> View:
    """The part of a curve between two steps (both included), with other values and places on an axis."""
    part = between(curve.steps, low, high)
    on_axis = None if places is None else places[part]
    steps = curve.steps[part]
    return View(steps, curve.times_us[part], values[part], on_axis, None, None, len(steps))


def between(steps: Ints, low: int | None, high: int | None) -> slice:
    """Where the steps from `low` to `high` stand, both included; None: open."""
    first = 0 if low is None else int(np.searchsorted(steps, low, "left"))
    end = len(steps) if high is None else int(np.searchsorted(steps, high, "right"))
    return slice(first, max(first, end))


def smooth(values: Floats, weight: float) -> Floats:
    """The exponential mean with `weight` on what came before, corrected for its start (Kingma and Ba, 2015).

    NaN and infinities stay where they are and count for nothing.
    """
    if weight < _SMALLEST:
        return values
    finite = np.isfinite(values)
    if finite.all():
        return _mean(values, weight)
    smoothed = values.copy()
    smoothed[finite] = _mean(values[finite], weight)
    return smoothed


def _mean(values: Floats, weight: float) -> Floats:
    """As `smooth`, of finite values: block by block as a sum with growing weights."""
    num = len(values)
    if not num:
        return values
    decay = -math.log(weight)
    size = max(1, min(_BLOCK, int(_LARGEST_EXPONENT / decay)))
    padded = np.zeros(-(-num // size) * size)
    padded[:num] = values
    blocks = padded.reshape(-1, size)
    powers = np.exp(-decay * np.arange(1, size + 1))
    with np.errstate(over="ignore", invalid="ignore"):  # values near the largest double
        blocks = np.cumsum(blocks * ((1 - weight) / powers), axis=1)
        lasts = (blocks[:, -1] * powers[-1]).tolist()
        carries, carry = [], 0.0
        for last in lasts:
            carries.append(carry)
            carry = carry * float(powers[-1]) + last
        blocks += np.array(carries)[:, None]
        blocks *= powers
    means = blocks.reshape(-1)[:num]
    start = min(num, math.ceil(math.log(1 / _SMALLEST) / decay))
    means[:start] /= -np.expm1(-decay * np.arange(1, start + 1))
    return means


def envelope(whole: View, num_buckets: int) -> View:
    """Buckets of equal width on the axis, each with its last, smallest and largest value."""
    if len(whole.steps) <= num_buckets:
        return whole
    starts = _starts(whole, num_buckets)
    lasts = np.append(starts[1:], len(whole.steps)) - 1
    # fmin and fmax pass over NaN (a bucket of NaN alone stays NaN), but take twice the time.
    some_nan = bool(np.isnan(np.add.reduce(whole.values)))
    low, high = (np.fmin, np.fmax) if some_nan else (np.minimum, np.maximum)
    return View(
        whole.steps[lasts],
        whole.times_us[lasts],
        whole.values[lasts],
        None if whole.places is None else whole.places[lasts],
        low.reduceat(whole.values, starts),
        high.reduceat(whole.values, starts),
        whole.num_points,
    )


def _starts(whole: View, num_buckets: int) -> NDArray[np.intp]:
    """Where the buckets begin; empty ones are left out."""
    if whole.places is None:
        first, last = int(whole.steps[0]), int(whole.steps[-1])
        width = -(-(last - first + 1) // num_buckets)
        edges = first + width * np.arange(1, num_buckets, dtype=np.int64)
        found = np.searchsorted(whole.steps, edges)
    else:
        # Wall time may go back where an attempt ran steps again; a bucket is one stretch of the curve.
        places = np.maximum.accumulate(whole.places)
        found = np.searchsorted(places, np.linspace(places[0], places[-1], num_buckets + 1)[1:-1])
    starts = np.unique(np.append(0, found))
    return starts[starts < len(whole.steps)]


def lttb(whole: View, num_points: int) -> View:
    """The points that keep the shape best: of each bucket the one that spans the largest triangle with the
    point chosen before it and the mean of the bucket after it (Steinarsson, 2013). First and last stay.

    NaN and infinities span no triangle; they stay only where a bucket holds nothing else.
    """
    num = len(whole.steps)
    if num <= num_points:
        return whole
    if num_points < 3:
        chosen = np.array([0, num - 1][-num_points:])
    else:
        across = whole.steps.astype(np.float64) if whole.places is None else whole.places
        chosen = _triangles(across, whole.values, num_points)
    places = None if whole.places is None else whole.places[chosen]
    return View(
        whole.steps[chosen],
        whole.times_us[chosen],
        whole.values[chosen],
        places,
        None,
        None,
        whole.num_points,
    )


def _triangles(across: Floats, up: Floats, num_points: int) -> NDArray[np.intp]:
    num = len(across)
    finite = np.isfinite(up)
    whole = bool(finite.all())
    flat = up if whole else np.where(finite, up, 0.0)
    edges = np.linspace(1, num - 1, num_points - 1).astype(np.intp)  # buckets between the ends
    starts = edges[:-1]
    counts = np.maximum(1, np.add.reduceat(finite[: num - 1], starts, dtype=np.int64))
    widths = np.diff(edges)
    mean_across = np.append(np.add.reduceat(across[: num - 1], starts) / widths, across[-1]).tolist()
    mean_up = np.append(np.add.reduceat(flat[: num - 1], starts) / counts, flat[-1]).tolist()
    chosen = [0]
    at_across, at_up = float(across[0]), float(flat[0])
    bounds = edges.tolist()
    for bucket in range(num_points - 2):
        low, high = bounds[bucket], bounds[bucket + 1]
        slope_across, slope_up = mean_across[bucket + 1] - at_across, mean_up[bucket + 1] - at_up
        # Twice the area, up to what is the same for the whole bucket.
        areas = np.abs((up[low:high] - at_up) * slope_across - (across[low:high] - at_across) * slope_up)
        best = low + int(areas.argmax() if whole else np.where(finite[low:high], areas, -1.0).argmax())
        chosen.append(best)
        at_across, at_up = float(across[best]), float(flat[best])
    chosen.append(num - 1)
    return np.array(chosen, dtype=np.intp)
