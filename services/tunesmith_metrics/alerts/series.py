"""Conditions about points: a value, a trend, numbers that are none."""

import math
import operator
from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import repeat
from typing import Any

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith_metrics.alerts.judge import Case, Finding, Judge
from tunesmith_metrics.alerts.samples import Records

_MOST_KEYS = 1000  # of one job that one rule keeps apart


COMPARE: dict[int, tuple[Callable[[float, float], bool], str]] = {
    rules_pb2.COMPARISON_ABOVE: (operator.gt, "above"),
    rules_pb2.COMPARISON_AT_LEAST: (operator.ge, "at least"),
    rules_pb2.COMPARISON_BELOW: (operator.lt, "below"),
    rules_pb2.COMPARISON_AT_MOST: (operator.le, "at most"),
}


class Keys:
    """Which columns of records a key or pattern means; the answer for each set of keys is kept."""

    def __init__(self, key: str) -> None:
        self.key, self.pattern = key, any(mark in key for mark in "*?[")
        self._known: dict[tuple[str, ...], list[tuple[int, str]]] = {}
        self._last: tuple[tuple[str, ...], list[tuple[int, str]]] = ((), [])

    def columns(self, keys: tuple[str, ...]) -> list[tuple[int, str]]:
        last, columns = self._last
        if keys is last:
            return columns
        found = self._known.get(keys)
        if found is None:
            if len(self._known) >= _MOST_KEYS:
                self._known.clear()
            found = self._known[keys] = [(i, name) for i, name in enumerate(keys) if self._fits(name)]
        self._last = (keys, found)
        return found

    def _fits(self, name: str) -> bool:
        return not self.key or name == self.key or (self.pattern and fnmatchcase(name, self.key))


class _Track:
    """One key: how far it was judged, and the last points. Each step counts once, of its lowest rank."""

    __slots__ = ("last", "points", "rank")

    def __init__(self, last: int = -1, rank: int = 2**31, points: list[float] | None = None) -> None:
        self.last, self.rank, self.points = last, rank, points or []

    def pass_by(self, sample: Records) -> None:
        """Takes records for judged without looking at each."""
        if sample.rank <= self.rank:
            self.rank = sample.rank
            if sample.last_step > self.last:
                self.last = sample.last_step


class _Series(Judge):
    """A condition about the points of one or more keys; it holds while it holds for any of them."""

    wants = frozenset((Records,))

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._tracks: dict[str, _Track] = {}
        self._active: dict[str, Finding] = {}

    def take(self, case: Case, sample: Records) -> None:
        columns = self._keys.columns(sample.keys)
        if not columns or (not self._active and self._dull(sample, columns)):
            return
        steps, times = sample.steps, sample.times_us
        values = [(name, sample.column(index)) for index, name in columns]
        for row, step in enumerate(steps):
            for name, column in values:
                self._point(case, sample.rank, name, step, times[row], column[row])

    def _dull(self, sample: Records, columns: list[tuple[int, str]]) -> bool:
        """Takes in records of which it is plain that nothing holds, and says whether it did."""
        return False

    def _point(self, case: Case, rank: int, key: str, step: int, time_us: int, value: float) -> None:
        track = self._track(key)
        if track is None or rank > track.rank:
            return
        track.rank = rank
        if step <= track.last:
            return
        track.last = step
        self._report(case, key, time_us, self._finding(track, key, step, value))

    def _report(self, case: Case, key: str, time_us: int, finding: Finding | None) -> None:
        if finding is not None:
            self._active[key] = finding
            case.holds(time_us, finding)
        elif self._active.pop(key, None) is not None:
            if self._active:
                case.holds(time_us, next(iter(self._active.values())))
            else:
                case.clears(time_us)

    def _track(self, key: str) -> _Track | None:
        track = self._tracks.get(key)
        if track is None and len(self._tracks) < _MOST_KEYS:
            track = self._tracks[key] = _Track()
        return track

    def _finding(self, track: _Track, key: str, step: int, value: float) -> Finding | None:
        raise AssertionError("each condition says it")

    def reset(self) -> None:
        self._active.clear()

    def dump(self) -> list[Any]:
        tracks = [[key, t.last, t.rank, t.points] for key, t in self._tracks.items()]
        return [tracks, [[key, f.text, f.value, f.step] for key, f in self._active.items()]]

    def load(self, kept: list[Any]) -> None:
        self._tracks = {key: _Track(last, rank, points) for key, last, rank, points in kept[0]}
        self._active = {key: Finding(text, value, step) for key, text, value, step in kept[1]}


class Threshold(_Series):
    """A metric beyond a value: each point, or the mean of the last ones."""

    def __init__(self, keys: Keys, comparison: int, value: float, num_points: int, min_step: int) -> None:
        super().__init__(keys)
        self._compare, self._word = COMPARE[comparison]
        self._value, self._num_points, self._min_step = value, max(num_points, 1), min_step
        self._limits = repeat(value)

    def _dull(self, sample: Records, columns: list[tuple[int, str]]) -> bool:
        if self._num_points > 1:
            return False
        for index, _ in columns:
            if True in map(self._compare, sample.column(index), self._limits):
                return False
        for _, name in columns:
            track = self._tracks.get(name) or self._track(name)
            if track is not None:
                track.pass_by(sample)
        return True

    def _finding(self, track: _Track, key: str, step: int, value: float) -> Finding | None:
        if step < self._min_step:
            return None
        judged = value
        if self._num_points > 1:
            track.points.append(value)
            del track.points[: -self._num_points]
            if len(track.points) < self._num_points:
                return None
            judged = math.fsum(track.points) / self._num_points if _finite(track.points) else math.nan
        if not self._compare(judged, self._value):
            return None
        what = key if self._num_points == 1 else f"the mean of {self._num_points} points of {key}"
        return Finding(f"{what} is {judged:.6g}, {self._word} {self._value:.6g}", judged, step)


class TrendJudge(_Series):
    """The mean of the last points against the mean of those before."""

    def __init__(self, key: str, num_points: int, trend: int, change: float) -> None:
        super().__init__(Keys(key))
        self._num_points, self._trend, self._change = num_points, trend, change

    def _finding(self, track: _Track, key: str, step: int, value: float) -> Finding | None:
        size = self._num_points
        track.points.append(value)
        del track.points[: -2 * size]
        if len(track.points) < 2 * size or not _finite(track.points):
            return None
        before = math.fsum(track.points[:size]) / size
        moved = math.fsum(track.points[size:]) / size - before
        change = moved / abs(before) if before else math.copysign(math.inf, moved) if moved else 0.0
        words: dict[int, str] = {
            rules_pb2.TREND_RISING: "rose" if change >= self._change else "",
            rules_pb2.TREND_FALLING: "fell" if -change >= self._change else "",
            rules_pb2.TREND_FLAT: "moved only" if abs(change) < self._change else "",
        }
        word = words[self._trend]
        if not word:
            return None
        return Finding(f"{key} {word} by {abs(change):.3g} of itself over {size} points", change, step)


class NotFinite(_Series):
    """A metric that is NaN or infinite."""

    def _dull(self, sample: Records, columns: list[tuple[int, str]]) -> bool:
        if not all(_finite(sample.column(index)) for index, _ in columns):
            return False
        for track in (self._tracks[name] for _, name in columns if name in self._tracks):
            track.pass_by(sample)
        return True

    def _point(self, case: Case, rank: int, key: str, step: int, time_us: int, value: float) -> None:
        # Only keys that were not finite once are kept: of a million keys hardly one is.
        if key in self._tracks or not math.isfinite(value):
            super()._point(case, rank, key, step, time_us, value)

    def _finding(self, track: _Track, key: str, step: int, value: float) -> Finding | None:
        return None if math.isfinite(value) else Finding(f"{key} is {value:g} at step {step}", value, step)


class NodeThreshold(Threshold):
    """A series of a node beyond a value."""

    about_nodes = True


def _finite(values: Any) -> bool:
    return all(map(math.isfinite, values))
