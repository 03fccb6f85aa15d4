"""Histograms, texts and pictures of a job, page by page."""

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2, export_pb2, metrics_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_kit import names
from tunesmith_kit.db import Database
from tunesmith_metrics import drawing, store
from tunesmith_metrics.tables import RICH_VALUES

_PAGE = 200
_MAX_BYTES = 8 * 1024 * 1024
_STEP = re.compile("-?[0-9]{1,18}")  # that fits into 64 bits; no trainer takes more steps
Place = tuple[int, str]  # step and key


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for. `after`: the place of the last value of the page before."""

    parent: str
    keys: Sequence[str]
    low: int | None
    high: int | None
    size: int
    after: Place | None

    @classmethod
    def of(cls, request: export_pb2.QueryRichSeriesRequest) -> "Wanted":
        """Reads a request.

        Raises:
            InvalidArgument: the page token is not ours, or the range is none.
        """
        low, high = drawing.steps_of(request.min_step, request.max_step)
        cursor = names.page_cursor(request.parent, request.page_token)
        size = names.page_size(request.page_size, 100)
        return cls(request.parent, list(request.keys), low, high, size, _place(cursor, request.page_token))


def _place(cursor: str, token: str) -> Place | None:
    if not cursor:
        return None
    step, _, key = cursor.partition(" ")
    if _STEP.fullmatch(step) is None:
        raise InvalidArgument(
            "PAGE_TOKEN_INVALID",
            "the page token was not made for this list",
            field="page_token",
            value=token,
            remedy="give back next_page_token as it was, or leave it out for the first page",
        )
    return int(step), key


def page(session: Session, job_id: str, wanted: Wanted) -> export_pb2.QueryRichSeriesResponse:
    """Returns a page of values by step, then key."""
    answer = export_pb2.QueryRichSeriesResponse()
    found = _read(session, job_id, wanted.keys, wanted.low, wanted.high, wanted.after, wanted.size + 1)
    size = 0
    for key, value in found:
        if len(answer.points) == wanted.size or size > _MAX_BYTES:
            last = answer.points[-1]
            answer.next_page_token = names.page_token(wanted.parent, f"{last.step} {last.key}")
            break
        answer.points.append(_point(key, value))
        size += value.ByteSize()
    return answer


def _point(key: str, value: events_pb2.RichValue) -> export_pb2.RichPoint:
    point = export_pb2.RichPoint(key=key, step=value.step)
    point.time.FromMicroseconds(value.time_us)
    kind = value.WhichOneof("value")
    if kind == "text":
        point.text = value.text
    elif kind is not None:
        getattr(point, kind).CopyFrom(getattr(value, kind))
    return point


async def each(
    db: Database, project: str, job_id: str, keys: Iterable[str] | None, low: int | None, high: int | None
) -> AsyncIterator[tuple[str, events_pb2.RichValue]]:
    """Yields the values of a job by step, then key."""
    after: Place | None = None
    wanted = list(keys or ())

    def some(session: Session) -> list[tuple[str, events_pb2.RichValue]]:
        if not store.belongs(session, project, job_id):
            return []
        return _read(session, job_id, wanted, low, high, after, _PAGE)

    while found := await db.read(some):
        for key, value in found:
            yield key, value
        after = found[-1][1].step, found[-1][0]


def _read(
    session: Session,
    job_id: str,
    keys: Sequence[str],
    low: int | None,
    high: int | None,
    after: Place | None,
    limit: int,
) -> list[tuple[str, events_pb2.RichValue]]:
    of = RICH_VALUES.c
    query = select(of.key, of.payload).where(of.job_id == job_id).order_by(of.step, of.key).limit(limit)
    if keys:
        query = query.where(of.key.in_(keys))
    if low is not None:
        query = query.where(of.step >= low)
    if high is not None:
        query = query.where(of.step <= high)
    if after is not None:
        query = query.where(tuple_(of.step, of.key) > after)
    return [(key, events_pb2.RichValue.FromString(payload)) for key, payload in session.execute(query)]


def summaries(session: Session, job_id: str) -> list[metrics_pb2.MetricSummary]:
    """Returns the metrics of a job that are no numbers."""
    of = RICH_VALUES.c
    query = (
        select(of.key, func.max(of.kind), func.count(), func.max(of.step))
        .where(of.job_id == job_id)
        .group_by(of.key)
    )
    return [
        metrics_pb2.MetricSummary(
            key=key, kind=metrics_pb2.MetricKind.ValueType(kind), num_points=count, last_step=last_step
        )
        for key, kind, count, last_step in session.execute(query)
    ]
