"""Series of nodes: points by the second in blocks of half an hour, folded from what came, and with them the
buckets by the minute and by the hour; and queries over all of it.

A point counts once in the buckets: what is in its block by the second already was counted.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import metrics_pb2
from tunesmith.errors import InvalidArgument, ResourceExhausted
from tunesmith_kit import names
from tunesmith_kit.db import next_revision
from tunesmith_metrics import buckets, segments, store
from tunesmith_metrics.buckets import Buckets
from tunesmith_metrics.series import Points
from tunesmith_metrics.tables import NODE_SERIES, REVISION, SEGMENTS, WATERMARKS

PREFIX = "node."
# Seconds between points, and seconds a row stands for: some hundred points, so that little is written again.
BLOCKS = {1: 1800, 60: 4 * 3600, 3600: 7 * 86400}
_LATE_SECONDS = 60  # what comes so late goes with its block
_DEFAULT_SECONDS = 3600
_DEFAULT_POINTS = 600
_MAX_POINTS = 200_000  # some 50 bytes each
_GAP_SECONDS = 3600  # older than this, what is missing before it will not come any more


def ready(now: float) -> int:
    """Returns the time before which blocks by the second are complete, Unix time in seconds."""
    return int(now - _LATE_SECONDS) // BLOCKS[1] * BLOCKS[1]


def fold(session: Session, job_id: str, now: float) -> int:
    """Folds what came of a node and is complete into blocks; returns how many points were new."""
    next_revision(session, REVISION)  # makes the writers of all replicas queue
    taken, points = _complete(session, job_id, now)
    if not taken:
        return 0
    new: list[dict[str, Any]] = []
    num_new = 0
    known = _Stored(session, job_id)
    for key, fresh in _curves(points).items():
        fresh = known.without(key, fresh)
        num_new += len(fresh)
        if len(fresh):
            for resolution in BLOCKS:
                new += known.put(resolution, key, buckets.widen(fresh, resolution))
    store.upsert(session, NODE_SERIES, new)
    of = SEGMENTS.c
    for epoch, first_seq in taken:
        session.execute(
            delete(SEGMENTS).where(of.job_id == job_id, of.epoch == epoch, of.first_seq == first_seq)
        )
    return num_new


def _complete(
    session: Session, job_id: str, now: float
) -> tuple[list[tuple[int, int]], list[tuple[str, Points]]]:
    """The segments of a node whose points are all in complete blocks, by epoch and number; and the points."""
    of, mark = SEGMENTS.c, WATERMARKS.c
    marks = session.execute(select(mark.epoch, mark.metrics_seq).where(mark.job_id == job_id))
    stored = {row.epoch: row.metrics_seq for row in marks}
    taken, points = [], []
    rows = session.execute(select(SEGMENTS).where(of.job_id == job_id).order_by(of.epoch, of.first_seq))
    for row in rows:
        found = list(segments.columns([row.payload]))
        last_step = max((int(each.steps.max()) for _, each in found), default=0)
        # The watermark is made of what lies above it: a segment beyond a gap must stay until that is closed.
        beyond_gap = row.first_seq + row.num_records - 1 > stored.get(row.epoch, 0)
        if last_step < ready(now) and not (beyond_gap and last_step > now - _GAP_SECONDS):
            taken.append((row.epoch, row.first_seq))
            points += found
    return taken, points


def _curves(points: Iterable[tuple[str, Points]]) -> dict[str, Buckets]:
    """Points by key, one a second: the one that came last counts."""
    parts: dict[str, list[Points]] = {}
    for key, each in points:
        parts.setdefault(key, []).append(each)
    curves = {}
    for key, found in parts.items():
        steps = np.concatenate([part.steps for part in found])
        values = np.concatenate([part.values for part in found])
        last = len(steps) - 1 - np.unique(steps[::-1], return_index=True)[1]
        curves[key] = buckets.of_points(steps[last], values[last])
    return curves


class _Stored:
    """Rows of a node, read as they are needed."""

    def __init__(self, session: Session, job_id: str) -> None:
        self._session, self._job_id = session, job_id

    def without(self, key: str, fresh: Buckets) -> Buckets:
        """Those of the points that are in no block by the second yet."""
        there = [self._read(1, key, start) for start, _ in _by_block(1, fresh)]
        steps = [each.starts for each in there if each is not None]
        return buckets.choose(fresh, ~np.isin(fresh.starts, np.concatenate(steps))) if steps else fresh

    def put(self, resolution: int, key: str, fresh: Buckets) -> Iterator[dict[str, Any]]:
        """Rows in which stored buckets and fresh ones are joined."""
        for start, part in _by_block(resolution, fresh):
            there = self._read(resolution, key, start)
            whole = part if there is None else buckets.join([there, part])
            yield {
                "job_id": self._job_id,
                "resolution": resolution,
                "key": key,
                "start": start,
                "num_points": len(whole),
                "payload": buckets.pack(whole),
            }

    def _read(self, resolution: int, key: str, start: int) -> Buckets | None:
        row = NODE_SERIES.c
        query = select(row.payload).where(
            row.job_id == self._job_id, row.resolution == resolution, row.key == key, row.start == start
        )
        payload = self._session.execute(query).scalar_one_or_none()
        return None if payload is None else buckets.unpack(payload)


def _by_block(resolution: int, whole: Buckets) -> Iterator[tuple[int, Buckets]]:
    blocks = whole.starts // BLOCKS[resolution] * BLOCKS[resolution]
    for start in np.unique(blocks):
        yield int(start), buckets.choose(whole, blocks == start)


def expire(session: Session, keep_seconds: Mapping[int, float], now: float) -> int:
    """Deletes what is older than it is kept, and returns how many rows went away."""
    gone = 0
    for resolution, block in BLOCKS.items():
        row = NODE_SERIES.c
        old = delete(NODE_SERIES).where(
            row.resolution == resolution,
            row.start + block <= int(now - keep_seconds[resolution]) // 3600 * 3600,
        )
        gone += session.execute(old).rowcount  # type: ignore[attr-defined]
    _expire_marks(session, int((now - 86400) * 1000))
    return gone


def _expire_marks(session: Session, day_ago: int) -> None:
    """Deletes the marks of agents that were replaced by newer ones a day ago: a mark a start of the agent."""
    mark = WATERMARKS.c
    fleet = mark.job_id.between(PREFIX, PREFIX + "\x7f")
    newest = select(mark.job_id, func.max(mark.epoch)).where(fleet, mark.epoch < day_ago)
    for job_id, epoch in session.execute(newest.group_by(mark.job_id)).all():
        session.execute(delete(WATERMARKS).where(mark.job_id == job_id, mark.epoch < epoch))


@dataclass(frozen=True, slots=True)
class Span:
    """What is asked for: from `start` to `end`, Unix times in seconds, in at most `max_points` points."""

    start: int
    end: int
    max_points: int

    @property
    def resolution(self) -> int:
        """The coarsest resolution that still gives that many points."""
        seconds = max(self.end - self.start, 1) / self.max_points
        return max((each for each in BLOCKS if each <= seconds), default=1)


def answer(
    session: Session, request: metrics_pb2.QueryNodeSeriesRequest, now: float
) -> metrics_pb2.QueryNodeSeriesResponse:
    """Answers a request; `InvalidArgument` for times in disorder, `ResourceExhausted` for too much."""
    (node,) = names.parse("nodes/*", request.name)
    end = request.end_time.ToSeconds() if request.HasField("end_time") else int(now)
    start = request.start_time.ToSeconds() if request.HasField("start_time") else end - _DEFAULT_SECONDS
    if start > end:
        raise InvalidArgument(
            "FIELD_INVALID",
            "the end lies before the start",
            field="end_time",
            value=request.end_time.ToJsonString(),
            remedy="give an end_time after start_time, or leave it out",
        )
    span = Span(start, end, request.max_points or _DEFAULT_POINTS)
    series, resolution = query(session, PREFIX + node, request.keys, span)
    num_points = sum(len(each.steps) for each in series)
    if num_points > _MAX_POINTS:
        raise ResourceExhausted(
            "MESSAGE_TOO_LARGE",
            f"the answer would hold {num_points} points",
            field="max_points",
            remedy="set max_points, or ask for fewer keys or a shorter time",
        )
    return metrics_pb2.QueryNodeSeriesResponse(series=series, resolution_seconds=resolution)


def query(
    session: Session, job_id: str, patterns: Sequence[str], span: Span
) -> tuple[list[metrics_pb2.Series], int]:
    """Returns curves by key, and the seconds between points where they are finest.

    Where what is by the second or minute is no longer kept, the curves go on by the minute or hour.
    """
    wanted = _matcher(patterns)
    fresh = _fresh(session, job_id, wanted)
    parts: dict[str, list[Buckets]] = {}
    finest, end = 0, span.end
    for resolution in (each for each in BLOCKS if each >= span.resolution):
        for key, found in _rows(session, job_id, wanted, resolution, span.start, end):
            parts.setdefault(key, []).append(found)
        if resolution == span.resolution:
            for key, points in fresh.items():
                parts.setdefault(key, []).append(buckets.widen(points, resolution))
        finest = finest or (resolution if parts else 0)
        oldest = _oldest(session, job_id, resolution, fresh)
        # What is finer goes away by whole hours: before that hour the coarser has all.
        end = end if oldest is None else min(end, oldest // 3600 * 3600 - 1)
        if end < span.start:
            break
    curves = {key: _reduced(buckets.join(found), span) for key, found in sorted(parts.items())}
    series = [_series(key, curve) for key, curve in curves.items() if len(curve)]
    return series, finest or span.resolution


def _matcher(patterns: Sequence[str]) -> re.Pattern[str]:
    """A star stands for any letters but slashes; no pattern wants all."""
    forms = ("[^/]*".join(re.escape(part) for part in each.split("*")) for each in patterns)
    return re.compile("|".join(forms) or ".*")


def _fresh(session: Session, job_id: str, wanted: re.Pattern[str]) -> dict[str, Buckets]:
    """Points that are not folded into blocks yet."""
    payloads = session.execute(select(SEGMENTS.c.payload).where(SEGMENTS.c.job_id == job_id)).scalars().all()
    found = segments.columns(payloads)
    return _curves((key, points) for key, points in found if wanted.fullmatch(key))


def _rows(
    session: Session, job_id: str, wanted: re.Pattern[str], resolution: int, start: int, end: int
) -> Iterator[tuple[str, Buckets]]:
    row = NODE_SERIES.c
    mine = (row.job_id == job_id, row.resolution == resolution)
    keys = [key for key in session.execute(select(row.key).where(*mine).distinct()).scalars()]
    within = (row.start > start - BLOCKS[resolution], row.start <= end)
    for key in filter(wanted.fullmatch, keys):
        payloads = select(row.payload).where(*mine, row.key == key, *within).order_by(row.start)
        for payload in session.execute(payloads).scalars().all():
            found = buckets.unpack(payload)
            yield key, buckets.choose(found, (found.last_steps >= start) & (found.starts <= end))


def _oldest(session: Session, job_id: str, resolution: int, fresh: dict[str, Buckets]) -> int | None:
    """Since when there is anything of a resolution."""
    row = NODE_SERIES.c
    query = select(func.min(row.start)).where(row.job_id == job_id, row.resolution == resolution)
    stored = session.execute(query).scalar_one_or_none()
    starts = [int(points.starts[0]) for points in fresh.values()]
    return min(starts if stored is None else [stored, *starts], default=None)


def _reduced(curve: Buckets, span: Span) -> Buckets:
    curve = buckets.choose(curve, (curve.last_steps >= span.start) & (curve.starts <= span.end))
    if len(curve) <= span.max_points:
        return curve
    place = np.clip(curve.starts - span.start, 0, None) * span.max_points // (span.end - span.start + 1)
    return buckets.merge([curve], [place])


def _series(key: str, curve: Buckets) -> metrics_pb2.Series:
    series = metrics_pb2.Series(
        key=key,
        steps=curve.last_steps.tolist(),
        values=curve.means.tolist(),
        times_us=(curve.last_steps * 1_000_000).tolist(),
        num_points=int(curve.counts.sum()),
    )
    if (curve.counts > 1).any():
        series.min_values.extend(curve.lows.tolist())
        series.max_values.extend(curve.highs.tolist())
    return series
